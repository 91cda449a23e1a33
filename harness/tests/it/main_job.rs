use crate::support::{run, scenario};
use killpoint::report::Report;
use killpoint::verdict::Verdict;

fn report(out: &str) -> Report {
    let text = std::fs::read_to_string(format!("{out}/report.json")).unwrap();
    Report::from_json(&text).unwrap()
}

#[test]
fn a_small_run_kills_in_flight_loses_nothing_and_passes() {
    let file = scenario(&[]);
    let out = file.beside("out");
    let done = run(&["run", file.path(), "--out", &out, "--seed", "0x5eed"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let report = report(&out);
    let scenario = &report.scenarios[0];
    let counts = &scenario.counts;
    assert_eq!(scenario.verdict, Verdict::Pass);
    assert_eq!(counts.cycles, 24);
    assert_eq!(counts.graceful_cycles, 6);
    // 7 processes, in every second setting an owner of checkpoints more; 3 kills where it ends
    // well.
    assert_eq!(counts.process_kills, 9 * (7 + 8) + 6 * 3);
    assert_eq!(counts.kills_by_activity.values().sum::<u64>(), counts.process_kills);
    assert!(counts.in_flight_share() > 0.1, "{:?}", counts.kills_by_activity);
    assert!(counts.acked_ops > 100);
    assert_eq!((counts.lost_acked_ops, counts.corrupt_cycles), (0, 0));
    assert!(report.engine.sqlite_version.starts_with("3."));
    assert_eq!(report.seed, "0x5eed");
    for name in ["history.jsonl", "SUMMARY.md"] {
        assert!(std::path::Path::new(&format!("{out}/{name}")).exists(), "{name}");
    }
}

#[test]
fn a_stored_history_gives_the_same_verdict_again() {
    let file = scenario(&[]);
    let out = file.beside("out");
    assert_eq!(run(&["run", file.path(), "--out", &out]).code, 0);
    let judged = run(&["judge", &format!("{out}/history.jsonl")]);
    assert_eq!(judged.code, 0, "{}", judged.stderr);
    let acked = report(&out).scenarios[0].counts.acked_ops;
    assert!(judged.stderr.contains(&format!("{acked} acked · 0 lost")), "{}", judged.stderr);
}

#[test]
fn an_acknowledged_write_taken_out_of_a_stored_history_is_found() {
    let file = scenario(&[]);
    let out = file.beside("out");
    assert_eq!(run(&["run", file.path(), "--out", &out]).code, 0);
    let history = format!("{out}/history.jsonl");
    let text = std::fs::read_to_string(&history).unwrap();
    // A refusal in place of an acknowledgement: what is there must not be there.
    let changed = text.replacen("\"create\",\"acked\"", "\"create\",\"refused\"", 1);
    assert_ne!(text, changed);
    std::fs::write(&history, changed).unwrap();
    let judged = run(&["judge", &history]);
    assert_eq!(judged.code, 1, "{}", judged.stderr);
    assert!(judged.stderr.contains("refused-write-present"), "{}", judged.stderr);
}

#[test]
fn plan_only_prints_the_same_plan_twice_and_runs_nothing() {
    let file = scenario(&[]);
    let plan = || run(&["run", file.path(), "--plan-only", "--seed", "7"]);
    let (one, two) = (plan(), plan());
    assert_eq!((one.code, &one.stdout), (0, &two.stdout));
    assert!(one.stdout.lines().count() >= 6);
    let other = run(&["run", file.path(), "--plan-only", "--seed", "8"]);
    assert_ne!(one.stdout, other.stdout);
}

#[test]
fn a_budget_repeats_with_fresh_seeds_and_junit_has_a_case_for_each() {
    let file = scenario(&[("count = 12", "count = 4")]);
    let (out, junit) = (file.beside("out"), file.beside("junit.xml"));
    let arguments = ["run", file.path(), "--budget", "3s", "--out", &out, "--junit", &junit];
    let done = run(&arguments);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let report = report(&out);
    assert!(report.scenarios.len() >= 2, "{} rounds", report.scenarios.len());
    assert_ne!(report.scenarios[0].seed, report.scenarios[1].seed);
    assert_eq!(report.scenarios[0].seed, report.seed);
    let xml = std::fs::read_to_string(junit).unwrap();
    assert_eq!(xml.matches("<testcase ").count(), report.scenarios.len());
    assert!(xml.contains("failures=\"0\""), "{xml}");
}

#[test]
fn tune_prints_latency_and_loss_of_each_setting_and_recommends_one() {
    let file = scenario(&[
        ("any-moment = 1\ntransaction = 1\ncommit = 1\n", ""),
        ("graceful-every = 4", "graceful-every = 0"),
        ("per-database = 4", "per-database = 1"),
        ("run-ms = [4, 12]", "run-ms = [60, 60]"),
    ]);
    let out = file.beside("out");
    let budgets = ["--loss-budget", "0", "--latency-budget", "p99=60s"];
    let arguments = ["tune", file.path(), "--budget", "2s", "--out", &out];
    let done = run(&[&arguments[..], &budgets[..]].concat());
    assert_eq!(done.code, 0, "{}", done.stderr);
    let report = report(&out);
    assert_eq!(report.configs.len(), 2);
    for config in &report.configs {
        assert!(config.commits_per_s > 0.0 && config.commit_us.p50 > 0.0, "{config:?}");
        assert!(config.commit_us.p50 <= config.commit_us.p99, "{config:?}");
        assert_eq!(config.lost, 0);
        assert!(config.lost_share_upper_95 > 0.0 && config.lost_share_upper_95 < 1.0);
        let loss = config.power.as_ref().expect("each row is recorded and cut");
        assert!(loss.states > 100, "{config:?}");
        assert_eq!(loss.corrupt_states + loss.not_a_prefix_states + loss.power_acks_lost, 0);
    }
    // NORMAL leaves the fsync of a commit to the checkpoint, FULL does not.
    assert!(report.configs[0].fsyncs_per_commit < 0.9, "{:?}", report.configs[0]);
    assert!(report.configs[1].fsyncs_per_commit >= 0.99, "{:?}", report.configs[1]);
    assert!(done.stdout.contains("Kills cannot tell the levels apart"), "{}", done.stdout);
    let lost = |row: usize| report.configs[row].power.as_ref().unwrap().loss_commits.max;
    assert!(lost(0) > 0.0 && lost(1) == 0.0, "{:?}", report.configs);
    assert!(done.stdout.contains("Recommended: full+0+owner"), "{}", done.stdout);
    assert!(done.stdout.contains("PRAGMA synchronous = FULL;"), "{}", done.stdout);
    let svg = std::fs::read_to_string(format!("{out}/pareto.svg")).unwrap();
    assert_eq!(svg.matches("<circle").count(), 2);
}

#[test]
fn jsonl_on_stdout_is_one_object_a_line() {
    let file = scenario(&[("count = 12", "count = 4")]);
    let done = run(&["run", file.path(), "--format", "jsonl"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let lines: Vec<serde_json::Value> =
        done.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0]["verdict"], "pass");
    assert!(lines[0]["process_kills"].as_u64().unwrap() > 0);
}

#[test]
fn what_the_environment_says_of_pragmas_does_not_reach_the_workers() {
    let file = scenario(&[("count = 12", "count = 4")]);
    let done = crate::support::killpoint(&["run", file.path()])
        .env("HARDBOARD_SYNCHRONOUS", "extra")
        .env("HARDBOARD_WAL_AUTOCHECKPOINT", "7")
        .output()
        .unwrap();
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
}
