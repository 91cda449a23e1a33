//! Learning whether a lock was had without stopping behind the call: the kernel is asked.
//!
//! `fcntl(F_GETLK)`, by the supervisor on its own descriptor, tells who holds what. It is asked
//! at the next event, before that is dealt with; so this is for a victim of one thread alone, of
//! which nobody can have looked in between. It saves one of the two stops of a lock.
//!
//! A file system may keep its locks elsewhere (NFS, FUSE). So of each file the first lock is looked
//! at in both ways, and only where they agree is the kernel taken at its word.
//!
//! The descriptor is closed only with the supervisor, and takes with it what this very process has
//! locked on the file: nothing, unless it is one that is under test itself.
//!
//! In: a stop before a lock call. Out: the call's result, 0 or `-EAGAIN`.
#![expect(unsafe_code, reason = "F_GETLK is asked with a structure of C")]

use std::fs::{self, File};
use std::mem::zeroed;
use std::os::fd::AsRawFd as _;

use super::driver::{Driver, Stop};
use super::files::{FileId, link_of};
use super::hash::NumberMap;
use super::operation::{LockCall, LockKind, Operation};
use super::supervisor::Supervisor;
use super::{ProcessId, Sys};

/// Whether the kernel's word on the locks of a file is known to be good.
#[derive(Debug)]
enum Word {
    Good(File),
    Bad,
}

/// What is asked of the kernel.
#[derive(Debug, Default)]
pub(super) struct Asked {
    files: NumberMap<FileId, Word>,
    /// The lock call that was made, and whose result is not yet known.
    pending: Option<Stop>,
}

/// A lock call that the kernel can tell the outcome of.
fn lock_of(stop: &Stop) -> Option<(FileId, &LockCall, i32)> {
    let Operation::Lock { fd, lock } = &stop.operation else { return None };
    let file = stop.file.filter(|file| file.database.is_some())?;
    let plain = !lock.waits && !lock.of_open_file && lock.whence == 0 && lock.length > 0;
    let asks = matches!(lock.kind, LockKind::Shared | LockKind::Exclusive);
    (plain && asks && stop.call.sys == Sys::FcntlLock).then_some((file.id, lock, *fd))
}

impl Supervisor {
    /// Keeps a lock call for [`learn_lock`](Self::learn_lock). Gives it back if it must be followed
    /// to its end.
    pub(super) fn ask_later(&mut self, stop: Stop) -> Option<Stop> {
        let alone = self.state.options.ask_for_locks && self.state.threads.len() == 1;
        let good = lock_of(&stop).is_some_and(|(file, ..)| {
            alone && matches!(self.asked.files.get(&file), Some(Word::Good(_)))
        });
        if !good {
            return Some(stop);
        }
        self.asked.pending = Some(stop);
        None
    }

    /// Learns the result of the lock call that was made since the last event.
    pub(super) fn learn_lock(&mut self, driver: &mut dyn Driver) {
        let Some(stop) = self.asked.pending.take() else { return };
        let had = lock_of(&stop).is_some_and(|(file, lock, _)| {
            let Some(Word::Good(own)) = self.asked.files.get(&file) else { return false };
            is_held(own, file, stop.process, lock)
        });
        let result = if had { 0 } else { -i64::from(libc::EAGAIN) };
        self.state.after_call(stop.thread, &stop.operation, result);
        self.tell_result(driver, &stop, result);
    }

    /// Holds the kernel's word against the result of a call that was followed to its end.
    pub(super) fn try_word(&mut self, stop: &Stop, result: i64) {
        let Some((file, lock, fd)) = lock_of(stop).filter(|_| self.state.options.ask_for_locks)
        else {
            return;
        };
        if result < 0 || self.asked.files.contains_key(&file) {
            return;
        }
        let own = File::open(link_of(stop.process, fd));
        let word = match own {
            Ok(own) if is_held(&own, file, stop.process, lock) => Word::Good(own),
            Ok(_) | Err(_) => Word::Bad,
        };
        self.asked.files.insert(file, word);
    }
}

/// Whether `process` holds all of what `lock` asked for.
fn is_held(own: &File, file: FileId, process: ProcessId, lock: &LockCall) -> bool {
    let exclusive = lock.kind == LockKind::Exclusive;
    // What stands in the way of a shared lock is an exclusive one; of an exclusive one, any.
    let probe = if exclusive { libc::F_RDLCK } else { libc::F_WRLCK };
    // SAFETY: an all-zero flock is a valid one.
    let mut found: libc::flock = unsafe { zeroed() };
    found.l_type = i16::try_from(probe).unwrap_or(0);
    found.l_whence = 0;
    (found.l_start, found.l_len) = (lock.start, lock.length);
    // SAFETY: the descriptor is open, and the structure is a live local of the command's type.
    let answer = unsafe { libc::fcntl(own.as_raw_fd(), libc::F_GETLK, &raw mut found) };
    if answer != 0 || i32::from(found.l_type) == libc::F_UNLCK {
        return false;
    }
    if found.l_pid != process.0 {
        // Somebody else's, which may hide the one that is looked for.
        return is_listed(file, process, lock);
    }
    let end = if found.l_len == 0 { i64::MAX } else { found.l_start + found.l_len };
    let is_exclusive = i32::from(found.l_type) == libc::F_WRLCK;
    found.l_start <= lock.start && end >= lock.start + lock.length && is_exclusive == exclusive
}

/// The same by the kernel's list of all locks: `proc_locks(5)`.
fn is_listed(file: FileId, process: ProcessId, lock: &LockCall) -> bool {
    let held = fs::read_to_string("/proc/locks").unwrap_or_default();
    let kind = if lock.kind == LockKind::Exclusive { "WRITE" } else { "READ" };
    // The device in the list is the file system's, which `stat` may tell otherwise.
    let inode = format!(":{}", file.inode);
    held.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "POSIX", _, mode, owner, place, first, last] = fields[..] else { return false };
        let first = first.parse::<i64>();
        let last = if last == "EOF" { Ok(i64::MAX) } else { last.parse::<i64>() };
        mode == kind
            && owner.parse() == Ok(process.0)
            && place.ends_with(&inode)
            && first.is_ok_and(|first| first <= lock.start)
            && last.is_ok_and(|last| last >= lock.start + lock.length - 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    /// A child that holds a lock, as `F_GETLK` is only of use across processes.
    fn with_child_lock(kind: i32, check: impl FnOnce(&File, FileId, ProcessId)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, [0; 200]).unwrap();
        let script = format!(
            "import fcntl, sys, struct\nf = open(sys.argv[1], 'r+b')\n\
             fcntl.fcntl(f, fcntl.F_SETLK, struct.pack('hhqqi4x', {kind}, 0, 120, 4, 0))\n\
             print('held', flush=True)\nsys.stdin.read()"
        );
        let mut child = std::process::Command::new("/usr/bin/python3")
            .args(["-S", "-c", &script, path.to_str().unwrap()])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
        assert_eq!(line, "held\n");
        let own = File::open(&path).unwrap();
        let there = own.metadata().unwrap();
        let id = FileId { device: there.dev(), inode: there.ino() };
        check(&own, id, ProcessId(child.id().cast_signed()));
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    fn lock(kind: LockKind, start: i64, length: i64) -> LockCall {
        LockCall { kind, waits: false, of_open_file: false, whence: 0, start, length }
    }

    #[test]
    fn lock_that_a_process_has_is_told_from_one_that_it_has_not() {
        for (held, is, is_not) in [
            (libc::F_WRLCK, LockKind::Exclusive, LockKind::Shared),
            (libc::F_RDLCK, LockKind::Shared, LockKind::Exclusive),
        ] {
            with_child_lock(held, |own, file, child| {
                for ask in
                    [is_held as fn(&_, _, _, &_) -> _, |_: &_, f, p, l: &_| is_listed(f, p, l)]
                {
                    assert!(ask(own, file, child, &lock(is, 120, 4)));
                    assert!(ask(own, file, child, &lock(is, 121, 1)));
                    assert!(!ask(own, file, child, &lock(is_not, 120, 4)));
                    assert!(!ask(own, file, child, &lock(is, 119, 4)), "not all of it");
                    assert!(!ask(own, file, child, &lock(is, 124, 1)));
                    assert!(!ask(own, file, ProcessId(1), &lock(is, 120, 4)), "another's");
                }
            });
        }
    }
}
