//! Asks a second process whether locks hold and shared memory is the same memory, at a place.
//!
//! A name of a file system says what it should do. This says what it does: a child process opens
//! the same file by itself, maps it, and tries for a lock that the parent holds.
//!
//! In: a directory. Out: what is wrong there, if anything. The file that it makes is removed. A
//! fork takes its time, so it is not made at every open, but when a database is made, on a file
//! system that is not known, and when a person asks.
#![expect(unsafe_code, reason = "a process is forked, and memory shared with it")]

use std::ffi::CString;
use std::fs::OpenOptions;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::libc;

const PAGE_BYTES: usize = 4096;
const FROM_PARENT: u32 = 0x6861_7264;
const FROM_CHILD: u32 = 0x626f_6172;
/// How long the child may take: what it does takes some microseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// How the child ends.
const SAW_NO_LOCK: i32 = 2;
const SAW_OTHER_MEMORY: i32 = 3;
const COULD_NOT_TRY: i32 = 4;

/// What is wrong at the directory of that file; `None`: locks hold and memory is shared.
pub(crate) fn trial(place: &Path) -> io::Result<Option<&'static str>> {
    let directory = place.parent().unwrap_or(place);
    let number = RandomState::new().hash_one(std::process::id());
    let path = directory.join(format!(".hardboard-trial-{number:016x}"));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    let tried = file.set_len(PAGE_BYTES as u64).and_then(|()| {
        let name = CString::new(path.as_os_str().as_bytes())?;
        Map::new(file.as_raw_fd()).ok_or_else(io::Error::last_os_error).and_then(|map| {
            // SAFETY: F_SETLK on a descriptor of ours, with a lock that lives through the call.
            if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &whole(libc::F_WRLCK)) } != 0 {
                return Err(io::Error::last_os_error());
            }
            map.word(0).store(FROM_PARENT, Ordering::SeqCst);
            let ended = in_a_child(&name)?;
            Ok(match ended {
                0 if map.word(1).load(Ordering::SeqCst) == FROM_CHILD => None,
                0 | SAW_OTHER_MEMORY => Some("memory mapped from a file is not shared there"),
                SAW_NO_LOCK => Some("locks on a file do not hold there"),
                _ => Some("a second process cannot use a file there"),
            })
        })
    });
    std::fs::remove_file(&path)?;
    tried
}

/// Forks a child that looks, and gives how it ended.
fn in_a_child(name: &CString) -> io::Result<i32> {
    // SAFETY: the child calls nothing but `look`, which makes system calls alone, and `_exit`.
    let child = unsafe { libc::fork() };
    match child {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: ends the child without running anything of the parent's.
        0 => unsafe { libc::_exit(look(name)) },
        child => wait_for(child),
    }
}

fn wait_for(child: libc::pid_t) -> io::Result<i32> {
    let mut backoff = crate::sqlite::backoff::Backoff::new(Instant::now(), PATIENCE);
    loop {
        let mut status = 0;
        // SAFETY: waits for a child of ours, into a place of ours.
        match unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } {
            -1 => return Err(io::Error::last_os_error()),
            0 if backoff.pause() => {}
            0 => {
                // SAFETY: a child of ours that was not waited for, so its number is its own still.
                unsafe {
                    libc::kill(child, libc::SIGKILL);
                    libc::waitpid(child, &raw mut status, 0);
                }
                return Ok(COULD_NOT_TRY);
            }
            _ if libc::WIFEXITED(status) => return Ok(libc::WEXITSTATUS(status)),
            _ => return Ok(COULD_NOT_TRY),
        }
    }
}

/// In the child: opens and maps the file anew, and tries for the lock. No memory is allocated.
fn look(name: &CString) -> i32 {
    // SAFETY: the name ends with a nought, and the flags ask for no third argument.
    let file = unsafe { libc::open(name.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    if file < 0 {
        return COULD_NOT_TRY;
    }
    // SAFETY: as in the parent.
    if unsafe { libc::fcntl(file, libc::F_SETLK, &whole(libc::F_WRLCK)) } == 0 {
        return SAW_NO_LOCK;
    }
    let Some(map) = Map::new(file) else { return COULD_NOT_TRY };
    if map.word(0).load(Ordering::SeqCst) != FROM_PARENT {
        return SAW_OTHER_MEMORY;
    }
    map.word(1).store(FROM_CHILD, Ordering::SeqCst);
    0
}

fn whole(kind: i32) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or(0),
        l_whence: 0,
        l_start: 0,
        l_len: 1,
        l_pid: 0,
    }
}

/// A page of a file, mapped and shared.
struct Map(*mut libc::c_void);

impl Map {
    fn new(file: i32) -> Option<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping of an open file, at a place that the kernel chooses.
        let at =
            unsafe { libc::mmap(ptr::null_mut(), PAGE_BYTES, access, libc::MAP_SHARED, file, 0) };
        (at != libc::MAP_FAILED).then_some(Self(at))
    }

    fn word(&self, index: usize) -> &AtomicU32 {
        // SAFETY: within the page, aligned, and only used as an atomic.
        unsafe { &*self.0.cast::<AtomicU32>().add(index) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with that length, and not used after.
        unsafe { libc::munmap(self.0, PAGE_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_where_locks_hold_and_memory_is_shared_is_found_so_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(trial(&dir.path().join("any.db")).unwrap(), None);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn child_that_gets_the_lock_or_sees_other_memory_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, [0; PAGE_BYTES]).unwrap();
        let name = CString::new(path.as_os_str().as_bytes()).unwrap();
        // Nobody holds the lock here, as if locks were not passed on.
        assert_eq!(in_a_child(&name).unwrap(), SAW_NO_LOCK);
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        // SAFETY: as in `trial`.
        let locked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &whole(libc::F_WRLCK)) };
        assert_eq!(locked, 0);
        assert_eq!(in_a_child(&name).unwrap(), SAW_OTHER_MEMORY);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(in_a_child(&name).unwrap(), COULD_NOT_TRY);
    }
}
