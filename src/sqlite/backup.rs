//! Verified copies of a database, made while others write, and putting one back.
//!
//! A copy is made by SQLite's own backup interface, so it is of one moment whatever is written
//! meanwhile. It is verified before it gets its name: structure, foreign keys, chain. What is
//! called a backup here has been read whole once, and file and directory are on the disk.
//!
//! The name says when: `board.db.20261124T101500.123Z.backup`, the time of the wall clock in UTC.
//! Rotation takes the oldest ones away, and never the newest.
//!
//! In: an open database, a directory. Out: a [`Backup`]. Not here: what to do with a damaged
//! database, which is `recover`'s work.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::backup::{Backup as Copying, StepResult};
use rusqlite::{Connection, OpenFlags};
use serde::Serialize;

use crate::error::{Result, StoreError};
use crate::options::Options;
use crate::sqlite::anchor::{Anchor, AnchorFile};
use crate::sqlite::backoff::Backoff;
use crate::sqlite::chain::{self, Head, Ledger};
use crate::sqlite::database::Database;
use crate::sqlite::durability::Durability;
use crate::sqlite::place;
use crate::sqlite::quarantine::{self, sync_directory};
use crate::sqlite::recover::swap;
use crate::sqlite::sidecar::{Hold, LockFile, Part, beside};
use crate::sqlite::verify::{self, Depth, Report};

const ENDING: &str = ".backup";
/// Of a copy that is being made; the number of its process follows.
const UNFINISHED: &str = ".unfinished-";
/// How long a copy must not have been written to before it is taken for abandoned: the directory
/// may be shared with machines whose processes are not seen from here.
const ABANDONED_AFTER: Duration = Duration::from_hours(1);
/// How many pages are copied between two looks at what others do.
const PAGES_A_STEP: i32 = 1000;

/// A backup that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Backup {
    /// The file.
    pub path: PathBuf,
    /// How long it is.
    pub bytes: u64,
    /// The newest commit in it; `None`: its schema keeps no chain.
    pub newest: Option<Head>,
    /// What was looked at.
    pub verified: Report,
    /// The older backups that were taken away.
    pub removed: Vec<PathBuf>,
}

/// Which old backups to keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    /// At most so many, the new one included; `None`: any number. 0 is as 1.
    pub keep: Option<usize>,
    /// None that is older; `None`: of any age. The newest stays in any case.
    pub max_age: Option<Duration>,
}

impl Database {
    /// Makes a verified backup of the database in `directory`.
    ///
    /// # Errors
    ///
    /// - [`StoreError::Corrupt`] or [`StoreError::Quarantined`]: the copy is not sound, so the
    ///   database is not. No backup was made, and none was taken away.
    /// - [`StoreError::Beside`]: the directory cannot be written to.
    /// - [`StoreError::Busy`]: a writer kept the database for the whole of the patience.
    pub fn backup(&self, directory: &Path, rotation: Rotation) -> Result<Backup> {
        self.usable()?;
        let failed = |source| beside_error(directory, "write the backup", source);
        let stem = stem(self.place());
        remove_abandoned(directory, &stem).map_err(failed)?;
        let unfinished = directory.join(format!("{stem}{UNFINISHED}{}", std::process::id()));
        let made = self.copy_to(&unfinished).and_then(|(newest, verified)| {
            let name = format!("{stem}.{}{ENDING}", utc(SystemTime::now()));
            let path = directory.join(name);
            fs::rename(&unfinished, &path).map_err(failed)?;
            sync_directory(&path).map_err(failed)?;
            let bytes = fs::metadata(&path).map_err(failed)?.len();
            Ok(Backup { path, bytes, newest, verified, removed: Vec::new() })
        });
        if made.is_err() {
            swap::remove_copy(&unfinished).ok();
        }
        let mut made = made?;
        made.removed = rotate(directory, &stem, &made.path, rotation).map_err(failed)?;
        Ok(made)
    }

    fn copy_to(&self, path: &Path) -> Result<(Option<Head>, Report)> {
        let failed = |source| self.refused(source, "copy the database");
        // A copy that was left half-done by this process, or one of its number.
        swap::remove_copy(path).map_err(|source| beside_error(path, "write the backup", source))?;
        let mut copy = Connection::open(path).map_err(failed)?;
        self.copy_pages(&mut copy)?;
        let ledger = self.ledger();
        let verified = verify::look(&copy, ledger, Depth::Full).map_err(failed)?;
        if let Some(reason) = verified.first() {
            return Err(self.damaged(&format!("found by a backup: {reason}")));
        }
        let newest = ledger.map(|ledger| chain::newest(&copy, ledger)).transpose();
        let newest = newest.map_err(failed)?;
        // One file, which needs no log beside it to be read.
        copy.pragma_update(None, "journal_mode", "delete").map_err(failed)?;
        copy.close().map_err(|(_, source)| failed(source))?;
        fs::File::open(path)
            .and_then(|file| file.sync_all())
            .map_err(|source| beside_error(path, "write the backup", source))?;
        Ok((newest, verified))
    }

    fn copy_pages(&self, copy: &mut Connection) -> Result<()> {
        let failed = |source| self.refused(source, "copy the database");
        // A snapshot held for as long keeps a writer from making the copy begin again.
        let _snapshot = self.connection().unchecked_transaction().map_err(failed)?;
        let seen = "SELECT count(*) FROM sqlite_schema";
        self.connection().query_row(seen, [], |_| Ok(())).map_err(failed)?;
        let copying = Copying::new(self.connection(), copy).map_err(failed)?;
        let mut backoff = Backoff::new(std::time::Instant::now(), self.patience());
        loop {
            match copying.step(PAGES_A_STEP).map_err(failed)? {
                StepResult::Done => return Ok(()),
                StepResult::More => {}
                _ if backoff.pause() => {}
                _ => return Err(StoreError::Busy { waited: self.patience() }),
            }
        }
    }
}

/// Puts a backup in the place of the database at `path`, which may be there or not, sound or not.
///
/// The backup is verified first; what lies at the place is kept in the quarantine; and the anchor
/// is made anew, so that going back to an older state on purpose is no alarm later.
///
/// # Errors
///
/// - [`StoreError::Busy`]: somebody has the database open.
/// - [`StoreError::Corrupt`]: the backup is not sound. Nothing was changed.
/// - [`StoreError::Open`]: there is no such backup.
/// - [`StoreError::Beside`]: a file cannot be written, or there is no room for the old one.
pub fn restore(
    path: &Path,
    backup: &Path,
    ledger: Option<&Ledger>,
    options: &Options,
) -> Result<Restored> {
    let place = place::resolve(path).map_err(|source| beside_error(path, "restore", source))?;
    let failed = |source| beside_error(&place, "restore the database", source);
    let lock = LockFile::open(&place).map_err(failed)?;
    if !lock.wait(Part::Use, Hold::Exclusive, options.busy_timeout).map_err(failed)? {
        return Err(StoreError::Busy { waited: options.busy_timeout });
    }
    let copy = beside(&place, "-restore-unfinished");
    let (newest, verified) = check_backup(backup, &copy, ledger)?;
    let kept = if place.exists() {
        let reason = "a backup takes its place";
        let notice = quarantine::quarantine(&place, reason, options.quarantine_bytes);
        let kept = notice.map_err(failed)?.copy;
        if kept.is_none() {
            swap::remove_copy(&copy).map_err(failed)?;
            let error = io::Error::other("there is no room to keep the database that is there");
            return Err(failed(error));
        }
        kept
    } else {
        None
    };
    swap::replace(&place, &copy).map_err(failed)?;
    let record = newest.filter(|head| head.seq > 0);
    let record = record.map(|head| Anchor { head, durability: Durability::Power });
    AnchorFile::open(&place).and_then(|file| file.reset(record.as_ref())).map_err(failed)?;
    quarantine::lift(&place).map_err(failed)?;
    lock.mark(true).map_err(failed)?;
    sync_directory(&place).map_err(failed)?;
    Ok(Restored { newest, verified, kept })
}

/// A backup that was put back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// The newest commit of the database now; `None`: its schema keeps no chain.
    pub newest: Option<Head>,
    /// What the backup was found to be.
    pub verified: Report,
    /// Where the database is kept that was there before.
    pub kept: Option<PathBuf>,
}

/// Copies the backup to `copy` and verifies it there.
fn check_backup(
    backup: &Path,
    copy: &Path,
    ledger: Option<&Ledger>,
) -> Result<(Option<Head>, Report)> {
    let corrupt = |source| StoreError::refused(source, "read the backup", backup, Duration::ZERO);
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => StoreError::Open {
            path: backup.to_owned(),
            source: rusqlite::Error::InvalidPath(backup.to_owned()),
        },
        _ => beside_error(backup, "read the backup", source),
    };
    // A restore that was killed may have left another.
    swap::remove_copy(copy).map_err(failed)?;
    fs::copy(backup, copy).map_err(failed)?;
    let look = || -> rusqlite::Result<(Option<Head>, Report)> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(copy, flags)?;
        let report = verify::look(&conn, ledger, Depth::Full)?;
        let newest = ledger.map(|ledger| chain::newest(&conn, ledger)).transpose()?;
        conn.pragma_update(None, "journal_mode", "wal")?;
        conn.close().map_err(|(_, error)| error)?;
        Ok((newest, report))
    };
    let (newest, report) = look().map_err(corrupt).inspect_err(|_| {
        swap::remove_copy(copy).ok();
    })?;
    if let Some(reason) = report.first() {
        swap::remove_copy(copy).map_err(failed)?;
        return Err(corrupt(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT),
            Some(reason.to_owned()),
        )));
    }
    Ok((newest, report))
}

/// The backups of that database, the newest first.
pub fn backups(directory: &Path, database: &Path) -> io::Result<Vec<PathBuf>> {
    let prefix = format!("{}.", stem(database));
    let mut found: Vec<PathBuf> = fs::read_dir(directory)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&prefix) && name.ends_with(ENDING)
        })
        .collect();
    // The names are times, so their order is the order of making.
    found.sort();
    found.reverse();
    Ok(found)
}

/// Takes away what killed processes have left of copies that they were making.
fn remove_abandoned(directory: &Path, stem: &str) -> io::Result<()> {
    let prefix = format!("{stem}{UNFINISHED}");
    for entry in fs::read_dir(directory)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // A name with more behind the number lies beside a copy, and goes with it.
        let Some(pid) = name.strip_prefix(&prefix).and_then(|pid| pid.parse::<u32>().ok()) else {
            continue;
        };
        let written = entry.metadata().and_then(|file| file.modified());
        let idle = written.is_ok_and(|at| at.elapsed().is_ok_and(|for_| for_ > ABANDONED_AFTER));
        if idle && !Path::new("/proc").join(pid.to_string()).exists() {
            swap::remove_copy(&entry.path())?;
        }
    }
    Ok(())
}

fn rotate(
    directory: &Path,
    stem: &str,
    newest: &Path,
    rotation: Rotation,
) -> io::Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    let oldest = rotation.max_age.and_then(|age| SystemTime::now().checked_sub(age)).map(utc);
    let all = backups(directory, Path::new(stem))?;
    for (index, path) in all.into_iter().enumerate() {
        let time = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let time = time[stem.len() + 1..].trim_end_matches(ENDING).to_owned();
        let many = rotation.keep.is_some_and(|keep| index >= keep.max(1));
        let old = oldest.as_ref().is_some_and(|oldest| time < *oldest);
        if (many || old) && path != newest {
            fs::remove_file(&path)?;
            removed.push(path);
        }
    }
    Ok(removed)
}

fn stem(database: &Path) -> String {
    database.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn beside_error(path: &Path, during: &'static str, source: io::Error) -> StoreError {
    StoreError::Beside { during, path: path.to_owned(), source }
}

/// A time in UTC, to the millisecond, in the form in which the order of texts is that of times.
fn utc(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // From days to a date: Howard Hinnant, "chrono-compatible low-level date algorithms".
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let millis = since.subsec_millis();
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::fixture::{LEDGER, Place};

    fn seconds(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn time_is_told_as_the_calendar_has_it() {
        assert_eq!(utc(UNIX_EPOCH), "19700101T000000.000Z");
        assert_eq!(utc(seconds(951_826_154)), "20000229T120914.000Z");
        assert_eq!(utc(seconds(1_795_515_300)), "20261124T101500.000Z");
        assert_eq!(utc(seconds(4_107_542_399)), "21000228T235959.000Z");
    }

    #[test]
    fn backup_made_under_a_writer_is_whole_and_goes_on_from_its_moment() {
        let place = Place::new();
        let (mut writer, reader) = (place.open(), place.open());
        place.append(&mut writer, 3000);
        let dir = tempfile::tempdir().unwrap();
        let path = place.path();
        let stop = std::sync::atomic::AtomicBool::new(false);
        let backup = std::thread::scope(|scope| {
            let place = &place;
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    place.append(&mut writer, 2);
                }
            });
            let backup = reader.backup(dir.path(), Rotation::default());
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            backup.unwrap()
        });
        assert!(backup.verified.is_sound(), "{:?}", backup.verified);
        assert_eq!(fs::metadata(&backup.path).unwrap().len(), backup.bytes);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        drop((writer, reader));
        let restored = restore(&path, &backup.path, Some(&LEDGER), &Place::options()).unwrap();
        assert_eq!(restored.newest, backup.newest);
        assert!(restored.kept.is_some());
        let mut database = place.open();
        assert!(database.verify(Depth::Full).unwrap().is_sound());
        let next = place.append(&mut database, 1);
        assert_eq!(next.seq, backup.newest.unwrap().seq + 1);
    }

    #[test]
    fn old_backups_go_by_number_and_by_age_and_the_newest_stays() {
        let place = Place::new();
        let mut database = place.open();
        place.append(&mut database, 1);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("other.db.20200101T000000.000Z.backup"), "kept").unwrap();
        fs::write(dir.path().join("any.db.20200101T000000.000Z.backup"), "old").unwrap();
        let week = Rotation { max_age: Some(Duration::from_hours(168)), ..Rotation::default() };
        let first = database.backup(dir.path(), week).unwrap();
        assert_eq!(first.removed.len(), 1, "{:?}", first.removed);
        let two = Rotation { keep: Some(2), ..Rotation::default() };
        let second = database.backup(dir.path(), two).unwrap();
        let third = database.backup(dir.path(), two).unwrap();
        assert_eq!(third.removed, [first.path]);
        let none = Rotation { keep: Some(0), max_age: Some(Duration::ZERO) };
        let fourth = database.backup(dir.path(), none).unwrap();
        assert_eq!(fourth.removed.len(), 2);
        assert!(!second.path.exists() && fourth.path.exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn database_that_is_not_sound_makes_no_backup_and_takes_none_away() {
        let place = Place::new();
        let mut database = place.open();
        place.append(&mut database, 4);
        let dir = tempfile::tempdir().unwrap();
        let good = database.backup(dir.path(), Rotation::default()).unwrap();
        database.connection().execute_batch("UPDATE notes SET text = 'x' WHERE id = 2").unwrap();
        let one = Rotation { keep: Some(1), ..Rotation::default() };
        let error = database.backup(dir.path(), one).unwrap_err();
        assert!(matches!(error, StoreError::Quarantined { .. }), "{error:?}");
        assert!(good.path.exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn backup_that_is_damaged_or_not_there_is_not_put_back() {
        let place = Place::new();
        let mut database = place.open();
        place.append(&mut database, 400);
        let dir = tempfile::tempdir().unwrap();
        let backup = database.backup(dir.path(), Rotation::default()).unwrap();
        database.close().unwrap();
        let before = fs::read(place.path()).unwrap();
        let mut bytes = fs::read(&backup.path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle..middle + 300].fill(0xaa);
        fs::write(&backup.path, bytes).unwrap();
        let put_back = |path: &Path| restore(&place.path(), path, Some(&LEDGER), &Place::options());
        let error = put_back(&backup.path).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
        let error = put_back(&dir.path().join("none")).unwrap_err();
        assert!(matches!(error, StoreError::Open { .. }), "{error:?}");
        assert_eq!(fs::read(place.path()).unwrap(), before);
        drop(place.open());
    }

    #[test]
    fn copies_that_killed_processes_left_are_taken_away_and_others_are_not() {
        let place = Place::new();
        let mut database = place.open();
        place.append(&mut database, 1);
        let dir = tempfile::tempdir().unwrap();
        let long_ago = SystemTime::now() - 2 * ABANDONED_AFTER;
        let lay = |pid: u32, modified| {
            let path = dir.path().join(format!("any.db{UNFINISHED}{pid}"));
            fs::write(beside(&path, "-journal"), "x").unwrap();
            fs::write(&path, "x").unwrap();
            fs::File::options().append(true).open(&path).unwrap().set_modified(modified).unwrap();
            path
        };
        // No process has a number above the kernel's limit of 2^22.
        let gone = lay(5_000_000, long_ago);
        let recent = lay(5_000_001, SystemTime::now());
        let lives = lay(std::os::unix::process::parent_id(), long_ago);
        database.backup(dir.path(), Rotation::default()).unwrap();
        assert!(!gone.exists() && !beside(&gone, "-journal").exists());
        assert!(recent.exists() && lives.exists());
    }

    #[test]
    fn journal_that_a_killed_restore_left_is_not_taken_for_that_of_the_next() {
        let place = Place::new();
        let mut database = place.open();
        place.append(&mut database, 40);
        let dir = tempfile::tempdir().unwrap();
        let backup = database.backup(dir.path(), Rotation::default()).unwrap();
        database.close().unwrap();
        // As SQLite leaves it: the pages of another file, to be put back into this one.
        let other = dir.path().join("other.db");
        let conn = Connection::open(&other).unwrap();
        let fill = "CREATE TABLE t (x); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 \
             FROM n WHERE i < 3000) INSERT INTO t SELECT i || 'xxxxxxxxxxxxxxxxxxxx' FROM n";
        conn.execute_batch(fill).unwrap();
        conn.execute_batch("PRAGMA cache_size = 2; BEGIN; UPDATE t SET x = 'y' || x").unwrap();
        let copy = beside(&place.path(), "-restore-unfinished");
        fs::copy(beside(&other, "-journal"), beside(&copy, "-journal")).unwrap();
        drop(conn);
        let restored = restore(&place.path(), &backup.path, Some(&LEDGER), &Place::options());
        assert_eq!(restored.unwrap().newest, backup.newest);
        assert!(place.open().verify(Depth::Full).unwrap().is_sound());
    }

    #[test]
    fn database_that_is_open_is_not_replaced() {
        let place = Place::new();
        let mut database = place.open();
        place.append(&mut database, 1);
        let dir = tempfile::tempdir().unwrap();
        let backup = database.backup(dir.path(), Rotation::default()).unwrap();
        let error = restore(&place.path(), &backup.path, Some(&LEDGER), &Place::options());
        assert!(matches!(error, Err(StoreError::Busy { .. })), "{error:?}");
        place.append(&mut database, 1);
    }
}
