//! The process that forks the writers: exec'ed once, so that a writer costs one fork and no exec.
//!
//! It has one thread, never opens a database, and reaps its children only when told to, so that a
//! process id stays the child's own for as long as the harness may kill it.
//!
//! | descriptor | what it is                                         |
//! |------------|----------------------------------------------------|
//! | 0          | the ledger's memory                                |
//! | 1          | the socket to the harness: orders in, replies out  |
//! | 2          | where a panic's message goes                       |

use crate::engine;
use crate::fork::{self, Side};
use crate::ledger::{Activity, Ledger, SLOTS};
use crate::life;
use crate::nursery;
use crate::shim;
use crate::wire::{Cycle, Exit, Order, Reply};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

/// The name under which a binary that links this crate is to run [`main`].
pub const ARGV0: &str = "killpoint-worker";

/// Exit code of a zygote that was not started as one.
const MISUSED: u8 = 64;

/// Serves orders until the harness closes the socket.
///
/// `arguments` are the two after the name: how many operations a process can record, and the
/// process id of the harness, with which this process ends. Or [`SOLO`], [`ENGINE`] or [`STORE`]
/// and what belongs to it.
#[must_use]
pub fn main(arguments: &[String]) -> ExitCode {
    match arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        Some((SOLO, rest)) => return solo(rest),
        Some((ENGINE, _)) => return tell_engine(),
        Some((STORE, _)) => return store(arguments),
        _ => {}
    }
    if let [nursery::NURSERY, entries] =
        arguments.iter().map(String::as_str).collect::<Vec<_>>()[..]
    {
        return nurse(entries);
    }
    let numbers: Vec<i32> = arguments.iter().filter_map(|text| text.parse().ok()).collect();
    let [entries, parent] = numbers[..] else { return ExitCode::from(MISUSED) };
    if fork::die_with_parent(Pid::from_raw(parent)).is_err() {
        return ExitCode::from(MISUSED);
    }
    let entries = usize::try_from(entries).unwrap_or(0);
    let Ok(ledger) = Ledger::map(std::io::stdin().as_fd(), entries) else {
        return ExitCode::from(MISUSED);
    };
    if shim::register().is_err() {
        return ExitCode::from(MISUSED);
    }
    let Ok(socket) = std::io::stdout().as_fd().try_clone_to_owned() else {
        return ExitCode::from(MISUSED);
    };
    // A visit whose life is killed is waited for here: none may still write when all are told gone.
    if nix::sys::prctl::set_child_subreaper(true).is_err() {
        return ExitCode::from(MISUSED);
    }
    // It lives as long as the process, and the writers' shim points into it.
    serve(Box::leak(Box::new(ledger)), &UnixStream::from(socket))
}

/// The argument that makes [`main`] one writer instead of a zygote.
pub const SOLO: &str = "solo";

/// The argument that makes [`main`] print which SQLite it runs on, as JSON.
pub const ENGINE: &str = "engine";

/// The argument that makes [`main`] the command `hardboard`, whose arguments follow: on whichever
/// SQLite this process has loaded.
pub const STORE: &str = "hardboard";

fn store(arguments: &[String]) -> ExitCode {
    let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr().lock());
    let arguments = arguments.iter().map(std::ffi::OsString::from);
    hardboard::cli::run(arguments, |name| std::env::var_os(name), &mut out, &mut err).into()
}

fn tell_engine() -> ExitCode {
    let told = serde_json::to_string(&engine::loaded())
        .map_err(std::io::Error::from)
        .and_then(|line| std::io::stdout().write_all(line.as_bytes()));
    if told.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Lives one life in this very process: what is run under a supervisor that follows each of its
/// calls. Arguments: how many operations fit, the slot, the [`Cycle`] as JSON.
fn solo(arguments: &[String]) -> ExitCode {
    let [entries, slot, order] = arguments else { return ExitCode::from(MISUSED) };
    let (Ok(entries), Ok(slot)) = (entries.parse(), slot.parse::<usize>()) else {
        return ExitCode::from(MISUSED);
    };
    let Ok(cycle) = serde_json::from_str::<Cycle>(order) else { return ExitCode::from(MISUSED) };
    let Some(life) = cycle.lives.get(slot).filter(|_| slot < SLOTS) else {
        return ExitCode::from(MISUSED);
    };
    let Ok(ledger) = Ledger::map(std::io::stdin().as_fd(), entries) else {
        return ExitCode::from(MISUSED);
    };
    if shim::register().is_err() {
        return ExitCode::from(MISUSED);
    }
    let code = life::live(Box::leak(Box::new(ledger)), slot, &cycle.database, life);
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

/// Is the zygote of processes that are run under a supervisor.
fn nurse(entries: &str) -> ExitCode {
    let Ok(entries) = entries.parse() else { return ExitCode::from(MISUSED) };
    let Ok(ledger) = Ledger::map(std::io::stdin().as_fd(), entries) else {
        return ExitCode::from(MISUSED);
    };
    if shim::register().is_err() {
        return ExitCode::from(MISUSED);
    }
    nursery::serve(Box::leak(Box::new(ledger)), ExitCode::from(MISUSED))
}

fn serve(ledger: &'static Ledger, socket: &UnixStream) -> ExitCode {
    let mut children = Vec::new();
    for line in BufReader::new(socket).lines() {
        let Ok(line) = line else { break };
        let reply = match serde_json::from_str(&line) {
            Ok(Order::Fork { cycle, slots }) => {
                match fork_all(ledger, &cycle, &slots, &mut children) {
                    Forked::Child(code) => return ExitCode::from(code),
                    Forked::Parent(reply) => reply,
                }
            }
            Ok(Order::Reap) => {
                let exits = children.drain(..).map(reap).collect();
                reap_orphans();
                Reply::Reaped(exits)
            }
            Err(error) => Reply::Failed(format!("order not understood: {error}")),
        };
        if answer(socket, &reply).is_err() {
            break;
        }
    }
    ExitCode::SUCCESS
}

enum Forked {
    /// This is a writer, and its life is over.
    Child(u8),
    Parent(Reply),
}

fn fork_all(
    ledger: &'static Ledger,
    cycle: &Cycle,
    slots: &[usize],
    children: &mut Vec<Pid>,
) -> Forked {
    if cycle.lives.len() > SLOTS {
        let asked = cycle.lives.len();
        return Forked::Parent(Reply::Failed(format!("{asked} processes of at most {SLOTS}")));
    }
    if let Some(slot) = slots.iter().find(|slot| **slot >= cycle.lives.len()) {
        return Forked::Parent(Reply::Failed(format!("no life is planned for slot {slot}")));
    }
    for index in slots {
        ledger.slot(*index).clear();
        ledger.slot(*index).set_activity(Activity::Opening);
    }
    for &index in slots {
        let life = &cycle.lives[index];
        match fork::fork() {
            Ok(Side::Child) => {
                let code = life::live(ledger, index, &cycle.database, life);
                return Forked::Child(u8::try_from(code).unwrap_or(u8::MAX));
            }
            Ok(Side::Parent(child)) => children.push(child),
            Err(errno) => return Forked::Parent(Reply::Failed(format!("fork: {errno}"))),
        }
    }
    Forked::Parent(Reply::Forked(children.iter().map(|child| child.as_raw()).collect()))
}

fn reap(child: Pid) -> Exit {
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => return Exit::Code(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Exit::Signal(signal as i32),
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(_) => return Exit::Code(-1),
        }
    }
}

/// Waits for what lives have left behind, which dies with them.
fn reap_orphans() {
    while !matches!(waitpid(None, None), Err(nix::Error::ECHILD)) {}
}

fn answer(mut socket: &UnixStream, reply: &Reply) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    socket.write_all(&line)
}
