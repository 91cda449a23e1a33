//! Where a database lies: its real path, and whether SQLite can work there.
//!
//! In: a path as a person wrote it. Out: the path of the file itself, and whether it is still the
//! one that was opened. Nothing is opened here.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{self, Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, FileControl};

use crate::error::{Result, StoreError};
use crate::sqlite::sidecar::beside;

/// The absolute path without symbolic links; the file itself need not be there.
///
/// SQLite resolves links as well, and lays `-wal` and `-shm` beside the file that it finds. So do
/// we with ours.
pub(crate) fn resolve(path: &Path) -> io::Result<PathBuf> {
    // SQLite sees neither a URI nor a special name in what starts with a separator.
    let absolute = path::absolute(path)?;
    match fs::canonicalize(&absolute) {
        Ok(place) => Ok(place),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match (absolute.parent(), absolute.file_name()) {
                (Some(parent), Some(name)) => Ok(fs::canonicalize(parent)?.join(name)),
                _ => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

/// Which file a path leads to: device, inode, and how many names it has.
type Identity = (u64, u64, u64);

/// A database and its log and index, as they were when they were opened.
#[derive(Debug)]
pub(crate) struct Files {
    parts: [(PathBuf, Option<Identity>); 3],
}

impl Files {
    /// Looks where the names lead.
    pub(crate) fn look(place: &Path) -> Self {
        let part = |ending| {
            let path = beside(place, ending);
            let identity = identity(&path);
            (path, identity)
        };
        Self { parts: [part(""), part("-wal"), part("-shm")] }
    }

    /// Goes on only if every name still leads to the same file, and no other name does.
    ///
    /// A commit into a file that has no name, or whose log has none, is gone when the last process
    /// that has it open ends; and whoever opens the name next works on another file.
    pub(crate) fn require_same(&self, conn: &Connection, database: &Path) -> Result<()> {
        for (path, before) in &self.parts {
            let now = identity(path);
            if now != *before {
                let what = match (now, before) {
                    (None, _) => "it is gone",
                    (Some((device, inode, _)), Some((old_device, old_inode, _)))
                        if (device, inode) == (*old_device, *old_inode) =>
                    {
                        "it has another name as well"
                    }
                    _ => "another file is in its place",
                };
                return Err(StoreError::Moved { path: path.clone(), what });
            }
        }
        require_unmoved(conn, database)
    }
}

/// Asks SQLite whether the file that it has open is still the one of that name.
pub(crate) fn require_unmoved(conn: &Connection, database: &Path) -> Result<()> {
    let mut moved = 0;
    conn.file_control(Some("main"), FileControl::HasMoved(&mut moved)).map_err(|source| {
        StoreError::refused(source, "ask whether the file moved", database, Duration::ZERO)
    })?;
    if moved == 0 {
        return Ok(());
    }
    Err(StoreError::Moved { path: database.to_owned(), what: "another file is in its place" })
}

fn identity(path: &Path) -> Option<Identity> {
    let file = fs::symlink_metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.nlink()))
}
