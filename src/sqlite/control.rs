//! `BEGIN IMMEDIATE` and `COMMIT`, prepared once for the life of a connection.
//!
//! Every write needs both. To look them up by their text each time costs a hundredth of a commit.
//!
//! In: a connection. Out: [`Control`]. Not here: what their failures mean.
#![expect(unsafe_code, reason = "a statement that is kept beside its connection is a C pointer")]

use std::ffi::{CStr, c_int};
use std::ptr::{self, NonNull};

use rusqlite::{Connection, ffi};

/// The two statements. They must be gone before their connection is closed.
#[derive(Debug)]
pub(crate) struct Control {
    begin: Prepared,
    commit: Prepared,
}

#[derive(Debug)]
struct Prepared(NonNull<ffi::sqlite3_stmt>);

// SAFETY: a statement may be used by any thread that may use its connection, one at a time; it is
// only reached together with that.
unsafe impl Send for Prepared {}

impl Control {
    pub(crate) fn new(conn: &Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            begin: Prepared::new(conn, c"BEGIN IMMEDIATE")?,
            commit: Prepared::new(conn, c"COMMIT")?,
        })
    }

    pub(crate) fn begin(&self, conn: &Connection) -> rusqlite::Result<()> {
        self.begin.run(conn)
    }

    pub(crate) fn commit(&self, conn: &Connection) -> rusqlite::Result<()> {
        self.commit.run(conn)
    }
}

impl Prepared {
    fn new(conn: &Connection, sql: &CStr) -> rusqlite::Result<Self> {
        let mut statement = ptr::null_mut();
        // SAFETY: the handle is open, the text ends with a nought, the rest may be null.
        let code = unsafe {
            ffi::sqlite3_prepare_v3(
                conn.handle(),
                sql.as_ptr(),
                -1,
                ffi::SQLITE_PREPARE_PERSISTENT,
                &raw mut statement,
                ptr::null_mut(),
            )
        };
        NonNull::new(statement).map(Self).ok_or_else(|| failure(conn, code))
    }

    fn run(&self, conn: &Connection) -> rusqlite::Result<()> {
        let statement = self.0.as_ptr();
        // SAFETY: prepared by `new`, finalised by `drop` alone.
        let code = unsafe { ffi::sqlite3_step(statement) };
        let ran = if code == ffi::SQLITE_DONE { Ok(()) } else { Err(failure(conn, code)) };
        // SAFETY: as above. What it returns is the step's failure again.
        unsafe { ffi::sqlite3_reset(statement) };
        ran
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // SAFETY: prepared by `new`; the connection is still open.
        unsafe { ffi::sqlite3_finalize(self.0.as_ptr()) };
    }
}

/// What SQLite says of its last failure on that connection.
fn failure(conn: &Connection, code: c_int) -> rusqlite::Error {
    // SAFETY: the handle is open; the text lives until the next call on it, and is copied.
    let (code, text) = unsafe {
        let handle = conn.handle();
        let extended = ffi::sqlite3_extended_errcode(handle);
        let text = CStr::from_ptr(ffi::sqlite3_errmsg(handle)).to_string_lossy().into_owned();
        (if extended & 0xff == code & 0xff { extended } else { code }, text)
    };
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_run_as_often_as_they_are_wanted() {
        let conn = Connection::open_in_memory().unwrap();
        let control = Control::new(&conn).unwrap();
        for _ in 0..3 {
            control.begin(&conn).unwrap();
            assert!(!conn.is_autocommit());
            control.commit(&conn).unwrap();
            assert!(conn.is_autocommit());
        }
    }

    #[test]
    fn failure_has_sqlites_code_and_text_and_the_statement_runs_again() {
        let conn = Connection::open_in_memory().unwrap();
        let control = Control::new(&conn).unwrap();
        let error = control.commit(&conn).unwrap_err();
        assert!(error.to_string().contains("no transaction is active"), "{error}");
        control.begin(&conn).unwrap();
        let error = control.begin(&conn).unwrap_err();
        assert!(error.to_string().contains("within a transaction"), "{error}");
        control.commit(&conn).unwrap();
    }
}
