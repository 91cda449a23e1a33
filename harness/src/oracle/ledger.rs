//! Acknowledged operations are there, refused ones are not, and nothing is there that nobody sent.

use super::Cycle;
use super::tally::earlier;
use crate::history::content::CommitRow;
use crate::history::{Observation, Op};
use crate::verdict::{Finding, FindingKind};
use killpoint_worker::ledger::State;
use std::collections::{HashMap, HashSet};

/// Everything that was sent to one database, by session.
#[derive(Clone, Debug, Default)]
pub(super) struct Sessions {
    sent: HashMap<i64, Vec<Op>>,
    /// Sessions whose operations are to be found among the newly seen commits.
    open: HashSet<i64>,
    /// Payload sizes, as asked for.
    payload_bytes: [u32; 2],
}

/// What the ledger gave.
pub(super) struct LedgerJudgement {
    pub(super) findings: Vec<Finding>,
    /// Acknowledged and not there.
    pub(super) lost: u64,
    /// When the first of those was sent, µs from the cycle's beginning.
    pub(super) first_loss_us: Option<u64>,
    /// Unknown and there.
    pub(super) unknown_kept: u64,
}

/// Findings of one kind that are told in full for one cycle.
const TOLD_MAX: usize = 5;

impl Sessions {
    /// Takes in what the processes of a cycle sent.
    pub(super) fn add(&mut self, cycle: &Cycle<'_>) {
        self.open.clear();
        for life in &cycle.lives {
            self.sent.insert(life.session, life.ops.clone());
            self.open.insert(life.session);
        }
        if let Some(life) = cycle.plan.lives.first() {
            self.payload_bytes = life.shape.payload_bytes;
        }
    }

    /// From now on, until the next cycle, every session's operations are expected.
    pub(super) fn expect_all_again(&mut self) {
        self.open = self.sent.keys().copied().collect();
    }

    /// The operation that a commit says it is.
    pub(super) fn op(&self, commit: &CommitRow) -> Option<&Op> {
        let index = usize::try_from(commit.op.checked_sub(1)?).ok()?;
        self.sent.get(&commit.session)?.get(index)
    }

    pub(super) fn payload_bytes(&self) -> [u32; 2] {
        self.payload_bytes
    }

    /// Compares the newly seen commits with what was sent.
    pub(super) fn judge(&self, cycle: &Cycle<'_>, seen: &Observation) -> LedgerJudgement {
        let mut told = Told { cycle, findings: Vec::new(), counts: HashMap::new() };
        let mut unknown_kept = 0;
        let mut there: HashSet<(i64, i64)> = HashSet::new();
        let mut last_op: HashMap<i64, i64> = HashMap::new();
        for commit in &seen.commits {
            let key = (commit.session, commit.op);
            if !there.insert(key) {
                told.add(FindingKind::AlienWrite, || format!("{} is there twice", name(commit)));
            }
            if let Some(kind) = self.judge_commit(commit, &mut told)
                && kind != State::Acked
            {
                unknown_kept += u64::from(kind != State::Refused);
            }
            let last = last_op.entry(commit.session).or_default();
            if commit.op < *last {
                told.add(FindingKind::OrderViolation, || {
                    format!("{} comes after operation {last} of its session", name(commit))
                });
            }
            *last = (*last).max(commit.op);
        }
        let (lost, first_loss_us) = self.judge_missing(seen, &there, &mut told);
        LedgerJudgement { findings: told.finish(), lost, first_loss_us, unknown_kept }
    }

    /// What its writer was told of the operation that a commit says it is.
    fn judge_commit(&self, commit: &CommitRow, told: &mut Told<'_, '_>) -> Option<State> {
        let Some(op) = self.op(commit) else {
            told.add(FindingKind::AlienWrite, || format!("{} was sent by nobody", name(commit)));
            return None;
        };
        if !self.open.contains(&commit.session) {
            told.add(FindingKind::AlienWrite, || {
                format!("{} turns up after its cycle was judged without it", name(commit))
            });
            return Some(op.state);
        }
        if op.kind.as_str() != commit.kind || i64::from(op.rows) != commit.rows {
            told.add(FindingKind::AlienWrite, || {
                let (kind, rows) = (op.kind.as_str(), op.rows);
                format!("{} was sent as {kind} of {rows} events", name(commit))
            });
        }
        match op.state {
            State::Refused => told.add(FindingKind::RefusedWritePresent, || {
                format!("{} was refused ({:?})", name(commit), op.reason)
            }),
            State::Acked if op.seq != commit.seq || op.task != commit.task => {
                told.add(FindingKind::OrderViolation, || {
                    let (seq, task) = (op.seq, op.task);
                    format!("{} was acknowledged as commit {seq} on task {task}", name(commit))
                });
            }
            State::Acked | State::Sent | State::Unknown => {}
        }
        Some(op.state)
    }

    /// What was acknowledged in the cycle and cannot be read from a damaged file.
    pub(super) fn judge_unreadable(
        &self,
        cycle: &Cycle<'_>,
        seen: &Observation,
    ) -> LedgerJudgement {
        let mut told = Told { cycle, findings: Vec::new(), counts: HashMap::new() };
        let there = seen.commits.iter().map(|commit| (commit.session, commit.op)).collect();
        let (lost, first_loss_us) = self.judge_missing(seen, &there, &mut told);
        LedgerJudgement { findings: told.finish(), lost, first_loss_us, unknown_kept: 0 }
    }

    fn judge_missing(
        &self,
        seen: &Observation,
        there: &HashSet<(i64, i64)>,
        told: &mut Told<'_, '_>,
    ) -> (u64, Option<u64>) {
        let mut first_us = None;
        let mut lost = 0;
        let mut open: Vec<i64> = self.open.iter().copied().collect();
        open.sort_unstable();
        for session in open {
            for (op, number) in self.sent[&session].iter().zip(1_i64..) {
                if op.state == State::Acked && !there.contains(&(session, number)) {
                    lost += 1;
                    first_us = earlier(first_us, Some(op.started_us));
                    told.add(FindingKind::LostAckedWrite, || {
                        let end = seen.commits.last().map_or(seen.since, |commit| commit.seq);
                        let (kind, task, seq) = (op.kind.as_str(), op.task, op.seq);
                        format!(
                            "session {session}, operation {number} ({kind} on task {task}) was \
                             acknowledged as commit {seq} and is not there; commits end at {end}"
                        )
                    });
                }
            }
        }
        (lost, first_us)
    }
}

/// A commit as findings call it.
fn name(commit: &CommitRow) -> String {
    let CommitRow { seq, session, op, kind, task, .. } = commit;
    format!("commit {seq} (session {session}, operation {op}, {kind} on task {task})")
}

/// Findings, of which only the first few of a kind are told in full.
struct Told<'a, 'b> {
    cycle: &'a Cycle<'b>,
    findings: Vec<Finding>,
    counts: HashMap<FindingKind, usize>,
}

impl Told<'_, '_> {
    fn add(&mut self, kind: FindingKind, detail: impl FnOnce() -> String) {
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        if *count <= TOLD_MAX {
            self.findings.push(self.cycle.finding(kind, &detail()));
        }
    }

    fn finish(mut self) -> Vec<Finding> {
        let mut more: Vec<(FindingKind, usize)> =
            self.counts.into_iter().filter(|(_, count)| *count > TOLD_MAX).collect();
        more.sort_unstable();
        for (kind, count) in more {
            let more = count - TOLD_MAX;
            self.findings.push(self.cycle.finding(kind, &format!("and {more} more of the kind")));
        }
        self.findings
    }
}
