//! The hardened store as a target: each operation is one call of its public API.

use super::{Done, Failure, Op, Target};
use crate::ledger::{Effective, Reason};
use crate::wire;
use hardboard::sqlite::checkpoint::Mode;
use hardboard::sqlite::engine::Engine;
use hardboard::{
    Board, Commit, Durability, FencingToken, NewEvent, NewTask, OpKey, Options, Outcome,
    StoreError, TaskId,
};
use std::path::Path;
use std::time::Duration;

pub(super) fn open(
    path: &Path,
    life: &wire::Life,
    owner: Owner,
    create: bool,
) -> Result<Box<dyn Target>, String> {
    let pages = life.settings.wal_autocheckpoint;
    let options = Options {
        synchronous: life.settings.synchronous,
        wal_autocheckpoint_pages: if owner == Owner::None { 0 } else { pages },
        busy_timeout: Duration::from_millis(life.shape.busy_timeout_ms.into()),
        vfs: Some(super::vfs()),
        // Whoever chose the engine of a run by name has accepted it.
        accept_engine: Some(Engine::loaded().to_string()),
        ..Options::default()
    };
    let board = if create { Board::create(path, &options) } else { Board::open(path, &options) };
    let board = board.map_err(|error| with_sources(&error))?;
    if owner == Owner::None {
        board
            .connection()
            .pragma_update(None, "wal_autocheckpoint", pages)
            .map_err(|error| error.to_string())?;
    }
    Ok(Box::new(Hardened { board, owner }))
}

/// Who checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// One at a time, as the store has it.
    One,
    /// Whoever commits: the flaw.
    None,
}

struct Hardened {
    board: Board,
    owner: Owner,
}

impl Target for Hardened {
    fn perform(
        &mut self,
        key: OpKey,
        op: &Op<'_>,
        durability: Option<Durability>,
        _early: &mut dyn FnMut(Done),
    ) -> Result<Done, Failure> {
        let lease = |ms: u32| Duration::from_millis(ms.into());
        let mut at;
        let board: &mut Board = match durability {
            Some(durability) => {
                at = self.board.at(durability);
                &mut at
            }
            None => &mut self.board,
        };
        let done = match *op {
            Op::Create { title, priority } => board
                .create_task(key, &NewTask { title, priority, ..NewTask::default() })
                .map(|(task, commit)| done(task, 0, &commit)),
            Op::ClaimNext { worker, lease_ms } => board
                .claim_next(key, worker, lease(lease_ms))
                .and_then_some(|claim| done(claim.task, claim.token.get(), &claim.commit))?,
            Op::Heartbeat { task, token, lease_ms } => board
                .heartbeat(key, TaskId::new(task), FencingToken::new(token), lease(lease_ms))
                .map(|commit| done(TaskId::new(task), token, &commit)),
            Op::Events { task, token, events } => {
                let events: Vec<NewEvent<'_>> = events
                    .iter()
                    .map(|(kind, payload)| NewEvent { kind, payload: payload.as_str() })
                    .collect();
                let fence = (token > 0).then(|| FencingToken::new(token));
                board
                    .append_events(key, TaskId::new(task), fence, &events)
                    .map(|commit| done(TaskId::new(task), token, &commit))
            }
            Op::Complete { task, token, result } => board
                .complete(key, TaskId::new(task), FencingToken::new(token), result)
                .map(|commit| done(TaskId::new(task), token, &commit)),
            Op::TakeBack => board
                .take_back_expired(key)
                .and_then_some(|back| done(back.task, back.token.get(), &back.commit))?,
        };
        done.map_err(|error| failure(&error))
    }

    fn expired(&self) -> rusqlite::Result<i64> {
        let clock = self.board.clock();
        self.board
            .connection()
            .prepare_cached(
                "SELECT count(*) FROM runs WHERE ended_seq IS NULL AND boot_id = ?1
                   AND lease_until_boot_ms <= ?2",
            )?
            .query_row((clock.boot_id(), clock.now().boot_ms), |row| row.get(0))
    }

    fn shift_clock(&mut self, by_ms: i64) {
        self.board.clock().shift_wall_ms(by_ms);
    }

    fn connection(&self) -> &rusqlite::Connection {
        self.board.connection()
    }

    fn effective(&self) -> Result<Effective, String> {
        let pragmas = self.board.pragmas().map_err(|error| with_sources(&error))?;
        let of_sqlite = super::effective(self.board.connection());
        let of_sqlite = of_sqlite.map_err(|error| error.to_string())?;
        if self.owner == Owner::None {
            return Ok(of_sqlite);
        }
        // The store checkpoints by itself; SQLite's own automatic checkpoints are off.
        Ok(Effective { wal_autocheckpoint: pragmas.wal_autocheckpoint_pages, ..of_sqlite })
    }

    fn checkpoint(&mut self, mode: super::Mode) -> Result<Option<(i64, i64)>, String> {
        if self.owner == Owner::None {
            return super::checkpoint(self.board.connection(), mode);
        }
        // The store knows two ways: one that waits for nobody, and one that does.
        let mode = if mode == super::Mode::Passive { Mode::Passive } else { Mode::Truncate };
        let done = self.board.checkpoint(mode).map_err(|error| with_sources(&error))?;
        Ok(done.map(|done| (done.log_pages.into(), done.done_pages.into())))
    }

    fn close(self: Box<Self>) -> Result<(), String> {
        self.board.close().map_err(|error| with_sources(&error))
    }
}

/// `Ok(None)` of the store is a refusal to the writer: there was nothing to do.
trait AndThenSome<T> {
    fn and_then_some(
        self,
        made: impl FnOnce(T) -> Done,
    ) -> Result<Result<Done, StoreError>, Failure>;
}

impl<T> AndThenSome<T> for Result<Option<T>, StoreError> {
    fn and_then_some(
        self,
        made: impl FnOnce(T) -> Done,
    ) -> Result<Result<Done, StoreError>, Failure> {
        match self {
            Ok(Some(value)) => Ok(Ok(made(value))),
            Ok(None) => Err(Failure::Refused(Reason::Nothing, String::new())),
            Err(error) => Ok(Err(error)),
        }
    }
}

fn done(task: TaskId, token: i64, commit: &Commit) -> Done {
    Done {
        task: task.get(),
        token,
        seq: commit.seq.get(),
        commit_ns: u64::try_from(commit.timing.commit.as_nanos()).unwrap_or(u64::MAX),
        durability: commit.durability,
    }
}

fn failure(error: &StoreError) -> Failure {
    let text = with_sources(error);
    match error.outcome() {
        Outcome::Unknown => Failure::Unknown(text),
        Outcome::Refused => {
            let reason = match error {
                StoreError::StaleClaim { .. } => Reason::Stale,
                StoreError::Busy { .. } => Reason::Busy,
                StoreError::Full { .. } => Reason::Full,
                _ => Reason::Error,
            };
            Failure::Refused(reason, text)
        }
    }
}

/// An error and its sources, joined by colons.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}
