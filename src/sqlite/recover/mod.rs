//! Getting a damaged database back: the ladder, least destructive first.
//!
//! | rung | what it does | what it is for |
//! |---|---|---|
//! | log | opens a copy of database and `-wal` without the `-shm` | a broken index of the log |
//! | reindex | makes every index of that copy anew | damage in indexes alone |
//! | salvage | reads the tables page by page into a new database | anything else |
//! | backup | adds the rows that only a backup has | what the salvage did not find |
//!
//! Each rung works on copies and is verified: structure, foreign keys, chain, anchor. The first
//! that gives a sound database with every anchored commit is taken; if none does, the one that
//! saves most, and [`Recovery`] says per table what is lost. Numbers without a hole make that
//! countable: a table that has 1 to 900 but for 500 to 520 has lost 21 rows.
//!
//! # The swap
//!
//! Under the exclusive use of the database, in this order, each step on the disk before the next:
//!
//! 1. database, log and index are copied to the quarantine and the notice is laid: from here on
//!    nobody opens the place but a recovery, and a recovery works from that copy;
//! 2. the old log and index are removed, lest the new database find them;
//! 3. the new database takes the name of the old one;
//! 4. the anchor is made anew;
//! 5. the notice is taken away.
//!
//! A recovery that is killed at any point before the last leaves the notice and the copy, and the
//! next one does it all again. The copy is never removed.
//!
//! In: a path, what is [`Known`] of its schema. Out: a [`Recovery`]. It reads and writes files by
//! itself, which is safe since nobody has them open.

mod ladder;
mod pages;
mod rebuild;
mod record;
mod shape;
pub(crate) mod swap;
mod tree;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Result, StoreError};
use crate::options::Options;
use crate::sqlite::anchor::{Anchor, AnchorFile};
use crate::sqlite::chain::{Head, Ledger};
use crate::sqlite::place;
use crate::sqlite::quarantine;
use crate::sqlite::sidecar::{Hold, LockFile, Part, beside};
use crate::sqlite::verify::Report;

/// What is known of a database apart from its file.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Each table, index, view and trigger: its name and the statement that makes it. Empty: only
    /// the file knows.
    pub schema: &'a [(&'a str, &'a str)],
    /// Its `application_id`, for when the header is gone.
    pub application_id: i64,
    /// Its `user_version`, likewise.
    pub user_version: i64,
    /// The chain that it keeps, if it does.
    pub ledger: Option<&'a Ledger>,
    /// How many rows each table must have.
    pub census: &'a [Census],
    /// What makes the rows that were saved refer to rows that are there.
    pub mend: &'a [&'a str],
}

impl Known<'_> {
    /// A database of which nothing is known.
    pub const NOTHING: Self = Self {
        schema: &[],
        application_id: 0,
        user_version: 0,
        ledger: None,
        census: &[],
        mend: &[],
    };
}

/// How many rows a table must have, asked of what was saved of the database.
#[derive(Clone, Copy, Debug)]
pub struct Census {
    /// The table.
    pub table: &'static str,
    /// How many rows there must be; `?1` is the number of the newest anchored commit, or 0. A null
    /// means that it cannot be told.
    pub expected: &'static str,
}

/// How to go about it.
#[derive(Clone, Debug, Default)]
pub struct Request<'a> {
    /// Whether to put the result in the place of the damaged database. Else nothing is changed.
    pub apply: bool,
    /// A backup to take rows from.
    pub backup: Option<&'a Path>,
}

/// The rung that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rung {
    /// The copy with its log was sound as it is.
    Log,
    /// Its indexes were made anew.
    Reindex,
    /// Its rows were read into a new database.
    Salvage,
    /// And rows of a backup were added.
    Backup,
}

/// What became of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Table {
    /// Its name.
    pub table: String,
    /// Rows in the result.
    pub saved: u64,
    /// Rows that are missing; `None`: it cannot be told.
    pub lost: Option<u64>,
    /// Of those that were saved, how many came from the backup.
    pub from_backup: u64,
    /// Pages of it that are not what they must be.
    pub broken_pages: u64,
    /// Entries on its other pages that make no sense, and pages that hide some.
    pub broken_cells: u64,
}

/// What a recovery did, or would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recovery {
    /// The rung that was taken.
    pub rung: Rung,
    /// What the copy with its log was found to be.
    pub before: Report,
    /// What the result was found to be.
    pub after: Report,
    /// The tables of the result.
    pub tables: Vec<Table>,
    /// The newest commit that was anchored, if it is known.
    pub anchored: Option<Anchor>,
    /// The newest commit of the result; `None`: it keeps no chain.
    pub newest: Option<Head>,
    /// Commits after the newest one that was saved, up to the anchored one. They are lost.
    pub commits_lost_at_the_end: u64,
    /// Commits that were saved and cannot be compared with what was written, for the one before
    /// each of them is lost.
    pub commits_unverified: u64,
    /// Where the damaged files are kept; `None`: nothing was changed.
    pub kept: Option<PathBuf>,
    /// Whether the result was put in the place of the damaged database.
    pub applied: bool,
}

impl Recovery {
    /// Whether nothing is known to be missing, and nothing is in doubt.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.commits_lost_at_the_end == 0
            && self.tables.iter().all(|table| match table.lost {
                Some(lost) => lost == 0,
                None => table.broken_pages == 0 && table.broken_cells == 0,
            })
    }

    /// Rows that are known to be missing, in all tables.
    #[must_use]
    pub fn rows_lost(&self) -> u64 {
        self.tables.iter().filter_map(|table| table.lost).sum()
    }
}

/// Why a rung cannot be climbed at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecoverError {
    #[error("a file could not be read or written")]
    Io(#[from] io::Error),
    #[error("SQLite failed")]
    Sqlite(#[from] rusqlite::Error),
}

/// Recovers the database at `path`, or says what that would do.
///
/// # Errors
///
/// - [`StoreError::Busy`]: somebody has the database open.
/// - [`StoreError::Beside`]: there is no room for the copies, or a file cannot be read.
/// - [`StoreError::Open`]: there is no database, and no quarantined copy of one.
/// - [`StoreError::Sqlite`]: no table could be made of what is left.
pub fn recover(
    path: &Path,
    known: &Known<'_>,
    options: &Options,
    request: &Request<'_>,
) -> Result<Recovery> {
    let place = place::resolve(path).map_err(|source| at(path, "find the database", source))?;
    let lock = LockFile::open(&place).map_err(|source| at(&place, "open the lock file", source))?;
    let alone = lock.wait(Part::Use, Hold::Exclusive, options.busy_timeout);
    if !alone.map_err(|source| at(&place, "lock the lock file", source))? {
        return Err(StoreError::Busy { waited: options.busy_timeout });
    }
    let anchor = AnchorFile::open(&place)
        .and_then(|file| file.newest())
        .map_err(|source| at(&place, "read the anchor", source))?;
    let source = source_of(&place, path)?;
    let work = beside(&place, "-recovery-unfinished");
    let climbed = ladder::climb(&source, &work, known, anchor, request.backup);
    let recovered = climbed.map_err(|error| explain(&place, error)).and_then(|climbed| {
        let mut recovery = climbed.recovery;
        if request.apply {
            let kept = swap::apply(&place, &climbed.result, &recovery, known, options);
            recovery.kept = Some(kept.map_err(|error| explain(&place, error))?);
            recovery.applied = true;
        }
        Ok(recovery)
    });
    swap::remove_directory(&work).map_err(|source| at(&work, "remove the copies", source))?;
    recovered
}

/// The files to work from: those of the quarantine if there is a copy, since a recovery that was
/// killed may have changed the others.
fn source_of(place: &Path, path: &Path) -> Result<PathBuf> {
    let copy = quarantine::notice(place).and_then(|notice| notice.copy);
    let source = match (copy, place.file_name()) {
        (Some(copy), Some(name)) if copy.join(name).exists() => copy.join(name),
        _ => place.to_owned(),
    };
    if source.exists() {
        return Ok(source);
    }
    Err(StoreError::Open {
        path: path.to_owned(),
        source: rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN),
            Some("there is no such file, and no copy of it".to_owned()),
        ),
    })
}

fn at(path: &Path, during: &'static str, source: io::Error) -> StoreError {
    StoreError::Beside { during, path: path.to_owned(), source }
}

fn explain(place: &Path, error: RecoverError) -> StoreError {
    match error {
        RecoverError::Io(source) => at(place, "copy the database", source),
        RecoverError::Sqlite(source)
            if source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull) =>
        {
            let full = io::Error::new(io::ErrorKind::StorageFull, source);
            at(place, "copy the database", full)
        }
        RecoverError::Sqlite(source) => StoreError::Sqlite { during: "recover", source },
    }
}
