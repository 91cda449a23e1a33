use crate::support::{Done, killpoint, lines, run, scenario};
use std::path::Path;

/// One line that holds each of `parts`, exit 2, nothing on stdout.
#[track_caller]
fn refused(done: &Done, parts: &[&str]) {
    assert_eq!(done.code, 2, "{}", done.stderr);
    assert_eq!(lines(&done.stderr).len(), 1, "{}", done.stderr);
    assert_eq!(done.stdout, "");
    for part in parts {
        assert!(done.stderr.contains(part), "{part} is not in: {}", done.stderr);
    }
}

#[test]
fn a_misspelt_key_is_told_with_its_place() {
    let file = scenario(&[("lease-ms", "leese-ms")]);
    refused(&run(&["run", file.path()]), &["small.toml:13:1", "leese-ms"]);
}

#[test]
fn an_unknown_role_is_told_with_its_place() {
    let file = scenario(&[("reviewer", "reviewr")]);
    refused(&run(&["run", file.path()]), &["small.toml:8:1", "reviewr", "reviewer"]);
}

#[test]
fn no_writers_are_told_with_their_place() {
    let file = scenario(&[("dispatcher = 1\nworker = 3\nreviewer = 2\n", "")]);
    refused(&run(&["run", file.path()]), &["small.toml:5:2", "0 writers"]);
}

#[test]
fn an_unknown_finding_is_told_with_its_place() {
    let file = scenario(&[("expect = \"pass\"", "expect.fail = \"lost-write\"")]);
    refused(&run(&["run", file.path()]), &["small.toml:3:", "lost-write"]);
}

#[test]
fn a_file_that_is_not_there_is_told_by_its_name() {
    refused(&run(&["run", "nothing/here.toml"]), &["nothing/here.toml", "No such file"]);
}

#[test]
fn a_file_of_random_bytes_is_told_by_its_name() {
    let file = scenario(&[]);
    std::fs::write(&file.file, [0xff, 0xfe, 0x00, 0x9f, 0x12]).unwrap();
    refused(&run(&["run", file.path()]), &["small.toml"]);
}

#[test]
fn a_directory_in_place_of_a_file_is_told_by_its_name() {
    let file = scenario(&[]);
    let dir = file.dir.path().to_str().unwrap();
    refused(&run(&["run", dir]), &[dir, "directory"]);
}

#[test]
fn nothing_to_run_is_told_with_what_to_do() {
    refused(&run(&["run"]), &["--canaries", "killpoint list"]);
}

#[test]
fn bad_arguments_end_with_2() {
    for arguments in [
        &["run", "--seed", "seed"][..],
        &["run", "--budget", "ten"],
        &["run", "--jobs", "0"],
        &["run", "--cycles", "0"],
        &["walk"],
        &[],
    ] {
        assert_eq!(run(arguments).code, 2, "{arguments:?}");
    }
    assert_eq!(run(&["--help"]).code, 0);
}

#[test]
fn a_place_that_cannot_be_written_is_told_before_anything_runs() {
    let file = scenario(&[]);
    // A file where a directory is wanted refuses root as well.
    let blocked = file.beside("blocked");
    std::fs::write(&blocked, "").unwrap();
    for argument in ["--dir", "--out"] {
        let done = run(&["run", file.path(), argument, &format!("{blocked}/inside")]);
        refused(&done, &[argument, "blocked/inside"]);
    }
    refused(&run(&["run", file.path(), "--dir", "/proc/self"]), &["--dir", "/proc/self"]);
}

#[test]
fn a_history_that_is_none_is_told_with_its_line() {
    let file = scenario(&[]);
    refused(&run(&["judge", file.path()]), &["small.toml:1:"]);
    refused(&run(&["judge", "nothing.jsonl"]), &["nothing.jsonl"]);
}

/// Runs `script` in a mount namespace of its own, where a small tmpfs is mounted at `$SMALL`.
fn on_small_disk(mebibytes: u32, script: &str, dir: &Path) -> Option<Done> {
    let small = dir.join("small-disk");
    std::fs::create_dir_all(&small).unwrap();
    let mount = format!("mount -t tmpfs -o size={mebibytes}m tmpfs \"$SMALL\"");
    let mut unshare = killpoint(&[]);
    let killpoint = unshare.get_program().to_owned();
    unshare = std::process::Command::new("unshare");
    unshare
        .args(["--map-root-user", "--mount", "sh", "-c", &format!("{mount} || exit 99; {script}")])
        .env("SMALL", &small)
        .env("KILLPOINT", killpoint);
    let done: Done = unshare.output().ok()?.into();
    if done.code == 99 || done.stderr.starts_with("unshare:") {
        // Told on the terminal: a test that did not run is not one that passed.
        eprintln!("SKIPPED: no mount namespace to be had here: {}", done.stderr.trim());
        return None;
    }
    Some(done)
}

#[test]
fn a_disk_that_is_too_small_is_told_before_anything_runs() {
    let file = scenario(&[]);
    let script = format!("exec \"$KILLPOINT\" run {} --dir \"$SMALL\"", file.path());
    if let Some(done) = on_small_disk(2, &script, file.dir.path()) {
        refused(&done, &["--dir", "small-disk", "MiB are free"]);
    }
}

/// A run on a disk that it fills, and the report it leaves.
fn until_the_disk_is_full(changes: &[(&str, &str)]) -> Option<killpoint::report::Report> {
    let file = scenario(changes);
    let out = file.beside("out");
    let script =
        format!("exec \"$KILLPOINT\" run {} --jobs 1 --dir \"$SMALL\" --out {out}", file.path());
    let done = on_small_disk(40, &script, file.dir.path())?;
    assert_eq!(done.code, 70, "{}", done.stderr);
    let told: Vec<&str> =
        lines(&done.stderr).into_iter().filter(|line| line.starts_with("killpoint: ")).collect();
    assert_eq!(told.len(), 1, "{}", done.stderr);
    assert!(told[0].contains("no space left") && told[0].contains("--dir"), "{}", told[0]);
    let report = std::fs::read_to_string(format!("{out}/report.json")).unwrap();
    let report = killpoint::report::Report::from_json(&report).unwrap();
    assert_eq!(report.scenarios[0].counts.lost_acked_ops, 0);
    assert_eq!(report.exit_code, 70);
    Some(report)
}

#[test]
fn a_disk_that_fills_up_on_the_way_ends_with_70_and_keeps_the_results_so_far() {
    // One database that only grows: no renewal ever makes room again.
    let report = until_the_disk_is_full(&[
        ("count = 12", "count = 100000"),
        ("per-database = 4", "per-database = 10000"),
        ("lease-ms = 8", "lease-ms = 8\npayload-bytes = [3000, 4000]"),
    ]);
    assert!(report.is_none_or(|report| report.scenarios[0].counts.cycles > 0));
}

#[test]
fn a_disk_that_writers_fill_within_a_cycle_is_no_fault_of_the_store() {
    until_the_disk_is_full(&[
        ("run-ms = [4, 12]", "run-ms = [60000, 60000]"),
        ("lease-ms = 8", "lease-ms = 8\npayload-bytes = [3000, 4000]"),
    ]);
}
