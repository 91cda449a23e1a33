//! Kills, tears, errors, short calls, delays and pauses, each seen from the victim's side.

use std::time::{Duration, Instant};

use killpoint::run::trace::{
    CallKind, CallSet, Decision, Driver, ErrorCode, Exit, Fault, KillWhen, Outcome, Run, Scene,
    Stop, Whom,
};

use super::support::{Lab, Once, run, run_all};

const SETUP: &str = "c = sqlite3.connect(DB, isolation_level=None)\n\
    c.execute('PRAGMA journal_mode=WAL')\nc.execute('CREATE TABLE t(x)')\n\
    c.execute('INSERT INTO t VALUES(0)')\nc.close()";

const COMMITS: &str = "c = sqlite3.connect(DB, isolation_level=None)\n\
    c.execute('PRAGMA synchronous=FULL')\n\
    for i in range(3):\n c.execute('INSERT INTO t VALUES(?)', (i,))\nos._exit(0)\n";

fn prepared() -> Lab {
    let lab = Lab::new();
    lab.ask(SETUP);
    lab
}

fn kill(when: KillWhen) -> Fault {
    Fault::Kill { when, whom: Whom::Process }
}

const KILLED: Option<Exit> = Some(Exit::Signal { signal: 9, by_supervisor: true });

/// Runs the commits with one fault; the rows that a fresh process finds afterwards.
#[track_caller]
fn strike(phase: &str, nth: usize, fault: Fault) -> (Run, usize) {
    let lab = prepared();
    let mut driver = Once::fault(phase, nth, fault);
    let run = run(lab.options(CallSet::FAULTS), &lab.python(COMMITS), &mut driver);
    let (check, rows) = lab.recovered();
    assert_eq!(check, "ok");
    assert_eq!(run.receipts.len(), 1, "{run}");
    assert_eq!(run.receipts[0].phase, phase.parse().unwrap());
    assert_eq!(run.receipts[0].exit, run.exit_of(0));
    (run, rows)
}

#[test]
fn kill_before_the_commit_page_loses_that_commit_and_no_other() {
    let (run, rows) = strike("commit-page", 2, kill(KillWhen::Before));
    assert_eq!(run.exit_of(0), KILLED);
    assert_eq!(run.receipts[0].outcome, Outcome::Killed { result: None });
    assert_eq!(rows, 1 + 1);
}

#[test]
fn kill_after_the_commit_page_keeps_that_commit() {
    let (run, rows) = strike("commit-page", 2, kill(KillWhen::After));
    assert_eq!(run.exit_of(0), KILLED);
    assert_eq!(run.receipts[0].outcome, Outcome::Killed { result: Some(4096) });
    assert_eq!(rows, 1 + 2);
}

#[test]
fn kill_inside_the_commit_page_leaves_a_torn_write_of_that_many_bytes() {
    for bytes in [1, 512, 4095] {
        let lab = prepared();
        let mut driver = Once::fault("commit-page", 1, kill(KillWhen::Inside { bytes }));
        let run = run(lab.options(CallSet::FAULTS), &lab.python(COMMITS), &mut driver);
        let result = Some(i64::try_from(bytes).unwrap());
        assert_eq!(run.receipts[0].outcome, Outcome::Killed { result });
        let wal = std::fs::metadata(lab.path("a.db-wal")).unwrap().len();
        assert_eq!(wal, 32 + 24 + bytes);
        assert_eq!(lab.recovered(), ("ok".to_owned(), 1));
    }
}

#[test]
fn tear_that_is_no_part_of_the_write_is_refused_in_its_receipt() {
    for bytes in [0, 4096, 9999] {
        let (run, rows) = strike("commit-page", 1, kill(KillWhen::Inside { bytes }));
        assert!(matches!(run.receipts[0].outcome, Outcome::NotPossible { .. }));
        assert_eq!((run.exit_of(0), rows), (Some(Exit::Code(0)), 4));
    }
}

#[test]
fn sync_cannot_be_torn() {
    let (run, _) = strike("wal-sync", 1, kill(KillWhen::Inside { bytes: 1 }));
    assert!(matches!(run.receipts[0].outcome, Outcome::NotPossible { .. }));
}

#[test]
fn every_point_of_a_commit_survives_a_kill_before_and_after_it() {
    let mut point = 0;
    loop {
        point += 1;
        let mut struck = false;
        for when in [KillWhen::Before, KillWhen::After] {
            let lab = prepared();
            let mut driver = AtPoint { point, decision: Decision::Fault(kill(when)) };
            let run =
                run(lab.options(CallSet::WRITES_AND_SYNCS), &lab.python(COMMITS), &mut driver);
            struck = run.exit_of(0) == KILLED;
            assert_eq!(lab.recovered().0, "ok", "point {point}, {when:?}");
        }
        if !struck {
            break;
        }
    }
    assert!(point > 10, "{point}");
}

struct AtPoint {
    point: u64,
    decision: Decision,
}

impl Driver for AtPoint {
    fn at_stop(&mut self, stop: &Stop, _scene: &Scene<'_>) -> Decision {
        if stop.point == Some(self.point) { self.decision } else { Decision::Continue }
    }
}

/// Prints what one INSERT gave.
const REPORTS: &str = "c = sqlite3.connect(DB, isolation_level=None)\n\
    c.execute('PRAGMA synchronous=FULL')\n\
    try:\n c.execute('INSERT INTO t VALUES(1)')\n text = 'ok'\n\
    except sqlite3.Error as e:\n text = str(e)\n\
    open('said', 'w').write(text)\nos._exit(0)\n";

#[track_caller]
fn check_error(phase: &str, error: ErrorCode, said: &str) {
    let lab = prepared();
    let mut driver = Once::fault(phase, 1, Fault::Fail(error));
    let run = run(lab.options(CallSet::FAULTS), &lab.python(REPORTS), &mut driver);
    assert_eq!(run.receipts[0].outcome, Outcome::Failed);
    assert_eq!(run.exit_of(0), Some(Exit::Code(0)), "{run}");
    assert_eq!(std::fs::read_to_string(lab.path("said")).unwrap(), said);
    assert_eq!(lab.recovered().0, "ok");
}

#[test]
fn error_instead_of_the_call_reaches_the_program() {
    check_error("commit-page", ErrorCode::Eio, "disk I/O error");
    check_error("wal-sync", ErrorCode::Eio, "disk I/O error");
    check_error("commit-page", ErrorCode::Enospc, "database or disk is full");
    check_error("commit-page", ErrorCode::Edquot, "disk I/O error");
    check_error("commit-frame", ErrorCode::Efbig, "disk I/O error");
}

#[test]
fn interrupted_write_is_repeated_by_sqlite() {
    check_error("commit-page", ErrorCode::Eintr, "ok");
}

#[test]
fn failed_call_is_not_made_at_all() {
    let lab = prepared();
    let mut driver = Once::fault("wal-header", 1, Fault::Fail(ErrorCode::Eio));
    let _run = run(lab.options(CallSet::FAULTS), &lab.python(REPORTS), &mut driver);
    assert_eq!(std::fs::metadata(lab.path("a.db-wal")).unwrap().len(), 0);
}

#[test]
fn short_write_goes_on_and_sqlite_writes_the_rest() {
    let (run, rows) = strike("commit-page", 2, Fault::Shorten { bytes: 100 });
    assert_eq!(run.receipts[0].outcome, Outcome::Shortened { asked: 4096, result: 100 });
    assert_eq!((run.exit_of(0), rows), (Some(Exit::Code(0)), 4));
}

#[test]
fn short_read_is_completed_by_sqlite() {
    let lab = prepared();
    let mut driver = Once::fault("read", 3, Fault::Shorten { bytes: 50 });
    let calls = CallSet::FAULTS.with(CallKind::PositionedRead);
    let run = run(lab.options(calls), &lab.python(REPORTS), &mut driver);
    assert!(matches!(run.receipts[0].outcome, Outcome::Shortened { result: 50, .. }), "{run:?}");
    assert_eq!(std::fs::read_to_string(lab.path("said")).unwrap(), "ok");
}

#[test]
fn shortened_vector_write_gives_the_program_its_vector_back() {
    let lab = Lab::new();
    std::fs::write(&lab.db, "").unwrap();
    let program = lab.compile(
        "vector",
        "#include <sys/uio.h>\n#include <fcntl.h>\n#include <stdlib.h>\n\
         int main(int c, char **v) {\n\
           int fd = open(v[1], O_RDWR);\n\
           char a[10] = \"aaaaaaaaa\", b[10] = \"bbbbbbbbb\";\n\
           struct iovec io[2] = {{a, 10}, {b, 10}};\n\
           long n = pwritev(fd, io, 2, 0);\n\
           return n == 13 && io[0].iov_len == 10 && io[1].iov_len == 10 ? 0 : 1;\n\
         }\n",
    );
    let command = killpoint::run::trace::Command::new(program).arg(&lab.db);
    let mut driver = Once::fault("db-page-write", 1, Fault::Shorten { bytes: 13 });
    let run = run(lab.options(CallSet::WRITES_AND_SYNCS), &command, &mut driver);
    assert_eq!(run.exit_of(0), Some(Exit::Code(0)), "{run}");
    assert_eq!(std::fs::read(&lab.db).unwrap(), b"aaaaaaaaa\0bbb");
}

#[test]
fn delay_holds_the_call_back_for_its_time() {
    let began = Instant::now();
    let (run, rows) = strike("commit-page", 1, Fault::Delay { ms: 300 });
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!(run.receipts[0].outcome, Outcome::Delayed);
    assert_eq!(rows, 4);
}

#[test]
fn paused_process_stands_still_with_all_its_threads() {
    let lab = prepared();
    let script = "import threading\nbeats = []\n\
        def beat():\n while True:\n  beats.append(time.monotonic())\n  time.sleep(0.002)\n\
        threading.Thread(target=beat, daemon=True).start()\n\
        c = sqlite3.connect(DB, isolation_level=None)\n\
        time.sleep(0.05)\nc.execute('INSERT INTO t VALUES(1)')\ntime.sleep(0.05)\n\
        gap = max(b - a for a, b in zip(beats, beats[1:]))\n\
        open('said', 'w').write(str(gap))\nos._exit(0)\n";
    let mut driver = Once::fault("commit-page", 1, Fault::Pause { ms: 400 });
    let calls = CallSet::WRITES_AND_SYNCS.with(CallKind::Close);
    let run = run(lab.options(calls), &lab.python(script), &mut driver);
    assert_eq!(run.receipts[0].outcome, Outcome::Paused, "{run}");
    let gap: f64 = std::fs::read_to_string(lab.path("said")).unwrap().parse().unwrap();
    assert!((0.35..5.0).contains(&gap), "{gap}");
}

struct Skip;
impl Driver for Skip {
    fn at_stop(&mut self, _stop: &Stop, _scene: &Scene<'_>) -> Decision {
        Decision::SkipSleep
    }
}

#[test]
fn skipped_sleep_takes_no_time() {
    let lab = prepared();
    let began = Instant::now();
    let script = "for _ in range(3): time.sleep(60)\nos._exit(0)\n";
    let run = run(lab.options(CallSet::FAULTS), &lab.python(script), &mut Skip);
    assert_eq!(run.exit_of(0), Some(Exit::Code(0)), "{run}");
    assert!(run.sleeps_skipped >= 3);
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[test]
fn observed_call_tells_its_result() {
    let lab = prepared();
    let mut driver = Once::new("commit-page", 1, Decision::Observe);
    let _run = run(lab.options(CallSet::FAULTS), &lab.python(COMMITS), &mut driver);
    assert_eq!(driver.results, [4096]);
}

#[test]
fn kill_of_all_copies_takes_every_process() {
    let lab = prepared();
    let forever = "c = sqlite3.connect(DB, isolation_level=None, timeout=60)\n\
        if os.fork() == 0: time.sleep(1000)\n\
        while True: c.execute('INSERT INTO t VALUES(1)')\n";
    let commands = [lab.python(forever), lab.python(forever)];
    let fault = Fault::Kill { when: KillWhen::After, whom: Whom::All };
    let mut driver = Once::fault("commit-page", 40, fault);
    let run = run_all(lab.options(CallSet::FAULTS), &commands, &mut driver);
    assert!(run.processes.iter().all(|process| process.exit == KILLED), "{run}");
    assert!(run.processes.len() >= 3, "{run}");
    assert_eq!(lab.recovered().0, "ok");
}

#[test]
fn kill_of_one_copy_leaves_the_other_to_finish() {
    let lab = prepared();
    let commands = [lab.python(COMMITS), lab.python(COMMITS)];
    let fault = Fault::Kill { when: KillWhen::Before, whom: Whom::Copy };
    let mut driver = Once::fault("commit-page", 1, fault);
    let run = run_all(lab.options(CallSet::FAULTS), &commands, &mut driver);
    let ends: Vec<_> = [run.exit_of(0), run.exit_of(1)].into();
    assert!(ends.contains(&KILLED) && ends.contains(&Some(Exit::Code(0))), "{run}");
    assert_eq!(lab.recovered(), ("ok".to_owned(), 1 + 3));
}
