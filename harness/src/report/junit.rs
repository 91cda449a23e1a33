//! JUnit XML, for the CI that shows it: one test case a scenario.

use super::{Report, ScenarioReport};
use crate::verdict::Verdict;
use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};
use std::time::Duration;

/// The file's text.
///
/// A verdict that was not expected is a failure; one that could not be given an error.
pub fn render(report: &Report) -> Result<String, quick_junit::SerializeError> {
    let mut junit = quick_junit::Report::new("killpoint");
    let mut suite = TestSuite::new("killpoint");
    for scenario in &report.scenarios {
        suite.add_test_case(case(scenario));
    }
    if let Some(error) = &report.error {
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
        status.set_message(error.clone());
        suite.add_test_case(TestCase::new("the harness itself", status));
    }
    junit.add_test_suite(suite);
    junit.to_string()
}

fn case(scenario: &ScenarioReport) -> TestCase {
    let status = if scenario.as_expected {
        TestCaseStatus::success()
    } else {
        let kind = match scenario.verdict {
            Verdict::Inconclusive => NonSuccessKind::Error,
            Verdict::Pass | Verdict::Fail => NonSuccessKind::Failure,
        };
        let mut status = TestCaseStatus::non_success(kind);
        let expected = scenario.expect.describe();
        status.set_message(format!("{}, expected {expected}", scenario.verdict));
        let findings: Vec<String> = scenario
            .findings
            .iter()
            .map(|finding| format!("{}: {}", finding.kind, finding.detail))
            .collect();
        status.set_description(findings.join("\n"));
        status
    };
    let mut case = TestCase::new(scenario.name.clone(), status);
    case.set_classname("killpoint");
    case.set_time(Duration::from_millis(scenario.elapsed_ms));
    let c = &scenario.counts;
    case.set_system_out(format!(
        "seed {} · {} cycles · {} kills · {} acked · {} lost · {} unknown",
        scenario.seed, c.cycles, c.process_kills, c.acked_ops, c.lost_acked_ops, c.unknown_ops
    ));
    case
}
