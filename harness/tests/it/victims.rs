use crate::support::{Done, killpoint, run, scenario};

const QUERY: &str = "SELECT count(*) FROM entry WHERE token = ?1";

fn python() -> bool {
    let there = std::process::Command::new("python3").arg("-c").arg("import sqlite3").status();
    let there = there.is_ok_and(|status| status.success());
    if !there {
        eprintln!("SKIPPED: no python3 with sqlite3 on this machine");
    }
    there
}

fn exec(arguments: &[&str], script: &str) -> Done {
    let mut all = vec!["exec", "--db", "ledger.db", "--check-sql", QUERY];
    all.extend_from_slice(arguments);
    all.extend_from_slice(&["--", "python3", script]);
    run(&all)
}

#[test]
fn kills_land_in_the_commits_of_a_python_program_and_lose_nothing() {
    if !python() {
        return;
    }
    let done = exec(&["--copies", "2", "--cycles", "7"], "scenarios/exec/ledger.py");
    assert_eq!(done.code, 0, "{}", done.stderr);
    for phase in ["commit-frame", "commit-page", "wal-sync"] {
        assert!(done.stderr.contains(phase), "{}", done.stderr);
    }
    assert!(done.stderr.contains("not judged: power loss"), "{}", done.stderr);
}

#[test]
fn a_python_program_that_acknowledges_before_it_commits_is_caught() {
    if !python() {
        return;
    }
    let done = exec(&["--kill", "commit-frame"], "scenarios/exec/lying.py");
    assert_eq!(done.code, 1, "{}", done.stderr);
    assert!(done.stderr.contains("lost-acked-write"), "{}", done.stderr);
}

#[test]
fn what_was_seen_of_a_command_is_written_for_a_ci_to_read() {
    if !python() {
        return;
    }
    let place = scenario(&[]);
    let (out, junit) = (place.beside("out"), place.beside("junit.xml"));
    let done = exec(
        &["--cycles", "2", "--budget", "3s", "--out", &out, "--junit", &junit],
        "scenarios/exec/ledger.py",
    );
    assert_eq!(done.code, 0, "{}", done.stderr);
    let report = std::fs::read_to_string(format!("{out}/report.json")).unwrap();
    let report = killpoint::report::Report::from_json(&report).unwrap();
    let [exec] = &report.execs[..] else { panic!("{report:?}") };
    assert!(exec.cycles > 2, "the budget has made it go on: {exec:?}");
    assert!(exec.landed() > 0 && exec.acked_ops > 0 && exec.recoveries >= exec.cycles, "{exec:?}");
    assert!(report.command.contains("--check-sql 'SELECT count(*)"), "{}", report.command);
    let summary = std::fs::read_to_string(format!("{out}/SUMMARY.md")).unwrap();
    assert!(summary.contains("Not judged: power loss"), "{summary}");
    let junit = std::fs::read_to_string(junit).unwrap();
    assert!(junit.contains("python3 scenarios/exec/ledger.py"), "{junit}");
}

#[test]
fn a_check_command_is_asked_as_well() {
    if !python() {
        return;
    }
    let arguments = ["exec", "--cycles", "4", "--check"];
    let check = |code: u8| {
        let check = format!("test -s \"$KILLPOINT_ACKS\" && exit {code}");
        let mut all = arguments.to_vec();
        all.extend_from_slice(&[&check, "--", "python3", "scenarios/exec/ledger.py"]);
        run(&all)
    };
    assert_eq!(check(0).code, 0);
    let done = check(9);
    assert_eq!(done.code, 1, "{}", done.stderr);
    assert!(done.stderr.contains("--check ended with 9"), "{}", done.stderr);
}

#[test]
fn what_cannot_be_judged_is_told() {
    if !python() {
        return;
    }
    let done = run(&["exec", "--cycles", "3", "--", "python3", "scenarios/exec/ledger.py"]);
    assert_eq!(done.code, 3, "{}", done.stderr);
    assert!(done.stderr.contains("neither --check-sql nor --check"), "{}", done.stderr);
    let done = run(&["exec", "--cycles", "3", "--", "true"]);
    assert_eq!(done.code, 3, "{}", done.stderr);
    assert!(done.stderr.contains("nothing was acknowledged"), "{}", done.stderr);
}

#[test]
fn bad_words_are_refused_before_anything_runs() {
    for (arguments, part) in [
        (&["exec", "--kill", "comit-page", "--", "true"][..], "comit-page"),
        (&["exec", "--fail", "EIO", "--", "true"], "EIO@wal-sync"),
        (&["exec", "--fail", "EFOO@wal-sync", "--", "true"], "EFOO"),
        (&["exec", "--kill", "wal-sync:0", "--", "true"], "number from 1"),
        (&["exec", "--", "no-such-program"], "no-such-program"),
        (&["watch", "--", "no-such-program"], "no-such-program"),
        (&["watch", "--db", "no/such/dir/a.db", "--", "true"], "no/such/dir"),
    ] {
        let done = run(arguments);
        assert_eq!(done.code, 2, "{arguments:?}: {}", done.stderr);
        assert!(done.stderr.contains(part), "{}", done.stderr);
    }
}

#[test]
fn a_header_check_after_each_commit_is_named_with_its_lock_and_its_process() {
    if !python() {
        return;
    }
    let place = scenario(&[]);
    let watch = |database: &str, check: &[&str]| -> Done {
        let database = place.beside(database);
        let mut all = vec!["watch", "--", "python3", "scenarios/exec/header_check.py", &database];
        all.extend_from_slice(check);
        killpoint(&all).output().unwrap().into()
    };
    let broken = watch("checked.db", &["check"]);
    assert_eq!(broken.code, 1, "{}", broken.stderr);
    for part in ["locks-dropped", "1073741826", "checked.db", "python", "close+"] {
        assert!(broken.stderr.contains(part), "{part} is not in: {}", broken.stderr);
    }
    let sound = watch("sound.db", &[]);
    assert_eq!(sound.code, 0, "{}", sound.stderr);
    assert!(sound.stderr.contains("0 findings"), "{}", sound.stderr);
}

#[test]
fn a_program_without_a_database_is_no_proof() {
    let done = run(&["watch", "--", "true"]);
    assert_eq!(done.code, 3, "{}", done.stderr);
}
