//! The command as a user has it: real processes, real files, real signals.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    missing_docs,
    reason = "a test that cannot set itself up has nothing else to say"
)]

mod support;

/// What a person is told of bad input: one line, the place, the exit code.
mod bad_input;
/// The controls, caught one and all.
mod canaries;
/// Dispatchers and workers, killed.
mod dispatch;
/// Other engines than the bundled one.
mod engines;
/// What happens when the run is ended from outside.
mod ending;
/// The main job, small.
mod main_job;
/// What a power cut could leave, small.
mod power;
/// Power cuts under a real file system.
mod real_fs;
/// The WAL-reset race of another program against a board.
mod reset;
/// The committed results are what the repository makes.
mod results;
/// Schedules: found, replayed, the same twice.
mod schedule;
/// What the store does to its own files, struck at every call.
mod store;
/// A script struck at every point.
mod sweep;
/// The rules that the tree keeps.
mod tidy;
/// The supervisor, from the victim's side.
mod trace;
/// Any command as the victim, or watched.
mod victims;
