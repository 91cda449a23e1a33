use crate::support::{Done, lines, run, scenario, top};
use killpoint::report::Report;
use std::path::Path;
use std::process::Command;

/// The engines that can be started now. Building one takes minutes, which is no test's to spend:
/// `killpoint engines --build` does it, and the gate before its tests.
fn ready() -> Vec<String> {
    let done = run(&["engines", "--format", "jsonl"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let rows = lines(&done.stdout).into_iter();
    rows.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|row| row["state"] == "ready")
        .map(|row| row["engine"].as_str().unwrap().to_owned())
        .collect()
}

/// Whether all of `names` are there; says so if not.
fn have(names: &[&str]) -> bool {
    let ready = ready();
    let missing: Vec<&&str> =
        names.iter().filter(|name| !ready.iter().any(|r| r == *name)).collect();
    if !missing.is_empty() {
        eprintln!("SKIPPED: {missing:?} not built: run `killpoint engines --build`");
    }
    missing.is_empty()
}

fn report(out: &str) -> Report {
    Report::from_json(&std::fs::read_to_string(format!("{out}/report.json")).unwrap()).unwrap()
}

#[test]
fn every_engine_is_listed_and_the_bundled_one_says_what_it_is() {
    let done = run(&["engines"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    for name in ["bundled", "3.51.1", "3.50.2", "system"] {
        assert!(done.stdout.lines().any(|line| line.starts_with(name)), "{}", done.stdout);
    }
    assert!(done.stdout.contains(rusqlite_version()), "{}", done.stdout);
    assert!(ready().contains(&"bundled".to_owned()));
}

/// The version that the harness itself has.
fn rusqlite_version() -> &'static str {
    rusqlite::version()
}

#[test]
fn what_is_no_engine_is_told_in_one_line_and_nothing_is_run() {
    let file = scenario(&[]);
    let nonsense = file.beside("libnonsense.so.0");
    std::fs::write(&nonsense, "no library").unwrap();
    for (engine, part) in
        [("3.50.3", "3.51.1"), ("/nothing/here.so", "No such file"), (&nonsense, "libsqlite3")]
    {
        if engine == nonsense && !have(&["system"]) {
            continue;
        }
        let done = run(&["run", file.path(), "--engine", engine]);
        assert_eq!(done.code, 2, "{}", done.stderr);
        let told = lines(&done.stderr);
        assert_eq!(told.len(), 1, "{}", done.stderr);
        assert!(told[0].contains(part), "{}", done.stderr);
    }
    let done = run(&["engines", "--build", "4.0.0"]);
    assert_eq!((done.code, lines(&done.stderr).len()), (2, 1), "{}", done.stderr);
}

#[test]
fn processes_of_one_run_have_different_engines_and_each_says_which() {
    if !have(&["system", "3.50.2"]) {
        return;
    }
    let setting = "checkpoint-owner = true\nengine-of.worker = \"system\"\n\
                   engine-of.reviewer = \"3.50.2\"\n";
    let changes = [
        ("checkpoint-owner = true\n", setting),
        ("target = \"hardboard\"", "target = \"baseline\""),
        ("reader = 1", "reader = 1\nvisitor = 1"),
        ("lease-ms = 8", "lease-ms = 60000\noverstays-per-100-claims = 0"),
    ];
    let file = scenario(&changes);
    let out = file.beside("out");
    let done = run(&["run", file.path(), "--out", &out]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let report = report(&out);
    assert_eq!(report.engine.judge_sqlite_version, rusqlite_version());
    for version in ["3.50.2", rusqlite_version()] {
        assert!(report.engine.sqlite_version.contains(version), "{}", report.engine.sqlite_version);
    }
    let loaded = &report.scenarios[0].settings[1].engines;
    let of = |role: &str| {
        let found = loaded.iter().find(|e| format!("{:?}", e.role) == role);
        found.unwrap_or_else(|| panic!("{role} is not in {loaded:?}"))
    };
    assert_eq!(of("Reviewer").sqlite_version, "3.50.2");
    assert!(of("Reviewer").source_id.starts_with("2025-06-28"), "{loaded:?}");
    assert_eq!(of("Dispatcher").sqlite_version, rusqlite_version());
    assert_eq!(of("Visitor").sqlite_version, rusqlite_version());
    assert_ne!(of("Worker").source_id, of("Dispatcher").source_id);
    assert!(loaded.iter().all(|e| e.processes > 0));
    // The setting that names no engine has one.
    assert!(
        report.scenarios[0].settings[0]
            .engines
            .iter()
            .all(|e| e.source_id == of("Dispatcher").source_id)
    );
}

#[test]
fn a_library_by_path_takes_the_place_of_all() {
    if !have(&["3.51.1"]) {
        return;
    }
    let library = crate::support::top().join("target/engines/3.51.1/libsqlite3.so.0");
    let file = scenario(&[("target = \"hardboard\"", "target = \"baseline\"")]);
    let out = file.beside("out");
    let library = library.to_str().unwrap();
    let done = run(&["run", file.path(), "--out", &out, "--engine", library, "--cycles", "4"]);
    assert!(done.stderr.contains("--engine"), "the command to repeat: {}", done.stderr);
    assert_eq!(report(&out).engine.sqlite_version, "3.51.1", "{}", done.stderr);
}

#[test]
fn header_check_destroys_on_3_50_2_with_no_kill_and_nowhere_else() {
    if !have(&["3.50.2"]) {
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let out = out.path().to_str().unwrap();
    let file = "scenarios/reports/header-check.toml";
    // In memory, where commits are many: what is waited for is a close at the wrong moment.
    let memory = std::path::Path::new("/dev/shm");
    let dir = if memory.is_dir() { "/dev/shm" } else { out };
    let done = run(&["run", file, "--cycles", "1", "--dir", dir, "--out", out]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let report = report(out);
    assert_eq!(report.scenarios[0].counts.process_kills, 0);
    let lost: Vec<bool> = report.scenarios[0]
        .settings
        .iter()
        .map(|setting| setting.counts.lost_acked_ops > 0 && setting.first_loss_ms.is_some())
        .collect();
    assert_eq!(lost, [true, true, false, false, false]);
    // A setting that does not give what it is to give is not as expected.
    let text = std::fs::read_to_string(crate::support::top().join(file)).unwrap();
    let wrong = scenario(&[]);
    std::fs::write(&wrong.file, text.replacen("header-check = true\n", "", 1)).unwrap();
    let done = run(&["run", wrong.path(), "--cycles", "1", "--dir", dir]);
    assert_eq!(done.code, 1, "{}", done.stderr);
}

/// The command `hardboard` on another engine: the store is built into the worker, too.
fn hardboard_on(engine: &str, accepted: Option<&str>, path: &Path, line: &str) -> Done {
    let engines = top().join("target/engines");
    let mut command = Command::new(engines.join("worker"));
    command.args(["hardboard", "--db"]).arg(path).args(line.split(' '));
    if engine != "system" {
        command.env("LD_LIBRARY_PATH", engines.join(engine));
    }
    command.env_remove("HARDBOARD_ACCEPT_ENGINE");
    if let Some(version) = accepted {
        command.env("HARDBOARD_ACCEPT_ENGINE", version);
    }
    command.output().unwrap().into()
}

#[test]
fn engine_with_the_reset_fault_fails_the_trial_of_the_store_and_is_refused_unless_it_is_named() {
    for (engine, version) in [("3.51.1", "3.51.1"), ("3.50.2", "3.50.2")] {
        if !have(&[engine]) {
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("board.db");
        for accepted in [None, Some("3.51.2"), Some("yes")] {
            let done = hardboard_on(engine, accepted, &path, "init");
            assert_eq!(done.code, 70, "{engine}, {accepted:?}: {}", done.stderr);
            assert_eq!(lines(&done.stderr).len(), 1, "{}", done.stderr);
            for part in [version, "a trial lost acknowledged rows", "3.51.3"] {
                assert!(done.stderr.contains(part), "{engine}: no {part:?} in {}", done.stderr);
            }
            assert!(!path.exists(), "nothing is made by an engine that is refused");
        }
        let done = hardboard_on(engine, Some(version), &path, "init");
        assert_eq!(done.code, 0, "{engine}: {}", done.stderr);
        let done = hardboard_on(engine, Some(version), &path, "create dig");
        assert_eq!(done.code, 0, "{engine}: {}", done.stderr);
        let done = hardboard_on(engine, Some(version), &path, "doctor --json");
        let health: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
        assert!(done.stdout.contains("\"accepted\""), "{health:#}");
        assert!(done.stdout.contains(version), "{health:#}");
    }
}
