//! Where settings come from: the defaults, a file, the environment, in this order; the later wins.
//!
//! All settings stand in one table, [`SETTINGS`], with the reason to touch each. The file is TOML:
//!
//! ```toml
//! synchronous = "full"
//! busy-timeout-ms = 5000
//!
//! [dispatch]
//! max-spawn = 3
//! worker = ["/usr/local/bin/work", "--quietly"]
//! ```
//!
//! A variable is named after its setting: `HARDBOARD_BUSY_TIMEOUT_MS`, `HARDBOARD_MAX_SPAWN`.
//!
//! In: the text of a file, variables. Out: a [`Config`], which knows where each value is from.
//! Not here: what the values do.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::board::dispatch::DispatchOptions;
use crate::error::{Result, StoreError};
use crate::options::{Options, Synchronous};

/// The variable that names the file.
pub const CONFIG_VARIABLE: &str = "HARDBOARD_CONFIG";

/// The variable of the Hermes agent that chose the level of its boards. On a board that was
/// imported it is understood where nothing else chooses the level, and it can only raise it.
pub const HERMES_VARIABLE: &str = "HERMES_KANBAN_SYNCHRONOUS_MODE";

/// Where a value is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Nobody chose it.
    Default,
    /// The file.
    File,
    /// A variable.
    Environment,
}

impl Origin {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::File => "file",
            Self::Environment => "environment",
        }
    }
}

/// All settings of a program that works with a board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How boards are opened.
    pub options: Options,
    /// How a dispatcher goes about it.
    pub dispatch: DispatchOptions,
    /// In the order of [`SETTINGS`].
    origins: Vec<Origin>,
}

/// What somebody gave for a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Given {
    /// One value, as text.
    One(String),
    /// A list of texts.
    List(Vec<String>),
}

/// A setting.
#[derive(Debug)]
pub struct Setting {
    /// Its name in the file.
    pub name: &'static str,
    /// The variable that overrides it.
    pub variable: &'static str,
    /// Whether it stands in the file's section `dispatch`.
    pub of_dispatch: bool,
    /// Why one would touch it.
    pub why: &'static str,
    /// What is understood.
    pub understood: &'static str,
    set: fn(&mut Config, &Given) -> Option<()>,
    show: fn(&Config) -> String,
}

/// A setting and its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Effective {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub value: String,
    /// Where that is from.
    pub origin: Origin,
    /// Why one would touch it.
    pub why: &'static str,
}

impl Default for Config {
    fn default() -> Self {
        Self::new(Options::default())
    }
}

impl Config {
    /// These options, and the default ones for everything else.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let origins = vec![Origin::Default; SETTINGS.len()];
        Self { options, dispatch: DispatchOptions::default(), origins }
    }

    /// This configuration, overridden by a file (the one given, else the one that
    /// [`CONFIG_VARIABLE`] names, else none) and then by the environment.
    ///
    /// # Errors
    ///
    /// [`StoreError::Config`] for a file that cannot be read or understood, naming the line where
    /// it is no TOML and the setting where it is; [`StoreError::Option`] for a variable.
    pub fn load(
        mut self,
        file: Option<&Path>,
        lookup: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self> {
        let named = lookup(CONFIG_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
        if let Some(path) = file.map(Path::to_owned).or(named) {
            self.read(&path)?;
        }
        for (index, setting) in SETTINGS.iter().enumerate() {
            let Some(value) = lookup(setting.variable) else { continue };
            let given = value.to_str().map(|text| Given::One(text.to_owned()));
            let taken = given.and_then(|given| (setting.set)(&mut self, &given));
            if taken.is_none() {
                return Err(StoreError::Option {
                    name: setting.variable,
                    value: value.to_string_lossy().into_owned(),
                    understood: setting.understood,
                });
            }
            self.origins[index] = Origin::Environment;
        }
        Ok(self)
    }

    fn read(&mut self, path: &Path) -> Result<()> {
        let failed = |what: String| StoreError::Config { path: path.to_owned(), what };
        let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
            failed(format!("line {line}: {}", error.message()))
        })?;
        for (name, value) in &table {
            match value {
                toml::Value::Table(section) if name == "dispatch" => {
                    for (name, value) in section {
                        self.take(name, true, value).map_err(failed)?;
                    }
                }
                value => self.take(name, false, value).map_err(failed)?,
            }
        }
        Ok(())
    }

    fn take(&mut self, name: &str, of_dispatch: bool, value: &toml::Value) -> Result<(), String> {
        let is = |setting: &Setting| (setting.name, setting.of_dispatch) == (name, of_dispatch);
        let index = SETTINGS.iter().position(is).ok_or_else(|| {
            let section = if of_dispatch { "in [dispatch] " } else { "" };
            format!("{name} {section}is no setting")
        })?;
        let setting = &SETTINGS[index];
        let given = given_of(value);
        given
            .and_then(|given| (setting.set)(self, &given))
            .ok_or_else(|| format!("{name} is {value}: understood are {}", setting.understood))?;
        self.origins[index] = Origin::File;
        Ok(())
    }

    /// Every setting with its value and where that is from.
    #[must_use]
    pub fn effective(&self) -> Vec<Effective> {
        let of = |(setting, origin): (&Setting, &Origin)| Effective {
            name: setting.name,
            value: (setting.show)(self),
            origin: *origin,
            why: setting.why,
        };
        SETTINGS.iter().zip(&self.origins).map(of).collect()
    }

    /// Takes what [`HERMES_VARIABLE`] says, on a board that was imported. Gives whether that
    /// changed anything.
    ///
    /// # Errors
    ///
    /// [`StoreError::Option`]: it is set to something else than `normal`, `full` or `extra`.
    pub fn take_hermes(&mut self, lookup: impl Fn(&str) -> Option<OsString>) -> Result<bool> {
        let Some(value) = lookup(HERMES_VARIABLE).filter(|value| !value.is_empty()) else {
            return Ok(false);
        };
        let level = value.to_str().and_then(chosen_level).ok_or_else(|| StoreError::Option {
            name: HERMES_VARIABLE,
            value: value.to_string_lossy().into_owned(),
            understood: LEVELS,
        })?;
        let chosen = self.origins[0] != Origin::Default;
        if chosen || level <= self.options.synchronous {
            return Ok(false);
        }
        self.options.synchronous = level;
        self.origins[0] = Origin::Environment;
        Ok(true)
    }
}

const LEVELS: &str = "normal, full and extra";
const COUNT: &str = "whole numbers from 0 to 4294967295";
const PAGES: &str = "whole numbers of pages from 0 to 2147483647";
const MS: &str = "whole numbers of milliseconds from 0 to 2147483647";
const SECONDS: &str = "numbers of seconds, 0 or more";
const SOME_SECONDS: &str = "numbers of seconds, more than 0";

/// Declares the settings: `dispatch` or `board`, name, variable, why, what is understood, how it is
/// set from what was given, how it is shown.
macro_rules! settings {
    ($($section:ident $name:literal, $variable:literal, $why:literal, $understood:expr,
       |$config:ident, $given:ident| $set:expr, |$shown:ident| $show:expr;)+) => {
        /// All settings.
        pub static SETTINGS: &[Setting] = &[$(Setting {
            name: $name,
            variable: $variable,
            of_dispatch: settings!(@ $section),
            why: $why,
            understood: $understood,
            set: |$config, $given| { $set; Some(()) },
            show: |$shown| $show.to_string(),
        }),+];
    };
    (@ board) => { false };
    (@ dispatch) => { true };
}

settings! {
    board "synchronous", "HARDBOARD_SYNCHRONOUS",
        "what an acknowledged commit survives: normal a kill, full and extra also a power cut",
        LEVELS, |c, given| c.options.synchronous = chosen_level(one(given)?)?,
        |c| c.options.synchronous;
    board "wal-autocheckpoint", "HARDBOARD_WAL_AUTOCHECKPOINT",
        "how long the log gets before a commit is slow; no part in what survives a crash",
        PAGES, |c, given| c.options.wal_autocheckpoint_pages = bounded(given)?,
        |c| c.options.wal_autocheckpoint_pages;
    board "busy-timeout-ms", "HARDBOARD_BUSY_TIMEOUT_MS",
        "how long a call waits for another writer before it says so",
        MS, |c, given| c.options.busy_timeout = Duration::from_millis(bounded(given)?.into()),
        |c| c.options.busy_timeout.as_millis();
    board "anchor-sync", "HARDBOARD_ANCHOR_SYNC",
        "true: no power cut leaves the anchor a commit behind, for one more sync a commit",
        "true and false", |c, given| c.options.anchor_sync = one(given)?.parse().ok()?,
        |c| c.options.anchor_sync;
    board "open-check-budget-ms", "HARDBOARD_OPEN_CHECK_BUDGET_MS",
        "how long an open may check a board that was left without a close",
        MS, |c, given| c.options.open_check_budget = Duration::from_millis(bounded(given)?.into()),
        |c| c.options.open_check_budget.as_millis();
    board "verify-every-seconds", "HARDBOARD_VERIFY_EVERY_SECONDS",
        "how often a dispatcher looks whether the whole board is sound; 0: never",
        SECONDS, |c, given| c.options.verify_every = seconds(given)?,
        |c| c.options.verify_every.as_secs_f64();
    board "quarantine-bytes", "HARDBOARD_QUARANTINE_BYTES",
        "how much room all quarantine copies of a board may take together",
        "whole numbers of bytes", |c, given| c.options.quarantine_bytes = one(given)?.parse().ok()?,
        |c| c.options.quarantine_bytes;
    board "accept-engine", "HARDBOARD_ACCEPT_ENGINE",
        "to work with a SQLite that can lose commits, named by its version; empty: none",
        "versions of SQLite", |c, given| c.options.accept_engine = named(given)?,
        |c| c.options.accept_engine.as_deref().unwrap_or("");
    board "accept-file-system", "HARDBOARD_ACCEPT_FILE_SYSTEM",
        "to work on a file system that is refused, by its name; empty: none",
        "names of file systems", |c, given| c.options.accept_file_system = named(given)?,
        |c| c.options.accept_file_system.as_deref().unwrap_or("");
    dispatch "dispatch-interval-seconds", "HARDBOARD_DISPATCH_INTERVAL_SECONDS",
        "less: work starts sooner, and the board is written more often",
        SOME_SECONDS, |c, given| c.dispatch.interval = positive(given)?,
        |c| c.dispatch.interval.as_secs_f64();
    dispatch "max-spawn", "HARDBOARD_MAX_SPAWN",
        "how many workers a round may start, so that a full board is no stampede",
        COUNT, |c, given| c.dispatch.max_spawn = one(given)?.parse().ok()?,
        |c| c.dispatch.max_spawn;
    dispatch "max-running", "HARDBOARD_MAX_RUNNING",
        "how many workers the machine bears at once; 0: any number",
        COUNT, |c, given| c.dispatch.max_running = one(given)?.parse().ok()?,
        |c| c.dispatch.max_running;
    dispatch "failure-limit", "HARDBOARD_FAILURE_LIMIT",
        "after how many failures in a row a person has to look at a task",
        COUNT, |c, given| c.dispatch.limits.failure_limit = one(given)?.parse().ok()?,
        |c| c.dispatch.limits.failure_limit;
    dispatch "interruption-limit", "HARDBOARD_INTERRUPTION_LIMIT",
        "after how many kills from outside in a row a person has to look at a task",
        COUNT, |c, given| c.dispatch.limits.interruption_limit = one(given)?.parse().ok()?,
        |c| c.dispatch.limits.interruption_limit;
    dispatch "cool-down-seconds", "HARDBOARD_COOL_DOWN_SECONDS",
        "how long a task rests after its first failure; each further one doubles it",
        SECONDS, |c, given| c.dispatch.limits.cool_down = seconds(given)?,
        |c| c.dispatch.limits.cool_down.as_secs_f64();
    dispatch "cool-down-max-seconds", "HARDBOARD_COOL_DOWN_MAX_SECONDS",
        "the longest rest",
        SECONDS, |c, given| c.dispatch.limits.cool_down_max = seconds(given)?,
        |c| c.dispatch.limits.cool_down_max.as_secs_f64();
    dispatch "claim-lease-seconds", "HARDBOARD_CLAIM_LEASE_SECONDS",
        "how soon a worker that hangs is stopped; it must extend its claim before",
        SOME_SECONDS, |c, given| c.dispatch.claim_lease = positive(given)?,
        |c| c.dispatch.claim_lease.as_secs_f64();
    dispatch "max-runtime-seconds", "HARDBOARD_MAX_RUNTIME_SECONDS",
        "how long one run may take where its task does not say; 0: any time",
        SECONDS, |c, given| c.dispatch.max_runtime = seconds(given)?,
        |c| c.dispatch.max_runtime.as_secs_f64();
    dispatch "stop-grace-seconds", "HARDBOARD_STOP_GRACE_SECONDS",
        "how long a worker that is to stop has after SIGTERM",
        SECONDS, |c, given| c.dispatch.stop_grace = seconds(given)?,
        |c| c.dispatch.stop_grace.as_secs_f64();
    dispatch "stop-confirm-seconds", "HARDBOARD_STOP_CONFIRM_SECONDS",
        "how long a killed worker is waited for before its claim is left to it for another round",
        SECONDS, |c, given| c.dispatch.stop_confirm = seconds(given)?,
        |c| c.dispatch.stop_confirm.as_secs_f64();
    dispatch "worker", "HARDBOARD_WORKER",
        "the program that works on a task; none: workers come by themselves",
        "lists of texts: a program and its arguments", |c, given| c.dispatch.worker = list(given),
        |c| c.dispatch.worker.join(" ");
    dispatch "log-dir", "HARDBOARD_LOG_DIR",
        "where what workers print goes; empty: nowhere",
        "paths", |c, given| c.dispatch.log_dir = Some(PathBuf::from(one(given)?))
            .filter(|path| !path.as_os_str().is_empty()),
        |c| c.dispatch.log_dir.as_deref().unwrap_or(Path::new("")).display();
}

fn given_of(value: &toml::Value) -> Option<Given> {
    Some(match value {
        toml::Value::String(text) => Given::One(text.clone()),
        toml::Value::Integer(number) => Given::One(number.to_string()),
        toml::Value::Float(number) => Given::One(number.to_string()),
        toml::Value::Boolean(flag) => Given::One(flag.to_string()),
        toml::Value::Array(items) => Given::List(
            items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<_>>()?,
        ),
        toml::Value::Datetime(_) | toml::Value::Table(_) => return None,
    })
}

fn one(given: &Given) -> Option<&str> {
    match given {
        Given::One(text) => Some(text),
        Given::List(_) => None,
    }
}

/// The empty text is no name.
#[expect(clippy::option_option, reason = "what was not understood, and what was not named")]
fn named(given: &Given) -> Option<Option<String>> {
    Some(Some(one(given)?).filter(|name| !name.is_empty()).map(str::to_owned))
}

/// One text is a program without arguments; the empty one is none.
fn list(given: &Given) -> Vec<String> {
    match given {
        Given::One(text) if text.is_empty() => Vec::new(),
        Given::One(text) => vec![text.clone()],
        Given::List(texts) => texts.clone(),
    }
}

/// `off` can be chosen in code only, see [`Synchronous::Off`].
fn chosen_level(name: &str) -> Option<Synchronous> {
    Synchronous::parse(name).filter(|level| *level != Synchronous::Off)
}

fn bounded(given: &Given) -> Option<u32> {
    let text = one(given)?;
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && i32::try_from(*number).is_ok())
}

fn seconds(given: &Given) -> Option<Duration> {
    Duration::try_from_secs_f64(one(given)?.parse().ok()?).ok()
}

fn positive(given: &Given) -> Option<Duration> {
    seconds(given).filter(|time| !time.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_file(text: &str) -> Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hardboard.toml");
        fs::write(&path, text).unwrap();
        Config::default().load(Some(&path), |_| None)
    }

    fn value(config: &Config, name: &str) -> (String, Origin) {
        let of = config.effective().into_iter().find(|of| of.name == name).unwrap();
        (of.value, of.origin)
    }

    #[test]
    fn defaults_are_those_of_the_production_report() {
        let config = Config::default();
        for (name, default) in
            [("dispatch-interval-seconds", "120"), ("max-spawn", "3"), ("failure-limit", "4")]
        {
            assert_eq!(value(&config, name), (default.to_owned(), Origin::Default));
        }
        assert_eq!(value(&config, "synchronous").0, "full");
    }

    #[test]
    fn environment_goes_before_the_file_and_the_file_before_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hardboard.toml");
        fs::write(&path, "busy-timeout-ms = 7\n[dispatch]\nmax-spawn = 8\nmax-running = 9")
            .unwrap();
        let lookup = |name: &str| match name {
            CONFIG_VARIABLE => Some(path.clone().into_os_string()),
            "HARDBOARD_MAX_SPAWN" => Some("5".into()),
            _ => None,
        };
        let config = Config::default().load(None, lookup).unwrap();
        assert_eq!(value(&config, "busy-timeout-ms"), ("7".to_owned(), Origin::File));
        assert_eq!(value(&config, "max-spawn"), ("5".to_owned(), Origin::Environment));
        assert_eq!(value(&config, "max-running"), ("9".to_owned(), Origin::File));
        assert_eq!(config.options.busy_timeout, Duration::from_millis(7));
    }

    #[test]
    fn every_setting_is_taken_back_as_it_is_shown() {
        let config = Config::default();
        for (setting, shown) in SETTINGS.iter().zip(config.effective()) {
            let mut again = Config::default();
            let given = Given::One(shown.value.clone());
            (setting.set)(&mut again, &given).unwrap_or_else(|| panic!("{}", setting.name));
            assert_eq!(
                (again.options, again.dispatch),
                (config.options.clone(), config.dispatch.clone())
            );
            assert!(!setting.why.is_empty() && setting.variable.starts_with("HARDBOARD_"));
        }
    }

    #[track_caller]
    fn check_refused(text: &str, told: &str) {
        let error = from_file(text).unwrap_err();
        assert!(matches!(error, StoreError::Config { .. }), "{error:?}");
        assert!(error.to_string().contains(told), "{error}");
    }

    #[test]
    fn file_that_is_not_understood_is_told_by_line_or_by_setting() {
        check_refused("synchronous = ", "line 1");
        check_refused("\n\nbusy-timeout-ms = 7 7", "line 3");
        check_refused("max-spawn = 3", "max-spawn is no setting");
        check_refused(
            "[dispatch]\nsynchronous = 'full'",
            "synchronous in [dispatch] is no setting",
        );
        check_refused("synchronous = 'off'", "understood are normal, full and extra");
        check_refused("synchronous = ['full']", "understood are");
        check_refused("busy-timeout-ms = -1", "busy-timeout-ms is -1");
        check_refused("[dispatch]\ndispatch-interval-seconds = 0", "more than 0");
        check_refused("[dispatch]\nworker = [1]", "lists of texts");
        let error = Config::default().load(Some(Path::new("/no/such.toml")), |_| None).unwrap_err();
        assert!(error.to_string().contains("/no/such.toml"), "{error}");
    }

    #[test]
    fn worker_is_a_program_and_its_arguments() {
        let config = from_file("[dispatch]\nworker = ['sh', '-c', 'exit 0']").unwrap();
        assert_eq!(config.dispatch.worker, ["sh", "-c", "exit 0"]);
    }

    #[test]
    fn hermes_can_raise_the_level_of_an_imported_board_where_nobody_else_chose() {
        let normal = Options { synchronous: Synchronous::Normal, ..Options::default() };
        let full = |_: &str| Some(OsString::from("full"));
        let mut config = Config::new(normal.clone());
        assert!(config.take_hermes(full).unwrap());
        assert_eq!(value(&config, "synchronous"), ("full".to_owned(), Origin::Environment));
        // It lowers nothing, and what was chosen stays.
        assert!(!Config::default().take_hermes(|_| Some("normal".into())).unwrap());
        let chosen = |name: &str| (name == "HARDBOARD_SYNCHRONOUS").then(|| "normal".into());
        let mut config = Config::default().load(None, chosen).unwrap();
        assert!(!config.take_hermes(full).unwrap());
        assert!(config.take_hermes(|_| Some("off".into())).is_err());
    }
}
