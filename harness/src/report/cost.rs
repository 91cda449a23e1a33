//! What each setting costs: latencies, throughput, fsyncs, checkpoints, size of the WAL.

use super::power::Window;
use super::{Counts, bound};
use crate::history::Line;
use crate::scenario::Setting;
use hdrhistogram::Histogram;
use killpoint_worker::ledger::State;
use serde::{Deserialize, Serialize};

/// What was measured of one setting so far.
#[derive(Clone, Debug)]
pub struct Cost {
    /// In COMMIT, ns.
    commit_ns: Histogram<u64>,
    /// From sent to answered, ns.
    operation_ns: Histogram<u64>,
    commits: u64,
    window_us: u64,
    syncs: u64,
    written_bytes: u64,
    checkpoints: u64,
    checkpoint_ns: u64,
    checkpoint_ns_max: u64,
    wal_end_max_bytes: u64,
}

impl Default for Cost {
    fn default() -> Self {
        // From 100 ns to 5 minutes, three digits: what is longer is counted as the longest.
        let histogram = || {
            Histogram::new_with_bounds(100, 300_000_000_000, 3)
                .unwrap_or_else(|_| unreachable_bounds())
        };
        Self {
            commit_ns: histogram(),
            operation_ns: histogram(),
            commits: 0,
            window_us: 0,
            syncs: 0,
            written_bytes: 0,
            checkpoints: 0,
            checkpoint_ns: 0,
            checkpoint_ns_max: 0,
            wal_end_max_bytes: 0,
        }
    }
}

/// The bounds above are constants that the library accepts; a test holds that.
fn unreachable_bounds() -> Histogram<u64> {
    unreachable!("constant bounds of a histogram")
}

/// Quantiles of a latency, µs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// The median.
    pub p50: f64,
    /// Of 100, one is slower.
    pub p99: f64,
    /// Of 1,000, one is slower.
    pub p999: f64,
    /// The slowest.
    pub max: f64,
}

/// One row of the table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// `off`, `normal`, `full`, `extra`.
    pub synchronous: String,
    /// Pages; 0 with a checkpoint owner.
    pub wal_autocheckpoint: u32,
    /// Whether one process owned the checkpoints.
    pub checkpoint_owner: bool,
    /// Time in COMMIT, an automatic checkpoint included.
    pub commit_us: Quantiles,
    /// Time from the call to its answer, waiting for the lock included.
    pub operation_us: Quantiles,
    /// Of all processes together.
    pub commits_per_s: f64,
    /// xSync calls, those of checkpoints included.
    pub fsyncs_per_commit: f64,
    /// To WAL and database.
    pub bytes_per_commit: f64,
    /// Checkpoints that wrote a page.
    pub checkpoints: u64,
    /// The share of the time in which one was under way.
    pub checkpoint_time_share: f64,
    /// The WAL at its largest.
    pub wal_high_water_bytes: u64,
    /// Cycles, each ended by killing every process.
    pub cycles_killed: u64,
    /// Operations acknowledged.
    pub acked: u64,
    /// Of those, absent after recovery.
    pub lost: u64,
    /// 95 % upper bound of the share of acknowledged operations that a kill loses.
    pub lost_share_upper_95: f64,
    /// Cycles with damage.
    pub corrupt: u64,
    /// 95 % upper bound of the share of cycles that a kill damages.
    pub corrupt_share_upper_95: f64,
    /// What a power cut loses, in words.
    pub power_loss: String,
    /// `wal` or `delete`.
    #[serde(default)]
    pub journal_mode: String,
    /// `PRAGMA page_size`; 0 is SQLite's own.
    #[serde(default)]
    pub page_bytes: u32,
    /// Workers, where the row has others than the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<u32>,
    /// Events of one append, where the row has others than the workload: the transaction's size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events_per_append: Option<[u32; 2]>,
    /// How long checkpoints that wrote a page took: writers that wait for one wait so long.
    #[serde(default)]
    pub checkpoint_stall_ms: Stall,
    /// What power cuts leave of a recorded run with these settings.
    #[serde(flatten)]
    pub power: Option<PowerLoss>,
}

/// How long something took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stall {
    /// On average.
    pub mean: f64,
    /// At worst.
    pub max: f64,
}

/// What power cuts leave of a recorded run, under the profile `strict`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PowerLoss {
    /// Different images, each recovered and judged.
    pub states: u64,
    /// Cuts judged that left a damaged image.
    pub corrupt_states: u64,
    /// Cuts judged that left a sound image that is no prefix of the commits.
    pub not_a_prefix_states: u64,
    /// Cuts judged that lost a commit whose acknowledgement promised to survive.
    pub power_acks_lost: u64,
    /// 95 % upper bound of the share of images that are damaged or no prefix.
    pub corrupt_states_share_upper_95: f64,
    /// Acknowledged commits lost if all that is unsynced is, over cuts after each acknowledgement.
    pub loss_commits: Window,
    /// The time in which so many commits are made at the row's own rate, untraced; none if no
    /// commit was made in its window, so that there is no rate.
    pub loss_ms: Option<Window>,
    /// Bytes written for the lost commits.
    pub loss_bytes: Window,
    /// Nothing was synced in the whole recording: more than was recorded may be lost.
    pub loss_is_at_least: bool,
    /// Different images a second and thread.
    pub states_per_s: f64,
}

impl Cost {
    /// Takes in one cycle.
    pub fn add(&mut self, lines: &[Line]) {
        for line in lines {
            match line {
                Line::Timed(timing) => self.window_us += timing.open_us + timing.write_us,
                Line::Life(life) => {
                    let c = life.counters;
                    self.syncs += c.database_syncs + c.log_syncs;
                    self.written_bytes += c.database_bytes + c.log_bytes;
                    self.checkpoints += c.checkpoints;
                    self.checkpoint_ns += c.checkpoint_ns;
                    self.checkpoint_ns_max = self.checkpoint_ns_max.max(c.checkpoint_ns_max);
                    self.wal_end_max_bytes = self.wal_end_max_bytes.max(c.wal_end_max_bytes);
                    for op in life.ops.iter().filter(|op| op.state == State::Acked) {
                        self.commits += 1;
                        self.commit_ns.saturating_record(op.commit_ns);
                        self.operation_ns.saturating_record(op.total_ns);
                    }
                }
                Line::Header(_)
                | Line::Planned(_)
                | Line::Killed(_)
                | Line::Paused(_)
                | Line::Observed(_)
                | Line::End(_) => {}
            }
        }
    }

    /// The row of a setting.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "figures for a reader, far below 2^52")]
    pub fn config(&self, setting: Setting, counts: &Counts) -> Config {
        let per_commit = |amount: u64| amount as f64 / self.commits.max(1) as f64;
        let window_s = self.window_us.max(1) as f64 / 1e6;
        Config {
            synchronous: setting.synchronous.as_str().to_owned(),
            wal_autocheckpoint: setting.wal_autocheckpoint,
            checkpoint_owner: setting.checkpoint_owner,
            commit_us: quantiles(&self.commit_ns),
            operation_us: quantiles(&self.operation_ns),
            commits_per_s: round(self.commits as f64 / window_s, 1),
            fsyncs_per_commit: round(per_commit(self.syncs), 4),
            bytes_per_commit: round(per_commit(self.written_bytes), 1),
            checkpoints: self.checkpoints,
            checkpoint_time_share: round(self.checkpoint_ns as f64 / 1e9 / window_s, 4),
            wal_high_water_bytes: self.wal_end_max_bytes,
            cycles_killed: counts.cycles - counts.graceful_cycles,
            acked: counts.acked_ops,
            lost: counts.lost_acked_ops,
            lost_share_upper_95: bound::upper_95(counts.lost_acked_ops, counts.acked_ops),
            corrupt: counts.corrupt_cycles,
            corrupt_share_upper_95: bound::upper_95(counts.corrupt_cycles, counts.cycles),
            power_loss: "not measured".to_owned(),
            journal_mode: setting.journal_mode.as_str().to_owned(),
            page_bytes: setting.page_bytes,
            workers: setting.workers,
            events_per_append: setting.events_per_append,
            checkpoint_stall_ms: Stall {
                mean: round(self.checkpoint_ns as f64 / 1e6 / self.checkpoints.max(1) as f64, 3),
                max: round(self.checkpoint_ns_max as f64 / 1e6, 3),
            },
            power: None,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures for a reader, far below 2^52")]
fn quantiles(histogram: &Histogram<u64>) -> Quantiles {
    let us = |ns: u64| round(ns as f64 / 1e3, 1);
    Quantiles {
        p50: us(histogram.value_at_quantile(0.5)),
        p99: us(histogram.value_at_quantile(0.99)),
        p999: us(histogram.value_at_quantile(0.999)),
        max: us(histogram.max()),
    }
}

/// `value` to so many decimals, so that files hold figures and not noise.
#[must_use]
pub fn round(value: f64, decimals: i32) -> f64 {
    let scale = 10_f64.powi(decimals);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_the_histograms_are_accepted() {
        let mut cost = Cost::default();
        cost.commit_ns.saturating_record(u64::MAX);
        assert!(quantiles(&cost.commit_ns).max >= 299_000_000.0);
    }

    #[test]
    fn rounding_keeps_the_asked_decimals() {
        assert!((round(1.23456, 2) - 1.23).abs() < 1e-12);
    }
}
