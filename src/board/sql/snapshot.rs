//! A copy of the board as it is now, verified, before something is done to it that a person may
//! want undone.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use crate::error::{Result, StoreError};

/// Copies the board that `conn` has open into a new file in `dir`, verifies the copy, and sees that
/// it is on the disk. `name` distinguishes it.
pub(in crate::board) fn take(conn: &Connection, dir: &Path, name: &str) -> Result<PathBuf> {
    let path = dir.join(format!("{name}.db"));
    let failed = |source| StoreError::File { path: path.clone(), source };
    fs::create_dir_all(dir).map_err(failed)?;
    let partial = dir.join(format!("{name}.partial"));
    match fs::remove_file(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    copy(conn, &partial)
        .map_err(|source| StoreError::Sqlite { during: "copy the board", source })?;
    File::open(&partial).and_then(|file| file.sync_all()).map_err(failed)?;
    fs::rename(&partial, &path).map_err(failed)?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
    Ok(path)
}

fn copy(conn: &Connection, to: &Path) -> rusqlite::Result<()> {
    conn.execute("VACUUM INTO ?1", [to.to_string_lossy()])?;
    let head = "SELECT seq, link FROM commits ORDER BY seq DESC LIMIT 1";
    let head_of = |conn: &Connection| -> rusqlite::Result<Option<(i64, Vec<u8>)>> {
        use rusqlite::OptionalExtension as _;
        conn.query_row(head, [], |row| Ok((row.get(0)?, row.get(1)?))).optional()
    };
    let copy = Connection::open_with_flags(to, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let said: String = copy.pragma_query_value(None, "integrity_check", |row| row.get(0))?;
    // Another process may have written between the copy and this look; it has what was there.
    let (copied, now) = (head_of(&copy)?, head_of(conn)?);
    let same = match (&copied, &now) {
        (Some((seq, link)), Some(_)) => {
            let link_of = "SELECT link FROM commits WHERE seq = ?1";
            conn.query_row(link_of, [seq], |row| row.get::<_, Vec<u8>>(0))? == *link
        }
        (copied, _) => copied.is_none(),
    };
    if said == "ok" && same {
        Ok(())
    } else {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        Err(rusqlite::Error::SqliteFailure(code, Some(format!("the copy is not sound: {said}"))))
    }
}
