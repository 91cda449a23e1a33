//! The board's tables, and how a file is recognised as a board before anything is written to it.
//!
//! In: a connection. Out: whether its file is a board, is empty, or is none of our business.
//! Not here: what the rows mean, which stands with the calls that write them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode};

use crate::error::{Found, Result, StoreError};

/// The `application_id` of a board: `hbrd` in ASCII.
pub const APPLICATION_ID: i64 = 0x6862_7264;

/// The `user_version` of a board of this format.
pub const FORMAT: i64 = 2;

/// The tables and indexes of a board: the name of each, and the statement that makes it.
///
/// | table           | one row for each            | its key                                    |
/// |-----------------|-----------------------------|--------------------------------------------|
/// | `commits`       | write                       | `seq`: 1, 2, 3, ... without a hole         |
/// | `tasks`         | task                        | `id`: 1, 2, 3, ...                         |
/// | `links`         | task that waits for another | parent, child                              |
/// | `runs`          | claim that was ever made    | the task, and the token of the claim       |
/// | `events`        | event                       | `id`: 1, 2, 3, ... without a hole          |
/// | `comments`      | comment                     | `id`                                       |
/// | `attachments`   | file that belongs to a task | `id`                                       |
/// | `subscriptions` | reader of events            | its name                                   |
/// | `dispatcher`    | board                       | one row: who dispatches, and the epoch     |
/// | `horizon`       | board                       | one row: the oldest event that is kept     |
///
/// `commits.rows` is the number of events that the write appended, and `commits.token` is null
/// for one that was made without a claim. `commits.content`, `commits.link` and `events.checksum`
/// are the chain of [`crate::sqlite::chain`]. `tasks.fence` is the newest token that was handed out
/// for the task; it only grows. A run is live while its `ended_seq` is null, and a task has one
/// live run at most, by an index and not by care alone. A `*_seq` column names the commit that
/// wrote it. A `*_ms` column is milliseconds since 1970 on the wall clock, and a `*_boot_ms` one
/// milliseconds since the start of the machine that the row's `boot_id` names.
pub const OBJECTS: [(&str, &str); 25] = [
    (
        "commits",
        "CREATE TABLE commits (
    seq INTEGER PRIMARY KEY,
    session INTEGER NOT NULL,
    op INTEGER NOT NULL,
    kind TEXT NOT NULL,
    task_id INTEGER NOT NULL,
    token INTEGER,
    rows INTEGER NOT NULL CHECK (rows >= 0),
    at_ms INTEGER NOT NULL,
    content INTEGER NOT NULL,
    link BLOB NOT NULL CHECK (length(link) = 32)
) STRICT",
    ),
    (
        "tasks",
        "CREATE TABLE tasks (
    id INTEGER PRIMARY KEY,
    title TEXT NOT NULL,
    priority INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('triage', 'todo', 'scheduled', 'ready', 'running',
        'blocked', 'review', 'done', 'archived')),
    fence INTEGER NOT NULL DEFAULT 0 CHECK (fence >= 0),
    result TEXT,
    created_seq INTEGER NOT NULL,
    changed_seq INTEGER NOT NULL,
    body TEXT NOT NULL DEFAULT '',
    assignee TEXT,
    tenant TEXT,
    created_by TEXT NOT NULL DEFAULT '',
    idempotency_key TEXT,
    workspace_kind TEXT NOT NULL DEFAULT 'scratch'
        CHECK (workspace_kind IN ('scratch', 'worktree', 'dir')),
    workspace_path TEXT,
    due_ms INTEGER,
    reason TEXT,
    failures INTEGER NOT NULL DEFAULT 0 CHECK (failures >= 0),
    interruptions INTEGER NOT NULL DEFAULT 0 CHECK (interruptions >= 0),
    failure_limit INTEGER CHECK (failure_limit > 0),
    max_runtime_ms INTEGER CHECK (max_runtime_ms > 0),
    extra TEXT,
    CHECK ((status = 'scheduled') = (due_ms IS NOT NULL)),
    CHECK ((status = 'blocked') <= (reason IS NOT NULL)),
    CHECK ((status = 'done') <= (result IS NOT NULL)),
    CHECK ((status = 'running') <= (fence > 0))
) STRICT",
    ),
    (
        "links",
        "CREATE TABLE links (
    parent_id INTEGER NOT NULL REFERENCES tasks (id),
    child_id INTEGER NOT NULL REFERENCES tasks (id),
    commit_seq INTEGER NOT NULL,
    PRIMARY KEY (parent_id, child_id),
    CHECK (parent_id <> child_id)
) STRICT, WITHOUT ROWID",
    ),
    (
        "runs",
        "CREATE TABLE runs (
    task_id INTEGER NOT NULL REFERENCES tasks (id),
    token INTEGER NOT NULL CHECK (token > 0),
    worker TEXT NOT NULL,
    lease_until_ms INTEGER NOT NULL,
    heartbeats INTEGER NOT NULL DEFAULT 0,
    started_seq INTEGER NOT NULL,
    changed_seq INTEGER NOT NULL,
    ended_seq INTEGER,
    outcome TEXT CHECK (outcome IN ('completed', 'submitted', 'blocked', 'released', 'taken-back',
        'failed', 'crashed', 'timed-out', 'spawn-failed', 'interrupted')),
    boot_id TEXT NOT NULL,
    lease_until_boot_ms INTEGER NOT NULL,
    started_boot_ms INTEGER NOT NULL,
    pid INTEGER,
    pid_started_ticks INTEGER,
    pid_namespace INTEGER,
    epoch INTEGER,
    orphaned INTEGER NOT NULL DEFAULT 0 CHECK (orphaned IN (0, 1)),
    max_runtime_ms INTEGER CHECK (max_runtime_ms > 0),
    summary TEXT,
    error TEXT,
    PRIMARY KEY (task_id, token),
    CHECK ((ended_seq IS NULL) = (outcome IS NULL)),
    CHECK ((pid IS NULL) = (pid_started_ticks IS NULL)),
    CHECK ((pid IS NULL) = (pid_namespace IS NULL))
) STRICT, WITHOUT ROWID",
    ),
    (
        "events",
        "CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    task_id INTEGER NOT NULL REFERENCES tasks (id),
    token INTEGER,
    kind TEXT NOT NULL,
    payload TEXT NOT NULL,
    commit_seq INTEGER NOT NULL,
    checksum INTEGER NOT NULL
) STRICT",
    ),
    (
        "comments",
        "CREATE TABLE comments (
    id INTEGER PRIMARY KEY,
    task_id INTEGER NOT NULL REFERENCES tasks (id),
    token INTEGER,
    author TEXT NOT NULL,
    body TEXT NOT NULL,
    commit_seq INTEGER NOT NULL
) STRICT",
    ),
    (
        "attachments",
        "CREATE TABLE attachments (
    id INTEGER PRIMARY KEY,
    task_id INTEGER NOT NULL REFERENCES tasks (id),
    name TEXT NOT NULL,
    location TEXT NOT NULL,
    media_type TEXT,
    bytes INTEGER NOT NULL CHECK (bytes >= 0),
    digest TEXT,
    added_by TEXT NOT NULL,
    commit_seq INTEGER NOT NULL,
    removed_seq INTEGER
) STRICT",
    ),
    (
        "subscriptions",
        "CREATE TABLE subscriptions (
    name TEXT PRIMARY KEY NOT NULL,
    task_id INTEGER REFERENCES tasks (id),
    delivery TEXT NOT NULL CHECK (delivery IN ('at-most-once', 'at-least-once')),
    target TEXT NOT NULL DEFAULT '',
    cursor INTEGER NOT NULL CHECK (cursor >= 0),
    created_seq INTEGER NOT NULL,
    changed_seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID",
    ),
    (
        "dispatcher",
        "CREATE TABLE dispatcher (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    epoch INTEGER NOT NULL CHECK (epoch > 0),
    holder TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    lease_until_ms INTEGER NOT NULL,
    lease_until_boot_ms INTEGER NOT NULL,
    pid INTEGER NOT NULL,
    pid_started_ticks INTEGER NOT NULL,
    pid_namespace INTEGER NOT NULL,
    released INTEGER NOT NULL DEFAULT 0 CHECK (released IN (0, 1)),
    changed_seq INTEGER NOT NULL
) STRICT",
    ),
    (
        "horizon",
        "CREATE TABLE horizon (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    first_event_id INTEGER NOT NULL CHECK (first_event_id > 0),
    changed_seq INTEGER NOT NULL
) STRICT",
    ),
    ("commits_key", "CREATE UNIQUE INDEX commits_key ON commits (session, op)"),
    (
        "tasks_ready",
        "CREATE INDEX tasks_ready ON tasks (priority DESC, id) \
         WHERE status = 'ready' AND assignee IS NULL",
    ),
    (
        "tasks_ready_for",
        "CREATE INDEX tasks_ready_for ON tasks (assignee, priority DESC, id) \
         WHERE status = 'ready' AND assignee IS NOT NULL",
    ),
    ("tasks_status", "CREATE INDEX tasks_status ON tasks (status, id)"),
    ("tasks_due", "CREATE INDEX tasks_due ON tasks (due_ms, id) WHERE due_ms IS NOT NULL"),
    (
        "tasks_assignee",
        "CREATE INDEX tasks_assignee ON tasks (assignee, id) WHERE assignee IS NOT NULL",
    ),
    ("tasks_tenant", "CREATE INDEX tasks_tenant ON tasks (tenant, id) WHERE tenant IS NOT NULL"),
    (
        "tasks_idempotency",
        "CREATE UNIQUE INDEX tasks_idempotency ON tasks (idempotency_key) \
         WHERE idempotency_key IS NOT NULL",
    ),
    ("links_child", "CREATE UNIQUE INDEX links_child ON links (child_id, parent_id)"),
    ("runs_live", "CREATE UNIQUE INDEX runs_live ON runs (task_id) WHERE ended_seq IS NULL"),
    (
        "runs_lease",
        "CREATE INDEX runs_lease ON runs (boot_id, lease_until_boot_ms, task_id) \
         WHERE ended_seq IS NULL",
    ),
    ("events_task", "CREATE INDEX events_task ON events (task_id, id)"),
    ("comments_task", "CREATE INDEX comments_task ON comments (task_id, id)"),
    ("attachments_task", "CREATE INDEX attachments_task ON attachments (task_id, id)"),
    (
        "subscriptions_task",
        "CREATE INDEX subscriptions_task ON subscriptions (task_id) WHERE task_id IS NOT NULL",
    ),
];

/// What a database is, by its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// It has no content, so it may become a board.
    Empty,
    /// Its header is that of a board of this format.
    Board,
    /// Its header is that of a board of an older format, which can be brought to this one.
    Older {
        /// Its `user_version`.
        format: i64,
    },
}

/// Finds out what the database is, by reading alone.
///
/// # Errors
///
/// [`StoreError::NotABoard`] if it is neither empty nor a board of this format; else what SQLite
/// reported.
pub(crate) fn identify(conn: &Connection, path: &Path) -> Result<Identity> {
    let started = Instant::now();
    let log_was_in_use = has_log(path);
    let found = match header(conn) {
        // SQLite takes a file of one byte for an empty one, whatever the byte.
        Ok((0, 0, 0)) if fs::metadata(path).is_ok_and(|file| file.len() == 1) => {
            Found::NotADatabase
        }
        Ok((0, 0, 0)) => return Ok(Identity::Empty),
        Ok((APPLICATION_ID, FORMAT, _)) => return Ok(Identity::Board),
        Ok((APPLICATION_ID, format, _)) if (1..FORMAT).contains(&format) => {
            return Ok(Identity::Older { format });
        }
        Ok((APPLICATION_ID, version, _)) => Found::Version { version },
        Ok((id, _, _)) => Found::Application { id },
        Err(source) if source.sqlite_error_code() == Some(ErrorCode::NotADatabase) => {
            Found::NotADatabase
        }
        Err(source) => {
            return Err(StoreError::refused(source, "read the header", path, started.elapsed()));
        }
    };
    if log_was_in_use {
        // Else closing it would copy another application's log into its database.
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
            .map_err(|source| StoreError::Sqlite { during: "leave the log as it is", source })?;
    }
    Err(not_a_board(path, found))
}

/// Makes a board of an empty database, within a transaction of the caller's.
pub(crate) fn make(conn: &Connection) -> rusqlite::Result<()> {
    for (_, sql) in OBJECTS {
        conn.execute_batch(sql)?;
    }
    conn.pragma_update(None, "application_id", APPLICATION_ID)?;
    conn.pragma_update(None, "user_version", FORMAT)
}

/// Compares the tables and indexes of a board with what they must be.
///
/// What others have added beside them is let be, but for triggers: those would write under a
/// board's name.
///
/// # Errors
///
/// [`StoreError::NotABoard`] with the first that is missing, differs or is too many; else what
/// SQLite reported.
pub(crate) fn check(conn: &Connection, path: &Path) -> Result<()> {
    let started = Instant::now();
    let objects = objects(conn).map_err(|source| {
        StoreError::refused(source, "read the schema", path, started.elapsed())
    })?;
    for (name, sql) in OBJECTS {
        if objects.get(name).map(|object| object.sql.as_str()) != Some(sql) {
            return Err(not_a_board(path, Found::Schema { object: name.to_owned() }));
        }
    }
    match objects.into_iter().find(|(_, object)| object.kind == "trigger") {
        Some((object, _)) => Err(not_a_board(path, Found::Schema { object })),
        None => Ok(()),
    }
}

pub(crate) fn not_a_board(path: &Path, found: Found) -> StoreError {
    StoreError::NotABoard { path: path.to_owned(), found }
}

/// `application_id`, `user_version`, and how many tables, indexes and the like there are, all of
/// one moment. They are asked for in ways that no table or view of the database can answer instead.
fn header(conn: &Connection) -> rusqlite::Result<(i64, i64, i64)> {
    let _snapshot = if conn.is_autocommit() { Some(conn.unchecked_transaction()?) } else { None };
    let count = "SELECT count(*) FROM sqlite_schema";
    Ok((
        conn.pragma_query_value(None, "application_id", |row| row.get(0))?,
        conn.pragma_query_value(None, "user_version", |row| row.get(0))?,
        conn.query_row(count, [], |row| row.get(0))?,
    ))
}

/// Whether the database has a write-ahead log with something in it. It is looked at, not opened.
fn has_log(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else { return false };
    let mut log = path.into_os_string();
    log.push("-wal");
    fs::metadata(log).is_ok_and(|log| log.len() > 0)
}

struct Object {
    kind: String,
    sql: String,
}

/// All that the schema table lists, by name. An index that SQLite makes itself has no statement.
fn objects(conn: &Connection) -> rusqlite::Result<BTreeMap<String, Object>> {
    conn.prepare("SELECT name, type, coalesce(sql, '') FROM sqlite_schema")?
        .query_map([], |row| Ok((row.get(0)?, Object { kind: row.get(1)?, sql: row.get(2)? })))?
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rusqlite::Connection;

    use super::*;
    use crate::board::Board;
    use crate::board::fixture::{Place, quick};

    /// Both ways of opening refuse the file for that reason, and leave it as it is.
    #[track_caller]
    fn check_refused(place: &Place, reason: &Found) {
        let before = fs::read(place.path()).unwrap();
        for open in [Board::open, Board::create] {
            let error = open(&place.path(), &quick()).unwrap_err();
            let StoreError::NotABoard { path, found } = error else { panic!("{error:?}") };
            assert_eq!((path, &found), (place.path(), reason));
            assert_eq!(fs::read(place.path()).unwrap(), before);
        }
    }

    #[test]
    fn garbage_is_refused_and_left_as_it_is() {
        for length in [1, 15, 16, 99, 100, 511, 512, 4096, 10_000] {
            let place = Place::new();
            let noise: Vec<u8> = (0..length).map(|i: u32| (i * i % 251) as u8 | 1).collect();
            fs::write(place.path(), noise).unwrap();
            check_refused(&place, &Found::NotADatabase);
        }
    }

    #[test]
    fn text_file_is_refused_and_left_as_it_is() {
        let place = Place::new();
        fs::write(place.path(), "SQLite format 3, or so they say\n".repeat(40)).unwrap();
        check_refused(&place, &Found::NotADatabase);
    }

    #[test]
    fn database_of_another_application_is_refused_and_left_as_it_is() {
        for mode in ["delete", "wal"] {
            let place = Place::new();
            let other = Connection::open(place.path()).unwrap();
            other.pragma_update(None, "journal_mode", mode).unwrap();
            other.execute_batch("CREATE TABLE t (x); PRAGMA application_id = 252006673").unwrap();
            drop(other);
            check_refused(&place, &Found::Application { id: 252_006_673 });
            assert_eq!(fs::read_dir(place.path().parent().unwrap()).unwrap().count(), 1);
        }
    }

    #[test]
    fn database_without_an_application_id_is_not_taken_for_an_empty_one() {
        let place = Place::new();
        Connection::open(place.path()).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
        check_refused(&place, &Found::Application { id: 0 });
    }

    #[test]
    fn database_that_poses_as_a_board_by_its_views_is_refused() {
        let place = Place::new();
        let pose = "CREATE VIEW pragma_application_id AS SELECT 1751282276 AS application_id; \
                    CREATE VIEW pragma_user_version AS SELECT 1 AS user_version";
        Connection::open(place.path()).unwrap().execute_batch(pose).unwrap();
        check_refused(&place, &Found::Application { id: 0 });
    }

    #[test]
    fn log_that_another_application_left_is_not_copied_into_its_database() {
        let place = Place::new();
        let dead = place.path().with_file_name("dead.db");
        let other = Connection::open(&dead).unwrap();
        other.pragma_update(None, "journal_mode", "wal").unwrap();
        other.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)").unwrap();
        // What a killed process leaves: the database and its log, and nobody who has them open.
        for end in ["", "-wal"] {
            let from = place.path().with_file_name(format!("dead.db{end}"));
            let to = place.path().with_file_name(format!("board.db{end}"));
            fs::copy(from, to).unwrap();
        }
        let log = place.path().with_file_name("board.db-wal");
        let before = fs::read(&log).unwrap();
        check_refused(&place, &Found::Application { id: 0 });
        assert_eq!(fs::read(&log).unwrap(), before);
        drop(other);
    }

    #[test]
    fn board_of_a_later_format_is_refused_and_left_as_it_is() {
        let place = Place::new();
        let board = place.board();
        board.connection().pragma_update(None, "user_version", FORMAT + 1).unwrap();
        board.close().unwrap();
        check_refused(&place, &Found::Version { version: FORMAT + 1 });
    }

    #[test]
    fn board_with_a_changed_schema_is_refused_with_the_name_of_what_differs() {
        let changes = [
            ("DROP INDEX runs_live", "runs_live"),
            ("ALTER TABLE events ADD COLUMN extra TEXT", "events"),
            ("DROP INDEX tasks_ready; CREATE INDEX tasks_ready ON tasks (id)", "tasks_ready"),
            ("CREATE TRIGGER sly AFTER INSERT ON tasks BEGIN DELETE FROM events; END", "sly"),
        ];
        for (change, object) in changes {
            let place = Place::new();
            let board = place.board();
            board.connection().execute_batch(change).unwrap();
            board.close().unwrap();
            check_refused(&place, &Found::Schema { object: object.to_owned() });
        }
    }

    #[test]
    fn tables_and_statistics_that_others_added_are_let_be() {
        let place = Place::new();
        let board = place.board();
        board.connection().execute_batch("CREATE TABLE copier (x); ANALYZE").unwrap();
        board.close().unwrap();
        assert!(Board::open(&place.path(), &quick()).is_ok());
    }

    #[test]
    fn empty_file_is_not_opened_as_a_board_but_becomes_one_when_asked() {
        let place = Place::new();
        fs::write(place.path(), "").unwrap();
        let error = Board::open(&place.path(), &quick()).unwrap_err();
        let StoreError::NotABoard { found: Found::Empty, .. } = error else { panic!("{error:?}") };
        assert_eq!(fs::read(place.path()).unwrap(), b"");
        assert!(Board::create(&place.path(), &quick()).is_ok());
        assert!(Board::open(&place.path(), &quick()).is_ok());
    }

    #[test]
    fn board_whose_maker_died_before_the_schema_is_made_anew() {
        let place = Place::new();
        let other = Connection::open(place.path()).unwrap();
        other.pragma_update(None, "journal_mode", "wal").unwrap();
        drop(other);
        assert!(fs::metadata(place.path()).unwrap().len() > 0);
        assert!(Board::create(&place.path(), &quick()).is_ok());
    }

    #[test]
    fn board_cut_short_is_damaged() {
        let place = Place::new();
        place.board().close().unwrap();
        let whole = fs::read(place.path()).unwrap();
        fs::write(place.path(), &whole[..whole.len() / 2]).unwrap();
        let error = Board::open(&place.path(), &quick()).unwrap_err();
        let StoreError::Corrupt { path, .. } = &error else { panic!("{error:?}") };
        assert_eq!(*path, place.path());
        assert!(std::error::Error::source(&error).is_some());
        assert_eq!(fs::read(place.path()).unwrap(), whole[..whole.len() / 2]);
    }

    #[test]
    fn application_id_is_its_name_in_ascii() {
        assert_eq!(APPLICATION_ID, i64::from(u32::from_be_bytes(*b"hbrd")));
    }

    #[test]
    fn tables_refuse_what_no_write_of_a_board_puts_there() {
        const TASK: &str = "INSERT INTO tasks (id, title, priority, status, fence, result, \
             created_seq, changed_seq, due_ms, reason) VALUES ";
        const RUN: &str = "INSERT INTO runs (task_id, token, worker, lease_until_ms, started_seq, \
             changed_seq, ended_seq, outcome, boot_id, lease_until_boot_ms, started_boot_ms, pid) \
             VALUES ";
        let task = format!("{TASK} (1, 'x', 0, 'ready', 0, NULL, 1, 1, NULL, NULL)");
        let forbidden = [
            format!("{TASK} (1, 'x', 0, 'lost', 0, NULL, 1, 1, NULL, NULL)"),
            format!("{TASK} (1, 'x', 0, 'ready', -1, NULL, 1, 1, NULL, NULL)"),
            format!("{TASK} (1, 'x', 'high', 'ready', 0, NULL, 1, 1, NULL, NULL)"),
            format!("{TASK} (1, 'x', 0, 'running', 0, NULL, 1, 1, NULL, NULL)"),
            format!("{TASK} (1, 'x', 0, 'done', 0, NULL, 1, 1, NULL, NULL)"),
            format!("{TASK} (1, 'x', 0, 'blocked', 0, NULL, 1, 1, NULL, NULL)"),
            format!("{TASK} (1, 'x', 0, 'scheduled', 0, NULL, 1, 1, NULL, NULL)"),
            format!("{TASK} (1, 'x', 0, 'ready', 0, NULL, 1, 1, 5, NULL)"),
            format!("{RUN} (9, 1, 'ann', 0, 1, 1, NULL, NULL, 'b', 0, 0, NULL)"),
            "INSERT INTO events VALUES (1, 9, NULL, 'k', 'p', 1, 0)".to_owned(),
            format!("{task}; {RUN} (1, 1, 'ann', 0, 1, 1, NULL, 'completed', 'b', 0, 0, NULL)"),
            format!("{task}; {RUN} (1, 1, 'ann', 0, 1, 1, 2, 'lost', 'b', 0, 0, NULL)"),
            format!("{task}; {RUN} (1, 1, 'ann', 0, 1, 1, NULL, NULL, 'b', 0, 0, 7)"),
            format!("{task}; {RUN} (1, 0, 'ann', 0, 1, 1, NULL, NULL, 'b', 0, 0, NULL)"),
            format!(
                "{task}; {RUN} (1, 1, 'ann', 0, 1, 1, NULL, NULL, 'b', 0, 0, NULL); \
                 {RUN} (1, 2, 'bob', 0, 1, 1, NULL, NULL, 'b', 0, 0, NULL)"
            ),
            format!("{task}; INSERT INTO links VALUES (1, 1, 1)"),
            format!("{task}; INSERT INTO links VALUES (1, 2, 1)"),
        ];
        for sql in forbidden {
            let board = Place::new().board();
            let error = board.connection().execute_batch(&sql).unwrap_err();
            assert_eq!(error.sqlite_error_code(), Some(ErrorCode::ConstraintViolation), "{sql}");
        }
    }
}
