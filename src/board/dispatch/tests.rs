//! The dispatcher with real processes: workers that end in every way, dispatchers that are killed.

use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::*;
use crate::board::fixture::{HOUR, Place, quick};
use crate::board::process::{Liveness, Process};
use crate::board::task::{Status, TaskId};
use crate::{Clock, Options, RunOutcome, StoreError};

/// Patience with what a process does, on a machine that may be busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// A board in a place of its own, with a clock that can be moved.
struct Scene {
    place: Place,
    board: Board,
    clock: Clock,
    sessions: i64,
}

impl Scene {
    fn new() -> Self {
        let place = Place::new();
        let clock = Clock::default();
        let board = Board::create(&place.path(), &options(&clock)).unwrap();
        Self { place, board, clock, sessions: 100 }
    }

    fn create(&mut self) -> TaskId {
        self.place.create(&mut self.board, "dig", 0)
    }

    fn take(&mut self, options: DispatchOptions) -> Taken<Dispatcher> {
        self.sessions += 1;
        let board = Board::open(&self.place.path(), &self::options(&self.clock)).unwrap();
        Dispatcher::take(board, Session::new(self.sessions), "me", options).unwrap()
    }

    fn dispatcher(&mut self, options: DispatchOptions) -> Dispatcher {
        match self.take(options) {
            Taken::Ours(dispatcher) => dispatcher,
            Taken::Theirs(held) => panic!("{held:?}"),
        }
    }

    fn status(&self, task: TaskId) -> Status {
        self.board.task(task).unwrap().unwrap().status
    }

    /// Outcome and error of the newest run.
    fn last_run(&self, task: TaskId) -> (Option<RunOutcome>, String) {
        let run = self.board.runs(task).unwrap().pop().unwrap();
        (run.outcome, run.error.or(run.summary).unwrap_or_default())
    }

    fn process(&self, task: TaskId) -> Process {
        self.board.runs(task).unwrap().pop().unwrap().process.unwrap()
    }

    /// Rounds until the run of the task has ended.
    #[track_caller]
    fn tick_until_ended(&self, dispatcher: &mut Dispatcher, task: TaskId) -> Tick {
        let started = Instant::now();
        loop {
            let tick = dispatcher.tick().unwrap();
            if tick.ended.iter().any(|ended| ended.task == task) {
                return tick;
            }
            assert!(started.elapsed() < PATIENCE, "{:?}", self.last_run(task));
            std::thread::yield_now();
        }
    }
}

fn options(clock: &Clock) -> Options {
    Options { busy_timeout: PATIENCE, clock: clock.clone(), ..quick() }
}

/// Workers that run the script in a shell.
fn shell(script: &str) -> DispatchOptions {
    DispatchOptions {
        worker: ["sh", "-c", script].map(str::to_owned).to_vec(),
        max_spawn: 1,
        stop_grace: Duration::from_millis(200),
        stop_confirm: PATIENCE,
        limits: Limits { cool_down: Duration::ZERO, ..Limits::default() },
        ..DispatchOptions::default()
    }
}

fn await_gone(process: Process) {
    let started = Instant::now();
    while process.liveness() != Liveness::Gone {
        assert!(started.elapsed() < PATIENCE, "{process:?} does not end");
        std::thread::yield_now();
    }
}

#[test]
fn one_of_many_dispatches_and_the_next_one_does_when_it_resigns() {
    let mut scene = Scene::new();
    let first = scene.dispatcher(shell("exit 0"));
    assert_eq!(first.epoch(), 1);
    for _ in 0..3 {
        let Taken::Theirs(held) = scene.take(shell("exit 0")) else { panic!("two at once") };
        assert_eq!((held.epoch, held.holder.as_str()), (1, "me"));
    }
    assert_eq!(scene.board.dispatcher().unwrap().unwrap().epoch, 1);
    first.resign(false).unwrap();
    assert_eq!(scene.board.dispatcher().unwrap(), None);
    assert_eq!(scene.dispatcher(shell("exit 0")).epoch(), 2);
}

#[test]
fn dispatcher_that_was_stopped_is_replaced_after_its_lease_and_then_changes_nothing() {
    let mut scene = Scene::new();
    let task = scene.create();
    let mut stopped = scene.dispatcher(shell("sleep 60"));
    scene.clock.pass(shell("").lease() + Duration::from_secs(1));
    // The lock is still held: the process is there.
    let mut next = scene.dispatcher(DispatchOptions::default());
    assert_eq!(next.epoch(), 2);
    let before = scene.board.commit_seq().unwrap();
    let error = stopped.tick().unwrap_err();
    assert!(matches!(error, StoreError::StaleDispatcher { epoch: 1, newest: 2 }), "{error:?}");
    assert!(matches!(stopped.resign(true), Err(StoreError::StaleDispatcher { .. })));
    assert_eq!(scene.board.commit_seq().unwrap(), before);
    assert_eq!(scene.status(task), Status::Ready);
    next.tick().unwrap();
}

#[test]
fn every_write_of_a_dispatcher_is_fenced() {
    let mut scene = Scene::new();
    let task = scene.create();
    let mut old = scene.dispatcher(shell("sleep 60"));
    old.tick().unwrap();
    let process = scene.process(task);
    scene.clock.pass(HOUR);
    let mut new = scene.dispatcher(shell("sleep 60"));
    let run = scene.board.read("look", |tx| tx.live_run(task)).unwrap().unwrap();
    let verdict = spawn::Verdict::new(RunOutcome::Crashed, breaker::Fault::Task, "x");
    let before = scene.board.commit_seq().unwrap();
    let mut tick = Tick::default();
    for error in [
        old.end_for_test(&run, &verdict, &mut tick).unwrap_err(),
        old.start_for_test(&mut tick).unwrap_err(),
        old.adopt_for_test(&run, process).unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::StaleDispatcher { .. }), "{error:?}");
    }
    assert_eq!(scene.board.commit_seq().unwrap(), before);
    // The lease has passed: the worker is stopped, confirmed, and only then is its task free.
    let tick = new.tick().unwrap();
    assert_eq!(tick.ended[0].outcome, RunOutcome::TimedOut);
    assert_eq!(process.liveness(), Liveness::Gone);
    let report = scene.board.tick(&mut Session::new(9)).unwrap();
    assert!(report.taken_back.is_empty());
    stop_all(&scene, task);
}

/// Leaves no worker of the scene behind.
fn stop_all(scene: &Scene, task: TaskId) {
    for run in scene.board.runs(task).unwrap() {
        let claim = spawn::claim_name(&scene.board.absolute_path(), task, run.token);
        stop::stop(run.process, &claim, Duration::ZERO, PATIENCE);
    }
}

/// The part of the next tests that runs in a process of its own, to be killed.
#[test]
#[ignore = "is run by the next tests as a process of its own"]
fn dispatcher_to_be_killed() {
    let Some(path) = env::var_os("BOARD_TO_DISPATCH") else { return };
    let board = Board::open(std::path::Path::new(&path), &options(&Clock::default())).unwrap();
    let taken = Dispatcher::take(board, Session::new(77), "victim", shell("sleep 60")).unwrap();
    let Taken::Ours(mut dispatcher) = taken else { panic!("it is taken") };
    dispatcher.tick().unwrap();
    // The test runner lets standard error through.
    std::io::Write::write_all(&mut std::io::stderr(), b"dispatching\n").unwrap();
    loop {
        std::thread::park();
    }
}

/// That process, after its first round.
fn victim(scene: &Scene) -> Child {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--ignored", "--exact", "board::dispatch::tests::dispatcher_to_be_killed"])
        .arg("--nocapture")
        .env("BOARD_TO_DISPATCH", scene.place.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let told = BufReader::new(child.stderr.take().unwrap()).lines();
    let dispatching = told.map_while(Result::ok).any(|line| line.ends_with("dispatching"));
    assert!(dispatching);
    child
}

#[test]
fn killed_dispatcher_is_replaced_at_once_and_its_worker_goes_on() {
    let mut scene = Scene::new();
    let task = scene.create();
    let mut victim = victim(&scene);
    let Taken::Theirs(held) = scene.take(shell("sleep 60")) else { panic!("two at once") };
    assert_eq!(held.holder, "victim");
    victim.kill().unwrap();
    victim.wait().unwrap();
    let mut next = scene.dispatcher(shell("sleep 60"));
    let tick = next.tick().unwrap();
    assert_eq!((tick.ended.len(), tick.running), (0, 1), "{tick:?}");
    assert_eq!(scene.status(task), Status::Running);
    let worker = scene.process(task);
    assert_eq!(worker.liveness(), Liveness::Alive);
    // Nobody will ever know how it ends, with its dispatcher gone: no failure of the task.
    kill_process(Pid::from_raw(worker.pid).unwrap(), Signal::KILL).unwrap();
    await_gone(worker);
    let tick = next.tick().unwrap();
    assert_eq!(tick.ended[0].outcome, RunOutcome::Interrupted);
    let row = scene.board.task(task).unwrap().unwrap();
    // The one failure counted is the next attempt, which has begun.
    assert_eq!((row.status, row.failures, row.interruptions), (Status::Running, 1, 1));
    stop_all(&scene, task);
}

#[test]
fn worker_whose_start_was_cut_short_is_adopted_if_it_is_there() {
    let mut scene = Scene::new();
    let task = scene.create();
    let mut first = scene.dispatcher(shell("sleep 60"));
    first.tick().unwrap();
    let process = scene.process(task);
    // As if the dispatcher had been killed between starting it and saying so.
    let forget = "UPDATE runs SET pid = NULL, pid_started_ticks = NULL, pid_namespace = NULL";
    scene.board.connection().execute_batch(forget).unwrap();
    scene.clock.pass(Duration::from_secs(400));
    let mut second = scene.dispatcher(shell("sleep 60"));
    let tick = second.tick().unwrap();
    assert!(tick.ended.is_empty(), "{tick:?}");
    assert_eq!(scene.process(task), process);
    // And one that is not there was never started.
    stop_all(&scene, task);
    scene.board.connection().execute_batch(forget).unwrap();
    let tick = second.tick().unwrap();
    assert_eq!(tick.ended[0].outcome, RunOutcome::Interrupted);
    // The next attempt was begun in the same round.
    stop_all(&scene, task);
}

/// A worker that runs the script ends so, with that fault.
#[track_caller]
fn check_end(script: &str, outcome: RunOutcome, error: &str, failures: i64) {
    let mut scene = Scene::new();
    let task = scene.create();
    let mut dispatcher = scene.dispatcher(shell(script));
    assert_eq!(dispatcher.tick().unwrap().started.len(), 1);
    dispatcher.start_nothing();
    scene.tick_until_ended(&mut dispatcher, task);
    assert_eq!(scene.last_run(task), (Some(outcome), error.to_owned()));
    let row = scene.board.task(task).unwrap().unwrap();
    assert_eq!((row.status, row.failures), (Status::Ready, failures));
}

#[test]
fn end_of_a_worker_that_left_its_claim_is_told_as_what_it_was() {
    use RunOutcome::{Failed, Interrupted};
    check_end("exit 0", Failed, "ended without a word", 1);
    check_end("exit 3", Failed, "exited with code 3", 1);
    check_end("kill -SEGV $$", Failed, "died of signal 11", 1);
    check_end("exit 75", Interrupted, "asked to be tried again", 0);
    check_end("kill -KILL $$", Interrupted, "ended from outside by signal 9", 0);
    check_end("kill -TERM $$", Interrupted, "ended from outside by signal 15", 0);
}

#[test]
fn task_that_fails_again_and_again_rests_and_is_given_up() {
    let mut scene = Scene::new();
    let task = scene.create();
    let cool_down = Duration::from_mins(1);
    let limits = Limits { failure_limit: 3, cool_down, ..Limits::default() };
    let mut dispatcher = scene.dispatcher(DispatchOptions { limits, ..shell("exit 1") });
    for attempt in 1..=3 {
        assert_eq!(dispatcher.tick().unwrap().started.len(), 1, "attempt {attempt}");
        let tick = scene.tick_until_ended(&mut dispatcher, task);
        assert!(tick.started.is_empty());
        if attempt < 3 {
            assert_eq!(scene.status(task), Status::Scheduled);
            scene.clock.pass(cool_down * 2 * attempt);
        }
    }
    let row = scene.board.task(task).unwrap().unwrap();
    let reason = "given up after 3 times: exited with code 1";
    assert_eq!((row.status, row.reason.as_deref()), (Status::Blocked, Some(reason)));
    scene.clock.pass(HOUR * 24);
    assert!(dispatcher.tick().unwrap().started.is_empty());
    let _commit = scene.board.unblock(scene.place.key(), task, "try once more").unwrap();
    assert_eq!(dispatcher.tick().unwrap().started.len(), 1);
    stop_all(&scene, task);
}

#[test]
fn worker_that_cannot_be_started_is_a_failure() {
    let mut scene = Scene::new();
    let task = scene.create();
    let worker = vec!["/no/such/program".to_owned()];
    let mut dispatcher = scene.dispatcher(DispatchOptions { worker, ..shell("") });
    for _ in 0..4 {
        dispatcher.tick().unwrap();
    }
    assert_eq!(scene.status(task), Status::Blocked);
    assert_eq!(scene.last_run(task).0, Some(RunOutcome::SpawnFailed));
    assert_eq!(scene.board.runs(task).unwrap().len(), 4);
}

#[test]
fn run_that_takes_too_long_is_stopped_with_all_that_it_started() {
    let mut scene = Scene::new();
    let task = scene.create();
    let log_dir = scene.place.path().with_file_name("logs");
    let options = DispatchOptions {
        max_runtime: Duration::from_mins(10),
        claim_lease: HOUR,
        log_dir: Some(log_dir.clone()),
        ..shell("trap '' TERM; setsid sleep 60 & echo $!; wait; sleep 60")
    };
    let mut dispatcher = scene.dispatcher(options);
    dispatcher.tick().unwrap();
    let log = log_dir.join("1-1.log");
    let started = Instant::now();
    let child = loop {
        let pid = fs::read_to_string(&log).ok().and_then(|text| text.trim().parse().ok());
        if let Some(process) = pid.and_then(|pid| Process::of(pid).ok()) {
            break process;
        }
        assert!(started.elapsed() < PATIENCE);
    };
    assert!(dispatcher.tick().unwrap().ended.is_empty());
    scene.clock.pass(Duration::from_secs(601));
    let worker = scene.process(task);
    let tick = dispatcher.tick().unwrap();
    assert_eq!(tick.ended[0].outcome, RunOutcome::TimedOut);
    assert_eq!((worker.liveness(), child.liveness()), (Liveness::Gone, Liveness::Gone));
    stop_all(&scene, task);
}

#[test]
fn claim_of_nobodys_process_ends_with_its_lease_and_not_before() {
    let mut scene = Scene::new();
    let task = scene.create();
    let claim = scene.board.claim(scene.place.key(), task, "ann", HOUR).unwrap();
    let mut dispatcher = scene.dispatcher(DispatchOptions::default());
    scene.clock.shift_wall_ms(400 * 86_400_000);
    assert!(dispatcher.tick().unwrap().ended.is_empty());
    scene.clock.pass(HOUR);
    let tick = dispatcher.tick().unwrap();
    assert_eq!((tick.ended[0].token, tick.ended[0].status), (claim.token, Status::Ready));
    let row = scene.board.task(task).unwrap().unwrap();
    assert_eq!((row.failures, row.interruptions), (0, 0));
}

#[test]
fn round_starts_no_more_than_it_may_and_by_priority() {
    let mut scene = Scene::new();
    let tasks: Vec<_> =
        (0..5).map(|priority| scene.place.create(&mut scene.board, "dig", priority)).collect();
    let max_running = 3;
    let options = DispatchOptions { max_spawn: 2, max_running, ..shell("sleep 60") };
    let mut dispatcher = scene.dispatcher(options);
    let started = |tick: Tick| tick.started.iter().map(|one| one.task).collect::<Vec<_>>();
    assert_eq!(started(dispatcher.tick().unwrap()), [tasks[4], tasks[3]]);
    let tick = dispatcher.tick().unwrap();
    assert_eq!((tick.ready, tick.running), (2, 3));
    assert_eq!(started(tick), [tasks[2]]);
    assert_eq!(started(dispatcher.tick().unwrap()), []);
    for task in tasks.into_iter().skip(2) {
        stop_all(&scene, task);
    }
}

#[test]
fn worker_is_told_what_to_work_on_and_its_end_is_not_held_against_it() {
    let mut scene = Scene::new();
    let task = scene.create();
    let log_dir = scene.place.path().with_file_name("logs");
    let script = "echo $HARDBOARD_DB $HARDBOARD_TASK $HARDBOARD_TOKEN $HARDBOARD_LEASE_MS";
    let options = DispatchOptions { log_dir: Some(log_dir.clone()), ..shell(script) };
    let mut dispatcher = scene.dispatcher(options);
    dispatcher.tick().unwrap();
    let token = scene.board.task(task).unwrap().unwrap().fence;
    let _done = scene.board.complete(scene.place.key(), task, token, "dug").unwrap();
    let started = Instant::now();
    while dispatcher.worker_pids().next().is_some() {
        dispatcher.reap().unwrap();
        assert!(started.elapsed() < PATIENCE);
    }
    let told = fs::read_to_string(log_dir.join("1-1.log")).unwrap();
    let path = scene.board.absolute_path();
    assert_eq!(told, format!("{} 1 1 900000\n", path.display()));
    let tick = dispatcher.tick().unwrap();
    assert!(tick.ended.is_empty() && tick.started.is_empty(), "{tick:?}");
    assert_eq!(scene.board.task(task).unwrap().unwrap().failures, 0);
}

#[test]
fn daemon_goes_on_round_by_round_until_told_to_stop() {
    use std::os::fd::AsFd as _;
    let mut scene = Scene::new();
    let task = scene.create();
    let (stop, told) = std::os::unix::net::UnixStream::pair().unwrap();
    let (path, clock) = (scene.place.path(), scene.clock.clone());
    let options = DispatchOptions {
        interval: Duration::from_millis(50),
        limits: Limits { failure_limit: 2, cool_down: Duration::ZERO, ..Limits::default() },
        ..shell("exit 1")
    };
    let daemon = std::thread::spawn(move || {
        let mut session = 500;
        let mut open = || {
            session += 1;
            let board = Board::open(&path, &self::options(&clock))?;
            Ok((board, Session::new(session)))
        };
        let mut rounds = 0;
        let mut tell = |news: &daemon::News<'_>| {
            rounds += u32::from(matches!(news, daemon::News::Ticked(_)));
        };
        daemon::run(&mut open, "daemon", &options, told.as_fd(), &mut tell).map(|()| rounds)
    });
    let started = Instant::now();
    while scene.status(task) != Status::Blocked {
        assert!(started.elapsed() < PATIENCE, "{:?}", scene.board.runs(task));
        std::thread::yield_now();
    }
    drop(stop);
    assert!(daemon.join().unwrap().unwrap() >= 2);
    assert_eq!(scene.board.dispatcher().unwrap(), None);
}

#[test]
fn daemon_looks_at_the_whole_board_when_it_is_due_and_ends_when_it_is_damaged() {
    use std::os::fd::AsFd as _;
    let mut scene = Scene::new();
    scene.create();
    let (_stop, told) = std::os::unix::net::UnixStream::pair().unwrap();
    let (path, clock) = (scene.place.path(), scene.clock.clone());
    let looks = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counted = std::sync::Arc::clone(&looks);
    let daemon = std::thread::spawn(move || {
        let verify_every = Duration::from_millis(1);
        let mut open = || {
            let options = Options { verify_every, ..self::options(&clock) };
            Ok((Board::open(&path, &options)?, Session::new(500)))
        };
        let mut tell = |news: &daemon::News<'_>| {
            if let daemon::News::Verified(report) = news {
                assert!(report.is_sound(), "{report:?}");
                counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        };
        // No worker: nothing of a round depends on the damage. The next round is an hour away.
        let options = DispatchOptions { interval: HOUR, ..DispatchOptions::default() };
        daemon::run(&mut open, "daemon", &options, told.as_fd(), &mut tell)
    });
    let started = Instant::now();
    while looks.load(std::sync::atomic::Ordering::Relaxed) < 2 {
        assert!(started.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    // A row that nobody reads again.
    scene.board.connection().execute_batch("UPDATE commits SET kind = 'x' WHERE seq = 1").unwrap();
    let error = daemon.join().unwrap().unwrap_err();
    assert!(matches!(error, StoreError::Quarantined { .. }), "{error:?}");
    let error = Board::open(&scene.place.path(), &quick()).unwrap_err();
    assert!(matches!(error, StoreError::Quarantined { .. }), "{error:?}");
}
