//! What the tests of this layer share: a schema of its own that keeps a chain, and knows no board.

use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use crate::error::StoreError;
use crate::options::{Options, Synchronous};
use crate::sqlite::chain::{Head, Ledger};
use crate::sqlite::database::{Acknowledgement, Database};
use crate::sqlite::durability::Durability;
use crate::sqlite::transaction::Failure;

/// How the schema below keeps its chain.
pub(crate) static LEDGER: Ledger = Ledger {
    head: "SELECT seq, link FROM marks ORDER BY seq DESC LIMIT 1",
    link_of: "SELECT link FROM marks WHERE seq = ?1",
    commits: "SELECT seq, link, content, rows, rows, who FROM marks WHERE seq > ?1 ORDER BY seq",
    rows: "SELECT seq, checksum, id, seq, text FROM notes WHERE seq > ?1 ORDER BY id",
    rows_table: "notes",
    pruned_to: "SELECT pruned_to FROM kept",
    set_row: "UPDATE notes SET checksum = ?2 WHERE id = ?1",
    set_commit: "UPDATE marks SET rows = ?2, content = ?3, link = ?4 WHERE seq = ?1",
    drop_commit: "DELETE FROM marks WHERE seq = ?1",
    fill_gap: "INSERT INTO marks VALUES (?1, 'lost', 0, 0, zeroblob(32))",
};

const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS marks (seq INTEGER PRIMARY KEY, who TEXT NOT NULL,
    rows INTEGER NOT NULL, content INTEGER NOT NULL, link BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, seq INTEGER NOT NULL,
    text TEXT NOT NULL, checksum INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS kept (id INTEGER PRIMARY KEY, pruned_to INTEGER NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS notes_text ON notes (text);
INSERT OR IGNORE INTO kept VALUES (1, 0);";

/// A directory that goes away with the value, and a database in it.
pub(crate) struct Place {
    dir: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("any.db")
    }

    pub(crate) fn options() -> Options {
        Options {
            synchronous: Synchronous::Off,
            busy_timeout: Duration::from_millis(40),
            ..Options::default()
        }
    }

    /// The database, made first if it is not there, with its chain kept.
    pub(crate) fn open(&self) -> Database {
        self.try_open().unwrap()
    }

    pub(crate) fn try_open(&self) -> Result<Database, StoreError> {
        let mut database = Database::open(&self.path(), &Self::options(), true)?;
        database.write(None, |tx| tx.execute_batch(SCHEMA)).map_err(|failure| match failure {
            Failure::Unready(error) => error,
            other => panic!("{other:?}"),
        })?;
        database.keep_chain(&LEDGER)?;
        Ok(database)
    }

    /// One commit with that many rows.
    #[expect(clippy::unused_self, reason = "it reads as what it is: an append at that place")]
    pub(crate) fn append(&self, database: &mut Database, rows: i64) -> Head {
        Self::try_append(database, None, rows).unwrap().0
    }

    /// That many commits, each with that many rows.
    pub(crate) fn append_times(&self, database: &mut Database, times: u32, rows: i64) {
        for _ in 0..times {
            self.append(database, rows);
        }
    }

    pub(crate) fn try_append(
        database: &mut Database,
        durability: Option<Durability>,
        rows: i64,
    ) -> Result<(Head, Acknowledgement), Failure<StoreError>> {
        let refused = |source| StoreError::Sqlite { during: "append", source };
        database.write(durability, |tx| {
            let mut entry = tx.entry()?;
            let seq = entry.seq();
            let last = "SELECT coalesce(max(id), 0) FROM notes";
            let last: i64 = tx.query_row(last, [], |row| row.get(0)).map_err(refused)?;
            for id in last + 1..=last + rows {
                let text = format!("note {id} of {seq}, {}", "x".repeat(50));
                let checksum = entry.row(&[&seq, &text]);
                let insert = "INSERT INTO notes VALUES (?, ?, ?, ?)";
                tx.execute(insert, (id, seq, text, checksum)).map_err(refused)?;
            }
            let sealed = entry.seal(&[&rows, &"ann"]);
            let insert = "INSERT INTO marks VALUES (?, 'ann', ?, ?, ?)";
            tx.execute(insert, (seq, rows, sealed.content, sealed.link)).map_err(refused)?;
            Ok(Head { seq, link: sealed.link })
        })
    }
}
