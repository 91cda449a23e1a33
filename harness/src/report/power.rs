//! What a power cut could leave of recorded runs, and what it could cost.

use super::cost::round;
use super::{bound, ratio};
use crate::oracle::power::PowerTally;
use crate::scenario::Expect;
use crate::verdict::{Finding, Verdict};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What an enumeration does not show, for every report of one.
pub const NOT_SHOWN: [&str; 5] = [
    "The images are those of a model of disk and file system, named in the report. A disk that is \
     worse than the model (one that lies about a sync, loses a sector that was not being written, \
     or decays) can lose what is not lost here.",
    "One recorded run: its interleaving is one of many. Images beyond the prefixes and the small \
     epochs are samples, so a zero has the printed bound and no better.",
    "A recording sees system calls. Writes through a shared mapping would be missed; a run that \
     maps the database for writing is refused.",
    "The directory that holds the database, and all above it, are taken to be there.",
    "Recovery is that of the SQLite linked into this command; another release may recover \
     otherwise.",
];

/// One scenario, or one recording that was enumerated again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PowerReport {
    /// Its name: `power/full`, or the recording's subject.
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
    /// The first findings.
    pub findings: Vec<Finding>,
    /// All findings, by kind.
    pub findings_by_kind: BTreeMap<String, u64>,
    /// The SQLite that the recorded processes had loaded, where they said so.
    #[serde(default)]
    pub sqlite_versions: Vec<u32>,
    /// Each setting under each profile.
    pub settings: Vec<PowerSetting>,
    /// Wall time, recording included, ms.
    pub elapsed_ms: u64,
    /// Threads.
    pub jobs: usize,
}

/// One recording under one profile.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PowerSetting {
    /// `full+100`, or `recording`.
    pub name: String,
    /// The crash model.
    pub profile: String,
    /// Processes that were recorded.
    pub processes: u64,
    /// Operations that were recorded, acknowledgements included.
    pub operations: u64,
    /// Commits, as an undisturbed reader sees them.
    pub commits: u64,
    /// Acknowledgements.
    pub acked: u64,
    /// Of those, with the promise to survive a power cut.
    pub power_acked: u64,
    /// Syncs of files and of the directory, a commit.
    pub fsyncs_per_commit: f64,
    /// Bytes written, a commit.
    pub bytes_per_commit: f64,
    /// Different images, each recovered.
    pub states: u64,
    /// Cuts judged: an image that several cuts can leave is judged for each.
    pub cuts_judged: u64,
    /// Different contents that recovery gave, each checked.
    pub contents: u64,
    /// Images recovered again after their recovery was cut off.
    pub interrupted_recoveries: u64,
    /// Images recovered from real files too, beside an absent, zeroed or stale `-shm`.
    pub file_recoveries: u64,
    /// Contents of the undisturbed run that were compared row by row with the model.
    pub model_checks: u64,
    /// Cuts whose image was damaged.
    pub corrupt: u64,
    /// Cuts whose image was sound and no prefix of the commits.
    pub not_a_prefix: u64,
    /// Cuts that lost a commit whose acknowledgement promised to survive a power cut.
    pub power_acks_lost: u64,
    /// Cuts that lost a commit that was acknowledged at all.
    pub acks_lost: u64,
    /// 95 % upper bound of the share of images that are damaged or no prefix.
    pub corrupt_share_upper_95: f64,
    /// 95 % upper bound of the share of cuts that lose a commit that was promised to survive.
    pub power_acks_lost_share_upper_95: f64,
    /// Acknowledged commits lost where all that was unsynced is, over all cuts.
    pub loss_commits: Window,
    /// The same, from the first lost acknowledgement to the cut: ms of the recorded run, which is
    /// traced and so slower than the program alone.
    pub loss_recorded_ms: Window,
    /// The same, bytes written.
    pub loss_bytes: Window,
    /// Wall time of the enumeration, ms.
    pub elapsed_ms: u64,
    /// Different images a second and thread: put together, recovered, compared and judged.
    pub states_per_s_and_core: f64,
    /// Time of all threads by what they did, ms.
    pub spent_ms: PowerSpentMs,
    /// Of a run on a real file system alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub real: Option<Real>,
}

/// A run on a real file system, whose disk was cut.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Real {
    /// Writes that reached the disk.
    pub block_writes: u64,
    /// Flushes that did.
    pub flushes: u64,
    /// Cuts: each disk was mounted.
    pub cuts: u64,
    /// States of the database's files that were neither all that was written nor all that was
    /// synced.
    pub between: u64,
    /// Cuts after which the file system could not be mounted.
    pub unmountable: u64,
    /// Cuts whose files the model cannot leave, by its name.
    pub impossible: BTreeMap<String, u64>,
}

impl Real {
    fn describe(&self) -> String {
        let impossible: Vec<String> =
            self.impossible.iter().map(|(model, many)| format!("{many} in {model}")).collect();
        let impossible =
            if impossible.is_empty() { "none".to_owned() } else { impossible.join(", ") };
        format!(
            "{} writes and {} flushes on the disk, {} cuts mounted, {} states between all and \
             nothing, {} not to be mounted; impossible in the models: {impossible}",
            self.block_writes, self.flushes, self.cuts, self.between, self.unmountable
        )
    }
}

/// How much is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Of all cuts.
    pub mean: f64,
    /// Of 100 cuts, one costs more.
    pub p99: f64,
    /// The worst.
    pub max: f64,
}

/// Where the threads' time went, ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PowerSpentMs {
    /// Following the recording and choosing.
    pub choosing: f64,
    /// Putting images together.
    pub composing: f64,
    /// Digests of images, and whether they are known.
    pub digests: f64,
    /// SQLite's recovery.
    pub recovery: f64,
    /// Digests of what it gave.
    pub contents: f64,
    /// Checks of new contents.
    pub checks: f64,
    /// Second recoveries.
    pub again: f64,
}

impl Window {
    /// Of these, in some unit of which `unit` make one.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "figures for a reader, far below 2^52")]
    pub fn of(values: impl IntoIterator<Item = u64>, unit: f64) -> Self {
        let mut values: Vec<u64> = values.into_iter().collect();
        values.sort_unstable();
        let Some(max) = values.last() else { return Self::default() };
        let sum: u64 = values.iter().sum();
        let p99 = values[(values.len() * 99).div_ceil(100).max(1) - 1];
        Self {
            mean: round(sum as f64 / values.len() as f64 / unit, 3),
            p99: round(p99 as f64 / unit, 3),
            max: round(*max as f64 / unit, 3),
        }
    }
}

impl PowerSetting {
    /// Takes in what the oracle counted.
    pub fn count(&mut self, tally: &PowerTally) {
        self.cuts_judged = tally.judged;
        self.corrupt = tally.corrupt;
        self.not_a_prefix = tally.not_a_prefix;
        self.power_acks_lost = tally.power_acks_lost;
        self.acks_lost = tally.acks_lost;
        let wrong = tally.corrupt + tally.not_a_prefix;
        self.corrupt_share_upper_95 = if wrong == 0 {
            bound::upper_95(0, self.states)
        } else {
            bound::upper_95(wrong, tally.judged)
        };
        self.power_acks_lost_share_upper_95 = if tally.power_acks_lost == 0 {
            bound::upper_95(0, self.states)
        } else {
            bound::upper_95(tally.power_acks_lost, tally.judged)
        };
        self.loss_commits = Window::of(tally.lost_commits.iter().map(|n| u64::from(*n)), 1.0);
        self.loss_recorded_ms = Window::of(tally.lost_us.iter().copied(), 1_000.0);
        self.loss_bytes = Window::of(tally.lost_bytes.iter().copied(), 1.0);
    }
}

const HEADER: [&str; 12] = [
    "setting",
    "profile",
    "commits",
    "acked",
    "promised",
    "images",
    "cuts judged",
    "corrupt",
    "no prefix",
    "promised, lost",
    "loss, commits: mean",
    "p99",
];

/// The settings side by side; `markdown` for a file, boxes for a terminal.
#[must_use]
pub fn table(report: &PowerReport, markdown: bool) -> String {
    let mut table = Table::new();
    table
        .load_style(if markdown { presets::ASCII_MARKDOWN } else { presets::UTF8_FULL_CONDENSED })
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(HEADER.iter().copied().chain(["max", "images/s, core"]));
    let zero = |count: u64, bound_95: f64| {
        if count == 0 { format!("0 ({})", bound::text(bound_95)) } else { count.to_string() }
    };
    for s in &report.settings {
        table.add_row([
            s.name.clone(),
            s.profile.clone(),
            s.commits.to_string(),
            s.acked.to_string(),
            s.power_acked.to_string(),
            s.states.to_string(),
            s.cuts_judged.to_string(),
            zero(s.corrupt, s.corrupt_share_upper_95),
            zero(s.not_a_prefix, s.corrupt_share_upper_95),
            zero(s.power_acks_lost, s.power_acks_lost_share_upper_95),
            format!("{:.1}", s.loss_commits.mean),
            format!("{:.0}", s.loss_commits.p99),
            format!("{:.0}", s.loss_commits.max),
            format!("{:.0}", s.states_per_s_and_core),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

/// What the table shows, in words.
#[must_use]
pub fn in_words(report: &PowerReport) -> String {
    let states: u64 = report.settings.iter().map(|setting| setting.states).sum();
    let again: u64 = report.settings.iter().map(|setting| setting.interrupted_recoveries).sum();
    let files: u64 = report.settings.iter().map(|setting| setting.file_recoveries).sum();
    let rows: u64 = report.settings.iter().map(|setting| setting.model_checks).sum();
    format!(
        "{states} different images, each recovered by SQLite {} and compared with the commits in \
         their order; {again} of them recovered again after their recovery was cut off, {files} \
         from real files too beside an absent, zeroed or stale -shm. {rows} contents of the \
         undisturbed runs were compared with the model row by row. *Promised*: acknowledged with \
         the promise to survive a power cut. *Loss*: acknowledged commits that are gone if all \
         that is unsynced is lost, over cuts after every operation. A bound in brackets is the \
         95 % upper bound of the share of images.",
        rusqlite::version()
    )
}

/// One line for one setting.
#[must_use]
pub fn line(s: &PowerSetting) -> String {
    if let Some(real) = &s.real {
        return format!(
            "{} {}: {} operations, {} commits · {} states, {} cuts judged · {} corrupt, {} no \
             prefix, {} promised and lost · {}",
            s.name,
            s.profile,
            s.operations,
            s.commits,
            s.states,
            s.cuts_judged,
            s.corrupt,
            s.not_a_prefix,
            s.power_acks_lost,
            real.describe()
        );
    }
    format!(
        "{} {}: {} operations, {} commits · {} images, {} cuts judged · {} corrupt, {} no prefix, \
         {} promised and lost · loss mean {:.1}, max {:.0} commits · {:.0} images/s and core",
        s.name,
        s.profile,
        s.operations,
        s.commits,
        s.states,
        s.cuts_judged,
        s.corrupt,
        s.not_a_prefix,
        s.power_acks_lost,
        s.loss_commits.mean,
        s.loss_commits.max,
        s.states_per_s_and_core
    )
}

/// The part of `SUMMARY.md`.
#[must_use]
pub fn markdown(report: &PowerReport) -> String {
    let expected = if report.as_expected { "as expected" } else { "**not as expected**" };
    let mut parts = vec![
        format!("\n## {}: {}, {expected}\n\n{}\n", report.name, report.verdict, report.claim),
        format!("Expected: {}.\n", report.expect.describe()),
        table(report, true),
        format!("\n{}", in_words(report)),
    ];
    for s in &report.settings {
        if let Some(real) = &s.real {
            parts.push(format!("\n{} {}: {}.", s.name, s.profile, real.describe()));
            continue;
        }
        let t = s.spent_ms;
        parts.push(format!(
            "\n{} {}: {:.3} fsyncs and {:.0} bytes a commit. Time of all threads, ms: choosing \
             {:.0}, composing {:.0}, digests {:.0}, recovery {:.0}, contents {:.0}, checks {:.0}, \
             again {:.0}.",
            s.name,
            s.profile,
            s.fsyncs_per_commit,
            s.bytes_per_commit,
            t.choosing,
            t.composing,
            t.digests,
            t.recovery,
            t.contents,
            t.checks,
            t.again
        ));
    }
    if !report.findings.is_empty() {
        let kinds: Vec<String> =
            report.findings_by_kind.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        parts.push(format!("\nFindings: {}. The first ones:\n", kinds.join(", ")));
        for finding in report.findings.iter().take(8) {
            parts.push(format!("- `{}`: {}", finding.kind, finding.detail));
        }
    }
    parts.join("\n")
}

/// Different images a second and thread.
#[must_use]
pub fn rate(states: u64, jobs: usize, elapsed: std::time::Duration) -> f64 {
    let lanes_s = elapsed.as_secs_f64().max(1e-9) * ratio(jobs as u64, 1);
    round(ratio(states, 1) / lanes_s, 1)
}
