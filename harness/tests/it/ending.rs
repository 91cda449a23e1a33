use crate::support::{killpoint, lines, scenario};
use killpoint::report::Report;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Starts a run that would take for ever, and waits until its processes are at work.
fn start(out: &str, file: &str) -> Child {
    let child = killpoint(&["run", file, "--out", out]).stderr(Stdio::piped()).spawn().unwrap();
    let history = format!("{out}/history.jsonl");
    wait_for("a first cycle", || {
        std::fs::read_to_string(&history).is_ok_and(|text| text.contains("\"observed\""))
    });
    child
}

fn wait_for(what: &str, mut met: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !met() {
        assert!(Instant::now() < deadline, "waited 30 s for {what}");
        std::thread::yield_now();
    }
}

/// Processes below `pid`, by /proc.
fn descendants(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut todo = vec![pid];
    while let Some(parent) = todo.pop() {
        for task in std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten() {
            let children = task.unwrap().path().join("children");
            let text = std::fs::read_to_string(children).unwrap_or_default();
            for child in text.split_whitespace() {
                let child: u32 = child.parse().unwrap();
                found.push(child);
                todo.push(child);
            }
        }
    }
    found
}

fn is_worker(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|text| text.starts_with("killpoint-worker"))
}

fn endless() -> crate::support::Scenario {
    scenario(&[("count = 12", "count = 1000000")])
}

#[test]
fn ctrl_c_writes_the_results_so_far_and_ends_inconclusive() {
    let file = endless();
    let out = file.beside("out");
    let child = start(&out, file.path());
    let below = descendants(child.id());
    assert!(below.iter().any(|pid| is_worker(*pid)), "workers were at work");
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(!below.iter().any(|pid| is_worker(*pid)), "a worker outlived the command");
    let report = std::fs::read_to_string(format!("{out}/report.json")).unwrap();
    let report = Report::from_json(&report).unwrap();
    assert!(report.scenarios[0].counts.cycles > 0);
    assert!(report.scenarios[0].findings.iter().any(|f| f.kind.as_str() == "interrupted"));
    assert!(std::path::Path::new(&format!("{out}/SUMMARY.md")).exists());
    assert!(!lines(&stderr).is_empty());
}

#[test]
fn processes_do_not_outlive_a_harness_that_is_killed() {
    let file = endless();
    let mut child = start(&file.beside("out"), file.path());
    let mut below = Vec::new();
    wait_for("a worker", || {
        below = descendants(child.id());
        below.iter().filter(|pid| is_worker(**pid)).count() > 2
    });
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("all workers to be gone", || !below.iter().any(|pid| is_worker(*pid)));
}

#[test]
fn a_history_cut_short_by_a_kill_is_judged_inconclusive() {
    let file = endless();
    let out = file.beside("out");
    let mut child = start(&out, file.path());
    child.kill().unwrap();
    child.wait().unwrap();
    let history = format!("{out}/history.jsonl");
    let done = crate::support::run(&["judge", &history]);
    assert_eq!(done.code, 3, "{}", done.stderr);
    assert!(done.stderr.contains("interrupted"), "{}", done.stderr);
}
