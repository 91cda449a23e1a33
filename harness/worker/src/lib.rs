//! The victims: processes that write to a board and are killed while they do.
//!
//! A *zygote* (one process a lane, exec'ed once, single-threaded) forks the writers of each cycle.
//! Every writer opens its own connection after the fork, plays its role, and records each operation
//! and its outcome in a [`ledger`] in shared memory, which no injected fault touches and which
//! outlives the writer. A shim around SQLite's own VFS says in the same memory what the writer is
//! doing, so that a kill can be told to have landed in a commit, in a checkpoint, or in nothing.
//!
//! Deliberately absent: a command line, a log, threads, anything of the harness. What is under test
//! should differ from a production writer by as little as can be.
//!
//! In: [`wire::Order`]s as JSON lines on a socket. Out: the ledger and [`wire::Reply`] lines.

pub mod wire;
pub mod content;
pub mod ledger;
mod engine;
mod fork;
pub mod gate;
mod shim;
mod target;
mod life;
mod nursery;
mod visit;
mod zygote;

pub use nursery::{BELL_FD, GATES_FD, NURSERY, ORDER_FD};
pub use zygote::{ARGV0, ENGINE, SOLO, STORE, main};
