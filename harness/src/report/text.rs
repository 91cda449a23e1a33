//! The lines for a person at a terminal.

use super::ScenarioReport;
use crate::verdict::Verdict;

/// One line for one scenario.
#[must_use]
pub fn scenario(s: &ScenarioReport) -> String {
    let c = &s.counts;
    let word = match (s.as_expected, s.canary, s.verdict) {
        (true, true, _) => "CAUGHT",
        (true, false, Verdict::Pass) => "PASS",
        (true, false, Verdict::Fail | Verdict::Inconclusive) => "AS EXPECTED",
        (false, true, _) => "BLIND",
        (false, false, Verdict::Inconclusive) => "INCONCLUSIVE",
        (false, false, Verdict::Fail) => "FAIL",
        (false, false, Verdict::Pass) => "PASS, BUT NOT EXPECTED TO",
    };
    let seconds = std::time::Duration::from_millis(s.elapsed_ms).as_secs_f64();
    let expected = match s.expect {
        crate::scenario::Expect::Pass => String::new(),
        _ => format!(" ({})", s.expect.describe()),
    };
    let pauses = if c.pauses > 0 {
        let (pauses, past) = (c.pauses, c.pauses_past_lease);
        format!(" · {} claims · {pauses} pauses, {past} past a lease", c.claims)
    } else {
        String::new()
    };
    format!(
        "{:<34} {word}{expected}   {} cycles · {} kills, {:.0} % in a transaction or commit · {} \
         acked · {} lost · {} unknown ({} kept) · {} stale refused{pauses}   \
         {seconds:.1} s, {:.0} cycles/s",
        s.name,
        c.cycles,
        c.process_kills,
        c.in_flight_share() * 100.0,
        c.acked_ops,
        c.lost_acked_ops,
        c.unknown_ops,
        c.unknown_kept_ops,
        c.stale_refused_ops,
        s.cycles_per_s,
    )
}

/// The findings that matter to somebody who was not expecting them.
#[must_use]
pub fn findings(s: &ScenarioReport) -> Vec<String> {
    let mut lines: Vec<String> = s
        .findings
        .iter()
        .take(8)
        .map(|finding| format!("  {}: {}", finding.kind, finding.detail))
        .collect();
    let all: u64 = s.findings_by_kind.values().sum();
    let told = u64::try_from(lines.len()).unwrap_or(u64::MAX);
    if all > told {
        lines.push(format!("  … and {} more", all - told));
    }
    lines.extend(s.evidence.iter().map(|path| format!("  evidence: {path}")));
    lines
}
