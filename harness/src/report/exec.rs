//! What `exec` showed of a command that is not ours.

use crate::report::bound;
use crate::verdict::{Finding, Verdict};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One command under faults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExecReport {
    /// The command, its words parted by spaces.
    pub victim: String,
    /// How many copies of it ran at once.
    pub copies: u32,
    /// What it gave.
    pub verdict: Verdict,
    /// Whether every promise held.
    pub as_expected: bool,
    /// The findings.
    pub findings: Vec<Finding>,
    /// Runs of the command, with a fault or undisturbed.
    pub cycles: u64,
    /// Faults planned.
    pub faults: u64,
    /// Faults that landed, by the phase that they landed in.
    pub landed_by_phase: BTreeMap<String, u64>,
    /// Acknowledgements received.
    pub acked_ops: u64,
    /// Times that a recovered database was asked for all that had been acknowledged on it.
    pub recoveries: u64,
    /// 95 % upper bound of the share of recoveries that are damaged or lack something.
    pub bad_recovery_share: f64,
    /// What could not be judged, in words.
    pub not_judged: Vec<String>,
    /// Wall time, ms.
    pub elapsed_ms: u64,
}

impl ExecReport {
    /// Faults that landed.
    #[must_use]
    pub fn landed(&self) -> u64 {
        self.landed_by_phase.values().sum()
    }

    /// One line.
    #[must_use]
    pub fn line(&self) -> String {
        let phases: Vec<String> =
            self.landed_by_phase.iter().map(|(phase, n)| format!("{phase} {n}")).collect();
        format!(
            "{} of {} faults landed ({}) · {} acknowledged · {} recoveries judged",
            self.landed(),
            self.faults,
            phases.join(", "),
            self.acked_ops,
            self.recoveries
        )
    }

    /// The part of `SUMMARY.md`.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut parts = vec![format!(
            "\n## {}\n\n`{}`, {} at once.\n\n{}, over {} cycles in {} ms. 95 % upper bound of the \
             share of bad recoveries: {}.\n",
            self.verdict,
            self.victim,
            self.copies,
            self.line(),
            self.cycles,
            self.elapsed_ms,
            bound::text(self.bad_recovery_share)
        )];
        parts.extend(self.not_judged.iter().map(|text| format!("- Not judged: {text}.")));
        let told = self.findings.iter().take(10);
        parts.extend(told.map(|finding| format!("- `{}`: {}", finding.kind, finding.detail)));
        parts.join("\n")
    }
}
