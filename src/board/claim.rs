//! Claims: getting a task, keeping it, finishing it.
//!
//! The token decides, the lease only permits. Each claim of a task gets a token greater than all
//! before it, and every write under a claim names its token: if that is not the live claim's, the
//! write is refused whole. A lease that has expired permits anybody to take the claim back
//! (`dispatch`); until somebody does, the claim is live and its holder may go on. That is safe
//! because taking back and writing are transactions of one database: a write comes wholly before
//! the take-back, or it is refused. So no clock has to be right, and clocks that differ cost at
//! worst a claim taken back too early.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};

use crate::board::task::{Standing, Status, TaskId, standing};
use crate::board::{Board, Commit, CommitSeq, Kind, OpKey, Stop, milliseconds, now_ms, record};
use crate::error::{Result, StoreError};

stored_integer! {
    /// The number of a claim of a task: 1, 2, 3, ... for each task.
    FencingToken
}

/// A claim that was made.
#[derive(Clone, Copy, Debug)]
#[must_use = "a claim whose token is lost blocks its task until the lease expires"]
pub struct Claim {
    /// The task.
    pub task: TaskId,
    /// Goes with every write under this claim.
    pub token: FencingToken,
    /// When others may take the claim back, in milliseconds since 1970 on the wall clock.
    pub lease_until_ms: i64,
    /// The acknowledgement.
    pub commit: Commit,
}

/// The task to claim next: of the highest priority the one made first.
pub(super) const NEXT_READY: &str =
    "SELECT id, fence FROM tasks WHERE status = 'ready' ORDER BY priority DESC, id LIMIT 1";

impl Board {
    /// Claims the ready task of the highest priority, and of these the oldest.
    ///
    /// `None` means that no task is ready; nothing was written. The lease runs from the moment the
    /// write lock was got.
    ///
    /// # Errors
    ///
    /// As [`create_task`](Self::create_task).
    pub fn claim_next(
        &mut self,
        key: OpKey,
        worker: &str,
        lease: Duration,
    ) -> Result<Option<Claim>> {
        let written = self.write_if(Kind::Claim, key, |conn| {
            let next = conn
                .prepare_cached(NEXT_READY)?
                .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let Some((task, newest)) = next else { return Ok(None) };
            start_run(conn, key, task, newest, worker, lease).map(Some)
        })?;
        Ok(written.map(claim_of))
    }

    /// Claims that task.
    ///
    /// # Errors
    ///
    /// - [`StoreError::NoSuchTask`], [`StoreError::NotClaimable`]: nothing was written.
    /// - Others as [`create_task`](Self::create_task).
    pub fn claim(
        &mut self,
        key: OpKey,
        task: TaskId,
        worker: &str,
        lease: Duration,
    ) -> Result<Claim> {
        let written = self.write(Kind::Claim, key, |conn| {
            let Standing { status, fence } = standing(conn, task)?;
            if status != Status::Ready {
                return Err(StoreError::NotClaimable { task, status }.into());
            }
            start_run(conn, key, task, fence, worker, lease)
        })?;
        Ok(claim_of(written))
    }

    /// Says that the holder of the claim is alive: the lease now runs `lease` from now, which may
    /// be shorter than before.
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
        let ((), commit) = self.write(Kind::Heartbeat, key, |conn| {
            let seq = record(conn, Kind::Heartbeat, key, task, Some(token), 0)?;
            let changed = conn
                .prepare_cached(
                    "UPDATE runs SET heartbeats = heartbeats + 1, lease_until_ms = ?3, \
                     changed_seq = ?4 \
                     WHERE task_id = ?1 AND token = ?2 AND ended_seq IS NULL",
                )?
                .execute((task, token, lease_until_ms(lease), seq))?;
            if changed == 0 {
                return Err(stale(conn, task, token));
            }
            Ok(((), seq))
        })?;
        Ok(commit)
    }

    /// Ends the claim and the task with it: the task is done and has `result`.
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
        let ((), commit) = self.write(Kind::Complete, key, |conn| {
            let seq = record(conn, Kind::Complete, key, task, Some(token), 0)?;
            let changed = conn
                .prepare_cached(
                    "UPDATE runs SET ended_seq = ?3, changed_seq = ?3, outcome = 'completed' \
                     WHERE task_id = ?1 AND token = ?2 AND ended_seq IS NULL",
                )?
                .execute((task, token, seq))?;
            if changed == 0 {
                return Err(stale(conn, task, token));
            }
            conn.prepare_cached(
                "UPDATE tasks SET status = 'done', result = ?2, changed_seq = ?3 WHERE id = ?1",
            )?
            .execute((task, result, seq))?;
            Ok(((), seq))
        })?;
        Ok(commit)
    }
}

/// What a claim is but for its acknowledgement.
type Started = (TaskId, FencingToken, i64);

/// Hands out the next token of a task that is ready. `newest` is the newest one so far.
fn start_run(
    conn: &Connection,
    key: OpKey,
    task: TaskId,
    newest: FencingToken,
    worker: &str,
    lease: Duration,
) -> Result<(Started, CommitSeq), Stop> {
    let token = FencingToken::new(newest.get().saturating_add(1));
    let lease_until_ms = lease_until_ms(lease);
    let seq = record(conn, Kind::Claim, key, task, Some(token), 0)?;
    conn.prepare_cached(
        "UPDATE tasks SET fence = ?2, status = 'running', changed_seq = ?3 WHERE id = ?1",
    )?
    .execute((task, token, seq))?;
    conn.prepare_cached(
        "INSERT INTO runs (task_id, token, worker, lease_until_ms, started_seq, changed_seq) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?5)",
    )?
    .execute((task, token, worker, lease_until_ms, seq))?;
    Ok(((task, token, lease_until_ms), seq))
}

fn claim_of(((task, token, lease_until_ms), commit): (Started, Commit)) -> Claim {
    Claim { task, token, lease_until_ms, commit }
}

/// Why no live claim has that token.
pub(super) fn stale(conn: &Connection, task: TaskId, token: FencingToken) -> Stop {
    match standing(conn, task) {
        Ok(Standing { fence, .. }) => StoreError::StaleClaim { task, token, newest: fence }.into(),
        Err(stop) => stop,
    }
}

fn lease_until_ms(lease: Duration) -> i64 {
    now_ms().saturating_add(milliseconds(lease))
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::*;
    use crate::board::Session;
    use crate::board::fixture::{HOUR, Place, dump, quick};
    use crate::{NewEvent, NewTask, Options};

    fn token(number: i64) -> FencingToken {
        FencingToken::new(number)
    }

    #[test]
    fn claim_hands_out_the_next_token_and_starts_a_run() {
        let mut place = Place::new();
        let mut board = place.board();
        let task = place.create(&mut board, "dig", 0);
        let before = now_ms();
        let claim = board.claim(place.key(), task, "ann", HOUR).unwrap();
        assert_eq!((claim.task, claim.token, claim.commit.seq.get()), (task, token(1), 2));
        assert!((before..=now_ms()).contains(&(claim.lease_until_ms - 3_600_000)));
        let until = claim.lease_until_ms;
        let rows = [
            r#"commits 1 7 1 "create" 1 - 1"#.to_owned(),
            r#"commits 2 7 2 "claim" 1 1 0"#.to_owned(),
            r#"tasks 1 "dig" 0 "running" 1 - 1 2"#.to_owned(),
            format!(r#"runs 1 1 "ann" {until} 0 2 2 - -"#),
            r#"events 1 1 - "created" "dig" 1"#.to_owned(),
        ];
        assert_eq!(dump(board.connection()), rows);
    }

    #[test]
    fn heartbeat_changes_its_run_and_nothing_else() {
        let mut place = Place::new();
        let mut board = place.board();
        let claim = place.claimed(&mut board, HOUR);
        let before = dump(board.connection());
        let commit = board.heartbeat(place.key(), claim.task, claim.token, HOUR * 2).unwrap();
        let until = board.runs(claim.task).unwrap()[0].lease_until_ms;
        assert!(until >= claim.lease_until_ms + 3_600_000);
        let after = dump(board.connection());
        assert_eq!(after.len(), before.len() + 1);
        assert_eq!(commit.seq.get(), 3);
        assert_eq!(after[2], r#"commits 3 7 3 "heartbeat" 1 1 0"#);
        assert_eq!(after[3], before[2], "the task's row");
        assert_eq!(after[4], format!(r#"runs 1 1 "ann" {until} 1 2 3 - -"#));
    }

    #[test]
    fn heartbeat_may_shorten_the_lease() {
        let mut place = Place::new();
        let mut board = place.board();
        let claim = place.claimed(&mut board, HOUR);
        let key = place.key();
        let _beat = board.heartbeat(key, claim.task, claim.token, Duration::ZERO).unwrap();
        assert!(board.take_back_expired(place.key()).unwrap().is_some());
    }

    #[test]
    fn completion_ends_the_run_and_the_task() {
        let mut place = Place::new();
        let mut board = place.board();
        let claim = place.claimed(&mut board, HOUR);
        let commit = board.complete(place.key(), claim.task, claim.token, "deep").unwrap();
        assert_eq!(commit.seq.get(), 3);
        let until = claim.lease_until_ms;
        let rows = [
            r#"commits 1 7 1 "create" 1 - 1"#.to_owned(),
            r#"commits 2 7 2 "claim" 1 1 0"#.to_owned(),
            r#"commits 3 7 3 "complete" 1 1 0"#.to_owned(),
            r#"tasks 1 "dig" 0 "done" 1 "deep" 1 3"#.to_owned(),
            format!(r#"runs 1 1 "ann" {until} 0 2 3 3 "completed""#),
            r#"events 1 1 - "created" "dig" 1"#.to_owned(),
        ];
        assert_eq!(dump(board.connection()), rows);
    }

    #[test]
    fn next_task_is_the_oldest_of_the_highest_priority() {
        let mut place = Place::new();
        let mut board = place.board();
        for priority in [1, 5, -2, 5, i64::MAX] {
            place.create(&mut board, "dig", priority);
        }
        let mut order = Vec::new();
        while let Some(claim) = board.claim_next(place.key(), "ann", HOUR).unwrap() {
            order.push(claim.task.get());
        }
        assert_eq!(order, [5, 2, 4, 1, 3]);
    }

    #[test]
    fn claim_with_nothing_ready_writes_nothing() {
        let mut place = Place::new();
        let mut board = place.board();
        let _claim = place.claimed(&mut board, HOUR);
        let before = dump(board.connection());
        assert!(board.claim_next(place.key(), "bob", HOUR).unwrap().is_none());
        assert_eq!(dump(board.connection()), before);
    }

    #[test]
    fn task_that_is_running_or_done_cannot_be_claimed() {
        let mut place = Place::new();
        let mut board = place.board();
        let Claim { task, token, .. } = place.claimed(&mut board, Duration::ZERO);
        let before = dump(board.connection());
        let error = board.claim(place.key(), task, "bob", HOUR).unwrap_err();
        let StoreError::NotClaimable { status, .. } = error else { panic!("{error:?}") };
        assert_eq!(status, Status::Running);
        assert_eq!(dump(board.connection()), before);

        let _done = board.complete(place.key(), task, token, "").unwrap();
        let before = dump(board.connection());
        let error = board.claim(place.key(), task, "bob", HOUR).unwrap_err();
        let StoreError::NotClaimable { status, .. } = error else { panic!("{error:?}") };
        assert_eq!(status, Status::Done);
        assert_eq!(dump(board.connection()), before);
    }

    /// Each write that names the token is refused, for that reason, and changes nothing.
    #[track_caller]
    fn check_stale(place: &mut Place, board: &mut Board, task: TaskId, stale: FencingToken) {
        let fence = board.task(task).unwrap().unwrap().fence;
        let before = dump(board.connection());
        let event = NewEvent { kind: "k", payload: "p" };
        let errors = [
            board.heartbeat(place.key(), task, stale, HOUR).unwrap_err(),
            board.append_events(place.key(), task, Some(stale), &[event]).unwrap_err(),
            board.append_events(place.key(), task, Some(stale), &[]).unwrap_err(),
            board.complete(place.key(), task, stale, "late").unwrap_err(),
        ];
        for error in errors {
            let StoreError::StaleClaim { task: of, token, newest } = error else {
                panic!("{error:?}")
            };
            assert_eq!((of, token, newest), (task, stale, fence));
        }
        assert_eq!(dump(board.connection()), before);
    }

    #[test]
    fn claim_that_was_taken_back_cannot_write() {
        let mut place = Place::new();
        let mut board = place.board();
        let claim = place.claimed(&mut board, Duration::ZERO);
        let _back = board.take_back_expired(place.key()).unwrap().unwrap();
        check_stale(&mut place, &mut board, claim.task, claim.token);
    }

    #[test]
    fn claim_that_was_followed_by_another_cannot_write() {
        let mut place = Place::new();
        let mut board = place.board();
        let old = place.claimed(&mut board, Duration::ZERO);
        let _back = board.take_back_expired(place.key()).unwrap().unwrap();
        let new = board.claim(place.key(), old.task, "bob", HOUR).unwrap();
        assert_eq!(new.token, token(2));
        check_stale(&mut place, &mut board, old.task, old.token);
    }

    #[test]
    fn claim_whose_task_is_done_cannot_write() {
        let mut place = Place::new();
        let mut board = place.board();
        let claim = place.claimed(&mut board, HOUR);
        let _done = board.complete(place.key(), claim.task, claim.token, "").unwrap();
        check_stale(&mut place, &mut board, claim.task, claim.token);
    }

    #[test]
    fn token_that_was_never_handed_out_cannot_write() {
        let mut place = Place::new();
        let mut board = place.board();
        let claim = place.claimed(&mut board, HOUR);
        for number in [i64::MIN, -1, 0, 2, i64::MAX] {
            check_stale(&mut place, &mut board, claim.task, token(number));
        }
        let unclaimed = place.create(&mut board, "rest", 0);
        check_stale(&mut place, &mut board, unclaimed, token(1));
    }

    #[test]
    fn token_of_one_task_is_of_no_use_on_another() {
        let mut place = Place::new();
        let mut board = place.board();
        let first = place.claimed(&mut board, Duration::ZERO);
        let _back = board.take_back_expired(place.key()).unwrap().unwrap();
        let first = board.claim(place.key(), first.task, "ann", HOUR).unwrap();
        let second = place.claimed(&mut board, HOUR);
        check_stale(&mut place, &mut board, second.task, first.token);
    }

    #[test]
    fn write_for_a_task_that_is_not_there_changes_nothing() {
        let mut place = Place::new();
        let mut board = place.board();
        let task = TaskId::new(9);
        let before = dump(board.connection());
        let errors = [
            board.claim(place.key(), task, "ann", HOUR).unwrap_err(),
            board.heartbeat(place.key(), task, token(1), HOUR).unwrap_err(),
            board.append_events(place.key(), task, Some(token(1)), &[]).unwrap_err(),
            board.append_events(place.key(), task, None, &[]).unwrap_err(),
            board.complete(place.key(), task, token(1), "").unwrap_err(),
        ];
        for error in errors {
            let StoreError::NoSuchTask { task: of } = error else { panic!("{error:?}") };
            assert_eq!(of, task);
        }
        assert_eq!(dump(board.connection()), before);
    }

    #[test]
    fn holder_of_an_expired_lease_may_go_on_until_it_is_taken_back() {
        let mut place = Place::new();
        let mut board = place.board();
        let Claim { task, token, .. } = place.claimed(&mut board, Duration::ZERO);
        let event = NewEvent { kind: "k", payload: "p" };
        let _commit = board.append_events(place.key(), task, Some(token), &[event]).unwrap();
        let _commit = board.heartbeat(place.key(), task, token, HOUR).unwrap();
        assert!(board.take_back_expired(place.key()).unwrap().is_none());
        let _commit = board.complete(place.key(), task, token, "").unwrap();
    }

    #[test]
    fn lease_too_long_for_the_calendar_never_expires() {
        let mut place = Place::new();
        let mut board = place.board();
        let claim = place.claimed(&mut board, Duration::MAX);
        assert_eq!(claim.lease_until_ms, i64::MAX);
        assert!(board.take_back_expired(place.key()).unwrap().is_none());
    }

    #[test]
    fn each_task_is_claimed_once_however_many_connections_race_for_it() {
        const TASKS: usize = 40;
        let mut place = Place::new();
        let mut board = place.board();
        for _ in 0..TASKS {
            place.create(&mut board, "dig", 0);
        }
        let options = Options { busy_timeout: Duration::from_secs(20), ..quick() };
        let start = Barrier::new(2);
        let worker = |session: i64| {
            let mut board = Board::open(&place.path(), &options).unwrap();
            let mut session = Session::new(session);
            let mut got = Vec::new();
            start.wait();
            while let Some(claim) = board.claim_next(session.next_key(), "ann", HOUR).unwrap() {
                got.push(claim.task.get());
            }
            got
        };
        let mut got = thread::scope(|scope| {
            let others = scope.spawn(|| worker(101));
            let mut got = worker(102);
            got.extend(others.join().unwrap());
            got
        });
        got.sort_unstable();
        assert_eq!(got, (1..=40).collect::<Vec<i64>>());
        assert_eq!(board.commit_seq().unwrap().get(), 80);
    }

    #[test]
    fn one_of_two_connections_that_claim_the_same_task_is_refused() {
        let mut place = Place::new();
        let (mut one, mut two) = (place.board(), place.board());
        let task = one.create_task(place.key(), &NewTask { title: "dig", priority: 0 }).unwrap().0;
        let claim = two.claim(place.key(), task, "bob", HOUR).unwrap();
        let error = one.claim(place.key(), task, "ann", HOUR).unwrap_err();
        assert!(matches!(error, StoreError::NotClaimable { .. }), "{error:?}");
        assert_eq!(one.runs(task).unwrap().len(), 1);
        let _done = two.complete(place.key(), task, claim.token, "").unwrap();
    }

    /// The query is answered from that index, in its order.
    #[track_caller]
    fn check_plan(sql: &str, plan: &str) {
        let mut place = Place::new();
        let mut board = place.board();
        let _claim = place.claimed(&mut board, HOUR);
        let mut explained =
            board.connection().prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let unbound = vec![0; explained.parameter_count()];
        let steps = explained
            .query_map(rusqlite::params_from_iter(unbound), |row| row.get::<_, String>(3))
            .unwrap()
            .collect::<Result<Vec<_>, _>>()
            .unwrap();
        assert_eq!(steps, [plan]);
    }

    #[test]
    fn next_task_is_found_by_its_index_without_sorting() {
        check_plan(NEXT_READY, "SCAN tasks USING INDEX tasks_ready");
    }

    #[test]
    fn expired_lease_is_found_by_its_index_without_sorting() {
        let plan = "SEARCH runs USING INDEX runs_lease (lease_until_ms<?)";
        check_plan(crate::board::dispatch::EXPIRED, plan);
    }
}
