//! What a person sees while a run is under way, and how they end it.

use super::CommandError;
use super::execute::Watch;
use crate::history::Line;
use crate::oracle::CycleJudgement;
use crate::plan::CyclePlan;
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A bar on a terminal; nothing elsewhere.
pub(super) struct Progress {
    bar: ProgressBar,
    kills: AtomicU64,
    acked: AtomicU64,
    lost: AtomicU64,
}

impl Progress {
    /// For a run of so many cycles.
    pub(super) fn new(name: &str, cycles: u64) -> Self {
        // Drawn on stderr, and only if that is a terminal.
        let bar = ProgressBar::new(cycles);
        let style = "{prefix} {bar:30} {pos}/{len} cycles {msg} {elapsed}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        Self { bar, kills: AtomicU64::new(0), acked: AtomicU64::new(0), lost: AtomicU64::new(0) }
    }
}

impl Progress {
    /// One more is done, of what has nothing to say.
    pub(super) fn step(&self) {
        self.bar.inc(1);
    }
}

impl Watch for Progress {
    fn cycle(&self, _: &CyclePlan, _: &[Line], judgement: &CycleJudgement) {
        let tally = &judgement.tally;
        let add = |sum: &AtomicU64, more: u64| sum.fetch_add(more, Ordering::Relaxed) + more;
        let kills = add(&self.kills, tally.process_kills);
        let acked = add(&self.acked, tally.acked_ops);
        let lost = add(&self.lost, tally.lost_acked_ops);
        self.bar.set_message(format!("{kills} kills, {acked} acked, {lost} lost"));
        self.bar.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A flag that Ctrl-C and SIGTERM set. A second one of either ends the process as if there were no
/// handler; its children die with it.
pub(super) fn interruptible() -> Result<Arc<AtomicBool>, CommandError> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&flag))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&flag)))
            .map_err(CommandError::Signals)?;
    }
    Ok(flag)
}
