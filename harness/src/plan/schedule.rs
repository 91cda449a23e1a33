//! One schedule: what each process does, who runs when, and how it ends.
//!
//! A fresh plan holds a policy, which draws from the plan's seed as the run goes on. A plan that
//! was run holds what the policy decided, as [`Preemption`]s: where it left the one rule that needs
//! no decision. That is what a bundle keeps, and what is shrunk.

use super::Stream;
use crate::run::trace::{ErrorCode, Fault, KillWhen, Phase, PhasePattern, Whom};
pub use crate::scenario::schedule::Preemption;
use crate::scenario::schedule::{Faults, Policy, Preempt, Schedules, Work, number as hexadecimal};
use killpoint_worker::wire::{Life, Role, Shape, Step};
use serde::{Deserialize, Serialize};

/// The session of the process at slot 0; the others follow.
pub const FIRST_SESSION: i64 = 201;
/// Steps that one operation of a worker takes, about: for drawing the steps of faults.
const STEPS_PER_OPERATION: u32 = 26;
/// Not chosen for so many steps.
const PAUSE_STEPS: [u32; 2] = [50, 400];

/// One schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SchedulePlan {
    /// Which of its run, from 0.
    pub number: u64,
    /// Which setting of the scenario, from 0.
    pub setting: usize,
    /// Decides what the processes are told of chance, and what the policy draws.
    pub seed: u64,
    /// Our own workers, by slot; none for a command.
    pub lives: Vec<Life>,
    /// Copies of a command; 0 for our own workers.
    pub copies: u32,
    /// Who runs when.
    pub order: Order,
    /// Whether all processes are killed at the end, or close.
    pub killed_at_end: bool,
    /// What is broken on the way.
    pub faults: Vec<StepFault>,
    /// Faults fall at calls of these phases alone; none: at any.
    pub faults_at: Vec<PhasePattern>,
    /// Stops after which it counts as a live-lock.
    pub stops_max: u32,
    /// Steps of all that it takes, about: where a policy draws its changes.
    pub length: u32,
    /// The schedule that showed something new and whose work this one has; none: work of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<u64>,
}

/// Who runs when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// As this policy draws.
    Drawn {
        /// The policy.
        policy: Policy,
        /// Where else than at calls it may stop a process.
        preempt: Preempt,
    },
    /// As was decided: in between, whoever runs goes on until it sleeps, waits or ends; then the
    /// next in the order of slots does.
    Decided(Vec<Preemption>),
}

/// Something broken at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct StepFault {
    /// Which process, by slot.
    pub slot: usize,
    /// The first of its own steps, from 1, that is looked at: the first that can have it has it.
    pub step: u32,
    /// What is done.
    pub breaks: Breaks,
}

/// What is done at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Breaks {
    /// The call is broken.
    Call(Fault),
    /// The process is killed inside a write, after this share of it, of 256.
    Tear(u8),
    /// The process is not chosen for so many steps of the others.
    Pause(u32),
}

/// The `number`-th schedule of a run.
#[must_use]
pub fn schedule(asked: &Schedules, seed: u64, setting: usize, number: u64) -> SchedulePlan {
    let stream = |purpose: &str| Stream::new(seed, &format!("{purpose}/{setting}/{number}"));
    let lives = match &asked.work {
        Some(work) => lives(asked, work, setting, &mut stream("work")),
        None => Vec::new(),
    };
    let copies = asked.command.as_ref().map_or(0, |program| program.copies);
    let slots = lives.len().max(copies as usize);
    let killed_at_end = stream("ending").within([1, 100]) <= asked.schedule.kill_endings_per_100;
    let steps = lives.iter().map(|life| life.script.len()).max().unwrap_or(20);
    let steps = u32::try_from(steps).unwrap_or(u32::MAX).saturating_mul(STEPS_PER_OPERATION);
    let mut plan = SchedulePlan {
        number,
        setting,
        seed: stream("schedule").bits(),
        lives,
        copies,
        order: Order::Drawn { policy: asked.schedule.policy, preempt: asked.schedule.preempt },
        killed_at_end,
        faults: faults(&asked.faults, slots, steps, &mut stream("faults")),
        faults_at: asked.faults.at.clone(),
        stops_max: asked.schedule.stops_max,
        length: 0,
        beside: None,
    };
    plan.length = plan.expected_length();
    for life in &mut plan.lives {
        life.abandon = killed_at_end;
    }
    if let Some(exact) = &asked.exact {
        plan.seed = hexadecimal(&exact.seed).unwrap_or(0);
        plan.order = Order::Decided(exact.preemption.clone());
        for (life, process) in plan.lives.iter_mut().zip(&exact.process) {
            life.seed = hexadecimal(&process.seed).unwrap_or(0);
            life.script.clone_from(&process.script);
            life.abandon = false;
        }
        plan.killed_at_end = false;
    }
    plan
}

/// The `number`-th schedule of a run, beside an earlier one: the work of that, other chances, and a
/// policy that changes more often or less.
#[must_use]
pub fn beside(
    asked: &Schedules,
    seed: u64,
    setting: usize,
    number: u64,
    earlier: u64,
) -> SchedulePlan {
    let own = schedule(asked, seed, setting, number);
    let mut plan = schedule(asked, seed, setting, earlier);
    let mut stream = Stream::new(seed, &format!("beside/{setting}/{number}"));
    let scaled = |stream: &mut Stream, number: u32| {
        let halves = stream.within([1, 4]);
        number.saturating_mul(halves).div_ceil(2)
    };
    if let Order::Drawn { policy, .. } = &mut plan.order {
        *policy = match *policy {
            Policy::Pct { changes } => match stream.within([1, 4]) {
                1 => Policy::RandomWalk { every: stream.within([2, 24]) },
                _ => Policy::Pct { changes: scaled(&mut stream, changes.max(1)) },
            },
            Policy::RandomWalk { every } => {
                Policy::RandomWalk { every: scaled(&mut stream, every).max(2) }
            }
            Policy::RoundRobin { steps } => {
                Policy::RoundRobin { steps: scaled(&mut stream, steps).max(1) }
            }
            delay @ Policy::Delay { .. } => delay,
        };
    }
    plan.number = number;
    plan.seed = own.seed;
    plan.killed_at_end = own.killed_at_end;
    plan.faults = own.faults;
    for life in &mut plan.lives {
        life.abandon = plan.killed_at_end;
    }
    plan.beside = Some(earlier);
    plan
}

impl SchedulePlan {
    /// About how many steps its scripts take, as long as nobody has measured it.
    #[must_use]
    pub fn expected_length(&self) -> u32 {
        let operations: usize = self.lives.iter().map(|life| life.script.len()).sum();
        // A program's are not known: 20 for each copy.
        let operations = if self.lives.is_empty() { 20 * self.slots() } else { operations };
        let steps = u32::try_from(operations).unwrap_or(u32::MAX);
        steps.saturating_mul(STEPS_PER_OPERATION).saturating_add(STEPS_PER_OPERATION)
    }

    /// Whether this schedule is one of those that are run twice: a share of them, spread evenly.
    #[must_use]
    pub fn is_run_twice(&self, per_100: u32) -> bool {
        let per_100 = u64::from(per_100);
        (self.number + 1) * per_100 / 100 > self.number * per_100 / 100
    }

    /// Whether a fault may fall at a call of this phase.
    #[must_use]
    pub fn may_fall(&self, phase: Phase) -> bool {
        self.faults_at.is_empty() || self.faults_at.iter().any(|pattern| pattern.matches(phase))
    }

    /// How many processes it begins with.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.lives.len().max(self.copies as usize)
    }
}

fn lives(asked: &Schedules, work: &Work, setting: usize, stream: &mut Stream) -> Vec<Life> {
    let of_setting = asked.setting[setting];
    (0..work.processes)
        .map(|slot| Life {
            session: FIRST_SESSION + i64::from(slot),
            role: Role::Script,
            engine: asked.schedule.engine,
            target: work.target,
            settings: of_setting.connection(),
            shape: shape(work),
            seed: stream.bits(),
            script: (0..work.steps).filter_map(|_| step(work, stream)).collect(),
            abandon: false,
            durability: std::collections::BTreeMap::new(),
            ack_fd: None,
            header_check: false,
            untimed: true,
        })
        .collect()
}

/// One step, drawn by weight.
fn step(work: &Work, stream: &mut Stream) -> Option<Step> {
    let whole: u32 = work.mix.values().sum();
    let mut drawn = stream.within([1, whole]);
    for (step, weight) in &work.mix {
        if drawn <= *weight {
            return Some(*step);
        }
        drawn -= weight;
    }
    None
}

/// The shape of the work; what scripts do not use is as usual.
#[must_use]
pub fn shape(work: &Work) -> Shape {
    Shape {
        lease_ms: 600_000,
        tasks_ready: 1,
        heartbeats_per_claim: 1,
        events_per_burst: 1,
        events_per_append: work.events,
        payload_bytes: work.payload_bytes,
        overstays_per_100_claims: 0,
        clock_steps_per_100: 0,
        clock_step_s: 0,
        pause_us: work.pause_us,
        checkpoint_pages: 1_000,
        busy_timeout_ms: work.busy_timeout_ms,
    }
}

fn faults(asked: &Faults, slots: usize, steps: u32, stream: &mut Stream) -> Vec<StepFault> {
    let mut faults = Vec::new();
    let mut draw = |per_100: u32, breaks: &dyn Fn(&mut Stream) -> Breaks| {
        // Drawn whether it falls or not: one share more moves nothing of another.
        let falls = stream.within([1, 100]) <= per_100;
        let last = u32::try_from(slots).unwrap_or(1).max(1) - 1;
        let slot = stream.within([0, last]) as usize;
        let step = stream.within([1, steps.max(1)]);
        let breaks = breaks(stream);
        if falls {
            faults.push(StepFault { slot, step, breaks });
        }
    };
    draw(asked.kills_per_100, &|stream| {
        let before = stream.within([0, 1]) == 0;
        let when = if before { KillWhen::Before } else { KillWhen::After };
        Breaks::Call(Fault::Kill { when, whom: Whom::Process })
    });
    draw(asked.tears_per_100, &|stream| {
        Breaks::Tear(u8::try_from(stream.within([1, 255])).unwrap_or(1))
    });
    draw(asked.errors_per_100, &|stream| {
        let last = u32::try_from(asked.errors.len()).unwrap_or(1).max(1) - 1;
        let drawn = stream.within([0, last]) as usize;
        let code = asked.errors.get(drawn).copied();
        Breaks::Call(Fault::Fail(code.unwrap_or(ErrorCode::Eio)))
    });
    draw(asked.pauses_per_100, &|stream| Breaks::Pause(stream.within(PAUSE_STEPS)));
    faults
}
