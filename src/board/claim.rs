//! Claims: getting a task, keeping it, finishing it.
//!
//! The token decides, the lease only permits. Each claim of a task gets a token greater than all
//! before it, and every write under a claim names its token: if that is not the live claim's, the
//! write is refused whole. A lease that has expired permits anybody to take the claim back
//! (`dispatch`); until somebody does, the claim is live and its holder may go on. That is safe
//! because taking back and writing are transactions of one database: a write comes wholly before
//! the take-back, or it is refused. So no clock has to be right, and a wall clock that is set has
//! no part in it at all (`clock`).

use std::time::Duration;

use serde::Serialize;

use crate::board::clock::{Now, milliseconds};
use crate::board::link::{free_children, resting_place};
use crate::board::process::{Liveness, Process};
use crate::board::run::RunOutcome;
use crate::board::sql::{Ending, LiveRun, NewRun};
use crate::board::task::{Status, TaskId};
use crate::board::write::{Kind, Stop, Writing};
use crate::board::{Board, Commit, OpKey};
use crate::error::{Result, StoreError};

stored_integer! {
    /// The number of a claim of a task: 1, 2, 3, ... for each task.
    FencingToken
}

/// Who claims.
#[derive(Clone, Copy, Debug)]
pub struct Claimant<'a> {
    /// Its name. A task that names an assignee is given to one of that name alone.
    pub worker: &'a str,
    /// The process that will do the work, where it is to be watched: while it lives its claim is
    /// not given away, and when it is gone its claim is taken back before the lease ends.
    pub process: Option<Process>,
}

impl<'a> From<&'a str> for Claimant<'a> {
    /// One whose process nobody watches.
    fn from(worker: &'a str) -> Self {
        Self { worker, process: None }
    }
}

impl<'a> From<&'a String> for Claimant<'a> {
    fn from(worker: &'a String) -> Self {
        Self::from(worker.as_str())
    }
}

/// A claim that was made.
#[derive(Clone, Copy, Debug)]
#[must_use = "a claim whose token is lost blocks its task until the lease expires"]
pub struct Claim {
    /// The task.
    pub task: TaskId,
    /// Goes with every write under this claim.
    pub token: FencingToken,
    /// When others may take the claim back, in milliseconds since 1970 on the wall clock, if
    /// nobody sets that.
    pub lease_until_ms: i64,
    /// The acknowledgement.
    pub commit: Commit,
}

/// A claim that was taken back: its task is to be claimed again.
#[derive(Clone, Debug, Serialize)]
#[must_use = "the acknowledgement in it cannot be checked after a crash if nobody records it"]
pub struct TakenBack {
    /// The task.
    #[serde(rename = "task_id")]
    pub task: TaskId,
    /// The token that is not live any more.
    pub token: FencingToken,
    /// Who held it.
    pub worker: String,
    /// The acknowledgement.
    #[serde(skip)]
    pub commit: Commit,
}

impl Board {
    /// Claims the ready task of the highest priority, and of these the oldest, among those that
    /// name the claimant or nobody.
    ///
    /// `None` means that there is none; nothing was written. The lease runs from the moment the
    /// write lock was got.
    ///
    /// # Errors
    ///
    /// As [`create_task`](Self::create_task).
    pub fn claim_next<'a>(
        &mut self,
        key: OpKey,
        claimant: impl Into<Claimant<'a>>,
        lease: Duration,
    ) -> Result<Option<Claim>> {
        let claimant = claimant.into();
        let written = self.write_if(Kind::Claim, key, |w| {
            let Some((task, newest)) = w.tx.next_ready(claimant.worker)? else { return Ok(None) };
            start_run(w, (task, newest), claimant, &Terms::of(lease)).map(Some)
        })?;
        Ok(written.map(claim_of))
    }

    /// Claims that task.
    ///
    /// # Errors
    ///
    /// - [`StoreError::NoSuchTask`], [`StoreError::NotClaimable`], [`StoreError::NotForYou`]:
    ///   nothing was written.
    /// - Others as [`create_task`](Self::create_task).
    pub fn claim<'a>(
        &mut self,
        key: OpKey,
        task: TaskId,
        claimant: impl Into<Claimant<'a>>,
        lease: Duration,
    ) -> Result<Claim> {
        let claimant = claimant.into();
        let written = self.write(Kind::Claim, key, |w| {
            let row = w.tx.task(task)?.ok_or(StoreError::NoSuchTask { task })?;
            if row.status != Status::Ready {
                return Err(StoreError::NotClaimable { task, status: row.status }.into());
            }
            match row.assignee {
                Some(assignee) if assignee != claimant.worker => {
                    Err(StoreError::NotForYou { task, assignee }.into())
                }
                _ => start_run(w, (task, row.fence), claimant, &Terms::of(lease)),
            }
        })?;
        Ok(claim_of(written))
    }

    /// Says that the holder of the claim is alive: the lease now runs `lease` from now, which may
    /// be shorter than before. No event is appended.
    ///
    /// # Errors
    ///
    /// - [`StoreError::StaleClaim`], [`StoreError::NoSuchTask`]: nothing was written.
    /// - Others as [`create_task`](Self::create_task).
    pub fn heartbeat(
        &mut self,
        key: OpKey,
        task: TaskId,
        token: FencingToken,
        lease: Duration,
    ) -> Result<Commit> {
        let ((), commit) = self.write(Kind::Heartbeat, key, |w| {
            w.about(task, Some(token));
            let Until { wall_ms, boot_ms } = Until::after(w.now, lease);
            let until = (w.boot_id, boot_ms);
            if w.tx.extend_run((task, token), wall_ms, until, w.seq)? {
                Ok(())
            } else {
                Err(w.stale(task, token))
            }
        })?;
        Ok(commit)
    }

    /// Ends the claim and the task with it: the task is done and has `result`. Tasks that waited
    /// for nothing else become ready.
    ///
    /// # Errors
    ///
    /// As [`heartbeat`](Self::heartbeat).
    pub fn complete(
        &mut self,
        key: OpKey,
        task: TaskId,
        token: FencingToken,
        result: &str,
    ) -> Result<Commit> {
        let ((), commit) = self.write(Kind::Complete, key, |w| {
            end_run(w, (task, token), RunOutcome::Completed, Ending::default())?;
            w.tx.set_done(task, result, w.seq)?;
            w.event(task, Some(token), "completed", result)?;
            free_children(w, task)
        })?;
        Ok(commit)
    }

    /// Ends the claim, and has `result` wait for approval.
    ///
    /// # Errors
    ///
    /// As [`heartbeat`](Self::heartbeat).
    pub fn submit(
        &mut self,
        key: OpKey,
        task: TaskId,
        token: FencingToken,
        result: &str,
    ) -> Result<Commit> {
        let ((), commit) = self.write(Kind::Submit, key, |w| {
            end_run(w, (task, token), RunOutcome::Submitted, Ending::default())?;
            refund(w, (task, token))?;
            w.tx.set_status(task, Status::Review, (None, None), w.seq)?;
            w.tx.set_result(task, result)?;
            w.event(task, Some(token), "submitted", result)
        })?;
        Ok(commit)
    }

    /// Gives the claim up: the task can be claimed again at once, and this counts as no failure.
    ///
    /// # Errors
    ///
    /// As [`heartbeat`](Self::heartbeat).
    pub fn release(
        &mut self,
        key: OpKey,
        task: TaskId,
        token: FencingToken,
        reason: &str,
    ) -> Result<Commit> {
        let ((), commit) = self.write(Kind::Release, key, |w| {
            let ending = Ending { summary: Some(reason), error: None };
            end_run(w, (task, token), RunOutcome::Released, ending)?;
            refund(w, (task, token))?;
            give_back(w, task)?;
            w.event(task, Some(token), "released", reason)
        })?;
        Ok(commit)
    }

    /// Takes a claim back that is still within its lease, for that reason. For people: nobody is
    /// stopped by it, and the holder learns of it by its next write being refused.
    ///
    /// # Errors
    ///
    /// - [`StoreError::WorkerLives`]: the claim names its process, and that is alive. Stop it
    ///   first, or let a dispatcher do so.
    /// - Others as [`heartbeat`](Self::heartbeat).
    pub fn take_back(
        &mut self,
        key: OpKey,
        task: TaskId,
        token: FencingToken,
        reason: &str,
    ) -> Result<TakenBack> {
        let (worker, commit) = self.write(Kind::TakeBack, key, |w| {
            let run = w.tx.live_run(task)?.filter(|run| run.token == token);
            let run = run.ok_or_else(|| w.stale(task, token))?;
            if let Some(process) = run.process.filter(|_| holder_lives(w, &run)) {
                return Err(StoreError::WorkerLives { task, token, pid: process.pid }.into());
            }
            take_back(w, (task, token), reason)?;
            Ok(run.worker)
        })?;
        Ok(TakenBack { task, token, worker, commit })
    }

    /// Takes back the claim whose lease expired longest ago, and makes its task ready. One that
    /// names its process is passed over while that lives.
    ///
    /// `None` means that there is none; nothing was written.
    ///
    /// # Errors
    ///
    /// As [`create_task`](Self::create_task).
    pub fn take_back_expired(&mut self, key: OpKey) -> Result<Option<TakenBack>> {
        let written = self.write_if(Kind::TakeBack, key, |w| {
            let expired = w.tx.expired_runs(w.boot_id, w.now.boot_ms)?;
            let Some(run) = expired.into_iter().find(|run| !holder_lives(w, run)) else {
                return Ok(None);
            };
            take_back(w, (run.task, run.token), LEASE_EXPIRED)?;
            Ok(Some(run))
        })?;
        Ok(written.map(|(run, commit)| TakenBack {
            task: run.task,
            token: run.token,
            worker: run.worker,
            commit,
        }))
    }
}

/// The reason of a claim that was taken back because nobody extended it.
pub const LEASE_EXPIRED: &str = "lease expired";

/// What a claim is but for its acknowledgement.
pub(super) type Started = (TaskId, FencingToken, i64);

/// What a claim is made for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) lease: Duration,
    pub(super) epoch: Option<i64>,
    pub(super) max_runtime_ms: Option<i64>,
}

impl Terms {
    fn of(lease: Duration) -> Self {
        Self { lease, epoch: None, max_runtime_ms: None }
    }
}

/// When a lease ends, on both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Until {
    pub(super) wall_ms: i64,
    pub(super) boot_ms: i64,
}

impl Until {
    pub(super) fn after(now: Now, lease: Duration) -> Self {
        let lease = milliseconds(lease);
        Self {
            wall_ms: now.wall_ms.saturating_add(lease),
            boot_ms: now.boot_ms.saturating_add(lease),
        }
    }
}

/// Hands out the next token of a task that is ready. `newest` is the newest one so far.
pub(super) fn start_run(
    w: &mut Writing<'_>,
    (task, newest): (TaskId, FencingToken),
    claimant: Claimant<'_>,
    terms: &Terms,
) -> Result<Started, Stop> {
    let token = FencingToken::new(newest.get().saturating_add(1));
    let until = Until::after(w.now, terms.lease);
    w.about(task, Some(token));
    w.tx.set_running(task, token, w.seq)?;
    let run = NewRun {
        task,
        token,
        worker: claimant.worker,
        boot_id: w.boot_id,
        lease_until_ms: until.wall_ms,
        lease_until_boot_ms: until.boot_ms,
        started_boot_ms: w.now.boot_ms,
        process: claimant.process,
        epoch: terms.epoch,
        max_runtime_ms: terms.max_runtime_ms,
    };
    w.tx.insert_run(&run, w.seq)?;
    w.event(task, Some(token), "claimed", claimant.worker)?;
    Ok((task, token, until.wall_ms))
}

/// Ends the live claim of that token, and names it as what the write is about.
pub(super) fn end_run(
    w: &mut Writing<'_>,
    (task, token): (TaskId, FencingToken),
    outcome: RunOutcome,
    ending: Ending<'_>,
) -> Result<(), Stop> {
    w.about(task, Some(token));
    if w.tx.end_run((task, token), outcome, ending, w.seq)? {
        Ok(())
    } else {
        Err(w.stale(task, token))
    }
}

/// Puts a task whose claim has ended where it can be claimed again.
pub(super) fn give_back(w: &mut Writing<'_>, task: TaskId) -> Result<(), Stop> {
    let status = resting_place(w, task)?;
    w.tx.set_status(task, status, (None, None), w.seq)?;
    Ok(())
}

/// Ends a claim that its holder did not end.
pub(super) fn take_back(
    w: &mut Writing<'_>,
    claim: (TaskId, FencingToken),
    reason: &str,
) -> Result<(), Stop> {
    let ending = Ending { summary: Some(reason), error: None };
    end_run(w, claim, RunOutcome::TakenBack, ending)?;
    refund(w, claim)?;
    give_back(w, claim.0)?;
    w.event(claim.0, Some(claim.1), "taken-back", reason)
}

/// Takes back what the start of a run was charged with, if a dispatcher started it.
pub(super) fn refund(w: &Writing<'_>, (task, token): (TaskId, FencingToken)) -> Result<(), Stop> {
    if w.tx.epoch_of(task, token)?.is_none() {
        return Ok(());
    }
    let mut counts = w.tx.counts(task)?;
    if counts.failures > 0 {
        counts.failures -= 1;
        w.tx.set_counts(task, counts, w.seq)?;
    }
    Ok(())
}

/// Whether the process of a claim is there, as far as can be seen from here.
pub(super) fn holder_lives(w: &Writing<'_>, run: &LiveRun) -> bool {
    run.boot_id == w.boot_id
        && run.process.is_some_and(|process| process.liveness() == Liveness::Alive)
}

fn claim_of(((task, token, lease_until_ms), commit): (Started, Commit)) -> Claim {
    Claim { task, token, lease_until_ms, commit }
}

#[cfg(test)]
mod tests;
