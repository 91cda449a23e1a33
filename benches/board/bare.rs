//! The statements of the board by bare rusqlite: no rule, no hash, no anchor, no look at the files.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use hardboard::board::schema;
use hardboard::{Durability, Pragmas, Synchronous};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, params};

use super::{Contestant, LEASE, PAYLOAD, TITLE};

/// A connection, and how many writes it made.
pub(crate) struct Bare {
    conn: Connection,
    op: i64,
}

impl Bare {
    fn open(path: &Path, level: Synchronous) -> rusqlite::Result<Self> {
        let conn = Connection::open(path)?;
        conn.set_prepared_statement_cache_capacity(64);
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        conn.execute_batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = {level}; \
             PRAGMA wal_autocheckpoint = 1000; PRAGMA busy_timeout = 5000; \
             PRAGMA foreign_keys = ON; PRAGMA mmap_size = 0; PRAGMA trusted_schema = OFF; \
             PRAGMA cell_size_check = ON; BEGIN",
        ))?;
        for (_, sql) in schema::OBJECTS {
            conn.execute_batch(sql)?;
        }
        conn.execute_batch("COMMIT")?;
        Ok(Self { conn, op: 0 })
    }

    fn transaction<T>(
        &mut self,
        body: impl FnOnce(&Connection, Key) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        self.op += 1;
        self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let there: Option<i64> = self
            .conn
            .prepare_cached("SELECT seq FROM commits WHERE session = ?1 AND op = ?2")?
            .query_row((1, self.op), |row| row.get(0))
            .optional()?;
        assert!(there.is_none());
        let last: Option<(i64, [u8; 32])> = self
            .conn
            .prepare_cached("SELECT seq, link FROM commits ORDER BY seq DESC LIMIT 1")?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let key = Key { op: self.op, seq: last.map_or(0, |(seq, _)| seq) + 1 };
        let value = body(&self.conn, key)?;
        self.conn.prepare_cached("COMMIT")?.execute([])?;
        Ok(value)
    }

    fn record(
        conn: &Connection,
        key: Key,
        kind: &str,
        task: i64,
        token: Option<i64>,
        rows: u32,
    ) -> rusqlite::Result<()> {
        conn.prepare_cached(
            "INSERT INTO commits \
             (seq, session, op, kind, task_id, token, rows, at_ms, content, link) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?
        .execute(params![
            key.seq,
            1,
            key.op,
            kind,
            task,
            token,
            rows,
            now_ms(),
            key.op,
            LINK
        ])?;
        Ok(())
    }

    fn event(
        conn: &Connection,
        task: i64,
        token: Option<i64>,
        kind: &str,
        payload: &str,
        seq: i64,
    ) -> rusqlite::Result<()> {
        conn.prepare_cached(
            "INSERT INTO events (task_id, token, kind, payload, commit_seq, checksum) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute((task, token, kind, payload, seq, i64::MAX - seq))?;
        Ok(())
    }

    fn try_create(conn: &Connection, key: Key) -> rusqlite::Result<i64> {
        let id: i64 = conn
            .prepare_cached("SELECT coalesce(max(id), 0) + 1 FROM tasks")?
            .query_row([], |row| row.get(0))?;
        let none: Option<i64> = None;
        conn.prepare_cached(
            "INSERT INTO tasks (id, title, priority, status, created_seq, changed_seq, body, \
             assignee, tenant, created_by, idempotency_key, workspace_kind, workspace_path, \
             due_ms, reason, failure_limit, max_runtime_ms, extra) VALUES (?1, ?2, ?3, ?4, ?5, \
             ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
        )?
        .execute(params![
            id, TITLE, 0, "ready", key.seq, "", none, none, "", none, "scratch", none, none, none,
            none, none, none
        ])?;
        Self::event(conn, id, None, "created", TITLE, key.seq)?;
        Self::record(conn, key, "create", id, None, 1)?;
        Ok(id)
    }

    fn try_claim(conn: &Connection, key: Key) -> rusqlite::Result<(i64, i64)> {
        let (task, fence): (i64, i64) = conn
            .prepare_cached(
                "SELECT id, fence, priority FROM tasks INDEXED BY tasks_ready \
                 WHERE status = 'ready' AND assignee IS NULL ORDER BY priority DESC, id LIMIT 1",
            )?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let theirs = conn
            .prepare_cached(
                "SELECT id, fence, priority FROM tasks INDEXED BY tasks_ready_for \
                 WHERE status = 'ready' AND assignee = ?1 ORDER BY priority DESC, id LIMIT 1",
            )?
            .query_row(["ann"], |_| Ok(()))
            .optional()?;
        assert!(theirs.is_none());
        let token = fence + 1;
        conn.prepare_cached(
            "UPDATE tasks SET fence = ?2, status = 'running', changed_seq = ?3 WHERE id = ?1",
        )?
        .execute((task, token, key.seq))?;
        let (none, now) = (None::<i64>, now_ms());
        conn.prepare_cached(
            "INSERT INTO runs (task_id, token, worker, lease_until_ms, started_seq, changed_seq, \
             boot_id, lease_until_boot_ms, started_boot_ms, pid, pid_started_ticks, \
             pid_namespace, epoch, max_runtime_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        )?
        .execute(params![
            task, token, "ann", now, key.seq, BOOT, now, now, none, none, none, none, none
        ])?;
        Self::event(conn, task, Some(token), "claimed", "ann", key.seq)?;
        Self::record(conn, key, "claim", task, Some(token), 1)?;
        Ok((task, token))
    }

    fn try_heartbeat(conn: &Connection, key: Key, task: i64, token: i64) -> rusqlite::Result<()> {
        let now = now_ms();
        let changed = conn
            .prepare_cached(
                "UPDATE runs SET heartbeats = heartbeats + 1, lease_until_ms = ?3, boot_id = ?4, \
                 lease_until_boot_ms = ?5, changed_seq = ?6 \
                 WHERE task_id = ?1 AND token = ?2 AND ended_seq IS NULL",
            )?
            .execute((task, token, now, BOOT, now, key.seq))?;
        assert_eq!(changed, 1);
        Self::record(conn, key, "heartbeat", task, Some(token), 0)
    }

    fn try_complete(conn: &Connection, key: Key, task: i64, token: i64) -> rusqlite::Result<()> {
        let none = None::<&str>;
        let changed = conn
            .prepare_cached(
                "UPDATE runs SET ended_seq = ?3, changed_seq = ?3, outcome = ?4, summary = ?5, \
                 error = ?6 WHERE task_id = ?1 AND token = ?2 AND ended_seq IS NULL",
            )?
            .execute((task, token, key.seq, "completed", none, none))?;
        assert_eq!(changed, 1);
        conn.prepare_cached(
            "UPDATE tasks SET status = 'done', result = ?2, due_ms = NULL, reason = NULL, \
             failures = 0, interruptions = 0, changed_seq = ?3 WHERE id = ?1",
        )?
        .execute((task, PAYLOAD, key.seq))?;
        Self::event(conn, task, Some(token), "completed", PAYLOAD, key.seq)?;
        let children = conn
            .prepare_cached("SELECT child_id FROM links WHERE parent_id = ?1 ORDER BY 1")?
            .query_row([task], |_| Ok(()))
            .optional()?;
        assert!(children.is_none());
        Self::record(conn, key, "complete", task, Some(token), 1)
    }

    fn try_append(
        conn: &Connection,
        key: Key,
        task: i64,
        token: i64,
        count: u32,
    ) -> rusqlite::Result<()> {
        let live: bool = conn
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM runs WHERE task_id = ?1 AND token = ?2 \
                 AND ended_seq IS NULL)",
            )?
            .query_row((task, token), |row| row.get(0))?;
        assert!(live);
        for _ in 0..count {
            Self::event(conn, task, Some(token), "progress", PAYLOAD, key.seq)?;
        }
        Self::record(conn, key, "events", task, Some(token), count)
    }
}

/// What names a write of the bare contestant.
#[derive(Clone, Copy)]
struct Key {
    op: i64,
    seq: i64,
}

/// What stands in the place of a hash.
const LINK: [u8; 32] = [0x5a; 32];
const BOOT: &str = "0a5cf3ec-5b0b-4a3d-9c1f-0f3f6d1d2c3b";

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from((now + LEASE).as_millis()).unwrap_or(i64::MAX)
}

impl Contestant for Bare {
    fn new(path: &Path, durability: Durability) -> Self {
        Self::open(path, durability.level()).expect("a new database")
    }

    fn create(&mut self) -> i64 {
        self.transaction(Self::try_create).expect("the task is made")
    }

    fn claim(&mut self) -> (i64, i64) {
        self.transaction(Self::try_claim).expect("the claim is made")
    }

    fn heartbeat(&mut self, task: i64, token: i64) {
        self.transaction(|conn, key| Self::try_heartbeat(conn, key, task, token))
            .expect("the claim is live");
    }

    fn complete(&mut self, task: i64, token: i64) {
        self.transaction(|conn, key| Self::try_complete(conn, key, task, token))
            .expect("the claim is live");
    }

    fn append(&mut self, task: i64, token: i64, count: u32) {
        self.transaction(|conn, key| Self::try_append(conn, key, task, token, count))
            .expect("the claim is live");
    }

    fn connection(&self) -> &Connection {
        &self.conn
    }

    fn pragmas(&self) -> Pragmas {
        Pragmas::read(&self.conn).expect("settings")
    }
}
