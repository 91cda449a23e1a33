//! Nothing but its dependency: the SQLite that `Cargo.toml` pins.

pub use libsqlite3_sys;
