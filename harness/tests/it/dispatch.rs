//! Dispatchers and workers, killed: `scenarios/exec/dispatch/`, small.

use crate::support::{Done, killpoint, lines, top};
use crate::trace::support::python;

/// Runs the scenario for so many cycles.
fn killed(cycles: u32, flaw: Option<&str>) -> Done {
    let program = top().join("scenarios/exec/dispatch/dispatch.py");
    let program = format!("{} {}", python().display(), program.display());
    let cycles = cycles.to_string();
    let (setup, check) = (format!("{program} setup"), format!("{program} check"));
    let mut arguments = vec!["exec", "--db", "board.db", "--copies", "3", "--seed", "5"];
    arguments.extend(["--cycles", &cycles, "--per-database", &cycles]);
    arguments.extend(["--setup", &setup, "--check", &check, "--"]);
    arguments.extend(program.split(' ').chain(["run"]));
    let mut command = killpoint(&arguments);
    command
        .env("HARDBOARD", concat!(env!("CARGO_BIN_EXE_killpoint"), " killpoint-worker hardboard"));
    // Nothing of the settings of whoever runs this.
    command.env_remove("HARDBOARD_SYNCHRONOUS").env("DISPATCH_FLAW", flaw.unwrap_or_default());
    command.output().unwrap().into()
}

#[test]
fn dispatchers_and_workers_killed_at_commits_start_nothing_twice_and_lose_no_task() {
    let done = killed(5, None);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let told = lines(&done.stderr).pop().unwrap().to_owned();
    assert!(told.contains("4 of 4 faults landed"), "{}", done.stderr);
    let acked = told.split(" · ").find_map(|part| part.strip_suffix(" acknowledged")).unwrap();
    assert!(acked.parse::<u32>().unwrap() >= 6, "{told}");
}

#[test]
fn workers_started_without_claims_are_found_to_be_started_twice() {
    let done = killed(1, Some("no-claim"));
    assert_eq!(done.code, 1, "{}", done.stderr);
    assert!(done.stderr.contains("was started twice"), "{}", done.stderr);
}
