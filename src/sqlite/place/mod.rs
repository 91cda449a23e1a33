//! Where a database lies: its real path, and whether SQLite can work there.
//!
//! | what is found | what is done |
//! |---|---|
//! | NFS, SMB, 9p, virtiofs other FUSE, cluster file systems | refused, unless accepted by name |
//! | locks or shared memory that a second process cannot see | refused |
//! | tmpfs, overlay, an unknown file system | a warning |
//! | a second name (hard link) | refused: SQLite would make two logs |
//! | a symbolic link | followed, as SQLite does |
//!
//! In: a path as a person wrote it. Out: the path of the file itself, and whether it is still the
//! one that was opened. Nothing is opened here.

pub mod file_system;
pub(crate) mod trial;

use std::cell::Cell;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{self, Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rusqlite::{Connection, FileControl};

use crate::error::{Result, StoreError};
use crate::sqlite::guard::Descriptor;
use crate::sqlite::place::file_system::{FileSystem, Fitness, TimeOfChange};
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

/// Goes on only if a database can lie at that place. With `thorough` a second process is asked.
///
/// # Errors
///
/// [`StoreError::Place`]. What cannot be asked, as of a directory that is not there, is left to
/// the open, which says it better.
pub(crate) fn require_fit(
    path: &Path,
    place: &Path,
    accepted: Option<&str>,
    thorough: bool,
) -> Result<()> {
    let refused = |why: String| Err(StoreError::Place { path: path.to_owned(), why });
    if let Some((_, _, names)) = identity(place)
        && names > 1
        && place.is_file()
    {
        return refused(format!("the database has {names} names (hard links)"));
    }
    let Ok(file_system) = FileSystem::of(place) else { return Ok(()) };
    if file_system.fitness == Fitness::Shared && accepted != Some(file_system.name) {
        let name = file_system.name;
        return refused(format!("{name} is a network or shared file system, unfit for a log"));
    }
    if thorough || file_system.fitness == Fitness::Unknown {
        // A place where no file can be made is told by the open.
        if let Ok(Some(wrong)) = trial::trial(place) {
            return refused(wrong.to_owned());
        }
    }
    Ok(())
}

/// Which file a path leads to: device, inode, and how many names it has.
type Identity = (u64, u64, u64);

/// How long ago a file must have changed so that a further change has another time, where times
/// come in ticks: those are of 10 ms at most.
const SETTLED_AFTER: Duration = Duration::from_millis(50);

/// A database and its log and index, as they were when they were opened.
#[derive(Debug)]
pub(crate) struct Files {
    parts: [(PathBuf, Option<Identity>); 3],
    /// When all names were looked at last; `None`: not since they were opened.
    looked: Cell<Option<Instant>>,
    /// SQLite's own descriptor of the database.
    descriptor: Option<Descriptor>,
    time_of_change: TimeOfChange,
    /// The time of the last change that the file's name was asked after.
    asked_after: Cell<Option<(i64, i64)>>,
}

impl Files {
    /// Looks where the names lead. With a descriptor of SQLite's of the database a commit need not
    /// walk along the path each time.
    pub(crate) fn look(place: &Path, descriptor: Option<Descriptor>) -> Self {
        let part = |ending| {
            let path = beside(place, ending);
            let identity = identity(&path);
            (path, identity)
        };
        let file_system = FileSystem::of(place);
        Self {
            parts: [part(""), part("-wal"), part("-shm")],
            looked: Cell::new(None),
            descriptor,
            time_of_change: file_system.map_or(TimeOfChange::Unknown, FileSystem::time_of_change),
            asked_after: Cell::new(None),
        }
    }

    /// Goes on only if every name still leads to the same file, and no other name does.
    ///
    /// A commit into a file that has no name, or whose log has none, is gone when the last process
    /// that has it open ends; and whoever opens the name next works on another file. The database
    /// is looked at each time, which is one system call: whether its name still leads to it is
    /// asked when anything about the file has changed since the last time. The names of the log
    /// and its index, the number of names, and the directories above are looked at when `every`
    /// has passed since the last look.
    pub(crate) fn require_same(
        &self,
        conn: &Connection,
        database: &Path,
        every: Duration,
    ) -> Result<()> {
        if self.looked.get().is_none_or(|looked| looked.elapsed() >= every) {
            self.require_same_names()?;
            self.looked.set(Some(Instant::now()));
        }
        let stat = self.descriptor.and_then(Descriptor::stat);
        if let Some(stat) = stat {
            if Some(stat.identity) != self.parts[0].1 {
                self.require_same_names()?;
            } else if Some(stat.changed) == self.asked_after.get() {
                return Ok(());
            }
        }
        require_unmoved(conn, database)?;
        let tells = |changed: &(i64, i64)| match self.time_of_change {
            TimeOfChange::Exact => true,
            TimeOfChange::Ticks => is_settled(*changed),
            TimeOfChange::Unknown => false,
        };
        self.asked_after.set(stat.map(|stat| stat.changed).filter(tells));
        Ok(())
    }

    fn require_same_names(&self) -> Result<()> {
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
        Ok(())
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

/// Whether a change now would have another time than that one, in ticks.
fn is_settled((seconds, nanoseconds): (i64, i64)) -> bool {
    let changed = u64::try_from(seconds).unwrap_or(0).saturating_mul(1000)
        + u64::try_from(nanoseconds / 1_000_000).unwrap_or(0);
    let changed = SystemTime::UNIX_EPOCH + Duration::from_millis(changed);
    SystemTime::now().duration_since(changed).is_ok_and(|age| age >= SETTLED_AFTER)
}

fn identity(path: &Path) -> Option<Identity> {
    let file = fs::symlink_metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.nlink()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_is_followed_and_a_second_name_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap().join("any.db");
        fs::write(&real, b"").unwrap();
        let link = dir.path().join("link.db");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert_eq!(resolve(&link).unwrap(), real);
        require_fit(&link, &real, None, true).unwrap();
        fs::hard_link(&real, dir.path().join("second.db")).unwrap();
        let error = require_fit(&link, &real, None, false).unwrap_err();
        assert!(error.to_string().contains("2 names"), "{error}");
    }

    #[test]
    fn file_that_is_not_there_yet_has_the_place_of_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let place = resolve(&dir.path().join("not/../any.db"));
        assert!(place.is_err(), "its directory is not there: {place:?}");
        let place = resolve(&dir.path().join("any.db")).unwrap();
        assert_eq!(place, dir.path().canonicalize().unwrap().join("any.db"));
    }
}
