//! Putting the result in the place of the damaged database. The order of the steps, and why, stands
//! in the documentation of `recover`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::{Known, RecoverError, Recovery};
use crate::options::Options;
use crate::sqlite::anchor::{Anchor, AnchorFile};
use crate::sqlite::durability::Durability;
use crate::sqlite::quarantine::{self, sync_directory};
use crate::sqlite::sidecar::{LockFile, beside};

/// Gives the directory where the damaged files are kept.
pub(super) fn apply(
    place: &Path,
    result: &Path,
    recovery: &Recovery,
    known: &Known<'_>,
    options: &Options,
) -> Result<PathBuf, RecoverError> {
    let reason = recovery.before.first().unwrap_or("a recovery was asked for").to_owned();
    let notice = quarantine::quarantine(place, &reason, options.quarantine_bytes)?;
    let Some(kept) = notice.copy else {
        // Without a copy there is no second try: nothing is changed.
        return Err(io::Error::other("there is no room to keep the damaged files").into());
    };
    replace(place, result)?;
    let anchor = AnchorFile::open(place)?;
    let head = recovery.newest.filter(|_| known.ledger.is_some());
    let head = match head {
        // The chain may have been made anew, with other links.
        Some(_) => current_head(place, known)?,
        None => None,
    };
    anchor.reset(head.as_ref())?;
    quarantine::lift(place)?;
    LockFile::open(place)?.mark(true)?;
    sync_directory(place)?;
    Ok(kept)
}

/// The file at `result` takes the place of the database, with nothing of the old one beside it.
pub(crate) fn replace(place: &Path, result: &Path) -> io::Result<()> {
    if let Ok(old) = fs::metadata(place) {
        fs::set_permissions(result, old.permissions())?;
    }
    File::open(result)?.sync_all()?;
    for ending in ["-wal", "-shm", "-journal"] {
        fs::remove_file(beside(place, ending)).or_else(ignore_missing)?;
    }
    sync_directory(place)?;
    fs::rename(result, place)?;
    sync_directory(place)
}

/// Takes a copy away that somebody was making, with all that SQLite laid beside it: a journal that
/// a kill has left would be taken for that of the next file of this name.
pub(crate) fn remove_copy(path: &Path) -> io::Result<()> {
    for ending in ["-wal", "-shm", "-journal", ""] {
        fs::remove_file(beside(path, ending)).or_else(ignore_missing)?;
    }
    Ok(())
}

/// The newest commit of the database that lies there now, as a record that binds for ever.
pub(crate) fn current_head(
    place: &Path,
    known: &Known<'_>,
) -> Result<Option<Anchor>, RecoverError> {
    let Some(ledger) = known.ledger else { return Ok(None) };
    let conn = rusqlite::Connection::open_with_flags(
        place,
        rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE | rusqlite::OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    let chain = crate::sqlite::chain::newest(&conn, ledger)?;
    conn.close().map_err(|(_, error)| error)?;
    Ok((chain.seq > 0).then_some(Anchor { head: chain, durability: Durability::Power }))
}

pub(crate) fn remove_directory(path: &Path) -> io::Result<()> {
    fs::remove_dir_all(path).or_else(ignore_missing)
}

pub(crate) fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}
