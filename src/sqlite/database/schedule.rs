//! Looking at a database that stays open for long, every so often.
//!
//! A damaged page is found by whoever reads it, and one that nobody reads by nobody: so whoever
//! keeps a database open asks here from time to time, as a dispatcher does between its rounds. It
//! fails closed: what is found damaged is quarantined at once.

use std::time::{Duration, Instant};

use super::Database;
use crate::error::Result;
use crate::sqlite::verify::{Depth, Report};

impl Database {
    /// Looks at all of the database if [`Options::verify_every`](crate::Options::verify_every) has
    /// passed since the last time, or since it was opened. `None`: it is not due.
    ///
    /// It reads the whole database in one snapshot: writers go on, and the log grows meanwhile.
    ///
    /// # Errors
    ///
    /// - [`StoreError::Quarantined`](crate::StoreError::Quarantined): it is damaged. The evidence
    ///   is kept, and whoever opens it is refused until it is recovered.
    /// - What kept it from looking, as in [`verify`](Self::verify). It is then due still.
    pub fn verify_when_due(&self) -> Result<Option<Report>> {
        if self.verify_due_in().is_none_or(|left| !left.is_zero()) {
            return Ok(None);
        }
        let report = self.verify(Depth::Full)?;
        self.verified.set(Instant::now());
        if let Some(reason) = report.first() {
            return Err(self.damaged(&format!("found by a look on schedule: {reason}")));
        }
        Ok(Some(report))
    }

    /// How long until it is due; `None`: never.
    #[must_use]
    pub fn verify_due_in(&self) -> Option<Duration> {
        let every = self.options.verify_every;
        (!every.is_zero()).then(|| every.saturating_sub(self.verified.get().elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::StoreError;
    use crate::sqlite::fixture::{LEDGER, Place};
    use crate::sqlite::quarantine;

    fn open(place: &Place, verify_every: Duration) -> Database {
        drop(place.open());
        let options = crate::Options { verify_every, ..Place::options() };
        let mut database = Database::open(&place.path(), &options, false).unwrap();
        database.keep_chain(&LEDGER).unwrap();
        database
    }

    #[test]
    fn database_is_looked_at_when_it_is_due_and_not_before() {
        let place = Place::new();
        let mut database = open(&place, Duration::from_hours(1));
        place.append(&mut database, 5);
        assert_eq!(database.verify_when_due().unwrap(), None);
        drop(database);
        let database = open(&place, Duration::ZERO);
        assert_eq!((database.verify_due_in(), database.verify_when_due().unwrap()), (None, None));
        drop(database);
        let database = open(&place, Duration::from_nanos(1));
        let report = database.verify_when_due().unwrap().unwrap();
        assert!(report.is_sound() && report.rows == 5, "{report:?}");
    }

    #[test]
    fn damage_that_nobody_reads_is_found_by_a_look_on_schedule_and_closes_the_place() {
        let place = Place::new();
        let mut database = open(&place, Duration::from_nanos(1));
        place.append_times(&mut database, 3, 4);
        database.connection().execute_batch("UPDATE notes SET text = 'x' WHERE id = 6").unwrap();
        let error = database.verify_when_due().unwrap_err();
        assert!(matches!(error, StoreError::Quarantined { .. }), "{error:?}");
        assert!(matches!(database.usable(), Err(StoreError::Poisoned)));
        assert!(quarantine::notice(&place.path()).unwrap().copy.is_some());
        assert!(matches!(place.try_open(), Err(StoreError::Quarantined { .. })));
    }
}
