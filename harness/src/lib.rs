//! Kills real SQLite writers, and judges what survived against a ledger of what was acknowledged.
//!
//! # The way through it
//!
//! ```text
//! scenarios/*.toml → scenario → plan → run → history → oracle → report
//! ```
//!
//! Each stage is one module, named for the value that it makes, and each value is plain data. All
//! random choices are made in [`plan`]; all side effects are in [`run`]; [`oracle`] judges a
//! [`history`] and knows nothing of how it came about.
//!
//! # What is deliberately absent
//!
//! - No retry: a check that holds the second time has failed the first.
//! - No driver that decides what is harmless: every observation reaches the oracle.
//! - No pass by silence: no kills, no acknowledgements, settings that did not take are
//!   inconclusive.

pub mod verdict;
pub mod scenario;
pub mod plan;
pub mod history;
pub mod run;
pub mod oracle;
pub mod report;
pub mod bundle;
pub mod command;
mod cli;
mod exit;

pub use cli::main;
pub use exit::Exit;
