//! One round of the dispatcher.
//!
//! In this order: renew the lease; learn how workers ended; take back what nobody keeps alive, and
//! stop first whoever still works on it; make ready what is due; start workers. Each step is a
//! transaction of its own that names the epoch, so a round that is cut short anywhere leaves a
//! board on which the next can go on.

use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use serde::Serialize;

use super::breaker::{Fault, Next, after};
use super::lease::{Held, OfficeLock, Taken, in_office};
use super::spawn::{Job, Verdict, claim_name, spawn};
use super::stop::{Stopped, of_claim, stop};
use super::{DispatchOptions, Limits};
use crate::board::claim::{Claimant, FencingToken, LEASE_EXPIRED, Terms, end_run, start_run};
use crate::board::clock::milliseconds;
use crate::board::link::resting_place;
use crate::board::process::{Liveness, Process};
use crate::board::run::RunOutcome;
use crate::board::sql::{Ending, LiveRun};
use crate::board::task::{Status, TaskId};
use crate::board::write::{Kind, Stop, Writing};
use crate::board::{Board, OpKey, Session};
use crate::error::{Result, StoreError};

/// How many tasks that are due one write makes ready.
const DUE_AT_ONCE: u32 = 256;

/// How long the start of a program may take.
const BEING_STARTED_MS: i64 = 5_000;

/// A claim that a round ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ended {
    /// The task.
    #[serde(rename = "task_id")]
    pub task: TaskId,
    /// The claim.
    pub token: FencingToken,
    /// Who held it.
    pub worker: String,
    /// How.
    pub outcome: RunOutcome,
    /// Why.
    pub error: String,
    /// Where the task stands now.
    pub status: Status,
}

/// A claim that should end, and whose worker could not be stopped: it keeps its claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Deferred {
    /// The task.
    #[serde(rename = "task_id")]
    pub task: TaskId,
    /// The claim.
    pub token: FencingToken,
    /// Who does not end.
    pub pids: Vec<i32>,
}

/// A worker that was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Started {
    /// The task.
    #[serde(rename = "task_id")]
    pub task: TaskId,
    /// The claim.
    pub token: FencingToken,
    /// Its process.
    pub pid: i32,
}

/// What a round did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tick {
    /// Claims that were ended, in that order.
    pub ended: Vec<Ended>,
    /// Claims whose worker could not be stopped.
    pub deferred: Vec<Deferred>,
    /// Tasks that became ready because they were due.
    pub promoted: Vec<TaskId>,
    /// Workers that were started.
    pub started: Vec<Started>,
    /// Tasks that are ready and were not started.
    pub ready: i64,
    /// Runs that are live.
    pub running: usize,
}

/// The dispatcher of a board.
#[derive(Debug)]
pub struct Dispatcher {
    board: Board,
    path: PathBuf,
    session: Session,
    options: DispatchOptions,
    epoch: i64,
    lock: Option<OfficeLock>,
    workers: Vec<Worker>,
}

/// A worker that this process started.
#[derive(Debug)]
struct Worker {
    task: TaskId,
    token: FencingToken,
    child: Child,
}

/// What is to be done about a live run.
#[derive(Debug)]
enum Need {
    /// It goes on.
    Nothing,
    /// Its process is known now.
    Adopt(Process),
    /// Its process is gone.
    End(Verdict),
    /// It is to be stopped first.
    Stop(Verdict),
}

impl Dispatcher {
    /// Takes the office of the board's dispatcher. `session` sends its writes, as `holder`.
    ///
    /// # Errors
    ///
    /// As [`Board::create_task`], and [`StoreError::File`] if the lock's file cannot be opened.
    pub fn take(
        mut board: Board,
        mut session: Session,
        holder: &str,
        options: DispatchOptions,
    ) -> Result<Taken<Self>> {
        let path = board.absolute_path();
        let lock = OfficeLock::try_get(&path)?;
        let key = session.next_key();
        let taken = board.take_office(key, holder, options.lease(), lock.is_some())?;
        Ok(match taken {
            Taken::Theirs(held) => Taken::Theirs(held),
            Taken::Ours(epoch) => {
                let workers = Vec::new();
                Taken::Ours(Self { board, path, session, options, epoch, lock, workers })
            }
        })
    }

    /// The number of this dispatcher: each board's first is 1.
    #[must_use]
    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// The board, for looking.
    #[must_use]
    pub fn board(&self) -> &Board {
        &self.board
    }

    pub(super) fn options(&self) -> &DispatchOptions {
        &self.options
    }

    /// The processes that this dispatcher has started and not seen end.
    pub(super) fn worker_pids(&self) -> impl Iterator<Item = u32> {
        self.workers.iter().map(|worker| worker.child.id())
    }

    /// Gives the office up. `orphan` is for one that started workers and will not be asked again:
    /// that nobody learns how they end is then held against none of them.
    ///
    /// # Errors
    ///
    /// As [`tick`](Self::tick). The lock is free in any case.
    pub fn resign(mut self, orphan: bool) -> Result<()> {
        self.board.resign_office(self.session.next_key(), self.epoch, orphan)
    }

    /// One round.
    ///
    /// # Errors
    ///
    /// [`StoreError::StaleDispatcher`]: another has taken over, and this one must not go on. Others
    /// as [`Board::create_task`]; the next round may do better.
    pub fn tick(&mut self) -> Result<Tick> {
        let mut tick = Tick::default();
        self.renew()?;
        for run in self.board.read("list the live runs", |tx| tx.live_runs())? {
            self.look_after(&run, &mut tick)?;
        }
        while let Some((promoted, _)) =
            self.board.promote_due(self.session.next_key(), DUE_AT_ONCE)?
        {
            tick.promoted.extend(promoted);
        }
        tick.running = self.board.read("list the live runs", |tx| tx.live_runs())?.len();
        self.start_workers(&mut tick)?;
        let counts = self.board.status_counts()?;
        tick.ready = counts.iter().find(|(of, _)| *of == Status::Ready).map_or(0, |(_, n)| *n);
        Ok(tick)
    }

    #[cfg(test)]
    pub(super) fn start_nothing(&mut self) {
        self.options.max_spawn = 0;
    }

    #[cfg(test)]
    pub(super) fn end_for_test(
        &mut self,
        run: &LiveRun,
        verdict: &Verdict,
        tick: &mut Tick,
    ) -> Result<()> {
        self.end(run, verdict, tick)
    }

    #[cfg(test)]
    pub(super) fn start_for_test(&mut self, tick: &mut Tick) -> Result<()> {
        self.start_workers(tick)
    }

    #[cfg(test)]
    pub(super) fn adopt_for_test(&mut self, run: &LiveRun, process: Process) -> Result<()> {
        self.tell_process((run.task, run.token), process, "adopted")
    }

    fn renew(&mut self) -> Result<()> {
        if self.lock.is_none() {
            // Taken over from one that was stopped: its lock is free once it has gone.
            self.lock = OfficeLock::try_get(&self.path)?;
        }
        let key = self.session.next_key();
        self.board.renew_office(key, self.epoch, self.options.lease())
    }

    fn look_after(&mut self, run: &LiveRun, tick: &mut Tick) -> Result<()> {
        match self.need(run) {
            Need::Nothing => Ok(()),
            Need::Adopt(process) => self.tell_process((run.task, run.token), process, "adopted"),
            Need::End(verdict) => self.end(run, &verdict, tick),
            Need::Stop(verdict) => {
                let claim = claim_name(&self.path, run.task, run.token);
                let DispatchOptions { stop_grace, stop_confirm, .. } = self.options;
                let stopped = stop(run.process, &claim, stop_grace, stop_confirm);
                // It is our own child perhaps, and then has to be waited for.
                self.exit_of(run);
                self.renew()?;
                match stopped {
                    Stopped::Confirmed => self.end(run, &verdict, tick),
                    Stopped::Survives(pids) => {
                        tick.deferred.push(Deferred { task: run.task, token: run.token, pids });
                        Ok(())
                    }
                }
            }
        }
    }

    fn need(&mut self, run: &LiveRun) -> Need {
        let now = self.board.clock().now();
        if run.boot_id != self.board.clock().boot_id() {
            let verdict = if run.process.is_some() || run.epoch.is_some() {
                Verdict::new(RunOutcome::Interrupted, Fault::Outside, "the machine was restarted")
            } else {
                Verdict::new(RunOutcome::TakenBack, Fault::Outside, LEASE_EXPIRED)
            };
            return Need::End(verdict);
        }
        let expired = run.lease_until_boot_ms <= now.boot_ms;
        let late = run.max_runtime_ms.is_some_and(|most| now.boot_ms - run.started_boot_ms > most);
        let Some(process) = run.process else { return self.need_unseen(run, expired, late) };
        match process.liveness() {
            Liveness::Gone => Need::End(self.verdict_of_gone(run)),
            Liveness::Alive if late => Need::Stop(Verdict::new(
                RunOutcome::TimedOut,
                Fault::Task,
                format!("took longer than {} ms", run.max_runtime_ms.unwrap_or(0)),
            )),
            Liveness::Alive if expired && run.epoch.is_some() => {
                Need::Stop(Verdict::new(RunOutcome::TimedOut, Fault::Task, LEASE_EXPIRED))
            }
            Liveness::Alive if expired => {
                Need::Stop(Verdict::new(RunOutcome::TakenBack, Fault::Outside, LEASE_EXPIRED))
            }
            Liveness::OutOfSight if expired => {
                Need::End(Verdict::new(RunOutcome::TakenBack, Fault::Outside, LEASE_EXPIRED))
            }
            Liveness::Alive | Liveness::OutOfSight => Need::Nothing,
        }
    }

    /// Of a run whose process was never told: a claim that somebody made by itself, or a worker
    /// whose dispatcher was killed between the claim and the start, or after it.
    fn need_unseen(&mut self, run: &LiveRun, expired: bool, late: bool) -> Need {
        if run.epoch.is_none() {
            let verdict = Verdict::new(RunOutcome::TakenBack, Fault::Outside, LEASE_EXPIRED);
            return if expired { Need::End(verdict) } else { Need::Nothing };
        }
        if let Some(verdict) = self.exit_of(run) {
            return Need::End(verdict);
        }
        match of_claim(&claim_name(&self.path, run.task, run.token)).first() {
            Some(_) if expired || late => {
                Need::Stop(Verdict::new(RunOutcome::TimedOut, Fault::Task, LEASE_EXPIRED))
            }
            Some(process) => Need::Adopt(*process),
            // A program that is just being started does not carry its claim yet.
            None if self.board.clock().now().boot_ms - run.started_boot_ms < BEING_STARTED_MS => {
                Need::Nothing
            }
            None => Need::End(Verdict::new(
                RunOutcome::Interrupted,
                Fault::Outside,
                "its dispatcher ended while it was being started",
            )),
        }
    }

    fn verdict_of_gone(&mut self, run: &LiveRun) -> Verdict {
        match self.exit_of(run) {
            Some(verdict) => verdict,
            None if run.orphaned => Verdict::new(
                RunOutcome::Interrupted,
                Fault::Outside,
                "its process and its dispatcher ended",
            ),
            None => Verdict::new(RunOutcome::Crashed, Fault::Task, "its process is gone"),
        }
    }

    /// How the worker of a run ended, if it is a child of this process and has ended.
    fn exit_of(&mut self, run: &LiveRun) -> Option<Verdict> {
        let is = |worker: &Worker| (worker.task, worker.token) == (run.task, run.token);
        let index = self.workers.iter().position(is)?;
        let status = self.workers[index].child.try_wait().ok().flatten()?;
        self.workers.swap_remove(index);
        Some(Verdict::of(status))
    }

    /// Waits for children that have ended and whose runs have ended too.
    pub(super) fn reap(&mut self) -> Result<bool> {
        let mut left = false;
        for index in (0..self.workers.len()).rev() {
            let Worker { task, token, child } = &mut self.workers[index];
            if child.try_wait().is_ok_and(|status| status.is_none()) {
                continue;
            }
            let (task, token) = (*task, *token);
            if self.board.read("read a run", |tx| tx.is_live(task, token))? {
                // The next round asks how it ended.
                left = true;
            } else {
                self.workers.swap_remove(index);
            }
        }
        Ok(left)
    }

    fn end(&mut self, run: &LiveRun, verdict: &Verdict, tick: &mut Tick) -> Result<()> {
        let (epoch, limits) = (self.epoch, self.options.limits);
        let key = self.session.next_key();
        let status = self.board.end_lost(key, epoch, run, verdict, &limits)?;
        // `None`: the worker ended it itself in the meantime.
        tick.ended.extend(status.map(|status| Ended {
            task: run.task,
            token: run.token,
            worker: run.worker.clone(),
            outcome: verdict.outcome,
            error: verdict.error.clone(),
            status,
        }));
        Ok(())
    }

    fn start_workers(&mut self, tick: &mut Tick) -> Result<()> {
        if self.options.worker.is_empty() {
            return Ok(());
        }
        let most = usize::try_from(self.options.max_running).unwrap_or(usize::MAX);
        for _ in 0..self.options.max_spawn {
            if most > 0 && tick.running >= most {
                break;
            }
            let key = self.session.next_key();
            let Some(job) = self.board.claim_for_worker(key, self.epoch, &self.options)? else {
                break;
            };
            match spawn(&self.path, &job, &self.options) {
                Ok(child) => self.started(&job, child, tick)?,
                Err(error) => {
                    let text = format!("{}: {error}", self.options.worker[0]);
                    let verdict = Verdict::new(RunOutcome::SpawnFailed, Fault::Task, text);
                    let live = self.board.read("read a run", |tx| tx.live_run(job.task))?;
                    if let Some(run) = live.filter(|run| run.token == job.token) {
                        self.end(&run, &verdict, tick)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn started(&mut self, job: &Job, child: Child, tick: &mut Tick) -> Result<()> {
        let pid = i32::try_from(child.id()).unwrap_or(0);
        self.workers.push(Worker { task: job.task, token: job.token, child });
        tick.running += 1;
        tick.started.push(Started { task: job.task, token: job.token, pid });
        // It may have ended already, but nobody has waited for it yet.
        match Process::of_child(pid) {
            Ok(process) => self.tell_process((job.task, job.token), process, "spawned"),
            Err(_) => Ok(()),
        }
    }

    fn tell_process(
        &mut self,
        (task, token): (TaskId, FencingToken),
        process: Process,
        event: &str,
    ) -> Result<()> {
        let epoch = self.epoch;
        self.board.write_if(Kind::Started, self.session.next_key(), |w| {
            in_office(w, epoch)?;
            if !w.tx.set_process((task, token), process, w.seq)? {
                return Ok(None);
            }
            w.about(task, Some(token));
            w.event(task, Some(token), event, &process.pid.to_string())?;
            Ok(Some(()))
        })?;
        Ok(())
    }
}

impl Board {
    /// Claims the next task for a worker that is to be started, and charges it with the attempt.
    fn claim_for_worker(
        &mut self,
        key: OpKey,
        epoch: i64,
        options: &DispatchOptions,
    ) -> Result<Option<Job>> {
        let written = self.write_if(Kind::Spawn, key, |w| {
            in_office(w, epoch)?;
            let Some(task) = w.tx.next_ready_for_anybody()? else { return Ok(None) };
            let row = w.tx.task(task)?.ok_or(StoreError::NoSuchTask { task })?;
            let mut counts = w.tx.counts(task)?;
            counts.failures += 1;
            w.tx.set_counts(task, counts, w.seq)?;
            let worker = row.assignee.unwrap_or_else(|| "worker".to_owned());
            let max_runtime = milliseconds(options.max_runtime);
            let terms = Terms {
                lease: options.claim_lease,
                epoch: Some(epoch),
                max_runtime_ms: row.max_runtime_ms.or((max_runtime > 0).then_some(max_runtime)),
            };
            let claimant = Claimant::from(&worker);
            let (_, token, _) = start_run(w, (task, row.fence), claimant, &terms)?;
            let workspace = row.workspace.path().map(str::to_owned);
            Ok(Some(Job { task, token, worker, workspace }))
        })?;
        Ok(written.map(|(job, _)| job))
    }

    /// Ends a run whose worker is gone. `None`: it has ended already.
    fn end_lost(
        &mut self,
        key: OpKey,
        epoch: i64,
        run: &LiveRun,
        verdict: &Verdict,
        limits: &Limits,
    ) -> Result<Option<Status>> {
        let written = self.write_if(Kind::Fail, key, |w| {
            in_office(w, epoch)?;
            if !w.tx.is_live(run.task, run.token)? {
                return Ok(None);
            }
            // A heartbeat that came in between is the last sign of one that is still there.
            if verdict.outcome == RunOutcome::TakenBack
                && !w.tx.live_run(run.task)?.is_some_and(|now| is_over(w, &now))
            {
                return Ok(None);
            }
            lose(w, (run.task, run.token), verdict, limits).map(Some)
        })?;
        Ok(written.map(|(status, _)| status))
    }

    /// Ends a claim because the work failed: the task rests, or is given up, as `limits` say.
    ///
    /// # Errors
    ///
    /// As [`heartbeat`](Self::heartbeat).
    pub fn fail(
        &mut self,
        key: OpKey,
        task: TaskId,
        token: FencingToken,
        error: &str,
        limits: &Limits,
    ) -> Result<(Status, crate::board::Commit)> {
        self.write(Kind::Fail, key, |w| {
            w.require_live(task, token)?;
            let verdict = Verdict::new(RunOutcome::Failed, Fault::Task, error);
            lose(w, (task, token), &verdict, limits)
        })
    }
}

fn is_over(w: &Writing<'_>, run: &LiveRun) -> bool {
    run.boot_id != w.boot_id || run.lease_until_boot_ms <= w.now.boot_ms
}

/// Ends a run that did not end well, and puts its task where the breaker says.
fn lose(
    w: &mut Writing<'_>,
    (task, token): (TaskId, FencingToken),
    verdict: &Verdict,
    limits: &Limits,
) -> Result<Status, Stop> {
    let Verdict { outcome, fault, error } = verdict;
    end_run(w, (task, token), *outcome, Ending { summary: None, error: Some(error) })?;
    let charged = w.tx.epoch_of(task, token)?.is_some();
    let quiet = *outcome == RunOutcome::TakenBack && !charged;
    let next = if quiet {
        Next::Again
    } else {
        let (counts, next) = after(w.tx.counts(task)?, charged, *fault, limits);
        w.tx.set_counts(task, counts, w.seq)?;
        next
    };
    w.event(task, Some(token), outcome.as_str(), error)?;
    let status = match next {
        Next::Again => resting_place(w, task)?,
        Next::Rest { .. } => Status::Scheduled,
        Next::GiveUp { .. } => Status::Blocked,
    };
    match next {
        Next::Again => w.tx.set_status(task, status, (None, None), w.seq)?,
        Next::Rest { ms } => {
            let due = w.now.wall_ms.saturating_add(ms);
            w.tx.set_status(task, status, (Some(due), Some(error)), w.seq)?;
        }
        Next::GiveUp { times } => {
            let reason = format!("given up after {times} times: {error}");
            w.tx.set_status(task, status, (None, Some(&reason)), w.seq)?;
            w.event(task, Some(token), "gave-up", &reason)?;
        }
    }
    Ok(status)
}

/// How long a dispatcher that is not the one in office waits before it asks again.
pub(super) const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Says who dispatches instead, for people.
#[must_use]
pub fn describe(held: &Held) -> String {
    format!("{} (process {}, epoch {})", held.holder, held.process.pid, held.epoch)
}
