//! Round after round, until told to stop.
//!
//! Many may be started for one board: one works and the others wait, and when it is gone one of
//! them goes on within a second.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::DispatchOptions;
use super::lease::{Held, Taken};
use super::tick::{ASK_AGAIN, Dispatcher, Tick};
use crate::board::{Board, Session};
use crate::error::{Result, StoreError};
use crate::sqlite::verify::Report;

/// How soon after a worker's end the next round comes at the earliest.
const SOONEST: Duration = Duration::from_millis(200);

/// What a daemon tells whoever runs it.
#[derive(Debug)]
pub enum News<'a> {
    /// Another dispatches. Told once for each such other.
    Waiting(&'a Held),
    /// This one dispatches now.
    Began {
        /// Its number.
        epoch: i64,
    },
    /// A round was made.
    Ticked(&'a Tick),
    /// The whole board was looked at, and is sound.
    Verified(&'a Report),
    /// A round failed, and the next will be tried.
    Failed(&'a StoreError),
    /// Another has taken over.
    Superseded,
}

/// Dispatches until `stop` is readable. `open` opens the board, and again after a write of unknown
/// outcome.
///
/// Between two rounds it looks at the whole board when that is due, see
/// [`Options::verify_every`](crate::Options::verify_every).
///
/// Workers go on when it stops; how they end is then held against none of them.
///
/// # Errors
///
/// What made going on impossible: the board cannot be opened, or is damaged, and then it is
/// quarantined.
pub fn run(
    open: &mut dyn FnMut() -> Result<(Board, Session)>,
    holder: &str,
    options: &DispatchOptions,
    stop: BorrowedFd<'_>,
    tell: &mut dyn FnMut(&News<'_>),
) -> Result<()> {
    let mut waiting_for: Option<i64> = None;
    loop {
        let (board, session) = open()?;
        match Dispatcher::take(board, session, holder, options.clone()) {
            Ok(Taken::Ours(dispatcher)) => {
                waiting_for = None;
                tell(&News::Began { epoch: dispatcher.epoch() });
                if serve(dispatcher, stop, tell)? == End::Told {
                    return Ok(());
                }
            }
            Ok(Taken::Theirs(held)) => {
                if waiting_for.replace(held.epoch) != Some(held.epoch) {
                    tell(&News::Waiting(&held));
                }
            }
            Err(error) if is_passing(&error) => tell(&News::Failed(&error)),
            Err(error) => return Err(error),
        }
        if wait(stop, &[], Instant::now() + ASK_AGAIN) {
            return Ok(());
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Told,
    TakeAgain,
}

/// Round after round, while in office.
fn serve(
    mut dispatcher: Dispatcher,
    stop: BorrowedFd<'_>,
    tell: &mut dyn FnMut(&News<'_>),
) -> Result<End> {
    let interval = dispatcher.options().interval;
    loop {
        let made = dispatcher.tick().and_then(|tick| {
            tell(&News::Ticked(&tick));
            dispatcher.board().database().verify_when_due()
        });
        match made {
            Ok(None) => {}
            Ok(Some(report)) => tell(&News::Verified(&report)),
            Err(StoreError::StaleDispatcher { .. }) => {
                tell(&News::Superseded);
                return Ok(End::TakeAgain);
            }
            Err(error) if is_passing(&error) => tell(&News::Failed(&error)),
            Err(error @ (StoreError::Indeterminate { .. } | StoreError::Poisoned)) => {
                tell(&News::Failed(&error));
                return Ok(End::TakeAgain);
            }
            Err(error) => return Err(error),
        }
        let due = dispatcher.board().database().verify_due_in().unwrap_or(interval);
        let next = Instant::now() + interval.min(due.max(SOONEST));
        let soonest = Instant::now() + SOONEST;
        while Instant::now() < next {
            let workers: Vec<OwnedFd> = dispatcher.worker_pids().filter_map(descriptor).collect();
            if wait(stop, &workers, next) {
                return dispatcher.resign(true).map(|()| End::Told).or_else(|error| match error {
                    // Whoever took over has nothing to be told.
                    StoreError::StaleDispatcher { .. } => Ok(End::Told),
                    error => Err(error),
                });
            }
            if dispatcher.reap().unwrap_or(true) {
                if wait(stop, &[], soonest) {
                    continue;
                }
                break;
            }
        }
    }
}

/// Whether a later attempt may succeed without anybody doing anything.
fn is_passing(error: &StoreError) -> bool {
    matches!(error, StoreError::Busy { .. } | StoreError::Full { .. } | StoreError::Io { .. })
}

fn descriptor(pid: u32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok()
}

/// Waits until then, until told to stop, or until one of them has ended. Gives whether to stop.
fn wait(stop: BorrowedFd<'_>, workers: &[OwnedFd], until: Instant) -> bool {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut events = vec![PollFd::new(&stop, PollFlags::IN)];
        events.extend(workers.iter().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut events, timeout.as_ref()) {
            Ok(0) => return false,
            Ok(_) => return !events[0].revents().is_empty(),
            Err(rustix::io::Errno::INTR) => {}
            // Nothing can be waited for: as if the time were up.
            Err(_) => return false,
        }
    }
}
