//! Subscriptions: somebody reads the events of a task or of all, and the board knows how far.
//!
//! At most once: the cursor moves on in the transaction that hands events out, so a reader that
//! dies with them in its hands has lost them. At least once: the cursor moves on when the reader
//! says so, and until then every reader gets them again.

use serde::Serialize;

use crate::board::event::{Event, EventId};
use crate::board::task::TaskId;
use crate::board::write::Kind;
use crate::board::{Board, Commit, CommitSeq, OpKey};
use crate::error::{Result, StoreError};

stored_name! {
    /// What is promised to a reader.
    Delivery {
        /// No event twice, one perhaps never.
        AtMostOnce = "at-most-once",
        /// No event never, one perhaps twice.
        AtLeastOnce = "at-least-once",
    }
}

/// Where a subscription begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// With the oldest event that is kept.
    Oldest,
    /// With the next event.
    Now,
}

/// A subscription to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewSubscription<'a> {
    /// Its name; a board has one of a name.
    pub name: &'a str,
    /// Whose events; `None`: those of all tasks.
    pub task: Option<TaskId>,
    /// What is promised.
    pub delivery: Delivery,
    /// Where they are to go, as the application understands it.
    pub target: &'a str,
    /// Where it begins.
    pub from: StartAt,
}

/// A subscription, as it stands in the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Subscription {
    /// Its name.
    pub name: String,
    /// Whose events; `None`: those of all tasks.
    #[serde(rename = "task_id")]
    pub task: Option<TaskId>,
    /// What is promised.
    pub delivery: Delivery,
    /// Where they are to go.
    pub target: String,
    /// The last event that was delivered.
    pub cursor: EventId,
    /// The commit that made it.
    pub created_seq: CommitSeq,
    /// The commit that changed this row last.
    pub changed_seq: CommitSeq,
}

/// Events that were handed out.
#[derive(Clone, Debug)]
pub struct Delivered {
    /// The events, oldest first.
    pub events: Vec<Event>,
    /// The acknowledgement that the cursor has moved on; `None` where it has not.
    pub commit: Option<Commit>,
}

impl Board {
    /// Makes a subscription.
    ///
    /// # Errors
    ///
    /// [`StoreError::SubscriptionExists`], [`StoreError::NoSuchTask`]. Others as
    /// [`create_task`](Self::create_task).
    pub fn subscribe(&mut self, key: OpKey, new: &NewSubscription<'_>) -> Result<Commit> {
        let ((), commit) = self.write(Kind::Subscribe, key, |w| {
            if let Some(task) = new.task {
                w.standing(task)?;
                w.about(task, None);
            }
            let cursor = match new.from {
                StartAt::Oldest => EventId::new(w.tx.first_event()?.get() - 1),
                StartAt::Now => w.tx.last_event()?,
            };
            if w.tx.insert_subscription(new, cursor, w.seq)? {
                Ok(())
            } else {
                Err(StoreError::SubscriptionExists { name: new.name.to_owned() }.into())
            }
        })?;
        Ok(commit)
    }

    /// Ends a subscription.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSuchSubscription`]. Others as [`create_task`](Self::create_task).
    pub fn unsubscribe(&mut self, key: OpKey, name: &str) -> Result<Commit> {
        let ((), commit) = self.write(Kind::Unsubscribe, key, |w| {
            if w.tx.delete_subscription(name)? { Ok(()) } else { Err(no_such(name).into()) }
        })?;
        Ok(commit)
    }

    /// All subscriptions, by name.
    pub fn subscriptions(&self) -> Result<Vec<Subscription>> {
        self.read("list the subscriptions", |tx| tx.subscriptions())
    }

    /// Hands out at most `limit` events that the subscription has yet to read.
    ///
    /// At most once: two readers never get the same one. At least once: until they are
    /// acknowledged ([`acknowledge`](Self::acknowledge)) they are handed out again. With no event
    /// nothing is written.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSuchSubscription`]. Others as [`create_task`](Self::create_task).
    pub fn deliver(&mut self, key: OpKey, name: &str, limit: u32) -> Result<Delivered> {
        let of = self
            .read("read a subscription", |tx| tx.subscription(name))?
            .ok_or_else(|| no_such(name))?;
        if of.delivery == Delivery::AtLeastOnce {
            let events = self.events_after(of.task, of.cursor, Some(limit))?;
            return Ok(Delivered { events, commit: None });
        }
        let written = self.write_if(Kind::Deliver, key, |w| {
            // Looked at again: another reader may have been quicker.
            let of = w.tx.subscription(name)?.ok_or_else(|| no_such(name))?;
            let events = w.tx.events(of.task, of.cursor, Some(limit))?;
            let Some(last) = events.last() else { return Ok(None) };
            w.tx.set_cursor(name, last.id, w.seq)?;
            Ok(Some(events))
        })?;
        Ok(written.map_or(Delivered { events: Vec::new(), commit: None }, |(events, commit)| {
            Delivered { events, commit: Some(commit) }
        }))
    }

    /// Says that all events up to `through` have been dealt with. One that lies before what was
    /// acknowledged already changes nothing, and `None` is given.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSuchSubscription`]; [`StoreError::Invalid`]: there is no such event yet.
    /// Others as [`create_task`](Self::create_task).
    pub fn acknowledge(
        &mut self,
        key: OpKey,
        name: &str,
        through: EventId,
    ) -> Result<Option<Commit>> {
        let written = self.write_if(Kind::Deliver, key, |w| {
            let of = w.tx.subscription(name)?.ok_or_else(|| no_such(name))?;
            if through > w.tx.last_event()? {
                let what = format!("event {through}");
                return Err(StoreError::Invalid { what, wanted: "one that is there" }.into());
            }
            if through <= of.cursor {
                return Ok(None);
            }
            w.tx.set_cursor(name, through, w.seq)?;
            Ok(Some(()))
        })?;
        Ok(written.map(|((), commit)| commit))
    }
}

fn no_such(name: &str) -> StoreError {
    StoreError::NoSuchSubscription { name: name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NewEvent;
    use crate::board::fixture::Place;

    fn new(name: &str, delivery: Delivery, task: Option<TaskId>) -> NewSubscription<'_> {
        NewSubscription { name, task, delivery, target: "", from: StartAt::Oldest }
    }

    fn ids(delivered: &Delivered) -> Vec<i64> {
        delivered.events.iter().map(|event| event.id.get()).collect()
    }

    /// A board with two tasks and five events, of which the second task has 2 and 5.
    fn board(place: &mut Place) -> Board {
        let mut board = place.board();
        let first = place.create(&mut board, "a", 0);
        let second = place.create(&mut board, "b", 0);
        let note = NewEvent { kind: "note", payload: "" };
        let _commit = board.append_events(place.key(), first, None, &[note, note]).unwrap();
        let _commit = board.append_events(place.key(), second, None, &[note]).unwrap();
        board
    }

    #[test]
    fn at_most_once_hands_an_event_out_once_whoever_asks() {
        let mut place = Place::new();
        let mut one = board(&mut place);
        let mut two = place.board();
        let _commit = one.subscribe(place.key(), &new("s", Delivery::AtMostOnce, None)).unwrap();
        assert_eq!(ids(&one.deliver(place.key(), "s", 2).unwrap()), [1, 2]);
        assert_eq!(ids(&two.deliver(place.key(), "s", 2).unwrap()), [3, 4]);
        assert_eq!(ids(&one.deliver(place.key(), "s", 9).unwrap()), [5]);
        let rest = two.deliver(place.key(), "s", 9).unwrap();
        assert!(rest.events.is_empty() && rest.commit.is_none());
    }

    #[test]
    fn at_least_once_hands_an_event_out_until_it_is_acknowledged() {
        let mut place = Place::new();
        let mut board = board(&mut place);
        let new = new("s", Delivery::AtLeastOnce, None);
        let _commit = board.subscribe(place.key(), &new).unwrap();
        assert_eq!(ids(&board.deliver(place.key(), "s", 2).unwrap()), [1, 2]);
        assert_eq!(ids(&board.deliver(place.key(), "s", 2).unwrap()), [1, 2]);
        assert!(board.acknowledge(place.key(), "s", EventId::new(2)).unwrap().is_some());
        assert_eq!(ids(&board.deliver(place.key(), "s", 9).unwrap()), [3, 4, 5]);
        // A reader that was slow does not set it back, and none runs ahead of what there is.
        assert!(board.acknowledge(place.key(), "s", EventId::new(1)).unwrap().is_none());
        assert!(board.acknowledge(place.key(), "s", EventId::new(6)).is_err());
        assert_eq!(board.subscriptions().unwrap()[0].cursor.get(), 2);
    }

    #[test]
    fn subscription_to_one_task_gets_its_events_alone() {
        let mut place = Place::new();
        let mut board = board(&mut place);
        let new = new("s", Delivery::AtMostOnce, Some(TaskId::new(2)));
        let _commit = board.subscribe(place.key(), &new).unwrap();
        assert_eq!(ids(&board.deliver(place.key(), "s", 9).unwrap()), [2, 5]);
    }

    #[test]
    fn name_stands_for_one_subscription_until_that_is_ended() {
        let mut place = Place::new();
        let mut board = board(&mut place);
        let new = new("s", Delivery::AtMostOnce, None);
        let _commit = board.subscribe(place.key(), &new).unwrap();
        let error = board.subscribe(place.key(), &new).unwrap_err();
        assert!(matches!(error, StoreError::SubscriptionExists { .. }), "{error:?}");
        let _commit = board.unsubscribe(place.key(), "s").unwrap();
        for error in [
            board.unsubscribe(place.key(), "s").unwrap_err(),
            board.deliver(place.key(), "s", 1).unwrap_err(),
            board.acknowledge(place.key(), "s", EventId::new(1)).unwrap_err(),
        ] {
            assert!(matches!(error, StoreError::NoSuchSubscription { .. }), "{error:?}");
        }
    }
}
