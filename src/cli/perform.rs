//! Each command as the calls of the board that it is.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use super::answer::Answer;
use super::arguments::{Command, Held, New, Review, Subscribe};
use crate::board::import::Import;
use crate::board::process::Process;
use crate::board::reconcile::Plan;
use crate::board::{Board, OpKey, Session};
use crate::config::Config;
use crate::error::{Result, StoreError};
use crate::{
    AttachmentId, Claimant, Edit, EventId, FencingToken, NewAttachment, NewEvent, NewSubscription,
    NewTask, StartAt, TaskFilter, TaskId, Workspace,
};

/// Looks a variable up.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Makes a board of an old one, or says what would come.
pub(super) fn import(
    from: &Path,
    apply: bool,
    database: &Path,
    config: &Config,
    key: OpKey,
) -> Result<Answer> {
    if !apply {
        return Ok(Answer::import_plan(&Import::plan(from)?));
    }
    // An old board that cannot come is told of before a new one is made.
    Import::plan(from)?;
    let mut board = Board::create(database, &config.options)?;
    let (report, commit) = board.import(key, from)?;
    Ok(Answer::imported(&report, &commit))
}

/// One call. `None`: there was nothing to claim.
pub(super) fn call(
    command: Command,
    board: &mut Board,
    config: &Config,
    session: &mut Session,
    lookup: Lookup<'_>,
) -> Result<Option<Answer>> {
    let key = session.next_key();
    let id = TaskId::new;
    let wrote = |deed: &str, task: i64, commit| Some(Answer::wrote(deed, id(task), &commit));
    Ok(match command {
        Command::Create(new) => Some(create(board, key, &new)?),
        Command::Edit { task, title, body, priority, assignee } => {
            let assignee =
                assignee.as_deref().map(|name| Some(name).filter(|name| !name.is_empty()));
            let edit = Edit { title: title.as_deref(), body: body.as_deref(), priority, assignee };
            wrote("edited", task, board.edit_task(key, id(task), &edit)?)
        }
        Command::List { status, assignee, tenant, after, limit } => {
            let filter = TaskFilter {
                status,
                assignee: assignee.as_deref(),
                tenant: tenant.as_deref(),
                after: id(after),
                limit: Some(limit),
            };
            Some(Answer::list(&board.tasks(filter)?))
        }
        Command::Show { task } => Some(show(board, id(task))?),
        Command::Link { parent, child, remove } => {
            let (above, below) = (id(parent), id(child));
            if remove {
                wrote("unlinked", child, board.unlink(key, above, below)?)
            } else {
                wrote("linked", child, board.link(key, above, below)?)
            }
        }
        Command::Unblock { task, reason } => {
            wrote("unblocked", task, board.unblock(key, id(task), &reason)?)
        }
        Command::Schedule { task, due_ms } => {
            wrote("scheduled", task, board.schedule(key, id(task), due_ms)?)
        }
        Command::Promote { task } => wrote("promoted", task, board.promote(key, id(task))?),
        Command::Archive { task } => wrote("archived", task, board.archive(key, id(task))?),
        Command::Event { .. } | Command::Comment { .. } | Command::Attach { .. } => {
            Some(note(command, board, key)?)
        }
        Command::Review(review) => Some(self::review(review, board, key, lookup)?),
        Command::Subscribe(what) => Some(subscribe(what, board, key)?),
        Command::Events { task, after, limit } => {
            let events = board.events_after(task.map(id), EventId::new(after), Some(limit))?;
            Some(Answer::events(&events))
        }
        Command::Prune { days } => {
            let age = Duration::from_hours(24).saturating_mul(days);
            let pruned = board.prune_events(key, age)?;
            Some(Answer::pruned(pruned.map(|(pruned, _)| pruned)))
        }
        Command::Tick => Some(Answer::ticked(board.tick(session)?)),
        Command::Reconcile { apply, backup } => Some(match apply {
            None => Answer::plan(&board.plan_reconciliation()?),
            Some(path) => reconcile(board, &path, backup.as_deref())?,
        }),
        Command::Stats => Some(Answer::stats(board)?),
        Command::Pragmas => Some(Answer::pragmas(&board.pragmas()?)),
        Command::Options => Some(Answer::options(&config.effective())),
        command => return work(command, board, key, config, lookup),
    })
}

/// What a worker asks for.
fn work(
    command: Command,
    board: &mut Board,
    key: OpKey,
    config: &Config,
    lookup: Lookup<'_>,
) -> Result<Option<Answer>> {
    let wrote = |deed: &str, task, commit| Ok(Some(Answer::wrote(deed, task, &commit)));
    match command {
        Command::Claim { task, worker, lease_ms, pid } => {
            let process = pid.map(process_of).transpose()?;
            let (claimant, lease) = (Claimant { worker: &worker, process }, ms(lease_ms));
            let claim = match task {
                Some(task) => Some(board.claim(key, TaskId::new(task), claimant, lease)?),
                None => board.claim_next(key, claimant, lease)?,
            };
            Ok(claim.map(|claim| Answer::claimed(&claim)))
        }
        Command::Heartbeat { held, lease_ms } => {
            let (task, token) = claim(held, lookup)?;
            let commit = board.heartbeat(key, task, token, ms(lease_ms))?;
            wrote("extended the claim of", task, commit)
        }
        Command::Complete { held, result } => {
            let (task, token) = claim(held, lookup)?;
            wrote("completed", task, board.complete(key, task, token, &result)?)
        }
        Command::Release { held, reason, take_back } => {
            let (task, token) = claim(held, lookup)?;
            if take_back {
                let back = board.take_back(key, task, token, &reason)?;
                return wrote("took back the claim of", task, back.commit);
            }
            wrote("released", task, board.release(key, task, token, &reason)?)
        }
        Command::Fail { held, error } => {
            let (task, token) = claim(held, lookup)?;
            let (status, commit) = board.fail(key, task, token, &error, &config.dispatch.limits)?;
            Ok(Some(Answer::failed(task, status, &commit)))
        }
        Command::Block { held, reason } => {
            let (task, token) = named(held, lookup)?;
            wrote("blocked", task, board.block(key, task, token, &reason)?)
        }
        _ => Ok(None),
    }
}

fn create(board: &mut Board, key: OpKey, new: &New) -> Result<Answer> {
    let parents: Vec<_> = new.parents.iter().copied().map(TaskId::new).collect();
    let task = NewTask {
        title: &new.title,
        priority: new.priority,
        body: &new.body,
        assignee: new.assignee.as_deref(),
        tenant: new.tenant.as_deref(),
        created_by: &new.by,
        idempotency_key: new.idempotency_key.as_deref(),
        workspace: match &new.workspace {
            None => Workspace::Scratch,
            Some(path) => Workspace::Dir(Some(path.clone())),
        },
        parents: &parents,
        due_ms: new.due_ms,
        triage: new.triage,
        blocked: new.blocked.as_deref(),
        failure_limit: new.failure_limit,
        max_runtime: new.max_runtime_ms.map(ms),
        extra: None,
    };
    match board.create_task(key, &task) {
        Ok((task, commit)) => Ok(Answer::wrote("created", task, &commit)),
        Err(StoreError::TaskExists { task, .. }) => Ok(Answer::existed(task)),
        Err(error) => Err(error),
    }
}

fn show(board: &Board, task: TaskId) -> Result<Answer> {
    board.at_one_moment(|board| {
        let row = board.task(task)?.ok_or(StoreError::NoSuchTask { task })?;
        Answer::show(board, &row)
    })
}

fn note(command: Command, board: &mut Board, key: OpKey) -> Result<Answer> {
    match command {
        Command::Event { task, kind, payload, token } => {
            let task = TaskId::new(task);
            let events: Vec<_> =
                payload.iter().map(|payload| NewEvent { kind: &kind, payload }).collect();
            let token = token.map(FencingToken::new);
            let commit = board.append_events(key, task, token, &events)?;
            Ok(Answer::appended(events.len(), task, &commit))
        }
        Command::Comment { task, body, author, token } => {
            let (task, token) = (TaskId::new(task), token.map(FencingToken::new));
            let commit = board.comment(key, task, token, &author, &body)?;
            Ok(Answer::wrote("commented on", task, &commit))
        }
        Command::Attach { task, location, name, by, remove } => {
            let task = TaskId::new(task);
            if let Some(number) = remove {
                let commit = board.detach(key, task, None, AttachmentId::new(number))?;
                return Ok(Answer::wrote("detached a file from", task, &commit));
            }
            let bytes = std::fs::metadata(&location).map_or(0, |file| file.len());
            let file = NewAttachment {
                name: name.as_deref().unwrap_or(&location),
                location: &location,
                bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
                added_by: &by,
                ..NewAttachment::default()
            };
            let (number, commit) = board.attach(key, task, None, &file)?;
            Ok(Answer::attached(number, task, &commit))
        }
        _ => Err(StoreError::Poisoned),
    }
}

fn review(review: Review, board: &mut Board, key: OpKey, lookup: Lookup<'_>) -> Result<Answer> {
    Ok(match review {
        Review::Submit { held, result } => {
            let (task, token) = claim(held, lookup)?;
            Answer::wrote("submitted", task, &board.submit(key, task, token, &result)?)
        }
        Review::Approve { task, seen } => {
            let (task, seen) = (TaskId::new(task), FencingToken::new(seen));
            Answer::wrote("approved", task, &board.approve(key, task, seen)?)
        }
        Review::SendBack { task, seen, reason } => {
            let (task, seen) = (TaskId::new(task), FencingToken::new(seen));
            Answer::wrote("sent back", task, &board.send_back(key, task, seen, &reason)?)
        }
    })
}

fn subscribe(what: Subscribe, board: &mut Board, key: OpKey) -> Result<Answer> {
    Ok(match what {
        Subscribe::Add { name, task, delivery, target, from_oldest } => {
            let new = NewSubscription {
                name: &name,
                task: task.map(TaskId::new),
                delivery,
                target: &target,
                from: if from_oldest { StartAt::Oldest } else { StartAt::Now },
            };
            Answer::subscribed("subscribed", &name, Some(&board.subscribe(key, &new)?))
        }
        Subscribe::Remove { name } => {
            Answer::subscribed("unsubscribed", &name, Some(&board.unsubscribe(key, &name)?))
        }
        Subscribe::List => Answer::subscriptions(&board.subscriptions()?),
        Subscribe::Next { name, limit } => {
            Answer::events(&board.deliver(key, &name, limit)?.events)
        }
        Subscribe::Ack { name, event } => {
            let commit = board.acknowledge(key, &name, EventId::new(event))?;
            Answer::subscribed("acknowledged", &name, commit.as_ref())
        }
    })
}

fn reconcile(board: &mut Board, plan: &Path, backup: Option<&Path>) -> Result<Answer> {
    let failed = |source| StoreError::File { path: plan.to_owned(), source };
    let text = std::fs::read_to_string(plan).map_err(failed)?;
    let plan: Plan = serde_json::from_str(&text).map_err(|error| StoreError::Invalid {
        what: format!("{}: {error}", plan.display()),
        wanted: "a plan that hardboard reconcile --json made",
    })?;
    let beside = board.absolute_path().with_extension("backups");
    let done = board.reconcile(&plan, backup.unwrap_or(&beside))?;
    Ok(Answer::reconciled(&done))
}

/// The claim that is named, by arguments or by the environment.
fn claim(held: Held, lookup: Lookup<'_>) -> Result<(TaskId, FencingToken)> {
    let (task, token) = named(held, lookup)?;
    let token = token.ok_or_else(|| StoreError::Invalid {
        what: "a command without --token".to_owned(),
        wanted: "under a claim: give its token, or set HARDBOARD_TOKEN",
    })?;
    Ok((task, token))
}

fn named(held: Held, lookup: Lookup<'_>) -> Result<(TaskId, Option<FencingToken>)> {
    let variable = |name: &'static str| -> Result<Option<i64>> {
        let Some(value) = lookup(name).filter(|value| !value.is_empty()) else { return Ok(None) };
        let number = value.to_str().and_then(|text| text.parse().ok());
        number.map(Some).ok_or_else(|| StoreError::Option {
            name,
            value: value.to_string_lossy().into_owned(),
            understood: "whole numbers",
        })
    };
    let own = variable("HARDBOARD_TASK")?;
    let task = held.task.or(own).ok_or_else(|| StoreError::Invalid {
        what: "a command without a task".to_owned(),
        wanted: "about one: give its number, or set HARDBOARD_TASK",
    })?;
    let token = match held.token {
        None if own == Some(task) => variable("HARDBOARD_TOKEN")?,
        given => given,
    };
    Ok((TaskId::new(task), token.map(FencingToken::new)))
}

fn process_of(pid: i32) -> Result<Process> {
    Process::of(pid).map_err(|_| StoreError::Invalid {
        what: format!("--pid {pid}"),
        wanted: "a process that is there",
    })
}

fn ms(number: u64) -> Duration {
    Duration::from_millis(number)
}
