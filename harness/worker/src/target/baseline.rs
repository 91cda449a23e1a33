//! The same board on plain SQLite, as the application of the production report used it: WAL,
//! pragmas set and never read back, one transaction an operation, no constraints, and no fencing:
//! whoever still holds an old claim may write under it.
//!
//! The tables and columns are those of hardboard, so that one judge reads both. The flaws of the
//! canaries are built in here, each at the one place where it differs.

use super::{Done, Failure, Op, Target};
use crate::content;
use crate::ledger::{Reason, now_ns};
use crate::shim;
use crate::wire::{Flaw, Journal, Life, Settings};
use hardboard::{Durability, OpKey, Synchronous};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, params};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a flawed store leaves its window open.
const WINDOW: Duration = Duration::from_micros(400);

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS commits (seq INTEGER PRIMARY KEY, session INTEGER, op INTEGER,
  kind TEXT, task_id INTEGER, token INTEGER, rows INTEGER);
CREATE TABLE IF NOT EXISTS tasks (id INTEGER PRIMARY KEY, title TEXT, priority INTEGER,
  status TEXT, fence INTEGER DEFAULT 0, result TEXT, created_seq INTEGER, changed_seq INTEGER);
CREATE INDEX IF NOT EXISTS tasks_next ON tasks (status, priority DESC, id);
CREATE TABLE IF NOT EXISTS runs (task_id INTEGER REFERENCES tasks (id), token INTEGER,
  worker TEXT, lease_until_ms INTEGER, heartbeats INTEGER DEFAULT 0, started_seq INTEGER,
  changed_seq INTEGER, ended_seq INTEGER, outcome TEXT);
CREATE INDEX IF NOT EXISTS runs_task ON runs (task_id, token);
CREATE INDEX IF NOT EXISTS runs_lease ON runs (ended_seq, lease_until_ms);
CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY, task_id INTEGER REFERENCES tasks (id),
  token INTEGER, kind TEXT, payload TEXT, commit_seq INTEGER);
CREATE INDEX IF NOT EXISTS events_task ON events (task_id, id);
";

pub(super) fn open(
    path: &Path,
    life: &Life,
    flaw: Option<Flaw>,
    create: bool,
) -> Result<Box<dyn Target>, String> {
    let synchronous = match (flaw, life.settings.synchronous) {
        (Some(Flaw::OtherSynchronous), Synchronous::Normal) => Synchronous::Full,
        (Some(Flaw::OtherSynchronous | Flaw::PowerByNormal), _) => Synchronous::Normal,
        (_, asked) => asked,
    };
    let journal = match (flaw, life.settings.journal) {
        (Some(Flaw::NoJournal), _) => "OFF",
        (_, Journal::Wal) => "WAL",
        (_, Journal::Delete) => "DELETE",
    };
    shim::misbehave(flaw);
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    flags.set(OpenFlags::SQLITE_OPEN_CREATE, create);
    let opened = Connection::open_with_flags_and_vfs(path, flags, super::vfs().as_str())
        .and_then(|conn| {
            conn.busy_timeout(Duration::from_millis(life.shape.busy_timeout_ms.into()))?;
            if create && life.settings.page_bytes > 0 {
                conn.pragma_update(None, "page_size", life.settings.page_bytes)?;
            }
            conn.execute_batch(&format!(
                "PRAGMA journal_mode = {journal}; PRAGMA synchronous = {};
                 PRAGMA wal_autocheckpoint = {}; PRAGMA foreign_keys = {};",
                synchronous.as_str(),
                life.settings.wal_autocheckpoint,
                flaw != Some(Flaw::OrphanEvent),
            ))?;
            if flaw == Some(Flaw::NoJournal) {
                conn.execute_batch("PRAGMA cache_size = 4; PRAGMA cache_spill = 1;")?;
            }
            if create {
                conn.execute_batch(&format!("BEGIN IMMEDIATE; {SCHEMA} COMMIT;"))?;
            }
            Ok(conn)
        })
        // The directory is one of the run's own, and means nothing to who reads it later.
        .map_err(|error| {
            let name = path.file_name().unwrap_or_default();
            format!("open {}: {error}", name.display())
        })?;
    let promised = promised(life.settings);
    Ok(Box::new(Plain { conn: opened, flaw, promised, clock_shift_ms: 0 }))
}

struct Plain {
    conn: Connection,
    flaw: Option<Flaw>,
    promised: Durability,
    clock_shift_ms: i64,
}

/// What a commit with these settings survives.
///
/// With a rollback journal only EXTRA syncs the directory after the journal is removed (SQLite
/// documentation, *PRAGMA synchronous*): with FULL the journal may come back, and with it the
/// database as it was before the commit.
fn promised(settings: Settings) -> Durability {
    match (settings.journal, settings.synchronous) {
        (Journal::Delete, Synchronous::Full) => Durability::Process,
        (_, level) => Durability::of(level),
    }
}

/// Why a body stopped.
enum Stop {
    Nothing,
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl Target for Plain {
    fn perform(
        &mut self,
        key: OpKey,
        op: &Op<'_>,
        // One connection, one level: whatever a call asks for.
        _durability: Option<Durability>,
        early: &mut dyn FnMut(Done),
    ) -> Result<Done, Failure> {
        let early_look = match op {
            Op::ClaimNext { .. } if self.flaw == Some(Flaw::CheckThenAct) => {
                Some(self.look_ahead(key)?)
            }
            _ => None,
        };
        self.run("BEGIN IMMEDIATE").map_err(|error| refused(&error))?;
        let mut done = match self.body(key, op, early_look) {
            Ok(done) => Done { durability: self.promised, ..done },
            Err(stop) => {
                // What matters is told by `stop`; a rollback that fails too is closed with us.
                drop(self.run("ROLLBACK"));
                return Err(match stop {
                    Stop::Nothing => Failure::Refused(Reason::Nothing, String::new()),
                    Stop::Sqlite(error) => refused(&error),
                });
            }
        };
        if self.flaw == Some(Flaw::AckBeforeCommit) {
            early(done);
            hold_open();
        }
        let from = now_ns();
        if let Err(error) = self.run("COMMIT") {
            let busy = error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy);
            drop(self.run("ROLLBACK"));
            return Err(if busy { refused(&error) } else { Failure::Unknown(error.to_string()) });
        }
        done.commit_ns = now_ns().saturating_sub(from);
        if self.flaw == Some(Flaw::RefusedButApplied) && key.op % 5 == 0 {
            return Err(Failure::Refused(Reason::Busy, "said to be busy".to_owned()));
        }
        Ok(done)
    }

    fn expired(&self) -> rusqlite::Result<i64> {
        if self.flaw == Some(Flaw::LeaseOnly) {
            // Whoever wants the task takes it: nothing is taken back.
            return Ok(0);
        }
        self.conn
            .prepare_cached(
                "SELECT count(*) FROM runs WHERE ended_seq IS NULL AND lease_until_ms < ?1",
            )?
            .query_row([self.wall_ms()], |row| row.get(0))
    }

    fn shift_clock(&mut self, by_ms: i64) {
        self.clock_shift_ms += by_ms;
    }

    fn connection(&self) -> &Connection {
        &self.conn
    }

    fn close(self: Box<Self>) -> Result<(), String> {
        self.conn.close().map_err(|(_, error)| format!("close: {error}"))
    }
}

impl Plain {
    /// The wall clock as this process has set it.
    fn wall_ms(&self) -> i64 {
        wall_ms() + self.clock_shift_ms
    }

    fn run(&self, sql: &str) -> rusqlite::Result<()> {
        self.conn.prepare_cached(sql)?.raw_execute().map(drop)
    }

    /// The flawed store looks for its task in a transaction of its own. It takes the write lock for
    /// it, so nobody can change what it sees; and gives it up before it claims.
    fn look_ahead(&self, key: OpKey) -> Result<(i64, i64), Failure> {
        self.run("BEGIN IMMEDIATE").map_err(|error| refused(&error))?;
        let found = self.next_task(key);
        self.run("COMMIT").map_err(|error| refused(&error))?;
        found.map_err(|stop| match stop {
            Stop::Nothing => Failure::Refused(Reason::Nothing, String::new()),
            Stop::Sqlite(error) => refused(&error),
        })
    }

    fn body(&self, key: OpKey, op: &Op<'_>, early_look: Option<(i64, i64)>) -> Result<Done, Stop> {
        match *op {
            Op::Create { title, priority } => self.create(key, title, priority),
            Op::ClaimNext { worker, lease_ms } => {
                let next = match early_look {
                    Some(next) => next,
                    None => self.next_task(key)?,
                };
                self.claim(key, worker, lease_ms, next)
            }
            Op::Heartbeat { task, token, lease_ms } => {
                let seq = self.log(key, op, task, token)?;
                self.execute(
                    "UPDATE runs SET lease_until_ms = ?3, heartbeats = heartbeats + 1,
                       changed_seq = ?4 WHERE task_id = ?1 AND token = ?2",
                    params![task, token, self.wall_ms() + i64::from(lease_ms), seq],
                )?;
                Ok(done(task, token, seq))
            }
            Op::Events { task, token, events } => self.events(key, op, (task, token), events),
            Op::Complete { task, token, result } => {
                let seq = self.log(key, op, task, token)?;
                self.execute(
                    "UPDATE runs SET ended_seq = ?3, changed_seq = ?3, outcome = 'completed'
                     WHERE task_id = ?1 AND token = ?2",
                    params![task, token, seq],
                )?;
                self.execute(
                    "UPDATE tasks SET status = 'done', result = ?2, changed_seq = ?3
                     WHERE id = ?1",
                    params![task, result, seq],
                )?;
                self.event(task, token, "completed", result, seq)?;
                Ok(done(task, token, seq))
            }
            Op::TakeBack => self.take_back(key),
        }
    }

    fn create(&self, key: OpKey, title: &str, priority: i64) -> Result<Done, Stop> {
        let task: i64 = self
            .conn
            .prepare_cached("SELECT coalesce(max(id), 0) + 1 FROM tasks")?
            .query_row([], |row| row.get(0))?;
        let seq = self.log(key, &Op::Create { title, priority }, task, 0)?;
        self.execute(
            "INSERT INTO tasks (id, title, priority, status, fence, created_seq, changed_seq)
             VALUES (?1, ?2, ?3, 'ready', 0, ?4, ?4)",
            params![task, title, priority, seq],
        )?;
        self.event(task, 0, "created", title, seq)?;
        Ok(done(task, 0, seq))
    }

    /// The task to claim next, and the token that it will have.
    fn next_task(&self, key: OpKey) -> Result<(i64, i64), Stop> {
        let ready =
            "SELECT id FROM tasks WHERE status = 'ready' ORDER BY priority DESC, id LIMIT 1";
        let mut next = match self.flaw {
            // The flawed store gives away what is running as well.
            Some(Flaw::DoubleClaim) if key.op % 2 == 0 => self.maybe(
                "SELECT id FROM tasks WHERE status <> 'done' ORDER BY status DESC, id LIMIT 1",
                [],
            )?,
            Some(Flaw::LeaseOnly) => self.maybe(
                "SELECT task_id FROM runs JOIN tasks ON tasks.id = task_id AND fence = token
                 WHERE status = 'running' AND ended_seq IS NULL AND lease_until_ms < ?1
                 ORDER BY lease_until_ms LIMIT 1",
                [self.wall_ms()],
            )?,
            _ => None,
        };
        if next.is_none() {
            next = self.maybe(ready, [])?;
        }
        let task: i64 = next.ok_or(Stop::Nothing)?;
        let token: i64 = self
            .conn
            .prepare_cached("SELECT fence + 1 FROM tasks WHERE id = ?1")?
            .query_row([task], |row| row.get(0))?;
        Ok((task, token))
    }

    fn claim(
        &self,
        key: OpKey,
        worker: &str,
        lease_ms: u32,
        (task, token): (i64, i64),
    ) -> Result<Done, Stop> {
        let seq = self.log(key, &Op::ClaimNext { worker, lease_ms }, task, token)?;
        self.execute(
            "UPDATE tasks SET fence = ?2, status = 'running', changed_seq = ?3 WHERE id = ?1",
            params![task, token, seq],
        )?;
        self.execute(
            "INSERT INTO runs (task_id, token, worker, lease_until_ms, heartbeats, started_seq,
               changed_seq) VALUES (?1, ?2, ?3, ?4, 0, ?5, ?5)",
            params![task, token, worker, self.wall_ms() + i64::from(lease_ms), seq],
        )?;
        self.event(task, token, "claimed", worker, seq)?;
        Ok(done(task, token, seq))
    }

    fn take_back(&self, key: OpKey) -> Result<Done, Stop> {
        let expired: Option<(i64, i64)> = self
            .conn
            .prepare_cached(
                "SELECT task_id, token FROM runs WHERE ended_seq IS NULL AND lease_until_ms < ?1
                 ORDER BY lease_until_ms LIMIT 1",
            )?
            .query_row([self.wall_ms()], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let (task, token) = expired.ok_or(Stop::Nothing)?;
        let seq = self.log(key, &Op::TakeBack, task, token)?;
        self.execute(
            "UPDATE runs SET ended_seq = ?3, changed_seq = ?3, outcome = 'taken-back'
             WHERE task_id = ?1 AND token = ?2",
            params![task, token, seq],
        )?;
        self.execute(
            "UPDATE tasks SET status = 'ready', changed_seq = ?2 WHERE id = ?1",
            params![task, seq],
        )?;
        self.event(task, token, "taken-back", content::LEASE_EXPIRED, seq)?;
        Ok(done(task, token, seq))
    }

    fn events(
        &self,
        key: OpKey,
        op: &Op<'_>,
        (task, token): (i64, i64),
        events: &[(&'static str, String)],
    ) -> Result<Done, Stop> {
        let seq = self.log(key, op, task, token)?;
        for (index, (kind, payload)) in events.iter().enumerate() {
            if self.flaw == Some(Flaw::SplitTransaction) && index == 1 {
                self.run("COMMIT")?;
                hold_open();
                self.run("BEGIN IMMEDIATE")?;
            }
            self.event(task, token, kind, payload, seq)?;
        }
        match self.flaw {
            Some(Flaw::AlienWrite) if key.op % 7 == 0 => {
                self.event(task, token, "note", "nobody sent this", seq)?;
            }
            Some(Flaw::OrphanEvent) if key.op % 7 == 0 => {
                self.event(-1, token, "note", "an event of no task", seq)?;
            }
            _ => {}
        }
        Ok(done(task, token, seq))
    }

    fn event(
        &self,
        task: i64,
        token: i64,
        kind: &str,
        payload: &str,
        seq: i64,
    ) -> rusqlite::Result<()> {
        self.execute(
            "INSERT INTO events (task_id, token, kind, payload, commit_seq)
             VALUES (?1, ?2, ?3, ?4, ?5)",
            params![task, (token > 0).then_some(token), kind, payload, seq],
        )
    }

    /// The number that a query finds, if any.
    fn maybe(&self, sql: &str, values: impl rusqlite::Params) -> rusqlite::Result<Option<i64>> {
        self.conn.prepare_cached(sql)?.query_row(values, |row| row.get(0)).optional()
    }

    /// Writes the row that says who committed what, and gives its sequence number.
    fn log(&self, key: OpKey, op: &Op<'_>, task: i64, token: i64) -> rusqlite::Result<i64> {
        self.execute(
            "INSERT INTO commits (session, op, kind, task_id, token, rows)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                key.session,
                key.op,
                op.kind().as_str(),
                task,
                (token > 0).then_some(token),
                op.rows()
            ],
        )?;
        Ok(self.conn.last_insert_rowid())
    }

    fn execute(&self, sql: &str, values: impl rusqlite::Params) -> rusqlite::Result<()> {
        self.conn.prepare_cached(sql)?.execute(values).map(drop)
    }
}

fn done(task: i64, token: i64, seq: i64) -> Done {
    Done { task, token, seq, commit_ns: 0, durability: Durability::Process }
}

fn refused(error: &rusqlite::Error) -> Failure {
    let reason = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy) => Reason::Busy,
        Some(ErrorCode::DiskFull) => Reason::Full,
        _ => Reason::Error,
    };
    Failure::Refused(reason, error.to_string())
}

fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Leaves the window of a flawed store open for [`WINDOW`].
fn hold_open() {
    let until = Instant::now() + WINDOW;
    while Instant::now() < until {
        std::thread::yield_now();
    }
}
