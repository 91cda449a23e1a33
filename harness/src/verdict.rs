//! The words in which a run is judged: verdicts and kinds of findings. Every stage may use them.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What a run showed. The order is the merge rule: the greater one wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every check ran, and every one held.
    Pass,
    /// Some check could not be made (a fault never landed, a setting never took). Not a pass.
    Inconclusive,
    /// A promise was broken.
    Fail,
}

impl Verdict {
    /// The verdict of several checks together.
    ///
    /// No check at all is [`Inconclusive`](Self::Inconclusive): silence proves nothing.
    pub fn merge(verdicts: impl IntoIterator<Item = Self>) -> Self {
        verdicts.into_iter().max().unwrap_or(Self::Inconclusive)
    }

    /// As it stands in reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Inconclusive => "inconclusive",
            Self::Fail => "fail",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What can be found. Each kind is either a broken promise or a reason not to judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// An acknowledged operation is not in the recovered database.
    LostAckedWrite,
    /// A refused operation is in the recovered database.
    RefusedWritePresent,
    /// Part of an operation is there, and part is not.
    TornTransaction,
    /// Something is there that nobody sent.
    AlienWrite,
    /// The operations of one writer are there in another order than it sent them.
    OrderViolation,
    /// A commit in the middle of the commit order is missing.
    CommitHole,
    /// What survived a power cut is sound, and the content after no number of commits.
    NotAPrefix,
    /// A real file system left what the crash model says it cannot: the model is wrong, or the disk
    /// lied.
    ImpossibleInModel,
    /// What was seen after an earlier cycle is there no more, or is changed.
    HistoryChanged,
    /// A task was given to a second owner while the first one's claim was live.
    DoubleOwner,
    /// A write under a fencing token that was not the live claim's.
    StaleWrite,
    /// `PRAGMA integrity_check` found damage, or the file could not be read.
    Corrupt,
    /// `PRAGMA foreign_key_check` found rows without their parent.
    ForeignKeyViolation,
    /// Two recoveries of the same files gave different content.
    RecoveryDiverged,
    /// A second checkpoint changed the database file.
    CheckpointNotIdempotent,
    /// A process ended in a way that nobody asked for.
    UnexpectedExit,
    /// A process did not end within its deadline, and was killed.
    Hung,
    /// Processes wait for one another, and none can ever go on.
    Deadlock,
    /// Processes go on and on, and none gets anywhere.
    LiveLock,
    /// The same plan, run twice, went two ways.
    NotDeterministic,
    /// A connection had other pragmas than asked for.
    SettingNotEffective,
    /// A planned fault was not carried out, or never at the moment it was planned for.
    FaultNotDelivered,
    /// A process could not say all that it did.
    LedgerCutShort,
    /// No operation was acknowledged: there was nothing to lose.
    NothingAcked,
    /// Less was seen than the scenario asks for.
    TooLittleSeen,
    /// The run was stopped before its end.
    Interrupted,
}

impl FindingKind {
    /// What one finding of this kind makes of a run.
    #[must_use]
    pub fn verdict(self) -> Verdict {
        match self {
            Self::LostAckedWrite
            | Self::RefusedWritePresent
            | Self::TornTransaction
            | Self::AlienWrite
            | Self::OrderViolation
            | Self::CommitHole
            | Self::NotAPrefix
            | Self::ImpossibleInModel
            | Self::HistoryChanged
            | Self::DoubleOwner
            | Self::StaleWrite
            | Self::Corrupt
            | Self::ForeignKeyViolation
            | Self::RecoveryDiverged
            | Self::CheckpointNotIdempotent
            | Self::UnexpectedExit
            | Self::Hung
            | Self::Deadlock
            | Self::LiveLock => Verdict::Fail,
            Self::NotDeterministic
            | Self::SettingNotEffective
            | Self::FaultNotDelivered
            | Self::LedgerCutShort
            | Self::NothingAcked
            | Self::TooLittleSeen
            | Self::Interrupted => Verdict::Inconclusive,
        }
    }

    /// As it stands in scenario files and reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LostAckedWrite => "lost-acked-write",
            Self::RefusedWritePresent => "refused-write-present",
            Self::TornTransaction => "torn-transaction",
            Self::AlienWrite => "alien-write",
            Self::OrderViolation => "order-violation",
            Self::CommitHole => "commit-hole",
            Self::NotAPrefix => "not-a-prefix",
            Self::ImpossibleInModel => "impossible-in-model",
            Self::HistoryChanged => "history-changed",
            Self::DoubleOwner => "double-owner",
            Self::StaleWrite => "stale-write",
            Self::Corrupt => "corrupt",
            Self::ForeignKeyViolation => "foreign-key-violation",
            Self::RecoveryDiverged => "recovery-diverged",
            Self::CheckpointNotIdempotent => "checkpoint-not-idempotent",
            Self::UnexpectedExit => "unexpected-exit",
            Self::Hung => "hung",
            Self::Deadlock => "deadlock",
            Self::LiveLock => "live-lock",
            Self::NotDeterministic => "not-deterministic",
            Self::SettingNotEffective => "setting-not-effective",
            Self::FaultNotDelivered => "fault-not-delivered",
            Self::LedgerCutShort => "ledger-cut-short",
            Self::NothingAcked => "nothing-acked",
            Self::TooLittleSeen => "too-little-seen",
            Self::Interrupted => "interrupted",
        }
    }
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Finding {
    /// Which kind.
    pub kind: FindingKind,
    /// Where and what, in one line.
    pub detail: String,
}

#[cfg(test)]
mod tests {
    use super::Verdict::{Fail, Inconclusive, Pass};
    use super::*;

    #[track_caller]
    fn check(parts: &[Verdict], whole: Verdict) {
        assert_eq!(Verdict::merge(parts.iter().copied()), whole);
    }

    #[test]
    fn broken_promise_is_not_hidden_by_a_check_that_could_not_be_made() {
        check(&[Inconclusive, Fail], Fail);
        check(&[Fail, Inconclusive, Pass], Fail);
    }

    #[test]
    fn no_checks_is_inconclusive_not_a_pass() {
        check(&[], Inconclusive);
    }

    #[test]
    fn pass_needs_every_part_to_pass() {
        check(&[Pass, Pass], Pass);
        check(&[Pass, Inconclusive], Inconclusive);
    }

    #[test]
    fn text_of_a_kind_is_its_text_in_files() {
        let kind = FindingKind::LostAckedWrite;
        assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
        let kind = FindingKind::CheckpointNotIdempotent;
        assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
    }
}
