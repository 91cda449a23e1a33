//! Which SQLite is at work: read from the library that is really loaded, never from the one that
//! this crate was compiled with.
//!
//! SQLite 3.7.0 to 3.51.2 can lose acknowledged commits when a checkpoint meets a writer that
//! starts the log anew ("WAL-reset"; fixed in 3.51.3 and 3.53.0, and by backports in 3.50.7 and
//! 3.44.6; <https://sqlite.org/wal.html#walresetbug>). A vendor may have the fix under an older
//! number, which only a trial shows: it is made where the number alone would refuse.
//!
//! In: nothing. Out: an [`Engine`], or that it is refused.

mod probe;

use std::ffi::CStr;
use std::fmt;

use rusqlite::ffi;
use serde::Serialize;

use crate::error::{Result, StoreError};

/// A version of SQLite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Engine {
    /// As SQLite counts: 3.51.2 is 3051002.
    pub version_number: i32,
    /// The check-in that it was built from.
    pub source_id: String,
}

impl Engine {
    /// The library that this process has loaded.
    #[must_use]
    #[expect(unsafe_code, reason = "two C functions without arguments")]
    pub fn loaded() -> Self {
        // SAFETY: they may be called at any time, and the text is static.
        let (version_number, source_id) =
            unsafe { (ffi::sqlite3_libversion_number(), CStr::from_ptr(ffi::sqlite3_sourceid())) };
        Self { version_number, source_id: source_id.to_string_lossy().into_owned() }
    }

    /// Whether its version is one of those with the WAL-reset fault.
    #[must_use]
    pub fn may_reset_log(&self) -> bool {
        let (minor, patch) = (self.version_number / 1000 % 1000, self.version_number % 1000);
        if self.version_number < 3_007_000 {
            return false;
        }
        match minor {
            44 => patch < 6,
            50 => patch < 7,
            51 => patch < 3,
            _ => minor < 51,
        }
    }
}

/// Why an engine may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// Its version has the fix.
    Version,
    /// Its version has not, but a trial found no fault: its vendor has fixed it.
    Trial,
    /// It has the fault, and was accepted by name. What this store does against it stands in
    /// [`crate::sqlite::checkpoint`]; another program on the same file is not bound by it.
    Accepted,
}

impl Engine {
    /// Whether, and why, a store may work by this engine; `accepted` is the version that the
    /// options accept by name.
    ///
    /// # Errors
    ///
    /// [`StoreError::Engine`] if it has the WAL-reset fault and was not accepted.
    pub fn trust(&self, accepted: Option<&str>) -> Result<Trust> {
        if !self.may_reset_log() {
            return Ok(Trust::Version);
        }
        if accepted == Some(self.to_string().as_str()) {
            return Ok(Trust::Accepted);
        }
        match probe::trial() {
            Ok(probe::Trial::Sound) => Ok(Trust::Trial),
            Ok(probe::Trial::Faulty) => Err(self.refused("a trial lost acknowledged rows".into())),
            Err(why) => Err(self.refused(format!("no trial could be made, {why}"))),
        }
    }

    fn refused(&self, found: String) -> StoreError {
        StoreError::Engine { version: self.to_string(), source_id: self.source_id.clone(), found }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.version_number;
        write!(f, "{}.{}.{}", number / 1_000_000, number / 1000 % 1000, number % 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loaded_engine_is_the_one_that_answers_by_sql() {
        let conn = rusqlite::Connection::open_in_memory().unwrap();
        let told: (String, String) = conn
            .query_row("SELECT sqlite_version(), sqlite_source_id()", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap();
        let engine = Engine::loaded();
        assert_eq!((engine.to_string(), engine.source_id), told);
    }

    #[test]
    fn versions_with_the_fault_are_told_from_those_without() {
        let faulty =
            |version_number| Engine { version_number, source_id: String::new() }.may_reset_log();
        for with in [3_007_000, 3_040_001, 3_044_005, 3_045_000, 3_050_006, 3_051_002] {
            assert!(faulty(with), "{with}");
        }
        for without in [3_006_023, 3_044_006, 3_050_007, 3_051_003, 3_052_000, 3_054_001] {
            assert!(!faulty(without), "{without}");
        }
    }

    #[test]
    fn engine_with_the_fault_is_refused_by_name_and_accepted_by_its_own_name_alone() {
        let engine = Engine { version_number: 3_051_001, source_id: String::new() };
        assert_eq!(engine.trust(Some("3.51.1")).unwrap(), Trust::Accepted);
        let loaded_is_faulty = Engine::loaded().may_reset_log();
        for accepted in [None, Some("3.51.2"), Some("yes")] {
            // The trial is made of the loaded engine, whatever this one's number.
            assert_eq!(engine.trust(accepted).is_err(), loaded_is_faulty, "{accepted:?}");
        }
        let error = engine.refused("x".to_owned());
        assert!(error.to_string().contains("3.51.1"), "{error}");
        assert!(error.to_string().contains("3.51.3"), "{error}");
    }
}
