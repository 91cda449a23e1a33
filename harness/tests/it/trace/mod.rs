//! Real victims under the supervisor: Python programs on the machine's SQLite, and small C
//! programs.

mod close_race;
mod cores;
mod faults;
mod lifecycle;
mod locks;
mod phases;
mod stacks;
pub(crate) mod support;
mod watch;
