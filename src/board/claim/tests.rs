use std::sync::Barrier;
use std::thread;

use super::*;
use crate::board::Session;
use crate::board::fixture::{HOUR, Place, dump, quick};
use crate::{Clock, NewAttachment, NewEvent, NewTask, Options};

fn token(number: i64) -> FencingToken {
    FencingToken::new(number)
}

#[test]
fn claim_hands_out_the_next_token_and_starts_a_run() {
    let mut place = Place::new();
    let mut board = place.board();
    let task = place.create(&mut board, "dig", 0);
    let before = board.clock().now().wall_ms;
    let claim = board.claim(place.key(), task, "ann", HOUR).unwrap();
    assert_eq!((claim.task, claim.token, claim.commit.seq.get()), (task, token(1), 2));
    assert!((before..=board.clock().now().wall_ms).contains(&(claim.lease_until_ms - 3_600_000)));
    let until = claim.lease_until_ms;
    let rows = [
        r#"commits 1 7 1 "create" 1 - 1"#.to_owned(),
        r#"commits 2 7 2 "claim" 1 1 1"#.to_owned(),
        r#"tasks 1 "dig" 0 "running" 1 - 1 2"#.to_owned(),
        format!(r#"runs 1 1 "ann" {until} 0 2 2 - -"#),
        r#"events 1 1 - "created" "dig" 1"#.to_owned(),
        r#"events 2 1 1 "claimed" "ann" 2"#.to_owned(),
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
        r#"commits 2 7 2 "claim" 1 1 1"#.to_owned(),
        r#"commits 3 7 3 "complete" 1 1 1"#.to_owned(),
        r#"tasks 1 "dig" 0 "done" 1 "deep" 1 3"#.to_owned(),
        format!(r#"runs 1 1 "ann" {until} 0 2 3 3 "completed""#),
        r#"events 1 1 - "created" "dig" 1"#.to_owned(),
        r#"events 2 1 1 "claimed" "ann" 2"#.to_owned(),
        r#"events 3 1 1 "completed" "deep" 3"#.to_owned(),
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
        board.submit(place.key(), task, stale, "late").unwrap_err(),
        board.release(place.key(), task, stale, "late").unwrap_err(),
        board.block(place.key(), task, Some(stale), "late").unwrap_err(),
        board.comment(place.key(), task, Some(stale), "ann", "late").unwrap_err(),
        board.attach(place.key(), task, Some(stale), &NewAttachment::default()).unwrap_err(),
        board.take_back(place.key(), task, stale, "late").unwrap_err(),
    ];
    for error in errors {
        let StoreError::StaleClaim { task: of, token, newest } = error else { panic!("{error:?}") };
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
    let task =
        one.create_task(place.key(), &NewTask { title: "dig", ..NewTask::default() }).unwrap().0;
    let claim = two.claim(place.key(), task, "bob", HOUR).unwrap();
    let error = one.claim(place.key(), task, "ann", HOUR).unwrap_err();
    assert!(matches!(error, StoreError::NotClaimable { .. }), "{error:?}");
    assert_eq!(one.runs(task).unwrap().len(), 1);
    let _done = two.complete(place.key(), task, claim.token, "").unwrap();
}

/// Two clocks that count, by their shifts, from the same moment.
fn board_with_clock(place: &Place) -> (Board, Clock) {
    let clock = Clock::default();
    let options = Options { clock: clock.clone(), ..quick() };
    (Board::create(&place.path(), &options).unwrap(), clock)
}

const DAY_MS: i64 = 86_400_000;

#[test]
fn wall_clock_that_is_set_forward_ends_no_lease() {
    let mut place = Place::new();
    let (mut board, clock) = board_with_clock(&place);
    let claim = place.claimed(&mut board, HOUR);
    clock.shift_wall_ms(400 * DAY_MS);
    assert!(board.take_back_expired(place.key()).unwrap().is_none());
    let _beat = board.heartbeat(place.key(), claim.task, claim.token, HOUR).unwrap();
}

#[test]
fn wall_clock_that_is_set_back_keeps_no_lease_alive() {
    let mut place = Place::new();
    let (mut board, clock) = board_with_clock(&place);
    let claim = place.claimed(&mut board, HOUR);
    clock.pass(HOUR * 2);
    clock.shift_wall_ms(-400 * DAY_MS);
    let back = board.take_back_expired(place.key()).unwrap().unwrap();
    assert_eq!((back.task, back.token), (claim.task, claim.token));
    // And the next claim is the next token, whatever the clock says.
    let next = board.claim(place.key(), claim.task, "bob", HOUR).unwrap();
    assert!(next.lease_until_ms < claim.lease_until_ms);
    assert!(board.take_back_expired(place.key()).unwrap().is_none());
    check_stale(&mut place, &mut board, claim.task, claim.token);
}

#[test]
fn lease_of_another_start_of_the_machine_is_over() {
    let mut place = Place::new();
    let claim = place.claimed(&mut place.board(), HOUR);
    let options = Options { clock: Clock::of_boot("another start"), ..quick() };
    let mut board = Board::open(&place.path(), &options).unwrap();
    let back = board.take_back_expired(place.key()).unwrap().unwrap();
    assert_eq!((back.task, back.token), (claim.task, claim.token));
}

#[test]
fn claim_of_a_process_that_lives_is_not_given_away() {
    let mut place = Place::new();
    let mut board = place.board();
    let task = place.create(&mut board, "dig", 0);
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let process = Process::of(child.id().try_into().unwrap()).unwrap();
    let claimant = Claimant { worker: "ann", process: Some(process) };
    let claim = board.claim(place.key(), task, claimant, Duration::ZERO).unwrap();
    assert!(board.take_back_expired(place.key()).unwrap().is_none());
    let error = board.take_back(place.key(), task, claim.token, "mine").unwrap_err();
    assert!(matches!(error, StoreError::WorkerLives { .. }), "{error:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    let back = board.take_back_expired(place.key()).unwrap().unwrap();
    assert_eq!(back.token, claim.token);
}

#[test]
fn claim_within_its_lease_is_taken_back_when_a_person_says_why() {
    let mut place = Place::new();
    let mut board = place.board();
    let claim = place.claimed(&mut board, HOUR);
    let back = board.take_back(place.key(), claim.task, claim.token, "ann is ill").unwrap();
    assert_eq!(back.worker, "ann");
    let run = &board.runs(claim.task).unwrap()[0];
    assert_eq!(run.summary.as_deref(), Some("ann is ill"));
    check_stale(&mut place, &mut board, claim.task, claim.token);
}

#[test]
fn task_that_names_somebody_is_given_to_nobody_else() {
    let mut place = Place::new();
    let mut board = place.board();
    let task = NewTask { title: "dig", priority: 9, assignee: Some("bob"), ..NewTask::default() };
    let (bobs, _) = board.create_task(place.key(), &task).unwrap();
    let anybodys = place.create(&mut board, "rest", 0);
    let error = board.claim(place.key(), bobs, "ann", HOUR).unwrap_err();
    assert!(matches!(error, StoreError::NotForYou { .. }), "{error:?}");
    let claim = board.claim_next(place.key(), "ann", HOUR).unwrap().unwrap();
    assert_eq!(claim.task, anybodys);
    assert!(board.claim_next(place.key(), "ann", HOUR).unwrap().is_none());
    let claim = board.claim_next(place.key(), "bob", HOUR).unwrap().unwrap();
    assert_eq!(claim.task, bobs);
}

#[test]
fn operation_that_is_sent_again_is_told_its_commit_and_changes_nothing() {
    let mut place = Place::new();
    let mut board = place.board();
    let claim = place.claimed(&mut board, HOUR);
    let key = place.key();
    let done = board.complete(key, claim.task, claim.token, "deep").unwrap();
    assert_eq!(board.commit_of(key).unwrap(), Some(done.seq));
    let before = dump(board.connection());
    let error = board.complete(key, claim.task, claim.token, "deep").unwrap_err();
    let StoreError::AlreadyWritten { seq, .. } = error else { panic!("{error:?}") };
    assert_eq!(seq, done.seq);
    assert_eq!(dump(board.connection()), before);
    assert_eq!(board.commit_of(place.key()).unwrap(), None);
}
