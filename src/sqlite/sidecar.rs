//! The files that lie beside a database, and the locks on one of them.
//!
//! SQLite has its own (`-wal`, `-shm`), which nothing here ever opens. Ours are `-lock`, `-anchor`
//! and what a quarantine or a repair makes; SQLite never opens those. So no lock of one is dropped
//! by a descriptor of the other being closed.
//!
//! The locks are open-file-description locks (`F_OFD_SETLK`, Linux 3.15): they belong to the
//! descriptor, not to the process, so two databases of one process exclude each other as two
//! processes do, and the kernel frees them when the last copy of the descriptor is gone, however
//! its process ended. They are taken far behind the end of the file, which holds no data there.
//!
//! In: the path of a database. Out: a `LockFile`. Not here: who takes which lock when.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::sqlite::backoff::Backoff;
use crate::sqlite::fork;

/// Where the lock bytes begin; all that the file holds lies before.
const LOCKS_FROM: i64 = 1 << 20;

/// The path of the file beside `database` whose name ends so.
#[must_use]
pub fn beside(database: &Path, ending: &str) -> PathBuf {
    let mut name: OsString = database.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// What is locked. The numbers are those of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub(crate) enum Part {
    /// The database itself: shared by whoever has it open; exclusive for a repair, a restore, and
    /// for whoever opens it first or closes it last.
    Use = 0,
    /// The right to checkpoint.
    Checkpoint = 1,
    /// The right to make a quarantine copy.
    Quarantine = 2,
    /// Whose turn it is to write next.
    Turn = 3,
}

/// How it is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    Shared,
    Exclusive,
}

/// The lock file of a database, open.
#[derive(Debug)]
pub(crate) struct LockFile {
    file: File,
    /// The process that opened it.
    pid: u32,
}

impl LockFile {
    /// Opens the lock file of `database`, made first if it is not there.
    pub(crate) fn open(database: &Path) -> io::Result<Self> {
        let path = beside(database, "-lock");
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        Ok(Self { file, pid: fork::pid() })
    }

    /// Takes the lock, or changes how it is held, without any wait. `false`: somebody else has it;
    /// what was held before is held still.
    pub(crate) fn take(&self, part: Part, hold: Hold) -> io::Result<bool> {
        let kind = match hold {
            Hold::Shared => libc::F_RDLCK,
            Hold::Exclusive => libc::F_WRLCK,
        };
        match self.set(part, kind) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// As [`take`](Self::take), tried again until `patience` has passed.
    pub(crate) fn wait(&self, part: Part, hold: Hold, patience: Duration) -> io::Result<bool> {
        let mut backoff = Backoff::new(Instant::now(), patience);
        loop {
            if self.take(part, hold)? {
                return Ok(true);
            }
            if !backoff.pause() {
                return Ok(false);
            }
        }
    }

    /// Lets the lock go. It does nothing if it is not held.
    pub(crate) fn release(&self, part: Part) -> io::Result<()> {
        self.set(part, libc::F_UNLCK)
    }

    /// Whether somebody else holds the lock so that it could not be had exclusively.
    pub(crate) fn is_held_elsewhere(&self, part: Part) -> io::Result<bool> {
        let mut lock = range(part, libc::F_WRLCK);
        fcntl(&self.file, FcntlArg::F_OFD_GETLK(&mut lock))?;
        Ok(i32::from(lock.l_type) != libc::F_UNLCK)
    }

    /// Writes down who holds the lock, for a person to read.
    pub(crate) fn sign(&self, part: Part) -> io::Result<()> {
        self.file.write_all_at(&std::process::id().to_le_bytes(), signature_at(part))
    }

    /// Who signed last. It tells who holds the lock only while [`Self::is_held_elsewhere`].
    pub(crate) fn signature(&self, part: Part) -> io::Result<Option<u32>> {
        let mut pid = [0; 4];
        match self.file.read_exact_at(&mut pid, signature_at(part)) {
            Ok(()) => Ok(Some(u32::from_le_bytes(pid)).filter(|pid| *pid != 0)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the last one who had the database for himself closed it in good order. A file that
    /// never was written to stands for a database that nobody opened yet.
    pub(crate) fn was_closed(&self) -> io::Result<bool> {
        let mut mark = [0];
        Ok(self.file.read_at(&mut mark, 0)? == 0 || mark != *b"o")
    }

    /// Writes down whether the database is in use.
    pub(crate) fn mark(&self, closed: bool) -> io::Result<()> {
        self.file.write_all_at(if closed { b"c" } else { b"o" }, 0)
    }

    fn set(&self, part: Part, kind: i32) -> io::Result<()> {
        fcntl(&self.file, FcntlArg::F_OFD_SETLK(&range(part, kind)))?;
        Ok(())
    }
}

impl Drop for LockFile {
    /// Lets all go. A close alone would not, while a child that was forked and has yet to exec
    /// has a copy of the descriptor; and a child lets nothing go that is its parent's.
    fn drop(&mut self) {
        if self.pid == fork::pid() {
            for part in [Part::Turn, Part::Checkpoint, Part::Quarantine, Part::Use] {
                self.release(part).ok();
            }
        }
    }
}

fn signature_at(part: Part) -> u64 {
    8 + 8 * part as u64
}

fn range(part: Part, kind: i32) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or(0),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or(0),
        l_start: LOCKS_FROM + part as i64,
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (tempfile::TempDir, LockFile, LockFile) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("any.db");
        let (one, two) = (LockFile::open(&path).unwrap(), LockFile::open(&path).unwrap());
        (dir, one, two)
    }

    #[test]
    fn lock_excludes_another_of_the_same_process_until_it_is_let_go() {
        let (_dir, one, two) = pair();
        assert!(one.take(Part::Checkpoint, Hold::Exclusive).unwrap());
        assert!(!two.take(Part::Checkpoint, Hold::Exclusive).unwrap());
        assert!(two.is_held_elsewhere(Part::Checkpoint).unwrap());
        assert!(!one.is_held_elsewhere(Part::Checkpoint).unwrap());
        assert!(two.take(Part::Use, Hold::Exclusive).unwrap(), "the parts are apart");
        one.release(Part::Checkpoint).unwrap();
        assert!(two.take(Part::Checkpoint, Hold::Exclusive).unwrap());
    }

    #[test]
    fn lock_held_in_common_is_not_had_alone_and_stays_held() {
        let (_dir, one, two) = pair();
        assert!(one.take(Part::Use, Hold::Shared).unwrap());
        assert!(two.take(Part::Use, Hold::Shared).unwrap());
        assert!(!two.take(Part::Use, Hold::Exclusive).unwrap());
        assert!(two.is_held_elsewhere(Part::Use).unwrap());
        drop(one);
        assert!(two.take(Part::Use, Hold::Exclusive).unwrap());
    }

    #[test]
    fn lock_is_free_when_the_descriptor_goes_and_other_descriptors_change_nothing() {
        let (dir, one, two) = pair();
        assert!(one.take(Part::Checkpoint, Hold::Exclusive).unwrap());
        // What drops every POSIX lock of a process drops none of these.
        drop(File::open(beside(&dir.path().join("any.db"), "-lock")).unwrap());
        assert!(!two.take(Part::Checkpoint, Hold::Exclusive).unwrap());
        drop(one);
        assert!(two.take(Part::Checkpoint, Hold::Exclusive).unwrap());
    }

    #[test]
    fn lock_is_free_at_the_end_though_another_has_a_copy_of_the_descriptor() {
        let (_dir, one, two) = pair();
        assert!(one.take(Part::Use, Hold::Exclusive).unwrap());
        // What a child has between fork and exec.
        let copy = one.file.try_clone().unwrap();
        drop(one);
        assert!(two.take(Part::Use, Hold::Exclusive).unwrap());
        drop(copy);
    }

    #[test]
    fn waiting_ends_when_patience_does() {
        let (_dir, one, two) = pair();
        assert!(one.take(Part::Use, Hold::Exclusive).unwrap());
        let started = Instant::now();
        assert!(!two.wait(Part::Use, Hold::Shared, Duration::from_millis(30)).unwrap());
        assert!(started.elapsed() >= Duration::from_millis(30));
    }

    #[test]
    fn marks_and_signatures_are_read_back() {
        let (_dir, one, two) = pair();
        assert!(one.was_closed().unwrap(), "nobody has opened it yet");
        one.mark(false).unwrap();
        assert!(!two.was_closed().unwrap());
        two.mark(true).unwrap();
        assert!(one.was_closed().unwrap());
        assert_eq!(one.signature(Part::Checkpoint).unwrap(), None);
        one.sign(Part::Checkpoint).unwrap();
        assert_eq!(two.signature(Part::Checkpoint).unwrap(), Some(std::process::id()));
        assert_eq!(two.signature(Part::Use).unwrap(), None);
    }
}
