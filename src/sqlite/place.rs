//! Where a database lies: its real path, and whether SQLite can work there.
//!
//! In: a path as a person wrote it. Out: the path of the file itself. Nothing is opened here.

use std::fs;
use std::io;
use std::path::{self, Path, PathBuf};

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
