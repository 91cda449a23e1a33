//! Reconciliation: tasks that do not stand where their runs and parents say.
//!
//! No write of a board leaves such a task. They come with an import, from a program that wrote to
//! the file by itself, or from a repair. So nothing here is done by itself: a dry run makes a plan,
//! a person looks at it, and it is carried out as it is or not at all.
//!
//! In: the board. Out: a [`Plan`], and what [`Board::reconcile`] made of it.
//! Not here: claims whose worker is gone, which is the dispatcher's daily work.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::board::claim::FencingToken;
use crate::board::link::{free_children, resting_place};
use crate::board::run::RunOutcome;
use crate::board::sql::{Ending, Tx};
use crate::board::task::{Status, TaskId};
use crate::board::write::{Kind, Stop, Writing};
use crate::board::{Board, Commit, CommitSeq, OpKey};
use crate::error::{Result, StoreError};
use crate::sqlite::backup::Rotation;
use crate::sqlite::verify::Depth;

/// The format of a plan in JSON.
pub const PLAN_FORMAT: u32 = 1;

stored_name! {
    /// What is to be done with a task.
    Action {
        /// It is done: its work was completed.
        Complete = "complete",
        /// Nobody holds it: it goes where it can be claimed, or waits for its parents. A run that
        /// is live without reason ends.
        Release = "release",
        /// Nothing.
        Skip = "skip",
    }
}

stored_name! {
    /// Why.
    Reason {
        /// Its newest run was completed, and it is not done.
        RunCompleted = "run_completed",
        /// It is said to run, and its newest run has ended otherwise.
        RunEnded = "run_ended",
        /// A run is live, and it does not run.
        NotRunning = "not_running",
        /// It is ready, and a parent is open.
        ParentsOpen = "parents_open",
        /// It waits, and no parent is open.
        ParentsDone = "parents_done",
        /// Somebody holds it.
        ActiveClaim = "active_claim",
        /// It is blocked until a review.
        ReviewGateBlocked = "review_gate_blocked",
        /// It is blocked for another reason.
        Blocked = "blocked",
    }
}

/// What was seen of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Where it stands.
    pub status: Status,
    /// The newest token.
    pub fence: FencingToken,
    /// How its newest run ended; `None`: it is live, or there is none.
    pub newest_outcome: Option<RunOutcome>,
    /// The token of its live run.
    pub live_token: Option<FencingToken>,
    /// Whether the lease of the live run is over and its process, if it is known, is gone.
    pub live_run_is_over: bool,
    /// Whether a parent is open.
    pub parents_open: bool,
    /// Why it is blocked.
    pub block_reason: Option<String>,
}

/// One task that does not stand where it should.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The task.
    pub task_id: TaskId,
    /// What was seen.
    pub evidence: Evidence,
    /// What is to be done.
    pub proposed_action: Action,
    /// Why.
    pub reason: Reason,
    /// Whether carrying it out changes anything without a person's further word.
    pub safe_to_apply: bool,
}

/// A dry run's answer: what would be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`PLAN_FORMAT`].
    pub format: u32,
    /// The newest commit when it was made.
    pub commit_seq: CommitSeq,
    /// That commit's link in the chain over all commits: another board, or one that was rolled
    /// back, has another. Empty on a board without commits.
    pub board_link: String,
    /// Digest of all above and of the findings, in hexadecimal digits.
    pub plan_hash: String,
    /// What was found.
    pub findings: Vec<Finding>,
}

/// What carrying out a plan did.
#[derive(Clone, Debug)]
pub struct Reconciled {
    /// The tasks that were changed.
    pub changed: Vec<TaskId>,
    /// The acknowledgement; `None`: it was carried out before.
    pub commit: Option<Commit>,
}

impl Board {
    /// Looks for tasks that do not stand where they should, and says what should be done.
    pub fn plan_reconciliation(&self) -> Result<Plan> {
        self.at_one_moment(|board| {
            let boot_id = board.clock.boot_id();
            let boot_ms = board.clock.now().boot_ms;
            board.read("look for what does not fit", |tx| {
                let commit_seq = tx.last_commit()?;
                let board_link = tx.link_text(commit_seq)?.unwrap_or_default();
                let findings = findings(tx, boot_id, boot_ms)?;
                Ok(Plan::new(commit_seq, board_link, findings))
            })
        })
    }

    /// Carries a plan out: all of it in one transaction, or nothing.
    ///
    /// The board is verified first and a verified backup made of it (`backup`, a directory), and
    /// verified again after. A plan that was carried out before changes nothing.
    ///
    /// # Errors
    ///
    /// - [`StoreError::PlanOutdated`]: what was found then is not what is found now, or it is
    ///   another board.
    /// - [`StoreError::Invalid`]: the plan is not as it was made.
    /// - [`StoreError::Unsound`]: the board, or the backup, is not sound.
    /// - Others as [`create_task`](Self::create_task).
    pub fn reconcile(&mut self, plan: &Plan, backup: &Path) -> Result<Reconciled> {
        let as_made = Plan::new(plan.commit_seq, plan.board_link.clone(), plan.findings.clone());
        if plan.format != PLAN_FORMAT || as_made.plan_hash != plan.plan_hash {
            let what = "the plan".to_owned();
            return Err(StoreError::Invalid { what, wanted: "as it was made: make it again" });
        }
        let key = plan.key();
        if self.commit_of(key)?.is_some() {
            return Ok(Reconciled { changed: Vec::new(), commit: None });
        }
        self.require_sound()?;
        std::fs::create_dir_all(backup)
            .map_err(|source| StoreError::File { path: backup.to_owned(), source })?;
        self.db.backup(backup, Rotation::default())?;
        let (changed, commit) = self.write(Kind::Reconcile, key, |w| carry_out(w, plan))?;
        self.require_sound()?;
        Ok(Reconciled { changed, commit: Some(commit) })
    }
}

impl Board {
    fn require_sound(&self) -> Result<()> {
        let report = self.db.verify(Depth::Full)?;
        report.first().map_or(Ok(()), |found| Err(StoreError::Unsound { found: found.to_owned() }))
    }
}

impl Plan {
    fn new(commit_seq: CommitSeq, board_link: String, findings: Vec<Finding>) -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(&PLAN_FORMAT.to_le_bytes());
        hash.update(&commit_seq.get().to_le_bytes());
        hash.update(board_link.as_bytes());
        // A list of plain values has one spelling.
        hash.update(serde_json::to_string(&findings).unwrap_or_default().as_bytes());
        let plan_hash = hash.finalize().to_hex().to_string();
        Self { format: PLAN_FORMAT, commit_seq, board_link, plan_hash, findings }
    }

    /// Names the carrying out of this very plan.
    fn key(&self) -> OpKey {
        let digits = self.plan_hash.get(..15).unwrap_or_default();
        let session = i64::from_str_radix(digits, 16).unwrap_or(0);
        // Negative, so that no sender counts there.
        OpKey { session: -1 - session, op: 1 }
    }

    /// How many findings are to be acted upon.
    #[must_use]
    pub fn actions(&self) -> usize {
        self.findings.iter().filter(|finding| finding.safe_to_apply).count()
    }
}

fn findings(tx: Tx<'_>, boot_id: &str, boot_ms: i64) -> rusqlite::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for task_id in tx.suspects()? {
        let Some(evidence) = evidence(tx, task_id, boot_id, boot_ms)? else { continue };
        if let Some((proposed_action, reason)) = judge(&evidence) {
            let safe_to_apply = proposed_action != Action::Skip;
            findings.push(Finding { task_id, evidence, proposed_action, reason, safe_to_apply });
        }
    }
    Ok(findings)
}

fn evidence(
    tx: Tx<'_>,
    task: TaskId,
    boot_id: &str,
    boot_ms: i64,
) -> rusqlite::Result<Option<Evidence>> {
    let Some(row) = tx.task(task)? else { return Ok(None) };
    let live = tx.live_run(task)?;
    let over = live.as_ref().is_some_and(|run| run.is_over(boot_id, boot_ms));
    Ok(Some(Evidence {
        status: row.status,
        fence: row.fence,
        newest_outcome: tx.newest_outcome(task)?.and_then(|(outcome, _)| outcome),
        live_token: live.map(|run| run.token),
        live_run_is_over: over,
        parents_open: tx.parents_open(task)?,
        block_reason: row.reason.filter(|_| row.status == Status::Blocked),
    }))
}

/// What is to be done with a task of which that was seen; `None`: it stands where it should.
fn judge(seen: &Evidence) -> Option<(Action, Reason)> {
    use Action::{Complete, Release, Skip};
    let completed = seen.newest_outcome == Some(RunOutcome::Completed);
    match (seen.status, seen.live_token) {
        (Status::Running, Some(_)) => None,
        (_, Some(_)) if !seen.live_run_is_over => Some((Skip, Reason::ActiveClaim)),
        (_, Some(_)) => Some((Release, Reason::NotRunning)),
        (Status::Running, None) if completed && seen.parents_open => {
            Some((Skip, Reason::ParentsOpen))
        }
        (Status::Running, None) if completed => Some((Complete, Reason::RunCompleted)),
        (Status::Running, None) => Some((Release, Reason::RunEnded)),
        (Status::Blocked, None) if completed => {
            let gate = seen.block_reason.as_deref().is_some_and(|why| why.contains("review"));
            Some((Skip, if gate { Reason::ReviewGateBlocked } else { Reason::Blocked }))
        }
        (Status::Triage | Status::Todo | Status::Scheduled | Status::Ready, None) if completed => {
            Some(if seen.parents_open {
                (Skip, Reason::ParentsOpen)
            } else {
                (Complete, Reason::RunCompleted)
            })
        }
        (Status::Ready, None) if seen.parents_open => Some((Release, Reason::ParentsOpen)),
        (Status::Todo, None) if !seen.parents_open => Some((Release, Reason::ParentsDone)),
        _ => None,
    }
}

fn carry_out(w: &mut Writing<'_>, plan: &Plan) -> Result<Vec<TaskId>, Stop> {
    let link = w.tx.link_text(plan.commit_seq)?.unwrap_or_default();
    let found = findings(w.tx, w.boot_id, w.now.boot_ms)?;
    if link != plan.board_link || found != plan.findings {
        let now = CommitSeq::new(w.seq.get() - 1);
        return Err(StoreError::PlanOutdated { planned: plan.commit_seq, now }.into());
    }
    let mut changed = Vec::new();
    for finding in plan.findings.iter().filter(|finding| finding.safe_to_apply) {
        act(w, finding)?;
        changed.push(finding.task_id);
    }
    w.about(changed.first().copied().unwrap_or_default(), None);
    Ok(changed)
}

fn act(w: &mut Writing<'_>, finding: &Finding) -> Result<(), Stop> {
    let Finding { task_id: task, evidence, proposed_action, reason, .. } = finding;
    let (task, why) = (*task, format!("{proposed_action}: {reason}"));
    match proposed_action {
        Action::Skip => return Ok(()),
        Action::Complete => {
            let said = w.tx.newest_outcome(task)?.and_then(|(_, summary)| summary);
            let kept = w.tx.task(task)?.and_then(|row| row.result);
            w.tx.set_done(task, &kept.or(said).unwrap_or_default(), w.seq)?;
        }
        Action::Release => {
            if let Some(token) = evidence.live_token {
                let ending = Ending { summary: Some(&why), error: None };
                w.tx.end_run((task, token), RunOutcome::TakenBack, ending, w.seq)?;
            } else {
                let status = resting_place(w, task)?;
                w.tx.set_status(task, status, (None, None), w.seq)?;
            }
        }
    }
    w.event(task, evidence.live_token, "reconciled", &why)?;
    if *proposed_action == Action::Complete { free_children(w, task) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
