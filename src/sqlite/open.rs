//! Opening a database file.
//!
//! A file is opened by SQLite and by nothing else: a descriptor of our own would drop the locks of
//! the whole process when it is closed.
//!
//! In: a path and [`Options`]. Out: a connection whose settings were read back.
//! Not here: what the database holds, which is `board::schema`'s work.

use std::fs;
use std::io;
use std::path::{self, Path, PathBuf};
use std::time::Instant;

use rusqlite::{Connection, OpenFlags, ffi};

use crate::error::{Result, StoreError};
use crate::options::Options;
use crate::sqlite::pragma;

/// How many prepared statements a connection keeps: more than a board has.
const STATEMENT_CACHE_CAPACITY: usize = 64;

/// Opens the database at `path` and puts the one policy into effect (see [`pragma::apply`]).
///
/// With `create`, a file that is not there is made. The path is a file name and nothing more: one
/// like `file:a.db?mode=memory` or `:memory:` names a file of just that name.
///
/// # Errors
///
/// - [`StoreError::Open`]: there is no such file, it is not a regular file, or it may only be
///   read.
/// - [`StoreError::Corrupt`]: it is not a database, or its first page is damaged.
/// - [`StoreError::PragmaRefused`]: a setting did not take.
/// - [`StoreError::Busy`]: another process held a lock for the whole of `options.busy_timeout`.
pub fn open(path: impl AsRef<Path>, options: &Options, create: bool) -> Result<Connection> {
    let path = path.as_ref();
    let conn = connect(path, options, create)?;
    pragma::apply(&conn, path, options)?;
    Ok(conn)
}

/// Opens the database at `path` without writing to it, with the settings of [`pragma::guard`].
///
/// # Errors
///
/// As [`open`], but for what only a setting can bring out.
pub(crate) fn connect(path: &Path, options: &Options, create: bool) -> Result<Connection> {
    let failed = |source| failed(path, source);
    let absolute =
        plain_name(path).map_err(|_| failed(rusqlite::Error::InvalidPath(path.to_owned())))?;
    if fs::metadata(&absolute).is_ok_and(|file| !file.is_file()) {
        // A pipe would keep the reader of its header waiting for ever.
        return Err(failed(failure(ffi::SQLITE_CANTOPEN, "not a regular file")));
    }
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    flags.set(OpenFlags::SQLITE_OPEN_CREATE, create);
    let conn = match &options.vfs {
        None => Connection::open_with_flags(&absolute, flags),
        Some(vfs) => Connection::open_with_flags_and_vfs(&absolute, flags, vfs.as_str()),
    }
    .map_err(failed)?;
    conn.set_prepared_statement_cache_capacity(STATEMENT_CACHE_CAPACITY);
    pragma::guard(&conn, path, options)?;
    refuse_read_only(&conn, path)?;
    Ok(conn)
}

/// What it means that the database cannot be opened.
pub(crate) fn failed(path: &Path, source: rusqlite::Error) -> StoreError {
    StoreError::Open { path: path.to_owned(), source }
}

/// The path in a form in which SQLite sees neither a URI nor a special name: both start otherwise
/// than with a separator.
fn plain_name(path: &Path) -> io::Result<PathBuf> {
    path::absolute(path)
}

/// SQLite opens a file that may only be read for reading, even when asked for more.
fn refuse_read_only(conn: &Connection, path: &Path) -> Result<()> {
    let started = Instant::now();
    let read_only = conn.is_readonly("main").map_err(|source| {
        StoreError::refused(source, "ask whether it may write", path, started.elapsed())
    })?;
    if read_only {
        let source = failure(ffi::SQLITE_READONLY, "the file may only be read");
        return Err(StoreError::Open { path: path.to_owned(), source });
    }
    Ok(())
}

fn failure(code: i32, message: &str) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(message.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::error::Outcome;

    #[track_caller]
    fn check_refused(path: &Path, create: bool) {
        let error = open(path, &Options::default(), create).unwrap_err();
        assert_eq!(error.outcome(), Outcome::Refused);
        assert!(std::error::Error::source(&error).is_some());
        let StoreError::Open { path: named, .. } = error else { panic!("{error:?}") };
        assert_eq!(named, path);
    }

    #[test]
    fn file_that_is_not_there_is_made_only_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("any.db");
        check_refused(&path, false);
        assert!(!path.exists());
        assert!(open(&path, &Options::default(), true).is_ok());
        assert!(open(&path, &Options::default(), false).is_ok());
    }

    #[test]
    fn directory_a_device_and_a_place_that_is_not_there_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        check_refused(dir.path(), true);
        check_refused(Path::new("/dev/null"), true);
        check_refused(&dir.path().join("not/there.db"), true);
        check_refused(Path::new(""), true);
    }

    #[test]
    fn path_with_a_nul_in_it_is_refused() {
        check_refused(Path::new("/tmp/a\0b"), true);
    }

    #[test]
    fn name_that_sqlite_would_read_as_more_than_a_name_is_one() {
        let dir = tempfile::tempdir().unwrap();
        for name in [":memory:", "file:a.db?mode=memory", "file::memory:"] {
            let path = dir.path().join(name);
            open(&path, &Options::default(), true).unwrap();
            assert!(path.is_file(), "{name}");
            assert!(plain_name(Path::new(name)).unwrap().is_absolute());
        }
    }

    #[test]
    fn file_that_may_only_be_read_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("any.db");
        open(&path, &Options::default(), true).unwrap().close().unwrap();
        let before = fs::read(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
        if OpenOptions::new().append(true).open(&path).is_ok() {
            // Whoever runs this may write everything, so the flag itself has to do.
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
            let conn = Connection::open_with_flags(&path, flags).unwrap();
            let error = refuse_read_only(&conn, &path).unwrap_err();
            assert!(matches!(error, StoreError::Open { .. }), "{error:?}");
        } else {
            check_refused(&path, false);
        }
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn vfs_that_is_not_registered_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("any.db");
        for vfs in ["no such vfs", "a\0b"] {
            let options = Options { vfs: Some(vfs.to_owned()), ..Options::default() };
            let error = open(&path, &options, true).unwrap_err();
            assert!(matches!(error, StoreError::Open { .. }), "{error:?}");
        }
        assert!(!path.exists());
    }

    #[test]
    fn garbage_is_reported_as_damage_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("any.db");
        fs::write(&path, [0x5a; 5000]).unwrap();
        let error = open(&path, &Options::default(), true).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
        assert_eq!(fs::read(&path).unwrap(), [0x5a; 5000]);
    }
}
