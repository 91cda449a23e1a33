//! Workers that come and go: one process after another, each with a connection of its own.
//!
//! The life itself never opens the database. It forks a visit, waits for it, and forks the next,
//! as a dispatcher starts a worker for a task. All visits write to the same part of the ledger, one
//! after the other. A visit dies with its life, and a zygote does not report a life as ended
//! before its last visit has.

use crate::fork::{self, Side};
use crate::ledger::{Activity, Ledger};
use crate::life;
use crate::wire::{EXIT_STORE, Life};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::path::Path;

/// Has visits made until it is told to drain or one fails, and gives the exit code.
pub(crate) fn live(ledger: &'static Ledger, index: usize, path: &Path, life: &Life) -> i32 {
    let slot = ledger.slot(index);
    slot.set_ready();
    while !slot.draining() {
        slot.set_activity(Activity::Opening);
        let code = match fork::fork() {
            Ok(Side::Child) => fork::end_at_once(life::once(ledger, index, path, life)),
            Ok(Side::Parent(visit)) => await_end(visit),
            Err(errno) => Err(format!("fork: {errno}")),
        };
        match code {
            Ok(0) => {}
            Ok(code) => return code,
            Err(message) => {
                slot.set_message(&message);
                return EXIT_STORE;
            }
        }
    }
    slot.set_activity(Activity::Closed);
    0
}

/// The exit code of a visit, or what else became of it.
fn await_end(visit: Pid) -> Result<i32, String> {
    loop {
        match waitpid(visit, None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                return Err(format!("{signal} ended a visit"));
            }
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(format!("waitpid: {errno}")),
        }
    }
}
