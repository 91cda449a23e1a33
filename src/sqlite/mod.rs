//! A SQLite connection with one policy, for any schema.
//!
//! Nothing here knows what a task is. A database is opened in one way only ([`open`]), each of its
//! settings is read back ([`pragma`]), and a write is one immediate transaction whose three parts
//! are timed and whose every end is told apart ([`transaction`]). What a write survives is chosen
//! for each ([`durability`]). [`database::Database`] holds all of it together.

pub mod engine;
pub mod guard;
pub(crate) mod fork;
pub(crate) mod backoff;
pub(crate) mod callback;
pub(crate) mod control;
pub mod sidecar;
pub mod place;
pub mod chain;
pub mod anchor;
pub mod verify;
pub mod quarantine;
pub mod recover;
pub mod backup;
pub mod durability;
pub mod checkpoint;
pub mod database;
pub mod open;
pub mod pragma;
pub mod transaction;
#[cfg(test)]
pub(crate) mod fixture;
