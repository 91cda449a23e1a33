//! Keeping the evidence of damage, once, and keeping everybody off the damaged file.
//!
//! The first process that meets damage copies database, log and index to a directory beside them
//! whose name is made of their content's digest, then lays a notice at the place. Whoever opens
//! the database finds the notice and is refused, until a recovery has taken it away. So the
//! damaged file is never written again, and a crowd that meets the damage makes one copy: they
//! come one after the other, by a lock, and all but the first find the notice.
//!
//! The copies of one database have a budget of bytes. What does not fit is not copied, and the
//! notice says so: the damaged files themselves stay where they are in either case. A copy that
//! fails half-way, as on a full disk, is taken away again.
//!
//! The files are read by a process that may have them open in SQLite, and closing them drops the
//! POSIX locks of that process. So it is done only by a connection that is not used after it, and
//! `-shm` last. Nothing here is called for a lock that could not be had, a full disk or an I/O
//! error: those damage nothing.
//!
//! In: the path of a database and a reason. Out: a [`Notice`]. Not here: what is damage, which is
//! `verify`'s and the errors' matter, and how to get over it, which is `recover`'s.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Result, StoreError};
use crate::sqlite::sidecar::{Hold, LockFile, Part, beside};

/// How long others are waited for that are making the copy.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where a copy is while it is being made.
const UNFINISHED: &str = "-quarantine-unfinished";

/// What is copied, in this order.
const PARTS: [&str; 3] = ["", "-wal", "-shm"];

/// What lies at a place whose database was found damaged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// What was found.
    pub reason: String,
    /// The directory with the copy; `None`: the budget or the disk had no room for it.
    pub copy: Option<PathBuf>,
    /// What to do next.
    pub next_step: String,
}

/// Goes on only if nobody found the database at that place damaged.
pub(crate) fn refuse(path: &Path, place: &Path) -> Result<()> {
    match notice(place) {
        None => Ok(()),
        Some(notice) => Err(StoreError::Quarantined {
            path: path.to_owned(),
            reason: notice.reason,
            copy: notice.copy.unwrap_or_else(|| place.to_owned()),
        }),
    }
}

/// The notice at that place. One that cannot be read is one nevertheless.
///
/// The copy is looked for beside the database, wherever both were moved since.
pub(crate) fn notice(place: &Path) -> Option<Notice> {
    let text = match fs::read(notice_path(place)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(_) => Vec::new(),
    };
    let notice = serde_json::from_slice(&text).unwrap_or_else(|_| Notice {
        reason: "its notice cannot be read".to_owned(),
        copy: None,
        next_step: NEXT_STEP.to_owned(),
    });
    let here = |copy: PathBuf| Some(place.parent()?.join(copy.file_name()?));
    Some(Notice { copy: notice.copy.and_then(here), ..notice })
}

/// Whether the evidence that the notice names is there.
fn has_copy(notice: &Notice, place: &Path) -> bool {
    let name = place.file_name().unwrap_or_default();
    notice.copy.as_ref().is_some_and(|copy| copy.join(name).exists())
}

const NEXT_STEP: &str = "hardboard recover --dry-run";

fn notice_path(place: &Path) -> PathBuf {
    beside(place, "-quarantined")
}

/// Copies the damaged files, unless they are copied already, and lays the notice.
///
/// `budget_bytes` is what all copies of this database may take together. A copy for which there was
/// no room before is tried again: a repair needs one, and room can be made.
pub(crate) fn quarantine(place: &Path, reason: &str, budget_bytes: u64) -> io::Result<Notice> {
    let lock = LockFile::open(place)?;
    if !lock.wait(Part::Quarantine, Hold::Exclusive, PATIENCE)? {
        // Whoever makes the copy lays the notice; without it this place is refused too.
        return Ok(told(reason, None));
    }
    let before = notice(place);
    if let Some(notice) = before.as_ref().filter(|notice| has_copy(notice, place)) {
        return Ok(notice.clone());
    }
    let copy = keep(place, budget_bytes).unwrap_or(None);
    let notice = match before {
        Some(before) if copy.is_none() => return Ok(Notice { copy, ..before }),
        Some(before) => Notice { copy, ..before },
        None => told(reason, copy),
    };
    write_whole(&notice_path(place), &serde_json::to_vec_pretty(&notice)?)?;
    Ok(notice)
}

/// Takes the notice away, for a database that was made sound. The copies stay.
pub(crate) fn lift(place: &Path) -> io::Result<()> {
    match fs::remove_file(notice_path(place)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn told(reason: &str, copy: Option<PathBuf>) -> Notice {
    Notice { reason: reason.to_owned(), copy, next_step: NEXT_STEP.to_owned() }
}

/// Makes the copy. `None`: there is no room for it.
fn keep(place: &Path, budget_bytes: u64) -> io::Result<Option<PathBuf>> {
    let unfinished = beside(place, UNFINISHED);
    // Of one who was killed while he made it: it is no evidence, and must not count.
    fs::remove_dir_all(&unfinished).or_else(ignore_missing)?;
    let sizes = PARTS.map(|part| fs::metadata(beside(place, part)).map_or(0, |file| file.len()));
    let needed: u64 = sizes.iter().sum();
    if needed.saturating_add(kept_bytes(place)) > budget_bytes {
        return Ok(None);
    }
    fs::create_dir(&unfinished)?;
    let kept = copy_parts(place, &unfinished, needed).and_then(|digest| {
        let digest = digest.to_hex();
        let kept = beside(place, &format!("-quarantine-{}", &digest.as_str()[..16]));
        if kept.exists() {
            fs::remove_dir_all(&unfinished)?;
        } else {
            fs::rename(&unfinished, &kept)?;
            sync_directory(&kept)?;
        }
        Ok(kept)
    });
    if kept.is_err() {
        fs::remove_dir_all(&unfinished).or_else(ignore_missing)?;
    }
    kept.map(Some)
}

/// Copies at most `limit` bytes, whatever keeps changing the files, and gives their digest.
fn copy_parts(place: &Path, to: &Path, limit: u64) -> io::Result<blake3::Hash> {
    let mut digest = blake3::Hasher::new();
    let name = place.file_name().unwrap_or_default();
    let mut left = limit;
    for part in PARTS {
        let from = match File::open(beside(place, part)) {
            Ok(from) => from,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let mut from = from.take(left);
        let mut copy = File::create_new(beside(&to.join(name), part))?;
        let mut buffer = vec![0; 1 << 16];
        digest.update(part.as_bytes());
        loop {
            let bytes = from.read(&mut buffer)?;
            if bytes == 0 {
                break;
            }
            digest.update(&buffer[..bytes]);
            copy.write_all(&buffer[..bytes])?;
            left = left.saturating_sub(bytes as u64);
        }
        copy.sync_all()?;
    }
    sync_directory(&to.join(name))?;
    Ok(digest.finalize())
}

/// The bytes of all copies that are kept of this database.
fn kept_bytes(place: &Path) -> u64 {
    let prefix = beside(place, "-quarantine-");
    let (Some(directory), Some(prefix)) = (place.parent(), prefix.file_name()) else { return 0 };
    let prefix = prefix.to_string_lossy().into_owned();
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .filter_map(|entry| fs::read_dir(entry.path()).ok())
        .flat_map(Iterator::flatten)
        .filter_map(|file| file.metadata().ok())
        .map(|file| file.len())
        .sum()
}

/// Writes a file so that it is there whole or not at all, and on the disk when this returns.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = beside(path, "-unfinished");
    let write = || {
        let mut file = File::create(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    };
    write().inspect_err(|_| {
        fs::remove_file(&unfinished).ok();
    })?;
    sync_directory(path)
}

/// Puts the names in the directory of that file on the disk.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod full_disk;

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("any.db");
        fs::write(&place, vec![7; 5000]).unwrap();
        fs::write(beside(&place, "-wal"), vec![8; 3000]).unwrap();
        (dir, place)
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn damaged_files_are_copied_whole_and_the_place_is_refused_until_it_is_lifted() {
        let (dir, place) = place();
        refuse(&place, &place).unwrap();
        let notice = quarantine(&place, "page 3 is torn", 1 << 20).unwrap();
        let copy = notice.copy.unwrap();
        assert_eq!(fs::read(copy.join("any.db")).unwrap(), vec![7; 5000]);
        assert_eq!(fs::read(copy.join("any.db-wal")).unwrap(), vec![8; 3000]);
        let error = refuse(&place, &place).unwrap_err();
        let StoreError::Quarantined { reason, copy: named, .. } = error else { panic!("{error}") };
        assert_eq!((reason.as_str(), named), ("page 3 is torn", copy.clone()));
        lift(&place).unwrap();
        refuse(&place, &place).unwrap();
        assert!(copy.exists());
        assert_eq!(names(dir.path()).len(), 4, "{:?}", names(dir.path()));
    }

    #[test]
    fn same_content_has_one_copy_and_other_content_one_of_its_own() {
        let (_dir, place) = place();
        let first = quarantine(&place, "a", 1 << 20).unwrap().copy;
        lift(&place).unwrap();
        assert_eq!(quarantine(&place, "b", 1 << 20).unwrap().copy, first);
        lift(&place).unwrap();
        fs::write(&place, vec![9; 5000]).unwrap();
        assert_ne!(quarantine(&place, "c", 1 << 20).unwrap().copy, first);
    }

    #[test]
    fn crowd_that_meets_the_damage_at_once_makes_one_copy() {
        let (dir, place) = place();
        let start = Barrier::new(8);
        let notices: Vec<Notice> = thread::scope(|scope| {
            let meet = |number: u8| {
                let (place, start) = (&place, &start);
                scope.spawn(move || {
                    start.wait();
                    // A mutator beside them changes the file all the time.
                    fs::write(place, vec![number; 5000]).unwrap();
                    quarantine(place, &format!("found by {number}"), 1 << 20).unwrap()
                })
            };
            let threads: Vec<_> = (0..8).map(meet).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(notices.windows(2).all(|pair| pair[0] == pair[1]), "{notices:?}");
        let kept = names(dir.path()).iter().filter(|name| name.contains("-quarantine-")).count();
        assert_eq!(kept, 1);
    }

    #[test]
    fn budget_holds_and_the_place_is_refused_without_a_copy() {
        let (dir, place) = place();
        let notice = quarantine(&place, "torn", 7999).unwrap();
        assert_eq!(notice.copy, None);
        assert!(refuse(&place, &place).is_err());
        assert!(!names(dir.path()).iter().any(|name| name.contains("-quarantine-")));
        lift(&place).unwrap();
        for number in 0..20_u8 {
            fs::write(&place, vec![number; 5000]).unwrap();
            quarantine(&place, "torn", 20_000).unwrap();
            lift(&place).unwrap();
        }
        assert_eq!(kept_bytes(&place), 16_000);
    }

    #[test]
    fn copy_for_which_there_was_no_room_is_made_once_there_is() {
        let (_dir, place) = place();
        assert_eq!(quarantine(&place, "torn", 7999).unwrap().copy, None);
        assert_eq!(quarantine(&place, "again", 7999).unwrap().copy, None);
        let notice = quarantine(&place, "again", 8000).unwrap();
        assert_eq!(notice.reason, "torn", "what was found first");
        fs::remove_dir_all(notice.copy.unwrap()).unwrap();
        let notice = quarantine(&place, "again", 8000).unwrap();
        assert!(notice.copy.unwrap().join("any.db").exists());
    }

    #[test]
    fn copy_that_a_kill_cut_short_takes_no_room_from_the_next() {
        let (_dir, place) = place();
        fs::create_dir(beside(&place, UNFINISHED)).unwrap();
        fs::write(beside(&place, UNFINISHED).join("any.db"), vec![7; 5000]).unwrap();
        assert!(quarantine(&place, "torn", 8000).unwrap().copy.is_some());
        assert!(!beside(&place, UNFINISHED).exists());
    }

    #[test]
    fn copy_is_found_where_it_was_moved_to_with_its_database() {
        let (dir, place) = place();
        quarantine(&place, "torn", 1 << 20).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let moved = elsewhere.path().join("all");
        fs::rename(dir.path(), &moved).unwrap();
        let notice = notice(&moved.join("any.db")).unwrap();
        assert!(notice.copy.unwrap().starts_with(&moved));
        fs::create_dir(dir.path()).unwrap();
    }

    #[test]
    fn notice_that_cannot_be_read_refuses_too() {
        let (_dir, place) = place();
        fs::write(notice_path(&place), b"{half of it").unwrap();
        assert!(refuse(&place, &place).is_err());
    }
}
