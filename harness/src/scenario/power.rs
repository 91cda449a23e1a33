//! What a power scenario is asked for: one recorded run, and what a power cut may leave of it.
//!
//! In: the text of one file of `scenarios/power/`. Out: a checked [`Power`].

use super::load::{self, Complaint};
use super::sweep::Start;
use super::{Expect, FORMAT, ScenarioError, Setting};
use hardboard::Durability;
use killpoint_worker::wire::{EngineName, Journal, Step, Target};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// One power scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Power {
    /// The file's format: [`FORMAT`].
    pub format: u32,
    /// What it is to show, in one sentence.
    pub claim: String,
    /// The verdict that shows it.
    pub expect: Expect,
    /// Whether this is a control.
    #[serde(default)]
    pub canary: bool,
    /// What the recorded processes do.
    pub script: Script,
    /// How the database is set; each setting is recorded.
    pub setting: Vec<Setting>,
    /// What the power cuts may leave.
    #[serde(default)]
    pub cut: Cut,
}

/// What the recorded processes do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Script {
    /// Through which store.
    pub target: Target,
    /// On which SQLite. Recovery is always that of the bundled one.
    #[serde(default)]
    pub engine: EngineName,
    /// The steps of one round.
    pub steps: Vec<Step>,
    /// How many rounds each process performs.
    #[serde(default = "one")]
    pub repeat: u32,
    /// Processes at once.
    #[serde(default = "one")]
    pub writers: u32,
    /// Pages of a further table, which nobody touches, in the database before the recording begins.
    #[serde(default)]
    pub ballast_pages: u32,
    /// Rounds performed before the recording begins.
    #[serde(default = "one")]
    pub prepare: u32,
    /// What the recorded processes find.
    #[serde(default)]
    pub start: Start,
    /// Whether they end without closing their connection.
    #[serde(default)]
    pub abandon: bool,
    /// Events of one append.
    #[serde(default = "two")]
    pub events: u32,
    /// Bytes of one event's payload.
    #[serde(default = "forty")]
    pub payload_bytes: u32,
    /// What operations of some kinds are to survive, where that is not what the setting gives.
    #[serde(default)]
    pub durability: BTreeMap<Step, Durability>,
}

/// What the power cuts may leave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Cut {
    /// The crash models; each is enumerated.
    pub profiles: Vec<Profile>,
    /// Different images of each recording and profile beyond the prefixes of everything, if there
    /// are so many.
    pub states: u32,
}

impl Default for Cut {
    fn default() -> Self {
        Self { profiles: vec![Profile::Strict], states: 10_000 }
    }
}

/// What a power cut may leave of writes that were not synced: a named model of disk and file
/// system.
///
/// In all of them a file's bytes are safe once a sync of that file has returned (but for
/// [`LyingDisk`](Self::LyingDisk)), and the wal-index is never durable.
///
/// | profile      | what may reach the disk                     | torn at   | names         |
/// |--------------|---------------------------------------------|-----------|---------------|
/// | `strict`     | any subset of the writes                    | 512 bytes | any subset    |
/// | `ordered`    | any version of each 4 KiB of the page cache | 512 bytes | a prefix      |
/// | `torn-page`  | any subset of the writes                    | 4 KiB     | any subset    |
/// | `lying-disk` | any subset of the last 256 changes          | 512 bytes | any subset    |
/// | `no-psow`    | as `strict`, and garbage                    | 512 bytes | any subset    |
///
/// A file that was growing may have any size on the way. In `ordered` it reaches no farther than a
/// block that is there, new blocks are whole, and what is missing before them reads as zeros; in
/// all others new bytes may be anything. Names are durable once their directory is synced, in
/// `ordered` once any file is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// All that POSIX allows: nothing holds that was not synced, names included.
    #[default]
    Strict,
    /// What ext4 in its default mode (`data=ordered`) does: data before the size that shows it, so
    /// no stale bytes; names in order, and made durable by the sync of any file.
    Ordered,
    /// A disk whose 4 KiB sectors are written whole or not at all.
    TornPage,
    /// A disk that says that it has synced, and has not: its cache holds the last 256 changes.
    LyingDisk,
    /// A disk without power-safe overwrite: a sector that was being written when the power went
    /// may be garbage, its old bytes outside the written range included.
    NoPsow,
}

impl Profile {
    /// Every profile.
    pub const ALL: [Self; 5] =
        [Self::Strict, Self::Ordered, Self::TornPage, Self::LyingDisk, Self::NoPsow];

    /// As it stands in files and arguments.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Ordered => "ordered",
            Self::TornPage => "torn-page",
            Self::LyingDisk => "lying-disk",
            Self::NoPsow => "no-psow",
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that no profile has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no profile is called `{0}`; there are strict, ordered, torn-page, lying-disk and no-psow")]
pub struct UnknownProfile(pub String);

impl FromStr for Profile {
    type Err = UnknownProfile;

    fn from_str(name: &str) -> Result<Self, UnknownProfile> {
        Self::ALL
            .into_iter()
            .find(|profile| profile.as_str() == name)
            .ok_or_else(|| UnknownProfile(name.to_owned()))
    }
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

/// Reads and checks the file at `path`.
pub fn load(path: &Path) -> Result<Power, ScenarioError> {
    load::read(path, &check)
}

/// Checks the text of a power scenario; `name` is what complaints call it.
pub fn parse(name: &str, text: &str) -> Result<Power, ScenarioError> {
    load::parse_as(name, text, &check)
}

fn check(power: &Power) -> Result<(), Complaint> {
    let complain = |path, text: String| Err(Complaint { path, text });
    if power.format != FORMAT {
        let found = power.format;
        return complain(&["format"], format!("format {found} is not known: this reads {FORMAT}"));
    }
    if power.claim.trim().is_empty() {
        return complain(&["claim"], "the claim is empty: say what the run is to show".to_owned());
    }
    let script = &power.script;
    if script.steps.is_empty() {
        return complain(&["script", "steps"], "no steps: nothing would be recorded".to_owned());
    }
    if !(1..=32).contains(&script.writers) {
        return complain(&["script", "writers"], "1 to 32 writers can be recorded".to_owned());
    }
    let operations = u64::from(script.repeat) * script.steps.len() as u64;
    if !(1..=50_000).contains(&operations) {
        return complain(
            &["script", "repeat"],
            format!("{operations} operations a process: 1 to 50000 can be recorded"),
        );
    }
    if power.setting.is_empty() {
        return complain(&["setting"], "no setting: write at least one [[setting]]".to_owned());
    }
    let of_hardboard = script.target == Target::Hardboard;
    for setting in &power.setting {
        if of_hardboard && (setting.journal_mode != Journal::Wal || setting.page_bytes != 0) {
            return complain(
                &["setting"],
                "hardboard has WAL and SQLite's own page size: take target = \"baseline\"".into(),
            );
        }
        if setting.checkpoint_owner {
            return complain(
                &["setting"],
                "a script has no checkpoint owner: add the step \"checkpoint\"".to_owned(),
            );
        }
    }
    if script.ballast_pages > 0 && of_hardboard {
        return complain(
            &["script", "ballast-pages"],
            "hardboard knows every table of its own: take target = \"baseline\"".to_owned(),
        );
    }
    if !script.durability.is_empty() && !of_hardboard {
        return complain(
            &["script", "durability"],
            "only hardboard takes a durability for each call".to_owned(),
        );
    }
    if power.cut.profiles.is_empty() {
        return complain(&["cut", "profiles"], "no profile: name at least one".to_owned());
    }
    if power.cut.states == 0 {
        return complain(&["cut", "states"], "0 states: nothing would be judged".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "format = 1\nclaim = 'c'\nexpect = 'pass'\n[script]\ntarget = 'hardboard'\n\
                        steps = ['create']\n[[setting]]\nsynchronous = 'full'\n\
                        wal-autocheckpoint = 100\n[cut]\nprofiles = ['strict']\n";

    #[track_caller]
    fn refused(from: &str, to: &str, part: &str) {
        assert!(GOOD.contains(from), "the change must change something: {from}");
        let error = parse("p.toml", &GOOD.replace(from, to)).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }

    #[test]
    fn a_good_file_is_read() {
        let power = parse("p.toml", GOOD).unwrap();
        assert_eq!((power.script.writers, power.cut.states), (1, 10_000));
    }

    #[test]
    fn what_cannot_be_is_refused_at_its_place() {
        refused("'strict'", "'strickt'", "p.toml:11:");
        refused("['create']", "['creat']", "p.toml:6:");
        refused("['create']", "[]", "p.toml:6:1: no steps");
        refused("['strict']", "[]", "p.toml:11:1: no profile");
        refused("= 100\n", "= 100\njournal-mode = 'delete'\n", "hardboard has WAL");
        refused("'hardboard'", "'baseline'\ndurability.create = 'power'", "only hardboard");
    }

    #[test]
    fn every_profile_is_called_what_its_file_calls_it() {
        for profile in Profile::ALL {
            assert_eq!(profile.as_str().parse(), Ok(profile));
            assert_eq!(serde_json::to_value(profile).unwrap(), profile.as_str());
        }
        assert!("strickt".parse::<Profile>().is_err());
    }
}
