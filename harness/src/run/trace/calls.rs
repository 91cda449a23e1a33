//! The system calls that can be traced, and sets of them.
//!
//! Plain data. What a call of a running process asks for is decoded in `operation`; which number a
//! call has on this machine is known to `arch` alone.

use serde::{Deserialize, Serialize};

/// A group of system calls that is traced or not as one.
///
/// A stop costs the victim about 12 µs, so ask for what is looked at and no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum CallKind {
    /// `pwrite64`, `pwritev`, `pwritev2`, `write`, `writev`.
    Write,
    /// `pread64`, `preadv`, `preadv2`: how SQLite reads.
    PositionedRead,
    /// `read`, `readv`: how programs that copy or sniff a file read.
    StreamRead,
    /// `fsync`, `fdatasync`, `sync_file_range`.
    Sync,
    /// `ftruncate`, `truncate`, `fallocate`.
    Truncate,
    /// `fcntl` with a lock command.
    Lock,
    /// `open`, `openat`, `openat2`, `creat`.
    Open,
    /// `close`, `close_range`, and `dup2`, `dup3`, which close their target.
    Close,
    /// `dup`, `fcntl(F_DUPFD)`.
    Dup,
    /// `unlink`, `unlinkat`.
    Unlink,
    /// `rename`, `renameat`, `renameat2`.
    Rename,
    /// `link`, `linkat`.
    Link,
    /// `mmap` of a file, shared, and `munmap`.
    Map,
    /// `nanosleep`, `clock_nanosleep`.
    Sleep,
    /// `sendfile`, `copy_file_range`, `splice`, `ioctl(FICLONE)`: copies within the kernel.
    Copy,
    /// `io_uring_setup`. Traced always: what goes through a ring makes no stops, so a run must say
    /// that there was one.
    Ring,
    /// `getrandom`: answered where the [`World`](super::World) is made up.
    Random,
    /// `clock_gettime`, `gettimeofday`, `time`: likewise.
    Clock,
    /// `getpid`, `gettid`, `getppid`: likewise.
    Identity,
    /// `flock`, which SQLite itself does not use.
    FileLock,
}

impl CallKind {
    /// Every kind.
    pub const ALL: [Self; 20] = [
        Self::Write,
        Self::PositionedRead,
        Self::StreamRead,
        Self::Sync,
        Self::Truncate,
        Self::Lock,
        Self::Open,
        Self::Close,
        Self::Dup,
        Self::Unlink,
        Self::Rename,
        Self::Link,
        Self::Map,
        Self::Sleep,
        Self::Copy,
        Self::Ring,
        Self::Random,
        Self::Clock,
        Self::Identity,
        Self::FileLock,
    ];

    const fn bit(self) -> u32 {
        // The discriminants are 0 to 19.
        1 << (self as u8)
    }
}

/// A set of [`CallKind`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallSet(u32);

impl CallSet {
    /// No call at all.
    pub const NONE: Self = Self(0);

    /// Every write and every sync, and nothing else.
    pub const WRITES_AND_SYNCS: Self =
        Self::NONE.with(CallKind::Write).with(CallKind::Sync).with(CallKind::Truncate);

    /// What changes a database or orders its changes: what a sweep stops at. `close` is among them
    /// because it keeps the descriptor table right without asking the kernel at each stop.
    pub const FAULTS: Self = Self::WRITES_AND_SYNCS
        .with(CallKind::Lock)
        .with(CallKind::Close)
        .with(CallKind::Unlink)
        .with(CallKind::Rename)
        .with(CallKind::Map)
        .with(CallKind::Sleep);

    /// What the protocol checker needs.
    pub const WATCH: Self = Self::WRITES_AND_SYNCS
        .with(CallKind::Lock)
        .with(CallKind::Open)
        .with(CallKind::Close)
        .with(CallKind::Dup)
        .with(CallKind::Unlink)
        .with(CallKind::Rename)
        .with(CallKind::Link)
        .with(CallKind::StreamRead)
        .with(CallKind::Copy);

    /// What a scheduler stops at: everything that one process can see of another's doing on a
    /// database. Reads are left out, since what they see was written at another stop; `close`
    /// keeps the descriptor table right.
    pub const SCHEDULE: Self = Self::WRITES_AND_SYNCS
        .with(CallKind::Lock)
        .with(CallKind::FileLock)
        .with(CallKind::Close)
        .with(CallKind::Unlink)
        .with(CallKind::Rename)
        .with(CallKind::Map)
        .with(CallKind::Sleep);

    /// What is answered where the [`World`](super::World) is made up. Opens are among it for the
    /// sake of `/dev/urandom`.
    pub const WORLD: Self = Self::NONE
        .with(CallKind::Random)
        .with(CallKind::Clock)
        .with(CallKind::Identity)
        .with(CallKind::Open);

    /// Everything.
    pub const ALL: Self = {
        let mut all = Self::NONE;
        let mut index = 0;
        while index < CallKind::ALL.len() {
            all = all.with(CallKind::ALL[index]);
            index += 1;
        }
        all
    };

    /// This set and `kind`.
    #[must_use]
    pub const fn with(self, kind: CallKind) -> Self {
        Self(self.0 | kind.bit())
    }

    /// What is in either set.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This set without `kind`.
    #[must_use]
    pub const fn without(self, kind: CallKind) -> Self {
        Self(self.0 & !kind.bit())
    }

    /// Whether `kind` is in the set.
    #[must_use]
    pub const fn contains(self, kind: CallKind) -> bool {
        self.0 & kind.bit() != 0
    }
}

impl FromIterator<CallKind> for CallSet {
    fn from_iter<I: IntoIterator<Item = CallKind>>(kinds: I) -> Self {
        kinds.into_iter().fold(Self::NONE, Self::with)
    }
}

/// Declares [`Sys`]: variant, kernel name, group.
macro_rules! calls {
    ($($variant:ident $name:literal $kind:ident;)*) => {
        /// One system call, as the kernel names it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
        #[repr(u16)]
        #[allow(missing_docs, reason = "each variant is the system call of the same name")]
        pub enum Sys {
            $(#[serde(rename = $name)] $variant,)*
        }

        impl Sys {
            /// Every call, in the order of the discriminants.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The kernel's name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The group that it is traced with.
            #[must_use]
            pub const fn kind(self) -> CallKind {
                match self { $(Self::$variant => CallKind::$kind,)* }
            }
        }
    };
}

calls! {
    Read "read" StreamRead;
    Readv "readv" StreamRead;
    Pread64 "pread64" PositionedRead;
    Preadv "preadv" PositionedRead;
    Preadv2 "preadv2" PositionedRead;
    Write "write" Write;
    Writev "writev" Write;
    Pwrite64 "pwrite64" Write;
    Pwritev "pwritev" Write;
    Pwritev2 "pwritev2" Write;
    Fsync "fsync" Sync;
    Fdatasync "fdatasync" Sync;
    SyncFileRange "sync_file_range" Sync;
    Ftruncate "ftruncate" Truncate;
    Truncate "truncate" Truncate;
    Fallocate "fallocate" Truncate;
    FcntlLock "fcntl" Lock;
    Flock "flock" FileLock;
    Open "open" Open;
    Openat "openat" Open;
    Openat2 "openat2" Open;
    Creat "creat" Open;
    Close "close" Close;
    CloseRange "close_range" Close;
    Dup "dup" Dup;
    Dup2 "dup2" Close;
    Dup3 "dup3" Close;
    FcntlDup "fcntl" Dup;
    Unlink "unlink" Unlink;
    Unlinkat "unlinkat" Unlink;
    Rename "rename" Rename;
    Renameat "renameat" Rename;
    Renameat2 "renameat2" Rename;
    Link "link" Link;
    Linkat "linkat" Link;
    Mmap "mmap" Map;
    Munmap "munmap" Map;
    Nanosleep "nanosleep" Sleep;
    ClockNanosleep "clock_nanosleep" Sleep;
    Sendfile "sendfile" Copy;
    CopyFileRange "copy_file_range" Copy;
    Splice "splice" Copy;
    IoctlClone "ioctl" Copy;
    IoUringSetup "io_uring_setup" Ring;
    Getrandom "getrandom" Random;
    ClockGettime "clock_gettime" Clock;
    Gettimeofday "gettimeofday" Clock;
    Time "time" Clock;
    Getpid "getpid" Identity;
    Gettid "gettid" Identity;
    Getppid "getppid" Identity;
}

impl Sys {
    /// The call whose place in [`Sys::ALL`] is `index`.
    pub(super) fn from_index(index: u16) -> Option<Self> {
        Self::ALL.get(usize::from(index)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_of_a_call_leads_back_to_it() {
        for (index, &call) in Sys::ALL.iter().enumerate() {
            assert_eq!(usize::from(call as u16), index);
            assert_eq!(Sys::from_index(call as u16), Some(call));
        }
    }

    #[test]
    fn all_holds_every_kind_and_none_holds_none() {
        for kind in CallKind::ALL {
            assert!(CallSet::ALL.contains(kind));
            assert!(!CallSet::NONE.contains(kind));
            assert!(!CallSet::ALL.without(kind).contains(kind));
        }
    }
}
