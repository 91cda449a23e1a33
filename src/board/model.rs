//! Random writes over two connections, each compared with a plain model of the board in memory.
//!
//! The model knows the rules and no SQL. After each write the whole content of the board must be
//! that of the model, and each refusal the one that the model gives.

mod op;

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use op::{End, Op, op};

use super::fixture::{HOUR, Place, dump};
use super::{Board, OpKey};
use crate::board::task::Status;
use crate::{FencingToken, NewEvent, NewTask, StoreError, TaskId};

/// Where a task stands that cannot be made to wait any more.
const LATE: [Status; 4] = [Status::Running, Status::Review, Status::Done, Status::Archived];

/// Why the board's rules forbid a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Stale { newest: i64 },
    NoSuchTask,
    NotClaimable,
    NotAllowed,
    Cycle,
    NoSuchLink,
    Exists { task: i64 },
    Written { seq: usize },
    Nothing,
}

struct Task {
    priority: i64,
    status: Status,
    fence: i64,
    result: Option<&'static str>,
    created: usize,
    changed: usize,
}

struct Run {
    until: i64,
    until_boot: i64,
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
    links: BTreeMap<(i64, i64), usize>,
    comments: Vec<String>,
    idempotency: BTreeMap<u8, i64>,
    /// The last key that wrote, and its commit.
    last: Option<(OpKey, usize)>,
}

type Claimed = (i64, Option<i64>);

impl Model {
    /// Records a write of that kind, and its events.
    fn commit(&mut self, key: OpKey, kind: &str, about: Claimed, events: &[(Claimed, &str, &str)]) {
        let seq = self.commits.len() + 1;
        let token = show(about.1);
        let OpKey { session, op } = key;
        let row =
            format!("commits {seq} {session} {op} {kind:?} {} {token} {}", about.0, events.len());
        self.commits.push(row);
        for ((task, token), kind, payload) in events {
            let (id, token) = (self.events.len() + 1, show(*token));
            self.events.push(format!("events {id} {task} {token} {kind:?} {payload:?} {seq}"));
        }
        self.last = Some((key, seq));
    }

    fn seq(&self) -> usize {
        self.commits.len() + 1
    }

    fn task(&self, task: i64) -> Result<&Task, Refusal> {
        self.tasks.get(&task).ok_or(Refusal::NoSuchTask)
    }

    fn set(&mut self, task: i64, status: Status) {
        let seq = self.seq();
        let task = self.tasks.get_mut(&task).unwrap();
        (task.status, task.changed) = (status, seq);
    }

    fn waits(&self, task: i64) -> bool {
        let of = self.links.keys().filter(|(_, child)| *child == task);
        of.into_iter().any(|(parent, _)| !self.tasks[parent].status.is_settled())
    }

    fn rest(&self, task: i64) -> Status {
        if self.waits(task) { Status::Todo } else { Status::Ready }
    }

    /// Makes those of `tasks` ready that wait for nothing more, and gives them.
    fn free(&mut self, tasks: impl IntoIterator<Item = i64>) -> Vec<i64> {
        let free: Vec<_> = tasks
            .into_iter()
            .filter(|task| self.tasks[task].status == Status::Todo && !self.waits(*task))
            .collect();
        for task in &free {
            self.set(*task, Status::Ready);
        }
        free
    }

    fn children(&self, parent: i64) -> Vec<i64> {
        self.links.keys().filter(|(of, _)| *of == parent).map(|(_, child)| *child).collect()
    }

    /// Whether `task` is `root` or below it.
    fn below(&self, root: i64, task: i64) -> bool {
        root == task || self.children(root).into_iter().any(|child| self.below(child, task))
    }

    fn live(&self, task: i64, token: i64) -> Result<(), Refusal> {
        let newest = self.task(task)?.fence;
        let live = self.runs.get(&(task, token)).is_some_and(|run| run.end.is_none());
        if live { Ok(()) } else { Err(Refusal::Stale { newest }) }
    }

    fn may_write(&self, task: i64, token: Option<i64>) -> Result<(), Refusal> {
        match token {
            Some(token) => self.live(task, token),
            None => self.task(task).map(|_| ()),
        }
    }

    /// Where the task stands, if it may from there.
    fn unheld(&self, task: i64, may: impl Fn(Status) -> bool) -> Result<Status, Refusal> {
        let status = self.task(task)?.status;
        if may(status) { Ok(status) } else { Err(Refusal::NotAllowed) }
    }

    fn next_ready(&self) -> Result<i64, Refusal> {
        let ready = self.tasks.iter().filter(|(_, task)| task.status == Status::Ready);
        let first = ready.min_by_key(|(id, task)| (-task.priority, **id));
        first.map(|(id, _)| *id).ok_or(Refusal::Nothing)
    }

    fn end_run(&mut self, claim: (i64, i64), outcome: &'static str) {
        let seq = self.seq();
        let run = self.runs.get_mut(&claim).unwrap();
        (run.end, run.changed) = (Some((seq, outcome)), seq);
    }

    fn promoted(tasks: &[i64]) -> Vec<(Claimed, &'static str, &'static str)> {
        tasks.iter().map(|task| ((*task, None), "promoted", "ready")).collect()
    }

    fn create(
        &mut self,
        key: OpKey,
        (priority, parent, idempotency): (i64, Option<i64>, Option<u8>),
    ) -> Result<(), Refusal> {
        if let Some(task) = idempotency.and_then(|key| self.idempotency.get(&key)) {
            return Err(Refusal::Exists { task: *task });
        }
        let waits = match parent {
            Some(parent) => !self.task(parent)?.status.is_settled(),
            None => false,
        };
        let id = i64::try_from(self.tasks.len()).unwrap() + 1;
        let seq = self.seq();
        let status = if waits { Status::Todo } else { Status::Ready };
        let (fence, result) = (0, None);
        self.tasks.insert(id, Task { priority, status, fence, result, created: seq, changed: seq });
        self.links.extend(parent.map(|parent| ((parent, id), seq)));
        self.idempotency.extend(idempotency.map(|key| (key, id)));
        self.commit(key, "create", (id, None), &[((id, None), "created", "dig")]);
        Ok(())
    }

    fn link(&mut self, key: OpKey, parent: i64, child: i64) -> Result<(), Refusal> {
        let waits = !self.task(parent)?.status.is_settled();
        let below = self.task(child)?.status;
        if self.below(child, parent) {
            return Err(Refusal::Cycle);
        }
        if waits && LATE.contains(&below) {
            return Err(Refusal::NotAllowed);
        }
        let seq = self.seq();
        if self.links.contains_key(&(parent, child)) {
            self.commit(key, "link", (child, None), &[]);
            return Ok(());
        }
        self.links.insert((parent, child), seq);
        if waits && below == Status::Ready {
            self.set(child, Status::Todo);
        }
        self.commit(key, "link", (child, None), &[((child, None), "linked", &parent.to_string())]);
        Ok(())
    }

    fn unlink(&mut self, key: OpKey, parent: i64, child: i64) -> Result<(), Refusal> {
        self.links.remove(&(parent, child)).ok_or(Refusal::NoSuchLink)?;
        let parent = parent.to_string();
        let mut events = vec![((child, None), "unlinked", parent.as_str())];
        let freed = self.free([child]);
        events.extend(Self::promoted(&freed));
        self.commit(key, "unlink", (child, None), &events);
        Ok(())
    }

    fn claimable(&self, task: i64) -> Result<i64, Refusal> {
        match self.task(task)?.status {
            Status::Ready => Ok(task),
            _ => Err(Refusal::NotClaimable),
        }
    }

    fn claim(&mut self, key: OpKey, id: i64, (until, until_boot): (i64, i64)) -> i64 {
        let token = self.tasks[&id].fence + 1;
        let seq = self.seq();
        self.set(id, Status::Running);
        self.tasks.get_mut(&id).unwrap().fence = token;
        let run = Run { until, until_boot, beats: 0, started: seq, changed: seq, end: None };
        self.runs.insert((id, token), run);
        let claim = (id, Some(token));
        self.commit(key, "claim", claim, &[(claim, "claimed", "ann")]);
        token
    }

    fn end(&mut self, key: OpKey, claim: (i64, i64), how: End) -> Result<(), Refusal> {
        let (task, token) = claim;
        self.live(task, token)?;
        let (kind, outcome, event, said) = match how {
            End::Complete => ("complete", "completed", "completed", "deep"),
            End::Submit => ("submit", "submitted", "submitted", "so so"),
            End::Release => ("release", "released", "released", "tired"),
            End::Block => ("block", "blocked", "blocked", "stuck"),
        };
        self.end_run(claim, outcome);
        let status = match how {
            End::Complete => Status::Done,
            End::Submit => Status::Review,
            End::Release => self.rest(task),
            End::Block => Status::Blocked,
        };
        self.set(task, status);
        if matches!(how, End::Complete | End::Submit) {
            self.tasks.get_mut(&task).unwrap().result = Some(said);
        }
        let about = (task, Some(token));
        let mut events = vec![(about, event, said)];
        let freed =
            if status == Status::Done { self.free(self.children(task)) } else { Vec::new() };
        events.extend(Self::promoted(&freed));
        self.commit(key, kind, about, &events);
        Ok(())
    }

    fn take_back(&mut self, key: OpKey, (task, token): (i64, i64)) {
        self.end_run((task, token), "taken-back");
        self.set(task, self.rest(task));
        let about = (task, Some(token));
        self.commit(key, "take-back", about, &[(about, "taken-back", "lease expired")]);
    }

    fn expired(&self, now_boot: i64) -> Result<(i64, i64), Refusal> {
        let live = self.runs.iter().filter(|(_, run)| run.end.is_none());
        let expired = live.filter(|(_, run)| run.until_boot <= now_boot);
        let first = expired.min_by_key(|((task, _), run)| (run.until_boot, *task));
        first.map(|(key, _)| *key).ok_or(Refusal::Nothing)
    }

    fn approve(&mut self, key: OpKey, task: i64, token: i64, well: bool) -> Result<(), Refusal> {
        self.unheld(task, |status| status == Status::Review)?;
        let newest = self.tasks[&task].fence;
        if newest != token {
            return Err(Refusal::Stale { newest });
        }
        let status = if well { Status::Done } else { self.rest(task) };
        self.set(task, status);
        let about = (task, None);
        if well {
            let mut events = vec![(about, "approved", "")];
            let freed = self.free(self.children(task));
            events.extend(Self::promoted(&freed));
            self.commit(key, "approve", about, &events);
        } else {
            self.commit(key, "send-back", about, &[(about, "sent-back", "again")]);
        }
        Ok(())
    }

    fn archive(&mut self, key: OpKey, task: i64) -> Result<(), Refusal> {
        let never = [Status::Running, Status::Archived];
        let was = self.unheld(task, |status| !never.contains(&status))?;
        self.set(task, Status::Archived);
        let mut events = vec![((task, None), "archived", was.as_str())];
        let freed = self.free(self.children(task));
        events.extend(Self::promoted(&freed));
        self.commit(key, "archive", (task, None), &events);
        Ok(())
    }

    /// The content in the form of [`dump`].
    fn dump(&self) -> Vec<String> {
        let tasks = self.tasks.iter().map(|(id, task)| {
            let Task { priority, status, fence, result, created, changed } = task;
            let (status, result) =
                (status.as_str(), show(result.map(|result| format!("{result:?}"))));
            format!(
                r#"tasks {id} "dig" {priority} {status:?} {fence} {result} {created} {changed}"#
            )
        });
        let runs = self.runs.iter().map(|((task, token), run)| {
            let Run { until, beats, started, changed, end, .. } = run;
            let end = end.map_or("- -".to_owned(), |(seq, outcome)| format!("{seq} {outcome:?}"));
            format!(r#"runs {task} {token} "ann" {until} {beats} {started} {changed} {end}"#)
        });
        let links =
            self.links.iter().map(|((parent, child), seq)| format!("links {parent} {child} {seq}"));
        let commits = self.commits.iter().cloned();
        let rest = self.events.iter().cloned().chain(links).chain(self.comments.iter().cloned());
        commits.chain(tasks).chain(runs).chain(rest).collect()
    }
}

fn show(value: Option<impl ToString>) -> String {
    value.map_or("-".to_owned(), |value| value.to_string())
}

fn lease(expired: bool) -> Duration {
    if expired { Duration::ZERO } else { HOUR }
}

fn refusal(error: StoreError) -> Refusal {
    match error {
        StoreError::StaleClaim { newest, .. } => Refusal::Stale { newest: newest.get() },
        StoreError::NoSuchTask { .. } => Refusal::NoSuchTask,
        StoreError::NotClaimable { .. } => Refusal::NotClaimable,
        StoreError::NotAllowed { .. } => Refusal::NotAllowed,
        StoreError::Cycle { .. } => Refusal::Cycle,
        StoreError::NoSuchLink { .. } => Refusal::NoSuchLink,
        StoreError::TaskExists { task, .. } => Refusal::Exists { task: task.get() },
        StoreError::AlreadyWritten { seq, .. } => {
            Refusal::Written { seq: usize::try_from(seq.get()).unwrap() }
        }
        other => panic!("{other:?}"),
    }
}

/// Until when the newest run of a task is leased, on both clocks.
fn leased(board: &Board, task: TaskId, token: FencingToken) -> (i64, i64) {
    let runs = board.runs(task).unwrap();
    let run = runs.iter().find(|run| run.token == token).unwrap();
    (run.lease_until_ms, run.lease_until_boot_ms)
}

type Outcome = Result<(), Refusal>;

/// Makes the write on the board, and then on the model unless the model refuses it. Gives both
/// outcomes.
fn step(board: &mut Board, model: &mut Model, key: OpKey, op: &Op) -> (Outcome, Outcome) {
    let id = TaskId::new;
    let fence = FencingToken::new;
    match *op {
        Op::Create { priority, parent, idempotency } => {
            let parents: Vec<_> = parent.map(id).into_iter().collect();
            let name = idempotency.map(|key| key.to_string());
            let task = NewTask {
                title: "dig",
                priority,
                parents: &parents,
                idempotency_key: name.as_deref(),
                ..NewTask::default()
            };
            let got = board.create_task(key, &task).map(|_| ());
            (got.map_err(refusal), model.create(key, (priority, parent, idempotency)))
        }
        Op::Link { parent, child } => {
            let got = board.link(key, id(parent), id(child)).map(|_| ());
            (got.map_err(refusal), model.link(key, parent, child))
        }
        Op::Unlink { parent, child } => {
            let got = board.unlink(key, id(parent), id(child)).map(|_| ());
            (got.map_err(refusal), model.unlink(key, parent, child))
        }
        Op::ClaimNext { expired } => {
            let got = board.claim_next(key, "ann", lease(expired)).unwrap().ok_or(Refusal::Nothing);
            check_claim(board, model, key, got, model.next_ready())
        }
        Op::Claim { task, expired } => {
            let got = board.claim(key, id(task), "ann", lease(expired)).map_err(refusal);
            check_claim(board, model, key, got, model.claimable(task))
        }
        Op::Heartbeat { task, token, expired } => {
            let got = board.heartbeat(key, id(task), fence(token), lease(expired)).map(|_| ());
            let want = model.live(task, token);
            if got.is_ok() && want.is_ok() {
                let (until, until_boot) = leased(board, id(task), fence(token));
                let seq = model.seq();
                let run = model.runs.get_mut(&(task, token)).unwrap();
                (run.until, run.until_boot) = (until, until_boot);
                (run.beats, run.changed) = (run.beats + 1, seq);
                model.commit(key, "heartbeat", (task, Some(token)), &[]);
            }
            (got.map_err(refusal), want)
        }
        Op::Events { task, token, count } => {
            let note = NewEvent { kind: "note", payload: "n" };
            let got = board.append_events(key, id(task), token.map(fence), &vec![note; count]);
            let want = model.may_write(task, token);
            if want.is_ok() {
                let about = (task, token);
                model.commit(key, "events", about, &vec![(about, "note", "n"); count]);
            }
            (got.map(|_| ()).map_err(refusal), want)
        }
        Op::Comment { task, token } => {
            let got = board.comment(key, id(task), token.map(fence), "bob", "hm").map(|_| ());
            let want = model.may_write(task, token);
            if want.is_ok() {
                let (number, seq) = (model.comments.len() + 1, model.seq());
                let row = format!(r#"comments {number} {task} {} "bob" "hm" {seq}"#, show(token));
                model.comments.push(row);
                let about = (task, token);
                model.commit(key, "comment", about, &[(about, "commented", "bob")]);
            }
            (got.map_err(refusal), want)
        }
        _ => step_on(board, model, key, op),
    }
}

/// The other half of [`step`].
fn step_on(board: &mut Board, model: &mut Model, key: OpKey, op: &Op) -> (Outcome, Outcome) {
    let id = TaskId::new;
    let fence = FencingToken::new;
    let (got, want) = match *op {
        Op::End { task, token, how } => {
            let (id, fence) = (id(task), fence(token));
            let got = match how {
                End::Complete => board.complete(key, id, fence, "deep"),
                End::Submit => board.submit(key, id, fence, "so so"),
                End::Release => board.release(key, id, fence, "tired"),
                End::Block => board.block(key, id, Some(fence), "stuck"),
            };
            (got, model.end(key, (task, token), how))
        }
        Op::TakeBack => {
            let want = model.expired(board.clock().now().boot_ms);
            let got = board.take_back_expired(key).unwrap().ok_or(Refusal::Nothing);
            if let (Ok(got), Ok((task, token))) = (&got, want) {
                assert_eq!((got.task.get(), got.token.get()), (task, token));
                model.take_back(key, (task, token));
            }
            return (got.map(|_| ()), want.map(|_| ()));
        }
        Op::Block { task } => {
            let want = model.unheld(task, |status| !LATE.contains(&status)).map(|_| {
                model.set(task, Status::Blocked);
                let about = (task, None);
                model.commit(key, "block", about, &[(about, "blocked", "why")]);
            });
            (board.block(key, id(task), None, "why"), want)
        }
        Op::Unblock { task } => {
            let want = model.unheld(task, |status| status == Status::Blocked).map(|_| {
                model.set(task, model.rest(task));
                let about = (task, None);
                model.commit(key, "unblock", about, &[(about, "unblocked", "so")]);
            });
            (board.unblock(key, id(task), "so"), want)
        }
        Op::Approve { task, token } => {
            (board.approve(key, id(task), fence(token)), model.approve(key, task, token, true))
        }
        Op::SendBack { task, token } => (
            board.send_back(key, id(task), fence(token), "again"),
            model.approve(key, task, token, false),
        ),
        Op::Archive { task } => (board.archive(key, id(task)), model.archive(key, task)),
        Op::Repeat => {
            let Some((key, seq)) = model.last else { return (Ok(()), Ok(())) };
            let task = NewTask { title: "dig", ..NewTask::default() };
            (board.create_task(key, &task).map(|(_, commit)| commit), Err(Refusal::Written { seq }))
        }
        _ => return (Ok(()), Ok(())),
    };
    (got.map(|_| ()).map_err(refusal), want)
}

fn check_claim(
    board: &Board,
    model: &mut Model,
    key: OpKey,
    got: Result<crate::Claim, Refusal>,
    want: Result<i64, Refusal>,
) -> (Outcome, Outcome) {
    if let (Ok(got), Ok(task)) = (&got, want) {
        assert_eq!(got.task.get(), task);
        let until = leased(board, got.task, got.token);
        assert_eq!(until.0, got.lease_until_ms);
        assert_eq!(got.token.get(), model.claim(key, task, until));
    }
    (got.map(|_| ()), want.map(|_| ()))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 128,
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
