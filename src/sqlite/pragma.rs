//! The settings of a connection: put into effect, then read back.
//!
//! A setting that is not read back is a wish. `PRAGMA journal_mode = WAL` answers `delete` where
//! shared memory cannot be had, and several others say nothing at all when they are refused.
//!
//! In: a connection and [`Options`]. Out: [`Pragmas`], as the connection itself reports them.
//!
//! | setting              | value        | what it is there for                                   |
//! |----------------------|--------------|--------------------------------------------------------|
//! | `defensive`          | on           | no SQL can write the schema table or the log directly  |
//! | `journal_mode`       | `wal`        | readers and one writer at a time, commits by appending |
//! | `synchronous`        | by option    | what a commit survives, see [`Synchronous`]            |
//! | `wal_autocheckpoint` | by option    | how long the log gets                                  |
//! | `busy_timeout`       | by option    | how long a lock is waited for                          |
//! | `foreign_keys`       | on           | no event or run without its task                       |
//! | `mmap_size`          | 0            | a file cut short by another is an error, not a SIGBUS  |
//! | `trusted_schema`     | off          | a planted view or trigger cannot call unsafe functions |
//! | `cell_size_check`    | on           | damage is noticed when a page is read, not later       |

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::types::FromSql;
use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};

use crate::error::{Result, StoreError};
use crate::options::{Options, Synchronous};
use crate::sqlite::transaction::is_busy;

/// The settings of one connection, as it reports them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is one switch of SQLite, by its name")]
pub struct Pragmas {
    /// The journal mode, in lower case: `wal` on a board.
    pub journal_mode: String,
    /// What an acknowledged commit survives.
    pub synchronous: Synchronous,
    /// Pages in the log after which a commit checkpoints it; 0: never.
    pub wal_autocheckpoint_pages: u32,
    /// How long a lock is waited for.
    pub busy_timeout_ms: u32,
    /// Whether a row may only refer to a row that is there.
    pub foreign_keys: bool,
    /// Bytes of the database that may be mapped into memory.
    pub mmap_size: i64,
    /// Whether the schema may call any function.
    pub trusted_schema: bool,
    /// Whether the cells of a page are checked when it is read.
    pub cell_size_check: bool,
    /// Whether SQL that writes the database's own structures is refused.
    pub defensive: bool,
}

impl Pragmas {
    /// Asks the connection for its settings.
    ///
    /// # Errors
    ///
    /// [`StoreError::PragmaRefused`] if an answer is outside what SQLite documents, else what
    /// SQLite reported while it was asked.
    pub fn read(conn: &Connection) -> Result<Self> {
        let synchronous: i64 = ask(conn, "synchronous")?;
        Ok(Self {
            journal_mode: ask(conn, "journal_mode")?,
            synchronous: Synchronous::from_pragma_number(synchronous).ok_or_else(|| {
                StoreError::PragmaRefused {
                    pragma: "synchronous",
                    wanted: "0 to 3".to_owned(),
                    got: synchronous.to_string(),
                }
            })?,
            wal_autocheckpoint_pages: ask(conn, "wal_autocheckpoint")?,
            busy_timeout_ms: ask(conn, "busy_timeout")?,
            foreign_keys: ask(conn, "foreign_keys")?,
            mmap_size: ask_if_known(conn, "mmap_size")?.unwrap_or(0),
            trusted_schema: ask(conn, "trusted_schema")?,
            cell_size_check: ask(conn, "cell_size_check")?,
            defensive: conn
                .db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE)
                .map_err(|source| failed(conn, "read a setting back", source))?,
        })
    }

    /// The settings that a connection opened with `options` must have.
    pub(crate) fn wanted(options: &Options) -> Self {
        Self {
            journal_mode: "wal".to_owned(),
            synchronous: options.synchronous,
            wal_autocheckpoint_pages: options.wal_autocheckpoint_pages,
            busy_timeout_ms: busy_timeout_ms(options.busy_timeout),
            foreign_keys: true,
            mmap_size: 0,
            trusted_schema: false,
            cell_size_check: true,
            defensive: true,
        }
    }

    /// Name and value of each setting, as SQLite spells the name.
    pub(crate) fn named(&self) -> [(&'static str, String); 9] {
        [
            ("journal_mode", self.journal_mode.clone()),
            ("synchronous", self.synchronous.to_string()),
            ("wal_autocheckpoint", self.wal_autocheckpoint_pages.to_string()),
            ("busy_timeout", self.busy_timeout_ms.to_string()),
            ("foreign_keys", on_or_off(self.foreign_keys)),
            ("mmap_size", self.mmap_size.to_string()),
            ("trusted_schema", on_or_off(self.trusted_schema)),
            ("cell_size_check", on_or_off(self.cell_size_check)),
            ("defensive", on_or_off(self.defensive)),
        ]
    }
}

/// Puts the one policy into effect on `conn`, then reads all of it back.
///
/// Turning a database into WAL mode writes to it, so find out first whether it is yours.
///
/// # Errors
///
/// [`StoreError::PragmaRefused`] for the first setting that is not what was asked for; else what
/// SQLite reported. Some of the settings may then be in effect: close the connection.
pub fn apply(conn: &Connection, path: &Path, options: &Options) -> Result<()> {
    let started = Instant::now();
    let wanted = Pragmas::wanted(options);
    set(conn, &wanted).map_err(|source| {
        StoreError::refused(source, "change a setting", path, started.elapsed())
    })?;
    let got = Pragmas::read(conn)?;
    for ((pragma, wanted), (_, got)) in wanted.named().into_iter().zip(got.named()) {
        if wanted != got {
            return Err(StoreError::PragmaRefused { pragma, wanted, got });
        }
    }
    Ok(())
}

/// Sets what writes nothing to the database, so that it can be looked at safely and with patience
/// before it is known whose it is.
pub(crate) fn guard(conn: &Connection, path: &Path, options: &Options) -> Result<()> {
    set_guards(conn, &Pragmas::wanted(options))
        .map_err(|source| StoreError::refused(source, "change a setting", path, Duration::ZERO))
}

fn set(conn: &Connection, wanted: &Pragmas) -> rusqlite::Result<()> {
    set_guards(conn, wanted)?;
    // A close never copies the log and never removes it: evidence stays, and no other process
    // finds the log gone under its hands. The last one to close makes the checkpoint itself.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    conn.pragma_update(None, "foreign_keys", wanted.foreign_keys)?;
    set_journal_mode(conn, wanted)?;
    conn.pragma_update(None, "synchronous", wanted.synchronous.as_str())?;
    conn.pragma_update(None, "wal_autocheckpoint", wanted.wal_autocheckpoint_pages)
}

fn set_guards(conn: &Connection, wanted: &Pragmas) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, wanted.defensive)?;
    conn.pragma_update(None, "busy_timeout", wanted.busy_timeout_ms)?;
    conn.pragma_update(None, "trusted_schema", wanted.trusted_schema)?;
    conn.pragma_update(None, "cell_size_check", wanted.cell_size_check)?;
    conn.pragma_update(None, "mmap_size", wanted.mmap_size)
}

/// The change to WAL mode needs the database for itself, and SQLite gives it up without any wait if
/// another connection is about to do the same. So the wait is for the write lock, which the other
/// one gives back when it is through.
fn set_journal_mode(conn: &Connection, wanted: &Pragmas) -> rusqlite::Result<()> {
    let started = Instant::now();
    let patience = Duration::from_millis(wanted.busy_timeout_ms.into());
    loop {
        let changed = conn.pragma_update(None, "journal_mode", wanted.journal_mode.as_str());
        match changed {
            Err(error) if is_busy(&error) && started.elapsed() < patience => {
                conn.execute_batch("BEGIN IMMEDIATE; ROLLBACK")?;
                thread::yield_now();
            }
            settled => return settled,
        }
    }
}

/// Whole milliseconds, rounded up; what is too long for SQLite stays too long and is refused when
/// it is read back.
pub(crate) fn busy_timeout_ms(timeout: Duration) -> u32 {
    u32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}

fn ask<T: FromSql>(conn: &Connection, pragma: &'static str) -> Result<T> {
    conn.pragma_query_value(None, pragma, |row| row.get(0))
        .map_err(|source| failed(conn, "read a setting back", source))
}

/// As [`ask`], for a setting that not every database answers for.
fn ask_if_known<T: FromSql>(conn: &Connection, pragma: &'static str) -> Result<Option<T>> {
    conn.pragma_query_value(None, pragma, |row| row.get(0))
        .optional()
        .map_err(|source| failed(conn, "read a setting back", source))
}

fn failed(conn: &Connection, during: &'static str, source: rusqlite::Error) -> StoreError {
    let path = Path::new(conn.path().unwrap_or_default());
    StoreError::refused(source, during, path, Duration::ZERO)
}

fn on_or_off(value: bool) -> String {
    if value { "on" } else { "off" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::open::open;

    #[track_caller]
    fn check_refused(error: StoreError, name: &str, values: (&str, &str)) {
        let StoreError::PragmaRefused { pragma, wanted, got } = error else { panic!("{error:?}") };
        assert_eq!((pragma, (wanted.as_str(), got.as_str())), (name, values));
    }

    #[test]
    fn database_in_memory_cannot_have_the_journal_mode() {
        let conn = Connection::open_in_memory().unwrap();
        let error = apply(&conn, Path::new(":memory:"), &Options::default()).unwrap_err();
        check_refused(error, "journal_mode", ("wal", "memory"));
    }

    #[test]
    fn vfs_without_shared_memory_cannot_have_the_journal_mode() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { vfs: Some("unix-dotfile".to_owned()), ..Options::default() };
        let error = open(dir.path().join("any.db"), &options, true).unwrap_err();
        check_refused(error, "journal_mode", ("wal", "delete"));
    }

    #[test]
    fn journal_mode_that_a_transaction_holds_fast_is_not_taken_for_set() {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch("BEGIN").unwrap();
        assert!(apply(&conn, Path::new(":memory:"), &Options::default()).is_err());
    }

    /// Two connections to a database in another journal mode; the second has the write lock.
    fn locked(path: &Path) -> (Connection, Connection) {
        let (conn, other) = (Connection::open(path).unwrap(), Connection::open(path).unwrap());
        other.execute_batch("CREATE TABLE t (x); BEGIN IMMEDIATE").unwrap();
        (conn, other)
    }

    #[test]
    fn journal_mode_is_waited_for_while_another_connection_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("any.db");
        let (conn, other) = locked(&path);
        let started = Instant::now();
        let applied = thread::spawn(move || apply(&conn, &path, &Options::default()));
        while started.elapsed() < Duration::from_millis(30) {
            thread::yield_now();
        }
        other.execute_batch("ROLLBACK").unwrap();
        applied.join().unwrap().unwrap();
    }

    #[test]
    fn journal_mode_is_waited_for_no_longer_than_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("any.db");
        let (conn, _other) = locked(&path);
        let busy_timeout = Duration::from_millis(40);
        let options = Options { busy_timeout, ..Options::default() };
        let error = apply(&conn, &path, &options).unwrap_err();
        let StoreError::Busy { waited } = error else { panic!("{error:?}") };
        assert!(waited >= busy_timeout, "{waited:?}");
    }

    #[test]
    fn waiting_longer_than_sqlite_can_count_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { busy_timeout: Duration::MAX, ..Options::default() };
        let error = open(dir.path().join("any.db"), &options, true).unwrap_err();
        assert!(matches!(error, StoreError::PragmaRefused { pragma: "busy_timeout", .. }));
    }

    #[test]
    fn more_pages_than_sqlite_can_count_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { wal_autocheckpoint_pages: u32::MAX, ..Options::default() };
        let error = open(dir.path().join("any.db"), &options, true).unwrap_err();
        assert!(matches!(error, StoreError::PragmaRefused { pragma: "wal_autocheckpoint", .. }));
    }

    #[test]
    fn part_of_a_millisecond_is_waited_for_as_a_whole_one() {
        assert_eq!(busy_timeout_ms(Duration::from_micros(1)), 1);
        assert_eq!(busy_timeout_ms(Duration::from_millis(2)), 2);
        assert_eq!(busy_timeout_ms(Duration::ZERO), 0);
    }

    #[test]
    fn setting_changed_behind_our_back_is_seen_by_a_fresh_read() {
        let dir = tempfile::tempdir().unwrap();
        let conn = open(dir.path().join("any.db"), &Options::default(), true).unwrap();
        let before = Pragmas::read(&conn).unwrap();
        assert_eq!(before, Pragmas::wanted(&Options::default()));
        conn.execute_batch("PRAGMA synchronous = OFF; PRAGMA foreign_keys = OFF").unwrap();
        let after = Pragmas::read(&conn).unwrap();
        assert_eq!(after, Pragmas { synchronous: Synchronous::Off, foreign_keys: false, ..before });
    }

    #[test]
    fn schema_table_cannot_be_written_by_sql() {
        let dir = tempfile::tempdir().unwrap();
        let conn = open(dir.path().join("any.db"), &Options::default(), true).unwrap();
        conn.execute_batch("CREATE TABLE t (x)").unwrap();
        let attack = "PRAGMA writable_schema = ON; DELETE FROM sqlite_schema";
        assert!(conn.execute_batch(attack).is_err());
    }

    #[test]
    fn settings_are_spelt_in_json_as_in_the_struct() {
        let dir = tempfile::tempdir().unwrap();
        let conn = open(dir.path().join("any.db"), &Options::default(), true).unwrap();
        let pragmas = Pragmas::read(&conn).unwrap();
        let json = serde_json::to_value(&pragmas).unwrap();
        assert_eq!(json["synchronous"], "full");
        assert_eq!(json["wal_autocheckpoint_pages"], 1000);
        assert_eq!(serde_json::from_value::<Pragmas>(json).unwrap(), pragmas);
    }
}
