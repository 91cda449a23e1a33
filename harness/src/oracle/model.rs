//! The board as it must be: the commits that are there, replayed one by one.
//!
//! Each commit says who sent which operation on which task under which token. What it must have
//! written follows from that, so the model knows every row but the lease's end, and compares by
//! digest. While replaying it sees every change of ownership in commit order, which is where two
//! live owners and writes under an old token show.

use super::Cycle;
use super::ledger::Sessions;
use crate::history::Observation;
use crate::history::content::{
    CommitRow, EventGroup, RunRow, TaskRow, Total, Totals, event_digest,
};
use crate::verdict::{Finding, FindingKind};
use killpoint_worker::content;
use killpoint_worker::ledger::Kind;
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};

/// The board after the commits replayed so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    last_seq: i64,
    tasks: HashMap<i64, TaskRow>,
    runs: HashMap<(i64, i64), RunRow>,
    /// The live run of a task, by its token.
    live: HashMap<i64, i64>,
    totals: Totals,
}

/// Findings of a cycle that are told.
const TOLD_MAX: usize = 12;

impl Model {
    /// The last commit replayed.
    pub(super) fn last_seq(&self) -> i64 {
        self.last_seq
    }

    /// Replays the newly seen commits and compares every table.
    pub(super) fn judge(
        &mut self,
        cycle: &Cycle<'_>,
        seen: &Observation,
        sessions: &Sessions,
    ) -> Vec<Finding> {
        let mut wrong: Vec<(FindingKind, String)> = Vec::new();
        let groups: HashMap<i64, Total> =
            seen.events.iter().map(|group| (group.seq, group.total)).collect();
        for commit in &seen.commits {
            if commit.seq != self.last_seq + 1 {
                let from = self.last_seq + 1;
                let text = format!("commits {from} to {} are missing", commit.seq - 1);
                wrong.push((FindingKind::CommitHole, text));
            }
            self.last_seq = commit.seq;
            let expected = events_of(commit, sessions.payload_bytes());
            wrong.extend(compare_events(commit, expected, groups.get(&commit.seq).copied()));
            self.totals.commits.add(commit.digest());
            wrong.extend(self.apply(commit));
            self.totals.events.rows += expected.rows;
            self.totals.events.digest = sum(self.totals.events, expected);
        }
        wrong.extend(groups_without_commit(&seen.events, &seen.commits));
        wrong.extend(self.compare_rows(seen));
        if wrong.is_empty() {
            wrong.extend(self.compare_totals(seen));
        }
        wrong.truncate(TOLD_MAX);
        wrong.into_iter().map(|(kind, text)| cycle.finding(kind, &text)).collect()
    }

    /// What one commit does to tasks and runs; says which promise it breaks.
    fn apply(&mut self, commit: &CommitRow) -> Option<(FindingKind, String)> {
        let &CommitRow { seq, session, op, task, token, .. } = commit;
        let says = |what: &str| {
            format!("commit {seq} (session {session}, operation {op}) {what}, task {task}")
        };
        match Kind::from_column(&commit.kind) {
            None => Some((FindingKind::AlienWrite, says("is of no known kind"))),
            Some(Kind::Create) => {
                let row = TaskRow {
                    id: task,
                    title: content::title(session, op),
                    priority: content::priority(session, op),
                    status: "ready".to_owned(),
                    fence: 0,
                    result: None,
                    created_seq: seq,
                    changed_seq: seq,
                };
                self.totals.tasks.add(row.digest());
                let before = self.tasks.insert(task, row);
                before.map(|_| (FindingKind::AlienWrite, says("creates an existing task")))
            }
            Some(Kind::Claim) => self.claim(commit, &says),
            Some(Kind::Events) if token == 0 => {
                let known = self.tasks.contains_key(&task);
                (!known).then(|| (FindingKind::AlienWrite, says("writes events of no known task")))
            }
            Some(kind) => {
                let stale = self.live.get(&task) != Some(&token);
                self.write_under(kind, commit);
                stale.then(|| {
                    let live = self.fence_text(task);
                    let what = format!("is a {} under token {token} ({live})", kind.as_str());
                    (FindingKind::StaleWrite, says(&what))
                })
            }
        }
    }

    fn claim(
        &mut self,
        commit: &CommitRow,
        says: &dyn Fn(&str) -> String,
    ) -> Option<(FindingKind, String)> {
        let &CommitRow { seq, session, task, token, .. } = commit;
        let run = RunRow {
            task,
            token,
            worker: content::worker(session),
            heartbeats: 0,
            started_seq: seq,
            changed_seq: seq,
            ended_seq: None,
            outcome: None,
        };
        self.totals.runs.add(run.digest());
        let doubled = self.runs.insert((task, token), run).is_some();
        let before = self.live.insert(task, token);
        let mut fence = 0;
        self.change_task(task, |row| {
            fence = row.fence;
            row.fence = token;
            "running".clone_into(&mut row.status);
            row.changed_seq = seq;
        });
        if let Some(owner) = before {
            let what = format!("claims as token {token} while token {owner} is live");
            return Some((FindingKind::DoubleOwner, says(&what)));
        }
        if doubled || token <= fence {
            let what = format!("claims with token {token} after token {fence} was handed out");
            return Some((FindingKind::StaleWrite, says(&what)));
        }
        None
    }

    /// Heartbeat, events, completion and take-back: writes that belong to a run.
    fn write_under(&mut self, kind: Kind, commit: &CommitRow) {
        let &CommitRow { seq, session, op, task, token, .. } = commit;
        let outcome = match kind {
            Kind::Heartbeat => {
                self.change_run(task, token, |run| {
                    run.heartbeats += 1;
                    run.changed_seq = seq;
                });
                return;
            }
            Kind::Complete => "completed",
            Kind::TakeBack => "taken-back",
            Kind::Create | Kind::Claim | Kind::Events => return,
        };
        self.change_run(task, token, |run| {
            run.changed_seq = seq;
            run.ended_seq = Some(seq);
            run.outcome = Some(outcome.to_owned());
        });
        if self.live.get(&task) == Some(&token) {
            self.live.remove(&task);
        }
        self.change_task(task, |row| {
            row.changed_seq = seq;
            if kind == Kind::Complete {
                "done".clone_into(&mut row.status);
                row.result = Some(content::result(session, op));
            } else {
                "ready".clone_into(&mut row.status);
            }
        });
    }

    fn change_task(&mut self, task: i64, change: impl FnOnce(&mut TaskRow)) {
        if let Some(row) = self.tasks.get_mut(&task) {
            self.totals.tasks.remove(row.digest());
            change(row);
            self.totals.tasks.add(row.digest());
        }
    }

    fn change_run(&mut self, task: i64, token: i64, change: impl FnOnce(&mut RunRow)) {
        if let Some(run) = self.runs.get_mut(&(task, token)) {
            self.totals.runs.remove(run.digest());
            change(run);
            self.totals.runs.add(run.digest());
        }
    }

    fn fence_text(&self, task: i64) -> String {
        match self.live.get(&task) {
            Some(live) => format!("token {live} is live"),
            None => "no claim is live".to_owned(),
        }
    }

    /// The rows that were reported, against the model's.
    fn compare_rows(&self, seen: &Observation) -> Vec<(FindingKind, String)> {
        let tasks = seen.tasks.iter().filter_map(|row| match self.tasks.get(&row.id) {
            Some(model) if model == row => None,
            Some(model) => Some(format!("task {} is {row:?}, and should be {model:?}", row.id)),
            None => Some(format!("task {} was never created", row.id)),
        });
        let runs = seen.runs.iter().filter_map(|row| {
            let name = format!("run {} of task {}", row.token, row.task);
            match self.runs.get(&(row.task, row.token)) {
                Some(model) if model == row => None,
                Some(model) => Some(format!("{name} is {row:?}, and should be {model:?}")),
                None => Some(format!("{name} was never claimed")),
            }
        });
        tasks.chain(runs).map(|text| (FindingKind::TornTransaction, text)).collect()
    }

    /// Whole tables by digest: what the reported rows do not show.
    fn compare_totals(&self, seen: &Observation) -> Vec<(FindingKind, String)> {
        let tables = [
            ("commits", self.totals.commits, seen.totals.commits),
            ("tasks", self.totals.tasks, seen.totals.tasks),
            ("runs", self.totals.runs, seen.totals.runs),
            ("events", self.totals.events, seen.totals.events),
        ];
        let differing = tables.into_iter().filter(|(_, model, found)| model != found);
        differing
            .map(|(table, model, found)| {
                let (rows, expected) = (found.rows, model.rows);
                let text = if rows == expected {
                    format!("table {table}: {rows} rows, but not those that were there before")
                } else {
                    format!("table {table}: {rows} rows, and {expected} expected")
                };
                (FindingKind::HistoryChanged, text)
            })
            .collect()
    }
}

fn sum(total: Total, more: Total) -> crate::history::content::Digest {
    let mut sum = total;
    sum.add(more.digest);
    sum.digest
}

/// The events that a commit must have written.
fn events_of(commit: &CommitRow, payload_bytes: [u32; 2]) -> Total {
    let &CommitRow { seq, session, op, task, token, rows, .. } = commit;
    let mut total = Total::default();
    match Kind::from_column(&commit.kind) {
        Some(Kind::Create) => {
            total.add(event_digest(task, 0, "created", &content::title(session, op), seq));
        }
        Some(Kind::Claim) => {
            total.add(event_digest(task, token, "claimed", &content::worker(session), seq));
        }
        Some(Kind::Complete) => {
            total.add(event_digest(task, token, "completed", &content::result(session, op), seq));
        }
        Some(Kind::TakeBack) => {
            total.add(event_digest(task, token, "taken-back", content::LEASE_EXPIRED, seq));
        }
        Some(Kind::Events) => {
            // A number from a damaged file must not keep us busy for ever.
            for index in 0..rows.clamp(0, 100_000).unsigned_abs() {
                let payload = content::payload(session, op, index, payload_bytes);
                let kind = content::event_kind(index);
                total.add(event_digest(task, token, kind, &payload, seq));
            }
        }
        _ => {}
    }
    total
}

fn compare_events(
    commit: &CommitRow,
    expected: Total,
    found: Option<Total>,
) -> Option<(FindingKind, String)> {
    let found = found.unwrap_or_default();
    if found == expected {
        return None;
    }
    let CommitRow { seq, session, op, .. } = commit;
    let whose = format!("commit {seq} (session {session}, operation {op})");
    let (rows, sent) = (found.rows, expected.rows);
    Some(match rows.cmp(&sent) {
        Ordering::Less => (
            FindingKind::TornTransaction,
            format!("{whose}: {rows} of its {sent} events are there"),
        ),
        Ordering::Greater => {
            (FindingKind::AlienWrite, format!("{whose}: {rows} events are there, {sent} were sent"))
        }
        Ordering::Equal => {
            (FindingKind::AlienWrite, format!("{whose}: its events are not those that were sent"))
        }
    })
}

fn groups_without_commit(
    groups: &[EventGroup],
    commits: &[CommitRow],
) -> Vec<(FindingKind, String)> {
    let known: HashSet<i64> = commits.iter().map(|commit| commit.seq).collect();
    let strays: BTreeMap<i64, u64> = groups
        .iter()
        .filter(|group| !known.contains(&group.seq))
        .map(|group| (group.seq, group.total.rows))
        .collect();
    strays
        .into_iter()
        .map(|(seq, rows)| {
            (
                FindingKind::TornTransaction,
                format!("{rows} events of commit {seq}, which is absent"),
            )
        })
        .collect()
}
