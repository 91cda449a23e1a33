//! What a stop costs, counted: `cargo bench -p killpoint --bench stops`.
//!
//! Three ways to be stopped, each by this very program as its own victim, all on one core, on tmpfs
//! where there is one:
//!
//! | line | what is timed |
//! |---|---|
//! | `traced` | one victim, stopped at each of its writes and let go |
//! | `one at a time` | three victims, of which another one goes on after each write |
//! | `watched` | commits of SQLite, `synchronous = FULL`, under the checker of the rules |
//!
//! The same without a stop stands beside each. What whole schedules cost is told by
//! `killpoint run scenarios/schedule/speed.toml --dir /dev/shm`.
#![allow(clippy::print_stdout, reason = "a benchmark prints what it found")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run says why and ends")]

use std::env;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use killpoint::run::trace::{
    CallSet, Choice, Command, Databases, Decision, Driver, LookOn, Options, Run, Scene, Standing,
    Stop, Supervisor, Watcher,
};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Set in a victim: `writes` or `commits`.
const VICTIM: &str = "KILLPOINT_BENCH_VICTIM";
const WRITES: u64 = 100_000;
const COMMITS: u32 = 5_000;

fn main() {
    match env::var(VICTIM).as_deref() {
        Ok("writes") => return write(&env::current_dir().unwrap().join("bench.db")),
        Ok(_) => return commit(&env::current_dir().unwrap().join("bench.db")),
        Err(_) => {}
    }
    // `cargo test --benches` builds and starts it: then it is enough that it starts.
    if !env::args().any(|argument| argument == "--bench") {
        return;
    }
    let mut one = CpuSet::new();
    one.set(0).unwrap();
    if sched_setaffinity(Pid::from_raw(0), &one).is_err() {
        println!("this program may not choose its core: the figures are those of any two");
    }
    for (name, way, victims, victim, each) in [
        ("traced", TRACED, 1, "writes", WRITES),
        ("one at a time", ONE_AT_A_TIME, 3, "writes", 3 * WRITES),
        ("watched", WATCHED, 1, "commits", u64::from(COMMITS)),
    ] {
        let free = supervised(victim, victims, FREE);
        let run = supervised(victim, victims, way);
        let per =
            |time: Duration| time.as_secs_f64() * 1e6 / f64::from(u32::try_from(each).unwrap());
        let stops = f64::from(u32::try_from(run.stops).unwrap());
        println!(
            "{name:14} {:8.0} stops/s   {:7.2} µs a {}, {:7.2} µs without   {:.1} stops each",
            stops / run.elapsed.as_secs_f64(),
            per(run.elapsed),
            if victim == "writes" { "write" } else { "commit" },
            per(free.elapsed),
            stops / f64::from(u32::try_from(each).unwrap()),
        );
    }
}

fn write(path: &Path) {
    let file = File::options().write(true).create(true).truncate(false).open(path).unwrap();
    for _ in 0..WRITES {
        file.write_all_at(&[7], 4_096).unwrap();
    }
}

fn commit(path: &Path) {
    let conn = rusqlite::Connection::open(path).unwrap();
    let set = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE t (n INTEGER);";
    conn.execute_batch(set).unwrap();
    let mut insert = conn.prepare("INSERT INTO t VALUES (?1)").unwrap();
    for number in 0..COMMITS {
        insert.execute([number]).unwrap();
    }
}

/// A way to supervise: what stops, and who says what then.
type Way = (fn(Databases) -> Options, fn() -> Box<dyn Driver>);

const FREE: Way =
    (|databases| Options::new(CallSet::NONE, databases).same_core(), || Box::new(LookOn));
const TRACED: Way = (
    |databases| Options::new(CallSet::WRITES_AND_SYNCS, databases).same_core(),
    || Box::new(LookOn),
);
const ONE_AT_A_TIME: Way = (
    |databases| Options::new(CallSet::WRITES_AND_SYNCS, databases).one_at_a_time(),
    || Box::new(Turns),
);
const WATCHED: Way =
    (|databases| Watcher::options(databases).same_core(), || Box::new(Watcher::new()));

/// Each in turn, for one stop.
struct Turns;

impl Driver for Turns {
    fn at_stop(&mut self, _stop: &Stop, _scene: &Scene<'_>) -> Decision {
        Decision::Hold
    }

    fn choose(&mut self, standing: Standing<'_>, _scene: &Scene<'_>) -> Choice {
        if standing.running > 0 {
            return Choice::Wait;
        }
        let longest = standing.parked.first().copied();
        let longest = longest.or(standing.held.first().map(|stop| stop.thread));
        longest.map_or(Choice::Wait, |thread| Choice::Release(thread, Decision::Continue))
    }
}

fn supervised(victim: &str, victims: usize, (options, driver): Way) -> Run {
    let memory = PathBuf::from("/dev/shm");
    let place = if memory.is_dir() { memory } else { env::temp_dir() };
    let dir = tempfile::Builder::new().prefix("killpoint-bench-").tempdir_in(place).unwrap();
    let databases = Databases::At(vec![dir.path().canonicalize().unwrap().join("bench.db")]);
    let mut supervisor = Supervisor::new(options(databases)).unwrap();
    for _ in 0..victims {
        let command = Command::new(env::current_exe().unwrap());
        let command = command.env(VICTIM, victim).current_dir(dir.path());
        supervisor.spawn(&command).unwrap();
    }
    supervisor.run(&mut *driver()).unwrap()
}
