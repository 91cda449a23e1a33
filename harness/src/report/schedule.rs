//! What a run of schedules covered and found.

use super::bound;
use crate::verdict::{Finding, Verdict};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One scenario of schedules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScheduleReport {
    /// Its name: `reports/wal-reset`.
    pub name: String,
    /// What it is to show.
    pub claim: String,
    /// The verdict that shows it, in words.
    pub expect: String,
    /// Whether it is a control.
    pub canary: bool,
    /// Hexadecimal.
    pub seed: String,
    /// What it gave.
    pub verdict: Verdict,
    /// Whether that is what was expected.
    pub as_expected: bool,
    /// The first findings.
    pub findings: Vec<Finding>,
    /// All findings, by kind.
    pub findings_by_kind: BTreeMap<String, u64>,
    /// Each setting.
    pub settings: Vec<ScheduleSetting>,
    /// How a process is stopped between two calls on this machine.
    pub preemption: String,
    /// Bundles that were written.
    pub bundles: Vec<String>,
    /// Wall time, ms.
    pub elapsed_ms: u64,
    /// Lanes at once, one a core.
    pub jobs: usize,
}

/// One setting of such a scenario.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ScheduleSetting {
    /// `normal+4`, or `command`.
    pub name: String,
    /// What ran: `sqlite 3.51.1, source id …`, or the program's words.
    pub engine: String,
    /// Schedules that were run and judged.
    pub schedules: u64,
    /// Of those, that ended with all processes killed.
    pub killed_at_end: u64,
    /// Schedules with a finding that is a broken promise.
    pub failing: u64,
    /// Of those, that ended with all processes killed.
    pub failing_killed: u64,
    /// 95 % upper bound of the share of failing ones.
    pub failing_share_bound: f64,
    /// For each seed that found anything: after how much time, ms.
    pub first_finding_ms: Vec<u64>,
    /// And after how many schedules.
    pub first_finding_schedules: Vec<u64>,
    /// Seeds that were tried.
    pub seeds: u64,
    /// Steps of all processes.
    pub steps: u64,
    /// Stops at traced calls, those that were only answered included.
    pub stops: u64,
    /// Of these, steps that made no stop, since it was certain that the same process goes on.
    #[serde(default)]
    pub passed: u64,
    /// Switches away from a process that could have gone on.
    pub preemptions: u64,
    /// Traps between calls that were set.
    pub traps_set: u64,
    /// Of those, met.
    pub traps_met: u64,
    /// Faults planned.
    pub faults: u64,
    /// Of those, landed, with a receipt.
    pub faults_landed: u64,
    /// Schedules that were run a second time.
    pub run_twice: u64,
    /// Of those, that went another way.
    pub differing: u64,
    /// Pairs of (lock held by one process, operation of another) that met.
    pub pairs: u64,
    /// New pairs in each thousand schedules, in order.
    pub new_pairs_per_thousand: Vec<u64>,
    /// Schedules beside others that had shown something new.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub beside: u64,
    /// New pairs that were met in those.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub new_pairs_beside: u64,
    /// Wall time of the schedules, judging included, ms.
    pub elapsed_ms: u64,
    /// Of all lanes, ms: putting files and running, looking and judging.
    pub running_ms: u64,
    /// See above.
    pub judging_ms: u64,
    /// Stops a second and lane, judging included.
    pub stops_per_s_and_core: f64,
    /// Schedules a second and lane, judging included.
    pub schedules_per_s_and_core: f64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde asks for it")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The middle of some numbers; of an even count the mean of the two in the middle.
#[must_use]
pub fn median(numbers: &[u64]) -> Option<u64> {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some(sorted[middle - 1].midpoint(sorted[middle])),
    }
}

impl ScheduleSetting {
    /// Failing schedules in a thousand.
    #[must_use]
    pub fn per_thousand(&self) -> f64 {
        super::ratio(self.failing, self.schedules.max(1)) * 1_000.0
    }

    /// What steering by pairs brought, if there was any.
    fn steering(&self) -> Option<String> {
        let fresh = self.schedules.checked_sub(self.beside).filter(|_| self.beside > 0)?;
        let all: u64 = self.new_pairs_per_thousand.iter().sum();
        Some(format!(
            "\nSteered by pairs, {}: {} schedules beside others that had shown something new met \
             {} new pairs, {fresh} others {}.",
            self.name,
            self.beside,
            self.new_pairs_beside,
            all.saturating_sub(self.new_pairs_beside)
        ))
    }

    /// One line.
    #[must_use]
    pub fn line(&self) -> String {
        let first = match (median(&self.first_finding_ms), self.seeds) {
            (None, _) => "nothing found".to_owned(),
            (Some(ms), 1) => format!("first after {ms} ms"),
            (Some(ms), seeds) => {
                let found = self.first_finding_ms.len();
                format!("found by {found} of {seeds} seeds, median {ms} ms")
            }
        };
        format!(
            "{}: {} schedules, {} failing ({:.2} per thousand) · {first} · {} pairs · {:.0} \
             stops/s ({:.0} % let pass) and {:.1} schedules/s per core · {} run twice, {} differ · \
             {}",
            self.name,
            self.schedules,
            self.failing,
            self.per_thousand(),
            self.pairs,
            self.stops_per_s_and_core,
            100.0 * super::ratio(self.passed, self.stops.max(1)),
            self.schedules_per_s_and_core,
            self.run_twice,
            self.differing,
            self.engine,
        )
    }
}

impl ScheduleReport {
    /// The part of `SUMMARY.md`.
    #[must_use]
    pub fn markdown(&self) -> String {
        let expected = if self.as_expected { "as expected" } else { "**not as expected**" };
        let mut parts = vec![format!(
            "\n## {}: {}, {expected}\n\n{}\n\nExpected: {}. Seed {}. Between calls processes are \
             stopped {}.\n\n| setting | engine | schedules | failing | per thousand | at most (95 \
             %) | seeds, found | median ms to the first | median schedules |\n\
             |---|---|---|---|---|---|---|---|---|",
            self.name, self.verdict, self.claim, self.expect, self.seed, self.preemption
        )];
        for s in &self.settings {
            let middle = |numbers: &[u64]| {
                median(numbers).map_or_else(|| "-".to_owned(), |number| number.to_string())
            };
            parts.push(format!(
                "| {} | {} | {} | {} | {:.2} | {} | {}, {} | {} | {} |",
                s.name,
                s.engine,
                s.schedules,
                s.failing,
                s.per_thousand(),
                bound::text(s.failing_share_bound),
                s.seeds,
                s.first_finding_ms.len(),
                middle(&s.first_finding_ms),
                middle(&s.first_finding_schedules),
            ));
        }
        parts.push(
            "\n| setting | ended by kill, failing | steps | preemptions | traps set, met | faults \
             planned, landed | run twice, differing | pairs (new per thousand) | stops/s, core \
             (let pass) | schedules/s, core | running, judging ms |\n\
             |---|---|---|---|---|---|---|---|---|---|---|"
                .to_owned(),
        );
        for s in &self.settings {
            let new: Vec<String> =
                s.new_pairs_per_thousand.iter().take(8).map(u64::to_string).collect();
            parts.push(format!(
                "| {} | {}, {} | {} | {} | {}, {} | {}, {} | {}, {} | {} ({}) | {:.0} ({:.0} \
                 %) | {:.1} | {}, {} |",
                s.name,
                s.killed_at_end,
                s.failing_killed,
                s.steps,
                s.preemptions,
                s.traps_set,
                s.traps_met,
                s.faults,
                s.faults_landed,
                s.run_twice,
                s.differing,
                s.pairs,
                new.join(", "),
                s.stops_per_s_and_core,
                100.0 * super::ratio(s.passed, s.stops.max(1)),
                s.schedules_per_s_and_core,
                s.running_ms,
                s.judging_ms,
            ));
        }
        parts.extend(self.settings.iter().filter_map(ScheduleSetting::steering));
        if !self.findings.is_empty() {
            let kinds: Vec<String> =
                self.findings_by_kind.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
            parts.push(format!("\nFindings: {}. The first ones:\n", kinds.join(", ")));
            let told = self.findings.iter().take(10);
            parts.extend(told.map(|finding| format!("- `{}`: {}", finding.kind, finding.detail)));
        }
        parts.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_none_is_none_and_of_two_their_mean() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[9, 1, 5]), Some(5));
        assert_eq!(median(&[4, 2]), Some(3));
    }
}
