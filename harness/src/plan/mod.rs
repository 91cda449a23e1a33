//! Every random choice of a run, made before it begins.
//!
//! A plan is a pure function of a scenario and a seed: no clock, no file, no process. Each purpose
//! draws from a stream of its own, so that a new draw for one moves nothing of another, and each
//! cycle from streams of its own, so that cycles can be planned in any order.
//!
//! In: a [`Scenario`] and a seed. Out: one [`CyclePlan`] after another.
//! Not here: what really happened, which is `history`.

pub mod schedule;
mod stream;

pub use stream::{Stream, round_seed};

use crate::scenario::{Kills, Scenario, Setting};
use killpoint_worker::wire::{Life, Role, Shape};
use rand::seq::SliceRandom as _;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// All cycles of one scenario under one seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The seed of every choice.
    pub seed: u64,
    /// The scenario's name, which is part of what the streams are drawn from.
    pub name: String,
    /// What is planned for.
    pub scenario: Scenario,
}

/// One database's life: some cycles of one setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Which one, from 0, over all settings.
    pub index: u32,
    /// Which setting, from 0.
    pub setting: usize,
    /// How many cycles.
    pub cycles: u32,
}

/// One cycle: who runs, who is killed when, how it ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CyclePlan {
    /// Which database of the run, from 0.
    pub generation: u32,
    /// Which cycle of that database, from 0.
    pub cycle: u32,
    /// Which setting of the scenario, from 0.
    pub setting: usize,
    /// The processes, by slot.
    pub lives: Vec<Life>,
    /// From the last connection's opening to the ending, µs.
    pub run_us: u64,
    /// Kills on the way, in order of time.
    pub kills: Vec<KillPlan>,
    /// Pauses on the way, in order of time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pauses: Vec<PausePlan>,
    /// How long a kill waits for its moment, even when the cycle would be over, ms.
    pub moment_wait_ms: u32,
    /// False for the canary of the harness: kills are planned and not sent.
    pub kills_sent: bool,
    /// How the cycle ends.
    pub ending: Ending,
    /// How long a process may take to end when it is asked to, ms.
    pub deadline_ms: u32,
}

/// One kill that is planned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct KillPlan {
    /// Not before this, µs after the last connection's opening.
    pub at_us: u64,
    /// The moment to wait for.
    pub moment: Moment,
    /// Slots in order of preference.
    pub victims: Vec<usize>,
}

/// One pause that is planned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PausePlan {
    /// Not before this, µs after the last connection's opening.
    pub at_us: u64,
    /// How long, µs.
    pub for_us: u64,
    /// Slots in order of preference: the first that holds a claim is stopped.
    pub victims: Vec<usize>,
}

/// The moment that a kill waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Moment {
    /// Any.
    Any,
    /// The victim holds the write lock and has written nothing.
    Transaction,
    /// The victim's transaction is being written.
    Commit,
    /// The victim is in a checkpoint.
    Checkpoint,
    /// The victim's claim has just been taken back.
    TakenBack,
    /// The end of the cycle: all that is left, at once.
    Ending,
}

/// How a cycle ends for those who are still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// SIGKILL to all at once.
    Kill,
    /// Each finishes its operation and closes; the last one's close checkpoints.
    Graceful,
}

impl Plan {
    /// The plan of `scenario`, called `name`, under `seed`.
    #[must_use]
    pub fn new(name: &str, scenario: &Scenario, seed: u64) -> Self {
        Self { seed, name: name.to_owned(), scenario: scenario.clone() }
    }

    /// The databases of the run. Settings take turns, so that a drifting machine favours none.
    pub fn generations(&self) -> impl Iterator<Item = Generation> + use<> {
        let cycles = self.scenario.cycles;
        let settings = self.scenario.setting.len();
        let each = cycles.count.div_ceil(cycles.per_database);
        (0..each).flat_map(move |round| {
            let done = round * cycles.per_database;
            let count = cycles.per_database.min(cycles.count - done);
            (0..settings).map(move |setting| Generation {
                index: u32::try_from(setting).unwrap_or(0)
                    + round * u32::try_from(settings).unwrap_or(1),
                setting,
                cycles: count,
            })
        })
    }

    /// The `cycle`-th cycle (from 0) of `generation`.
    #[must_use]
    pub fn cycle(&self, generation: Generation, cycle: u32) -> CyclePlan {
        let place = (generation.index, cycle);
        let setting = self.scenario.setting[generation.setting];
        let lives = self.lives(place, setting);
        let [least, most] = self.scenario.cycles.run_ms;
        let run_us = self.stream("run", place).within([least * 1_000, most * 1_000]).into();
        let every = self.scenario.cycles.graceful_every;
        let graceful = every > 0 && (cycle + 1).is_multiple_of(every);
        CyclePlan {
            generation: generation.index,
            cycle,
            setting: generation.setting,
            kills: self.kills(place, &lives, run_us),
            pauses: self.pauses(place, &lives, run_us),
            moment_wait_ms: self.scenario.kill.wait_ms,
            kills_sent: !self.scenario.kill.not_sent,
            ending: if graceful { Ending::Graceful } else { Ending::Kill },
            deadline_ms: self.scenario.cycles.deadline_ms,
            run_us,
            lives,
        }
    }

    /// The process that makes the database of a generation.
    #[must_use]
    pub fn founder(&self, generation: Generation) -> Life {
        let setting = self.scenario.setting[generation.setting];
        self.life(Role::Founder, 0, 0, setting)
    }

    fn lives(&self, place: (u32, u32), setting: Setting) -> Vec<Life> {
        let w = self.scenario.writers;
        let mut seeds = self.stream("lives", place);
        let counts = [
            (Role::Dispatcher, w.dispatcher),
            (Role::Worker, setting.workers.unwrap_or(w.worker)),
            (Role::Reviewer, w.reviewer),
            (Role::Reader, w.reader),
            (Role::Visitor, w.visitor),
            (Role::Checkpointer, u32::from(setting.checkpoint_owner)),
        ];
        let roles =
            counts.into_iter().flat_map(|(role, count)| std::iter::repeat_n(role, count as usize));
        roles
            .enumerate()
            .map(|(slot, role)| {
                // Sessions are numbered through one database: cycle 0 has 101, 102, …
                let session = (i64::from(place.1) + 1) * 100 + i64::try_from(slot).unwrap_or(0) + 1;
                self.life(role, session, seeds.bits(), setting)
            })
            .collect()
    }

    fn life(&self, role: Role, session: i64, seed: u64, setting: Setting) -> Life {
        let w = &self.scenario.workload;
        Life {
            session,
            role,
            engine: self.scenario.engine(setting, role),
            target: setting.target.unwrap_or(w.target),
            settings: setting.connection(),
            shape: Shape {
                lease_ms: w.lease_ms,
                tasks_ready: w.tasks_ready,
                heartbeats_per_claim: w.heartbeats_per_claim,
                events_per_burst: w.events_per_burst,
                events_per_append: setting.events_per_append.unwrap_or(w.events_per_append),
                payload_bytes: w.payload_bytes,
                overstays_per_100_claims: w.overstays_per_100_claims,
                clock_steps_per_100: w.clock_steps_per_100,
                clock_step_s: w.clock_step_s,
                pause_us: w.pause_us,
                checkpoint_pages: 1_000,
                busy_timeout_ms: w.busy_timeout_ms,
            },
            seed,
            script: Vec::new(),
            abandon: false,
            durability: BTreeMap::new(),
            ack_fd: None,
            header_check: setting.header_check && role != Role::Visitor,
            untimed: false,
        }
    }

    fn kills(&self, place: (u32, u32), lives: &[Life], run_us: u64) -> Vec<KillPlan> {
        let Kills { any_moment, transaction, commit, checkpoint, taken_back, .. } =
            self.scenario.kill;
        let mut when = self.stream("kill-time", place);
        let mut whom = self.stream("kill-victim", place);
        let moments = [
            (Moment::Any, any_moment),
            (Moment::Transaction, transaction),
            (Moment::Commit, commit),
            (Moment::Checkpoint, checkpoint),
            (Moment::TakenBack, taken_back),
        ];
        let latest = u32::try_from(run_us).unwrap_or(u32::MAX);
        let mut kills: Vec<KillPlan> = moments
            .into_iter()
            .flat_map(|(moment, count)| std::iter::repeat_n(moment, count as usize))
            .map(|moment| {
                let mut victims: Vec<usize> = (0..lives.len()).collect();
                victims.shuffle(whom.rng());
                KillPlan { at_us: when.within([0, latest]).into(), moment, victims }
            })
            .collect();
        let dispatchers: Vec<usize> = lives
            .iter()
            .enumerate()
            .filter(|(_, life)| life.role == Role::Dispatcher)
            .map(|(slot, _)| slot)
            .collect();
        for _ in 0..self.scenario.kill.dispatcher {
            let mut victims = dispatchers.clone();
            victims.shuffle(whom.rng());
            // Where all of them are gone already, somebody else goes.
            victims.extend((0..lives.len()).filter(|slot| !dispatchers.contains(slot)));
            let at_us = when.within([0, latest]).into();
            kills.push(KillPlan { at_us, moment: Moment::Any, victims });
        }
        kills.sort_by_key(|kill| kill.at_us);
        kills
    }

    fn pauses(&self, place: (u32, u32), lives: &[Life], run_us: u64) -> Vec<PausePlan> {
        let [least, most] = self.scenario.pause.ms;
        let mut when = self.stream("pause-time", place);
        let mut whom = self.stream("pause-victim", place);
        let latest = u32::try_from(run_us).unwrap_or(u32::MAX);
        let workers = lives.iter().enumerate().filter(|(_, life)| life.role == Role::Worker);
        let workers: Vec<usize> = workers.map(|(slot, _)| slot).collect();
        let mut pauses: Vec<PausePlan> = (0..self.scenario.pause.count)
            .map(|_| {
                let mut victims = workers.clone();
                victims.shuffle(whom.rng());
                let for_us = u64::from(when.within([least, most])) * 1_000;
                PausePlan { at_us: when.within([0, latest]).into(), for_us, victims }
            })
            .collect();
        pauses.sort_by_key(|pause| pause.at_us);
        pauses
    }

    fn stream(&self, label: &str, (generation, cycle): (u32, u32)) -> Stream {
        Stream::new(self.seed, &format!("{}/{label}/{generation}/{cycle}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario;
    use killpoint_worker::wire::EngineName::{Bundled, Given, V3_50_2, V3_51_1};
    use proptest::prelude::*;

    fn plan(seed: u64, extra_kill: &str) -> Plan {
        let text = format!(
            "format = 1\nclaim = 'c'\nexpect = 'pass'\n\
             [writers]\ndispatcher = 1\nworker = 3\nreviewer = 2\n\
             [[setting]]\nsynchronous = 'normal'\nwal-autocheckpoint = 1000\n\
             [[setting]]\nsynchronous = 'full'\nwal-autocheckpoint = 100\n\
             [cycles]\ncount = 25\nper-database = 10\ngraceful-every = 5\n\
             [kill]\ncommit = 2\n{extra_kill}"
        );
        Plan::new("t", &scenario::parse("t", &text).unwrap(), seed)
    }

    #[test]
    fn each_setting_gets_its_cycles_in_turns() {
        let generations: Vec<Generation> = plan(1, "").generations().collect();
        let seen: Vec<(u32, usize, u32)> =
            generations.iter().map(|g| (g.index, g.setting, g.cycles)).collect();
        assert_eq!(seen, [(0, 0, 10), (1, 1, 10), (2, 0, 10), (3, 1, 10), (4, 0, 5), (5, 1, 5)]);
    }

    #[test]
    fn another_kind_of_kill_leaves_the_workload_as_it_was() {
        let first = Generation { index: 0, setting: 0, cycles: 10 };
        let without = plan(7, "").cycle(first, 3);
        let with = plan(7, "any-moment = 1").cycle(first, 3);
        assert_eq!(without.lives, with.lives);
        assert_eq!(without.run_us, with.run_us);
        assert_eq!(with.kills.len(), 3);
    }

    #[test]
    fn each_role_has_its_engine_and_who_comes_and_goes_checks_no_header() {
        let text = "format = 1\nclaim = 'c'\nexpect = 'pass'\nengine = '3.51.1'\n\
                    [writers]\ndispatcher = 1\nvisitor = 1\n\
                    [[setting]]\nsynchronous = 'normal'\nwal-autocheckpoint = 1000\n\
                    [[setting]]\nsynchronous = 'normal'\nwal-autocheckpoint = 1000\n\
                    engine = 'bundled'\nengine-of.visitor = '3.50.2'\nheader-check = true\n\
                    target = 'baseline'\n";
        let mut scenario = scenario::parse("t", text).unwrap();
        let engines = |scenario: &Scenario, setting: usize| {
            let plan = Plan::new("t", scenario, 1);
            let generation = Generation { index: 0, setting, cycles: 1 };
            let lives = plan.cycle(generation, 0).lives;
            let told = lives.iter().map(|life| (life.role, life.engine, life.header_check));
            (plan.founder(generation).engine, told.collect::<Vec<_>>())
        };
        let (dispatcher, visitor) = (Role::Dispatcher, Role::Visitor);
        let all = vec![(dispatcher, V3_51_1, false), (visitor, V3_51_1, false)];
        assert_eq!(engines(&scenario, 0), (V3_51_1, all));
        let each = vec![(dispatcher, Bundled, true), (visitor, V3_50_2, false)];
        assert_eq!(engines(&scenario, 1), (Bundled, each));
        scenario.run_all_on(Given);
        let given = vec![(dispatcher, Given, true), (visitor, Given, false)];
        assert_eq!(engines(&scenario, 1), (Given, given));
    }

    #[test]
    fn every_fifth_cycle_ends_gracefully() {
        let first = Generation { index: 0, setting: 0, cycles: 10 };
        let ends: Vec<bool> =
            (0..10).map(|c| plan(7, "").cycle(first, c).ending == Ending::Graceful).collect();
        assert_eq!(ends.iter().filter(|graceful| **graceful).count(), 2);
        assert!(ends[4] && ends[9]);
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn a_plan_is_a_function_of_its_seed_and_stays_within_its_limits(
            seed: u64, cycle in 0_u32..10
        ) {
            let first = Generation { index: 1, setting: 1, cycles: 10 };
            let one = plan(seed, "any-moment = 2").cycle(first, cycle);
            let two = plan(seed, "any-moment = 2").cycle(first, cycle);
            prop_assert_eq!(&one, &two);
            prop_assert!(one.kills.iter().all(|kill| kill.at_us <= one.run_us));
            prop_assert!(one.kills.is_sorted_by_key(|kill| kill.at_us));
            for kill in &one.kills {
                let mut victims = kill.victims.clone();
                victims.sort_unstable();
                prop_assert_eq!(victims, (0..one.lives.len()).collect::<Vec<_>>());
            }
            let mut sessions: Vec<i64> = one.lives.iter().map(|life| life.session).collect();
            sessions.dedup();
            prop_assert_eq!(sessions.len(), one.lives.len());
        }
    }
}
