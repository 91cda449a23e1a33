//! The circuit breaker: what a failure costs, and when a task is given up.
//!
//! A run that a dispatcher starts is charged to its task in the very transaction that claims it, so
//! a crash of the dispatcher between the start and the failure costs no count. Whatever ends well
//! takes the charge back.
//!
//! Pure decisions. In: what was counted, how a run ended. Out: what is counted now, and where the
//! task goes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::board::clock::milliseconds;
use crate::board::sql::Counts;

/// When a task is given up, and how long it rests between failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Limits {
    /// After so many failures in a row a task is blocked, unless it says otherwise itself.
    pub failure_limit: u32,
    /// After so many ends from outside in a row a task is blocked. They are not its fault, but a
    /// task that is killed each time for the memory it takes must come to an end too.
    pub interruption_limit: u32,
    /// How long a task rests after its first failure; after each further one twice as long. 0: not
    /// at all.
    #[serde(rename = "cool-down-seconds", with = "super::seconds")]
    pub cool_down: Duration,
    /// The longest rest.
    #[serde(rename = "cool-down-max-seconds", with = "super::seconds")]
    pub cool_down_max: Duration,
}

impl Default for Limits {
    /// 4 failures, 20 interruptions, a rest of 60 s that doubles up to an hour.
    fn default() -> Self {
        Self {
            failure_limit: 4,
            interruption_limit: 20,
            cool_down: Duration::from_mins(1),
            cool_down_max: Duration::from_hours(1),
        }
    }
}

/// Whose fault the end of a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::board) enum Fault {
    /// The task's, or its worker's.
    Task,
    /// Nobody's here: a kill from outside, a restart of the machine.
    Outside,
}

/// Where a task goes after a run that did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::board) enum Next {
    /// To be claimed again.
    Again,
    /// To be claimed again after a rest.
    Rest {
        /// How long, ms.
        ms: i64,
    },
    /// Nowhere, until a person has looked at it.
    GiveUp {
        /// How often it was tried.
        times: i64,
    },
}

/// What is counted after the end of a run, and where its task goes. `charged`: the run was counted
/// as a failure when it began.
pub(in crate::board) fn after(
    counts: Counts,
    charged: bool,
    fault: Fault,
    limits: &Limits,
) -> (Counts, Next) {
    match fault {
        Fault::Task => {
            let failures = counts.failures + i64::from(!charged);
            let limit = counts.failure_limit.unwrap_or(limits.failure_limit.into()).max(1);
            let next = if failures >= limit {
                Next::GiveUp { times: failures }
            } else {
                match rest_ms(failures, limits) {
                    0 => Next::Again,
                    ms => Next::Rest { ms },
                }
            };
            (Counts { failures, interruptions: 0, ..counts }, next)
        }
        Fault::Outside => {
            let failures = (counts.failures - i64::from(charged)).max(0);
            let interruptions = counts.interruptions + 1;
            let next = if interruptions >= i64::from(limits.interruption_limit.max(1)) {
                Next::GiveUp { times: interruptions }
            } else {
                Next::Again
            };
            (Counts { failures, interruptions, ..counts }, next)
        }
    }
}

fn rest_ms(failures: i64, limits: &Limits) -> i64 {
    let doublings = u32::try_from(failures - 1).unwrap_or(0).min(40);
    let rest = limits.cool_down.saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX));
    milliseconds(rest.min(limits.cool_down_max))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Counts = Counts { failures: 0, interruptions: 0, failure_limit: None };

    #[test]
    fn rests_double_until_the_task_is_given_up() {
        let limits = Limits::default();
        let mut counts = NONE;
        let mut seen = Vec::new();
        for _ in 0..4 {
            // A dispatcher charges first.
            counts.failures += 1;
            let next;
            (counts, next) = after(counts, true, Fault::Task, &limits);
            seen.push(next);
        }
        let rest = |ms| Next::Rest { ms };
        let want = [rest(60_000), rest(120_000), rest(240_000), Next::GiveUp { times: 4 }];
        assert_eq!(seen, want);
    }

    #[test]
    fn run_that_was_not_charged_counts_when_it_fails() {
        let (counts, _) = after(NONE, false, Fault::Task, &Limits::default());
        assert_eq!(counts.failures, 1);
    }

    #[test]
    fn end_from_outside_costs_no_failure_but_is_not_forgiven_for_ever() {
        let limits = Limits { interruption_limit: 3, ..Limits::default() };
        let mut counts = Counts { failures: 2, ..NONE };
        for times in 1..=3 {
            counts.failures += 1;
            let next;
            (counts, next) = after(counts, true, Fault::Outside, &limits);
            assert_eq!((counts.failures, counts.interruptions), (2, times));
            let want = if times == 3 { Next::GiveUp { times } } else { Next::Again };
            assert_eq!(next, want);
        }
    }

    #[test]
    fn limit_of_the_task_goes_before_that_of_the_dispatcher() {
        let counts = Counts { failures: 1, failure_limit: Some(1), ..NONE };
        let (_, next) = after(counts, true, Fault::Task, &Limits::default());
        assert_eq!(next, Next::GiveUp { times: 1 });
    }

    #[test]
    fn no_rest_is_longer_than_the_longest() {
        let limits = Limits { failure_limit: u32::MAX, ..Limits::default() };
        let counts = Counts { failures: i64::MAX / 2, ..NONE };
        let (_, next) = after(counts, true, Fault::Task, &limits);
        assert_eq!(next, Next::GiveUp { times: i64::MAX / 2 });
        let counts = Counts { failures: 1000, ..NONE };
        let (_, next) = after(counts, true, Fault::Task, &limits);
        assert_eq!(next, Next::Rest { ms: 3_600_000 });
        let limits = Limits { cool_down: Duration::ZERO, ..limits };
        assert_eq!(after(counts, true, Fault::Task, &limits).1, Next::Again);
    }
}
