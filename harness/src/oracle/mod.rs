//! Judging a history: what was promised against what was seen.
//!
//! Each check stands in a module of its own and adds [`Finding`]s; the verdict is their merge, by
//! the one rule of [`Verdict::merge`]. Nothing here runs a process or opens a database, so a stored
//! history gives the same verdict in any year, or a sharper one when the oracle has improved.
//!
//! | module     | promise                                                            |
//! |------------|--------------------------------------------------------------------|
//! | `ledger`   | acked is there, refused is not, nothing else is, in sending order  |
//! | `model`    | replayed in commit order, each row is right; no second owner       |
//! | `power`    | after a power cut: a prefix of the commits, each promise kept       |
//! | `recovery` | structure, foreign keys, two recoveries alike, checkpoint twice    |
//! | `delivery` | every fault landed, every setting took, every process ended well   |
//!
//! In: the lines of one cycle after another. Out: findings, and a [`Tally`] of what was judged.

mod delivery;
mod ledger;
mod model;
pub mod power;
mod recovery;
mod tally;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;

pub use tally::{MomentTally, Tally};

use crate::history::{Life, Line, Observation, Pause, Receipt};
use crate::plan::CyclePlan;
use crate::verdict::{Finding, FindingKind, Verdict};
use model::Model;

/// Judges the cycles of one database, in order.
#[derive(Clone, Debug, Default)]
pub struct Judge {
    model: Model,
    sessions: ledger::Sessions,
}

/// What one cycle gave.
#[derive(Debug)]
pub struct CycleJudgement {
    /// What was found, worst first within each check.
    pub findings: Vec<Finding>,
    /// What was judged.
    pub tally: Tally,
}

impl CycleJudgement {
    /// The cycle's own verdict.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        Verdict::merge(
            std::iter::once(Verdict::Pass)
                .chain(self.findings.iter().map(|finding| finding.kind.verdict())),
        )
    }
}

/// One cycle's lines, sorted.
pub(crate) struct Cycle<'a> {
    pub(crate) plan: &'a CyclePlan,
    pub(crate) lives: Vec<&'a Life>,
    pub(crate) receipts: Vec<&'a Receipt>,
    pub(crate) pauses: Vec<&'a Pause>,
    pub(crate) seen: Option<&'a Observation>,
}

impl<'a> Cycle<'a> {
    fn of(plan: &'a CyclePlan, lines: &'a [Line]) -> Self {
        let mut cycle =
            Self { plan, lives: Vec::new(), receipts: Vec::new(), pauses: Vec::new(), seen: None };
        for line in lines {
            match line {
                Line::Life(life) => cycle.lives.push(life),
                Line::Killed(receipt) => cycle.receipts.push(receipt),
                Line::Paused(pause) => cycle.pauses.push(pause),
                Line::Observed(seen) => cycle.seen = Some(seen),
                Line::Header(_) | Line::Planned(_) | Line::Timed(_) | Line::End(_) => {}
            }
        }
        cycle
    }

    /// A finding of this cycle.
    pub(crate) fn finding(&self, kind: FindingKind, detail: &str) -> Finding {
        let CyclePlan { generation, cycle, .. } = self.plan;
        Finding { kind, detail: format!("database {generation}, cycle {cycle}: {detail}") }
    }
}

impl Judge {
    /// Judges the next cycle of the database.
    pub fn cycle(&mut self, plan: &CyclePlan, lines: &[Line]) -> CycleJudgement {
        let cycle = Cycle::of(plan, lines);
        let mut findings = delivery::judge(&cycle);
        let mut tally = Tally::of(&cycle);
        match cycle.seen {
            None => findings.push(cycle.finding(
                FindingKind::LedgerCutShort,
                "the history ends before the cycle's recovery was seen",
            )),
            Some(seen) => {
                findings.extend(recovery::judge(&cycle, seen));
                findings.extend(self.content(&cycle, seen, &mut tally));
            }
        }
        tally.count(&findings);
        CycleJudgement { findings, tally }
    }

    /// Judges what a process left that was struck by a fault, and not how it ended.
    ///
    /// An error that a call was made to fail with may well end the process: what matters is that
    /// nothing acknowledged is lost and nothing refused is there.
    pub fn after_fault(&mut self, plan: &CyclePlan, lines: &[Line]) -> Vec<Finding> {
        let cycle = Cycle::of(plan, lines);
        let Some(seen) = cycle.seen else {
            let text = "what recovery gave was not seen";
            return vec![cycle.finding(FindingKind::LedgerCutShort, text)];
        };
        let mut findings = recovery::judge(&cycle, seen);
        findings.extend(self.content(&cycle, seen, &mut Tally::default()));
        findings
    }

    fn content(
        &mut self,
        cycle: &Cycle<'_>,
        seen: &Observation,
        tally: &mut Tally,
    ) -> Vec<Finding> {
        let mut findings = Vec::new();
        self.sessions.add(cycle);
        if seen.unreadable.is_some() {
            let ledger = self.sessions.judge_unreadable(cycle, seen);
            tally.lost_acked_ops += ledger.lost;
            tally.first_loss_us = tally::earlier(tally.first_loss_us, ledger.first_loss_us);
            return ledger.findings;
        }
        if seen.since != self.model.last_seq() {
            findings.push(cycle.finding(
                FindingKind::HistoryChanged,
                &format!(
                    "what was there up to commit {} is there no more, or is changed",
                    self.model.last_seq()
                ),
            ));
            self.model = Model::default();
            self.sessions.expect_all_again();
        }
        let ledger = self.sessions.judge(cycle, seen);
        tally.lost_acked_ops += ledger.lost;
        tally.first_loss_us = tally::earlier(tally.first_loss_us, ledger.first_loss_us);
        tally.unknown_kept += ledger.unknown_kept;
        findings.extend(ledger.findings);
        findings.extend(self.model.judge(cycle, seen, &self.sessions));
        findings
    }
}

/// What a whole run lacks before its silence could count as a pass.
#[must_use]
pub fn judge_whole(plan: &crate::plan::Plan, tally: &Tally, interrupted: bool) -> Vec<Finding> {
    let mut findings = delivery::judge_whole(plan, tally);
    if interrupted {
        findings.push(Finding {
            kind: FindingKind::Interrupted,
            detail: format!("stopped after {} cycles", tally.cycles),
        });
    }
    findings
}
