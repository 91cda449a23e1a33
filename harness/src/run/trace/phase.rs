//! What SQLite is doing at a stop, as a closed list of names.
//!
//! A phase has a text form (`commit-frame`, `wal-index-lock.checkpoint.exclusive`) that scenario
//! files and reports use. A name that is not on the list is refused, with the list, before anything
//! runs: a misspelt fault must not quietly never happen.
//!
//! Not here: finding the phase of a call, which is `classify`'s work.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::operation::LockKind;

/// A byte of the wal-index that SQLite locks (bytes 120 to 128 of the `-shm` file).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WalLock {
    /// 120: one writer at a time.
    Write,
    /// 121: one checkpointer at a time.
    Checkpoint,
    /// 122: one recovery at a time.
    Recover,
    /// 123: readers that need nothing of the WAL.
    Read0,
    /// 124: readers with mark 1. A reset takes 124 to 127 at once; it is named by the first.
    Read1,
    /// 125.
    Read2,
    /// 126.
    Read3,
    /// 127.
    Read4,
    /// 128, the dead man's switch: whoever has it alone may start the wal-index anew.
    Dms,
}

impl WalLock {
    /// The first locked byte of the wal-index.
    const FIRST_BYTE: u64 = 120;

    /// Every lock, in the order of the bytes.
    pub const ALL: [Self; 9] = [
        Self::Write,
        Self::Checkpoint,
        Self::Recover,
        Self::Read0,
        Self::Read1,
        Self::Read2,
        Self::Read3,
        Self::Read4,
        Self::Dms,
    ];

    /// The lock that `byte` of the `-shm` file stands for.
    #[must_use]
    pub fn of_byte(byte: u64) -> Option<Self> {
        let index = usize::try_from(byte.checked_sub(Self::FIRST_BYTE)?).ok()?;
        Self::ALL.get(index).copied()
    }

    /// Its byte.
    #[must_use]
    pub fn byte(self) -> u64 {
        Self::FIRST_BYTE + self as u64
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Checkpoint => "checkpoint",
            Self::Recover => "recover",
            Self::Read0 => "read0",
            Self::Read1 => "read1",
            Self::Read2 => "read2",
            Self::Read3 => "read3",
            Self::Read4 => "read4",
            Self::Dms => "dms",
        }
    }
}

/// A part of the lock bytes of the database file (from byte `0x4000_0000`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DbLock {
    /// The pending byte.
    Pending,
    /// The reserved byte.
    Reserved,
    /// The 510 shared bytes.
    Shared,
    /// The whole file: how SQLite unlocks.
    All,
}

impl DbLock {
    /// The pending byte; the reserved and the shared bytes follow.
    pub const PENDING_BYTE: u64 = 0x4000_0000;

    /// Every part.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Reserved, Self::Shared, Self::All];

    /// The part that a lock beginning at `byte` is on.
    #[must_use]
    pub fn of_byte(byte: u64) -> Option<Self> {
        match byte.checked_sub(Self::PENDING_BYTE) {
            Some(0) => Some(Self::Pending),
            Some(1) => Some(Self::Reserved),
            Some(2..=511) => Some(Self::Shared),
            Some(_) => None,
            None => (byte == 0).then_some(Self::All),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Reserved => "reserved",
            Self::Shared => "shared",
            Self::All => "all",
        }
    }
}

/// One of the files that belong to a database besides itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sidecar {
    /// `-wal`.
    Wal,
    /// `-shm`.
    Shm,
    /// `-journal`.
    Journal,
}

impl Sidecar {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Wal, Self::Shm, Self::Journal];

    const fn name(self) -> &'static str {
        match self {
            Self::Wal => "wal",
            Self::Shm => "shm",
            Self::Journal => "journal",
        }
    }
}

/// What SQLite is doing at a stop.
///
/// The text form is the variant's name in kebab case, with the details behind dots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Phase {
    /// The header of a WAL that was empty.
    WalHeader,
    /// The header of a WAL, over an earlier one: all earlier frames are given up.
    WalReset,
    /// A frame header that ends no transaction.
    FrameHeader,
    /// The page behind a frame header that ends no transaction.
    FramePage,
    /// The frame header that ends a transaction (its "size after commit" is not 0). Sent in one
    /// write with its page, the page belongs to it.
    CommitFrame,
    /// The page behind a [`CommitFrame`](Self::CommitFrame): once it is whole, the transaction is
    /// committed for every process on this machine.
    CommitPage,
    /// The WAL made durable.
    WalSync,
    /// The WAL cut.
    WalTruncate,
    /// A page written to the database from the WAL.
    CheckpointPageWrite,
    /// A page written to the database under a rollback journal, or under none.
    DbPageWrite,
    /// The database's size set.
    DbTruncate,
    /// The database made durable.
    DbSync,
    /// A lock on the wal-index.
    WalIndexLock(WalLock, LockKind),
    /// A lock on the database file.
    DbLock(DbLock, LockKind),
    /// A sidecar removed. For the journal this is the commit in `DELETE` mode.
    SidecarUnlink(Sidecar),
    /// The database removed.
    DbUnlink,
    /// The directory made durable.
    DirectorySync,
    /// The header of a rollback journal, or its record count.
    JournalHeader,
    /// A record of a rollback journal: page number, page, or checksum, each a write of its own.
    JournalPage,
    /// The rollback journal made durable.
    JournalSync,
    /// The journal cut to nothing: the commit in `TRUNCATE` mode.
    JournalTruncate,
    /// The journal's header overwritten with zeros: the commit in `PERSIST` mode.
    JournalZero,
    /// The wal-index extended by a write.
    ShmExtend,
    /// The wal-index cut: at the first open after everybody had left, or by somebody else's hand.
    ShmTruncate,
    /// The wal-index mapped.
    ShmMap,
    /// The wal-index unmapped.
    ShmUnmap,
    /// A database file opened.
    Open,
    /// A descriptor of a database file closed.
    Close,
    /// A database file read.
    Read,
    /// A database file renamed, or replaced by another file.
    Rename,
    /// A further name for a database file.
    Link,
    /// A sleep: in SQLite, that of the busy handler.
    Sleep,
    /// An acknowledgement written.
    Ack,
    /// A call on a database file that is none of the above.
    Other,
}

/// The phases that stand for themselves.
const PLAIN: [(Phase, &str); 32] = [
    (Phase::WalHeader, "wal-header"),
    (Phase::WalReset, "wal-reset"),
    (Phase::FrameHeader, "frame-header"),
    (Phase::FramePage, "frame-page"),
    (Phase::CommitFrame, "commit-frame"),
    (Phase::CommitPage, "commit-page"),
    (Phase::WalSync, "wal-sync"),
    (Phase::WalTruncate, "wal-truncate"),
    (Phase::CheckpointPageWrite, "checkpoint-page-write"),
    (Phase::DbPageWrite, "db-page-write"),
    (Phase::DbTruncate, "db-truncate"),
    (Phase::DbSync, "db-sync"),
    (Phase::DbUnlink, "db-unlink"),
    (Phase::DirectorySync, "directory-sync"),
    (Phase::JournalHeader, "journal-header"),
    (Phase::JournalPage, "journal-page"),
    (Phase::JournalSync, "journal-sync"),
    (Phase::JournalTruncate, "journal-truncate"),
    (Phase::JournalZero, "journal-zero"),
    (Phase::ShmExtend, "shm-extend"),
    (Phase::ShmTruncate, "shm-truncate"),
    (Phase::ShmMap, "shm-map"),
    (Phase::ShmUnmap, "shm-unmap"),
    (Phase::Open, "open"),
    (Phase::Close, "close"),
    (Phase::Read, "read"),
    (Phase::Rename, "rename"),
    (Phase::Link, "link"),
    (Phase::Sleep, "sleep"),
    (Phase::Ack, "ack"),
    (Phase::Other, "other"),
    // Another name for the commit of DELETE mode, beside truncate and zero.
    (Phase::SidecarUnlink(Sidecar::Journal), "journal-unlink"),
];

const LOCK_KINDS: [(LockKind, &str); 4] = [
    (LockKind::Shared, "shared"),
    (LockKind::Exclusive, "exclusive"),
    (LockKind::Unlock, "unlock"),
    (LockKind::Test, "test"),
];

impl Phase {
    /// Every phase, those with details in all their forms.
    pub fn all() -> impl Iterator<Item = Self> {
        let kinds = || LOCK_KINDS.map(|(kind, _)| kind);
        let wal_index = WalLock::ALL
            .into_iter()
            .flat_map(move |lock| kinds().map(|kind| Self::WalIndexLock(lock, kind)));
        let database = DbLock::ALL
            .into_iter()
            .flat_map(move |lock| kinds().map(|kind| Self::DbLock(lock, kind)));
        PLAIN
            .into_iter()
            .map(|(phase, _)| phase)
            .filter(|phase| !matches!(phase, Self::SidecarUnlink(_)))
            .chain(Sidecar::ALL.map(Self::SidecarUnlink))
            .chain(wal_index)
            .chain(database)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WalIndexLock(lock, kind) => {
                write!(out, "wal-index-lock.{}.{}", lock.name(), kind_name(*kind))
            }
            Self::DbLock(lock, kind) => {
                write!(out, "db-lock.{}.{}", lock.name(), kind_name(*kind))
            }
            Self::SidecarUnlink(which) => write!(out, "sidecar-unlink.{}", which.name()),
            plain => out.write_str(
                PLAIN.iter().find(|(phase, _)| phase == plain).map_or("other", |(_, name)| name),
            ),
        }
    }
}

fn kind_name(kind: LockKind) -> &'static str {
    LOCK_KINDS.iter().find(|(known, _)| *known == kind).map_or("", |(_, name)| name)
}

/// A phase name that is not on the list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no phase is called `{name}`; the names are {}", names().join(", "))]
pub struct UnknownPhase {
    /// The name as given.
    pub name: String,
}

/// All names, those with details in their general form.
fn names() -> Vec<String> {
    let alternatives = |names: Vec<&str>| names.join("|");
    let kinds = alternatives(LOCK_KINDS.iter().map(|(_, name)| *name).collect());
    let wal = alternatives(WalLock::ALL.iter().map(|lock| lock.name()).collect());
    let database = alternatives(DbLock::ALL.iter().map(|lock| lock.name()).collect());
    let sidecars = alternatives(Sidecar::ALL.iter().map(|which| which.name()).collect());
    PLAIN
        .iter()
        .map(|(_, name)| (*name).to_owned())
        .chain([
            format!("sidecar-unlink.({sidecars})"),
            format!("wal-index-lock.({wal}).({kinds})"),
            format!("db-lock.({database}).({kinds})"),
        ])
        .collect()
}

impl FromStr for Phase {
    type Err = UnknownPhase;

    fn from_str(name: &str) -> Result<Self, UnknownPhase> {
        match PhasePattern::from_str(name)? {
            PhasePattern::One(phase) => Ok(phase),
            PhasePattern::SidecarUnlink
            | PhasePattern::WalIndexLock(..)
            | PhasePattern::DbLock(..) => Err(UnknownPhase { name: name.to_owned() }),
        }
    }
}

impl TryFrom<String> for Phase {
    type Error = UnknownPhase;

    fn try_from(name: String) -> Result<Self, UnknownPhase> {
        name.parse()
    }
}

impl From<Phase> for String {
    fn from(phase: Phase) -> Self {
        phase.to_string()
    }
}

/// One phase, or all of a family: a name with its last details left out.
///
/// `wal-index-lock` is every lock of the wal-index, `wal-index-lock.write` every call on that byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PhasePattern {
    /// This phase.
    One(Phase),
    /// The removal of any sidecar.
    SidecarUnlink,
    /// Any lock call on the wal-index, or on one of its bytes.
    WalIndexLock(Option<WalLock>),
    /// Any lock call on the database, or on one of its parts.
    DbLock(Option<DbLock>),
}

impl PhasePattern {
    /// Whether `phase` is meant.
    #[must_use]
    pub fn matches(self, phase: Phase) -> bool {
        match (self, phase) {
            (Self::One(one), phase) => one == phase,
            (Self::SidecarUnlink, Phase::SidecarUnlink(_)) => true,
            (Self::WalIndexLock(lock), Phase::WalIndexLock(at, _)) => {
                lock.is_none_or(|lock| lock == at)
            }
            (Self::DbLock(lock), Phase::DbLock(at, _)) => lock.is_none_or(|lock| lock == at),
            _ => false,
        }
    }
}

impl From<Phase> for PhasePattern {
    fn from(phase: Phase) -> Self {
        Self::One(phase)
    }
}

impl fmt::Display for PhasePattern {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(phase) => phase.fmt(out),
            Self::SidecarUnlink => out.write_str("sidecar-unlink"),
            Self::WalIndexLock(None) => out.write_str("wal-index-lock"),
            Self::WalIndexLock(Some(lock)) => write!(out, "wal-index-lock.{}", lock.name()),
            Self::DbLock(None) => out.write_str("db-lock"),
            Self::DbLock(Some(lock)) => write!(out, "db-lock.{}", lock.name()),
        }
    }
}

impl FromStr for PhasePattern {
    type Err = UnknownPhase;

    fn from_str(name: &str) -> Result<Self, UnknownPhase> {
        let parsed = if let Some((phase, _)) = PLAIN.iter().find(|(_, plain)| *plain == name) {
            Some(Self::One(*phase))
        } else {
            parse_detailed(name)
        };
        parsed.ok_or_else(|| UnknownPhase { name: name.to_owned() })
    }
}

fn parse_detailed(name: &str) -> Option<PhasePattern> {
    let mut parts = name.split('.');
    let (family, detail, kind) = (parts.next()?, parts.next(), parts.next());
    if parts.next().is_some() {
        return None;
    }
    let kind = match kind {
        Some(kind) => Some(LOCK_KINDS.iter().find(|(_, known)| *known == kind)?.0),
        None => None,
    };
    match (family, detail) {
        ("sidecar-unlink", None) => Some(PhasePattern::SidecarUnlink),
        ("sidecar-unlink", Some(which)) if kind.is_none() => {
            let which = Sidecar::ALL.into_iter().find(|known| known.name() == which)?;
            Some(Phase::SidecarUnlink(which).into())
        }
        ("wal-index-lock", None) => Some(PhasePattern::WalIndexLock(None)),
        ("wal-index-lock", Some(lock)) => {
            let lock = WalLock::ALL.into_iter().find(|known| known.name() == lock)?;
            let all = PhasePattern::WalIndexLock(Some(lock));
            Some(kind.map_or(all, |kind| Phase::WalIndexLock(lock, kind).into()))
        }
        ("db-lock", None) => Some(PhasePattern::DbLock(None)),
        ("db-lock", Some(lock)) => {
            let lock = DbLock::ALL.into_iter().find(|known| known.name() == lock)?;
            let all = PhasePattern::DbLock(Some(lock));
            Some(kind.map_or(all, |kind| Phase::DbLock(lock, kind).into()))
        }
        _ => None,
    }
}

impl TryFrom<String> for PhasePattern {
    type Error = UnknownPhase;

    fn try_from(name: String) -> Result<Self, UnknownPhase> {
        name.parse()
    }
}

impl From<PhasePattern> for String {
    fn from(pattern: PhasePattern) -> Self {
        pattern.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_is_read_back_from_its_own_name() {
        for phase in Phase::all() {
            assert_eq!(phase.to_string().parse(), Ok(phase));
        }
    }

    #[test]
    fn every_phase_has_a_name_of_its_own() {
        let mut names: Vec<_> = Phase::all().map(|phase| phase.to_string()).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn misspelt_phase_is_refused_with_the_list() {
        let refused = "comit-frame".parse::<Phase>().unwrap_err().to_string();
        assert!(refused.starts_with("no phase is called `comit-frame`"), "{refused}");
        assert!(refused.contains("commit-frame") && refused.contains("checkpoint-page-write"));
    }

    #[test]
    fn misspelt_detail_is_refused() {
        for name in [
            "wal-index-lock.writ",
            "wal-index-lock.write.exclusiv",
            "wal-index-lock.write.exclusive.more",
            "sidecar-unlink.wal.shared",
            "db-lock.recover",
            "wal-sync.wal",
            "",
        ] {
            assert!(name.parse::<PhasePattern>().is_err(), "{name}");
        }
    }

    #[test]
    fn family_name_is_a_pattern_but_not_a_phase() {
        assert!("wal-index-lock".parse::<Phase>().is_err());
        let pattern: PhasePattern = "wal-index-lock.write".parse().unwrap();
        assert!(pattern.matches(Phase::WalIndexLock(WalLock::Write, LockKind::Unlock)));
        assert!(!pattern.matches(Phase::WalIndexLock(WalLock::Dms, LockKind::Unlock)));
        assert!(!pattern.matches(Phase::WalSync));
    }

    #[test]
    fn phase_is_written_and_read_as_one_string() {
        let phase = Phase::WalIndexLock(WalLock::Checkpoint, LockKind::Exclusive);
        let text = serde_json::to_string(&phase).unwrap();
        assert_eq!(text, r#""wal-index-lock.checkpoint.exclusive""#);
        assert_eq!(serde_json::from_str::<Phase>(&text).unwrap(), phase);
        assert!(serde_json::from_str::<Phase>(r#""wal-index""#).is_err());
    }

    #[test]
    fn journal_unlink_is_another_name_for_a_sidecar_unlink() {
        let journal = Phase::SidecarUnlink(Sidecar::Journal);
        assert_eq!("journal-unlink".parse(), Ok(journal));
        assert_eq!(journal.to_string(), "sidecar-unlink.journal");
    }

    #[test]
    fn lock_bytes_are_those_of_sqlite() {
        assert_eq!(WalLock::of_byte(121), Some(WalLock::Checkpoint));
        assert_eq!(WalLock::of_byte(128), Some(WalLock::Dms));
        assert_eq!(WalLock::of_byte(119), None);
        assert_eq!(WalLock::of_byte(129), None);
        assert_eq!(DbLock::of_byte(0x4000_0001), Some(DbLock::Reserved));
        assert_eq!(DbLock::of_byte(0x4000_0002 + 509), Some(DbLock::Shared));
        assert_eq!(DbLock::of_byte(0x4000_0002 + 510), None);
    }
}
