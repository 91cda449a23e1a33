//! The SQLite that this process runs on, as it says itself.
//!
//! With the feature `shared-engine` the library is whichever the loader found, and may be older
//! than the bindings: what they need and an old library lacks stands here too.
#![expect(unsafe_code, reason = "SQLite's own words about itself are a C string")]

use crate::ledger::Loaded;
use rusqlite::ffi;
use std::ffi::CStr;

/// The version and source id of the library that this process has loaded.
pub(crate) fn loaded() -> Loaded {
    // SAFETY: `sqlite3_sourceid` gives a constant string that ends in a zero byte.
    let source_id = unsafe { CStr::from_ptr(ffi::sqlite3_sourceid()) };
    Loaded {
        sqlite_version: u32::try_from(rusqlite::version_number()).unwrap_or(0),
        source_id: source_id.to_string_lossy().into_owned(),
    }
}

/// `sqlite3_set_clientdata` and `sqlite3_get_clientdata` came with SQLite 3.44. rusqlite keeps its
/// own busy handler there, and forgets it whenever a time-out is set: so no connection can be
/// opened on an older library without them. The functions here take the place of the library's,
/// hand on to it where it has them, and else keep the pointer themselves. Nothing of SQLite's
/// behaviour hangs on it.
#[cfg(feature = "shared-engine")]
mod client_data {
    use super::ffi;
    use std::collections::HashMap;
    use std::ffi::{CStr, CString, c_char, c_int, c_void};
    use std::sync::{LazyLock, Mutex, PoisonError};

    type Destructor = Option<unsafe extern "C" fn(*mut c_void)>;
    type Set =
        unsafe extern "C" fn(*mut ffi::sqlite3, *const c_char, *mut c_void, Destructor) -> c_int;
    type Get = unsafe extern "C" fn(*mut ffi::sqlite3, *const c_char) -> *mut c_void;

    /// Data by connection and name, both as addresses and text; never freed at a close, which is
    /// one small block a connection of a process that soon ends.
    static KEPT: LazyLock<Mutex<Table>> = LazyLock::new(Mutex::default);

    type Table = HashMap<(usize, CString), (usize, Destructor)>;

    /// The library's own function of that name, if it has one.
    fn next(name: &CStr) -> Option<*mut c_void> {
        // SAFETY: the name ends in a zero byte; nothing is loaded by asking.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
        (!found.is_null()).then_some(found)
    }

    /// # Safety
    ///
    /// As for the function of the same name in SQLite.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn sqlite3_set_clientdata(
        db: *mut ffi::sqlite3,
        name: *const c_char,
        data: *mut c_void,
        destructor: Destructor,
    ) -> c_int {
        if let Some(own) = next(c"sqlite3_set_clientdata") {
            // SAFETY: the library's function of this name has this signature, and gets what our
            // caller gave.
            return unsafe {
                std::mem::transmute::<*mut c_void, Set>(own)(db, name, data, destructor)
            };
        }
        // SAFETY: by the caller a string that ends in a zero byte.
        let key = (db.addr(), unsafe { CStr::from_ptr(name) }.to_owned());
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        let old = if data.is_null() {
            kept.remove(&key)
        } else {
            kept.insert(key, (data.expose_provenance(), destructor))
        };
        drop(kept);
        if let Some((data, Some(destroy))) = old {
            // SAFETY: the pointer came with this destructor, and is kept no longer.
            unsafe { destroy(std::ptr::with_exposed_provenance_mut(data)) };
        }
        ffi::SQLITE_OK
    }

    /// # Safety
    ///
    /// As for the function of the same name in SQLite.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn sqlite3_get_clientdata(
        db: *mut ffi::sqlite3,
        name: *const c_char,
    ) -> *mut c_void {
        if let Some(own) = next(c"sqlite3_get_clientdata") {
            // SAFETY: as in `sqlite3_set_clientdata`.
            return unsafe { std::mem::transmute::<*mut c_void, Get>(own)(db, name) };
        }
        // SAFETY: by the caller a string that ends in a zero byte.
        let key = (db.addr(), unsafe { CStr::from_ptr(name) }.to_owned());
        let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        let data = kept.get(&key).map_or(0, |(data, _)| *data);
        std::ptr::with_exposed_provenance_mut(data)
    }
}
