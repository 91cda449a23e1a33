//! A VFS in front of SQLite's own that tells what the process is doing, and counts what it costs.
//!
//! Every call goes through unchanged. What is learnt stays in the ledger's slot: which locks are
//! held tells a transaction from a checkpoint, the first write of a transaction tells its commit,
//! and the calls of xSync are the fsyncs. So it works for any code above it, with no help from it.
//!
//! The lock bytes are those of the WAL-index (SQLite documentation, *WAL-mode File Format*, section
//! 2.3: write 0, checkpoint 1, recover 2, read from 3).
#![expect(unsafe_code, reason = "a SQLite VFS is a table of C functions over raw memory")]

use crate::ledger::{Activity, Slot, now_ns};
use crate::wire::Flaw;
use rusqlite::ffi;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// The name that a connection opens it by.
pub(crate) const NAME: &str = "killpoint";

const WRITE_LOCK: c_int = 0;
const CHECKPOINT_LOCK: c_int = 1;
const FIRST_READ_LOCK: c_int = 3;

/// The VFS that the calls go on to.
static REAL: AtomicPtr<ffi::sqlite3_vfs> = AtomicPtr::new(ptr::null_mut());
/// What this process's VFS does wrong, for a canary: a [`Flaw`] as [`misbehave`] numbers it.
static FLAW: AtomicU32 = AtomicU32::new(0);
const NO_WAL_SYNC: u32 = 1;
/// Where this process tells; set once, after the fork.
static SLOT: AtomicPtr<Slot> = AtomicPtr::new(ptr::null_mut());
/// When the checkpoint under way began, ns, and what had been written by then.
static CHECKPOINT_FROM_NS: AtomicU64 = AtomicU64::new(0);
static CHECKPOINT_FROM_BYTES: AtomicU64 = AtomicU64::new(0);
/// Whether the process held a read lock before that checkpoint.
static READ_BEFORE_CHECKPOINT: AtomicBool = AtomicBool::new(false);

/// Which file a handle is of.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
enum Part {
    Database,
    Log,
    Other,
}

/// Our file handle; the real one follows it in the same block.
#[repr(C)]
struct Handle {
    base: ffi::sqlite3_file,
    part: Part,
}

/// The VFS could not be registered; SQLite's result code.
#[derive(Debug, thiserror::Error)]
#[error("SQLite refused the observing VFS with code {0}")]
pub(crate) struct ShimError(c_int);

/// Registers the VFS under [`NAME`], beside the default.
///
/// To be called once, in the zygote: SQLite is then initialised for every writer, and no connection
/// is opened by it.
pub(crate) fn register() -> Result<(), ShimError> {
    // SAFETY: SQLite initialises itself in `sqlite3_vfs_find`; the default VFS lives for ever.
    let real = unsafe { ffi::sqlite3_vfs_find(ptr::null()) };
    if real.is_null() {
        return Err(ShimError(ffi::SQLITE_NOTFOUND));
    }
    REAL.store(real, Ordering::Release);
    // SAFETY: `real` is a valid VFS, and a copy of it with another name and xOpen is one too; the
    // methods that it inherits are given the copy, of which they use only fields that we keep.
    let mut vfs = unsafe { *real };
    vfs.zName = c"killpoint".as_ptr();
    vfs.pNext = ptr::null_mut();
    vfs.szOsFile += c_int::try_from(size_of::<Handle>()).unwrap_or(c_int::MAX / 2);
    vfs.xOpen = Some(open);
    // SAFETY: the table is leaked, so it stays for as long as SQLite may use it.
    match unsafe { ffi::sqlite3_vfs_register(Box::leak(Box::new(vfs)), 0) } {
        ffi::SQLITE_OK => Ok(()),
        code => Err(ShimError(code)),
    }
}

/// Tells `slot` from now on what this process does. To be called after the fork.
pub(crate) fn observe(slot: &'static Slot) {
    SLOT.store(ptr::from_ref(slot).cast_mut(), Ordering::Release);
}

/// Makes this process's VFS wrong in the way of `flaw`, if it is one of a VFS.
pub(crate) fn misbehave(flaw: Option<Flaw>) {
    match flaw {
        Some(Flaw::NoWalSync) => FLAW.store(NO_WAL_SYNC, Ordering::Release),
        Some(Flaw::NoDirectorySync) => leave_directories_unsynced(),
        _ => {}
    }
}

/// SQLite syncs the directory of a new WAL or journal with its first sync, inside its own VFS: so
/// its own way to open a directory is replaced by one that cannot, which it bears in silence.
fn leave_directories_unsynced() {
    unsafe extern "C" fn cannot(_path: *const c_char, _fd: *mut c_int) -> c_int {
        ffi::SQLITE_CANTOPEN
    }
    type Any = unsafe extern "C" fn();
    type OpenDirectory = unsafe extern "C" fn(*const c_char, *mut c_int) -> c_int;
    // SAFETY: SQLite calls what it is given by the type that `cannot` has.
    let cannot = unsafe { std::mem::transmute::<OpenDirectory, Any>(cannot) };
    set_system_call(c"openDirectory", cannot);
}

/// Gives SQLite's own VFS another way to make a system call. A name that this build of SQLite does
/// not have changes nothing.
pub(crate) fn set_system_call(name: &CStr, call: unsafe extern "C" fn()) {
    let vfs = REAL.load(Ordering::Acquire);
    // SAFETY: null or a VFS that lives for ever, by `register`; SQLite only reads the name.
    unsafe {
        if let Some(set) = vfs.as_ref().and_then(|vfs| vfs.xSetSystemCall) {
            set(vfs, name.as_ptr(), Some(call));
        }
    }
}

fn slot() -> Option<&'static Slot> {
    // SAFETY: null or the address of a slot that lives for ever, by `observe`.
    unsafe { SLOT.load(Ordering::Acquire).as_ref() }
}

fn add(counter: &AtomicU64, amount: u64) {
    // One process writes a slot: no read-modify-write is needed.
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
}

/// Tells the slot when a call failed for want of space. To be called before anything else may set
/// the thread's errno.
fn told(code: c_int) -> c_int {
    if code != ffi::SQLITE_OK
        && matches!(nix::Error::last(), nix::Error::ENOSPC | nix::Error::EDQUOT)
        && let Some(slot) = slot()
    {
        slot.set_no_space();
    }
    code
}

/// Our part of the handle, the real handle behind it and that one's methods.
///
/// # Safety
///
/// `file` must be a handle that [`open`] has filled in.
unsafe fn behind(
    file: *mut ffi::sqlite3_file,
) -> (Part, *mut ffi::sqlite3_file, &'static ffi::sqlite3_io_methods) {
    // SAFETY: by the caller; method tables of a VFS are static.
    unsafe {
        let handle = file.cast::<Handle>();
        let real = handle.add(1).cast::<ffi::sqlite3_file>();
        ((*handle).part, real, &*(*real).pMethods)
    }
}

unsafe extern "C" fn open(
    _vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    const LOGS: c_int = ffi::SQLITE_OPEN_WAL | ffi::SQLITE_OPEN_MAIN_JOURNAL;
    let part = if flags & ffi::SQLITE_OPEN_MAIN_DB != 0 {
        Part::Database
    } else if flags & LOGS != 0 {
        Part::Log
    } else {
        Part::Other
    };
    // SAFETY: SQLite gives a block of the szOsFile that we asked for: our handle, then the real
    // one, which is zeroed as SQLite's own VFS expects of its caller.
    unsafe {
        let handle = file.cast::<Handle>();
        let vfs = REAL.load(Ordering::Acquire);
        let real = handle.add(1).cast::<ffi::sqlite3_file>();
        let size = usize::try_from((*vfs).szOsFile).unwrap_or(0);
        ptr::write_bytes(real.cast::<u8>(), 0, size);
        (*handle).part = part;
        (*handle).base.pMethods = ptr::null();
        let Some(open) = (*vfs).xOpen else { return ffi::SQLITE_CANTOPEN };
        let code = told(open(vfs, name, real, flags, out_flags));
        if !(*real).pMethods.is_null() {
            (*handle).base.pMethods = &raw const METHODS;
        }
        code
    }
}

/// A method that goes through as it is.
macro_rules! forward {
    ($name:ident, $method:ident, ($($argument:ident: $type:ty),*)) => {
        unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file $(, $argument: $type)*) -> c_int {
            // SAFETY: SQLite calls a method with a handle that its xOpen filled in.
            let (_, real, methods) = unsafe { behind(file) };
            // SAFETY: the real method gets the real handle and the caller's own arguments.
            told(methods.$method.map_or(ffi::SQLITE_IOERR, |method| unsafe {
                method(real $(, $argument)*)
            }))
        }
    };
}

forward!(close, xClose, ());
forward!(read, xRead, (buffer: *mut c_void, bytes: c_int, at: i64));
forward!(truncate, xTruncate, (bytes: i64));
forward!(file_size, xFileSize, (bytes: *mut i64));
forward!(check_reserved, xCheckReservedLock, (held: *mut c_int));
forward!(file_control, xFileControl, (op: c_int, argument: *mut c_void));
forward!(sector_size, xSectorSize, ());
forward!(characteristics, xDeviceCharacteristics, ());
forward!(shm_map, xShmMap, (page: c_int, size: c_int, extend: c_int, at: *mut *mut c_void));
forward!(shm_unmap, xShmUnmap, (delete: c_int));
forward!(fetch, xFetch, (at: i64, bytes: c_int, page: *mut *mut c_void));
forward!(unfetch, xUnfetch, (at: i64, page: *mut c_void));

unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    // SAFETY: as in `forward`.
    unsafe {
        let (_, real, methods) = behind(file);
        if let Some(barrier) = methods.xShmBarrier {
            barrier(real);
        }
    }
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    buffer: *const c_void,
    bytes: c_int,
    at: i64,
) -> c_int {
    // SAFETY: as in `forward`.
    let (part, real, methods) = unsafe { behind(file) };
    if let Some(slot) = slot() {
        if slot.activity() == Activity::Transaction && part != Part::Other {
            slot.set_activity(Activity::Commit);
        }
        let amount = u64::from(bytes.unsigned_abs());
        match part {
            Part::Database => add(&slot.counters.database_bytes, amount),
            Part::Log => {
                add(&slot.counters.log_bytes, amount);
                let end = at.unsigned_abs() + amount;
                if end > slot.counters.wal_end_max.load(Ordering::Relaxed) {
                    slot.counters.wal_end_max.store(end, Ordering::Relaxed);
                }
            }
            Part::Other => {}
        }
    }
    // SAFETY: as in `forward`.
    told(
        methods
            .xWrite
            .map_or(ffi::SQLITE_IOERR, |method| unsafe { method(real, buffer, bytes, at) }),
    )
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: as in `forward`.
    let (part, real, methods) = unsafe { behind(file) };
    if FLAW.load(Ordering::Acquire) == NO_WAL_SYNC
        && part == Part::Log
        && slot().is_some_and(|slot| slot.activity() == Activity::Checkpoint)
    {
        return ffi::SQLITE_OK;
    }
    if let Some(slot) = slot() {
        match part {
            Part::Database => add(&slot.counters.database_syncs, 1),
            Part::Log => add(&slot.counters.log_syncs, 1),
            Part::Other => {}
        }
    }
    // SAFETY: as in `forward`.
    told(methods.xSync.map_or(ffi::SQLITE_IOERR, |method| unsafe { method(real, flags) }))
}

/// Locks of the rollback-journal modes: RESERVED begins a write transaction.
unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: as in `forward`.
    let (part, real, methods) = unsafe { behind(file) };
    // SAFETY: as in `forward`.
    let code = methods.xLock.map_or(ffi::SQLITE_IOERR, |method| unsafe { method(real, level) });
    if code == ffi::SQLITE_OK
        && part == Part::Database
        && level >= ffi::SQLITE_LOCK_RESERVED
        && let Some(slot) = slot()
        && matches!(slot.activity(), Activity::Idle | Activity::Reading)
    {
        slot.set_activity(Activity::Transaction);
    }
    code
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: as in `forward`.
    let (part, real, methods) = unsafe { behind(file) };
    if let Some(slot) = slot()
        && part == Part::Database
        && matches!(slot.activity(), Activity::Transaction | Activity::Commit)
    {
        slot.set_activity(Activity::Idle);
    }
    // SAFETY: as in `forward`.
    methods.xUnlock.map_or(ffi::SQLITE_IOERR, |method| unsafe { method(real, level) })
}

/// Locks of WAL mode. A gained lock is told after it is had, a released one before it is given up,
/// so that what is told never claims a lock that another process may already hold.
unsafe extern "C" fn shm_lock(
    file: *mut ffi::sqlite3_file,
    first: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    // SAFETY: as in `forward`.
    let (_, real, methods) = unsafe { behind(file) };
    let gains = flags & ffi::SQLITE_SHM_LOCK != 0;
    let single = count == 1;
    if !gains
        && single
        && let Some(slot) = slot()
    {
        released(slot, first);
    }
    // SAFETY: as in `forward`.
    let code = methods
        .xShmLock
        .map_or(ffi::SQLITE_IOERR, |method| unsafe { method(real, first, count, flags) });
    if gains
        && single
        && code == ffi::SQLITE_OK
        && let Some(slot) = slot()
    {
        gained(slot, first, flags & ffi::SQLITE_SHM_EXCLUSIVE != 0);
    }
    code
}

fn gained(slot: &Slot, lock: c_int, exclusive: bool) {
    let now = slot.activity();
    if now == Activity::Opening {
        return;
    }
    match (lock, exclusive) {
        // A checkpoint that resets the WAL takes the write lock as well: it stays a checkpoint.
        (WRITE_LOCK, true) if now != Activity::Checkpoint => {
            slot.set_activity(Activity::Transaction);
        }
        (CHECKPOINT_LOCK, true) => {
            let bytes = slot.counters.database_bytes.load(Ordering::Relaxed);
            CHECKPOINT_FROM_BYTES.store(bytes, Ordering::Relaxed);
            CHECKPOINT_FROM_NS.store(now_ns(), Ordering::Relaxed);
            READ_BEFORE_CHECKPOINT.store(now == Activity::Reading, Ordering::Relaxed);
            slot.set_activity(Activity::Checkpoint);
        }
        (FIRST_READ_LOCK.., false) if now == Activity::Idle => {
            slot.set_activity(Activity::Reading);
        }
        _ => {}
    }
}

fn released(slot: &Slot, lock: c_int) {
    let now = slot.activity();
    match lock {
        WRITE_LOCK if matches!(now, Activity::Transaction | Activity::Commit) => {
            slot.set_activity(Activity::Reading);
        }
        CHECKPOINT_LOCK if now == Activity::Checkpoint => {
            let spent = now_ns().saturating_sub(CHECKPOINT_FROM_NS.load(Ordering::Relaxed));
            let before = CHECKPOINT_FROM_BYTES.load(Ordering::Relaxed);
            if slot.counters.database_bytes.load(Ordering::Relaxed) != before {
                add(&slot.counters.checkpoints, 1);
                add(&slot.counters.checkpoint_ns, spent);
                if spent > slot.counters.checkpoint_ns_max.load(Ordering::Relaxed) {
                    slot.counters.checkpoint_ns_max.store(spent, Ordering::Relaxed);
                }
            }
            let reading = READ_BEFORE_CHECKPOINT.load(Ordering::Relaxed);
            slot.set_activity(if reading { Activity::Reading } else { Activity::Idle });
        }
        FIRST_READ_LOCK.. if now == Activity::Reading => slot.set_activity(Activity::Idle),
        _ => {}
    }
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 3,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: Some(fetch),
    xUnfetch: Some(unfetch),
};
