//! Events: what is to be remembered about a task, in the order in which it was written.
//!
//! Whatever changes where a task stands appends one, in the same transaction. A heartbeat is no
//! event: it changes its run, so a worker that is alive for a year leaves one row. The numbers have
//! no hole; old events can be taken out from the beginning, and where they begin is recorded.
//!
//! In: kinds and payloads, any text. Out: [`Event`] rows. Not here: who reads them
//! (`subscription`).

use std::time::Duration;

use serde::Serialize;

use crate::board::claim::FencingToken;
use crate::board::clock::milliseconds;
use crate::board::task::TaskId;
use crate::board::write::Kind;
use crate::board::{Board, Commit, CommitSeq, OpKey};
use crate::error::{Result, StoreError};

stored_integer! {
    /// The number of an event on the board: 1, 2, 3, ... without a hole.
    EventId
}

/// The least age of events that can be taken out. Less than that is a slip of the pen.
pub const RETENTION_MIN: Duration = Duration::from_hours(1);

/// An event to be appended.
#[derive(Clone, Copy, Debug)]
pub struct NewEvent<'a> {
    /// What sort of event it is; any text.
    pub kind: &'a str,
    /// What there is to say about it; any text.
    pub payload: &'a str,
}

/// An event, as it stands in the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Its number.
    pub id: EventId,
    /// The task.
    #[serde(rename = "task_id")]
    pub task: TaskId,
    /// The claim under which it was written; `None`: without one.
    pub token: Option<FencingToken>,
    /// What sort of event it is.
    pub kind: String,
    /// What there is to say about it.
    pub payload: String,
    /// The commit that wrote it.
    pub commit_seq: CommitSeq,
}

/// What was taken out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// How many events.
    pub events: usize,
    /// The oldest event that is kept.
    pub first_event: EventId,
    /// The subscription that has not read on, if one kept more from being taken out.
    pub held_back_by: Option<String>,
}

impl Board {
    /// Appends the events in one transaction and in this order: after a crash all of them are
    /// there or none.
    ///
    /// With a token, only while that token is the live claim. Without one anybody may, at any
    /// time. No event at all is a write too, and uses up a commit number.
    ///
    /// # Errors
    ///
    /// As [`heartbeat`](Self::heartbeat).
    pub fn append_events(
        &mut self,
        key: OpKey,
        task: TaskId,
        token: Option<FencingToken>,
        events: &[NewEvent<'_>],
    ) -> Result<Commit> {
        let ((), commit) = self.write(Kind::Events, key, |w| {
            w.may_write(task, token)?;
            w.about(task, token);
            w.events(task, token, events)
        })?;
        Ok(commit)
    }

    /// The events of a task in the order of writing; none if there is no such task.
    pub fn events(&self, task: TaskId) -> Result<Vec<Event>> {
        self.read("list the events", |tx| tx.events(Some(task), EventId::new(0), None))
    }

    /// At most `limit` events after that one: of one task, or of all.
    pub fn events_after(
        &self,
        task: Option<TaskId>,
        after: EventId,
        limit: Option<u32>,
    ) -> Result<Vec<Event>> {
        self.read("list the events", |tx| tx.events(task, after, limit))
    }

    /// Takes out the events that are older than `age`, of running tasks too, but none that a
    /// subscription has yet to read, and not the newest. `None`: there was none to take out.
    ///
    /// What was taken out cannot be read again; that it was there stays in `commits`, whose rows
    /// are kept.
    ///
    /// # Errors
    ///
    /// [`StoreError::Invalid`]: the age is less than [`RETENTION_MIN`]. Others as
    /// [`create_task`](Self::create_task).
    pub fn prune_events(&mut self, key: OpKey, age: Duration) -> Result<Option<(Pruned, Commit)>> {
        if age < RETENTION_MIN {
            let what = format!("an age of {} s", age.as_secs());
            return Err(StoreError::Invalid { what, wanted: "an hour or more" });
        }
        self.write_if(Kind::Prune, key, |w| {
            let last_old = w.tx.last_commit_before(w.now.wall_ms - milliseconds(age))?;
            let mut first = w.tx.first_event_after(last_old)?.min(w.tx.last_event()?);
            let mut held_back_by = None;
            for subscription in w.tx.subscriptions()? {
                let next = EventId::new(subscription.cursor.get() + 1);
                if next < first {
                    first = next;
                    held_back_by = Some(subscription.name);
                }
            }
            if first <= w.tx.first_event()? {
                return Ok(None);
            }
            let events = w.tx.prune_events(first, w.seq)?;
            Ok(Some(Pruned { events, first_event: first, held_back_by }))
        })
    }

    /// The oldest event that is kept.
    pub fn first_event(&self) -> Result<EventId> {
        self.read("read the horizon", |tx| tx.first_event())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::fixture::{HOUR, Place, dump};

    const DUG: NewEvent<'_> = NewEvent { kind: "dug", payload: "1 m" };

    #[test]
    fn events_of_one_write_keep_their_order_and_name_their_commit_and_claim() {
        let mut place = Place::new();
        let mut board = place.board();
        let claim = place.claimed(&mut board, HOUR);
        let before = dump(board.connection());
        let events = [DUG, NewEvent { kind: "rested", payload: "" }, DUG];
        let commit =
            board.append_events(place.key(), claim.task, Some(claim.token), &events).unwrap();
        assert_eq!(commit.seq.get(), 3);
        let mut expected = before;
        expected.insert(2, r#"commits 3 7 3 "events" 1 1 3"#.to_owned());
        expected.extend([
            r#"events 3 1 1 "dug" "1 m" 3"#.to_owned(),
            r#"events 4 1 1 "rested" "" 3"#.to_owned(),
            r#"events 5 1 1 "dug" "1 m" 3"#.to_owned(),
        ]);
        assert_eq!(dump(board.connection()), expected);
    }

    #[test]
    fn anybody_may_append_without_a_claim_even_when_the_task_is_done() {
        let mut place = Place::new();
        let mut board = place.board();
        let claim = place.claimed(&mut board, HOUR);
        let _commit = board.append_events(place.key(), claim.task, None, &[DUG]).unwrap();
        let _done = board.complete(place.key(), claim.task, claim.token, "").unwrap();
        let _commit = board.append_events(place.key(), claim.task, None, &[DUG]).unwrap();
        let events = board.events(claim.task).unwrap();
        let without = events.iter().filter(|event| event.token.is_none()).count();
        assert_eq!((events.len(), without), (5, 3));
    }

    #[test]
    fn no_event_at_all_still_uses_up_a_commit_number() {
        let mut place = Place::new();
        let mut board = place.board();
        let task = place.create(&mut board, "dig", 0);
        let commit = board.append_events(place.key(), task, None, &[]).unwrap();
        assert_eq!(commit.seq.get(), 2);
        assert_eq!(dump(board.connection())[1], r#"commits 2 7 2 "events" 1 - 0"#);
    }

    #[test]
    fn events_of_other_tasks_are_not_listed() {
        let mut place = Place::new();
        let mut board = place.board();
        let first = place.create(&mut board, "dig", 0);
        let second = place.create(&mut board, "rest", 0);
        assert_eq!(board.events(second).unwrap().len(), 1);
        assert_eq!(board.events(second).unwrap()[0].task, second);
        assert_eq!(board.events(first).unwrap()[0].payload, "dig");
        assert_eq!(board.events(TaskId::new(9)).unwrap(), []);
        let page = board.events_after(None, EventId::new(1), Some(5)).unwrap();
        assert_eq!(page.iter().map(|event| event.id.get()).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn old_events_go_from_the_beginning_and_numbers_go_on() {
        let mut place = Place::new();
        let mut board = place.board();
        let task = place.create(&mut board, "dig", 0);
        let _commit = board.append_events(place.key(), task, None, &[DUG, DUG]).unwrap();
        assert!(board.prune_events(place.key(), HOUR).unwrap().is_none());
        board.clock().pass(HOUR * 2);
        let _commit = board.append_events(place.key(), task, None, &[DUG]).unwrap();
        let (pruned, _) = board.prune_events(place.key(), HOUR).unwrap().unwrap();
        let first_event = EventId::new(4);
        assert_eq!(pruned, Pruned { events: 3, first_event, held_back_by: None });
        assert_eq!(board.first_event().unwrap(), first_event);
        board.clock().pass(HOUR * 2);
        // The newest stays, or the numbers would begin anew.
        assert!(board.prune_events(place.key(), HOUR).unwrap().is_none());
        let _commit = board.append_events(place.key(), task, None, &[DUG]).unwrap();
        let ids: Vec<_> = board.events(task).unwrap().iter().map(|event| event.id.get()).collect();
        assert_eq!(ids, [4, 5]);
    }

    #[test]
    fn retention_of_nothing_is_refused() {
        let mut place = Place::new();
        let mut board = place.board();
        let error = board.prune_events(place.key(), Duration::ZERO).unwrap_err();
        assert!(matches!(error, StoreError::Invalid { .. }), "{error:?}");
    }

    #[test]
    fn event_that_somebody_has_yet_to_read_is_kept() {
        use crate::{Delivery, NewSubscription, StartAt};
        let mut place = Place::new();
        let mut board = place.board();
        let task = place.create(&mut board, "dig", 0);
        let new = NewSubscription {
            name: "mail",
            task: None,
            delivery: Delivery::AtLeastOnce,
            target: "",
            from: StartAt::Now,
        };
        let _commit = board.subscribe(place.key(), &new).unwrap();
        let _commit = board.append_events(place.key(), task, None, &[DUG, DUG]).unwrap();
        board.clock().pass(HOUR * 2);
        let (pruned, _) = board.prune_events(place.key(), HOUR).unwrap().unwrap();
        assert_eq!((pruned.events, pruned.held_back_by.as_deref()), (1, Some("mail")));
        let kept = board.events(task).unwrap();
        assert_eq!(kept.iter().map(|event| event.id.get()).collect::<Vec<_>>(), [2, 3]);
    }
}
