use crate::support::{run, scenario};
use killpoint::report::Report;
use killpoint::scenario::builtin::CANARIES;
use killpoint::verdict::Verdict;

#[test]
fn every_canary_is_caught_with_its_stated_finding() {
    let place = scenario(&[]);
    let out = place.beside("out");
    let done = run(&["run", "--canaries", "--out", &out]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let text = std::fs::read_to_string(format!("{out}/report.json")).unwrap();
    let report = Report::from_json(&text).unwrap();
    assert_eq!(report.scenarios.len(), CANARIES.len());
    for scenario in &report.scenarios {
        assert!(scenario.as_expected && scenario.canary, "{}", scenario.name);
        assert_ne!(scenario.verdict, Verdict::Pass, "{}", scenario.name);
    }
}

#[test]
fn a_canary_that_is_cured_makes_the_harness_blind() {
    // The control states a lost write; the store under it is sound.
    let changes = [("expect = \"pass\"", "expect.fail = \"lost-acked-write\"\ncanary = true")];
    let done = run(&["run", scenario(&changes).path()]);
    assert_eq!(done.code, 4, "{}", done.stderr);
    assert!(done.stderr.contains("BLIND"), "{}", done.stderr);
}

#[test]
fn a_canary_that_fails_for_another_reason_is_reported_as_blind() {
    let changes = [
        ("expect = \"pass\"", "expect.fail = \"corrupt\"\ncanary = true"),
        ("target = \"hardboard\"", "target.flawed = \"alien-write\""),
    ];
    let done = run(&["run", scenario(&changes).path()]);
    assert_eq!(done.code, 4, "{}", done.stderr);
    assert!(done.stderr.contains("alien-write"), "{}", done.stderr);
}

#[test]
fn a_scenario_with_a_broken_store_ends_with_1_and_keeps_the_evidence() {
    let file = scenario(&[("target = \"hardboard\"", "target.flawed = \"alien-write\"")]);
    let out = file.beside("out");
    let done = run(&["run", file.path(), "--out", &out]);
    assert_eq!(done.code, 1, "{}", done.stderr);
    let report = std::fs::read_to_string(format!("{out}/report.json")).unwrap();
    let report = Report::from_json(&report).unwrap();
    let kept = report.scenarios[0].evidence.first().expect("evidence is kept");
    assert!(std::path::Path::new(kept).join("board.db").exists(), "{kept}");
}
