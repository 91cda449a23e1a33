use crate::support::{run, scenario, top};
use killpoint::report::Report;
use killpoint::report::schedule::ScheduleReport;
use std::path::Path;

/// Where no disk is waited for, if there is such a place.
fn memory_dir() -> String {
    let dir = if Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
    dir.to_str().unwrap().to_owned()
}

/// Runs a scenario's text; gives the exit code, the report, and the directory of the results.
fn explored(text: &str) -> (i32, ScheduleReport, crate::support::Scenario) {
    let place = scenario(&[]);
    let file = place.beside("schedules.toml");
    std::fs::write(&file, text).unwrap();
    let out = place.beside("out");
    let arguments = ["run", &file, "--out", &out, "--dir", &memory_dir(), "--seed", "7"];
    let done = run(&arguments);
    let report = std::fs::read_to_string(Path::new(&out).join("report.json"))
        .unwrap_or_else(|error| panic!("{error}: {}", done.stderr));
    let report = Report::from_json(&report).unwrap();
    (done.code, report.schedules.into_iter().next().unwrap(), place)
}

fn of_repository(name: &str, changes: &[(&str, &str)]) -> String {
    let file = top().join(format!("scenarios/schedule/{name}.toml"));
    let mut text = std::fs::read_to_string(file).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "the change must change something: {from}");
        text = text.replace(from, to);
    }
    text
}

#[test]
fn each_schedule_goes_the_same_way_twice() {
    let changes = [("count = 20000", "count = 12"), ("twice-per-100 = 1", "twice-per-100 = 100")];
    let (code, report, _place) = explored(&of_repository("wal-reset-bundled", &changes));
    assert_eq!(code, 0, "{:?}", report.findings);
    let setting = &report.settings[0];
    // The second time with a stop at each call: what was let pass the first time was the same.
    assert_eq!((setting.run_twice, setting.differing), (12, 0));
    assert!(setting.passed > setting.stops / 4, "{setting:?}");
    assert!(setting.preemptions > 100 && setting.pairs > 100, "{setting:?}");
    assert!(setting.traps_met > 20 || !report.preemption.contains("watchpoints"), "{setting:?}");
}

#[test]
fn a_planted_race_is_found_and_its_bundle_replays_to_the_step() {
    let (code, report, place) = explored(&of_repository("claim-race", &[]));
    assert_eq!(code, 0, "{:?}", report.findings);
    assert!(report.settings[0].first_finding_schedules[0] <= 1_000);
    let bundle = place.beside(&format!("out/{}", report.bundles[0]));
    let done = run(&["replay", &bundle, "--times", "3"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stderr.contains("3 of 3 replays identical"), "{}", done.stderr);
}

#[test]
fn a_damaged_bundle_is_refused() {
    let (_, report, place) = explored(&of_repository("claim-race", &[]));
    let bundle = place.beside(&format!("out/{}", report.bundles[0]));
    let mut bytes = std::fs::read(&bundle).unwrap();
    let place_of = bytes.windows(9).position(|w| w == b"\"decided\"").unwrap();
    bytes[place_of + 1] = b'D';
    std::fs::write(&bundle, bytes).unwrap();
    let done = run(&["replay", &bundle]);
    assert_eq!(done.code, 2, "{}", done.stderr);
    assert!(done.stderr.contains("plan.json is not what was written"), "{}", done.stderr);
}

const LOCKS: &str = r#"
import fcntl, os
first, second = ("a", "b") if os.environ["KILLPOINT_COPY"] == "0" else ("b", "a")
one, two = open(first, "w"), open(second, "w")
fcntl.lockf(one, fcntl.LOCK_EX)
fcntl.lockf(two, fcntl.LOCK_EX)
"#;

#[test]
fn a_deadlock_is_found_with_who_waits_for_whom() {
    let place = scenario(&[]);
    let program = place.beside("locks.py");
    std::fs::write(&program, LOCKS).unwrap();
    let text = format!(
        "format = 1\nclaim = 'two locks in two orders'\nexpect.fail = ['deadlock']\n[schedule]\n\
         count = 200\npolicy.random-walk.every = 2\n[command]\nargv = ['/usr/bin/python3', '-S', \
         '{program}']\ncopies = 2\ndatabase = 'none.db'\n"
    );
    if !Path::new("/usr/bin/python3").exists() {
        eprintln!("skipped: there is no /usr/bin/python3");
        return;
    }
    let (code, report, _place) = explored(&text);
    assert_eq!(code, 0, "{:?}", report.findings);
    // Beside it a loaded machine may show a schedule that did not repeat: whether a thread is
    // blocked is told by the kernel, and late.
    let mut found = report.findings.iter().map(|finding| &finding.detail);
    let found = found.find(|detail| detail.contains("waits for")).unwrap();
    assert!(found.contains("process 0 waits for an exclusive lock on b"), "{found}");
    assert!(found.contains("held by process 1"), "{found}");
}

/// With short scripts, so that processes end while others are about to give way.
#[test]
fn schedules_whose_processes_end_early_go_the_same_way_twice() {
    let changes = [
        ("count = 20000", "count = 60"),
        ("twice-per-100 = 1", "twice-per-100 = 100"),
        ("steps = 24", "steps = 5"),
    ];
    let (code, report, _place) = explored(&of_repository("wal-reset-bundled", &changes));
    assert_eq!(code, 0, "{:?}", report.findings);
    assert_eq!((report.settings[0].run_twice, report.settings[0].differing), (60, 0));
}

#[test]
fn each_policy_repeats_by_its_decisions() {
    let policies = ["random-walk.every = 5", "round-robin.steps = 7", "pct.changes = 9"];
    for (policy, preempt) in policies.iter().zip(["wal-index", "calls", "steps"]) {
        let policy = format!("policy.{policy}");
        let preempt = format!("preempt = \"{preempt}\"");
        let changes = [
            ("count = 20000", "count = 6"),
            ("twice-per-100 = 1", "twice-per-100 = 100"),
            ("steps = 24", "steps = 5"),
            ("policy.pct.changes = 60", policy.as_str()),
            ("preempt = \"wal-index\"", preempt.as_str()),
        ];
        let (code, report, _place) = explored(&of_repository("wal-reset-bundled", &changes));
        assert_eq!(code, 0, "{policy}: {:?}", report.findings);
        let setting = &report.settings[0];
        assert_eq!((setting.run_twice, setting.differing), (6, 0), "{policy}");
        assert!(setting.preemptions > 10, "{policy}: {setting:?}");
        assert_eq!(setting.traps_met > 0, !preempt.contains("calls"), "{policy}: {setting:?}");
    }
}

#[test]
fn under_the_policy_delay_all_run_at_once_and_nothing_is_run_twice() {
    let changes = [
        ("count = 20000", "count = 6"),
        ("twice-per-100 = 1", "twice-per-100 = 100"),
        ("policy.pct.changes = 60", "policy.delay = { every = 20, ms-max = 1 }"),
    ];
    let (code, report, _place) = explored(&of_repository("wal-reset-bundled", &changes));
    assert_eq!(code, 0, "{:?}", report.findings);
    let setting = &report.settings[0];
    assert_eq!((setting.schedules, setting.run_twice, setting.steps), (6, 0, 0));
    assert!(setting.faults_landed > 0 || setting.stops > 100, "{setting:?}");
}

#[test]
fn processes_that_run_and_get_nowhere_are_a_live_lock() {
    let changes = [
        ("count = 20000", "count = 2\nstops-max = 200"),
        ("expect = \"pass\"", "expect.fail = [\"live-lock\"]"),
    ];
    let (code, report, _place) = explored(&of_repository("wal-reset-bundled", &changes));
    assert_eq!(code, 0, "{:?}", report.findings);
    let found = &report.findings[0].detail;
    assert!(found.contains("nobody gets anywhere after 200 steps: process 0"), "{found}");
}

#[test]
fn schedules_beside_those_that_showed_something_new_repeat_from_the_seed() {
    let changes = [
        ("count = 20000", "count = 300\nsteered = true"),
        ("steps = 24", "steps = 2"),
        ("twice-per-100 = 1", "twice-per-100 = 0"),
    ];
    let run = || {
        let (code, report, _place) = explored(&of_repository("wal-reset-bundled", &changes));
        assert_eq!(code, 0, "{:?}", report.findings);
        let setting = report.settings.into_iter().next().unwrap();
        // The last generation is a short one.
        assert_eq!(setting.schedules, 300);
        (setting.beside, setting.pairs, setting.steps, setting.preemptions)
    };
    let first = run();
    assert!(first.0 > 20, "{first:?}");
    assert_eq!(first, run());
}

#[test]
fn a_bundle_of_another_build_is_refused_unless_asked_for() {
    let (_, report, place) = explored(&of_repository("claim-race", &[]));
    let bundle = place.beside(&format!("out/{}", report.bundles[0]));
    let done = run(&["replay", &bundle, "--engine", "system"]);
    if done.stderr.contains("no libsqlite3") {
        eprintln!("skipped: the machine has no SQLite of its own");
        return;
    }
    assert_eq!(done.code, 2, "{}", done.stderr);
    assert!(done.stderr.contains("--any-build"), "{}", done.stderr);
}

#[test]
fn every_scenario_of_schedules_reads() {
    for folder in ["schedule", "regression"] {
        for entry in std::fs::read_dir(top().join("scenarios").join(folder)).unwrap() {
            let path = entry.unwrap().path();
            killpoint::scenario::schedule::load(&path).unwrap();
        }
    }
}
