//! Counts of what was judged: the weight behind a verdict.

use super::{Cycle, delivery};
use crate::history::Pause;
use crate::plan::{Ending, Moment};
use crate::verdict::{Finding, FindingKind, Verdict};
use killpoint_worker::ledger::{Activity, Kind, Loaded, State};
use killpoint_worker::wire::{EngineName, Role};
use std::collections::BTreeMap;

/// Kills that waited for one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MomentTally {
    /// Sent.
    pub sent: u64,
    /// Of those, landed at the moment.
    pub landed: u64,
}

/// What was judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Cycles.
    pub cycles: u64,
    /// Of those, ended by drain, checkpoint and close.
    pub graceful_cycles: u64,
    /// Processes killed.
    pub process_kills: u64,
    /// The same, by what the victim was doing when it ended.
    pub kills_by_activity: BTreeMap<Activity, u64>,
    /// The same, by the moment that was waited for.
    pub moments: BTreeMap<Moment, MomentTally>,
    /// Pauses made.
    pub pauses: u64,
    /// Of those, in which the stopped worker lost its claim.
    pub pauses_past_lease: u64,
    /// Claims acknowledged.
    pub claims: u64,
    /// Operations acknowledged.
    pub acked_ops: u64,
    /// Of those, absent.
    pub lost_acked_ops: u64,
    /// Operations refused.
    pub refused_ops: u64,
    /// Of those, for a claim that was no longer live.
    pub stale_ops: u64,
    /// Operations in flight at a kill, or with an unknown outcome.
    pub unknown_ops: u64,
    /// Of those, there.
    pub unknown_kept: u64,
    /// Cycles with a finding of damage.
    pub corrupt_cycles: u64,
    /// Cycles in which a promise was broken.
    pub failed_cycles: u64,
    /// Findings by kind.
    pub findings: BTreeMap<FindingKind, u64>,
    /// When the first acknowledged operation that is lost was sent, µs from its cycle's beginning.
    pub first_loss_us: Option<u64>,
    /// Processes by role, the engine asked for, and the library that they say they loaded.
    pub engines: BTreeMap<(Role, EngineName, Loaded), u64>,
}

impl Tally {
    pub(super) fn of(cycle: &Cycle<'_>) -> Self {
        let mut tally = Self { cycles: 1, ..Self::default() };
        tally.graceful_cycles = u64::from(cycle.plan.ending == Ending::Graceful);
        for receipt in &cycle.receipts {
            tally.process_kills += 1;
            *tally.kills_by_activity.entry(receipt.activity).or_default() += 1;
            let moment = tally.moments.entry(receipt.moment).or_default();
            moment.sent += 1;
            moment.landed += u64::from(delivery::landed(receipt));
        }
        tally.pauses = count(cycle.pauses.iter());
        tally.pauses_past_lease =
            count(cycle.pauses.iter().filter(|pause| lost_its_claim(cycle, pause)));
        for life in &cycle.lives {
            if let Some(loaded) = &life.loaded {
                let key = (life.role, life.engine, loaded.clone());
                *tally.engines.entry(key).or_default() += 1;
            }
            for op in &life.ops {
                match op.state {
                    State::Acked => {
                        tally.acked_ops += 1;
                        tally.claims += u64::from(op.kind == Kind::Claim);
                    }
                    State::Refused => {
                        tally.refused_ops += 1;
                        let stale = op.reason == killpoint_worker::ledger::Reason::Stale;
                        tally.stale_ops += u64::from(stale);
                    }
                    State::Sent | State::Unknown => tally.unknown_ops += 1,
                }
            }
        }
        tally
    }

    pub(super) fn count(&mut self, findings: &[Finding]) {
        for finding in findings {
            *self.findings.entry(finding.kind).or_default() += 1;
        }
        self.corrupt_cycles = u64::from(self.findings.contains_key(&FindingKind::Corrupt));
        let failed = self.findings.keys().any(|kind| kind.verdict() == Verdict::Fail);
        self.failed_cycles = u64::from(failed);
    }

    /// Adds another tally to this one.
    pub fn add(&mut self, more: &Self) {
        self.cycles += more.cycles;
        self.graceful_cycles += more.graceful_cycles;
        self.process_kills += more.process_kills;
        self.pauses += more.pauses;
        self.pauses_past_lease += more.pauses_past_lease;
        self.claims += more.claims;
        self.acked_ops += more.acked_ops;
        self.lost_acked_ops += more.lost_acked_ops;
        self.refused_ops += more.refused_ops;
        self.stale_ops += more.stale_ops;
        self.unknown_ops += more.unknown_ops;
        self.unknown_kept += more.unknown_kept;
        self.corrupt_cycles += more.corrupt_cycles;
        self.failed_cycles += more.failed_cycles;
        for (activity, count) in &more.kills_by_activity {
            *self.kills_by_activity.entry(*activity).or_default() += count;
        }
        for (moment, tally) in &more.moments {
            let sum = self.moments.entry(*moment).or_default();
            sum.sent += tally.sent;
            sum.landed += tally.landed;
        }
        for (kind, count) in &more.findings {
            *self.findings.entry(*kind).or_default() += count;
        }
        for (engine, count) in &more.engines {
            *self.engines.entry(engine.clone()).or_default() += count;
        }
        self.first_loss_us = earlier(self.first_loss_us, more.first_loss_us);
    }
}

fn count<T>(all: impl Iterator<Item = T>) -> u64 {
    u64::try_from(all.count()).unwrap_or(u64::MAX)
}

/// Whether somebody took the claim back that the stopped worker held.
fn lost_its_claim(cycle: &Cycle<'_>, pause: &Pause) -> bool {
    cycle.lives.iter().flat_map(|life| &life.ops).any(|op| {
        (op.kind, op.state) == (Kind::TakeBack, State::Acked)
            && (op.task, op.token) == (pause.task, pause.token)
    })
}

/// The earlier of two times, either of which may never have come.
pub(super) fn earlier(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}
