//! What the board costs beside the very same SQL by bare rusqlite.
//!
//! Each group measures one deed twice in one run: `bare`, the statements of the board prepared and
//! cached on a connection with equal settings, and `hardboard`, the call. What the board adds is
//! all that this project is for: the rules, the chain and its hashes, the anchor, a look at the
//! files before each commit, the owner of checkpoints. Before anything is timed both are put
//! through the same deeds and must leave the same rows, so that they stay the same work.
//!
//! Each is measured at both durabilities: `process` (`synchronous = normal`), where nothing hides
//! what the board costs, and `power` (`full`), where each commit is synced.
//!
//! The databases lie in a new directory: for `process` under `HARDBOARD_BENCH_DIR`, else
//! `/dev/shm` if it is there, else the temporary directory; for `power` under
//! `HARDBOARD_BENCH_DISK`, else the temporary directory. Each is replaced by an empty one after a
//! fixed number of deeds, outside the timing.

mod bare;

use std::env;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use hardboard::{
    Board, Durability, FencingToken, NewEvent, NewTask, Options, Pragmas, Session, TaskId,
};
use rusqlite::Connection;
use tempfile::TempDir;

use bare::Bare;

const LEASE: Duration = Duration::from_hours(1);
const TITLE: &str = "resize the pictures of chapter four";
const PAYLOAD: &str = r#"{"step":17,"of":240,"note":"nothing out of the ordinary"}"#;

/// Deeds before a database is replaced.
const DEEDS: u64 = 2000;

/// What both contestants can do.
trait Contestant {
    fn new(path: &Path, durability: Durability) -> Self;
    fn create(&mut self) -> i64;
    /// Claims the next task; gives its number and the token.
    fn claim(&mut self) -> (i64, i64);
    fn heartbeat(&mut self, task: i64, token: i64);
    fn complete(&mut self, task: i64, token: i64);
    fn append(&mut self, task: i64, token: i64, count: u32);
    fn connection(&self) -> &Connection;
    fn pragmas(&self) -> Pragmas;
}

fn options(durability: Durability) -> Options {
    Options { synchronous: durability.level(), ..Options::default() }
}

struct Hardboard {
    board: Board,
    session: Session,
}

impl Contestant for Hardboard {
    fn new(path: &Path, durability: Durability) -> Self {
        let board = Board::create(path, &options(durability)).expect("a new board");
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

    fn pragmas(&self) -> Pragmas {
        self.board.pragmas().expect("settings")
    }
}

/// A directory for one database after the other.
struct Place {
    dir: TempDir,
    durability: Durability,
    databases: u32,
}

impl Place {
    fn new(durability: Durability) -> Self {
        let dir = TempDir::with_prefix_in("hardboard-bench-", base(durability));
        Self { dir: dir.expect("a directory for the databases"), durability, databases: 0 }
    }

    /// A new database; the one before it has been closed and is deleted.
    fn fresh<C: Contestant>(&mut self) -> C {
        for ending in ["", "-wal", "-shm", "-lock", "-anchor"] {
            std::fs::remove_file(format!("{}{ending}", self.path().display())).ok();
        }
        self.databases += 1;
        C::new(&self.path(), self.durability)
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join(format!("{}.db", self.databases))
    }
}

fn base(durability: Durability) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let variable = match durability {
        Durability::Process => "HARDBOARD_BENCH_DIR",
        Durability::Power => "HARDBOARD_BENCH_DISK",
    };
    match env::var_os(variable) {
        Some(chosen) => chosen.into(),
        None if memory.is_dir() && durability == Durability::Process => memory.to_owned(),
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
    for durability in [Durability::Process, Durability::Power] {
        let name = format!("{} at {durability}", D::NAME);
        let mut group = criterion.benchmark_group(&name);
        measure::<Bare, D>(&mut group, "bare", durability);
        measure::<Hardboard, D>(&mut group, "hardboard", durability);
        drop(group);
        if is_asked_for(&name) {
            pair::<D>(durability);
        }
    }
}

/// Whether the command line asks for the group as a whole: criterion keeps its filter to itself.
fn is_asked_for(group: &str) -> bool {
    let mut arguments = env::args().skip(1);
    let profiled = env::args().any(|argument| argument == "--profile-time");
    let filter = arguments.find(|argument| !argument.starts_with('-'));
    !profiled && filter.is_none_or(|filter| group.contains(&filter))
}

/// Times the deed on a database that is replaced now and then.
fn measure<C: Contestant, D: Deed>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    durability: Durability,
) {
    let mut place = Place::new(durability);
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
fn pair<D: Deed>(durability: Durability) {
    const TURNS: u64 = 16;
    const DEEDS_A_TURN: u64 = 15;
    // A sync takes a thousand times what a statement takes, and hides as much of its noise.
    let rounds = if durability == Durability::Power { 12 } else { 60 };
    let (mut bare_place, mut hard_place) = (Place::new(durability), Place::new(durability));
    let mut ratios = Vec::with_capacity(rounds);
    for _ in 0..rounds {
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
    let [low, middle, high] = [rounds / 4, rounds / 2, rounds * 3 / 4].map(|rank| ratios[rank]);
    eprintln!(
        "{} at {durability}: hardboard takes {middle:.3} times what bare takes (median of {rounds} \
         rounds, half of them between {low:.3} and {high:.3})\n",
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
    let mut place = Place::new(Durability::Process);
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
             created_seq, changed_seq, body, workspace_kind, failures) FROM tasks \
         UNION ALL SELECT concat_ws(',', task_id, token, worker, heartbeats, started_seq, \
             changed_seq, ended_seq, outcome) FROM runs \
         UNION ALL SELECT concat_ws(',', id, task_id, token, kind, payload, commit_seq) \
             FROM events";
    let rows = conn.prepare(rows).and_then(|mut rows| {
        rows.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()
    });
    (rows.expect("rows"), contestant.pragmas())
}

/// An open of a board that was closed in good order and that others have open.
fn open(criterion: &mut Criterion) {
    let mut place = Place::new(Durability::Process);
    let mut board: Hardboard = place.fresh();
    for _ in 0..1000 {
        board.create();
    }
    criterion.bench_function("open", |bencher| {
        bencher.iter(|| {
            let opened = Board::open(&place.path(), &options(Durability::Process));
            black_box(opened.expect("the board is there"))
        });
    });
}

/// A write at the other durability than the one before, on a disk that syncs for nothing.
fn change_of_durability(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("append 1 event in memory");
    for (name, durabilities) in [
        ("power", [Durability::Power, Durability::Power]),
        ("power and process in turn", [Durability::Power, Durability::Process]),
    ] {
        let mut place = Place::new(Durability::Process);
        let mut hardboard: Hardboard = place.fresh();
        hardboard.create();
        let (task, _) = hardboard.claim();
        let event = [NewEvent { kind: "progress", payload: PAYLOAD }];
        let mut turn = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                turn = 1 - turn;
                let key = hardboard.session.next_key();
                let mut board = hardboard.board.at(durabilities[turn]);
                let appended = board.append_events(key, TaskId::new(task), None, &event);
                black_box(appended.expect("it is written").seq)
            });
        });
    }
}

#[expect(clippy::print_stderr, reason = "people must see what was measured where")]
fn say_where(_: &mut Criterion) {
    assert_eq!(rehearse::<Bare>(), rehearse::<Hardboard>(), "both must do the same work");
    for durability in [Durability::Process, Durability::Power] {
        eprintln!("databases at {durability} in {}", base(durability).display());
    }
}

criterion_group!(
    benches,
    say_where,
    compare::<Create>,
    compare::<Work>,
    compare::<Append<1>>,
    compare::<Append<10>>,
    open,
    change_of_durability,
);
criterion_main!(benches);
