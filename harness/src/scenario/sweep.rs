//! What a sweep is asked for: one script, struck at every point of it.
//!
//! In: the text of one file of `scenarios/sweep/`. Out: a checked [`Sweep`].

use super::load::{self, Complaint};
use super::{Expect, FORMAT, ScenarioError, Setting};
use crate::run::trace::{ErrorCode, PhasePattern};
use killpoint_worker::wire::{EngineName, Step, Target};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// One sweep file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Sweep {
    /// The file's format: [`FORMAT`].
    pub format: u32,
    /// What the sweep is to show, in one sentence.
    pub claim: String,
    /// The verdict that shows it.
    pub expect: Expect,
    /// Whether this is a control.
    #[serde(default)]
    pub canary: bool,
    /// What the struck processes do.
    pub script: Script,
    /// How the database is set; each setting is swept.
    pub setting: Vec<Setting>,
    /// What is done at each point.
    pub faults: Faults,
}

/// What the struck processes do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Script {
    /// Through which store.
    pub target: Target,
    /// On which SQLite.
    #[serde(default)]
    pub engine: EngineName,
    /// The steps, then the connection is closed, which checkpoints.
    pub steps: Vec<Step>,
    /// How often the same steps are performed before, undisturbed.
    #[serde(default = "one")]
    pub prepare: u32,
    /// What the struck processes find.
    #[serde(default)]
    pub start: Start,
    /// Processes at once. One is swept exhaustively; several are sampled.
    #[serde(default = "one")]
    pub writers: u32,
    /// Events of one append.
    #[serde(default = "two")]
    pub events: u32,
    /// Bytes of one event's payload.
    #[serde(default = "forty")]
    pub payload_bytes: u32,
}

/// What the struck processes find.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// A database that was closed: no WAL.
    #[default]
    Closed,
    /// A database with a WAL, as a kill leaves it.
    WithWal,
}

/// What is done at each point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Faults {
    /// SIGKILL before each call, and after the last one.
    pub kill: bool,
    /// SIGKILL inside each write, after each so many bytes; 0 for none. A write that is shorter is
    /// torn at every eighth byte.
    #[serde(default)]
    pub tear_bytes: u32,
    /// Each call that can fail so fails with each of these, once.
    #[serde(default)]
    pub errors: Vec<ErrorCode>,
    /// A failed call of these phases fails again each time from then on, too.
    #[serde(default)]
    pub errors_for_good: bool,
    /// Phases that must have been hit, or the sweep is inconclusive.
    #[serde(default)]
    pub require: Vec<PhasePattern>,
    /// With several writers: how many points of each phase are struck.
    #[serde(default = "twenty")]
    pub samples_per_phase: u32,
}

const fn one() -> u32 {
    1
}

const fn two() -> u32 {
    2
}

const fn forty() -> u32 {
    40
}

const fn twenty() -> u32 {
    20
}

/// Reads and checks the file at `path`.
pub fn load(path: &Path) -> Result<Sweep, ScenarioError> {
    load::read(path, &check)
}

fn check(sweep: &Sweep) -> Result<(), Complaint> {
    let complain = |path, text: String| Err(Complaint { path, text });
    if sweep.format != FORMAT {
        let found = sweep.format;
        return complain(&["format"], format!("format {found} is not known: this reads {FORMAT}"));
    }
    if sweep.claim.trim().is_empty() {
        return complain(
            &["claim"],
            "the claim is empty: say what the sweep is to show".to_owned(),
        );
    }
    if sweep.script.steps.is_empty() {
        return complain(&["script", "steps"], "no steps: there would be nothing to strike".into());
    }
    if !(1..=32).contains(&sweep.script.writers) {
        return complain(&["script", "writers"], "1 to 32 writers can be swept".to_owned());
    }
    if sweep.setting.is_empty() {
        return complain(&["setting"], "no setting: write at least one [[setting]]".to_owned());
    }
    let f = &sweep.faults;
    if !f.kill && f.tear_bytes == 0 && f.errors.is_empty() {
        return complain(&["faults"], "no fault: ask for kill, tear-bytes or errors".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "format = 1\nclaim = 'c'\nexpect = 'pass'\n[script]\ntarget = 'hardboard'\n\
                        steps = ['create']\n[[setting]]\nsynchronous = 'full'\n\
                        wal-autocheckpoint = 100\n[faults]\nkill = true\n\
                        require = ['commit-frame']\n";

    #[track_caller]
    fn refused(from: &str, to: &str, part: &str) {
        assert!(GOOD.contains(from));
        let error = load::parse_as("s.toml", &GOOD.replace(from, to), &check).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }

    #[test]
    fn a_good_file_is_read() {
        let sweep = load::parse_as("s.toml", GOOD, &check).unwrap();
        assert_eq!((sweep.script.writers, sweep.script.prepare), (1, 1));
    }

    #[test]
    fn a_misspelt_phase_is_refused_on_its_line() {
        refused("commit-frame", "comit-frame", "s.toml:12:");
    }

    #[test]
    fn an_unknown_error_or_step_is_refused_on_its_line() {
        refused("kill = true", "kill = true\nerrors = ['EFOO']", "s.toml:12:");
        refused("['create']", "['creat']", "s.toml:6:");
    }

    #[test]
    fn a_sweep_of_nothing_is_refused() {
        refused("['create']", "[]", "no steps");
        refused("kill = true", "kill = false", "no fault");
    }
}
