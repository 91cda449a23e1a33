//! Sending the kills of a cycle, each at its moment, each with a receipt.
//!
//! A kill at a moment waits until some victim is seen there and sends SIGKILL at once. The victim
//! may have moved on when the signal lands; the receipt says what it was doing when it ended, as
//! the ledger has it, and nothing else is counted.

use super::error::RunError;
use super::supervise::Child;
use super::wait;
use crate::history::Receipt;
use crate::plan::{CyclePlan, KillPlan, Moment};
use killpoint_worker::ledger::{Activity, Kind, Ledger, State};
use std::time::{Duration, Instant};

/// The kills of one cycle.
pub(super) struct Killer<'a> {
    plan: &'a CyclePlan,
    children: &'a [Child],
    ledger: &'a Ledger,
    began: Instant,
    alive: Vec<bool>,
    receipts: Vec<Receipt>,
}

impl<'a> Killer<'a> {
    /// The cycle's clock starts now.
    pub(super) fn new(plan: &'a CyclePlan, children: &'a [Child], ledger: &'a Ledger) -> Self {
        let alive = vec![true; children.len()];
        Self { plan, children, ledger, began: Instant::now(), alive, receipts: Vec::new() }
    }

    pub(super) fn began(&self) -> Instant {
        self.began
    }

    pub(super) fn into_receipts(self) -> Vec<Receipt> {
        self.receipts
    }

    /// Each planned kill in its turn.
    pub(super) fn kill_on_the_way(&mut self) -> Result<(), RunError> {
        for (index, kill) in self.plan.kills.iter().enumerate() {
            let at = self.began + Duration::from_micros(kill.at_us);
            wait::until_time(at, || self.nothing_to_wait_for());
            let end = self.began + Duration::from_micros(self.plan.run_us);
            let met = self.await_moment(
                kill,
                end.max(at + Duration::from_millis(self.plan.moment_wait_ms.into())),
            );
            // Nobody came to that moment in time: whoever is first in the plan goes instead.
            let victim = met.or_else(|| self.first_alive(kill, |_| true));
            if let Some(slot) = victim {
                self.send(slot, kill.moment, Some(index), met.is_some())?;
            }
        }
        Ok(())
    }

    /// Whether the cycle is over before its time: the disk is full, or everybody is gone.
    pub(super) fn nothing_to_wait_for(&self) -> bool {
        (0..self.children.len()).any(|slot| self.ledger.slot(slot).no_space())
            || self.children.iter().all(Child::is_gone)
    }

    /// Everybody who is left, at once.
    pub(super) fn kill_the_rest(&mut self) -> Result<(), RunError> {
        for slot in 0..self.children.len() {
            if self.alive[slot] {
                self.send(slot, Moment::Ending, None, true)?;
            }
        }
        Ok(())
    }

    fn await_moment(&self, kill: &KillPlan, deadline: Instant) -> Option<usize> {
        let mut victim = None;
        match kill.moment {
            Moment::Any | Moment::Ending => return self.first_alive(kill, |_| true),
            Moment::Transaction | Moment::Commit | Moment::Checkpoint => {
                wait::closely(deadline, || {
                    victim = self.first_alive(kill, |slot| {
                        kill.moment.is(self.ledger.slot(slot).activity())
                    });
                    victim.is_some()
                });
            }
            Moment::TakenBack => {
                let mut read: Vec<usize> =
                    (0..self.children.len()).map(|slot| self.ledger.slot(slot).used()).collect();
                wait::until(deadline, || {
                    victim = self.taken_back(&mut read);
                    victim.is_some()
                });
            }
        }
        victim
    }

    /// The first victim of the plan that is alive and at the moment.
    fn first_alive(&self, kill: &KillPlan, at_moment: impl Fn(usize) -> bool) -> Option<usize> {
        kill.victims.iter().copied().find(|slot| {
            self.alive[*slot]
                && self.ledger.slot(*slot).activity() != Activity::Closed
                && at_moment(*slot)
        })
    }

    /// Whose claim has been taken back since the entries counted in `read`.
    fn taken_back(&self, read: &mut [usize]) -> Option<usize> {
        for (slot, from) in read.iter_mut().enumerate() {
            let used = self.ledger.slot(slot).used().min(self.ledger.capacity());
            for entry in &self.ledger.entries(slot)[(*from).min(used)..used] {
                let Some(record) = entry.read() else { break };
                if record.state == State::Sent {
                    break;
                }
                *from += 1;
                let back = record.kind == Kind::TakeBack && record.state == State::Acked;
                let owner = back.then(|| self.owner(record.task, record.token)).flatten();
                if owner.is_some() {
                    return owner;
                }
            }
        }
        None
    }

    /// The living process that holds a claim by what its ledger says.
    fn owner(&self, task: i64, token: i64) -> Option<usize> {
        (0..self.children.len()).filter(|slot| self.alive[*slot]).find(|slot| {
            let used = self.ledger.slot(*slot).used().min(self.ledger.capacity());
            self.ledger.entries(*slot)[..used]
                .iter()
                .filter_map(killpoint_worker::ledger::Entry::read)
                .any(|r| {
                    r.kind == Kind::Claim
                        && r.state == State::Acked
                        && (r.task, r.token) == (task, token)
                })
        })
    }

    fn send(
        &mut self,
        slot: usize,
        moment: Moment,
        planned: Option<usize>,
        met: bool,
    ) -> Result<(), RunError> {
        self.alive[slot] = false;
        if !self.plan.kills_sent {
            return Ok(());
        }
        self.children[slot].kill()?;
        let at_us = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.receipts.push(Receipt {
            generation: self.plan.generation,
            cycle: self.plan.cycle,
            planned,
            slot,
            moment,
            met,
            at_us,
            // Known when the process is gone.
            activity: Activity::Opening,
        });
        Ok(())
    }
}
