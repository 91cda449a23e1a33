//! JUnit XML, for the CI that shows it: one test case a scenario, sweep or command.

use super::schedule::ScheduleSetting;
use super::{Report, ScenarioReport, sweep};
use crate::verdict::{Finding, Verdict};
use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};
use std::time::Duration;

/// The file's text.
///
/// A verdict that was not expected is a failure; one that could not be given an error.
pub fn render(report: &Report) -> Result<String, quick_junit::SerializeError> {
    let mut junit = quick_junit::Report::new("killpoint");
    let mut suite = TestSuite::new("killpoint");
    for scenario in &report.scenarios {
        suite.add_test_case(scenario_case(scenario));
    }
    for sweep in &report.sweeps {
        let lines: Vec<String> = sweep.settings.iter().map(sweep::line).collect();
        let expected = sweep.expect.describe();
        let judged = Judged {
            name: &sweep.name,
            as_expected: sweep.as_expected,
            message: format!("{}, expected {expected}", sweep.verdict),
            verdict: sweep.verdict,
            findings: &sweep.findings,
            elapsed_ms: sweep.elapsed_ms,
            told: lines.join("\n"),
        };
        suite.add_test_case(case(judged));
    }
    for exec in &report.execs {
        let judged = Judged {
            name: &exec.victim,
            as_expected: exec.as_expected,
            message: exec.verdict.to_string(),
            verdict: exec.verdict,
            findings: &exec.findings,
            elapsed_ms: exec.elapsed_ms,
            told: exec.line(),
        };
        suite.add_test_case(case(judged));
    }
    for schedule in &report.schedules {
        let lines: Vec<String> = schedule.settings.iter().map(ScheduleSetting::line).collect();
        let judged = Judged {
            name: &schedule.name,
            as_expected: schedule.as_expected,
            message: format!("{}, expected {}", schedule.verdict, schedule.expect),
            verdict: schedule.verdict,
            findings: &schedule.findings,
            elapsed_ms: schedule.elapsed_ms,
            told: lines.join("\n"),
        };
        suite.add_test_case(case(judged));
    }
    if let Some(error) = &report.error {
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
        status.set_message(error.clone());
        suite.add_test_case(TestCase::new("the harness itself", status));
    }
    junit.add_test_suite(suite);
    junit.to_string()
}

fn scenario_case(scenario: &ScenarioReport) -> TestCase {
    let c = &scenario.counts;
    let expected = scenario.expect.describe();
    case(Judged {
        name: &scenario.name,
        as_expected: scenario.as_expected,
        message: format!("{}, expected {expected}", scenario.verdict),
        verdict: scenario.verdict,
        findings: &scenario.findings,
        elapsed_ms: scenario.elapsed_ms,
        told: format!(
            "seed {} · {} cycles · {} kills · {} acked · {} lost · {} unknown",
            scenario.seed, c.cycles, c.process_kills, c.acked_ops, c.lost_acked_ops, c.unknown_ops
        ),
    })
}

/// What a test case is made of.
struct Judged<'a> {
    name: &'a str,
    as_expected: bool,
    message: String,
    verdict: Verdict,
    findings: &'a [Finding],
    elapsed_ms: u64,
    told: String,
}

fn case(judged: Judged<'_>) -> TestCase {
    let status = if judged.as_expected {
        TestCaseStatus::success()
    } else {
        let kind = match judged.verdict {
            Verdict::Inconclusive => NonSuccessKind::Error,
            Verdict::Pass | Verdict::Fail => NonSuccessKind::Failure,
        };
        let mut status = TestCaseStatus::non_success(kind);
        status.set_message(judged.message);
        let findings: Vec<String> = judged
            .findings
            .iter()
            .map(|finding| format!("{}: {}", finding.kind, finding.detail))
            .collect();
        status.set_description(findings.join("\n"));
        status
    };
    let mut case = TestCase::new(judged.name.to_owned(), status);
    case.set_classname("killpoint");
    case.set_time(Duration::from_millis(judged.elapsed_ms));
    case.set_system_out(judged.told);
    case
}
