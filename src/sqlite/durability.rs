//! What one write must survive, and the connection's level that it needs.
//!
//! In: a [`Durability`], chosen per call. Out: the level of `PRAGMA synchronous` that gives it, put
//! into effect and read back only when it is not the one in effect already.
//! Not here: which level a database has when nothing is chosen, which is `options`' matter.
//!
//! A connection has one level at a time, and it cannot change within a transaction. Changing it
//! costs no system call and no lock: it is one word in SQLite's memory. Two short statements are
//! compiled for it, some microseconds; a write at the level in effect pays a comparison.
//!
//! # Two levels on one log
//!
//! All writes of a database go to one log, in the order of their commits, and a sync covers the
//! whole file. So the levels of different writes do not stand side by side, they add up:
//!
//! - A commit at [`Power`](Durability::Power) makes **every commit before it** safe from power loss
//!   too, whichever process wrote it and at whichever level. If they are still in the log, this
//!   sync covers them; if they have left it, the checkpoint that moved them was synced first.
//! - A commit at [`Process`](Durability::Process) becomes safe from power loss with the next
//!   `Power` commit of anybody, and with the next checkpoint.
//! - What a power cut leaves is therefore always a prefix of the commits, and it reaches at least
//!   to the last one that was made at `Power`.
//!
//! This holds among connections at `normal`, `full` and `extra`. One at `off` breaks it for all:
//! its checkpoints overwrite the database before the log is on the disk.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use crate::error::{Result, StoreError};
use crate::options::Synchronous;

/// What an acknowledged write survives. The order is that of what it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// The process being killed at any instruction after the call returned. No sync: the write
    /// lies in the kernel's page cache, and a power cut may take it back together with every
    /// commit after it.
    Process,
    /// That, and the machine losing power. One sync of the log for each write.
    Power,
}

impl Durability {
    /// What a write survives whose connection is at that level.
    ///
    /// `off` gives the first, as far as the write itself goes: no process that is killed takes an
    /// acknowledged commit with it. What else `off` costs stands at [`Synchronous`].
    #[must_use]
    pub const fn of(level: Synchronous) -> Self {
        match level {
            Synchronous::Off | Synchronous::Normal => Self::Process,
            Synchronous::Full | Synchronous::Extra => Self::Power,
        }
    }

    /// The level that gives it at the least cost.
    #[must_use]
    pub const fn level(self) -> Synchronous {
        match self {
            Self::Process => Synchronous::Normal,
            Self::Power => Synchronous::Full,
        }
    }

    /// The name: `process` or `power`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Power => "power",
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Durability {
    type Err = StoreError;

    /// The durability of that name, in any case of letter.
    fn from_str(name: &str) -> Result<Self> {
        [Self::Process, Self::Power]
            .into_iter()
            .find(|durability| durability.as_str().eq_ignore_ascii_case(name))
            .ok_or_else(|| StoreError::Option {
                name: "durability",
                value: name.to_owned(),
                understood: "process and power",
            })
    }
}

/// Brings the connection to `level` and reads it back.
///
/// # Errors
///
/// [`StoreError::PragmaRefused`] if it did not take, as within a transaction; else what SQLite
/// reported. Nothing was written.
pub(crate) fn set_level(conn: &Connection, path: &Path, level: Synchronous) -> Result<()> {
    let got = conn
        .pragma_update(None, "synchronous", level.as_str())
        .and_then(|()| conn.pragma_query_value(None, "synchronous", |row| row.get::<_, i64>(0)))
        .map_err(|source| {
            StoreError::refused(source, "change the durability", path, Duration::ZERO)
        })?;
    if got == i64::from(level.pragma_number()) {
        return Ok(());
    }
    Err(StoreError::PragmaRefused {
        pragma: "synchronous",
        wanted: level.to_string(),
        got: Synchronous::from_pragma_number(got)
            .map_or_else(|| got.to_string(), |level| level.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_of_a_durability_gives_that_durability() {
        for durability in [Durability::Process, Durability::Power] {
            assert_eq!(Durability::of(durability.level()), durability);
            assert_eq!(durability.as_str().parse::<Durability>().unwrap(), durability);
            assert_eq!(serde_json::to_value(durability).unwrap(), durability.as_str());
        }
        assert!(Durability::Process < Durability::Power);
        assert_eq!(Durability::of(Synchronous::Off), Durability::Process);
        assert_eq!(Durability::of(Synchronous::Extra), Durability::Power);
        let error = "disk".parse::<Durability>().unwrap_err();
        assert!(matches!(error, StoreError::Option { name: "durability", .. }), "{error:?}");
    }

    #[test]
    fn level_that_a_transaction_holds_fast_is_not_taken_for_set() {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch("BEGIN").unwrap();
        let error = set_level(&conn, Path::new("a.db"), Synchronous::Normal).unwrap_err();
        assert!(matches!(error, StoreError::Sqlite { .. }), "{error:?}");
        conn.execute_batch("COMMIT").unwrap();
        set_level(&conn, Path::new("a.db"), Synchronous::Normal).unwrap();
    }
}
