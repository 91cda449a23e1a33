//! The scheduler: a driver that lets one thread of all run at a time, and writes down who and why.
//!
//! A *step* is a traced call that a thread stands before, a trap that it ran into, or its end. At
//! each the chooser says who goes on; what it says beyond the rule is kept as a [`Preemption`], so
//! that the same run can be had again without it.
//!
//! Not here: what the choices are drawn from, and what must be true afterwards.

#![expect(clippy::similar_names, reason = "a step and its stop are what this is about")]

use super::locks::{Meetings, WalLocks, lock_of};
use super::policy::{At, Chooser, Situation, StepKey, rule};
use super::seen::{Seen, What, digest, place};
use super::stuck::{self, Stuck, Waiting};
use crate::plan::schedule::{Breaks, Preemption, SchedulePlan, StepFault};
use crate::run::trace::{
    Ahead, CallKind, Choice, Decision, Driver, Event, Fault, KillWhen, Operation, Phase, ProcessId,
    Role, Scene, Standing, Stop, ThreadId, Trap, Whom,
};
use killpoint_worker::ledger::Ledger;
use std::time::Duration;

/// A running thread that does nothing for so long may wait for another in the kernel.
const LOOKS_BLOCKED: Duration = Duration::from_millis(30);
/// Steps without a write, an end or an acknowledgement by anybody that make a live-lock.
const STEPS_WITHOUT_PROGRESS: u32 = 20_000;

/// Where a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It runs.
    Running,
    /// It stands before a call.
    Held,
    /// It stands at none.
    Parked,
    /// It tried a lock in vain, when so many locks had been given up.
    Refused(u32),
    /// It waits in the kernel for something that nobody here knows of.
    InKernel,
    /// It is gone.
    Ended,
}

#[derive(Debug)]
struct Thread {
    id: ThreadId,
    process: ProcessId,
    /// Its steps of all, for faults.
    steps: u32,
    /// The last of them.
    step: StepKey,
    place: Place,
    /// What happens when it goes on.
    pending: Decision,
    /// The trap that is set, with its step.
    trapped: Option<(Trap, StepKey)>,
    /// What it does or waits for, in words, if it was refused a lock.
    waits: Option<Waiting>,
    phase: Phase,
    /// Not to be chosen before so many steps of all.
    paused_until: u32,
}

/// What a step was, for those who look at it later.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) slot: usize,
    /// The step that it is decided under: of a trap, the one that set it.
    pub(super) step: StepKey,
    pub(super) stop: Option<Stop>,
    pub(super) trap: Option<Trap>,
    /// mxFrame and nBackfill of the wal-index, as the process that stopped sees them.
    pub(super) wal_index: Option<(u32, u32)>,
}

/// Chooses at every step.
pub(super) struct Scheduler<'a> {
    plan: &'a SchedulePlan,
    /// Where our own workers say how far they are in their scripts.
    ledger: &'a Ledger,
    chooser: Chooser,
    threads: Vec<Thread>,
    current: Option<usize>,
    /// Who was chosen, and has not been let go yet.
    next: Option<usize>,
    /// Who ran last, and where it is, when somebody must be chosen without a stop.
    last: (usize, At),
    total: u32,
    progress_at: u32,
    given_up: u32,
    started: bool,
    locks: WalLocks,
    pub(super) meetings: Meetings,
    /// A digest of each step.
    pub(super) steps: Vec<u32>,
    /// The same steps, to be told.
    pub(super) seen: Vec<Seen>,
    pub(super) decisions: Vec<Preemption>,
    /// Switches from a thread that could have gone on.
    pub(super) preemptions: u32,
    pub(super) traps_set: u32,
    pub(super) traps_met: u32,
    pub(super) stuck: Option<Stuck>,
    /// Threads that had to be taken for blocked in the kernel: then nothing repeats for sure.
    pub(super) in_kernel: u32,
    faults: Vec<StepFault>,
    /// No call is let pass beforehand.
    pub(super) each_call: bool,
    /// All steps with their stops, if they are asked for.
    pub(super) story: Option<Vec<Told>>,
}

impl<'a> Scheduler<'a> {
    pub(super) fn new(plan: &'a SchedulePlan, ledger: &'a Ledger, story: bool) -> Self {
        Self {
            plan,
            ledger,
            chooser: Chooser::new(plan),
            threads: Vec::new(),
            current: None,
            next: None,
            last: (0, At::Start),
            total: 0,
            progress_at: 0,
            given_up: 0,
            started: false,
            locks: WalLocks::default(),
            meetings: Meetings::default(),
            steps: Vec::with_capacity(4_096),
            seen: Vec::with_capacity(4_096),
            decisions: Vec::new(),
            preemptions: 0,
            traps_set: 0,
            traps_met: 0,
            stuck: None,
            in_kernel: 0,
            faults: plan.faults.clone(),
            each_call: false,
            story: story.then(Vec::new),
        }
    }

    fn slot_of(&self, thread: ThreadId) -> Option<usize> {
        self.threads.iter().position(|known| known.id == thread && known.place != Place::Ended)
    }

    fn add(&mut self, id: ThreadId, process: ProcessId, place: Place) -> usize {
        self.threads.push(Thread {
            id,
            process,
            steps: 0,
            step: (0, 0),
            place,
            pending: Decision::Continue,
            trapped: None,
            waits: None,
            phase: Phase::Other,
            paused_until: 0,
        });
        self.threads.len() - 1
    }

    /// Slots that can run. Those that are paused can if nobody else does.
    fn runnable(&self) -> Vec<usize> {
        let mut can = Vec::with_capacity(self.threads.len());
        let mut paused = Vec::new();
        for (slot, thread) in self.threads.iter().enumerate() {
            let ready = match thread.place {
                Place::Running | Place::Held | Place::Parked => true,
                Place::Refused(at) => at < self.given_up,
                Place::InKernel | Place::Ended => false,
            };
            match ready {
                true if thread.paused_until > self.total => paused.push(slot),
                true => can.push(slot),
                false => {}
            }
        }
        if can.is_empty() { paused } else { can }
    }

    /// Who goes on after `slot`, which is at `at`; none if nobody can.
    fn choose_after(&mut self, slot: usize, at: At, trap: Option<Trap>) -> Option<usize> {
        let runnable = self.runnable();
        if runnable.is_empty() {
            return None;
        }
        // Where a trap was met the decision is kept under the step that set it.
        let step = match (at, self.threads.get(slot)) {
            (At::Start, _) | (_, None) => (0, 0),
            (At::Trap, Some(thread)) => thread.trapped.map_or(thread.step, |(_, step)| step),
            (_, Some(thread)) => thread.step,
        };
        let now = Situation { slot, step, total: self.total, at, runnable: &runnable };
        let to = self.chooser.next(&now);
        if to != rule(&now) || (trap.is_some() && to != slot) {
            let (op, step) = step;
            self.decisions.push(Preemption { slot, op, step, to, trap });
        }
        if to != slot && matches!(at, At::Call | At::Trap) {
            self.preemptions += 1;
        }
        Some(to)
    }

    /// Counts a step of `slot`, and keeps its digest.
    ///
    /// Of a call that passed, `script_step` is how far the process was then.
    fn step(&mut self, slot: usize, digest: u32, what: What, script_step: Option<u32>) {
        self.total += 1;
        self.seen.push(Seen { slot, what });
        // The first threads are those of the workers, in their order.
        let ours = slot < self.plan.lives.len();
        let now = || if ours { self.ledger.slot(slot).script_step() } else { 0 };
        let op = script_step.unwrap_or_else(now);
        let thread = &mut self.threads[slot];
        thread.steps += 1;
        thread.step = if thread.step.0 == op { (op, thread.step.1 + 1) } else { (op, 1) };
        let folded = (u32::try_from(slot).unwrap_or(u32::MAX)).wrapping_mul(0x9e37_79b1);
        self.steps.push((digest ^ folded).rotate_left(7).wrapping_mul(0x85eb_ca6b));
    }

    fn tell(
        &mut self,
        slot: usize,
        step: StepKey,
        stop: Option<&Stop>,
        trap: Option<Trap>,
        scene: Scene<'_>,
    ) {
        let process = self.threads[slot].process;
        if let Some(story) = &mut self.story {
            let wal_index = frames(process, scene);
            story.push(Told { slot, step, stop: stop.cloned(), trap, wal_index });
        }
    }

    /// The fault that falls at this stop, if one does. The decision for the call, and whether the
    /// thread is only paused.
    fn fault(&mut self, slot: usize, stop: &Stop) -> Option<Decision> {
        let step = self.threads[slot].steps;
        if !self.plan.may_fall(stop.phase) {
            return None;
        }
        let falls = |fault: &StepFault| {
            fault.slot == slot && fault.step <= step && is_possible(fault.breaks, stop)
        };
        let place = self.faults.iter().position(falls)?;
        match self.faults.remove(place).breaks {
            Breaks::Call(fault) => Some(Decision::Fault(fault)),
            Breaks::Tear(share) => {
                let Operation::Write { length, .. } = stop.operation else { return None };
                let bytes = (length * u64::from(share) / 256).clamp(1, length - 1);
                let when = KillWhen::Inside { bytes };
                Some(Decision::Fault(Fault::Kill { when, whom: Whom::Process }))
            }
            Breaks::Pause(steps) => {
                self.threads[slot].paused_until = self.total + steps;
                None
            }
        }
    }

    /// Steps of `slot` at which nothing but the chooser can have it stopped.
    fn undisturbed(&self, slot: usize) -> u32 {
        let others_stand = self.threads.iter().enumerate().all(|(other, thread)| {
            let stands = match thread.place {
                Place::Running => other == slot,
                Place::Held | Place::Parked | Place::Ended => true,
                // It may be able to go on after any step.
                Place::Refused(_) | Place::InKernel => false,
            };
            stands && thread.paused_until <= self.total
        });
        // Who looks at every step looks at memory as it was then.
        if !others_stand || self.each_call || self.story.is_some() {
            return 0;
        }
        let step = self.threads[slot].steps;
        let due = self.faults.iter().filter(|fault| fault.slot == slot).map(|fault| fault.step);
        let fault = due.min().map_or(u32::MAX, |due| due.saturating_sub(step + 1));
        let end = self.plan.stops_max.saturating_sub(self.total + 1);
        let stale = self.total - self.progress_at;
        fault.min(end).min(STEPS_WITHOUT_PROGRESS.saturating_sub(stale + 1))
    }

    /// What happens to the call of `stop` when its thread goes on.
    fn decision(&mut self, slot: usize, stop: &Stop) -> Decision {
        let mut excludes = false;
        if let Some(lock) = lock_of(&stop.operation) {
            if stop.file.is_some_and(|file| file.role == Role::Shm) {
                excludes = self.locks.follow(slot, lock);
            }
            if lock.kind == crate::run::trace::LockKind::Unlock {
                self.given_up += 1;
            }
            if lock.waits {
                self.threads[slot].waits = Some(Waiting::of(stop));
                return Decision::Try;
            }
        }
        if stop.phase == Phase::Sleep {
            return Decision::SkipSleep;
        }
        let step = self.threads[slot].step;
        let trap = self.chooser.trap(slot, step, excludes);
        self.threads[slot].trapped = trap.map(|trap| (trap, step));
        match trap {
            // Alone there is nobody to give way to.
            Some(trap) if self.runnable().len() > 1 => {
                self.traps_set += 1;
                Decision::Until(trap)
            }
            _ => Decision::Continue,
        }
    }

    fn note_progress(&mut self, stop: &Stop) {
        if matches!(
            stop.call.sys.kind(),
            CallKind::Write | CallKind::Sync | CallKind::Truncate | CallKind::Unlink
        ) {
            self.progress_at = self.total;
        }
    }

    fn is_livelocked(&self) -> bool {
        self.total >= self.plan.stops_max || self.total - self.progress_at >= STEPS_WITHOUT_PROGRESS
    }

    fn picture(&self, deadlock: bool) -> Stuck {
        let who = self.threads.iter().enumerate().filter(|(_, t)| t.place != Place::Ended);
        let who = who.map(|(slot, thread)| stuck::Thread {
            slot,
            process: thread.process,
            phase: thread.phase,
            waits: thread.waits.clone(),
        });
        stuck::picture(deadlock, self.total, &who.collect::<Vec<_>>())
    }

    /// The thread that ran is gone or blocked: whoever goes on is to be chosen.
    fn lost(&mut self, slot: usize, at: At) {
        self.last = (slot, at);
        self.current = None;
        self.next = None;
    }

    fn is_in_kernel(&self, slot: usize) -> bool {
        let thread = self.threads[slot].id;
        let stat = std::fs::read_to_string(format!("/proc/{thread}/stat")).unwrap_or_default();
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        // Not `D`: that is the kernel at work for it.
        state == Some('S')
    }
}

/// mxFrame and nBackfill (SQLite, WAL-mode File Format, section 2.1), if the wal-index is mapped.
fn frames(process: ProcessId, scene: Scene<'_>) -> Option<(u32, u32)> {
    const MX_FRAME: usize = 16;
    const BACKFILL: usize = 96;
    let mut head = [0; 100];
    scene.read_wal_index(process, &mut head).ok()?;
    let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    Some((word(MX_FRAME), word(BACKFILL)))
}

/// Whether this call can be broken so.
fn is_possible(breaks: Breaks, stop: &Stop) -> bool {
    match breaks {
        Breaks::Tear(_) => matches!(stop.operation, Operation::Write { length, .. } if length > 1),
        Breaks::Call(Fault::Fail(_)) => {
            stop.point.is_some()
                && matches!(
                    stop.call.sys.kind(),
                    CallKind::Write | CallKind::Sync | CallKind::Truncate | CallKind::Lock
                )
        }
        Breaks::Call(_) | Breaks::Pause(_) => true,
    }
}

impl Driver for Scheduler<'_> {
    fn at_stop(&mut self, stop: &Stop, scene: &Scene<'_>) -> Decision {
        let slot = match self.slot_of(stop.thread) {
            Some(slot) => slot,
            None => self.add(stop.thread, stop.process, Place::Running),
        };
        let what = What::Call(stop.call.sys, stop.phase, place(stop));
        self.step(slot, digest(stop), what, stop.script_step);
        self.tell(slot, self.threads[slot].step, Some(stop), None, *scene);
        self.meetings.note(&self.locks, slot, stop.phase);
        self.note_progress(stop);
        self.threads[slot].phase = stop.phase;
        if self.is_livelocked() {
            self.stuck = Some(self.picture(false));
            return Decision::EndRun;
        }
        if stop.operation.closes(-1) || matches!(stop.operation, Operation::Close { .. }) {
            // A close gives up the locks on the file.
            self.given_up += 1;
            if stop.file.is_some_and(|file| file.role == Role::Shm) {
                self.locks.drop_all(slot);
            }
        }
        let broken = self.fault(slot, stop);
        let decision = match broken {
            Some(decision) => decision,
            None => self.decision(slot, stop),
        };
        if self.current.is_some_and(|current| current != slot) {
            // It comes back from the kernel while another one runs.
            self.threads[slot].place = Place::Held;
            self.threads[slot].pending = decision;
            return Decision::Hold;
        }
        let at = if stop.phase == Phase::Sleep { At::Sleep } else { At::Call };
        self.threads[slot].place = Place::Held;
        let to = self.choose_after(slot, at, None).unwrap_or(slot);
        if to == slot {
            self.current = Some(slot);
            self.threads[slot].place = Place::Running;
            return decision;
        }
        self.threads[slot].pending = decision;
        self.current = None;
        self.next = Some(to);
        Decision::Hold
    }

    fn ahead(&self, thread: ThreadId) -> Ahead {
        let slot = self.slot_of(thread).filter(|slot| self.current == Some(*slot));
        let Some(slot) = slot else { return Ahead::default() };
        let undisturbed = self.undisturbed(slot);
        if undisturbed == 0 {
            return Ahead::default();
        }
        let (steps, exclusive) = self.chooser.ahead(slot, self.threads[slot].step, self.total);
        Ahead { stops: steps.min(undisturbed), exclusive }
    }

    fn at_result(&mut self, stop: &Stop, result: i64, _scene: &Scene<'_>) {
        let Some(slot) = self.slot_of(stop.thread) else { return };
        let refused = [libc::EAGAIN, libc::EACCES].iter().any(|code| result == -i64::from(*code));
        if refused && lock_of(&stop.operation).is_some_and(|lock| lock.waits) {
            // Whoever goes on is chosen once more for the same call: that is a step of its own.
            self.step(slot, 0x7265_6675, What::Refused, None);
            self.threads[slot].place = Place::Refused(self.given_up);
            self.threads[slot].pending = Decision::Continue;
            self.lost(slot, At::Blocked);
        } else {
            self.threads[slot].waits = None;
        }
    }

    fn at_trap(&mut self, thread: ThreadId, _process: ProcessId, scene: &Scene<'_>) -> Decision {
        let Some(slot) = self.slot_of(thread) else { return Decision::Continue };
        let Some((trap, key)) = self.threads[slot].trapped else { return Decision::Continue };
        self.traps_met += 1;
        self.threads[slot].place = Place::Parked;
        let to = self.choose_after(slot, At::Trap, Some(trap)).unwrap_or(slot);
        self.threads[slot].trapped = None;
        if to == slot {
            // Nobody is left to give way to, as whoever there was has ended since the trap was set.
            // It is no step then: nothing was decided that a run by the decisions would know of.
            self.threads[slot].place = Place::Running;
            return Decision::Continue;
        }
        self.tell(slot, key, None, Some(trap), *scene);
        self.step(slot, 0x7472_6170, What::Trap, None);
        self.threads[slot].pending = Decision::Continue;
        self.current = None;
        self.next = Some(to);
        Decision::Hold
    }

    fn at_event(&mut self, event: &Event, _scene: &Scene<'_>) {
        let Event::Exited { process, .. } = event else { return };
        self.progress_at = self.total;
        self.given_up += 1;
        for slot in 0..self.threads.len() {
            if self.threads[slot].process != *process || self.threads[slot].place == Place::Ended {
                continue;
            }
            if self.stuck.is_none() {
                self.step(slot, 0x656e_6464, What::End, None);
            }
            // Else all were killed at once, and who ends first is the kernel's choice.
            self.threads[slot].place = Place::Ended;
            self.locks.drop_all(slot);
            if self.current == Some(slot) || self.next == Some(slot) {
                self.lost(slot, At::End);
            }
        }
    }

    fn choose(&mut self, standing: Standing<'_>, scene: &Scene<'_>) -> Choice {
        for thread in standing.parked {
            if self.slot_of(*thread).is_none() {
                let process = scene.process_of(*thread).unwrap_or(ProcessId(thread.0));
                self.add(*thread, process, Place::Parked);
            }
        }
        if !self.started {
            if standing.running > 0 {
                return Choice::Wait;
            }
            self.started = true;
        }
        if let Some(current) = self.current {
            if standing.running == 0 {
                // A thread that is not its process's first ends without an event.
                self.step(current, 0x656e_6464, What::End, None);
                self.threads[current].place = Place::Ended;
                self.lost(current, At::End);
            } else if standing.quiet >= LOOKS_BLOCKED && self.is_in_kernel(current) {
                self.in_kernel += 1;
                self.step(current, 0x7761_6974, What::Waits, None);
                self.threads[current].place = Place::InKernel;
                self.lost(current, At::Blocked);
            } else {
                return Choice::WaitAtMost(LOOKS_BLOCKED);
            }
        }
        let (slot, at) = self.last;
        let to = match self.next.take() {
            None => self.choose_after(slot, at, None),
            chosen => chosen,
        };
        let Some(to) = to else {
            let waits = self.threads.iter().any(|thread| thread.place == Place::InKernel);
            if waits && standing.running > 0 {
                return Choice::Wait;
            }
            self.stuck = Some(self.picture(true));
            return Choice::Wait;
        };
        let thread = &mut self.threads[to];
        thread.place = Place::Running;
        let decision = std::mem::replace(&mut thread.pending, Decision::Continue);
        self.current = Some(to);
        self.last = (to, At::Call);
        Choice::Release(self.threads[to].id, decision)
    }
}
