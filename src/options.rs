//! How a board is opened: what to pay for durability, and how long to wait.
//!
//! Plain data; no file is touched here.
//!
//! In: defaults, a caller's choice, and two environment variables. Out: checked [`Options`].
//! Not here: putting them into effect and reading them back, which is `sqlite::pragma`'s work.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::board::clock::Clock;
use crate::error::{Result, StoreError};

/// The variable that overrides [`Options::synchronous`].
pub const SYNCHRONOUS_VARIABLE: &str = "HARDBOARD_SYNCHRONOUS";

/// The variable that overrides [`Options::wal_autocheckpoint_pages`].
pub const WAL_AUTOCHECKPOINT_VARIABLE: &str = "HARDBOARD_WAL_AUTOCHECKPOINT";

/// The variable that overrides [`Options::accept_engine`].
pub const ACCEPT_ENGINE_VARIABLE: &str = "HARDBOARD_ACCEPT_ENGINE";

/// The variable that overrides [`Options::accept_file_system`].
pub const ACCEPT_FILE_SYSTEM_VARIABLE: &str = "HARDBOARD_ACCEPT_FILE_SYSTEM";

/// How a database is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What an acknowledged commit survives.
    pub synchronous: Synchronous,
    /// How many pages the write-ahead log has when a writer copies them into the database. 0:
    /// never, so the log grows until the last connection is closed. At most [`i32::MAX`].
    ///
    /// SQLite's own automatic checkpoints are off: one process at a time does it, see
    /// [`crate::sqlite::checkpoint`]. It decides how often a commit is slow and how long the log
    /// gets. It has no part in what survives a crash: the log is as durable as the database.
    pub wal_autocheckpoint_pages: u32,
    /// How long a call waits for a lock before it gives up with [`StoreError::Busy`]. Counted in
    /// whole milliseconds, rounded up; at most [`i32::MAX`] of them.
    pub busy_timeout: Duration,
    /// The version of a SQLite that has the WAL-reset fault and is to be used nevertheless, as
    /// `3.51.1`. Any other such engine is refused, see [`crate::sqlite::engine`].
    pub accept_engine: Option<String>,
    /// The name of a file system that is refused and is to be used nevertheless, as `fuse`, see
    /// [`crate::sqlite::place`].
    pub accept_file_system: Option<String>,
    /// Whether SQLite's locks are guarded against code of others in the same process that opens
    /// and closes the files, see [`crate::sqlite::guard`]. It changes SQLite for the whole process.
    pub guard: bool,
    /// How long a writer may go on without a look whether log and index still have their names. The
    /// database itself is looked at before each commit.
    pub watch_every: Duration,
    /// Whether a commit at [`Durability::Power`](crate::Durability::Power) also waits until its
    /// record in the anchor is on the disk. It doubles the syncs. Without it a power cut may leave
    /// the anchor one such commit behind the database, or those of 10 ms: see
    /// [`crate::sqlite::anchor`].
    pub anchor_sync: bool,
    /// How long an open may look at a database that was left without a close. What it could not
    /// look at in that time stands in [`crate::sqlite::database::Opened`].
    pub open_check_budget: Duration,
    /// How long a database may be open before [`verify_when_due`] looks at all of it again; zero:
    /// never. A dispatcher asks between its rounds.
    ///
    /// [`verify_when_due`]: crate::sqlite::database::Database::verify_when_due
    pub verify_every: Duration,
    /// How many bytes all quarantine copies of a database may take together.
    pub quarantine_bytes: u64,
    /// The name of a registered SQLite VFS; `None` is the default one.
    pub vfs: Option<String>,
    /// The clocks by which leases end: the machine's own, unless a test moves them.
    pub clock: Clock,
}

impl Default for Options {
    /// Full durability, a checkpoint each 1000 pages, 5 s of patience, the default VFS.
    fn default() -> Self {
        Self {
            synchronous: Synchronous::Full,
            wal_autocheckpoint_pages: 1000,
            busy_timeout: Duration::from_secs(5),
            accept_engine: None,
            accept_file_system: None,
            guard: true,
            watch_every: Duration::from_millis(100),
            anchor_sync: false,
            open_check_budget: Duration::from_secs(1),
            verify_every: Duration::from_hours(1),
            quarantine_bytes: 4 << 30,
            vfs: None,
            clock: Clock::default(),
        }
    }
}

impl Options {
    /// These options, overridden by the environment.
    ///
    /// | variable                       | understood                                       |
    /// |--------------------------------|--------------------------------------------------|
    /// | `HARDBOARD_SYNCHRONOUS`        | `normal`, `full`, `extra`, in any case of letter |
    /// | `HARDBOARD_WAL_AUTOCHECKPOINT` | a number of pages, 0 to 2147483647               |
    /// | `HARDBOARD_ACCEPT_ENGINE`      | a version of SQLite, as `3.51.1`                 |
    /// | `HARDBOARD_ACCEPT_FILE_SYSTEM` | a name of a file system, as `fuse`               |
    ///
    /// `off` is refused: an environment that some other program set must not be able to make a
    /// board lose its whole content in a power cut.
    ///
    /// # Errors
    ///
    /// [`StoreError::Option`] if a variable is set to anything else, the empty text included.
    pub fn from_env(self) -> Result<Self> {
        self.with_overrides(|name| env::var_os(name))
    }

    /// As [`from_env`](Self::from_env), with `lookup` in the place of the environment.
    pub fn with_overrides(mut self, lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        if let Some(value) = lookup(SYNCHRONOUS_VARIABLE) {
            self.synchronous = value
                .to_str()
                .and_then(Synchronous::parse)
                .filter(|level| *level != Synchronous::Off)
                .ok_or_else(|| StoreError::Option {
                    name: SYNCHRONOUS_VARIABLE,
                    value: value.to_string_lossy().into_owned(),
                    understood: "normal, full and extra",
                })?;
        }
        if let Some(value) = lookup(WAL_AUTOCHECKPOINT_VARIABLE) {
            self.wal_autocheckpoint_pages =
                value.to_str().and_then(parse_pages).ok_or_else(|| StoreError::Option {
                    name: WAL_AUTOCHECKPOINT_VARIABLE,
                    value: value.to_string_lossy().into_owned(),
                    understood: "whole numbers of pages from 0 to 2147483647",
                })?;
        }
        let text = |value: OsString| value.to_string_lossy().into_owned();
        self.accept_engine = lookup(ACCEPT_ENGINE_VARIABLE).map(text).or(self.accept_engine);
        self.accept_file_system =
            lookup(ACCEPT_FILE_SYSTEM_VARIABLE).map(text).or(self.accept_file_system);
        Ok(self)
    }
}

fn parse_pages(text: &str) -> Option<u32> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|pages| i32::try_from(*pages).is_ok())
}

/// What an acknowledged commit survives, in the order of what it costs.
///
/// No level loses an acknowledged commit to a killed process: what was written lies in the page
/// cache, which is the kernel's. They differ when the kernel stops: in a power cut or a crash of
/// the machine. Measured by the system calls of SQLite 3.54.1 in WAL mode:
///
/// | level    | syncs                                        | after a power cut             |
/// |----------|----------------------------------------------|-------------------------------|
/// | `Off`    | none                                         | the database may be damaged   |
/// | `Normal` | the log's header and each checkpoint         | a prefix of the commits       |
/// | `Full`   | those, and the log at each commit            | every acknowledged commit     |
/// | `Extra`  | those of `Full`; they differ without WAL only | every acknowledged commit    |
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Synchronous {
    /// No sync at all. For measurements: it shows what the syncs of the others cost. It can be
    /// chosen in code only; the environment and the command refuse it.
    Off,
    /// Sync before a checkpoint overwrites the database. Consistent, but the newest commits may go.
    Normal,
    /// Sync at each commit.
    Full,
    /// As `Full`; in the modes that have a rollback journal it also syncs the directory after the
    /// journal is deleted. A board is always in WAL mode and has none.
    Extra,
}

impl Synchronous {
    /// The name: `off`, `normal`, `full` or `extra`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Normal => "normal",
            Self::Full => "full",
            Self::Extra => "extra",
        }
    }

    /// The level of that name, in any case of letter.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Off, Self::Normal, Self::Full, Self::Extra]
            .into_iter()
            .find(|level| level.as_str().eq_ignore_ascii_case(name))
    }

    /// The number that `PRAGMA synchronous` has for the level, 0 to 3.
    #[must_use]
    pub const fn pragma_number(self) -> u8 {
        match self {
            Self::Off => 0,
            Self::Normal => 1,
            Self::Full => 2,
            Self::Extra => 3,
        }
    }

    /// The level of the number that `PRAGMA synchronous` gave.
    #[must_use]
    pub const fn from_pragma_number(number: i64) -> Option<Self> {
        match number {
            0 => Some(Self::Off),
            1 => Some(Self::Normal),
            2 => Some(Self::Full),
            3 => Some(Self::Extra),
            _ => None,
        }
    }
}

impl fmt::Display for Synchronous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Synchronous {
    type Err = StoreError;

    /// As [`parse`](Self::parse), with a [`StoreError::Option`] that says what is understood.
    fn from_str(name: &str) -> Result<Self> {
        Self::parse(name).ok_or_else(|| StoreError::Option {
            name: "synchronous",
            value: name.to_owned(),
            understood: "off, normal, full and extra",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn overridden(name: &str, value: &str) -> Result<Options> {
        let value = OsString::from(value);
        Options::default().with_overrides(|asked| (asked == name).then(|| value.clone()))
    }

    #[track_caller]
    fn check_refused(variable: &str, text: &str) {
        let error = overridden(variable, text).unwrap_err();
        let StoreError::Option { name, value, understood } = &error else { panic!("{error:?}") };
        assert_eq!((*name, value.as_str()), (variable, text));
        let told = error.to_string();
        assert!(told.contains(name) && told.contains(understood), "{told}");
    }

    #[test]
    fn default_is_full_durability() {
        let options = Options::default();
        assert_eq!(options.synchronous, Synchronous::Full);
        assert_eq!(options.wal_autocheckpoint_pages, 1000);
        assert_eq!(options.busy_timeout, Duration::from_secs(5));
        assert_eq!(options.vfs, None);
    }

    #[test]
    fn variable_that_is_not_set_changes_nothing() {
        let options = Options { synchronous: Synchronous::Extra, ..Options::default() };
        assert_eq!(options.clone().with_overrides(|_| None).unwrap(), options);
    }

    #[test]
    fn level_is_understood_in_any_case_of_letter() {
        let levels = [
            ("normal", Synchronous::Normal),
            ("NORMAL", Synchronous::Normal),
            ("Full", Synchronous::Full),
            ("extra", Synchronous::Extra),
        ];
        for (text, level) in levels {
            assert_eq!(overridden(SYNCHRONOUS_VARIABLE, text).unwrap().synchronous, level);
        }
    }

    #[test]
    fn environment_cannot_turn_durability_off() {
        check_refused(SYNCHRONOUS_VARIABLE, "off");
        check_refused(SYNCHRONOUS_VARIABLE, "OFF");
    }

    #[test]
    fn level_that_is_not_understood_is_named_with_its_variable() {
        for text in ["", "2", "fully", " full", "full ", "norma\u{131}"] {
            check_refused(SYNCHRONOUS_VARIABLE, text);
        }
    }

    #[test]
    fn pages_are_understood_from_none_to_the_most_that_sqlite_can_count() {
        for (text, pages) in [("0", 0), ("1", 1), ("0100", 100), ("2147483647", 2_147_483_647)] {
            let options = overridden(WAL_AUTOCHECKPOINT_VARIABLE, text).unwrap();
            assert_eq!(options.wal_autocheckpoint_pages, pages);
        }
    }

    #[test]
    fn pages_that_are_not_understood_are_named_with_their_variable() {
        for text in ["", "-1", "+1", "1e3", "1 000", "0x10", "2147483648", "99999999999999999999"] {
            check_refused(WAL_AUTOCHECKPOINT_VARIABLE, text);
        }
    }

    #[test]
    fn value_that_is_not_utf8_is_an_error_and_no_panic() {
        let bytes = || Some(OsString::from_vec(vec![0xff, b'x']));
        let error = Options::default().with_overrides(|_| bytes()).unwrap_err();
        let StoreError::Option { value, .. } = error else { panic!("{error:?}") };
        assert_eq!(value, "\u{fffd}x");
    }

    #[test]
    fn level_has_one_name_and_one_number_everywhere() {
        let levels = [Synchronous::Off, Synchronous::Normal, Synchronous::Full, Synchronous::Extra];
        assert!(levels.is_sorted());
        for level in levels {
            assert_eq!(Synchronous::parse(level.as_str()), Some(level));
            assert_eq!(level.as_str().parse::<Synchronous>().unwrap(), level);
            assert_eq!(Synchronous::from_pragma_number(level.pragma_number().into()), Some(level));
            assert_eq!(serde_json::to_value(level).unwrap(), level.as_str());
        }
        assert_eq!(Synchronous::from_pragma_number(4), None);
        let error = "fast".parse::<Synchronous>().unwrap_err();
        assert!(matches!(error, StoreError::Option { name: "synchronous", .. }), "{error:?}");
    }
}
