//! Random writes over two connections, each compared with a plain model of the board in memory.
//!
//! The model knows the rules and no SQL. After each write the whole content of the board must be
//! that of the model, and each refusal the one that the model gives.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use super::fixture::{HOUR, Place, dump};
use super::{Board, OpKey, now_ms};
use crate::{FencingToken, NewEvent, NewTask, StoreError, TaskId};

/// One write, with numbers that may or may not be those of something that is there.
#[derive(Clone, Debug)]
enum Op {
    Create { priority: i64 },
    ClaimNext { expired: bool },
    Claim { task: i64, expired: bool },
    Heartbeat { task: i64, token: i64, expired: bool },
    Events { task: i64, token: Option<i64>, count: usize },
    Complete { task: i64, token: i64 },
    TakeBack,
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let (task, token) = (1..6_i64, 1..4_i64);
    prop_oneof![
        3 => (-2..3_i64).prop_map(|priority| Op::Create { priority }),
        4 => any::<bool>().prop_map(|expired| Op::ClaimNext { expired }),
        2 => (task.clone(), any::<bool>()).prop_map(|(task, expired)| Op::Claim { task, expired }),
        3 => (task.clone(), token.clone(), any::<bool>())
            .prop_map(|(task, token, expired)| Op::Heartbeat { task, token, expired }),
        3 => (task.clone(), proptest::option::of(token.clone()), 0..4_usize)
            .prop_map(|(task, token, count)| Op::Events { task, token, count }),
        3 => (task, token).prop_map(|(task, token)| Op::Complete { task, token }),
        3 => Just(Op::TakeBack),
        1 => Just(Op::Reopen),
    ]
}

/// Why the board's rules forbid a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Stale { newest: i64 },
    NoSuchTask,
    NotClaimable,
    Nothing,
}

struct Task {
    priority: i64,
    status: &'static str,
    fence: i64,
    result: Option<&'static str>,
    created: usize,
    changed: usize,
}

struct Run {
    until: i64,
    beats: i64,
    started: usize,
    changed: usize,
    end: Option<(usize, &'static str)>,
}

/// The board as it must be.
#[derive(Default)]
struct Model {
    commits: Vec<String>,
    tasks: BTreeMap<i64, Task>,
    runs: BTreeMap<(i64, i64), Run>,
    events: Vec<String>,
}

impl Model {
    fn commit(&mut self, key: OpKey, rest: &str) -> usize {
        let seq = self.commits.len() + 1;
        self.commits.push(format!("commits {seq} {} {} {rest}", key.session, key.op));
        seq
    }

    fn event(&mut self, rest: &str) {
        let id = self.events.len() + 1;
        self.events.push(format!("events {id} {rest}"));
    }

    fn create(&mut self, key: OpKey, priority: i64) -> i64 {
        let id = i64::try_from(self.tasks.len()).unwrap() + 1;
        let seq = self.commit(key, &format!(r#""create" {id} - 1"#));
        let (status, fence, result) = ("ready", 0, None);
        self.tasks.insert(id, Task { priority, status, fence, result, created: seq, changed: seq });
        self.event(&format!(r#"{id} - "created" "dig" {seq}"#));
        id
    }

    fn next_ready(&self) -> Result<i64, Refusal> {
        let ready = self.tasks.iter().filter(|(_, task)| task.status == "ready");
        let first = ready.min_by_key(|(id, task)| (-task.priority, **id));
        first.map(|(id, _)| *id).ok_or(Refusal::Nothing)
    }

    fn claimable(&self, task: i64) -> Result<i64, Refusal> {
        let status = self.tasks.get(&task).ok_or(Refusal::NoSuchTask)?.status;
        if status == "ready" { Ok(task) } else { Err(Refusal::NotClaimable) }
    }

    fn claim(&mut self, key: OpKey, id: i64, until: i64) -> i64 {
        let token = self.tasks[&id].fence + 1;
        let seq = self.commit(key, &format!(r#""claim" {id} {token} 0"#));
        let task = self.tasks.get_mut(&id).unwrap();
        (task.status, task.fence, task.changed) = ("running", token, seq);
        let run = Run { until, beats: 0, started: seq, changed: seq, end: None };
        self.runs.insert((id, token), run);
        token
    }

    fn live(&self, task: i64, token: i64) -> Result<(), Refusal> {
        let newest = self.tasks.get(&task).ok_or(Refusal::NoSuchTask)?.fence;
        let live = self.runs.get(&(task, token)).is_some_and(|run| run.end.is_none());
        if live { Ok(()) } else { Err(Refusal::Stale { newest }) }
    }

    fn heartbeat(&mut self, key: OpKey, task: i64, token: i64, until: i64) {
        let seq = self.commit(key, &format!(r#""heartbeat" {task} {token} 0"#));
        let run = self.runs.get_mut(&(task, token)).unwrap();
        (run.until, run.beats, run.changed) = (until, run.beats + 1, seq);
    }

    fn events(&mut self, key: OpKey, task: i64, token: Option<i64>, count: usize) {
        let token = token.map_or("-".to_owned(), |token| token.to_string());
        let seq = self.commit(key, &format!(r#""events" {task} {token} {count}"#));
        for number in 0..count {
            self.event(&format!(r#"{task} {token} "note" "{number}" {seq}"#));
        }
    }

    fn end(&mut self, key: OpKey, task: i64, token: i64, done: bool) {
        let (kind, outcome, status, result) = if done {
            ("complete", "completed", "done", Some("deep"))
        } else {
            ("take-back", "taken-back", "ready", None)
        };
        let seq = self.commit(key, &format!(r#""{kind}" {task} {token} 0"#));
        let run = self.runs.get_mut(&(task, token)).unwrap();
        (run.end, run.changed) = (Some((seq, outcome)), seq);
        let task = self.tasks.get_mut(&task).unwrap();
        (task.status, task.result, task.changed) = (status, result, seq);
    }

    fn expired(&self, now: i64) -> Result<(i64, i64), Refusal> {
        let live = self.runs.iter().filter(|(_, run)| run.end.is_none() && run.until <= now);
        let first = live.min_by_key(|((task, _), run)| (run.until, *task));
        first.map(|(key, _)| *key).ok_or(Refusal::Nothing)
    }

    /// The content in the form of [`dump`].
    fn dump(&self) -> Vec<String> {
        let tasks = self.tasks.iter().map(|(id, task)| {
            let Task { priority, status, fence, result, created, changed } = task;
            let result = result.map_or("-".to_owned(), |result| format!("{result:?}"));
            format!(
                r#"tasks {id} "dig" {priority} {status:?} {fence} {result} {created} {changed}"#
            )
        });
        let runs = self.runs.iter().map(|((task, token), run)| {
            let Run { until, beats, started, changed, end } = run;
            let end = end.map_or("- -".to_owned(), |(seq, outcome)| format!("{seq} {outcome:?}"));
            format!(r#"runs {task} {token} "ann" {until} {beats} {started} {changed} {end}"#)
        });
        let commits = self.commits.iter().cloned();
        commits.chain(tasks).chain(runs).chain(self.events.iter().cloned()).collect()
    }
}

fn lease(expired: bool) -> Duration {
    if expired { Duration::ZERO } else { HOUR }
}

fn refusal(error: &StoreError) -> Refusal {
    match error {
        StoreError::StaleClaim { newest, .. } => Refusal::Stale { newest: newest.get() },
        StoreError::NoSuchTask { .. } => Refusal::NoSuchTask,
        StoreError::NotClaimable { .. } => Refusal::NotClaimable,
        other => panic!("{other:?}"),
    }
}

/// Makes the write on the board, and then on the model unless the model refuses it. Gives both
/// refusals.
fn step(
    board: &mut Board,
    model: &mut Model,
    key: OpKey,
    op: &Op,
) -> (Result<(), Refusal>, Result<(), Refusal>) {
    let refused = |error: StoreError| refusal(&error);
    match *op {
        Op::Create { priority } => {
            let made = board.create_task(key, &NewTask { title: "dig", priority }).unwrap();
            assert_eq!(made.0.get(), model.create(key, priority));
            (Ok(()), Ok(()))
        }
        Op::ClaimNext { expired } => {
            let got = board.claim_next(key, "ann", lease(expired)).unwrap().ok_or(Refusal::Nothing);
            let want = model.next_ready();
            (check_claim(model, key, got, want), want.map(|_| ()))
        }
        Op::Claim { task, expired } => {
            let want = model.claimable(task);
            let got = board.claim(key, TaskId::new(task), "ann", lease(expired)).map_err(refused);
            (check_claim(model, key, got, want), want.map(|_| ()))
        }
        Op::Heartbeat { task, token, expired } => {
            let (id, fencing) = (TaskId::new(task), FencingToken::new(token));
            let want = model.live(task, token);
            let got = board.heartbeat(key, id, fencing, lease(expired)).map_err(refused);
            if want.is_ok() {
                let runs = board.runs(id).unwrap();
                let run = runs.iter().find(|run| run.token == fencing).unwrap();
                model.heartbeat(key, task, token, run.lease_until_ms);
            }
            (got.map(|_| ()), want)
        }
        Op::Events { task, token, count } => {
            let want = match token {
                Some(token) => model.live(task, token),
                None if model.tasks.contains_key(&task) => Ok(()),
                None => Err(Refusal::NoSuchTask),
            };
            let payloads: Vec<_> = (0..count).map(|number| number.to_string()).collect();
            let events: Vec<_> =
                payloads.iter().map(|payload| NewEvent { kind: "note", payload }).collect();
            let fencing = token.map(FencingToken::new);
            let got = board.append_events(key, TaskId::new(task), fencing, &events);
            if want.is_ok() {
                model.events(key, task, token, count);
            }
            (got.map(|_| ()).map_err(refused), want)
        }
        Op::Complete { task, token } => {
            let want = model.live(task, token);
            let got = board.complete(key, TaskId::new(task), FencingToken::new(token), "deep");
            if want.is_ok() {
                model.end(key, task, token, true);
            }
            (got.map(|_| ()).map_err(refused), want)
        }
        Op::TakeBack => {
            let got = board.take_back_expired(key).unwrap().ok_or(Refusal::Nothing);
            let want = model.expired(now_ms());
            if let (Ok(got), Ok((task, token))) = (&got, want) {
                assert_eq!((got.task.get(), got.token.get()), (task, token));
                model.end(key, task, token, false);
            }
            (got.map(|_| ()), want.map(|_| ()))
        }
        Op::Reopen => (Ok(()), Ok(())),
    }
}

fn check_claim(
    model: &mut Model,
    key: OpKey,
    got: Result<crate::Claim, Refusal>,
    want: Result<i64, Refusal>,
) -> Result<(), Refusal> {
    let got = got?;
    if let Ok(task) = want {
        assert_eq!(got.task.get(), task);
        assert_eq!(got.token.get(), model.claim(key, task, got.lease_until_ms));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        failure_persistence: Some(Box::new(
            FileFailurePersistence::WithSource("proptest-regressions"),
        )),
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_order_of_writes_over_two_connections_leaves_what_the_model_says(
        ops in vec((any::<bool>(), op()), 1..60),
    ) {
        let mut place = Place::new();
        let mut boards = [place.board(), place.board()];
        let mut model = Model::default();
        for (second, op) in ops {
            let which = usize::from(second);
            if matches!(op, Op::Reopen) {
                boards[which] = place.board();
            }
            let (got, want) = step(&mut boards[which], &mut model, place.key(), &op);
            prop_assert_eq!(got, want, "{:?}", op);
            prop_assert_eq!(dump(boards[1 - which].connection()), model.dump(), "{:?}", op);
        }
    }
}
