//! A trial whether the loaded SQLite has the WAL-reset fault, whatever its number says.
//!
//! Three connections to a database made for it, in one thread. One has checkpointed all of the
//! log. Another begins a checkpoint, and just after it has read how long the log is, the third
//! starts the log anew with one commit. An engine with the fault then takes the new log for the
//! old one, and commits that were made after it are not seen any more; one without it copies
//! nothing. Not a matter of time: the third connection writes within the call by which SQLite
//! gives a mapped page back, which lies between the two steps.
//!
//! In: nothing. Out: whether acknowledged rows went missing. The database is in a directory of its
//! own, which is removed.
#![expect(unsafe_code, reason = "a SQLite VFS is a table of C functions over raw memory")]

use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_void};
use std::fs;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use rusqlite::{Connection, OpenFlags, ffi};

const NAME: &str = "hardboard-probe";

/// The VFS that all calls go on to.
static REAL: AtomicPtr<ffi::sqlite3_vfs> = AtomicPtr::new(ptr::null_mut());

thread_local! {
    /// What to do within the next checkpoint.
    static WITHIN: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
}

/// What the trial showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trial {
    /// Every acknowledged row was there.
    Sound,
    /// Rows that were acknowledged went missing.
    Faulty,
}

/// Makes the trial, once in a process.
///
/// # Errors
///
/// A text that says what kept it from being made. Nothing is then known of the engine.
pub(super) fn trial() -> Result<Trial, String> {
    static DONE: OnceLock<Result<Trial, String>> = OnceLock::new();
    DONE.get_or_init(|| {
        let place = Scratch::new().map_err(|error| format!("a scratch directory: {error}"))?;
        register()?;
        run(&place.0.join("probe.db")).map_err(|error| error.to_string())?
    })
    .clone()
}

fn run(path: &Path) -> rusqlite::Result<Result<Trial, String>> {
    let first = open(path)?;
    first.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (id INTEGER PRIMARY KEY)")?;
    let (second, third) = (open(path)?, open(path)?);
    for conn in [&second, &third] {
        conn.query_row("SELECT count(*) FROM t", [], |_| Ok(()))?;
    }
    insert(&first, 60)?;
    checkpoint(&first)?;
    let reached = std::rc::Rc::new(std::cell::Cell::new(false));
    let (reach, mut writer) = (std::rc::Rc::clone(&reached), Some(third));
    WITHIN.with_borrow_mut(|within| {
        *within = Some(Box::new(move || {
            if let Some(conn) = writer.take() {
                reach.set(insert(&conn, 1).is_ok());
                // Its close would be a checkpoint too.
                std::mem::forget(conn);
            }
        }));
    });
    checkpoint(&second)?;
    WITHIN.with_borrow_mut(|within| *within = None);
    if !reached.get() {
        return Ok(Err("the moment within a checkpoint was not met".to_owned()));
    }
    insert(&second, 20)?;
    checkpoint(&first)?;
    let rows: i64 = first.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
    Ok(Ok(if rows == 81 { Trial::Sound } else { Trial::Faulty }))
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags_and_vfs(path, flags, NAME)?;
    conn.execute_batch("PRAGMA synchronous = OFF; PRAGMA wal_autocheckpoint = 0")?;
    Ok(conn)
}

fn insert(conn: &Connection, rows: usize) -> rusqlite::Result<()> {
    for _ in 0..rows {
        conn.execute("INSERT INTO t DEFAULT VALUES", [])?;
    }
    Ok(())
}

fn checkpoint(conn: &Connection) -> rusqlite::Result<()> {
    conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
}

/// A directory that goes away with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> std::io::Result<Self> {
        use std::hash::{BuildHasher, RandomState};
        let number = RandomState::new().hash_one(std::process::id());
        let path = std::env::temp_dir().join(format!("hardboard-probe-{number:016x}"));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left is a few pages in the directory for such things.
        fs::remove_dir_all(&self.0).ok();
    }
}

/// Our file handle; the real one follows it in the same block.
#[repr(C)]
struct Handle {
    base: ffi::sqlite3_file,
    is_database: bool,
}

fn register() -> Result<(), String> {
    // SAFETY: SQLite initialises itself in it; the default VFS lives for ever.
    let real = unsafe { ffi::sqlite3_vfs_find(ptr::null()) };
    if real.is_null() {
        return Err("SQLite has no default VFS".to_owned());
    }
    REAL.store(real, Ordering::Release);
    // SAFETY: a copy of a valid VFS with another name, a larger handle and another xOpen is one.
    let mut vfs = unsafe { *real };
    vfs.zName = c"hardboard-probe".as_ptr();
    vfs.pNext = ptr::null_mut();
    vfs.szOsFile += c_int::try_from(size_of::<Handle>()).unwrap_or(c_int::MAX / 2);
    vfs.xOpen = Some(x_open);
    // SAFETY: the table is leaked, so it stays for as long as SQLite may use it.
    match unsafe { ffi::sqlite3_vfs_register(Box::leak(Box::new(vfs)), 0) } {
        ffi::SQLITE_OK => Ok(()),
        code => Err(format!("SQLite refused a VFS with code {code}")),
    }
}

unsafe extern "C" fn x_open(
    _: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite gives a block of the szOsFile that we asked for: our handle, then the real
    // one, which is zeroed as SQLite's own VFS expects of its caller.
    unsafe {
        let handle = file.cast::<Handle>();
        let vfs = REAL.load(Ordering::Acquire);
        let real = handle.add(1).cast::<ffi::sqlite3_file>();
        ptr::write_bytes(real.cast::<u8>(), 0, usize::try_from((*vfs).szOsFile).unwrap_or(0));
        (*handle).is_database = flags & ffi::SQLITE_OPEN_MAIN_DB != 0;
        (*handle).base.pMethods = ptr::null();
        let Some(open) = (*vfs).xOpen else { return ffi::SQLITE_CANTOPEN };
        let code = open(vfs, name, real, flags, out_flags);
        if !(*real).pMethods.is_null() {
            (*handle).base.pMethods = &raw const METHODS;
        }
        code
    }
}

/// The real handle behind one of ours, and its methods.
///
/// # Safety
///
/// `file` must be a handle that [`x_open`] has filled in.
unsafe fn behind(
    file: *mut ffi::sqlite3_file,
) -> (*mut ffi::sqlite3_file, &'static ffi::sqlite3_io_methods) {
    // SAFETY: by the caller; method tables of a VFS are static.
    unsafe {
        let real = file.cast::<Handle>().add(1).cast::<ffi::sqlite3_file>();
        (real, &*(*real).pMethods)
    }
}

/// Declares methods that do nothing but go on; `$missing` is the answer where there is none.
macro_rules! go_on {
    ($($name:ident = $method:ident($($arg:ident: $kind:ty),*) -> $out:ty, $missing:expr;)+) => {
        $(unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file $(, $arg: $kind)*) -> $out {
            // SAFETY: SQLite calls the methods of handles that `x_open` filled in, and the
            // arguments go on as they came.
            unsafe {
                let (real, methods) = behind(file);
                match methods.$method {
                    Some(method) => method(real $(, $arg)*),
                    None => $missing,
                }
            }
        })+
    };
}

go_on! {
    x_close = xClose() -> c_int, ffi::SQLITE_IOERR;
    x_read = xRead(to: *mut c_void, bytes: c_int, at: i64) -> c_int, ffi::SQLITE_IOERR;
    x_write = xWrite(from: *const c_void, bytes: c_int, at: i64) -> c_int, ffi::SQLITE_IOERR;
    x_truncate = xTruncate(size: i64) -> c_int, ffi::SQLITE_IOERR;
    x_sync = xSync(flags: c_int) -> c_int, ffi::SQLITE_IOERR;
    x_size = xFileSize(size: *mut i64) -> c_int, ffi::SQLITE_IOERR;
    x_lock = xLock(level: c_int) -> c_int, ffi::SQLITE_IOERR;
    x_unlock = xUnlock(level: c_int) -> c_int, ffi::SQLITE_IOERR;
    x_reserved = xCheckReservedLock(out: *mut c_int) -> c_int, ffi::SQLITE_IOERR;
    x_control = xFileControl(op: c_int, argument: *mut c_void) -> c_int, ffi::SQLITE_NOTFOUND;
    x_sector = xSectorSize() -> c_int, 4096;
    x_device = xDeviceCharacteristics() -> c_int, 0;
    x_shm_map = xShmMap(region: c_int, bytes: c_int, extend: c_int, out: *mut *mut c_void)
        -> c_int, ffi::SQLITE_IOERR;
    x_shm_lock = xShmLock(from: c_int, count: c_int, flags: c_int) -> c_int, ffi::SQLITE_IOERR;
    x_shm_barrier = xShmBarrier() -> (), ();
    x_shm_unmap = xShmUnmap(delete: c_int) -> c_int, ffi::SQLITE_OK;
}

unsafe extern "C" fn x_fetch(
    _: *mut ffi::sqlite3_file,
    _: i64,
    _: c_int,
    page: *mut *mut c_void,
) -> c_int {
    // SAFETY: SQLite gives a place for the answer. Null: read it the other way.
    unsafe { *page = ptr::null_mut() };
    ffi::SQLITE_OK
}

unsafe extern "C" fn x_unfetch(file: *mut ffi::sqlite3_file, _: i64, page: *mut c_void) -> c_int {
    // SAFETY: SQLite calls the methods of handles that `x_open` filled in.
    let is_database = unsafe { (*file.cast::<Handle>()).is_database };
    if page.is_null() && is_database {
        let within = WITHIN.with_borrow_mut(Option::take);
        if let Some(act) = within {
            act();
        }
    }
    ffi::SQLITE_OK
}

/// Version 3, so that SQLite calls the last two.
static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 3,
    xClose: Some(x_close),
    xRead: Some(x_read),
    xWrite: Some(x_write),
    xTruncate: Some(x_truncate),
    xSync: Some(x_sync),
    xFileSize: Some(x_size),
    xLock: Some(x_lock),
    xUnlock: Some(x_unlock),
    xCheckReservedLock: Some(x_reserved),
    xFileControl: Some(x_control),
    xSectorSize: Some(x_sector),
    xDeviceCharacteristics: Some(x_device),
    xShmMap: Some(x_shm_map),
    xShmLock: Some(x_shm_lock),
    xShmBarrier: Some(x_shm_barrier),
    xShmUnmap: Some(x_shm_unmap),
    xFetch: Some(x_fetch),
    xUnfetch: Some(x_unfetch),
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::engine::Engine;

    /// The trial and the number agree on the engines that no vendor has changed. Linked to a
    /// faulty engine, this test sees it found.
    #[test]
    fn trial_meets_its_moment_and_agrees_with_the_number_of_the_engine() {
        let faulty = trial().unwrap() == Trial::Faulty;
        assert_eq!(faulty, Engine::loaded().may_reset_log(), "SQLite {}", Engine::loaded());
    }
}
