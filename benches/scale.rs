//! What a big board costs, and what many processes cost each other.
//!
//! `cargo bench --bench scale`: a board of 100 000 tasks and 1 000 000 events, on which a claim of
//! the next task, lists and pages of events are timed; then 1, 2, 4, 8 and 16 processes that claim
//! and complete tasks of one board as fast as they can, with how many claims a second they make
//! together, and the wait of the process that waits longest: the 99th of a hundred of its claims.
//!
//! The databases lie in a new directory under `HARDBOARD_BENCH_DIR`, else `/dev/shm` if it is
//! there, else the temporary directory. Commits are not synced one by one, which would hide
//! everything else.

use std::env;
use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use criterion::Criterion;
use hardboard::{
    Board, EventId, NewEvent, NewTask, Options, Session, Status, StoreError, Synchronous,
    TaskFilter, TaskId,
};
use tempfile::TempDir;

const TASKS: u32 = 100_000;
const EVENTS_A_TASK: usize = 9;
const LEASE: Duration = Duration::from_hours(1);
/// How long the processes claim.
const TURN: Duration = Duration::from_secs(2);
/// Set in a process that claims: the board, and its number.
const CLAIMER: &str = "HARDBOARD_BENCH_CLAIMER";

fn options() -> Options {
    let busy_timeout = Duration::from_secs(30);
    Options { synchronous: Synchronous::Normal, busy_timeout, ..Options::default() }
}

fn place() -> TempDir {
    let memory = Path::new("/dev/shm");
    let base = match env::var_os("HARDBOARD_BENCH_DIR") {
        Some(chosen) => chosen.into(),
        None if memory.is_dir() => memory.to_owned(),
        None => env::temp_dir(),
    };
    TempDir::with_prefix_in("hardboard-scale-", base).expect("a directory for the databases")
}

/// One event for the making of each task and nine more: a million in all.
fn fill(board: &mut Board, session: &mut Session, tasks: u32, events: usize) {
    let note = NewEvent { kind: "progress", payload: r#"{"step":17,"of":240}"# };
    let notes = vec![note; events];
    for number in 0..tasks {
        let priority = i64::from(number % 7);
        let task = NewTask { title: "resize a picture", priority, ..NewTask::default() };
        let made = board.create_task(session.next_key(), &task).expect("the task is made");
        if events > 0 {
            let key = session.next_key();
            let appended = board.append_events(key, made.0, None, &notes);
            black_box(appended.expect("the events are appended").seq);
        }
    }
}

fn big_board(criterion: &mut Criterion) {
    let dir = place();
    let mut session = Session::new(1);
    let mut board = Board::create(&dir.path().join("big.db"), &options()).expect("a new board");
    fill(&mut board, &mut session, TASKS, EVENTS_A_TASK);
    let mut group = criterion.benchmark_group("100000 tasks, 1000000 events");
    group.bench_function("claim next", |bencher| {
        bencher.iter_custom(|iterations| {
            let mut spent = Duration::ZERO;
            for _ in 0..iterations {
                let from = Instant::now();
                let claim = board.claim_next(session.next_key(), "ann", LEASE);
                spent += from.elapsed();
                let claim = claim.expect("the claim is made").expect("a task is ready");
                let released = board.release(session.next_key(), claim.task, claim.token, "");
                black_box(released.expect("the claim is live").seq);
            }
            spent
        });
    });
    let lists = [
        ("list 100 tasks", TaskFilter::default()),
        ("list 100 ready", TaskFilter { status: Some(Status::Ready), ..TaskFilter::default() }),
        (
            "list 100 from the middle",
            TaskFilter { after: TaskId::new(50_000), ..Default::default() },
        ),
    ];
    for (name, filter) in lists {
        let filter = TaskFilter { limit: Some(100), ..filter };
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(board.tasks(filter).expect("a list").len()));
        });
    }
    group.bench_function("events of a task", |bencher| {
        let task = Some(TaskId::new(77_777));
        bencher
            .iter(|| board.events_after(task, EventId::new(0), Some(100)).expect("events").len());
    });
    group.bench_function("100 events from the middle", |bencher| {
        let after = EventId::new(500_000);
        bencher.iter(|| board.events_after(None, after, Some(100)).expect("events").len());
    });
    group.finish();
}

/// The life of a process that claims: it prints how many claims it made, and its waits, in
/// microseconds.
fn claim_until_told(board: &Path, number: i64) -> Vec<Duration> {
    let mut board = Board::open(board, &options()).expect("the board");
    let mut session = Session::new(1000 + number);
    let (until, mut waits) = (Instant::now() + TURN, Vec::new());
    while Instant::now() < until {
        let from = Instant::now();
        match board.claim_next(session.next_key(), "ann", LEASE) {
            Ok(Some(claim)) => {
                waits.push(from.elapsed());
                let done = board.complete(session.next_key(), claim.task, claim.token, "");
                black_box(done.expect("the claim is live").seq);
            }
            Ok(None) => panic!("no task is ready: make more"),
            Err(StoreError::Busy { .. }) => waits.push(from.elapsed()),
            Err(error) => panic!("{error}"),
        }
    }
    waits
}

fn start(board: &Path, number: usize) -> Child {
    Command::new(env::current_exe().expect("this program"))
        .env(CLAIMER, board)
        .env("HARDBOARD_BENCH_NUMBER", number.to_string())
        .spawn()
        .expect("a process")
}

#[expect(clippy::print_stderr, reason = "criterion has no place for processes")]
fn many_processes() {
    const CLAIMS_A_SECOND_MAX: u32 = 30_000;
    for processes in [1, 2, 4, 8, 16] {
        let dir = place();
        let path = dir.path().join("shared.db");
        let mut board = Board::create(&path, &options()).expect("a new board");
        fill(&mut board, &mut Session::new(1), CLAIMS_A_SECOND_MAX, 0);
        let children: Vec<Child> = (0..processes).map(|number| start(&path, number)).collect();
        for mut child in children {
            assert!(child.wait().expect("a process").success());
        }
        let (mut all, mut fewest, mut longest) = (0, usize::MAX, 0);
        for number in 0..processes {
            let told = fs::read_to_string(waits_file(&path, number)).expect("its waits");
            let mut waits: Vec<u64> = told.lines().filter_map(|line| line.parse().ok()).collect();
            waits.sort_unstable();
            all += waits.len();
            fewest = fewest.min(waits.len());
            longest = longest.max(waits.get(waits.len() * 99 / 100).copied().unwrap_or(0));
        }
        let seconds = TURN.as_secs_f64();
        eprintln!(
            "{processes:>2} processes: {:>6.0} claims/s, of the slowest {:>6.0}/s, 99 % of its \
             claims within {longest} µs",
            f64::from(u32::try_from(all).unwrap_or(u32::MAX)) / seconds,
            f64::from(u32::try_from(fewest).unwrap_or(u32::MAX)) / seconds,
        );
    }
}

fn waits_file(board: &Path, number: usize) -> PathBuf {
    board.with_extension(format!("waits-{number}"))
}

fn main() {
    if let Some(board) = env::var_os(CLAIMER) {
        let number = env::var("HARDBOARD_BENCH_NUMBER").ok().and_then(|text| text.parse().ok());
        let number: usize = number.expect("its number");
        let waits = claim_until_told(Path::new(&board), i64::try_from(number).unwrap_or(0));
        let lines: Vec<_> = waits.iter().map(|wait| wait.as_micros().to_string()).collect();
        let file = waits_file(Path::new(&board), number);
        fs::write(file, lines.join("\n")).expect("the waits are written");
        return;
    }
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    many_processes();
    big_board(&mut criterion);
    criterion.final_summary();
}
