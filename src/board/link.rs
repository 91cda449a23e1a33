//! Links: which task waits for which.
//!
//! A task is ready only when all its parents are done or archived. That is kept true by every
//! write that could change it, so whoever claims need not look.

use crate::board::sql::Standing;
use crate::board::task::{Status, TaskId};
use crate::board::write::{Kind, Stop, Writing};
use crate::board::{Board, Commit, OpKey};
use crate::error::{Result, StoreError};

impl Board {
    /// Lets `child` wait for `parent`. If the parent is open, a child that was ready goes back to
    /// `todo`. A link that is there already is left as it is, and that is a write too.
    ///
    /// # Errors
    ///
    /// - [`StoreError::NoSuchTask`].
    /// - [`StoreError::Cycle`]: the parent waits for the child, or is it.
    /// - [`StoreError::NotAllowed`]: the parent is open, and the child is running, in review, done
    ///   or archived.
    /// - Others as [`create_task`](Self::create_task).
    pub fn link(&mut self, key: OpKey, parent: TaskId, child: TaskId) -> Result<Commit> {
        let ((), commit) = self.write(Kind::Link, key, |w| {
            let above = w.standing(parent)?.status;
            let below = w.standing(child)?.status;
            if w.tx.is_below(child, parent)? {
                return Err(StoreError::Cycle { parent, child }.into());
            }
            let waits = !above.is_settled();
            if waits && past_waiting(below) {
                let deed = "made to wait for another";
                return Err(StoreError::NotAllowed { task: child, status: below, deed }.into());
            }
            w.about(child, None);
            if !w.tx.insert_link(parent, child, w.seq)? {
                return Ok(());
            }
            if waits && below == Status::Ready {
                w.tx.set_status(child, Status::Todo, (None, None), w.seq)?;
            }
            w.event(child, None, "linked", &parent.to_string())
        })?;
        Ok(commit)
    }

    /// Lets `child` wait for `parent` no longer. A child that waited for nothing else is ready.
    ///
    /// # Errors
    ///
    /// - [`StoreError::NoSuchLink`].
    /// - Others as [`create_task`](Self::create_task).
    pub fn unlink(&mut self, key: OpKey, parent: TaskId, child: TaskId) -> Result<Commit> {
        let ((), commit) = self.write(Kind::Unlink, key, |w| {
            w.about(child, None);
            if !w.tx.delete_link(parent, child)? {
                return Err(StoreError::NoSuchLink { parent, child }.into());
            }
            w.event(child, None, "unlinked", &parent.to_string())?;
            promote_if_free(w, child)
        })?;
        Ok(commit)
    }

    /// The tasks that this one waits for or waited for.
    pub fn parents(&self, task: TaskId) -> Result<Vec<TaskId>> {
        self.read("list the parents", |tx| tx.parents(task))
    }

    /// The tasks that wait or waited for this one.
    pub fn children(&self, task: TaskId) -> Result<Vec<TaskId>> {
        self.read("list the children", |tx| tx.children(task))
    }
}

fn past_waiting(status: Status) -> bool {
    matches!(status, Status::Running | Status::Review | Status::Done | Status::Archived)
}

/// Makes the children ready that waited for nothing but `parent`, which is settled now.
pub(super) fn free_children(w: &mut Writing<'_>, parent: TaskId) -> Result<(), Stop> {
    for child in w.tx.children(parent)? {
        promote_if_free(w, child)?;
    }
    Ok(())
}

/// Makes a task ready that waits in `todo` and has nothing to wait for.
fn promote_if_free(w: &mut Writing<'_>, task: TaskId) -> Result<(), Stop> {
    let Standing { status, .. } = w.standing(task)?;
    if status == Status::Todo && !w.tx.parents_open(task)? {
        w.tx.set_status(task, Status::Ready, (None, None), w.seq)?;
        w.event(task, None, "promoted", Status::Ready.as_str())?;
    }
    Ok(())
}

/// Where a task goes that nothing holds any more: back to waiting for its parents, or to be
/// claimed.
pub(super) fn resting_place(w: &Writing<'_>, task: TaskId) -> Result<Status, Stop> {
    Ok(if w.tx.parents_open(task)? { Status::Todo } else { Status::Ready })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NewTask;
    use crate::board::fixture::{HOUR, Place, dump};

    fn status(board: &Board, task: TaskId) -> Status {
        board.task(task).unwrap().unwrap().status
    }

    #[test]
    fn task_waits_until_its_last_parent_is_done() {
        let mut place = Place::new();
        let mut board = place.board();
        let first = place.create(&mut board, "a", 0);
        let second = place.create(&mut board, "b", 0);
        let parents = [first, second];
        let task = NewTask { title: "c", priority: 9, parents: &parents, ..NewTask::default() };
        let (child, _) = board.create_task(place.key(), &task).unwrap();
        assert_eq!(status(&board, child), Status::Todo);
        for parent in parents {
            assert!(matches!(
                board.claim(place.key(), child, "ann", HOUR),
                Err(StoreError::NotClaimable { status: Status::Todo, .. })
            ));
            let claim = board.claim_next(place.key(), "ann", HOUR).unwrap().unwrap();
            assert_eq!(claim.task, parent);
            let _done = board.complete(place.key(), parent, claim.token, "").unwrap();
        }
        assert_eq!(status(&board, child), Status::Ready);
        assert_eq!(board.claim_next(place.key(), "ann", HOUR).unwrap().unwrap().task, child);
        let events = board.events(child).unwrap();
        let kinds: Vec<_> = events.iter().map(|event| event.kind.as_str()).collect();
        assert_eq!(kinds, ["created", "promoted", "claimed"]);
    }

    #[test]
    fn archived_parent_keeps_nobody_waiting() {
        let mut place = Place::new();
        let mut board = place.board();
        let parent = place.create(&mut board, "a", 0);
        let child = place.create(&mut board, "b", 0);
        let _commit = board.link(place.key(), parent, child).unwrap();
        assert_eq!(status(&board, child), Status::Todo);
        let _commit = board.archive(place.key(), parent).unwrap();
        assert_eq!(status(&board, child), Status::Ready);
    }

    #[test]
    fn link_that_is_taken_out_frees_the_child() {
        let mut place = Place::new();
        let mut board = place.board();
        let parent = place.create(&mut board, "a", 0);
        let child = place.create(&mut board, "b", 0);
        let _commit = board.link(place.key(), parent, child).unwrap();
        assert_eq!(board.parents(child).unwrap(), [parent]);
        assert_eq!(board.children(parent).unwrap(), [child]);
        let _commit = board.unlink(place.key(), parent, child).unwrap();
        assert_eq!(status(&board, child), Status::Ready);
        let error = board.unlink(place.key(), parent, child).unwrap_err();
        assert!(matches!(error, StoreError::NoSuchLink { .. }), "{error:?}");
    }

    #[test]
    fn cycle_of_any_length_is_refused_and_changes_nothing() {
        let mut place = Place::new();
        let mut board = place.board();
        let tasks: Vec<_> = (0..5).map(|_| place.create(&mut board, "a", 0)).collect();
        for pair in tasks.windows(2) {
            let _commit = board.link(place.key(), pair[0], pair[1]).unwrap();
        }
        let before = dump(board.connection());
        for above in 0..5 {
            for below in 0..=above {
                let error = board.link(place.key(), tasks[above], tasks[below]).unwrap_err();
                assert!(matches!(error, StoreError::Cycle { .. }), "{above} {below} {error:?}");
            }
        }
        assert_eq!(dump(board.connection()), before);
    }

    #[test]
    fn running_task_cannot_be_made_to_wait_for_an_open_one() {
        let mut place = Place::new();
        let mut board = place.board();
        let claim = place.claimed(&mut board, HOUR);
        let parent = place.create(&mut board, "a", 0);
        let error = board.link(place.key(), parent, claim.task).unwrap_err();
        assert!(matches!(error, StoreError::NotAllowed { .. }), "{error:?}");
        let _commit = board.archive(place.key(), parent).unwrap();
        let _commit = board.link(place.key(), parent, claim.task).unwrap();
        assert_eq!(status(&board, claim.task), Status::Running);
    }

    #[test]
    fn link_that_is_there_is_not_made_twice() {
        let mut place = Place::new();
        let mut board = place.board();
        let parent = place.create(&mut board, "a", 0);
        let child = place.create(&mut board, "b", 0);
        let _commit = board.link(place.key(), parent, child).unwrap();
        let _commit = board.link(place.key(), parent, child).unwrap();
        assert_eq!(board.parents(child).unwrap(), [parent]);
        assert_eq!(board.events(child).unwrap().len(), 2);
    }
}
