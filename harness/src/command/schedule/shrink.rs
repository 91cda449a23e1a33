//! `killpoint shrink`: the smallest schedule with the same finding, and its explanation.
//!
//! Delta debugging (Zeller and Hildebrandt 2002) over the decisions of the bundle, and over what
//! its processes do. Where less work no longer fails under the old decisions, new ones are drawn
//! for it: what counts is that the same promise is broken, with less.

use super::explain;
use super::stage::{Judged, Stage};
use crate::bundle::Bundle;
use crate::cli;
use crate::command::engines::Choice;
use crate::command::{CommandError, print, say};
use crate::exit::Exit;
use crate::plan::Stream;
use crate::plan::schedule::{Order, Preemption, SchedulePlan};
use crate::run::RunError;
use crate::run::schedule::{Arena, Ask};
use crate::scenario::schedule::Policy;
use crate::verdict::FindingKind;
use killpoint_worker::wire::Step;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long it may take unless told otherwise.
const BUDGET: Duration = Duration::from_mins(2);
/// Schedules that are drawn for fewer processes, and for less work of the same ones, before it is
/// given up.
const DRAWN_MAX: u64 = 600;
const DRAWN_FOR_LESS_WORK: u64 = 120;

/// The share of the time that may go to fewer processes and operations.
const WORK_SHARE: f64 = 0.7;

/// Carries out the command.
pub(crate) fn shrink(arguments: &cli::Shrink) -> Result<Exit, CommandError> {
    let bundle = Bundle::load(&arguments.bundle)?;
    let choice = Choice::of(&cli::EngineChoice { engine: None })?;
    let engines = choice.ready([bundle.scenario.schedule.engine])?;
    let stage = Stage::of_bundle(&bundle, &engines)?;
    if !arguments.any_build {
        stage.is_build_of(&bundle, &arguments.bundle)?;
    }
    let Some(kind) = bundle.manifest.findings.first().map(|finding| finding.kind) else {
        return Err(CommandError::Usage("the bundle has no finding to shrink for".to_owned()));
    };
    if !matches!(bundle.plan.order, Order::Decided(_)) {
        let text = "a schedule of the policy `delay` has no decisions: it cannot be shrunk";
        return Err(CommandError::Usage(text.to_owned()));
    }
    let dir = tempfile::Builder::new()
        .prefix("killpoint-")
        .tempdir_in(arguments.place())
        .map_err(|source| CommandError::Place { what: "--dir", path: arguments.place(), source })?;
    let mut arena = stage.arena(dir.path(), Some(0))?;
    let budget = arguments.budget.unwrap_or(BUDGET);
    let mut shrinker = Shrinker {
        stage: &stage,
        kind,
        best: bundle.plan.clone(),
        until: Instant::now() + budget,
        work_until: Instant::now() + budget.mul_f64(WORK_SHARE),
        tries: 0,
    };
    let began = Instant::now();
    say(&format!("from {}", size(&bundle.plan)));
    if !shrinker.holds(&mut arena, &bundle.plan)? {
        say(&format!("not reproduced: no {kind} when the bundle is replayed"));
        return Ok(Exit::Inconclusive);
    }
    shrinker.run(&mut arena)?;
    let small = shrinker.best.clone();
    let judged = stage.play(&mut arena, &small, Ask { story: true, each_call: true })?;
    say(&format!(
        "to   {} · {} schedules tried in {:.1} s",
        size(&small),
        shrinker.tries,
        began.elapsed().as_secs_f64()
    ));
    print(&explain::table(&small, &judged))?;
    let out = arguments.out.clone().unwrap_or_else(|| small_name(&arguments.bundle));
    stage.bundle(0, &small, &judged, dir.path()).save(&out)?;
    say(&format!("bundle: {}", out.display()));
    if let Some(file) = &arguments.scenario {
        let text = explain::scenario(&stage.asked, &small, kind)
            .map_err(|error| CommandError::Usage(error.to_string()))?;
        std::fs::write(file, text)
            .map_err(|source| CommandError::Output { path: file.clone(), source })?;
        say(&format!("scenario: {}", file.display()));
    }
    Ok(Exit::AsExpected)
}

fn small_name(bundle: &Path) -> PathBuf {
    let stem = bundle.file_stem().unwrap_or_default().to_string_lossy();
    bundle.with_file_name(format!("{stem}-small.bundle"))
}

/// In words.
fn size(plan: &SchedulePlan) -> String {
    let steps: usize = plan.lives.iter().map(|life| life.script.len()).sum();
    format!("{} processes, {steps} operations, {} preemptions", plan.slots(), decisions(plan).len())
}

fn decisions(plan: &SchedulePlan) -> &[Preemption] {
    match &plan.order {
        Order::Decided(decisions) => decisions,
        Order::Drawn { .. } => &[],
    }
}

fn with_decisions(plan: &SchedulePlan, decisions: Vec<Preemption>) -> SchedulePlan {
    SchedulePlan { order: Order::Decided(decisions), ..plan.clone() }
}

struct Shrinker<'a> {
    stage: &'a Stage,
    kind: FindingKind,
    /// The smallest so far.
    best: SchedulePlan,
    until: Instant,
    /// When the work is small enough: what is left of the time goes to the decisions.
    work_until: Instant,
    tries: u64,
}

impl Shrinker<'_> {
    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Whether `plan` has the finding; then it is the best.
    fn holds(&mut self, arena: &mut Arena<'_>, plan: &SchedulePlan) -> Result<bool, RunError> {
        self.tries += 1;
        let Judged { played, findings } = self.stage.play(arena, plan, Ask::default())?;
        let same = findings.iter().any(|finding| finding.kind == self.kind);
        if same {
            // What was decided and never came to pass is left out.
            self.best = with_decisions(plan, played.decisions);
        }
        Ok(same)
    }

    fn run(&mut self, arena: &mut Arena<'_>) -> Result<(), RunError> {
        self.decisions(arena)?;
        if !self.best.faults.is_empty() {
            let faultless = SchedulePlan { faults: Vec::new(), ..self.best.clone() };
            self.holds(arena, &faultless)?;
        }
        self.simpler(arena)?;
        self.processes(arena)?;
        self.operations(arena)?;
        self.simpler(arena)?;
        self.decisions(arena)?;
        // Few operations leave room to look for fewer decisions.
        self.fewer_decisions(arena)
    }

    /// Leaves out decisions, in ever smaller pieces.
    fn decisions(&mut self, arena: &mut Arena<'_>) -> Result<(), RunError> {
        let mut piece = decisions(&self.best).len().div_ceil(2);
        while piece > 0 && !self.is_over() {
            let mut at = 0;
            let mut less = false;
            while at < decisions(&self.best).len() && !self.is_over() {
                let mut kept = decisions(&self.best).to_vec();
                let before = kept.len();
                kept.drain(at..(at + piece).min(before));
                let held = self.holds(arena, &with_decisions(&self.best.clone(), kept))?;
                if held && decisions(&self.best).len() < before {
                    less = true;
                } else {
                    at += piece;
                }
            }
            if !less || piece > 1 {
                piece = if piece == 1 { 0 } else { piece.div_ceil(2) };
            }
        }
        Ok(())
    }

    /// Draws decisions for `less` until one set of them fails.
    fn draw(
        &mut self,
        arena: &mut Arena<'_>,
        less: &SchedulePlan,
        most_tries: u64,
    ) -> Result<bool, RunError> {
        let mut stream = Stream::new(self.best.seed, &format!("shrink/{}", self.tries));
        let steps: usize = less.lives.iter().map(|life| life.script.len()).sum();
        for _ in 0..most_tries {
            if self.is_over() {
                return Ok(false);
            }
            let most = u32::try_from(steps / 3).unwrap_or(2).clamp(2, 12);
            let policy = Policy::Pct { changes: stream.within([1, most]) };
            let preempt = self.stage.asked.schedule.preempt;
            let order = Order::Drawn { policy, preempt };
            let plan = SchedulePlan { order, seed: stream.bits() >> 1, ..less.clone() };
            if self.holds(arena, &plan)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Fewer processes, down to two.
    fn processes(&mut self, arena: &mut Arena<'_>) -> Result<(), RunError> {
        let mut slot = 0;
        while slot < self.best.lives.len() && self.best.lives.len() > 2 && !self.is_over() {
            let less = without_process(&self.best, slot);
            if self.holds(arena, &less)? || self.draw(arena, &less, DRAWN_MAX)? {
                self.decisions(arena)?;
                slot = 0;
            } else {
                slot += 1;
            }
        }
        Ok(())
    }

    /// Fewer operations, in ever smaller pieces, from the end of each script.
    fn operations(&mut self, arena: &mut Arena<'_>) -> Result<(), RunError> {
        let longest = self.best.lives.iter().map(|life| life.script.len()).max().unwrap_or(0);
        let mut piece = longest.div_ceil(2);
        while piece > 0 && Instant::now() < self.work_until {
            for slot in 0..self.best.lives.len() {
                let mut end = self.best.lives[slot].script.len();
                while end > 0 && Instant::now() < self.work_until {
                    let from = end.saturating_sub(piece);
                    let mut less = self.best.clone();
                    let script = &mut less.lives[slot].script;
                    let last = end.min(script.len());
                    script.drain(from.min(last)..last);
                    if self.holds(arena, &less)? || self.draw(arena, &less, DRAWN_FOR_LESS_WORK)? {
                        self.decisions(arena)?;
                    }
                    end = from;
                }
            }
            piece /= 2;
        }
        Ok(())
    }

    /// Simpler operations: one kind of checkpoint, one small event, seeds that can be read.
    fn simpler(&mut self, arena: &mut Arena<'_>) -> Result<(), RunError> {
        let mut plain = self.best.clone();
        for life in &mut plain.lives {
            for step in &mut life.script {
                if matches!(
                    step,
                    Step::CheckpointFull | Step::CheckpointRestart | Step::CheckpointTruncate
                ) {
                    *step = Step::Checkpoint;
                }
            }
        }
        if plain != self.best {
            self.holds(arena, &plain)?;
        }
        let mut small = self.best.clone();
        for life in &mut small.lives {
            life.shape.events_per_append = [1, 1];
            life.shape.payload_bytes = [life.shape.payload_bytes[0]; 2];
        }
        if small != self.best {
            self.holds(arena, &small)?;
        }
        let mut seeded = self.best.clone();
        for (seed, life) in (1..).zip(&mut seeded.lives) {
            life.seed = seed;
        }
        if seeded != self.best {
            self.holds(arena, &seeded)?;
        }
        Ok(())
    }

    /// Other decisions for the same work, if they are fewer.
    fn fewer_decisions(&mut self, arena: &mut Arena<'_>) -> Result<(), RunError> {
        while decisions(&self.best).len() > 2 && !self.is_over() {
            let before = self.best.clone();
            if !self.draw(arena, &before, DRAWN_MAX)? {
                return Ok(());
            }
            self.decisions(arena)?;
            if decisions(&self.best).len() >= decisions(&before).len() {
                self.best = before;
            }
        }
        Ok(())
    }
}

/// The same without one process; decisions for and about it are left out.
fn without_process(plan: &SchedulePlan, slot: usize) -> SchedulePlan {
    let mut less = plan.clone();
    less.lives.remove(slot);
    let moved = |of: usize| if of > slot { of - 1 } else { of };
    let kept = decisions(plan).iter().filter(|d| d.slot != slot && d.to != slot);
    let kept = kept.map(|d| Preemption { slot: moved(d.slot), to: moved(d.to), ..*d }).collect();
    less.faults.retain(|fault| fault.slot != slot);
    for fault in &mut less.faults {
        fault.slot = moved(fault.slot);
    }
    with_decisions(&less, kept)
}
