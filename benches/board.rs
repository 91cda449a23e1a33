//! What the board costs beside the very same SQL by bare rusqlite.
//!
//! Each group measures one deed twice in one run: `bare`, the statements of the board prepared and
//! cached on a connection with equal settings, and `hardboard`, the call. Before anything is timed
//! both are put through the same deeds and must leave the same rows, so that they stay the same
//! work. Commits are not synced one by one (`synchronous = normal`), which would hide everything
//! else.
//!
//! The databases lie in a new directory under `HARDBOARD_BENCH_DIR`, else `/dev/shm` if it is
//! there, else the temporary directory. Each is replaced by an empty one after a fixed number of
//! deeds, outside the timing.

use std::env;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use hardboard::board::schema;
use hardboard::{
    Board, FencingToken, NewEvent, NewTask, Options, Pragmas, Session, Synchronous, TaskId,
};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension};
use tempfile::TempDir;

const LEASE: Duration = Duration::from_hours(1);
const TITLE: &str = "resize the pictures of chapter four";
const PAYLOAD: &str = r#"{"step":17,"of":240,"note":"nothing out of the ordinary"}"#;

/// Deeds before a database is replaced.
const DEEDS: u64 = 2000;

/// What both contestants can do.
trait Contestant {
    fn new(path: &Path) -> Self;
    fn create(&mut self) -> i64;
    /// Claims the next task; gives its number and the token.
    fn claim(&mut self) -> (i64, i64);
    fn heartbeat(&mut self, task: i64, token: i64);
    fn complete(&mut self, task: i64, token: i64);
    fn append(&mut self, task: i64, token: i64, count: u32);
    fn connection(&self) -> &Connection;
}

fn options() -> Options {
    Options { synchronous: Synchronous::Normal, ..Options::default() }
}

struct Hardboard {
    board: Board,
    session: Session,
}

impl Contestant for Hardboard {
    fn new(path: &Path) -> Self {
        let board = Board::create(path, &options()).expect("a new board");
        Self { board, session: Session::new(1) }
    }

    fn create(&mut self) -> i64 {
        let task = NewTask { title: TITLE, ..NewTask::default() };
        let made = self.board.create_task(self.session.next_key(), &task);
        made.expect("the task is made").0.get()
    }

    fn claim(&mut self) -> (i64, i64) {
        let claim = self.board.claim_next(self.session.next_key(), "ann", LEASE);
        let claim = claim.expect("the claim is made").expect("a task is ready");
        (claim.task.get(), claim.token.get())
    }

    fn heartbeat(&mut self, task: i64, token: i64) {
        let (task, token) = (TaskId::new(task), FencingToken::new(token));
        let beat = self.board.heartbeat(self.session.next_key(), task, token, LEASE);
        black_box(beat.expect("the claim is live").seq);
    }

    fn complete(&mut self, task: i64, token: i64) {
        let (task, token) = (TaskId::new(task), FencingToken::new(token));
        let done = self.board.complete(self.session.next_key(), task, token, PAYLOAD);
        black_box(done.expect("the claim is live").seq);
    }

    fn append(&mut self, task: i64, token: i64, count: u32) {
        let (task, token) = (TaskId::new(task), FencingToken::new(token));
        let events = [NewEvent { kind: "progress", payload: PAYLOAD }; 10];
        let events = if count == 1 { &events[..1] } else { &events };
        let key = self.session.next_key();
        let appended = self.board.append_events(key, task, Some(token), events);
        black_box(appended.expect("the claim is live").seq);
    }

    fn connection(&self) -> &Connection {
        self.board.connection()
    }
}

struct Bare {
    conn: Connection,
    op: i64,
}

impl Bare {
    fn open(path: &Path) -> rusqlite::Result<Self> {
        let conn = Connection::open(path)?;
        conn.set_prepared_statement_cache_capacity(64);
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        conn.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; \
             PRAGMA wal_autocheckpoint = 1000; PRAGMA busy_timeout = 5000; \
             PRAGMA foreign_keys = ON; PRAGMA mmap_size = 0; PRAGMA trusted_schema = OFF; \
             PRAGMA cell_size_check = ON; BEGIN",
        )?;
        for (_, sql) in schema::OBJECTS {
            conn.execute_batch(sql)?;
        }
        conn.execute_batch("COMMIT")?;
        Ok(Self { conn, op: 0 })
    }

    /// One transaction: its body, and then its row in the log, which says what the body gave.
    fn transaction<T>(
        &mut self,
        kind: &str,
        body: impl FnOnce(&Connection, i64) -> rusqlite::Result<(T, About)>,
    ) -> rusqlite::Result<T> {
        self.op += 1;
        self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let before: Option<i64> = self
            .conn
            .prepare_cached("SELECT seq FROM commits WHERE session = ?1 AND op = ?2")?
            .query_row((1, self.op), |row| row.get(0))
            .optional()?;
        assert!(before.is_none());
        let seq: i64 = self
            .conn
            .prepare_cached("SELECT coalesce(max(seq), 0) FROM commits")?
            .query_row([], |row| row.get(0))?;
        let (value, (task, token, rows)) = body(&self.conn, seq + 1)?;
        self.conn
            .prepare_cached(
                "INSERT INTO commits (seq, session, op, kind, task_id, token, rows, at_ms) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute((seq + 1, 1, self.op, kind, task, token, rows, now_ms()))?;
        self.conn.prepare_cached("COMMIT")?.execute([])?;
        Ok(value)
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
            "INSERT INTO events (task_id, token, kind, payload, commit_seq) \
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute((task, token, kind, payload, seq))?;
        Ok(())
    }

    fn try_create(conn: &Connection, seq: i64) -> rusqlite::Result<(i64, About)> {
        let id: i64 = conn
            .prepare_cached("SELECT coalesce(max(id), 0) + 1 FROM tasks")?
            .query_row([], |row| row.get(0))?;
        conn.prepare_cached(
            "INSERT INTO tasks (id, title, priority, status, created_seq, changed_seq, body, \
             assignee, tenant, created_by, idempotency_key, workspace_kind, workspace_path, \
             due_ms, reason, failure_limit, max_runtime_ms, extra) \
             VALUES (?1, ?2, 0, 'ready', ?3, ?3, '', NULL, NULL, '', NULL, 'scratch', NULL, NULL, \
             NULL, NULL, NULL, NULL)",
        )?
        .execute((id, TITLE, seq))?;
        Self::event(conn, id, None, "created", TITLE, seq)?;
        Ok((id, (id, None, 1)))
    }

    fn try_claim(conn: &Connection, seq: i64) -> rusqlite::Result<((i64, i64), About)> {
        let next = "SELECT id, fence, priority FROM tasks INDEXED BY tasks_ready \
             WHERE status = 'ready' AND assignee IS NULL ORDER BY priority DESC, id LIMIT 1";
        let open: Option<(i64, i64)> = conn
            .prepare_cached(next)?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let next = "SELECT id, fence, priority FROM tasks INDEXED BY tasks_ready_for \
             WHERE status = 'ready' AND assignee = ?1 ORDER BY priority DESC, id LIMIT 1";
        let own: Option<(i64, i64)> = conn
            .prepare_cached(next)?
            .query_row(["ann"], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let (task, fence) = open.or(own).ok_or(rusqlite::Error::QueryReturnedNoRows)?;
        let (token, now) = (fence + 1, now_ms());
        conn.prepare_cached(
            "UPDATE tasks SET fence = ?2, status = 'running', changed_seq = ?3 WHERE id = ?1",
        )?
        .execute((task, token, seq))?;
        conn.prepare_cached(
            "INSERT INTO runs (task_id, token, worker, lease_until_ms, started_seq, changed_seq, \
             boot_id, lease_until_boot_ms, started_boot_ms, pid, pid_started_ticks, \
             pid_namespace, epoch, max_runtime_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6, ?7, ?8, NULL, NULL, NULL, NULL, NULL)",
        )?
        .execute((task, token, "ann", until_ms(now), seq, BOOT_ID, until_ms(now), now))?;
        Self::event(conn, task, Some(token), "claimed", "ann", seq)?;
        Ok(((task, token), (task, Some(token), 1)))
    }

    fn try_heartbeat(
        conn: &Connection,
        seq: i64,
        (task, token): (i64, i64),
    ) -> rusqlite::Result<((), About)> {
        let until = until_ms(now_ms());
        let changed = conn
            .prepare_cached(
                "UPDATE runs SET heartbeats = heartbeats + 1, lease_until_ms = ?3, boot_id = ?4, \
                 lease_until_boot_ms = ?5, changed_seq = ?6 \
                 WHERE task_id = ?1 AND token = ?2 AND ended_seq IS NULL",
            )?
            .execute((task, token, until, BOOT_ID, until, seq))?;
        assert_eq!(changed, 1);
        Ok(((), (task, Some(token), 0)))
    }

    fn try_complete(
        conn: &Connection,
        seq: i64,
        (task, token): (i64, i64),
    ) -> rusqlite::Result<((), About)> {
        let changed = conn
            .prepare_cached(
                "UPDATE runs SET ended_seq = ?3, changed_seq = ?3, outcome = 'completed', \
                 summary = NULL, error = NULL \
                 WHERE task_id = ?1 AND token = ?2 AND ended_seq IS NULL",
            )?
            .execute((task, token, seq))?;
        assert_eq!(changed, 1);
        conn.prepare_cached(
            "UPDATE tasks SET status = 'done', result = ?2, due_ms = NULL, reason = NULL, \
             failures = 0, interruptions = 0, changed_seq = ?3 WHERE id = ?1",
        )?
        .execute((task, PAYLOAD, seq))?;
        Self::event(conn, task, Some(token), "completed", PAYLOAD, seq)?;
        let children = conn
            .prepare_cached("SELECT child_id FROM links WHERE parent_id = ?1 ORDER BY 1")?
            .query_map([task], |row| row.get(0))?
            .collect::<rusqlite::Result<Vec<i64>>>()?;
        assert!(children.is_empty());
        Ok(((), (task, Some(token), 1)))
    }

    fn try_append(
        conn: &Connection,
        seq: i64,
        (task, token): (i64, i64),
        count: u32,
    ) -> rusqlite::Result<((), About)> {
        let live: bool = conn
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM runs \
                 WHERE task_id = ?1 AND token = ?2 AND ended_seq IS NULL)",
            )?
            .query_row((task, token), |row| row.get(0))?;
        assert!(live);
        for _ in 0..count {
            Self::event(conn, task, Some(token), "progress", PAYLOAD, seq)?;
        }
        Ok(((), (task, Some(token), count)))
    }
}

/// Task, token and events of a write, as its row in the log says.
type About = (i64, Option<i64>, u32);

/// As long as the machine's own.
const BOOT_ID: &str = "01234567-89ab-cdef-0123-456789abcdef";

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

fn until_ms(now_ms: i64) -> i64 {
    now_ms + i64::try_from(LEASE.as_millis()).unwrap_or(0)
}

impl Contestant for Bare {
    fn new(path: &Path) -> Self {
        Self::open(path).expect("a new database")
    }

    fn create(&mut self) -> i64 {
        self.transaction("create", Self::try_create).expect("the task is made")
    }

    fn claim(&mut self) -> (i64, i64) {
        self.transaction("claim", Self::try_claim).expect("the claim is made")
    }

    fn heartbeat(&mut self, task: i64, token: i64) {
        self.transaction("heartbeat", |conn, seq| Self::try_heartbeat(conn, seq, (task, token)))
            .expect("the claim is live");
    }

    fn complete(&mut self, task: i64, token: i64) {
        self.transaction("complete", |conn, seq| Self::try_complete(conn, seq, (task, token)))
            .expect("the claim is live");
    }

    fn append(&mut self, task: i64, token: i64, count: u32) {
        self.transaction("events", |conn, seq| Self::try_append(conn, seq, (task, token), count))
            .expect("the claim is live");
    }

    fn connection(&self) -> &Connection {
        &self.conn
    }
}

/// A directory for one database after the other.
struct Place {
    dir: TempDir,
    databases: u32,
}

impl Place {
    fn new() -> Self {
        let dir = TempDir::with_prefix_in("hardboard-bench-", base());
        Self { dir: dir.expect("a directory for the databases"), databases: 0 }
    }

    /// A new database; the one before it has been closed and is deleted.
    fn fresh<C: Contestant>(&mut self) -> C {
        std::fs::remove_file(self.path()).ok();
        self.databases += 1;
        C::new(&self.path())
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join(format!("{}.db", self.databases))
    }
}

fn base() -> PathBuf {
    let memory = Path::new("/dev/shm");
    match env::var_os("HARDBOARD_BENCH_DIR") {
        Some(chosen) => chosen.into(),
        None if memory.is_dir() => memory.to_owned(),
        None => env::temp_dir(),
    }
}

/// What is measured.
trait Deed {
    const NAME: &str;

    /// Makes an empty database ready for that many deeds.
    fn prepare<C: Contestant>(contestant: &mut C, deeds: u64) -> (i64, i64);

    /// One deed, on what `prepare` gave.
    fn once<C: Contestant>(contestant: &mut C, claim: (i64, i64));
}

struct Create;

impl Deed for Create {
    const NAME: &str = "create";

    fn prepare<C: Contestant>(_: &mut C, _: u64) -> (i64, i64) {
        (0, 0)
    }

    fn once<C: Contestant>(contestant: &mut C, _: (i64, i64)) {
        black_box(contestant.create());
    }
}

/// Three transactions.
struct Work;

impl Deed for Work {
    const NAME: &str = "claim heartbeat complete";

    fn prepare<C: Contestant>(contestant: &mut C, deeds: u64) -> (i64, i64) {
        for _ in 0..deeds {
            contestant.create();
        }
        (0, 0)
    }

    fn once<C: Contestant>(contestant: &mut C, _: (i64, i64)) {
        let (task, token) = contestant.claim();
        contestant.heartbeat(task, token);
        contestant.complete(task, token);
    }
}

struct Append<const COUNT: u32>;

impl<const COUNT: u32> Deed for Append<COUNT> {
    const NAME: &str = if COUNT == 1 { "append 1 event" } else { "append 10 events" };

    fn prepare<C: Contestant>(contestant: &mut C, _: u64) -> (i64, i64) {
        contestant.create();
        contestant.claim()
    }

    fn once<C: Contestant>(contestant: &mut C, (task, token): (i64, i64)) {
        contestant.append(task, token, COUNT);
    }
}

fn compare<D: Deed>(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group(D::NAME);
    measure::<Bare, D>(&mut group, "bare");
    measure::<Hardboard, D>(&mut group, "hardboard");
    drop(group);
    pair::<D>();
}

/// Times the deed on a database that is replaced now and then.
fn measure<C: Contestant, D: Deed>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str) {
    let mut place = Place::new();
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            let mut left = iterations;
            let mut spent = Duration::ZERO;
            while left > 0 {
                let deeds = left.min(DEEDS);
                let mut contestant: C = place.fresh();
                let claim = D::prepare(&mut contestant, deeds);
                spent += time::<C, D>(&mut contestant, claim, deeds);
                left -= deeds;
            }
            spent
        });
    });
}

/// Says what the one costs as a multiple of the other, from short turns that they take one after
/// the other: on a machine that has other work to do, two long measurements differ by more than
/// what is to be measured.
#[expect(clippy::print_stderr, reason = "criterion has no place for a ratio")]
fn pair<D: Deed>() {
    const ROUNDS: usize = 60;
    const TURNS: u64 = 16;
    const DEEDS_A_TURN: u64 = 15;
    let (mut bare_place, mut hard_place) = (Place::new(), Place::new());
    let mut ratios = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let (mut bare, mut hard): (Bare, Hardboard) = (bare_place.fresh(), hard_place.fresh());
        let bare_claim = D::prepare(&mut bare, TURNS * DEEDS_A_TURN);
        let hard_claim = D::prepare(&mut hard, TURNS * DEEDS_A_TURN);
        let (mut bare_spent, mut hard_spent) = (Duration::ZERO, Duration::ZERO);
        for turn in 0..TURNS {
            if turn % 2 == 0 {
                bare_spent += time::<_, D>(&mut bare, bare_claim, DEEDS_A_TURN);
            }
            hard_spent += time::<_, D>(&mut hard, hard_claim, DEEDS_A_TURN);
            if turn % 2 == 1 {
                bare_spent += time::<_, D>(&mut bare, bare_claim, DEEDS_A_TURN);
            }
        }
        ratios.push(hard_spent.as_secs_f64() / bare_spent.as_secs_f64());
    }
    ratios.sort_by(f64::total_cmp);
    let [low, middle, high] = [ROUNDS / 4, ROUNDS / 2, ROUNDS * 3 / 4].map(|rank| ratios[rank]);
    eprintln!(
        "{}: hardboard takes {middle:.3} times what bare takes (median of {ROUNDS} rounds, half \
         of them between {low:.3} and {high:.3})\n",
        D::NAME
    );
}

fn time<C: Contestant, D: Deed>(contestant: &mut C, claim: (i64, i64), deeds: u64) -> Duration {
    let started = Instant::now();
    for _ in 0..deeds {
        D::once(contestant, claim);
    }
    started.elapsed()
}

/// All deeds once; gives every row but for the times, and the settings.
fn rehearse<C: Contestant>() -> (Vec<String>, Pragmas) {
    let mut place = Place::new();
    let mut contestant: C = place.fresh();
    contestant.create();
    let (task, token) = contestant.claim();
    contestant.heartbeat(task, token);
    contestant.append(task, token, 1);
    contestant.append(task, token, 10);
    contestant.complete(task, token);
    let conn = contestant.connection();
    let rows = "SELECT concat_ws(',', seq, session, op, kind, task_id, token, rows) FROM commits \
         UNION ALL SELECT concat_ws(',', id, title, priority, status, fence, result, \
             created_seq, changed_seq) FROM tasks \
         UNION ALL SELECT concat_ws(',', task_id, token, worker, heartbeats, started_seq, \
             changed_seq, ended_seq, outcome) FROM runs \
         UNION ALL SELECT concat_ws(',', id, task_id, token, kind, payload, commit_seq) \
             FROM events";
    let rows = conn.prepare(rows).and_then(|mut rows| {
        rows.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()
    });
    let pragmas = Pragmas::read(conn).expect("settings");
    (rows.expect("rows"), pragmas)
}

#[expect(clippy::print_stderr, reason = "people must see what was measured where")]
fn say_where(_: &mut Criterion) {
    assert_eq!(rehearse::<Bare>(), rehearse::<Hardboard>(), "both must do the same work");
    eprintln!("databases in {}, synchronous = normal", base().display());
}

criterion_group!(
    benches,
    say_where,
    compare::<Create>,
    compare::<Work>,
    compare::<Append<1>>,
    compare::<Append<10>>,
);
criterion_main!(benches);
