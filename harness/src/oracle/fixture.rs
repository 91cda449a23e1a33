//! A board kept by the plainest means, to make legal histories with.

use crate::history::content::{
    CommitRow, EventGroup, RunRow, TaskRow, Total, Totals, event_digest,
};
use crate::history::{Observation, Op};
use hardboard::Durability;
use killpoint_worker::content;
use killpoint_worker::ledger::{Kind, Reason, State};

/// Bytes of a payload.
pub(super) const PAYLOAD_BYTES: [u32; 2] = [20, 60];

/// Rows in lists. It shares no code with the model but the
/// digests of rows.
#[derive(Clone, Default)]
pub(super) struct Board {
    pub(super) seq: i64,
    pub(super) commits: Vec<CommitRow>,
    pub(super) tasks: Vec<TaskRow>,
    pub(super) runs: Vec<RunRow>,
    pub(super) events: Vec<(i64, i64, String, String, i64)>,
}

impl Board {
    /// Performs one operation and gives its ledger entry; `None` if it cannot be done.
    pub(super) fn perform(&mut self, session: i64, op: i64, kind: Kind, rows: u32) -> Option<Op> {
        let seq = self.seq + 1;
        let live = self.runs.iter().rposition(|run| run.ended_seq.is_none());
        let (task, token, rows) = match kind {
            Kind::Create => (i64::try_from(self.tasks.len()).unwrap() + 1, 0, 1),
            Kind::Claim => {
                let ready = self.tasks.iter().find(|task| task.status == "ready")?;
                (ready.id, ready.fence + 1, 1)
            }
            Kind::Events => match live {
                Some(index) => (self.runs[index].task, self.runs[index].token, rows),
                None => (self.tasks.first()?.id, 0, rows),
            },
            Kind::Heartbeat => (self.runs[live?].task, self.runs[live?].token, 0),
            Kind::Complete | Kind::TakeBack => (self.runs[live?].task, self.runs[live?].token, 1),
        };
        self.seq = seq;
        self.commits.push(CommitRow {
            seq,
            session,
            op,
            kind: kind.as_str().to_owned(),
            task,
            token,
            rows: rows.into(),
        });
        self.change(kind, (session, op), (task, token), rows);
        Some(Op {
            kind,
            state: State::Acked,
            reason: Reason::None,
            rows,
            task,
            token,
            seq,
            total_ns: 1,
            commit_ns: 1,
            durability: Durability::Power,
            started_us: seq.unsigned_abs(),
        })
    }

    fn change(
        &mut self,
        kind: Kind,
        (session, op): (i64, i64),
        (task, token): (i64, i64),
        rows: u32,
    ) {
        let seq = self.seq;
        match kind {
            Kind::Create => {
                let title = content::title(session, op);
                self.events.push((task, 0, "created".to_owned(), title.clone(), seq));
                self.tasks.push(TaskRow {
                    id: task,
                    title,
                    priority: content::priority(session, op),
                    status: "ready".to_owned(),
                    fence: 0,
                    result: None,
                    created_seq: seq,
                    changed_seq: seq,
                });
            }
            Kind::Claim => {
                let worker = content::worker(session);
                self.events.push((task, token, "claimed".to_owned(), worker, seq));
                let row = self.tasks.iter_mut().find(|row| row.id == task).unwrap();
                (row.fence, row.status, row.changed_seq) = (token, "running".to_owned(), seq);
                self.runs.push(RunRow {
                    task,
                    token,
                    worker: content::worker(session),
                    heartbeats: 0,
                    started_seq: seq,
                    changed_seq: seq,
                    ended_seq: None,
                    outcome: None,
                });
            }
            Kind::Events => {
                for index in 0..u64::from(rows) {
                    let payload = content::payload(session, op, index, PAYLOAD_BYTES);
                    let kind = content::event_kind(index).to_owned();
                    self.events.push((task, token, kind, payload, seq));
                }
            }
            Kind::Heartbeat | Kind::Complete | Kind::TakeBack => {
                let run = self.runs.iter_mut().find(|r| (r.task, r.token) == (task, token));
                let run = run.unwrap();
                run.changed_seq = seq;
                if kind == Kind::Heartbeat {
                    run.heartbeats += 1;
                    return;
                }
                let done = kind == Kind::Complete;
                run.ended_seq = Some(seq);
                run.outcome = Some(if done { "completed" } else { "taken-back" }.to_owned());
                let row = self.tasks.iter_mut().find(|row| row.id == task).unwrap();
                row.changed_seq = seq;
                row.status = if done { "done" } else { "ready" }.to_owned();
                let (event, payload) = if done {
                    ("completed", content::result(session, op))
                } else {
                    ("taken-back", content::LEASE_EXPIRED.to_owned())
                };
                self.events.push((task, token, event.to_owned(), payload, seq));
                row.result = done.then(|| content::result(session, op)).or(row.result.take());
            }
        }
    }

    /// What a probe sees that last saw commit `since`.
    pub(super) fn observe(&self, since: i64) -> Observation {
        let mut totals = Totals::default();
        self.commits.iter().for_each(|row| totals.commits.add(row.digest()));
        self.tasks.iter().for_each(|row| totals.tasks.add(row.digest()));
        self.runs.iter().for_each(|row| totals.runs.add(row.digest()));
        let mut events: Vec<EventGroup> = Vec::new();
        for (task, token, kind, payload, seq) in &self.events {
            let digest = event_digest(*task, *token, kind, payload, *seq);
            totals.events.add(digest);
            if *seq <= since {
                continue;
            }
            if events.last().is_none_or(|group| group.seq != *seq) {
                events.push(EventGroup { seq: *seq, total: Total::default() });
            }
            events.last_mut().unwrap().total.add(digest);
        }
        Observation {
            generation: 0,
            cycle: 0,
            database_bytes: 8192,
            wal_bytes: 0,
            unreadable: None,
            integrity: Vec::new(),
            foreign_keys: Vec::new(),
            first_file: "aa".to_owned(),
            first_file_again: "aa".to_owned(),
            second_file: "aa".to_owned(),
            since,
            totals,
            commits: self.commits.iter().filter(|row| row.seq > since).cloned().collect(),
            events,
            tasks: self.tasks.iter().filter(|row| row.changed_seq > since).cloned().collect(),
            runs: self.runs.iter().filter(|row| row.changed_seq > since).cloned().collect(),
        }
    }
}
