//! The zygote under a supervisor: each of its children is born stopped, and traced from its first
//! instruction. So a victim costs a fork, and neither an exec nor the linking of a program.
//!
//! Its supervisor rings, and lets it run until its fork is reported; there it stands until it is
//! needed again. It has one thread, opens no database, and nobody waits for its children: the
//! kernel takes them away.
//!
//! | descriptor | what it is                                            |
//! |------------|-------------------------------------------------------|
//! | 0          | the ledger's memory                                   |
//! | 2          | where a panic's message goes                          |
//! | 3          | the order: a memory file that holds a [`Birth`]       |
//! | 4          | the bell: one byte for every child                    |
//! | 5          | the gates' memory                                     |

use crate::fork::{self, Side};
use crate::gate::{self, Gates};
use crate::ledger::{Ledger, SLOTS};
use crate::life;
use crate::wire::{Birth, Role};
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::process::ExitCode;

/// The argument that makes [`main`](crate::main) a nursery.
pub const NURSERY: &str = "nursery";
/// The number of the descriptor that holds the order.
pub const ORDER_FD: i32 = 3;
/// The number of the descriptor that rings.
pub const BELL_FD: i32 = 4;
/// The number of the descriptor of the memory of the [gates](crate::gate).
pub const GATES_FD: i32 = 5;

/// Forks one child for every byte, until there will be no more.
pub(crate) fn serve(ledger: &'static Ledger, misused: ExitCode) -> ExitCode {
    let (Ok(mut order), Ok(mut bell)) = (fork::adopt_fd(ORDER_FD), fork::adopt_fd(BELL_FD)) else {
        return misused;
    };
    let gates = fork::adopt_fd(GATES_FD).ok().and_then(|file| Gates::map(&file).ok());
    let Some(gates) = gates else { return misused };
    if fork::forget_children().is_err() {
        return misused;
    }
    // It lives as long as the process, and the children's SQLite points into it.
    let gates: &'static Gates = Box::leak(Box::new(gates));
    let mut byte = [0];
    while bell.read_exact(&mut byte).is_ok() {
        let Some(birth) = read(&mut order) else { return misused };
        match fork::fork() {
            Ok(Side::Parent(_)) => {}
            Ok(Side::Child) => {
                if fork::remember_children().is_err() {
                    return misused;
                }
                let (slot, cycle) = (birth.slot, birth.cycle);
                // Whoever forks shares its gate with its children, who are other processes.
                if cycle.lives[slot].role != Role::Visitor {
                    gate::arm(gates.gate(slot), ledger.slot(slot));
                }
                let code = life::live(ledger, slot, &cycle.database, &cycle.lives[slot]);
                return ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX));
            }
            Err(_) => return misused,
        }
    }
    ExitCode::SUCCESS
}

/// The order, if it is one that can be carried out.
fn read(order: &mut File) -> Option<Birth> {
    let mut text = Vec::new();
    order.rewind().ok()?;
    order.read_to_end(&mut text).ok()?;
    let birth: Birth = serde_json::from_slice(&text).ok()?;
    (birth.slot < SLOTS.min(birth.cycle.lives.len())).then_some(birth)
}
