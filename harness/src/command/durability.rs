//! The durability of `tune`'s rows: each setting is recorded once, at any speed, and power cuts are
//! judged on the recording. Whether the place under test can tell anything of latency is asked here
//! too.

use super::power::judge_recording;
use crate::report::bound;
use crate::report::cost::{Config, PowerLoss, round};
use crate::report::power::{PowerSetting, Window};
use crate::run::RunError;
use crate::run::engine::Engines;
use crate::run::power::{Options, record_script};
use crate::scenario::power::{Profile, Script};
use crate::scenario::sweep::Start;
use crate::scenario::{Scenario, Setting};
use killpoint_worker::wire::Step;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// Commits of one recording, about.
const COMMITS: u32 = 400;
/// Images of one recording beyond its prefixes.
const STATES: u64 = 400;
/// Processes that are recorded at most.
const WRITERS_MAX: u32 = 8;
/// Rounds between the checkpoints of a row with a checkpoint owner.
const ROUNDS_OF_OWNER: usize = 6;
/// A sync that is quicker than this has not waited for any disk.
const SYNC_LEAST: Duration = Duration::from_micros(100);
/// Syncs that are timed.
const SYNCS: usize = 24;

const ROUND: [Step; 8] = [
    Step::Create,
    Step::Claim,
    Step::Events,
    Step::Heartbeat,
    Step::Events,
    Step::Heartbeat,
    Step::Events,
    Step::Complete,
];

/// What is recorded of a setting: the workload's operations, by as many writers.
fn script(scenario: &Scenario, setting: Setting) -> Script {
    let w = scenario.writers;
    let writers = w.dispatcher + w.reviewer + setting.workers.unwrap_or(w.worker);
    let writers = writers.clamp(1, WRITERS_MAX);
    let middle = |[least, most]: [u32; 2]| least.midpoint(most).max(1);
    let mut steps = ROUND.to_vec();
    let rounds = (COMMITS / 8 / writers).max(2);
    let mut repeat = rounds;
    if setting.checkpoint_owner {
        steps = ROUND.repeat(ROUNDS_OF_OWNER);
        steps.push(Step::Checkpoint);
        repeat = (rounds / 6).max(1);
    }
    Script {
        target: setting.target.unwrap_or(scenario.workload.target),
        engine: setting.engine.unwrap_or(scenario.engine),
        steps,
        repeat,
        writers,
        prepare: 1,
        ballast_pages: 0,
        start: Start::Closed,
        abandon: false,
        events: middle(setting.events_per_append.unwrap_or(scenario.workload.events_per_append)),
        payload_bytes: middle(scenario.workload.payload_bytes),
        durability: BTreeMap::new(),
    }
}

/// What power cuts leave of `setting`.
pub(super) fn measure(
    scenario: &Scenario,
    setting: Setting,
    dir: &Path,
    engines: &Engines,
    (seed, jobs): (u64, usize),
    interrupted: &AtomicBool,
) -> Result<PowerSetting, RunError> {
    let place = dir.join("victims");
    // The connection of a row with an owner does no checkpoints of its own: the steps do.
    let plain = Setting { checkpoint_owner: false, ..setting };
    let recording =
        record_script(&setting.name(), &script(scenario, setting), plain, &place, engines)?;
    std::fs::remove_dir_all(&place)
        .map_err(|source| RunError::Place { path: place.clone(), source })?;
    let options = Options {
        profile: Profile::Strict,
        states: STATES,
        seed,
        jobs,
        sparse: true,
        dir: None,
        interrupted,
    };
    Ok(judge_recording(&setting.name(), &recording, &options)?.setting)
}

/// Puts what was measured into the row.
pub(super) fn put(config: &mut Config, power: &PowerSetting) {
    let commits = power.loss_commits;
    let ms_each = (config.commits_per_s > 0.0).then(|| 1_000.0 / config.commits_per_s);
    let in_ms = |ms_each: f64| {
        let ms = |commits: f64| round(commits * ms_each, 3);
        Window { mean: ms(commits.mean), p99: ms(commits.p99), max: ms(commits.max) }
    };
    let at_least = power.acked > 0 && commits.max >= cast(power.acked);
    let loss = PowerLoss {
        states: power.states,
        corrupt_states: power.corrupt,
        not_a_prefix_states: power.not_a_prefix,
        power_acks_lost: power.power_acks_lost,
        corrupt_states_share_upper_95: power.corrupt_share_upper_95,
        loss_commits: commits,
        loss_ms: ms_each.map(in_ms),
        loss_bytes: power.loss_bytes,
        loss_is_at_least: at_least,
        states_per_s: power.states_per_s_and_core,
    };
    config.power_loss = in_words(&loss);
    config.power = Some(loss);
}

/// What a row promises under power cuts and does not keep. OFF promises nothing, nor does NORMAL
/// with a rollback journal, which may damage the database (SQLite documentation, *PRAGMA
/// synchronous*).
pub(super) fn broken(config: &Config) -> Option<String> {
    let loss = config.power.as_ref()?;
    let damaged = loss.corrupt_states + loss.not_a_prefix_states;
    let name = crate::report::tune::name(config);
    if loss.power_acks_lost > 0 {
        let cuts = loss.power_acks_lost;
        return Some(format!("{name}: {cuts} cuts lost a commit that was promised to survive"));
    }
    let level = config.synchronous.as_str();
    let promises = level != "off" && (level != "normal" || config.journal_mode != "delete");
    (damaged > 0 && promises)
        .then(|| format!("{name}: {damaged} cuts left damage or no prefix of the commits"))
}

#[expect(clippy::cast_precision_loss, reason = "counts of commits stay far below 2^52")]
fn cast(count: u64) -> f64 {
    count as f64
}

fn in_words(loss: &PowerLoss) -> String {
    let damaged = loss.corrupt_states + loss.not_a_prefix_states;
    if damaged > 0 {
        return format!("damaged: {damaged} cuts");
    }
    let bound = bound::text(loss.corrupt_states_share_upper_95);
    if loss.loss_commits.max == 0.0 {
        return format!("none ({bound})");
    }
    let more = if loss.loss_is_at_least { "≥ " } else { "" };
    let ms = loss.loss_ms.map_or_else(|| "–".to_owned(), |ms| format!("{more}{:.1}", ms.max));
    format!("{more}{:.0} commits, {ms} ms", loss.loss_commits.max)
}

/// What makes latencies measured in `dir` worth less, if anything does.
pub(super) fn doubts(dir: &Path, file_system: &str) -> Result<Vec<String>, RunError> {
    let mut doubts = Vec::new();
    if file_system.contains("tmpfs") || file_system.contains("ramfs") {
        doubts.push(format!(
            "--dir is on {file_system}: a sync costs nothing there, so latencies and commits/s say \
             nothing of a disk, and milliseconds of loss are too few"
        ));
        return Ok(doubts);
    }
    let path = dir.join("sync-probe");
    let place = |source| RunError::Place { path: path.clone(), source };
    let mut file = std::fs::File::create(&path).map_err(place)?;
    let mut times = Vec::new();
    for _ in 0..SYNCS {
        file.write_all(&[0x5a; 4_096]).map_err(place)?;
        let began = Instant::now();
        file.sync_data().map_err(place)?;
        times.push(began.elapsed());
    }
    drop(file);
    std::fs::remove_file(&path).map_err(place)?;
    times.sort_unstable();
    let median = times[times.len() / 2];
    if median < SYNC_LEAST {
        doubts.push(format!(
            "a sync of 4 KiB in --dir takes {:.0} µs: too fast to be true of a disk without a \
             battery. A disk or host that does not write when it is told to makes every level but \
             OFF look cheap, and none of them safe",
            median.as_secs_f64() * 1e6
        ));
    }
    Ok(doubts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_without_a_commit_has_no_rate_and_so_no_loss_in_milliseconds() {
        let lost = Window { mean: 3.0, p99: 7.0, max: 8.0 };
        let power = PowerSetting { acked: 100, loss_commits: lost, ..PowerSetting::default() };
        let mut config = Config::default();
        put(&mut config, &power);
        assert_eq!(config.power.unwrap().loss_ms, None);
        assert_eq!(config.power_loss, "8 commits, – ms");
        config.commits_per_s = 1_000.0;
        put(&mut config, &power);
        assert_eq!(config.power.unwrap().loss_ms, Some(lost));
        assert_eq!(config.power_loss, "8 commits, 8.0 ms");
    }

    #[test]
    fn memory_is_no_disk_and_is_told_to_be_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(doubts(dir.path(), "tmpfs").unwrap()[0].contains("--dir is on tmpfs"));
        // What a real one gives depends on the machine; that it leaves nothing does not.
        doubts(dir.path(), "ext4").unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
