//! A SQLite VFS whose files are layers in memory: where crash images are recovered.
//!
//! Each thread has one [`Disk`] with at most three files: database, WAL, rollback journal. A
//! connection opened by [`NAME`] on a thread works on that thread's disk. There is no shared
//! memory, so a connection must be in `locking_mode = EXCLUSIVE` before it touches the database;
//! the wal-index is then built on the heap, by the same code that builds it in a `-shm` that is
//! absent (SQLite documentation, *WAL-mode File Format*, section 2). All else is SQLite's own:
//! which journal is hot, what of a WAL is valid, what a checkpoint copies.
//!
//! Syncs do nothing: what is recovered is not put under a second power cut, but for
//! [`Disk::fuse`].
#![expect(unsafe_code, reason = "a SQLite VFS is a table of C functions over raw memory")]

use super::image::{Content, Layer};
use rusqlite::ffi;
use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::{Arc, OnceLock};

/// The name that a connection opens it by.
pub(super) const NAME: &str = "killpoint-memory";

/// The database's name there.
pub(super) const DATABASE: &str = "/crash.db";

/// One of the three files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Part {
    /// The database.
    Database,
    /// Its write-ahead log.
    Wal,
    /// Its rollback journal.
    Journal,
}

impl Part {
    pub(super) const ALL: [Self; 3] = [Self::Database, Self::Wal, Self::Journal];

    /// What its name ends in, behind the database's.
    pub(super) const fn suffix(self) -> &'static str {
        match self {
            Self::Database => "",
            Self::Wal => "-wal",
            Self::Journal => "-journal",
        }
    }
}

/// One thread's files.
#[derive(Debug, Default)]
pub(super) struct Disk {
    exists: [bool; 3],
    layers: [Layer; 3],
    /// After so many changes every further one fails: a recovery that is cut off itself.
    pub(super) fuse: Option<u64>,
    /// Changes that were made since the disk was begun.
    pub(super) changes: u64,
}

impl Disk {
    /// The disk with these files.
    pub(super) fn begin(&mut self, part: Part, content: Option<Arc<Content>>, exists: bool) {
        self.exists[part as usize] = exists;
        self.layers[part as usize].begin(content);
        self.changes = 0;
    }

    /// Lets go of all contents.
    pub(super) fn release(&mut self) {
        for part in Part::ALL {
            self.begin(part, None, false);
        }
        self.changes = 0;
    }

    /// The file, if it is there.
    pub(super) fn file(&mut self, part: Part) -> Option<&mut Layer> {
        self.exists[part as usize].then(|| &mut self.layers[part as usize])
    }

    fn change(&mut self) -> bool {
        if let Some(left) = &mut self.fuse {
            if *left == 0 {
                return false;
            }
            *left -= 1;
        }
        self.changes += 1;
        true
    }
}

thread_local! {
    static DISK: RefCell<Disk> = RefCell::default();
}

/// Does something with this thread's disk, on which no connection may be open.
pub(super) fn with_disk<T>(act: impl FnOnce(&mut Disk) -> T) -> T {
    DISK.with_borrow_mut(act)
}

/// SQLite refused the VFS, with this code.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("SQLite refused the VFS of crash images with code {0}")]
pub struct VfsError(c_int);

/// Registers the VFS, once for the process.
pub(super) fn register() -> Result<(), VfsError> {
    static CODE: OnceLock<c_int> = OnceLock::new();
    let code = *CODE.get_or_init(|| {
        let vfs = Box::new(ffi::sqlite3_vfs {
            iVersion: 1,
            szOsFile: c_int::try_from(size_of::<Handle>()).unwrap_or(c_int::MAX),
            mxPathname: 64,
            pNext: ptr::null_mut(),
            zName: c"killpoint-memory".as_ptr(),
            pAppData: ptr::null_mut(),
            xOpen: Some(open),
            xDelete: Some(delete),
            xAccess: Some(access),
            xFullPathname: Some(full_pathname),
            xDlOpen: None,
            xDlError: None,
            xDlSym: None,
            xDlClose: None,
            xRandomness: Some(randomness),
            xSleep: Some(sleep),
            xCurrentTime: Some(current_time),
            xGetLastError: Some(last_error),
            xCurrentTimeInt64: None,
            xSetSystemCall: None,
            xGetSystemCall: None,
            xNextSystemCall: None,
        });
        // SAFETY: the table is leaked, so it stays for as long as SQLite may use it; its name is a
        // constant; SQLite initialises itself.
        unsafe { ffi::sqlite3_vfs_register(Box::leak(vfs), 0) }
    });
    if code == ffi::SQLITE_OK { Ok(()) } else { Err(VfsError(code)) }
}

/// Our file handle.
#[repr(C)]
struct Handle {
    base: ffi::sqlite3_file,
    part: Part,
}

/// Does something with a file of this thread's disk; an I/O error if that cannot be.
fn on_file(part: Part, code: c_int, act: impl FnOnce(&mut Disk) -> c_int) -> c_int {
    DISK.with(|disk| match disk.try_borrow_mut() {
        Ok(mut disk) if disk.exists[part as usize] => act(&mut disk),
        // SQLite goes on with a file that was removed under it as with any other.
        Ok(_) | Err(_) => code,
    })
}

/// Which file a name means; none for any other.
///
/// # Safety
///
/// `name` is null or a C string.
unsafe fn part_of(name: *const c_char) -> Option<Part> {
    if name.is_null() {
        return None;
    }
    // SAFETY: by the caller.
    let name = unsafe { CStr::from_ptr(name) }.to_str().ok()?;
    let suffix = name.strip_prefix(DATABASE)?;
    Part::ALL.into_iter().find(|part| part.suffix() == suffix)
}

/// # Safety
///
/// `file` must be a handle that [`open`] has filled in.
unsafe fn part(file: *mut ffi::sqlite3_file) -> Part {
    // SAFETY: by the caller.
    unsafe { (*file.cast::<Handle>()).part }
}

unsafe extern "C" fn open(
    _vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite gives a block of the szOsFile that was asked for, and a name or null.
    unsafe {
        let handle = file.cast::<Handle>();
        (*handle).base.pMethods = ptr::null();
        // No temporary files: connections keep theirs in memory.
        let Some(part) = part_of(name) else { return ffi::SQLITE_CANTOPEN };
        let made = DISK.with(|disk| {
            let Ok(mut disk) = disk.try_borrow_mut() else { return false };
            if !disk.exists[part as usize] {
                if flags & ffi::SQLITE_OPEN_CREATE == 0 {
                    return false;
                }
                disk.begin(part, None, true);
            }
            true
        });
        if !made {
            return ffi::SQLITE_CANTOPEN;
        }
        (*handle).part = part;
        (*handle).base.pMethods = &raw const METHODS;
        if !out_flags.is_null() {
            *out_flags = flags;
        }
        ffi::SQLITE_OK
    }
}

unsafe extern "C" fn delete(
    _vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    _sync_directory: c_int,
) -> c_int {
    // SAFETY: SQLite gives a C string.
    let Some(part) = (unsafe { part_of(name) }) else { return ffi::SQLITE_IOERR_DELETE };
    on_file(part, ffi::SQLITE_IOERR_DELETE_NOENT, |disk| {
        if !disk.change() {
            return ffi::SQLITE_IOERR_DELETE;
        }
        disk.exists[part as usize] = false;
        ffi::SQLITE_OK
    })
}

unsafe extern "C" fn access(
    _vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    _flags: c_int,
    there: *mut c_int,
) -> c_int {
    // SAFETY: SQLite gives a C string and a place for the answer.
    unsafe {
        let part = part_of(name);
        // As the unix VFS has it: an empty file counts as none.
        let holds = |disk: &mut Disk, part| c_int::from(disk.layers[part as usize].len() > 0);
        *there = part.map_or(0, |part| on_file(part, 0, |disk| holds(disk, part)));
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn full_pathname(
    _vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    bytes: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: SQLite gives a C string, and room for `bytes` bytes.
    unsafe {
        let name = CStr::from_ptr(name).to_bytes_with_nul();
        if usize::try_from(bytes).unwrap_or(0) < name.len() {
            return ffi::SQLITE_CANTOPEN;
        }
        ptr::copy_nonoverlapping(name.as_ptr().cast(), out, name.len());
    }
    ffi::SQLITE_OK
}

/// The same each time: what recovery makes of an image depends on the image alone.
unsafe extern "C" fn randomness(
    _vfs: *mut ffi::sqlite3_vfs,
    bytes: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: SQLite gives room for `bytes` bytes.
    unsafe { ptr::write_bytes(out, 0x5a, usize::try_from(bytes).unwrap_or(0)) };
    bytes
}

unsafe extern "C" fn sleep(_vfs: *mut ffi::sqlite3_vfs, _us: c_int) -> c_int {
    0
}

unsafe extern "C" fn current_time(_vfs: *mut ffi::sqlite3_vfs, out: *mut f64) -> c_int {
    // SAFETY: SQLite gives a place for the answer. Julian day of 2000-01-01.
    unsafe { *out = 2_451_544.5 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn last_error(
    _vfs: *mut ffi::sqlite3_vfs,
    _bytes: c_int,
    _out: *mut c_char,
) -> c_int {
    0
}

unsafe extern "C" fn close(_file: *mut ffi::sqlite3_file) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn read(
    file: *mut ffi::sqlite3_file,
    buffer: *mut c_void,
    bytes: c_int,
    at: i64,
) -> c_int {
    // SAFETY: SQLite gives a handle that `open` filled in and room for `bytes` bytes, which nobody
    // else uses meanwhile; they are set before they are seen as a slice.
    let (part, buffer) = unsafe {
        let length = usize::try_from(bytes).unwrap_or(0);
        ptr::write_bytes(buffer.cast::<u8>(), 0, length);
        (part(file), std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length))
    };
    on_file(part, ffi::SQLITE_IOERR_READ, |disk| {
        let at = u64::try_from(at).unwrap_or(0);
        if disk.layers[part as usize].read(at, buffer) == buffer.len() {
            ffi::SQLITE_OK
        } else {
            ffi::SQLITE_IOERR_SHORT_READ
        }
    })
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    buffer: *const c_void,
    bytes: c_int,
    at: i64,
) -> c_int {
    // SAFETY: SQLite gives a handle that `open` filled in and `bytes` bytes.
    let (part, buffer) = unsafe {
        let length = usize::try_from(bytes).unwrap_or(0);
        (part(file), std::slice::from_raw_parts(buffer.cast::<u8>(), length))
    };
    on_file(part, ffi::SQLITE_IOERR_WRITE, |disk| {
        if !disk.change() {
            return ffi::SQLITE_IOERR_WRITE;
        }
        disk.layers[part as usize].write(u64::try_from(at).unwrap_or(0), buffer);
        ffi::SQLITE_OK
    })
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, bytes: i64) -> c_int {
    // SAFETY: SQLite gives a handle that `open` filled in.
    let part = unsafe { part(file) };
    on_file(part, ffi::SQLITE_IOERR_TRUNCATE, |disk| {
        if !disk.change() {
            return ffi::SQLITE_IOERR_TRUNCATE;
        }
        disk.layers[part as usize].truncate(u64::try_from(bytes).unwrap_or(0));
        ffi::SQLITE_OK
    })
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, bytes: *mut i64) -> c_int {
    // SAFETY: SQLite gives a handle that `open` filled in, and a place for the answer.
    let part = unsafe { part(file) };
    on_file(part, ffi::SQLITE_IOERR_FSTAT, |disk| {
        let length = i64::try_from(disk.layers[part as usize].len()).unwrap_or(i64::MAX);
        // SAFETY: as above.
        unsafe { *bytes = length };
        ffi::SQLITE_OK
    })
}

unsafe extern "C" fn sync(_file: *mut ffi::sqlite3_file, _flags: c_int) -> c_int {
    ffi::SQLITE_OK
}

/// Nobody else has the file.
unsafe extern "C" fn lock(_file: *mut ffi::sqlite3_file, _level: c_int) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn check_reserved(_file: *mut ffi::sqlite3_file, held: *mut c_int) -> c_int {
    // SAFETY: SQLite gives a place for the answer.
    unsafe { *held = 0 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_control(
    _file: *mut ffi::sqlite3_file,
    _op: c_int,
    _argument: *mut c_void,
) -> c_int {
    ffi::SQLITE_NOTFOUND
}

/// As the unix VFS has it.
unsafe extern "C" fn sector_size(_file: *mut ffi::sqlite3_file) -> c_int {
    4096
}

unsafe extern "C" fn characteristics(_file: *mut ffi::sqlite3_file) -> c_int {
    ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(lock),
    xCheckReservedLock: Some(check_reserved),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};
