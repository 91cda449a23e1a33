use crate::support::{killpoint, run, scenario, top};
use killpoint::report::Report;
use killpoint::report::sweep::SweepReport;
use std::path::Path;

/// Sweeps one of the repository's files, with `changes`, and gives exit code and report.
fn swept(name: &str, changes: &[(&str, &str)]) -> (i32, SweepReport, String) {
    let place = scenario(&[]);
    let mut text =
        std::fs::read_to_string(top().join(format!("scenarios/sweep/{name}.toml"))).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "the change must change something: {from}");
        text = text.replace(from, to);
    }
    let file = place.beside(&format!("{name}.toml"));
    std::fs::write(&file, text).unwrap();
    let out = place.beside("out");
    let done = run(&["sweep", &file, "--out", &out, "--dir", &memory_dir()]);
    let report = std::fs::read_to_string(Path::new(&out).join("report.json")).unwrap();
    let report = Report::from_json(&report).unwrap();
    (done.code, report.sweeps.into_iter().next().unwrap(), done.stderr)
}

/// Where no disk is waited for, if there is such a place.
fn memory_dir() -> String {
    let dir = if Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
    dir.to_str().unwrap().to_owned()
}

#[test]
fn a_commit_and_a_checkpoint_survive_every_kill_and_tear() {
    let (code, sweep, stderr) = swept("commit", &[]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(sweep.settings.len(), 2);
    for setting in &sweep.settings {
        assert!(setting.points > 50, "{setting:?}");
        assert_eq!(setting.landed, setting.strikes);
        let kills: u64 = setting.phases.values().map(|phase| phase.kills).sum();
        let tears: u64 = setting.phases.values().map(|phase| phase.tears).sum();
        assert_eq!(kills, setting.points + 1, "one before each, one after the last");
        // A page has seven tears.
        assert!(tears > 7 * setting.phases["frame-page"].points, "{setting:?}");
    }
}

#[test]
fn errors_of_every_call_are_told_and_never_acknowledged() {
    let (code, sweep, stderr) = swept(
        "errors",
        &[("steps = [\"create\", \"claim\", \"complete\"]", "steps = [\"create\"]")],
    );
    assert_eq!(code, 0, "{stderr}");
    let errors: u64 = sweep.settings[0].phases.values().map(|phase| phase.errors).sum();
    assert!(errors > 100, "{errors}");
    assert!(sweep.settings[0].phases["wal-sync"].errors >= 4);
}

#[test]
fn a_file_without_a_journal_is_found_damaged() {
    let (code, sweep, stderr) = swept("canary-no-journal", &[]);
    assert_eq!(code, 0, "{stderr}");
    assert!(sweep.findings_by_kind["corrupt"] > 0);
}

#[test]
fn an_acknowledgement_before_the_commit_is_found() {
    let (code, sweep, stderr) = swept("canary-ack-before-commit", &[]);
    assert_eq!(code, 0, "{stderr}");
    assert!(sweep.findings_by_kind["lost-acked-write"] > 0);
}

#[test]
fn a_required_phase_that_is_never_hit_makes_the_sweep_inconclusive() {
    let (code, _, stderr) =
        swept("commit", &[("\"sidecar-unlink\"]", "\"sidecar-unlink\", \"journal-sync\"]")]);
    assert_eq!(code, 3, "{stderr}");
    assert!(stderr.contains("journal-sync was never hit"), "{stderr}");
}

#[test]
fn several_writers_are_struck_as_often_in_rare_phases_as_in_hot_ones() {
    let changes = [("samples-per-phase = 20", "samples-per-phase = 3")];
    let (code, sweep, stderr) = swept("many-writers", &changes);
    assert_eq!(code, 0, "{stderr}");
    let phases = &sweep.settings[0].phases;
    assert!(phases["frame-page"].points > 10 && phases["frame-page"].kills <= 6, "{phases:?}");
    assert!(phases.values().filter(|phase| phase.kills >= 2).count() > 20, "{phases:?}");
}

/// The calls that a sweep stops at, by the names that strace has for them.
const CALLS: &str = "write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync,sync_file_range,\
                     ftruncate,truncate,fallocate,close,dup2,dup3,unlink,unlinkat,rename,renameat,\
                     renameat2,mmap,munmap,fcntl";

#[test]
fn points_are_as_many_as_strace_counts() {
    let there = std::process::Command::new("strace").arg("-V").output();
    if there.is_err() {
        eprintln!("SKIPPED: no strace on this machine");
        return;
    }
    let place = scenario(&[]);
    let dir = place.dir.path().canonicalize().unwrap();
    let (code, sweep, stderr) = swept("commit", &[]);
    assert_eq!(code, 0, "{stderr}");
    // The same worker, made to do the same by hand: found a database, perform the script once as
    // preparation, and once more under strace.
    let database = dir.join("board.db");
    let trace = dir.join("trace");
    for (session, role) in [(0, "founder"), (101, "script")] {
        let done = solo(&database, session, role).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    let solo = solo(&database, 201, "script");
    let mut strace = std::process::Command::new("strace");
    strace.args(["-f", "-y", "-e", &format!("trace={CALLS}"), "-o"]).arg(&trace);
    strace.arg(solo.get_program()).args(solo.get_args());
    // The ledger's memory is standard input there.
    let ledger = ledger_file();
    let output = strace.stdin(ledger).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(&trace).unwrap();
    // strace names no file for munmap: it is known by the address that the -shm was mapped at.
    let mapped: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("mmap(") && line.contains("board.db-shm"))
        .filter_map(|line| line.rsplit(' ').next())
        .collect();
    let unmaps = |line: &str| mapped.iter().any(|at| line.contains(&format!("munmap({at},")));
    let counted = text.lines().filter(|line| is_point(line, &dir) || unmaps(line)).count();
    assert_eq!(counted as u64, sweep.settings[0].points, "{text}");
}

#[test]
fn a_disk_that_was_full_for_a_moment_is_noted_though_it_shows_as_an_io_error() {
    if std::process::Command::new("strace").arg("-V").output().is_err() {
        eprintln!("SKIPPED: no strace on this machine");
        return;
    }
    let place = scenario(&[]);
    let database = place.dir.path().join("board.db");
    assert!(solo(&database, 0, "founder").output().unwrap().status.success());
    for (call, noted) in [("pwrite64:error=ENOSPC", true), ("pwrite64:error=EIO", false)] {
        let (ledger, memory) = killpoint_worker::ledger::Ledger::create(64).unwrap();
        let solo = solo(&database, 201, "script");
        let mut strace = std::process::Command::new("strace");
        strace.args(["-f", "-o", "/dev/null", "-e", &format!("inject={call}:when=1")]);
        strace.arg(solo.get_program()).args(solo.get_args());
        let output = strace.stdin(std::fs::File::from(memory)).output().unwrap();
        assert!(!output.status.success(), "the call has failed, and with it the open");
        assert_eq!(ledger.slot(0).no_space(), noted, "{call}: {:?}", ledger.slot(0).message());
    }
}

/// Whether a line of strace is of a call that is a point: on a file of the database or its
/// directory.
fn is_point(line: &str, dir: &Path) -> bool {
    let names_it = line.contains(&format!("{}/board.db", dir.display()))
        || line.contains("fsync(") && line.contains(&format!("<{}>", dir.display()));
    // Of fcntl only locks are stopped at, of mmap only shared mappings.
    let asks = !line.contains("fcntl(") || line.contains("LK");
    let maps = !line.contains("mmap(") || line.contains("MAP_SHARED");
    names_it && asks && maps && !line.contains("munmap(")
}

fn ledger_file() -> std::fs::File {
    let (ledger, memory) = killpoint_worker::ledger::Ledger::create(64).unwrap();
    drop(ledger);
    std::fs::File::from(memory)
}

/// The worker as the supervisor starts it.
fn solo(database: &Path, session: i64, role: &str) -> std::process::Command {
    let order = serde_json::json!({
        "database": database,
        "lives": [{
            "session": session,
            "role": role,
            "target": "hardboard",
            "settings": {"synchronous": "full", "wal-autocheckpoint": 1000},
            "shape": {
                "lease-ms": 600_000, "tasks-ready": 6, "heartbeats-per-claim": 2,
                "events-per-burst": 50, "events-per-append": [2, 2], "payload-bytes": [40, 40],
                "overstays-per-100-claims": 0, "pause-us": [0, 0], "checkpoint-pages": 1000,
                "busy-timeout-ms": 20
            },
            "seed": 1,
            "script": ["create", "checkpoint"]
        }]
    });
    let mut command = killpoint(&["killpoint-worker", "solo", "64", "0", &order.to_string()]);
    command.stdin(ledger_file()).env_clear();
    command
}
