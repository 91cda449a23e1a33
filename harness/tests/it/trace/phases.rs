//! The phases of real commits, held against the measured table of system calls (facts/sqlite.md
//! 3.1).

use killpoint::run::trace::{CallKind, CallSet, Databases, LookOn, Options};

use super::support::{Lab, Recorder, run};

/// Runs `setup` outside, then `script` with `commits` as its only traced part of interest.
fn record(lab: &Lab, calls: CallSet, script: &str) -> Recorder {
    let mut recorder = Recorder::default();
    let run = run(lab.options(calls), &lab.python(script), &mut recorder);
    assert_eq!(run.exit_of(0), Some(killpoint::run::trace::Exit::Code(0)), "{run}");
    recorder
}

const WAL: &str = "c = sqlite3.connect(DB, isolation_level=None)\n\
    c.execute('PRAGMA journal_mode=WAL')\n\
    c.execute('CREATE TABLE IF NOT EXISTS t(x)')\n\
    c.execute('PRAGMA wal_checkpoint(TRUNCATE)')\n";

fn prepared() -> Lab {
    let lab = Lab::new();
    lab.ask(&format!("{WAL}c.close()"));
    lab
}

fn session(synchronous: &str, statements: &[&str]) -> String {
    let mut script = format!(
        "c = sqlite3.connect(DB, isolation_level=None)\n\
         c.execute('PRAGMA synchronous={synchronous}')\n"
    );
    for statement in statements {
        script += "c.execute(\"";
        script += statement;
        script += "\")\n";
    }
    script.push_str("os._exit(0)\n");
    script
}

#[track_caller]
fn check(lab: &Lab, synchronous: &str, statements: &[&str], expected: &[&str]) {
    let recorder = record(lab, CallSet::WRITES_AND_SYNCS, &session(synchronous, statements));
    let shm = |phase: &String| !phase.starts_with("shm-");
    let phases: Vec<_> = recorder.phases().into_iter().filter(shm).collect();
    assert_eq!(phases, expected);
}

const INSERT: &str = "INSERT INTO t VALUES(1)";

#[test]
fn commits_in_normal_mode_sync_the_wal_header_only() {
    check(
        &prepared(),
        "NORMAL",
        &[INSERT, INSERT],
        &[
            "wal-header",
            "wal-sync",
            "directory-sync",
            "commit-frame",
            "commit-page",
            "commit-frame",
            "commit-page",
        ],
    );
}

#[test]
fn commits_in_full_mode_sync_their_frames() {
    check(
        &prepared(),
        "FULL",
        &[INSERT, INSERT],
        &[
            "wal-header",
            "wal-sync",
            "directory-sync",
            "commit-frame",
            "commit-page",
            "wal-sync",
            "commit-frame",
            "commit-page",
            "wal-sync",
        ],
    );
}

#[test]
fn commits_with_synchronous_off_sync_nothing() {
    let expected = ["wal-header", "commit-frame", "commit-page"];
    check(&prepared(), "OFF", &[INSERT], &expected);
}

#[test]
fn transaction_over_several_pages_has_one_commit_frame_and_it_is_the_last() {
    let big = "INSERT INTO t VALUES(zeroblob(9000))";
    let recorder = record(&prepared(), CallSet::WRITES_AND_SYNCS, &session("OFF", &[big]));
    let phases = recorder.phases();
    let frames: Vec<_> = phases.iter().filter(|phase| phase.contains("frame")).collect();
    assert!(frames.len() > 4, "{phases:?}");
    assert_eq!(phases.iter().filter(|phase| *phase == "commit-frame").count(), 1);
    assert_eq!(phases.last().unwrap(), "commit-page");
    assert_eq!(phases[phases.len() - 2], "commit-frame");
}

#[test]
fn checkpoint_syncs_the_wal_before_and_the_database_after() {
    check(
        &prepared(),
        "NORMAL",
        &[INSERT, "PRAGMA wal_checkpoint(TRUNCATE)", INSERT],
        &[
            "wal-header",
            "wal-sync",
            "directory-sync",
            "commit-frame",
            "commit-page",
            "wal-sync",
            "checkpoint-page-write",
            "db-truncate",
            "db-sync",
            "wal-truncate",
            "wal-header",
            "wal-sync",
            "commit-frame",
            "commit-page",
        ],
    );
}

#[test]
fn commit_after_a_full_checkpoint_resets_the_wal() {
    let recorder = record(
        &prepared(),
        CallSet::WRITES_AND_SYNCS,
        &session("OFF", &[INSERT, "PRAGMA wal_checkpoint(PASSIVE)", INSERT]),
    );
    let phases = recorder.phases();
    let heads: Vec<_> = phases.iter().filter(|p| *p == "wal-header" || *p == "wal-reset").collect();
    assert_eq!(heads, ["wal-header", "wal-reset"]);
}

#[test]
fn last_close_checkpoints_and_removes_the_sidecars() {
    let script = "c = sqlite3.connect(DB, isolation_level=None)\n\
        c.execute('INSERT INTO t VALUES(1)')\n\
        c.close()\nos._exit(0)\n";
    let calls = CallSet::WRITES_AND_SYNCS.with(CallKind::Unlink);
    let phases = record(&prepared(), calls, script).phases();
    let tail = &phases[phases.len() - 6..];
    let expected = [
        "wal-sync",
        "checkpoint-page-write",
        "db-truncate",
        "db-sync",
        "sidecar-unlink.shm",
        "sidecar-unlink.wal",
    ];
    assert_eq!(tail, expected);
}

fn rollback(mode: &str) -> Vec<String> {
    let lab = Lab::new();
    lab.ask("c = sqlite3.connect(DB)\nc.execute('CREATE TABLE t(x)')\nc.commit()");
    let script =
        session("FULL", &[&format!("PRAGMA journal_mode={mode}"), "INSERT INTO t VALUES(1)"]);
    let calls = CallSet::WRITES_AND_SYNCS.with(CallKind::Unlink);
    record(&lab, calls, &script).runs_of_phases()
}

#[test]
fn commit_in_delete_mode_is_the_unlink_of_the_journal() {
    let expected = [
        "journal-header",
        "journal-page",
        "journal-sync",
        "directory-sync",
        "journal-header",
        "journal-sync",
        "db-page-write",
        "db-sync",
        "sidecar-unlink.journal",
    ];
    assert_eq!(rollback("DELETE"), expected);
}

#[test]
fn commit_in_truncate_mode_cuts_the_journal() {
    let phases = rollback("TRUNCATE");
    let at = phases.iter().position(|phase| phase == "journal-truncate");
    assert_eq!(phases[at.unwrap() - 1], "db-sync", "{phases:?}");
}

#[test]
fn commit_in_persist_mode_zeroes_the_journals_header() {
    let phases = rollback("PERSIST");
    let at = phases.iter().position(|phase| phase == "journal-zero");
    assert_eq!(phases[at.unwrap() - 1], "db-sync", "{phases:?}");
}

#[test]
fn locks_of_a_commit_are_named() {
    let calls = CallSet::NONE.with(CallKind::Lock).with(CallKind::Close);
    let phases = record(&prepared(), calls, &session("OFF", &[INSERT])).phases();
    for expected in [
        "db-lock.shared.shared",
        "wal-index-lock.dms.exclusive",
        "wal-index-lock.dms.shared",
        "wal-index-lock.write.exclusive",
        "wal-index-lock.write.unlock",
    ] {
        assert!(phases.iter().any(|phase| phase == expected), "{expected} not in {phases:?}");
    }
}

#[test]
fn wal_index_is_seen_to_be_extended_cut_and_mapped() {
    let calls = CallSet::ALL.without(CallKind::StreamRead).without(CallKind::PositionedRead);
    let phases = record(&prepared(), calls, &session("OFF", &[INSERT])).phases();
    for expected in ["shm-truncate", "shm-extend", "shm-map", "open"] {
        assert!(phases.iter().any(|phase| phase == expected), "{expected} not in {phases:?}");
    }
}

#[test]
fn points_are_numbered_without_gaps_in_the_run_and_in_each_process() {
    let lab = prepared();
    let recorder = record(&lab, CallSet::FAULTS, &session("FULL", &[INSERT]));
    let numbers: Vec<_> = recorder.stops.iter().filter_map(|stop| stop.point).collect();
    let expected: Vec<_> = (1..=numbers.len() as u64).collect();
    assert_eq!(numbers, expected);
    let in_process: Vec<_> =
        recorder.stops.iter().filter_map(|stop| stop.point_in_process).collect();
    assert_eq!(in_process, expected);
}

#[test]
fn phases_do_not_depend_on_whether_close_is_traced() {
    let script = session("FULL", &[INSERT, INSERT, "PRAGMA wal_checkpoint(TRUNCATE)"]);
    let bare = record(&prepared(), CallSet::WRITES_AND_SYNCS, &script).phases();
    let with_close = CallSet::WRITES_AND_SYNCS.with(CallKind::Close);
    let mut sure = record(&prepared(), with_close, &script).phases();
    sure.retain(|phase| phase != "close");
    assert_eq!(bare, sure);
}

#[test]
fn databases_nobody_named_are_detected() {
    for (prepare, mode) in [(false, "WAL"), (false, "DELETE"), (true, "WAL")] {
        let lab = Lab::new();
        if prepare {
            lab.ask(&format!("{WAL}c.close()"));
        }
        let script = session(
            "OFF",
            &[
                &format!("PRAGMA journal_mode={mode}"),
                "CREATE TABLE IF NOT EXISTS t(x)",
                "INSERT INTO t VALUES(1)",
            ],
        );
        let named = {
            let lab = Lab::new();
            if prepare {
                lab.ask(&format!("{WAL}c.close()"));
            }
            record(&lab, CallSet::FAULTS, &script).phases()
        };
        let mut detected = Recorder::default();
        let options = Options::new(CallSet::FAULTS, Databases::Detect);
        let run = run(options, &lab.python(&script), &mut detected);
        assert!(run.points > 0);
        assert_eq!(detected.phases(), named, "{prepare} {mode}");
    }
}

#[test]
fn points_are_as_many_as_strace_counts() {
    let lab = prepared();
    let script = session("FULL", &[INSERT, INSERT, "PRAGMA wal_checkpoint(TRUNCATE)"]);
    let run = run(lab.options(CallSet::WRITES_AND_SYNCS), &lab.python(&script), &mut LookOn);
    let Some(counted) = strace(&prepared(), &script) else { return };
    assert_eq!(run.points, counted);
}

/// Calls on database files by `strace -f -y`; none where there is no strace.
fn strace(lab: &Lab, script: &str) -> Option<u64> {
    let log = lab.path("strace.log");
    let calls = "pwrite64,pwritev,pwritev2,write,writev,fsync,fdatasync,sync_file_range,\
                 ftruncate,truncate,fallocate";
    let command = format!(
        "import os, sys, time, fcntl, sqlite3\nDB = {:?}\n{script}",
        lab.db.display().to_string()
    );
    let output = std::process::Command::new("strace")
        .args(["-f", "-y", "-o"])
        .arg(&log)
        .args(["-e", &format!("trace={calls}")])
        .arg(super::support::python())
        .args(["-S", "-c", &command])
        .output()
        .ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let log = std::fs::read_to_string(log).unwrap();
    // A descriptor shows its path in angle brackets; the directory is the database's own.
    let directory = format!("<{}", lab.db.parent().unwrap().display());
    Some(log.lines().filter(|line| line.contains(&directory)).count() as u64)
}
