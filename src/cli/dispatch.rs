//! The command `dispatch`: the process that starts workers.

use std::io::Write;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use super::answer::{Answer, one_line};
use super::arguments::Dispatch;
use super::new_session;
use crate::board::Board;
use crate::board::dispatch::daemon::{self, News};
use crate::board::dispatch::tick::describe;
use crate::board::dispatch::{DispatchOptions, Dispatcher, Held, Taken, Tick};
use crate::config::Config;
use crate::error::{Result, StoreError};

/// What came of one round.
pub(super) enum Once {
    /// It was made.
    Ticked(Answer),
    /// Another dispatches.
    Theirs(Held),
}

fn options(arguments: &Dispatch, config: &Config) -> DispatchOptions {
    let mut options = config.dispatch.clone();
    if !arguments.worker.is_empty() {
        options.worker.clone_from(&arguments.worker);
    }
    options
}

fn holder(arguments: &Dispatch) -> String {
    arguments.holder.clone().unwrap_or_else(|| format!("process {}", std::process::id()))
}

/// One round, and the office is given up.
pub(super) fn once(arguments: &Dispatch, database: &Path, config: &Config) -> Result<Once> {
    let board = Board::open(database, &config.options)?;
    let options = options(arguments, config);
    match Dispatcher::take(board, new_session(), &holder(arguments), options)? {
        Taken::Theirs(held) => Ok(Once::Theirs(held)),
        Taken::Ours(mut dispatcher) => {
            let ticked = dispatcher.tick();
            let resigned = dispatcher.resign(false);
            let tick = ticked?;
            resigned?;
            Ok(Once::Ticked(Answer::dispatched(&tick)))
        }
    }
}

/// Round after round, told line by line, until SIGTERM or SIGINT.
pub(super) fn daemon(
    arguments: &Dispatch,
    database: &Path,
    config: &Config,
    json: bool,
    out: &mut impl Write,
) -> Result<()> {
    let failed = |source| StoreError::File { path: PathBuf::from("a signal's pipe"), source };
    let (told, teller) = UnixStream::pair().map_err(failed)?;
    for signal in [SIGTERM, SIGINT] {
        pipe::register(signal, teller.try_clone().map_err(failed)?).map_err(failed)?;
    }
    let mut open = || Ok((Board::open(database, &config.options)?, new_session()));
    let mut tell = |news: &News<'_>| {
        let line = if json { Some(json_of(news)) } else { text_of(news) };
        if let Some(line) = line {
            // Nobody may be listening any more; the work goes on.
            writeln!(out, "{line}").and_then(|()| out.flush()).ok();
        }
    };
    let (holder, options) = (holder(arguments), options(arguments, config));
    daemon::run(&mut open, &holder, &options, told.as_fd(), &mut tell)
}

fn json_of(news: &News<'_>) -> String {
    let value = match news {
        News::Waiting(held) => json!({ "waiting": held }),
        News::Began { epoch } => json!({ "began": { "epoch": epoch } }),
        News::Ticked(tick) => json!({ "ticked": tick }),
        News::Verified(report) => json!({ "verified": report }),
        News::Failed(error) => json!({ "failed": error.to_string() }),
        News::Superseded => json!({ "superseded": true }),
    };
    value.to_string()
}

/// Rounds in which nothing happened are not told to people.
fn text_of(news: &News<'_>) -> Option<String> {
    Some(match news {
        News::Waiting(held) => format!("waiting: {} dispatches", one_line(&describe(held))),
        News::Began { epoch } => format!("dispatching, epoch {epoch}"),
        News::Ticked(tick) if is_quiet(tick) => return None,
        News::Ticked(tick) => Answer::dispatched(tick).text.trim_end().to_owned(),
        News::Verified(report) => {
            format!("verified: sound, {} commits and {} events", report.commits, report.rows)
        }
        News::Failed(error) => format!("a round failed: {}", one_line(&error.to_string())),
        News::Superseded => "another has taken over".to_owned(),
    })
}

fn is_quiet(tick: &Tick) -> bool {
    tick.ended.is_empty()
        && tick.deferred.is_empty()
        && tick.promoted.is_empty()
        && tick.started.is_empty()
}
