//! What a sweep covered: points and blows by phase, and what was found where.

use crate::scenario::Expect;
use crate::verdict::{Finding, Verdict};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One sweep file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepReport {
    /// Its name: `sweep/commit`.
    pub name: String,
    /// What it is to show.
    pub claim: String,
    /// The verdict that shows it.
    pub expect: Expect,
    /// Whether it is a control.
    pub canary: bool,
    /// What it gave.
    pub verdict: Verdict,
    /// Whether that is what was expected.
    pub as_expected: bool,
    /// SQLite's versions, as the struck processes report the library that they loaded: 3054001.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sqlite_versions: Vec<u32>,
    /// The first findings.
    pub findings: Vec<Finding>,
    /// All findings, by kind.
    pub findings_by_kind: BTreeMap<String, u64>,
    /// Each setting.
    pub settings: Vec<SettingSweep>,
    /// Wall time, ms.
    pub elapsed_ms: u64,
    /// Lanes at once, one a core.
    pub jobs: usize,
}

/// One setting of a sweep.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SettingSweep {
    /// `full+100`.
    pub name: String,
    /// Stops of the undisturbed run at files of the database.
    pub points: u64,
    /// Blows planned.
    pub strikes: u64,
    /// Of those, landed, with a receipt that says so.
    pub landed: u64,
    /// Wall time of the strikes, recovery and judging included, ms.
    pub elapsed_ms: u64,
    /// Strikes a second and lane, recovery and judging included.
    pub strikes_per_s_and_core: f64,
    /// By phase.
    pub phases: BTreeMap<String, PhaseCoverage>,
}

/// What was done at the points of one phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseCoverage {
    /// Points of the undisturbed run.
    pub points: u64,
    /// Kills that landed before or after a call.
    pub kills: u64,
    /// Kills that landed inside a write.
    pub tears: u64,
    /// Calls that were made to fail.
    pub errors: u64,
    /// Blows that did not land.
    pub missed: u64,
    /// Findings.
    pub findings: u64,
}

/// The coverage table of one setting; `markdown` for a file, boxes for a terminal.
#[must_use]
pub fn table(setting: &SettingSweep, markdown: bool) -> String {
    let mut table = Table::new();
    table
        .load_style(if markdown { presets::ASCII_MARKDOWN } else { presets::UTF8_FULL_CONDENSED })
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(["phase", "points", "kills", "tears", "errors", "missed", "findings"]);
    let mut row = |name: &str, c: PhaseCoverage| {
        let numbers = [c.points, c.kills, c.tears, c.errors, c.missed, c.findings];
        table.add_row(std::iter::once(name.to_owned()).chain(numbers.map(|n| n.to_string())));
    };
    let mut all = PhaseCoverage::default();
    for (name, c) in &setting.phases {
        row(name, *c);
        all.points += c.points;
        all.kills += c.kills;
        all.tears += c.tears;
        all.errors += c.errors;
        all.missed += c.missed;
        all.findings += c.findings;
    }
    row("all", all);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

/// One line for one setting.
#[must_use]
pub fn line(setting: &SettingSweep) -> String {
    format!(
        "{}: {} points · {} strikes, {} landed · {:.0} strikes/s and core, recovery and judging \
         included",
        setting.name,
        setting.points,
        setting.strikes,
        setting.landed,
        setting.strikes_per_s_and_core
    )
}

/// The part of `SUMMARY.md`.
#[must_use]
pub fn markdown(sweep: &SweepReport) -> String {
    let expected = if sweep.as_expected { "as expected" } else { "**not as expected**" };
    let mut parts = vec![
        format!("\n## {}: {}, {expected}\n\n{}\n", sweep.name, sweep.verdict, sweep.claim),
        format!("Expected: {}.\n", sweep.expect.describe()),
    ];
    for setting in &sweep.settings {
        parts.push(format!("{}.\n\n{}\n", line(setting), table(setting, true)));
    }
    for finding in sweep.findings.iter().take(10) {
        parts.push(format!("- `{}`: {}", finding.kind, finding.detail));
    }
    parts.join("\n")
}
