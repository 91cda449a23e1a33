//! `killpoint shrink`: the smallest schedule with the same finding, and its explanation.
//!
//! Delta debugging (Zeller and Hildebrandt 2002) over the processes, the steps of their scripts,
//! and the decisions. A decision is kept by the step of the script that it falls in, so that it
//! stays what it was when another step is left out. Where less work no longer fails under the old
//! decisions, new ones are drawn for it: what counts is that the same promise is broken, with less.
//! What can be tried side by side is, on as many lanes as there are cores; of those that fail the
//! first is taken, so that the same bundle shrinks the same way as far as time allows.

use super::explain;
use super::lanes::Lanes;
use super::stage::Stage;
use crate::bundle::Bundle;
use crate::cli;
use crate::command::engines::Choice;
use crate::command::{CommandError, print, say};
use crate::exit::Exit;
use crate::plan::Stream;
use crate::plan::schedule::{Order, Preemption, SchedulePlan};
use crate::run::machine;
use crate::run::schedule::Ask;
use crate::scenario::schedule::{Policy, Schedules};
use crate::verdict::FindingKind;
use killpoint_worker::wire::Step;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long it may take unless told otherwise.
const BUDGET: Duration = Duration::from_mins(2);
/// Schedules that are drawn for less work before it is given up.
const DRAWN_MAX: usize = 600;
/// Steps of a script that is drawn to be small.
const SCRIPT_STEPS: [u32; 2] = [1, 7];
/// With so few decisions, and two processes, it is small.
const DECISIONS_FEW: usize = 3;
/// Fewer are not looked for.
const DECISIONS_MIN: usize = 2;

/// Carries out the command.
pub(crate) fn shrink(arguments: &cli::Shrink) -> Result<Exit, CommandError> {
    let bundle = Bundle::load(&arguments.bundle)?;
    let choice = Choice::of(&cli::EngineChoice { engine: None })?;
    let engines = choice.ready([bundle.scenario.schedule.engine])?;
    let stage = Stage::of_bundle(&bundle, &engines)?;
    if !arguments.any_build {
        stage.is_build_of(&bundle, &arguments.bundle)?;
    }
    // One loss may show as rows gone or as an index that no longer fits: any of them will do.
    let kinds: BTreeSet<FindingKind> =
        bundle.manifest.findings.iter().map(|finding| finding.kind).collect();
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
    let budget = arguments.budget.unwrap_or(BUDGET);
    let began = Instant::now();
    say(&format!("from {}", size(&bundle.plan)));
    let lanes = machine::cores();
    let (small, tries) = std::thread::scope(|scope| -> Result<_, CommandError> {
        let lanes = Lanes::start(scope, &stage, &kinds, dir.path(), lanes);
        let mut shrinker = Shrinker {
            lanes: &lanes,
            asked: &stage.asked,
            steps: bundle.plan.lives.iter().flat_map(|life| life.script.clone()).collect(),
            best: bundle.plan.clone(),
            until: began + budget,
            tries: 0,
        };
        if !shrinker.holds(bundle.plan.clone())? {
            return Ok((None, 1));
        }
        shrinker.run(began)?;
        Ok((Some(shrinker.best), shrinker.tries))
    })?;
    let Some(small) = small else {
        say(&format!("not reproduced: no {kind} when the bundle is replayed"));
        return Ok(Exit::Inconclusive);
    };
    let mut arena = stage.arena(&dir.path().join("told"), Some(0))?;
    let judged = stage.play(&mut arena, &small, Ask { story: true, each_call: true })?;
    say(&format!(
        "to   {} · {} schedules tried in {:.1} s",
        size(&small),
        tries,
        began.elapsed().as_secs_f64()
    ));
    print(&explain::table(&small, &judged))?;
    let out = arguments.out.clone().unwrap_or_else(|| small_name(&arguments.bundle));
    stage.bundle(0, &small, &judged, dir.path()).save(&out)?;
    say(&format!("bundle: {}", out.display()));
    if let Some(file) = &arguments.scenario {
        let shown = judged.findings.iter().map(|finding| finding.kind);
        let shown = shown.filter(|kind| kinds.contains(kind)).min().unwrap_or(kind);
        let text = explain::scenario(&stage.asked, &small, shown)
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

pub(super) fn with_decisions(plan: &SchedulePlan, decisions: Vec<Preemption>) -> SchedulePlan {
    SchedulePlan { order: Order::Decided(decisions), ..plan.clone() }
}

struct Shrinker<'a> {
    lanes: &'a Lanes,
    asked: &'a Schedules,
    /// The steps of all scripts of the bundle.
    steps: Vec<Step>,
    /// The smallest so far.
    best: SchedulePlan,
    until: Instant,
    tries: u64,
}

impl Shrinker<'_> {
    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Tries all of `plans`; the first that has the finding is the best then. Its place.
    fn first(&mut self, plans: Vec<SchedulePlan>) -> Result<Option<usize>, CommandError> {
        self.tries += plans.len() as u64;
        let found = self.lanes.first(plans)?;
        Ok(found.map(|(place, plan)| {
            self.best = plan;
            place
        }))
    }

    /// Whether `plan` has the finding; then it is the best.
    fn holds(&mut self, plan: SchedulePlan) -> Result<bool, CommandError> {
        Ok(self.first(vec![plan])?.is_some())
    }

    fn run(&mut self, began: Instant) -> Result<(), CommandError> {
        let told = |what: &str, plan: &SchedulePlan| {
            let after = began.elapsed().as_secs_f64();
            say(&format!("  {what} after {after:.1} s: {}", size(plan)));
        };
        if !self.best.faults.is_empty() {
            let faultless = SchedulePlan { faults: Vec::new(), ..self.best.clone() };
            self.holds(faultless)?;
        }
        self.less()?;
        told("by leaving out", &self.best);
        self.simpler()?;
        // Other decisions may do with less than those of the bundle; and with less to do it takes
        // fewer tries to find some.
        if self.drawn_processes()? | self.drawn_operations()? {
            self.less()?;
        }
        self.simpler()?;
        self.fewer_decisions()?;
        self.less()?;
        told("by new decisions", &self.best);
        // What is left may be the smallest of its kind and of no small kind.
        while !self.is_small() && !self.is_over() {
            self.other_work()?;
        }
        told("by other work", &self.best);
        self.simpler()?;
        self.less()
    }

    fn is_small(&self) -> bool {
        self.best.slots() <= 2 && decisions(&self.best).len() <= DECISIONS_FEW
    }

    /// Draws two short scripts, of the kinds of steps that the bundle has, until one pair fails; it
    /// takes the place of the best if there is less to decide in it.
    fn other_work(&mut self) -> Result<(), CommandError> {
        let before = self.best.clone();
        let mut stream = Stream::new(before.seed, &format!("work/{}", self.tries));
        for _ in 0..DRAWN_MAX / self.lanes.count() / 4 {
            if self.is_over() {
                return Ok(());
            }
            let some = (0..self.lanes.count() * 4).map(|_| self.drawn_work(&mut stream));
            let some = some.collect();
            if self.first(some)?.is_some() {
                self.less()?;
                self.fewer_decisions()?;
                if decided(&self.best) >= decided(&before) {
                    self.best = before;
                }
                return Ok(());
            }
        }
        Ok(())
    }

    /// Two processes with short scripts, and a policy that decides little.
    fn drawn_work(&self, stream: &mut Stream) -> SchedulePlan {
        let mut plan = self.best.clone();
        plan.lives.truncate(2);
        plan.faults.retain(|fault| fault.slot < 2);
        let last = u32::try_from(self.steps.len()).unwrap_or(1).max(1) - 1;
        for life in &mut plan.lives {
            let steps = stream.within(SCRIPT_STEPS);
            let drawn = |_| self.steps.get(stream.within([0, last]) as usize).copied();
            life.script = (0..steps).filter_map(drawn).collect();
        }
        let policy = Policy::Pct { changes: stream.within([0, 3]) };
        let order = Order::Drawn { policy, preempt: self.asked.schedule.preempt };
        measured(SchedulePlan { order, seed: stream.bits() >> 1, ..plan })
    }

    /// Leaves out all that can be without other decisions: processes, operations, decisions.
    fn less(&mut self) -> Result<(), CommandError> {
        loop {
            let before = weight(&self.best);
            self.decisions()?;
            self.processes()?;
            self.operations()?;
            self.decisions()?;
            if weight(&self.best) >= before || self.is_over() {
                return Ok(());
            }
        }
    }

    /// Leaves out pieces of what `list` makes of the best plan, ever smaller ones from `piece` on.
    ///
    /// `list` gives, for a size of pieces, all plans that are less by one such piece, in order.
    fn pieces(
        &mut self,
        mut piece: usize,
        list: impl Fn(&SchedulePlan, usize) -> Vec<SchedulePlan>,
    ) -> Result<(), CommandError> {
        while piece > 0 && !self.is_over() {
            let (mut at, mut found) = (0, false);
            let mut plans = list(&self.best, piece);
            while at < plans.len() && !self.is_over() {
                let end = (at + self.lanes.count()).min(plans.len());
                match self.first(plans[at..end].to_vec())? {
                    // What stood at its place is gone, and what came before was tried.
                    Some(place) => {
                        found = true;
                        at += place;
                        plans = list(&self.best, piece);
                    }
                    None => at = end,
                }
            }
            if !found || piece > 1 {
                piece = if piece == 1 { 0 } else { piece.div_ceil(2) };
            }
        }
        Ok(())
    }

    fn decisions(&mut self) -> Result<(), CommandError> {
        let piece = decisions(&self.best).len().div_ceil(2);
        self.pieces(piece, |best, piece| {
            let all = decisions(best);
            let without = |at: usize| {
                let mut kept = all.to_vec();
                kept.drain(at..(at + piece).min(all.len()));
                with_decisions(best, kept)
            };
            (0..all.len()).step_by(piece).map(without).collect()
        })
    }

    fn operations(&mut self) -> Result<(), CommandError> {
        let longest = self.best.lives.iter().map(|life| life.script.len()).max().unwrap_or(0);
        self.pieces(longest.div_ceil(2), |best, piece| {
            let mut plans = Vec::new();
            for (slot, life) in best.lives.iter().enumerate() {
                // From the end: what comes first is needed more often.
                let mut end = life.script.len();
                while end > 0 {
                    let from = end.saturating_sub(piece);
                    plans.push(without_operations(best, slot, from..end));
                    end = from;
                }
            }
            plans
        })
    }

    /// Fewer processes, down to two.
    fn processes(&mut self) -> Result<(), CommandError> {
        while self.best.lives.len() > 2 && !self.is_over() {
            let best = &self.best;
            let each = 0..best.lives.len();
            let plans = each.flat_map(|slot| {
                [false, true].map(|redirected| without_process(best, slot, redirected))
            });
            if self.first(plans.collect())?.is_none() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Draws decisions for `less` until one set of them fails.
    fn draw(&mut self, less: &SchedulePlan, most_tries: usize) -> Result<bool, CommandError> {
        let mut stream = Stream::new(self.best.seed, &format!("shrink/{}", self.tries));
        let steps: usize = less.lives.iter().map(|life| life.script.len()).sum();
        let most = u32::try_from(steps / 3).unwrap_or(2).clamp(2, 12);
        let mut drawn = 0;
        while drawn < most_tries && !self.is_over() {
            let some = (0..self.lanes.count() * 4).map(|_| {
                let policy = Policy::Pct { changes: stream.within([0, most]) };
                let order = Order::Drawn { policy, preempt: self.asked.schedule.preempt };
                measured(SchedulePlan { order, seed: stream.bits() >> 1, ..less.clone() })
            });
            let some: Vec<_> = some.collect();
            drawn += some.len();
            if self.first(some)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn drawn_processes(&mut self) -> Result<bool, CommandError> {
        let mut any = false;
        let mut slot = 0;
        while slot < self.best.lives.len() && self.best.lives.len() > 2 {
            // As much work as there was, by one process fewer: it is left out later.
            let less = handed_over(&self.best, slot);
            if self.draw(&less, DRAWN_MAX)? {
                (any, slot) = (true, 0);
                self.decisions()?;
            } else {
                slot += 1;
            }
        }
        Ok(any)
    }

    /// Half of the operations, by new decisions.
    fn drawn_operations(&mut self) -> Result<bool, CommandError> {
        let mut any = false;
        for slot in 0..self.best.lives.len() {
            let steps = self.best.lives[slot].script.len();
            if decisions(&self.best).len() <= DECISIONS_MIN + 1 || steps < 2 {
                continue;
            }
            let less = without_operations(&self.best, slot, steps / 2..steps);
            any |= self.draw(&less, DRAWN_MAX / 4)?;
        }
        Ok(any)
    }

    /// Simpler operations: one kind of checkpoint, one small event, seeds that can be read.
    fn simpler(&mut self) -> Result<(), CommandError> {
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
        let mut small = self.best.clone();
        for life in &mut small.lives {
            life.shape.events_per_append = [1, 1];
            life.shape.payload_bytes = [life.shape.payload_bytes[0]; 2];
        }
        let mut seeded = self.best.clone();
        for (seed, life) in (1..).zip(&mut seeded.lives) {
            life.seed = seed;
        }
        for simple in [plain, small, seeded] {
            if simple != self.best {
                self.holds(simple)?;
            }
        }
        Ok(())
    }

    /// Other decisions for the same work, if they are fewer.
    fn fewer_decisions(&mut self) -> Result<(), CommandError> {
        while decisions(&self.best).len() > DECISIONS_MIN && !self.is_over() {
            let before = self.best.clone();
            if !self.draw(&before, DRAWN_MAX)? {
                return Ok(());
            }
            self.decisions()?;
            if decisions(&self.best).len() >= decisions(&before).len() {
                self.best = before;
            }
        }
        Ok(())
    }
}

/// With the length of what its processes do now.
fn measured(plan: SchedulePlan) -> SchedulePlan {
    SchedulePlan { length: plan.expected_length(), ..plan }
}

/// What counts most: processes, decisions, and only then what the processes do.
fn decided(plan: &SchedulePlan) -> (usize, usize, usize) {
    let (processes, steps, decisions) = weight(plan);
    (processes, decisions, steps)
}

/// What there is to be made less.
fn weight(plan: &SchedulePlan) -> (usize, usize, usize) {
    let steps = plan.lives.iter().map(|life| life.script.len()).sum();
    (plan.lives.len(), steps, decisions(plan).len())
}

/// The same without some steps of one script; decisions that fell in them are left out, and those
/// behind them stay with their steps.
fn without_operations(
    plan: &SchedulePlan,
    slot: usize,
    gone: std::ops::Range<usize>,
) -> SchedulePlan {
    let mut less = plan.clone();
    let script = &mut less.lives[slot].script;
    let gone = gone.start.min(script.len())..gone.end.min(script.len());
    let first = u32::try_from(gone.start).unwrap_or(u32::MAX) + 1;
    let count = u32::try_from(gone.len()).unwrap_or(u32::MAX);
    script.drain(gone);
    let kept = decisions(plan).iter().filter_map(|decision| {
        if decision.slot != slot || decision.op < first {
            return Some(*decision);
        }
        let op = decision.op.checked_sub(count).filter(|op| *op >= first)?;
        Some(Preemption { op, ..*decision })
    });
    let kept = kept.collect();
    with_decisions(&less, kept)
}

/// The same without one process; decisions about it are left out, and those for it too unless they
/// are `redirected` to the next one.
fn without_process(plan: &SchedulePlan, slot: usize, redirected: bool) -> SchedulePlan {
    let mut less = plan.clone();
    less.lives.remove(slot);
    let count = less.lives.len();
    let moved = |of: usize| if of > slot { of - 1 } else { of };
    let kept = decisions(plan).iter().filter(|decision| decision.slot != slot);
    let kept = kept.filter_map(|decision| {
        let from = moved(decision.slot);
        let to = match decision.to == slot {
            false => moved(decision.to),
            true if redirected => (from + 1) % count,
            true => return None,
        };
        (to != from).then_some(Preemption { slot: from, to, ..*decision })
    });
    let kept = kept.collect();
    less.faults.retain(|fault| fault.slot != slot);
    for fault in &mut less.faults {
        fault.slot = moved(fault.slot);
    }
    with_decisions(&less, kept)
}

/// The same work by one process fewer: what it did the next one does, before its own.
fn handed_over(plan: &SchedulePlan, slot: usize) -> SchedulePlan {
    let mut script = plan.lives[slot].script.clone();
    let mut less = without_process(plan, slot, true);
    let next = slot % less.lives.len();
    script.append(&mut less.lives[next].script);
    less.lives[next].script = script;
    less
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> SchedulePlan {
        let asked = crate::scenario::schedule::parse(
            "test",
            "format = 1\nclaim = 'x'\nexpect = 'pass'\n[schedule]\ncount = 1\n\
             policy.pct.changes = 1\n[work]\ntarget = 'baseline'\nprocesses = 3\nsteps = 6\n\
             mix = { events = 1 }\n[[setting]]\nsynchronous = 'normal'\nwal-autocheckpoint = 4\n",
        );
        let plan = crate::plan::schedule::schedule(&asked.unwrap(), 1, 0, 0);
        let at = |slot, op, to| Preemption { slot, op, step: 9, to, trap: None };
        with_decisions(&plan, vec![at(0, 1, 1), at(0, 3, 2), at(0, 6, 1), at(1, 3, 0)])
    }

    #[track_caller]
    fn check(plan: &SchedulePlan, expected: &[(usize, u32, usize)]) {
        let kept: Vec<_> = decisions(plan).iter().map(|d| (d.slot, d.op, d.to)).collect();
        assert_eq!(kept, expected);
    }

    #[test]
    fn decisions_stay_with_their_steps_when_others_are_left_out() {
        let less = without_operations(&plan(), 0, 1..3);
        assert_eq!(less.lives[0].script.len(), 4);
        check(&less, &[(0, 1, 1), (0, 4, 1), (1, 3, 0)]);
    }

    #[test]
    fn decisions_for_a_process_that_is_gone_are_left_out_or_go_to_the_next() {
        check(&without_process(&plan(), 1, false), &[(0, 3, 1)]);
        check(&without_process(&plan(), 1, true), &[(0, 1, 1), (0, 3, 1), (0, 6, 1)]);
    }
}
