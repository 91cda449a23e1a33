//! Every statement of the board, each in one method of [`Tx`].
//!
//! This is the board's seam to SQLite: the rules beside this folder decide, and never see a
//! statement, a row or a connection. Another database needs another [`Tx`], with the same methods.
//!
//! In: numbers and texts. Out: rows as the board's own types. Not here: any rule.

mod chain;
mod dispatcher;
mod event;
mod import;
pub(super) mod kanban;
mod link;
mod note;
mod reconcile;
mod run;
mod subscription;
mod task;
#[cfg(test)]
mod plans;

pub(super) use chain::LEDGER;
pub(super) use dispatcher::DispatcherRow;
pub(super) use import::{ImportedRun, ImportedTask};
pub(super) use run::{Ending, LiveRun, NewRun};
pub(super) use task::{Counts, Standing};

use rusqlite::{CachedStatement, Connection, OptionalExtension, Params, Row, params};

use crate::board::claim::FencingToken;
use crate::board::task::TaskId;
use crate::board::{CommitSeq, OpKey};
use crate::sqlite::chain::Entry;

/// What a look or a statement gave, or why the database could not answer.
pub(super) type Looked<T> = rusqlite::Result<T>;

/// One transaction, or one look, by that connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tx<'a> {
    conn: &'a Connection,
}

/// What a row of `commits` says but for its number.
#[derive(Clone, Copy, Debug)]
pub(super) struct CommitRow {
    pub(super) key: OpKey,
    pub(super) kind: &'static str,
    pub(super) task: TaskId,
    pub(super) token: Option<FencingToken>,
    pub(super) rows: i64,
    pub(super) at_ms: i64,
}

impl<'a> Tx<'a> {
    pub(super) fn new(conn: &'a Connection) -> Self {
        Self { conn }
    }

    /// The number of the newest commit; 0: there is none.
    pub(super) fn last_commit(self) -> rusqlite::Result<CommitSeq> {
        self.one("SELECT coalesce(max(seq), 0) FROM commits", [], |row| row.get(0))
    }

    /// The commit that an operation was written by.
    pub(super) fn commit_of(self, key: OpKey) -> rusqlite::Result<Option<CommitSeq>> {
        self.maybe(
            "SELECT seq FROM commits WHERE session = ?1 AND op = ?2",
            (key.session, key.op),
            |row| row.get(0),
        )
    }

    /// Writes the row of the commit that `entry` begins.
    pub(super) fn insert_commit(self, entry: Entry<'_>, row: CommitRow) -> rusqlite::Result<()> {
        let CommitRow { key, kind, task, token, rows, at_ms } = row;
        let seq = entry.seq();
        let sealed = entry.seal(&[&key.session, &key.op, &kind, &task, &token, &rows, &at_ms]);
        self.run(
            "INSERT INTO commits \
             (seq, session, op, kind, task_id, token, rows, at_ms, content, link) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![
                seq,
                key.session,
                key.op,
                kind,
                task,
                token,
                rows,
                at_ms,
                sealed.content,
                sealed.link,
            ],
        )
        .map(|_| ())
    }

    /// Runs a statement, and gives the number of rows that it changed.
    fn run(self, sql: &str, values: impl Params) -> rusqlite::Result<usize> {
        self.prepared(sql)?.execute(values)
    }

    /// A statement, for as often as it is wanted.
    fn prepared(self, sql: &str) -> rusqlite::Result<CachedStatement<'a>> {
        #[cfg(test)]
        plans::note(sql);
        self.conn.prepare_cached(sql)
    }

    /// The one row of a query that always has one.
    fn one<T>(
        self,
        sql: &str,
        values: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        #[cfg(test)]
        plans::note(sql);
        self.conn.prepare_cached(sql)?.query_row(values, read)
    }

    /// The first row of a query, if there is any.
    fn maybe<T>(
        self,
        sql: &str,
        values: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Option<T>> {
        self.one(sql, values, read).optional()
    }

    /// All rows of a query.
    fn all<T>(
        self,
        sql: &str,
        values: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Vec<T>> {
        #[cfg(test)]
        plans::note(sql);
        self.conn.prepare_cached(sql)?.query_map(values, read)?.collect()
    }
}
