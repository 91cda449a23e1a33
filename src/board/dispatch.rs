//! The dispatcher's step: taking back what nobody keeps alive any more.
//!
//! Any process may make the step, and any number at the same time: a claim is taken back once,
//! whoever comes first. Nobody is killed for it and nobody is asked; the old holder learns of it
//! by its next write being refused.
//!
//! In: the wall clock. Out: [`TakenBack`]. Not here: starting workers, and stopping them.

use rusqlite::OptionalExtension;

use crate::board::claim::FencingToken;
use crate::board::task::TaskId;
use crate::board::{Board, Commit, Kind, OpKey, Session, now_ms, record};
use crate::error::{Result, StoreError};

/// A claim that was taken back: its task is ready again.
#[derive(Clone, Debug)]
#[must_use = "the acknowledgement in it cannot be checked after a crash if nobody records it"]
pub struct TakenBack {
    /// The task.
    pub task: TaskId,
    /// The token that is not live any more.
    pub token: FencingToken,
    /// Who held it.
    pub worker: String,
    /// The acknowledgement.
    pub commit: Commit,
}

/// What one step of the dispatcher did.
#[derive(Debug)]
#[must_use = "the acknowledgements in it cannot be checked after a crash if nobody records them"]
pub struct TickReport {
    /// The claims that were taken back, in that order.
    pub taken_back: Vec<TakenBack>,
    /// Why the step ended before all that had expired was taken back. What `taken_back` lists
    /// stands nevertheless.
    pub cut_short: Option<StoreError>,
}

/// The live run whose lease expired first.
pub(super) const EXPIRED: &str = "SELECT task_id, token, worker FROM runs \
     WHERE ended_seq IS NULL AND lease_until_ms <= ? ORDER BY lease_until_ms, task_id LIMIT 1";

impl Board {
    /// Takes back the claim whose lease expired longest ago, and makes its task ready.
    ///
    /// `None` means that no lease has expired; nothing was written.
    ///
    /// # Errors
    ///
    /// As [`create_task`](Self::create_task).
    pub fn take_back_expired(&mut self, key: OpKey) -> Result<Option<TakenBack>> {
        self.take_back(key, now_ms)
    }

    /// Takes back all claims whose lease expired before now, each in a transaction of its own.
    ///
    /// # Errors
    ///
    /// As [`create_task`](Self::create_task), if it fails at once. A failure after something was
    /// taken back is in [`TickReport::cut_short`], so that no acknowledgement is lost.
    pub fn tick(&mut self, session: &mut Session) -> Result<TickReport> {
        // One look at the clock: else claims that expire as fast as this goes keep it for ever.
        let now = now_ms();
        let mut report = TickReport { taken_back: Vec::new(), cut_short: None };
        loop {
            match self.take_back(session.next_key(), || now) {
                Ok(Some(taken_back)) => report.taken_back.push(taken_back),
                Ok(None) => return Ok(report),
                Err(error) if report.taken_back.is_empty() => return Err(error),
                Err(error) => {
                    report.cut_short = Some(error);
                    return Ok(report);
                }
            }
        }
    }

    /// `now_ms` is asked once the write lock is held.
    fn take_back(&mut self, key: OpKey, now_ms: impl FnOnce() -> i64) -> Result<Option<TakenBack>> {
        let written = self.write_if(Kind::TakeBack, key, |conn| {
            let expired = conn
                .prepare_cached(EXPIRED)?
                .query_row([now_ms()], |row| {
                    let run: (TaskId, FencingToken, String) =
                        (row.get(0)?, row.get(1)?, row.get(2)?);
                    Ok(run)
                })
                .optional()?;
            let Some((task, token, worker)) = expired else { return Ok(None) };
            let seq = record(conn, Kind::TakeBack, key, task, Some(token), 0)?;
            conn.prepare_cached(
                "UPDATE runs SET ended_seq = ?3, changed_seq = ?3, outcome = 'taken-back' \
                 WHERE task_id = ?1 AND token = ?2",
            )?
            .execute((task, token, seq))?;
            conn.prepare_cached(
                "UPDATE tasks SET status = 'ready', changed_seq = ?2 WHERE id = ?1",
            )?
            .execute((task, seq))?;
            Ok(Some(((task, token, worker), seq)))
        })?;
        Ok(written.map(|((task, token, worker), commit)| TakenBack { task, token, worker, commit }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::board::fixture::{HOUR, Place, dump};

    #[test]
    fn claim_taken_back_ends_its_run_and_makes_the_task_ready() {
        let mut place = Place::new();
        let mut board = place.board();
        let claim = place.claimed(&mut board, Duration::ZERO);
        let back = board.take_back_expired(place.key()).unwrap().unwrap();
        assert_eq!((back.task, back.token), (claim.task, claim.token));
        assert_eq!((back.worker.as_str(), back.commit.seq.get()), ("ann", 3));
        let until = claim.lease_until_ms;
        let rows = [
            r#"commits 1 7 1 "create" 1 - 1"#.to_owned(),
            r#"commits 2 7 2 "claim" 1 1 0"#.to_owned(),
            r#"commits 3 7 3 "take-back" 1 1 0"#.to_owned(),
            r#"tasks 1 "dig" 0 "ready" 1 - 1 3"#.to_owned(),
            format!(r#"runs 1 1 "ann" {until} 0 2 3 3 "taken-back""#),
            r#"events 1 1 - "created" "dig" 1"#.to_owned(),
        ];
        assert_eq!(dump(board.connection()), rows);
    }

    #[test]
    fn lease_that_has_not_expired_is_left_alone() {
        let mut place = Place::new();
        let mut board = place.board();
        let _claim = place.claimed(&mut board, HOUR);
        let before = dump(board.connection());
        assert!(board.take_back_expired(place.key()).unwrap().is_none());
        assert_eq!(dump(board.connection()), before);
    }

    #[test]
    fn lease_expires_at_its_millisecond_and_not_before() {
        let mut place = Place::new();
        let mut board = place.board();
        let until = place.claimed(&mut board, HOUR).lease_until_ms;
        assert!(board.take_back(place.key(), || until - 1).unwrap().is_none());
        assert!(board.take_back(place.key(), || until).unwrap().is_some());
    }

    #[test]
    fn lease_that_expired_longest_ago_is_taken_back_first() {
        let mut place = Place::new();
        let mut board = place.board();
        let late = place.claimed(&mut board, HOUR * 2);
        let early = place.claimed(&mut board, HOUR);
        let first = board.take_back(place.key(), || i64::MAX).unwrap().unwrap();
        let second = board.take_back(place.key(), || i64::MAX).unwrap().unwrap();
        assert_eq!((first.task, second.task), (early.task, late.task));
    }

    #[test]
    fn tick_takes_back_all_that_expired_and_nothing_else() {
        let mut place = Place::new();
        let mut board = place.board();
        let first = place.claimed(&mut board, Duration::ZERO);
        let second = place.claimed(&mut board, Duration::ZERO);
        let alive = place.claimed(&mut board, HOUR);
        let report = board.tick(&mut Session::new(9)).unwrap();
        let mut tasks: Vec<_> = report.taken_back.iter().map(|run| run.task).collect();
        tasks.sort();
        assert_eq!(tasks, [first.task, second.task]);
        assert!(report.cut_short.is_none());
        assert_eq!(board.runs(alive.task).unwrap()[0].outcome, None);
        let report = board.tick(&mut Session::new(10)).unwrap();
        assert!(report.taken_back.is_empty());
    }

    #[test]
    fn acknowledgements_of_a_tick_that_is_cut_short_are_not_lost() {
        let mut place = Place::new();
        let mut board = place.board();
        let first = place.claimed(&mut board, Duration::ZERO);
        let second = place.create(&mut board, "x".repeat(100).as_str(), 0);
        let second = board.claim(place.key(), second, "bob", Duration::from_millis(1)).unwrap();
        let stop = format!(
            "CREATE TEMP TRIGGER stop BEFORE UPDATE ON runs WHEN old.task_id = {} \
             BEGIN SELECT raise(ABORT, 'no further'); END",
            second.task
        );
        board.connection().execute_batch(&stop).unwrap();
        while now_ms() < second.lease_until_ms {}
        let report = board.tick(&mut Session::new(9)).unwrap();
        assert_eq!(report.taken_back.len(), 1);
        assert_eq!(report.taken_back[0].task, first.task);
        assert!(matches!(report.cut_short, Some(StoreError::Sqlite { .. })), "{report:?}");
        assert!(matches!(board.tick(&mut Session::new(10)), Err(StoreError::Sqlite { .. })));
        assert_eq!(board.commit_seq().unwrap(), report.taken_back[0].commit.seq);
    }

    #[test]
    fn two_dispatchers_take_a_claim_back_once() {
        let mut place = Place::new();
        let (mut one, mut two) = (place.board(), place.board());
        let _claim = place.claimed(&mut one, Duration::ZERO);
        assert_eq!(two.tick(&mut Session::new(8)).unwrap().taken_back.len(), 1);
        assert_eq!(one.tick(&mut Session::new(9)).unwrap().taken_back.len(), 0);
    }
}
