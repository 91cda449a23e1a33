//! A failing schedule as one file, which any machine can run again and anybody can open.
//!
//! A bundle is a tar archive:
//!
//! | part            | what it holds                                                          |
//! |-----------------|------------------------------------------------------------------------|
//! | `manifest.json` | [`Manifest`]: what was found, by which build, and a digest of each part |
//! | `plan.json`     | the [`SchedulePlan`], with all decisions                               |
//! | `scenario.json` | the scenario that it is of                                             |
//! | `before.json`   | what was done before the schedule began, for the judge                 |
//! | `history.jsonl` | what the processes did, and what was left                              |
//! | `steps.bin`     | a digest of each step, four bytes each                                 |
//! | `start/…`       | the files that the schedule starts from                                |
//! | `left/…`        | database and WAL as the processes left them                            |
//!
//! Not here: running it, and judging it.

mod error;

pub use error::BundleError;

use crate::history::Line;
use crate::plan::CyclePlan;
use crate::plan::schedule::SchedulePlan;
use crate::run::machine::Machine;
use crate::scenario::schedule::Schedules;
use crate::verdict::Finding;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;

/// The version of the format.
pub const SCHEMA: u32 = 2;
/// No part of a bundle is larger.
const PART_BYTES_MAX: u64 = 256 << 20;
const MANIFEST: &str = "manifest.json";

/// What a bundle is of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Manifest {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The scenario's name.
    pub name: String,
    /// The version of killpoint.
    pub killpoint: String,
    /// The seed of the run, hexadecimal.
    pub seed: String,
    /// Where it was found.
    pub machine: Machine,
    /// What ran: our own workers' engine, or a program.
    pub cast: Build,
    /// What was found.
    pub findings: Vec<Finding>,
    /// Steps of all processes.
    pub steps: usize,
    /// A digest of the files that were left.
    pub left: String,
    /// BLAKE3 of each other part.
    pub digests: BTreeMap<String, String>,
}

/// Which build of what ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Build {
    /// `sqlite 3.51.1, source id …`, or the program's words.
    pub what: String,
    /// BLAKE3 of the files that were run.
    pub digest: String,
}

/// A failing schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct Bundle {
    /// What it is of.
    pub manifest: Manifest,
    /// The scenario.
    pub scenario: Schedules,
    /// The schedule, with all decisions.
    pub plan: SchedulePlan,
    /// What was done before.
    pub before: Option<(CyclePlan, Vec<Line>)>,
    /// What the processes did.
    pub history: Vec<Line>,
    /// A digest of each step.
    pub steps: Vec<u32>,
    /// What it starts from.
    pub start: Vec<(String, Vec<u8>)>,
    /// What was left.
    pub left: Vec<(String, Vec<u8>)>,
}

impl Bundle {
    /// Writes it to `path`, for good: synced before this returns.
    pub fn save(&self, path: &Path) -> Result<(), BundleError> {
        let failed = |source| BundleError::Write { path: path.to_owned(), source };
        let file = File::create(path).map_err(failed)?;
        self.write(&file).and_then(|()| file.sync_all()).map_err(failed)?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let dir = dir.unwrap_or(Path::new("."));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
    }

    fn write(&self, file: &File) -> std::io::Result<()> {
        let mut lines = Vec::new();
        for line in &self.history {
            serde_json::to_writer(&mut lines, line)?;
            lines.push(b'\n');
        }
        let mut parts = vec![
            ("plan.json".to_owned(), serde_json::to_vec_pretty(&self.plan)?),
            ("scenario.json".to_owned(), serde_json::to_vec_pretty(&self.scenario)?),
            ("before.json".to_owned(), serde_json::to_vec(&self.before)?),
            ("history.jsonl".to_owned(), lines),
            ("steps.bin".to_owned(), self.steps.iter().flat_map(|s| s.to_le_bytes()).collect()),
        ];
        for (folder, files) in [("start", &self.start), ("left", &self.left)] {
            parts.extend(files.iter().map(|(name, b)| (format!("{folder}/{name}"), b.clone())));
        }
        let digest = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
        let digests = parts.iter().map(|(name, bytes)| (name.clone(), digest(bytes))).collect();
        let manifest = Manifest { digests, ..self.manifest.clone() };
        parts.insert(0, (MANIFEST.to_owned(), serde_json::to_vec_pretty(&manifest)?));
        let mut archive = tar::Builder::new(file);
        for (name, bytes) in parts {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            archive.append_data(&mut header, name, bytes.as_slice())?;
        }
        archive.into_inner()?.flush()
    }

    /// Reads one, and checks every part against its digest.
    pub fn load(path: &Path) -> Result<Self, BundleError> {
        let failed = |source| BundleError::Read { path: path.to_owned(), source };
        let damaged = |what: String| BundleError::Damaged { path: path.to_owned(), what };
        let mut parts: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut archive = tar::Archive::new(File::open(path).map_err(failed)?);
        for entry in archive.entries().map_err(failed)? {
            let mut entry = entry.map_err(|error| damaged(error.to_string()))?;
            let name = entry.path().map_err(failed)?.to_string_lossy().into_owned();
            if entry.size() > PART_BYTES_MAX {
                return Err(damaged(format!("{name} is too large")));
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(|error| damaged(error.to_string()))?;
            parts.insert(name, bytes);
        }
        let manifest: Manifest = part(&parts, MANIFEST).map_err(&damaged)?;
        if manifest.schema != SCHEMA {
            let text = format!("format {}: this reads {SCHEMA}", manifest.schema);
            return Err(damaged(text));
        }
        for (name, digest) in &manifest.digests {
            let found = parts.get(name).map(|bytes| blake3::hash(bytes).to_hex().to_string());
            if found.as_ref() != Some(digest) {
                return Err(damaged(format!("{name} is not what was written")));
            }
        }
        let folder = |folder: &str| {
            let within = |(name, bytes): (&String, &Vec<u8>)| {
                Some((name.strip_prefix(folder)?.to_owned(), bytes.clone()))
            };
            // What the manifest does not vouch for is left aside, as is a way out of the folder.
            let known = parts.iter().filter(|(name, _)| manifest.digests.contains_key(*name));
            known.filter(|(name, _)| !name.contains("..")).filter_map(within).collect()
        };
        let history =
            String::from_utf8_lossy(parts.get("history.jsonl").map_or(&[], Vec::as_slice))
                .lines()
                .map(serde_json::from_str)
                .collect::<Result<Vec<Line>, _>>()
                .map_err(|error| damaged(format!("history.jsonl: {error}")))?;
        let steps = parts.get("steps.bin").map_or(&[][..], Vec::as_slice);
        let word = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        Ok(Self {
            scenario: part(&parts, "scenario.json").map_err(&damaged)?,
            plan: part(&parts, "plan.json").map_err(&damaged)?,
            before: part(&parts, "before.json").map_err(&damaged)?,
            history,
            steps: steps.chunks_exact(4).map(word).collect(),
            start: folder("start/"),
            left: folder("left/"),
            manifest,
        })
    }
}

fn part<T: DeserializeOwned>(parts: &BTreeMap<String, Vec<u8>>, name: &str) -> Result<T, String> {
    let bytes = parts.get(name).ok_or_else(|| format!("it has no {name}"))?;
    serde_json::from_slice(bytes).map_err(|error| format!("{name}: {error}"))
}
