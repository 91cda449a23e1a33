//! Scenarios that the command carries with it, so that its controls are there wherever it runs.

use super::power::{self, Power};
use super::{Scenario, ScenarioError, parse};

/// A file of `scenarios/`, by its name there without the ending.
#[derive(Clone, Copy, Debug)]
pub struct Builtin {
    /// `canary/ack-before-commit`.
    pub name: &'static str,
    /// The file's text.
    pub text: &'static str,
}

macro_rules! builtin {
    ($($name:literal),* $(,)?) => {
        &[$(Builtin {
            name: $name,
            text: include_str!(concat!("../../../scenarios/", $name, ".toml")),
        }),*]
    };
}

/// The controls: each must give the finding that it states.
pub const CANARIES: &[Builtin] = builtin![
    "canary/ack-before-commit",
    "canary/split-transaction",
    "canary/no-fencing",
    "canary/double-claim",
    "canary/fire-without-fencing-owners",
    "canary/fire-without-fencing-writes",
    "canary/refused-but-applied",
    "canary/alien-write",
    "canary/orphan-event",
    "canary/no-journal",
    "canary/other-synchronous",
    "canary/never-ends",
    "canary/kills-removed",
];

/// The matrix of `tune`.
pub const TUNE: Builtin = builtin!["tune/matrix"][0];

/// Scenarios of production reports.
pub const REPORTS: &[Builtin] = builtin![
    "reports/heartbeat-reclaim",
    "reports/heartbeat-reclaim-plain",
    "reports/leases-under-fire",
    "reports/burst-create",
    "reports/header-check",
    "reports/mixed-engines",
];

/// The controls of power loss: each must give the finding that it states.
pub const POWER_CANARIES: &[Builtin] = builtin![
    "power/canary-off",
    "power/canary-lying-disk",
    "power/canary-no-wal-sync",
    "power/canary-no-directory-sync",
    "power/canary-power-by-normal",
];

impl Builtin {
    /// The power scenario in it.
    pub fn load_power(&self) -> Result<Power, ScenarioError> {
        power::parse(&format!("scenarios/{}.toml", self.name), self.text)
    }

    /// The scenario in it.
    pub fn load(&self) -> Result<Scenario, ScenarioError> {
        parse(&format!("scenarios/{}.toml", self.name), self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    #[test]
    fn every_canary_of_the_folder_is_built_in_and_reads_as_one() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/canary");
        let files: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| format!("canary/{}", path.file_stem().unwrap().to_string_lossy()))
            .collect();
        let names: BTreeSet<String> =
            CANARIES.iter().map(|builtin| builtin.name.to_owned()).collect();
        assert_eq!(names, files);
        for builtin in CANARIES {
            assert!(builtin.load().unwrap().canary, "{}", builtin.name);
        }
    }

    #[test]
    fn every_other_built_in_scenario_reads_and_is_no_canary() {
        for builtin in REPORTS.iter().chain([&TUNE]) {
            assert!(!builtin.load().unwrap().canary, "{}", builtin.name);
        }
    }
}
