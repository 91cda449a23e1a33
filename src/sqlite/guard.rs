//! Keeping the locks of a database from code of others in the same process.
//!
//! POSIX drops every lock that a process has on a file when the process closes *any* descriptor of
//! it (`fcntl(2)`). SQLite's locks are such locks, so a library in the same process that opens the
//! database to look at its header, or the `-shm` to copy it, takes them away in silence: the next
//! process believes to be the first or the last, cuts the shared memory that is in use, or removes
//! the log; and a writer whose write lock is gone has a second one beside it.
//!
//! # What is done
//!
//! SQLite's default VFS has a table of the system calls that it makes, which the documentation
//! offers for replacement (`xSetSystemCall` of `sqlite3_vfs`). Three entries are replaced, once in
//! a process:
//!
//! | call | what the replacement does |
//! |---|---|
//! | `open` | moves the descriptor to a number of at least [`FLOOR`], close-on-exec |
//! | `fcntl` | takes locks on a `-shm` as locks of the open file (`F_OFD_SETLK`) |
//! | `close` | forgets the number |
//!
//! A lock of the open file is dropped by no other descriptor's close, and others see it as before.
//!
//! On the database itself SQLite keeps one lock for its life in WAL mode, the shared one; it is
//! taken by whichever connection of the process comes first, and let go by whichever goes last, so
//! it cannot be a lock of one open file. Instead SQLite's own descriptor holds a second lock over
//! the same bytes, of the open file (`hold`). When a stray close takes the first away, nobody
//! can be the last one still.
//!
//! The high number keeps the database from being what a recycled number means: a library that
//! writes to a socket which it has closed writes to whatever file got that number since.
//!
//! # Why not a VFS of our own
//!
//! Descriptors and locks belong to SQLite's VFS, below what a VFS in front of it sees. And a VFS
//! of our own would guard our connections alone, while a second connection by other means in the
//! same process shares locks with ours, inside SQLite.
//!
//! # What it does not do
//!
//! The descriptor of a second connection to one file in one process keeps its low number: to move
//! it means to close it, which is the very thing. A lock of the open file is shared with a child
//! that was forked and did not exec. And all of it is for one process: a `-shm` that somebody
//! removes is found by looking at the names ([`super::place`]).
#![expect(unsafe_code, reason = "SQLite's table of system calls is a table of C functions")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use nix::libc;
use rusqlite::ffi;

/// The lowest number that a descriptor of a database is given, where the limit allows it.
pub const FLOOR: c_int = 512;

/// The bytes that SQLite's shared lock lies on (os.h: `SHARED_FIRST`, `SHARED_SIZE`).
const SHARED_FIRST: i64 = 0x4000_0002;
const SHARED_BYTES: i64 = 510;

/// Descriptors that are looked after; a greater number is left alone.
const DESCRIPTORS: usize = 65_536;

/// What a descriptor is of: nothing known, the shared memory, anything else of SQLite's.
const NOTHING: u8 = 0;
const SHARED_MEMORY: u8 = 1;
const OTHER: u8 = 2;

static OPEN: [AtomicU8; DESCRIPTORS] = [const { AtomicU8::new(NOTHING) }; DESCRIPTORS];

/// One more than the greatest number that was ever noted.
static BELOW: AtomicUsize = AtomicUsize::new(0);

type Open = unsafe extern "C" fn(*const c_char, c_int, c_int) -> c_int;
type Close = unsafe extern "C" fn(c_int) -> c_int;
type Fcntl = unsafe extern "C" fn(c_int, c_int, *mut c_void) -> c_int;

/// The calls that were in the table before.
struct Before {
    open: Open,
    close: Close,
    fcntl: Fcntl,
}

static BEFORE: OnceLock<Option<Before>> = OnceLock::new();

/// Puts the replacements into SQLite's table, once. `false`: the engine has no such table, so
/// nothing is guarded.
pub(crate) fn install() -> bool {
    BEFORE.get_or_init(replace).is_some()
}

fn replace() -> Option<Before> {
    // SAFETY: SQLite initialises itself in it; the VFS lives for ever, its methods are given the
    // VFS itself and names that end with a nought.
    unsafe {
        let vfs = ffi::sqlite3_vfs_find(c"unix".as_ptr());
        if vfs.is_null() || (*vfs).iVersion < 3 {
            return None;
        }
        let (get, set) = ((*vfs).xGetSystemCall?, (*vfs).xSetSystemCall?);
        // The functions have the types that os_unix.c declares for these names.
        let before = Before {
            open: mem::transmute::<unsafe extern "C" fn(), Open>(get(vfs, c"open".as_ptr())?),
            close: mem::transmute::<unsafe extern "C" fn(), Close>(get(vfs, c"close".as_ptr())?),
            fcntl: mem::transmute::<unsafe extern "C" fn(), Fcntl>(get(vfs, c"fcntl".as_ptr())?),
        };
        let ours: [(&CStr, unsafe extern "C" fn()); 3] = [
            (c"open", mem::transmute::<Open, unsafe extern "C" fn()>(open)),
            (c"close", mem::transmute::<Close, unsafe extern "C" fn()>(close)),
            (c"fcntl", mem::transmute::<Fcntl, unsafe extern "C" fn()>(fcntl)),
        ];
        for (name, call) in ours {
            set(vfs, name.as_ptr(), Some(call));
        }
        Some(before)
    }
}

/// A descriptor of a database that SQLite has open. Whether it still is, and of that database, is
/// asked each time: the number may be another file's one day.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor(c_int);

/// What a descriptor's file says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// Device, inode, and how many names it has.
    pub(crate) identity: (u64, u64, u64),
    /// When the inode was last changed: seconds and nanoseconds of the wall clock.
    pub(crate) changed: (i64, i64),
}

impl Descriptor {
    /// One system call, without a walk along a path.
    pub(crate) fn stat(self) -> Option<Stat> {
        // SAFETY: a struct of plain numbers, filled in by the call; a number that is not open any
        // more is an error of the call.
        let stat = unsafe {
            let mut stat = mem::zeroed::<libc::stat>();
            (libc::fstat(self.0, &raw mut stat) == 0).then_some(stat)
        }?;
        Some(Stat {
            identity: (stat.st_dev, stat.st_ino, stat.st_nlink),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        })
    }

    fn file(self) -> Option<(u64, u64)> {
        self.stat().map(|stat| (stat.identity.0, stat.identity.1))
    }
}

/// Has SQLite's own descriptors of the file hold its shared bytes, so that nobody else is ever the
/// last. Gives one that does.
pub(crate) fn hold(place: &Path) -> Option<Descriptor> {
    let file = std::fs::symlink_metadata(place).ok()?;
    let mut lock = libc::flock {
        l_type: i16::try_from(libc::F_RDLCK).unwrap_or(0),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or(0),
        l_start: SHARED_FIRST,
        l_len: SHARED_BYTES,
        l_pid: 0,
    };
    let held = descriptors(OTHER)
        .filter(|descriptor| descriptor.file() == Some((file.dev(), file.ino())))
        // SAFETY: a lock that lives through the call, on a descriptor that SQLite has open.
        .filter(|held| unsafe { libc::fcntl(held.0, libc::F_OFD_SETLK, &raw mut lock) } == 0);
    // All of them are to hold it, so none is left out. Which one is given matters little: it may be
    // closed with another connection, and is then known to be (see `Descriptor::stat`).
    held.last()
}

/// The descriptors of that kind which SQLite has open, by number.
fn descriptors(kind: u8) -> impl Iterator<Item = Descriptor> {
    OPEN.iter()
        .take(BELOW.load(Ordering::Relaxed))
        .enumerate()
        .filter(move |(_, open)| open.load(Ordering::Relaxed) == kind)
        .filter_map(|(number, _)| c_int::try_from(number).ok().map(Descriptor))
}

fn note(descriptor: c_int, kind: u8) {
    let Ok(number) = usize::try_from(descriptor) else { return };
    if let Some(open) = OPEN.get(number) {
        BELOW.fetch_max(number + 1, Ordering::Relaxed);
        open.store(kind, Ordering::Relaxed);
    }
}

fn kind_of(descriptor: c_int) -> u8 {
    usize::try_from(descriptor)
        .ok()
        .and_then(|number| OPEN.get(number))
        .map_or(NOTHING, |open| open.load(Ordering::Relaxed))
}

unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    let Some(Some(before)) = BEFORE.get() else { return -1 };
    // SAFETY: the call that was in this place, with the arguments that it was made with.
    let descriptor = unsafe { (before.open)(path, flags, mode) };
    if descriptor < 0 {
        return descriptor;
    }
    // SAFETY: SQLite gives a path that ends with a nought.
    let path = unsafe { CStr::from_ptr(path) }.to_bytes();
    let is_memory = path.ends_with(b"-shm");
    let descriptor = if flags & libc::O_ACCMODE == libc::O_RDWR && !is_open_already(descriptor) {
        lift(descriptor, before)
    } else {
        descriptor
    };
    note(descriptor, if is_memory { SHARED_MEMORY } else { OTHER });
    descriptor
}

/// Whether SQLite has another descriptor of the same file, whose locks a close would drop.
fn is_open_already(descriptor: c_int) -> bool {
    let this = Descriptor(descriptor).file();
    descriptors(OTHER)
        .chain(descriptors(SHARED_MEMORY))
        .any(|other| other.0 != descriptor && other.file() == this)
}

/// Gives the open file a high number. If there is none to be had it keeps its own.
fn lift(descriptor: c_int, before: &Before) -> c_int {
    if descriptor >= floor() {
        return descriptor;
    }
    // SAFETY: a copy of a descriptor that was just opened, which then is the only one of it; the
    // lower one is closed by the call that SQLite would close it with.
    unsafe {
        let high = libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, floor());
        if high < 0 {
            return descriptor;
        }
        (before.close)(descriptor);
        high
    }
}

/// Half of what the process may have, if that is less.
fn floor() -> c_int {
    static FLOOR_HERE: OnceLock<c_int> = OnceLock::new();
    *FLOOR_HERE.get_or_init(|| {
        // SAFETY: a struct of plain numbers, filled in by the call.
        let limit = unsafe {
            let mut limit = mem::zeroed::<libc::rlimit>();
            (libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0).then_some(limit.rlim_cur)
        };
        let half = limit.map_or(FLOOR, |limit| c_int::try_from(limit / 2).unwrap_or(FLOOR));
        half.min(FLOOR)
    })
}

unsafe extern "C" fn close(descriptor: c_int) -> c_int {
    let Some(Some(before)) = BEFORE.get() else { return -1 };
    note(descriptor, NOTHING);
    // SAFETY: the call that was in this place.
    unsafe { (before.close)(descriptor) }
}

unsafe extern "C" fn fcntl(descriptor: c_int, command: c_int, argument: *mut c_void) -> c_int {
    let Some(Some(before)) = BEFORE.get() else { return -1 };
    let command = match command {
        libc::F_SETLK | libc::F_SETLKW | libc::F_GETLK if kind_of(descriptor) == SHARED_MEMORY => {
            // SAFETY: these commands come with a lock; its owner must be nought for the others.
            unsafe { (*argument.cast::<libc::flock>()).l_pid = 0 };
            match command {
                libc::F_SETLK => libc::F_OFD_SETLK,
                libc::F_SETLKW => libc::F_OFD_SETLKW,
                _ => libc::F_OFD_GETLK,
            }
        }
        other => other,
    };
    // SAFETY: the call that was in this place; the argument is of the kind that the command asks
    // for.
    unsafe { (before.fcntl)(descriptor, command, argument) }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::process::Command;

    use super::*;
    use crate::sqlite::fixture::Place;
    use crate::sqlite::sidecar::beside;

    /// The variable by which this test program knows that it is the other process.
    const OTHER_PROCESS: &str = "HARDBOARD_TEST_GUARD";

    /// What the other process does: tries for the write lock, then opens and closes as one that
    /// believes to be the last would.
    #[test]
    #[ignore = "the other process of the tests below"]
    fn other_process() {
        let path = std::env::var(OTHER_PROCESS).unwrap();
        let conn = rusqlite::Connection::open(&path).unwrap();
        conn.busy_timeout(std::time::Duration::ZERO).unwrap();
        let begun = conn.execute_batch("BEGIN IMMEDIATE");
        let code = if begun.is_ok() { "got the write lock" } else { "was locked out" };
        drop(conn);
        fs::write(format!("{path}.said"), code).unwrap();
    }

    fn ask_other_process(path: &Path) -> String {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "sqlite::guard::tests::other_process"])
            .env(OTHER_PROCESS, path)
            .output()
            .unwrap();
        assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stdout));
        fs::read_to_string(format!("{}.said", path.display())).unwrap()
    }

    /// What other code in the process does: looks at the files, and closes them.
    fn stray_close(path: &Path) {
        for ending in ["", "-wal", "-shm"] {
            drop(File::open(beside(path, ending)).unwrap());
        }
    }

    #[test]
    fn stray_close_within_a_write_lets_no_other_writer_in() {
        let place = Place::new();
        let mut database = place.open();
        place.append(&mut database, 1);
        let path = place.path();
        let (said, _ack) = database
            .write(None, |tx| {
                tx.execute_batch("UPDATE kept SET pruned_to = 0")?;
                stray_close(&path);
                Ok::<_, rusqlite::Error>(ask_other_process(&path))
            })
            .unwrap();
        assert_eq!(said, "was locked out");
    }

    #[test]
    fn stray_close_makes_no_other_process_the_last_one() {
        let place = Place::new();
        let mut database = place.open();
        place.append(&mut database, 1);
        stray_close(&place.path());
        assert_eq!(ask_other_process(&place.path()), "got the write lock");
        for ending in ["-wal", "-shm"] {
            assert!(beside(&place.path(), ending).exists(), "{ending} was removed");
        }
        place.append(&mut database, 1);
        drop(database);
        assert_eq!(place.append(&mut place.open(), 1).seq, 3);
    }

    #[test]
    fn descriptors_of_a_database_have_high_numbers_and_do_not_outlive_an_exec() {
        let place = Place::new();
        let _database = place.open();
        let real = place.path().canonicalize().unwrap();
        let mut found = 0;
        for entry in fs::read_dir("/proc/self/fd").unwrap().flatten() {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            if !["", "-wal", "-shm"].iter().any(|ending| beside(&real, ending) == target) {
                continue;
            }
            let number: c_int = entry.file_name().to_string_lossy().parse().unwrap();
            assert!(number >= floor(), "{} has {number}", target.display());
            // SAFETY: asks for the flags of a descriptor.
            let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
            assert!(flags & libc::FD_CLOEXEC != 0, "{}", target.display());
            found += 1;
        }
        assert_eq!(found, 3);
    }
}
