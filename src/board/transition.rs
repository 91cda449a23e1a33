//! Where a task goes that nobody has claimed, and how its worker has it stop.
//!
//! In: a task, and for a worker its token. Out: a [`Commit`], or why the task cannot go there.
//! Not here: claiming and finishing (`claim`), waiting for other tasks (`link`).

use crate::board::claim::{FencingToken, end_run, refund};
use crate::board::link::{free_children, resting_place};
use crate::board::run::RunOutcome;
use crate::board::sql::{Counts, Ending, Standing};
use crate::board::task::{Status, TaskId};
use crate::board::write::{Kind, Stop, Writing};
use crate::board::{Board, Commit, OpKey};
use crate::error::{Result, StoreError};

impl Board {
    /// Blocks a task until somebody unblocks it. A running one only by its worker: with the token,
    /// the claim ends.
    ///
    /// # Errors
    ///
    /// - [`StoreError::StaleClaim`] with a token; [`StoreError::NotAllowed`] without one: the task
    ///   is running, in review, done or archived.
    /// - Others as [`create_task`](Self::create_task), and [`StoreError::NoSuchTask`].
    pub fn block(
        &mut self,
        key: OpKey,
        task: TaskId,
        token: Option<FencingToken>,
        reason: &str,
    ) -> Result<Commit> {
        let ((), commit) = self.write(Kind::Block, key, |w| {
            if let Some(token) = token {
                let ending = Ending { summary: Some(reason), error: None };
                end_run(w, (task, token), RunOutcome::Blocked, ending)?;
                refund(w, (task, token))?;
            } else {
                unheld(w, task, "blocked", is_waiting)?;
            }
            w.tx.set_status(task, Status::Blocked, (None, Some(reason)), w.seq)?;
            w.event(task, token, "blocked", reason)
        })?;
        Ok(commit)
    }

    /// Ends a block: the task waits for its parents or is ready, and its failures are forgotten.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotAllowed`]: it is not blocked. Others as [`block`](Self::block).
    pub fn unblock(&mut self, key: OpKey, task: TaskId, reason: &str) -> Result<Commit> {
        let ((), commit) = self.write(Kind::Unblock, key, |w| {
            unheld(w, task, "unblocked", |status| status == Status::Blocked)?;
            let counts = Counts { failures: 0, interruptions: 0, failure_limit: None };
            w.tx.set_counts(task, counts, w.seq)?;
            let status = resting_place(w, task)?;
            w.tx.set_status(task, status, (None, None), w.seq)?;
            w.event(task, None, "unblocked", reason)
        })?;
        Ok(commit)
    }

    /// Has a task wait for a time, in milliseconds since 1970.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotAllowed`]: it is running, in review, done or archived. Others as
    /// [`block`](Self::block).
    pub fn schedule(&mut self, key: OpKey, task: TaskId, due_ms: i64) -> Result<Commit> {
        let ((), commit) = self.write(Kind::Schedule, key, |w| {
            unheld(w, task, "scheduled", is_waiting)?;
            w.tx.set_status(task, Status::Scheduled, (Some(due_ms), None), w.seq)?;
            w.event(task, None, "scheduled", &due_ms.to_string())
        })?;
        Ok(commit)
    }

    /// Ends triage, or the wait for a time: the task waits for its parents, or is ready.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotAllowed`]: it is neither in triage nor scheduled. Others as
    /// [`block`](Self::block).
    pub fn promote(&mut self, key: OpKey, task: TaskId) -> Result<Commit> {
        let ((), commit) = self.write(Kind::Promote, key, |w| {
            unheld(w, task, "promoted", |status| {
                matches!(status, Status::Triage | Status::Scheduled)
            })?;
            promote(w, task)
        })?;
        Ok(commit)
    }

    /// Makes at most `limit` scheduled tasks ready whose time has come, as told by the wall clock,
    /// in one write. `None`: there was none.
    ///
    /// # Errors
    ///
    /// As [`create_task`](Self::create_task).
    pub fn promote_due(&mut self, key: OpKey, limit: u32) -> Result<Option<(Vec<TaskId>, Commit)>> {
        self.write_if(Kind::Promote, key, |w| {
            let due = w.tx.due(w.now.wall_ms, limit)?;
            for task in &due {
                w.about(*task, None);
                promote(w, *task)?;
            }
            Ok(Some(due).filter(|due| !due.is_empty()))
        })
    }

    /// Approves the result of a task in review: it is done. `seen` is the task's newest token as
    /// the reviewer saw it, so that no other result is approved than the one that was looked at.
    ///
    /// # Errors
    ///
    /// - [`StoreError::NotAllowed`]: it is not in review.
    /// - [`StoreError::StaleClaim`]: there is a newer result.
    /// - Others as [`block`](Self::block).
    pub fn approve(&mut self, key: OpKey, task: TaskId, seen: FencingToken) -> Result<Commit> {
        let ((), commit) = self.write(Kind::Approve, key, |w| {
            let result = in_review(w, task, seen, "approved")?;
            w.tx.set_done(task, &result, w.seq)?;
            w.event(task, None, "approved", "")?;
            free_children(w, task)
        })?;
        Ok(commit)
    }

    /// Sends a task in review back to be claimed again. `seen` is as in
    /// [`approve`](Self::approve).
    ///
    /// # Errors
    ///
    /// As [`approve`](Self::approve).
    pub fn send_back(
        &mut self,
        key: OpKey,
        task: TaskId,
        seen: FencingToken,
        reason: &str,
    ) -> Result<Commit> {
        let ((), commit) = self.write(Kind::SendBack, key, |w| {
            in_review(w, task, seen, "sent back")?;
            let status = resting_place(w, task)?;
            w.tx.set_status(task, status, (None, Some(reason)), w.seq)?;
            w.event(task, None, "sent-back", reason)
        })?;
        Ok(commit)
    }

    /// Puts a task out of sight. Tasks that waited for nothing else become ready.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotAllowed`]: it is running, or archived already. Others as
    /// [`block`](Self::block).
    pub fn archive(&mut self, key: OpKey, task: TaskId) -> Result<Commit> {
        let ((), commit) = self.write(Kind::Archive, key, |w| {
            let was = unheld(w, task, "archived", |status| {
                !matches!(status, Status::Running | Status::Archived)
            })?;
            w.tx.set_status(task, Status::Archived, (None, None), w.seq)?;
            w.event(task, None, "archived", was.as_str())?;
            free_children(w, task)
        })?;
        Ok(commit)
    }
}

/// Goes on only if the task stands where it may for that; gives where that is.
fn unheld(
    w: &mut Writing<'_>,
    task: TaskId,
    deed: &'static str,
    may: impl FnOnce(Status) -> bool,
) -> Result<Status, Stop> {
    let Standing { status, .. } = w.standing(task)?;
    w.about(task, None);
    if may(status) { Ok(status) } else { Err(StoreError::NotAllowed { task, status, deed }.into()) }
}

fn is_waiting(status: Status) -> bool {
    matches!(
        status,
        Status::Triage | Status::Todo | Status::Scheduled | Status::Ready | Status::Blocked
    )
}

/// The result that waits for approval.
fn in_review(
    w: &mut Writing<'_>,
    task: TaskId,
    seen: FencingToken,
    deed: &'static str,
) -> Result<String, Stop> {
    unheld(w, task, deed, |status| status == Status::Review)?;
    let row = w.tx.task(task)?.ok_or(StoreError::NoSuchTask { task })?;
    if row.fence == seen {
        Ok(row.result.unwrap_or_default())
    } else {
        Err(StoreError::StaleClaim { task, token: seen, newest: row.fence }.into())
    }
}

fn promote(w: &mut Writing<'_>, task: TaskId) -> Result<(), Stop> {
    let status = resting_place(w, task)?;
    w.tx.set_status(task, status, (None, None), w.seq)?;
    w.event(task, None, "promoted", status.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NewTask;
    use crate::board::fixture::{HOUR, Place, dump};

    fn status(board: &Board, task: TaskId) -> Status {
        board.task(task).unwrap().unwrap().status
    }

    fn kinds(board: &Board, task: TaskId) -> Vec<String> {
        board.events(task).unwrap().into_iter().map(|event| event.kind).collect()
    }

    /// One task in each status, in the order of [`Status::ALL`].
    fn one_of_each(place: &mut Place, board: &mut Board) -> Vec<TaskId> {
        let parents = [place.create(board, "parent", -9)];
        Status::ALL
            .iter()
            .map(|status| {
                let task = NewTask {
                    title: status.as_str(),
                    triage: *status == Status::Triage,
                    due_ms: (*status == Status::Scheduled).then_some(i64::MAX),
                    blocked: (*status == Status::Blocked).then_some("why"),
                    parents: if *status == Status::Todo { &parents } else { &[] },
                    ..NewTask::default()
                };
                let id = board.create_task(place.key(), &task).unwrap().0;
                if matches!(status, Status::Running | Status::Review | Status::Done) {
                    let token = board.claim(place.key(), id, "ann", HOUR).unwrap().token;
                    let key = place.key();
                    let _commit = match status {
                        Status::Review => board.submit(key, id, token, "r").unwrap(),
                        Status::Done => board.complete(key, id, token, "r").unwrap(),
                        _ => board.heartbeat(key, id, token, HOUR).unwrap(),
                    };
                }
                if *status == Status::Archived {
                    let _commit = board.archive(place.key(), id).unwrap();
                }
                id
            })
            .collect()
    }

    /// The deed is done on tasks that stand so, refused on all others, and then changes nothing.
    #[track_caller]
    fn check(allowed: &[Status], deed: impl Fn(&mut Board, OpKey, TaskId) -> Result<Commit>) {
        let mut place = Place::new();
        let mut board = place.board();
        for (status, task) in Status::ALL.iter().zip(one_of_each(&mut place, &mut board)) {
            assert_eq!(self::status(&board, task), *status);
            let before = dump(board.connection());
            let done = deed(&mut board, place.key(), task);
            if allowed.contains(status) {
                let _commit = done.unwrap_or_else(|error| panic!("{status}: {error}"));
            } else {
                let Err(StoreError::NotAllowed { status: found, .. }) = done else {
                    panic!("{status}: {done:?}")
                };
                assert_eq!(found, *status);
                assert_eq!(dump(board.connection()), before);
            }
        }
        let error = deed(&mut board, place.key(), TaskId::new(99)).unwrap_err();
        assert!(matches!(error, StoreError::NoSuchTask { .. }), "{error:?}");
    }

    #[test]
    fn each_transition_starts_where_the_table_says_and_nowhere_else() {
        use Status::{Archived, Blocked, Done, Ready, Review, Running, Scheduled, Todo, Triage};
        let waiting = [Triage, Todo, Scheduled, Ready, Blocked];
        check(&waiting, |board, key, task| board.block(key, task, None, "because"));
        check(&waiting, |board, key, task| board.schedule(key, task, 5));
        check(&[Blocked], |board, key, task| board.unblock(key, task, ""));
        check(&[Triage, Scheduled], Board::promote);
        check(&[Review], |board, key, task| board.approve(key, task, FencingToken::new(1)));
        check(&[Review], |board, key, task| board.send_back(key, task, FencingToken::new(1), ""));
        let all_but = |not: &[Status]| -> Vec<Status> {
            Status::ALL.iter().copied().filter(|status| !not.contains(status)).collect()
        };
        check(&all_but(&[Running, Archived]), Board::archive);
        let edit = crate::Edit { title: Some("new"), ..crate::Edit::default() };
        check(&all_but(&[Archived]), |board, key, task| board.edit_task(key, task, &edit));
        let _ = Done;
    }

    #[test]
    fn blocked_task_keeps_its_reason_until_it_is_unblocked() {
        let mut place = Place::new();
        let mut board = place.board();
        let claim = place.claimed(&mut board, HOUR);
        let (task, token) = (claim.task, claim.token);
        let _commit = board.block(place.key(), task, Some(token), "needs a key").unwrap();
        assert_eq!(board.task(task).unwrap().unwrap().reason.as_deref(), Some("needs a key"));
        let run = &board.runs(task).unwrap()[0];
        assert_eq!(run.outcome, Some(RunOutcome::Blocked));
        assert_eq!(run.summary.as_deref(), Some("needs a key"));
        let _commit = board.unblock(place.key(), task, "here it is").unwrap();
        assert_eq!(status(&board, task), Status::Ready);
        assert_eq!(board.task(task).unwrap().unwrap().reason, None);
        assert_eq!(kinds(&board, task), ["created", "claimed", "blocked", "unblocked"]);
    }

    #[test]
    fn result_in_review_is_approved_as_it_was_seen_or_not_at_all() {
        let mut place = Place::new();
        let mut board = place.board();
        let first = place.claimed(&mut board, HOUR);
        let task = first.task;
        let _commit = board.submit(place.key(), task, first.token, "so so").unwrap();
        let _commit = board.send_back(place.key(), task, first.token, "do it again").unwrap();
        let second = board.claim(place.key(), task, "bob", HOUR).unwrap();
        let _commit = board.submit(place.key(), task, second.token, "well").unwrap();
        let error = board.approve(place.key(), task, first.token).unwrap_err();
        assert!(matches!(error, StoreError::StaleClaim { .. }), "{error:?}");
        let _commit = board.approve(place.key(), task, second.token).unwrap();
        let row = board.task(task).unwrap().unwrap();
        assert_eq!((row.status, row.result.as_deref()), (Status::Done, Some("well")));
    }

    #[test]
    fn task_that_is_due_becomes_ready_and_no_other_does() {
        let mut place = Place::new();
        let mut board = place.board();
        let now = board.clock().now().wall_ms;
        let mut due_at = |due_ms| {
            let task = NewTask { title: "dig", due_ms: Some(due_ms), ..NewTask::default() };
            board.create_task(place.key(), &task).unwrap().0
        };
        let (soon, later) = (due_at(now + 60_000), due_at(now + 90_000_000));
        assert!(board.promote_due(place.key(), 9).unwrap().is_none());
        board.clock().pass(HOUR);
        let (promoted, _) = board.promote_due(place.key(), 9).unwrap().unwrap();
        assert_eq!(promoted, [soon]);
        assert_eq!(
            (status(&board, soon), status(&board, later)),
            (Status::Ready, Status::Scheduled)
        );
        assert_eq!(board.task(soon).unwrap().unwrap().due_ms, None);
    }
}
