//! Looking at what a cycle left, without touching it: two copies of the files are recovered.
//!
//! The first copy is read through its WAL, checked, checkpointed, hashed, checkpointed again and
//! hashed again; the second is checkpointed at once and hashed. Both are copies of database and WAL
//! without the -shm, which is what a machine finds after a restart. The files themselves are next
//! opened by the writers of the next cycle, whose recovery is then the one that counts.

use super::error::RunError;
use crate::history::Observation;
use crate::history::content::{
    CommitRow, EventGroup, RunRow, TaskRow, Total, Totals, event_digest,
};
use rusqlite::{Connection, ErrorCode, OpenFlags, Row};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Complaints of a check that are kept.
const COMPLAINTS_MAX: usize = 20;

/// What is known of one database between its cycles.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    file: PathBuf,
    copies: [PathBuf; 2],
    seen: Seen,
}

/// The commits seen last time: rows up to `seq` must be the same for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    seq: i64,
    commits: Total,
    events: Total,
}

impl Probe {
    pub(super) fn new(file: &Path, dir: &Path) -> Self {
        Self {
            file: file.to_owned(),
            copies: [dir.join("copy-1.db"), dir.join("copy-2.db")],
            seen: Seen::default(),
        }
    }

    /// The same knowledge of another place where the same database lies.
    pub(super) fn moved_to(&self, file: &Path, dir: &Path) -> Self {
        Self { seen: self.seen, ..Self::new(file, dir) }
    }

    /// Recovers two copies and reads the first.
    pub(super) fn observe(&mut self, generation: u32, cycle: u32) -> Result<Observation, RunError> {
        let sizes = self.copy()?;
        let mut seen = self.nothing_yet(generation, cycle);
        [seen.database_bytes, seen.wal_bytes] = sizes;
        if let Err(stop) = self.recover(&mut seen) {
            match stop {
                Stop::Run(error) => return Err(error),
                Stop::Sqlite(error) if is_full(&error) => {
                    return Err(RunError::NoSpace {
                        path: self.file.clone(),
                        message: error.to_string(),
                    });
                }
                Stop::Sqlite(error) => {
                    seen.unreadable = Some(error.to_string());
                    (seen.events, seen.tasks, seen.runs) = (Vec::new(), Vec::new(), Vec::new());
                    seen.totals = Totals::default();
                    seen.commits = salvage(&self.copies[0], seen.since);
                }
            }
        }
        for copy in &self.copies {
            remove_with_log(copy)?;
        }
        Ok(seen)
    }

    /// Knows what another look at the same database gave.
    pub(super) fn has_seen(&mut self, seen: &Observation) {
        self.seen = Seen {
            seq: seen.commits.last().map_or(seen.since, |row| row.seq),
            commits: seen.totals.commits,
            events: seen.totals.events,
        };
    }

    /// Opens the file itself, which nobody uses any more, and reads it: one recovery in place of
    /// three. Its digests are left empty, since nothing is compared.
    pub(super) fn look_at_file(
        &mut self,
        generation: u32,
        cycle: u32,
    ) -> Result<Observation, RunError> {
        let mut seen = self.nothing_yet(generation, cycle);
        let mut read = || -> Result<(), Stop> {
            let conn = open(&self.file)?;
            self.read(&conn, &mut seen)?;
            seen.integrity = integrity(&conn)?;
            seen.foreign_keys = foreign_keys(&conn)?;
            Ok(())
        };
        match read() {
            Ok(()) => {}
            Err(Stop::Run(error)) => return Err(error),
            Err(Stop::Sqlite(error)) => seen.unreadable = Some(error.to_string()),
        }
        Ok(seen)
    }

    /// Copies database and WAL twice, and gives their sizes.
    fn copy(&self) -> Result<[u64; 2], RunError> {
        copy_with_log(&self.file, &self.copies[0])?;
        copy_with_log(&self.file, &self.copies[1])
    }

    /// Reads a connection in place of the files; what two copies of files would show is left out.
    pub(super) fn look(
        &mut self,
        conn: &Connection,
        generation: u32,
        cycle: u32,
    ) -> Result<Observation, RunError> {
        let mut seen = self.nothing_yet(generation, cycle);
        match self.read(conn, &mut seen) {
            Ok(()) => {}
            Err(Stop::Run(error)) => return Err(error),
            Err(Stop::Sqlite(error)) => seen.unreadable = Some(error.to_string()),
        }
        Ok(seen)
    }

    fn nothing_yet(&self, generation: u32, cycle: u32) -> Observation {
        Observation {
            generation,
            cycle,
            database_bytes: 0,
            wal_bytes: 0,
            unreadable: None,
            integrity: Vec::new(),
            foreign_keys: Vec::new(),
            first_file: String::new(),
            first_file_again: String::new(),
            second_file: String::new(),
            since: self.seen.seq,
            totals: Totals::default(),
            commits: Vec::new(),
            events: Vec::new(),
            tasks: Vec::new(),
            runs: Vec::new(),
        }
    }

    fn recover(&mut self, seen: &mut Observation) -> Result<(), Stop> {
        let first = open(&self.copies[0])?;
        self.read(&first, seen)?;
        seen.integrity = integrity(&first)?;
        seen.foreign_keys = foreign_keys(&first)?;
        checkpoint(&first)?;
        seen.first_file = hash(&self.copies[0])?;
        checkpoint(&first)?;
        seen.first_file_again = hash(&self.copies[0])?;
        let second = open(&self.copies[1])?;
        checkpoint(&second)?;
        seen.second_file = hash(&self.copies[1])?;
        Ok(())
    }

    /// Reads all rows; reports those after the last commit that was reported before.
    fn read(&mut self, conn: &Connection, seen: &mut Observation) -> Result<(), Stop> {
        let mut old = Seen { seq: self.seen.seq, ..Seen::default() };
        read_commits(conn, seen, &mut old)?;
        read_events(conn, seen, &mut old)?;
        if old != self.seen {
            // What was reported before has changed: report everything again.
            seen.since = 0;
            seen.totals = Totals::default();
            seen.commits.clear();
            seen.events.clear();
            let mut nothing = Seen::default();
            read_commits(conn, seen, &mut nothing)?;
            read_events(conn, seen, &mut nothing)?;
            old = nothing;
        }
        read_tasks(conn, seen)?;
        read_runs(conn, seen)?;
        old.seq = seen.commits.last().map_or(old.seq, |row| row.seq);
        old.commits = seen.totals.commits;
        old.events = seen.totals.events;
        self.seen = old;
        Ok(())
    }
}

/// Why a recovery stopped.
pub(super) enum Stop {
    /// We could not do our part.
    Run(RunError),
    /// SQLite could not do its part: a finding.
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<rusqlite::types::FromSqlError> for Stop {
    fn from(error: rusqlite::types::FromSqlError) -> Self {
        Self::Sqlite(error.into())
    }
}

impl From<RunError> for Stop {
    fn from(error: RunError) -> Self {
        Self::Run(error)
    }
}

/// Copies a database with its WAL or hot journal, without the -shm, and gives the sizes of database
/// and WAL.
pub(super) fn copy_with_log(from: &Path, to: &Path) -> Result<[u64; 2], RunError> {
    remove_with_log(to)?;
    let [database, wal, journal, _] = parts(from);
    let [to_database, to_wal, to_journal, _] = parts(to);
    if journal.exists() {
        copy_file(&journal, &to_journal)?;
    }
    let database_bytes = copy_file(&database, &to_database)?;
    Ok([database_bytes, if wal.exists() { copy_file(&wal, &to_wal)? } else { 0 }])
}

/// Removes a database and all that belongs to it.
pub(super) fn remove_with_log(file: &Path) -> Result<(), RunError> {
    parts(file).iter().try_for_each(|part| remove(part))
}

/// Database, WAL, rollback journal and shared memory of a database file.
fn parts(file: &Path) -> [PathBuf; 4] {
    ["", "-wal", "-journal", "-shm"].map(|suffix| {
        let mut name = file.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    })
}

fn copy_file(from: &Path, to: &Path) -> Result<u64, RunError> {
    std::fs::copy(from, to).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => RunError::place(from, source),
        _ => RunError::place(to, source),
    })
}

pub(super) fn remove(file: &Path) -> Result<(), RunError> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(RunError::place(file, error))
        }
        _ => Ok(()),
    }
}

pub(super) fn open(file: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(file, flags)?;
    // The copies are thrown away: no fsync is needed for them. They are nobody else's: with
    // exclusive locking the wal-index lies on the heap, so no -shm is made, which a full disk would
    // refuse with a plain I/O error (SQLite documentation, *Write-Ahead Logging*, section 8).
    conn.execute_batch(
        "PRAGMA locking_mode = EXCLUSIVE; PRAGMA synchronous = OFF; PRAGMA cell_size_check = ON;",
    )?;
    Ok(conn)
}

/// Whether an error is the full disk's.
fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}

pub(super) fn checkpoint(conn: &Connection) -> rusqlite::Result<()> {
    conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}

pub(super) fn hash(file: &Path) -> Result<String, Stop> {
    // SQLite's connection to this copy is used no more than for checkpoints by us, and nobody else
    // has it open: that this close drops its locks harms nobody.
    let bytes = std::fs::read(file).map_err(|source| RunError::place(file, source))?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

fn complaints(
    conn: &Connection,
    pragma: &str,
    line: impl FnMut(&Row<'_>) -> rusqlite::Result<String>,
) -> rusqlite::Result<Vec<String>> {
    let mut query = conn.prepare(pragma)?;
    query.query_map([], line)?.take(COMPLAINTS_MAX).collect()
}

/// The complaints of `PRAGMA integrity_check`.
pub(super) fn integrity(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut lines = complaints(conn, "PRAGMA integrity_check", |row| row.get(0))?;
    lines.retain(|line| line != "ok");
    Ok(lines)
}

/// The complaints of `PRAGMA foreign_key_check`.
fn foreign_keys(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    complaints(conn, "PRAGMA foreign_key_check", |row| {
        let (table, id): (String, Option<i64>) = (row.get(0)?, row.get(1)?);
        Ok(format!("{table} row {}", id.map_or_else(|| "?".to_owned(), |id| id.to_string())))
    })
}

/// The commits after `since` that can still be read from a damaged file: forwards up to the first
/// error, then backwards.
fn salvage(file: &Path, since: i64) -> Vec<CommitRow> {
    let Ok(conn) = open(file) else { return Vec::new() };
    let mut found: BTreeMap<i64, CommitRow> = BTreeMap::new();
    for order in ["ASC", "DESC"] {
        let sql = format!("{COMMITS} WHERE seq > ?1 ORDER BY seq {order}");
        let Ok(mut query) = conn.prepare(&sql) else { continue };
        let Ok(mut rows) = query.query([since]) else { continue };
        while let Ok(Some(row)) = rows.next() {
            let Ok(commit) = commit_row(row) else { break };
            found.insert(commit.seq, commit);
        }
    }
    found.into_values().collect()
}

const COMMITS: &str =
    "SELECT seq, session, op, kind, task_id, coalesce(token, 0), rows FROM commits";

fn commit_row(row: &Row<'_>) -> rusqlite::Result<CommitRow> {
    Ok(CommitRow {
        seq: row.get(0)?,
        session: row.get(1)?,
        op: row.get(2)?,
        kind: row.get(3)?,
        task: row.get(4)?,
        token: row.get(5)?,
        rows: row.get(6)?,
    })
}

fn read_commits(conn: &Connection, seen: &mut Observation, old: &mut Seen) -> Result<(), Stop> {
    let mut query = conn.prepare(&format!("{COMMITS} ORDER BY seq"))?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let commit = commit_row(row)?;
        let digest = commit.digest();
        seen.totals.commits.add(digest);
        if commit.seq <= old.seq {
            old.commits.add(digest);
        } else {
            seen.commits.push(commit);
        }
    }
    Ok(())
}

fn read_events(conn: &Connection, seen: &mut Observation, old: &mut Seen) -> Result<(), Stop> {
    let mut query =
        conn.prepare("SELECT task_id, coalesce(token, 0), kind, payload, commit_seq FROM events")?;
    let mut rows = query.query([])?;
    let mut groups: BTreeMap<i64, Total> = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let kind = row.get_ref(2)?.as_str()?;
        let payload = row.get_ref(3)?.as_str()?;
        let seq = row.get(4)?;
        let digest = event_digest(row.get(0)?, row.get(1)?, kind, payload, seq);
        seen.totals.events.add(digest);
        if seq <= old.seq {
            old.events.add(digest);
        } else {
            groups.entry(seq).or_default().add(digest);
        }
    }
    seen.events = groups.into_iter().map(|(seq, total)| EventGroup { seq, total }).collect();
    Ok(())
}

fn read_tasks(conn: &Connection, seen: &mut Observation) -> Result<(), Stop> {
    let mut query = conn.prepare(
        "SELECT id, title, priority, status, fence, result, created_seq, changed_seq FROM tasks",
    )?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let task = TaskRow {
            id: row.get(0)?,
            title: row.get(1)?,
            priority: row.get(2)?,
            status: row.get(3)?,
            fence: row.get(4)?,
            result: row.get(5)?,
            created_seq: row.get(6)?,
            changed_seq: row.get(7)?,
        };
        seen.totals.tasks.add(task.digest());
        if task.changed_seq > seen.since {
            seen.tasks.push(task);
        }
    }
    Ok(())
}

fn read_runs(conn: &Connection, seen: &mut Observation) -> Result<(), Stop> {
    let mut query = conn.prepare(
        "SELECT task_id, token, worker, heartbeats, started_seq, changed_seq, ended_seq, outcome
         FROM runs",
    )?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let run = RunRow {
            task: row.get(0)?,
            token: row.get(1)?,
            worker: row.get(2)?,
            heartbeats: row.get(3)?,
            started_seq: row.get(4)?,
            changed_seq: row.get(5)?,
            ended_seq: row.get(6)?,
            outcome: row.get(7)?,
        };
        seen.totals.runs.add(run.digest());
        if run.changed_seq > seen.since {
            seen.runs.push(run);
        }
    }
    Ok(())
}
