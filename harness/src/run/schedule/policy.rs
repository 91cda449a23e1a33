//! Who runs next: the policies, and the one rule that needs no decision.
//!
//! In: what happened at a step, and who can run. Out: a slot. All that is random comes from the
//! plan's seed, and nothing is read but what the run itself gave.

use crate::plan::Stream;
use crate::plan::schedule::{Order, Preemption, SchedulePlan};
use crate::run::trace::{Preemption as Machine, Trap, preemption};
use crate::scenario::schedule::{Policy, Preempt};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Included};

/// The last 8 bytes of each part of the wal-index header, where whoever reads or writes the whole
/// part comes last: the two copies of the header, `nBackfill` with the first read mark, and the
/// next two marks (SQLite, WAL-mode File Format, section 2.1).
const WORDS: [u64; 4] = [40, 88, 96, 104];
/// Instructions that a counted preemption may take.
const INSTRUCTIONS_MAX: u32 = 400;

/// Where the current thread is, when somebody is to be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// Nothing has run yet.
    Start,
    /// It stands before a call.
    Call,
    /// It stands before a sleep.
    Sleep,
    /// It has run into a trap.
    Trap,
    /// It waits for a lock, or for something else that is not to be had.
    Blocked,
    /// It has ended.
    End,
}

impl At {
    /// Whether it could go on.
    fn can_go_on(self) -> bool {
        matches!(self, Self::Call | Self::Sleep | Self::Trap)
    }
}

/// A step of one process: which step of its script it is at, and its how-manieth since that began.
pub(super) type StepKey = (u32, u32);

/// What a choice is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Situation<'a> {
    /// Who has run until now.
    pub(super) slot: usize,
    /// Its own step.
    pub(super) step: StepKey,
    /// Steps of all.
    pub(super) total: u32,
    pub(super) at: At,
    /// Who can run, in order. Never empty; holds `slot` if that can go on.
    pub(super) runnable: &'a [usize],
}

/// The rule that needs no decision: whoever runs goes on; if it sleeps, waits or has ended the next
/// one does, in the order of slots.
pub(super) fn rule(now: &Situation<'_>) -> usize {
    if matches!(now.at, At::Call | At::Trap) && now.runnable.contains(&now.slot) {
        return now.slot;
    }
    if now.at == At::Start {
        return now.runnable[0];
    }
    let after = now.runnable.iter().find(|slot| **slot > now.slot);
    *after.unwrap_or(&now.runnable[0])
}

/// Draws or looks up the next choice.
#[derive(Debug)]
pub(super) enum Chooser {
    Pct {
        stream: Stream,
        priorities: Vec<i64>,
        changes: BTreeSet<u32>,
        traps: Traps,
    },
    Walk {
        stream: Stream,
        every: u32,
        traps: Traps,
    },
    Robin {
        steps: u32,
        left: u32,
        traps: Traps,
    },
    Decided {
        at: BTreeMap<(usize, StepKey), usize>,
        traps: BTreeMap<(usize, StepKey), (Trap, usize)>,
        /// The least step that is decided in this operation of a slot's or in a later one.
        soonest: BTreeMap<(usize, u32), u32>,
    },
}

/// Draws the places between calls at which a process is stopped.
#[derive(Debug)]
pub(super) struct Traps {
    stream: Stream,
    kind: Preempt,
}

impl Traps {
    fn new(plan: &SchedulePlan, kind: Preempt) -> Self {
        let kind = match (kind, preemption()) {
            (Preempt::WalIndex, Machine::Steps { .. }) => Preempt::Steps,
            (kind, _) => kind,
        };
        Self { stream: Stream::new(plan.seed, "traps"), kind }
    }

    /// A trap behind every second lock that excludes others.
    fn draw(&mut self, locks: bool) -> Option<Trap> {
        if !locks || self.kind == Preempt::Calls {
            return None;
        }
        let drawn = self.stream.bits();
        if !is_trap(drawn) {
            return None;
        }
        let rest = drawn >> 8;
        if self.kind == Preempt::WalIndex {
            let place = usize::try_from(rest % 4).unwrap_or(0);
            return Some(Trap::Touch { offset: WORDS[place], skip: u32::from(drawn & 6 == 6) });
        }
        let steps = u32::try_from(rest % u64::from(INSTRUCTIONS_MAX)).unwrap_or(0);
        Some(Trap::Steps(1 + steps))
    }
}

impl Traps {
    /// How many locks more have no trap behind them.
    fn ahead(&self) -> u32 {
        if self.kind == Preempt::Calls {
            return u32::MAX;
        }
        let mut stream = self.stream.clone();
        let none = (0..LOOKED_AHEAD).take_while(|_| !is_trap(stream.bits()));
        u32::try_from(none.count()).unwrap_or(0)
    }
}

fn is_trap(drawn: u64) -> bool {
    drawn & 1 == 1
}

impl Chooser {
    pub(super) fn new(plan: &SchedulePlan) -> Self {
        let stream = Stream::new(plan.seed, "policy");
        match &plan.order {
            Order::Drawn { policy, preempt } => Self::drawn(plan, *policy, *preempt, stream),
            Order::Decided(decisions) => {
                let (mut at, mut traps) = (BTreeMap::new(), BTreeMap::new());
                for Preemption { slot, op, step, trap, to } in decisions {
                    let key = (*slot, (*op, *step));
                    match trap {
                        Some(trap) => drop(traps.insert(key, (*trap, *to))),
                        None => drop(at.insert(key, *to)),
                    }
                }
                let soonest = soonest(decisions);
                Self::Decided { at, traps, soonest }
            }
        }
    }

    fn drawn(plan: &SchedulePlan, policy: Policy, preempt: Preempt, mut stream: Stream) -> Self {
        let traps = Traps::new(plan, preempt);
        match policy {
            Policy::Pct { changes } => {
                let priorities = (0..plan.slots()).map(|_| priority(&mut stream)).collect();
                let changes =
                    (0..changes).map(|_| stream.within([1, plan.length.max(1)])).collect();
                Self::Pct { stream, priorities, changes, traps }
            }
            // Delays are drawn elsewhere: nobody is chosen there.
            Policy::RandomWalk { every } | Policy::Delay { every, .. } => {
                Self::Walk { stream, every, traps }
            }
            Policy::RoundRobin { steps } => Self::Robin { steps, left: steps, traps },
        }
    }

    /// Who runs next.
    pub(super) fn next(&mut self, now: &Situation<'_>) -> usize {
        match self {
            Self::Pct { stream, priorities, changes, .. } => {
                while priorities.len() <= now.runnable.iter().copied().max().unwrap_or(0) {
                    priorities.push(priority(stream));
                }
                let gives_way = matches!(now.at, At::Sleep | At::Trap | At::Blocked);
                if (gives_way || changes.contains(&now.total)) && now.slot < priorities.len() {
                    let lowest = priorities.iter().copied().min().unwrap_or(0);
                    priorities[now.slot] = lowest - 1;
                }
                let highest = now.runnable.iter().max_by_key(|slot| priorities[**slot]);
                highest.copied().unwrap_or(now.slot)
            }
            Self::Walk { stream, every, .. } => {
                let stays = now.at == At::Call && stream.within([1, *every]) != 1;
                if stays { rule(now) } else { drawn(stream, now) }
            }
            Self::Robin { steps, left, .. } => {
                *left = left.saturating_sub(1);
                if now.at == At::Call && *left > 0 {
                    return rule(now);
                }
                *left = *steps;
                rule(&Situation { at: At::Sleep, ..*now })
            }
            Self::Decided { at, traps, .. } => {
                let key = (now.slot, now.step);
                let decided = match now.at {
                    At::Trap => traps.get(&key).map(|(_, to)| *to),
                    _ => at.get(&key).copied(),
                };
                decided.filter(|to| now.runnable.contains(to)).unwrap_or_else(|| rule(now))
            }
        }
    }

    /// Where `slot` is to be stopped behind its `step`-th step; `locks` says that this step asks
    /// for a lock that excludes others.
    pub(super) fn trap(&mut self, slot: usize, step: StepKey, locks: bool) -> Option<Trap> {
        match self {
            Self::Pct { traps, .. } | Self::Walk { traps, .. } | Self::Robin { traps, .. } => {
                traps.draw(locks)
            }
            Self::Decided { traps, .. } => traps.get(&(slot, step)).map(|(trap, _)| *trap),
        }
    }
}

/// Steps that are looked ahead at most, where each must be drawn.
const LOOKED_AHEAD: u32 = 64;

impl Chooser {
    /// For how many steps more of `slot`, which runs, whoever can run stays the same and nobody
    /// waits, it is certain to be chosen again, and that no trap is behind them; the latter as
    /// long as no more than the second answer ask for a lock that excludes others. `step` is the
    /// last of its own, `total` that of all.
    pub(super) fn ahead(&self, slot: usize, step: StepKey, total: u32) -> (u32, u32) {
        match self {
            Self::Pct { changes, traps, .. } => {
                let next = changes.range(total.saturating_add(1)..).next();
                let left = next.map_or(u32::MAX, |next| next - total - 1);
                (left, traps.ahead())
            }
            Self::Walk { stream, every, traps } => {
                let mut stream = stream.clone();
                let stays = (0..LOOKED_AHEAD).take_while(|_| stream.within([1, *every]) != 1);
                let stays = u32::try_from(stays.count()).unwrap_or(0);
                (stays, traps.ahead())
            }
            Self::Robin { left, traps, .. } => (left.saturating_sub(1), traps.ahead()),
            Self::Decided { at, traps, soonest } => {
                let (op, number) = step;
                let after = (Excluded((slot, step)), Included((slot, (op, u32::MAX))));
                let here = [
                    at.range(after).next().map(|(key, _)| key.1.1),
                    traps.range(after).next().map(|(key, _)| key.1.1),
                ];
                let here = here.into_iter().flatten().map(|next| next - number - 1);
                // When this operation ends nobody knows: it may be now.
                let later = (Excluded((slot, op)), Included((slot, u32::MAX)));
                let later = soonest.range(later).next().map(|(_, next)| next.saturating_sub(1));
                (here.chain(later).min().unwrap_or(u32::MAX), u32::MAX)
            }
        }
    }
}

fn soonest(decisions: &[Preemption]) -> BTreeMap<(usize, u32), u32> {
    let mut soonest = BTreeMap::new();
    for Preemption { slot, op, step, .. } in decisions {
        let least = soonest.entry((*slot, *op)).or_insert(*step);
        *least = (*least).min(*step);
    }
    let mut after: Option<(usize, u32)> = None;
    for ((slot, _), least) in soonest.iter_mut().rev() {
        if let Some((_, later)) = after.filter(|(of, _)| of == slot) {
            *least = (*least).min(later);
        }
        after = Some((*slot, *least));
    }
    soonest
}

fn priority(stream: &mut Stream) -> i64 {
    i64::from(stream.within([1, u32::MAX]))
}

/// Anyone else, if there is anyone; a process that sleeps or was trapped has had its turn.
fn drawn(stream: &mut Stream, now: &Situation<'_>) -> usize {
    let others =
        now.runnable.iter().copied().filter(|slot| *slot != now.slot || !now.at.can_go_on());
    let others: Vec<usize> = others.collect();
    let Some(last) = others.len().checked_sub(1) else { return rule(now) };
    others[stream.within([0, u32::try_from(last).unwrap_or(0)]) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(order: Order) -> SchedulePlan {
        SchedulePlan {
            number: 0,
            setting: 0,
            seed: 7,
            lives: Vec::new(),
            copies: 3,
            order,
            killed_at_end: false,
            faults: Vec::new(),
            faults_at: Vec::new(),
            stops_max: 1_000,
            length: 500,
            beside: None,
        }
    }

    fn at(slot: usize, step: u32, at: At) -> Situation<'static> {
        Situation { slot, step: (0, step), total: step, at, runnable: &[0, 1, 2] }
    }

    #[track_caller]
    fn check(now: Situation<'_>, expected: usize) {
        assert_eq!(rule(&now), expected);
    }

    #[test]
    fn rule_lets_whoever_runs_go_on_and_goes_round_else() {
        check(at(1, 5, At::Call), 1);
        check(at(1, 5, At::Sleep), 2);
        check(at(2, 5, At::End), 0);
        check(at(2, 0, At::Start), 0);
    }

    #[test]
    fn a_decision_holds_at_its_own_step_and_nowhere_else() {
        let decision = Preemption { slot: 1, op: 0, step: 5, trap: None, to: 0 };
        let mut chooser = Chooser::new(&plan(Order::Decided(vec![decision])));
        assert_eq!(chooser.next(&at(1, 4, At::Call)), 1);
        assert_eq!(chooser.next(&at(1, 5, At::Call)), 0);
        assert_eq!(chooser.next(&at(0, 5, At::Call)), 0);
    }

    #[test]
    fn a_decision_behind_a_trap_is_none_before_the_call() {
        let trap = Trap::Touch { offset: 88, skip: 0 };
        let decision = Preemption { slot: 1, op: 0, step: 5, trap: Some(trap), to: 0 };
        let mut chooser = Chooser::new(&plan(Order::Decided(vec![decision])));
        assert_eq!(chooser.next(&at(1, 5, At::Call)), 1);
        assert_eq!(chooser.trap(1, (0, 5), false), Some(trap));
        assert_eq!(chooser.next(&at(1, 5, At::Trap)), 0);
    }

    #[test]
    fn whoever_sleeps_under_pct_gives_way_to_all_others() {
        let policy = Policy::Pct { changes: 0 };
        let order = Order::Drawn { policy, preempt: Preempt::Calls };
        let mut chooser = Chooser::new(&plan(order));
        let first = chooser.next(&at(0, 0, At::Start));
        assert_eq!(chooser.next(&at(first, 1, At::Call)), first, "the highest goes on");
        let second = chooser.next(&at(first, 2, At::Sleep));
        let third = chooser.next(&at(second, 1, At::Sleep));
        let mut all = [first, second, third];
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2]);
    }

    /// What is promised of the next steps is what is said of them when they come.
    #[test]
    fn what_is_told_ahead_is_what_is_chosen() {
        let trap = Trap::Steps(3);
        let decided = [(0, 9, None), (1, 5, None), (1, 30, Some(trap)), (2, 40, None)]
            .map(|(slot, step, trap)| Preemption { slot, op: 0, step, trap, to: (slot + 1) % 3 });
        let drawn = [
            Policy::Pct { changes: 9 },
            Policy::RandomWalk { every: 9 },
            Policy::RoundRobin { steps: 7 },
        ];
        let drawn = drawn.map(|policy| Order::Drawn { policy, preempt: Preempt::Steps });
        for order in drawn.into_iter().chain([Order::Decided(decided.to_vec())]) {
            let mut chooser = Chooser::new(&plan(order.clone()));
            let mut slot = chooser.next(&at(0, 0, At::Start));
            let (mut passed, mut promised) = (0, (0, 0));
            for step in 1..2_000 {
                let locks = step % 5 == 0;
                let to = chooser.next(&at(slot, step, At::Call));
                let trap = chooser.trap(slot, (0, step), locks);
                let covered = promised.0 > 0 && (!locks || promised.1 > 0);
                if covered {
                    assert_eq!((to, trap), (slot, None), "{order:?}, step {step}");
                    passed += 1;
                    promised = (promised.0 - 1, promised.1 - u32::from(locks));
                } else {
                    promised = (0, 0);
                }
                if promised.0 == 0 {
                    promised = chooser.ahead(to, (0, step), step);
                }
                slot = to;
            }
            assert!(passed > 1_000, "{order:?}: {passed} of 2000 were told ahead");
        }
    }

    #[test]
    fn nothing_is_told_beyond_a_decision_of_an_operation_that_may_begin_at_once() {
        let decided = [(2, 9), (3, 1), (3, 40), (5, 7)].map(|(op, step)| Preemption {
            slot: 1,
            op,
            step,
            trap: None,
            to: 0,
        });
        let chooser = Chooser::new(&plan(Order::Decided(decided.to_vec())));
        for (step, told) in [((2, 3), 0), ((3, 1), 6), ((4, 1), 6), ((5, 2), 4), ((5, 7), u32::MAX)]
        {
            assert_eq!(chooser.ahead(1, step, 0).0, told, "{step:?}");
        }
        assert_eq!(chooser.ahead(0, (2, 3), 0).0, u32::MAX);
    }

    #[test]
    fn each_policy_draws_the_same_again_from_the_same_seed() {
        for policy in [
            Policy::Pct { changes: 9 },
            Policy::RandomWalk { every: 3 },
            Policy::RoundRobin { steps: 2 },
        ] {
            let draw = || {
                let order = Order::Drawn { policy, preempt: Preempt::Steps };
                let mut chooser = Chooser::new(&plan(order));
                let mut slot = 0;
                (1..200)
                    .map(|step| {
                        slot = chooser.next(&at(slot, step, At::Call));
                        (slot, chooser.trap(slot, (0, step), step % 5 == 0))
                    })
                    .collect::<Vec<_>>()
            };
            assert_eq!(draw(), draw());
            assert!(draw().iter().any(|(slot, _)| *slot != 0), "{policy:?} never switches");
        }
    }
}
