//! Where a run's files lie: checked before anything runs, removed when all is well.

use super::CommandError;
use crate::cli::Common;
use crate::run::machine;
use crate::scenario::Scenario;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The directories of one run.
pub(super) struct Place {
    /// Where the databases lie.
    pub(super) work: TempDir,
    /// Where results go; a temporary place if none was named.
    pub(super) out: PathBuf,
    /// Whether `out` was named.
    pub(super) named: bool,
    /// Removes a temporary `out`, unless it holds something worth keeping.
    scratch: Option<TempDir>,
}

impl Place {
    /// Makes them, or says which argument is wrong.
    pub(super) fn make(common: &Common) -> Result<Self, CommandError> {
        let dir = common.dir.clone().unwrap_or_else(std::env::temp_dir);
        let fail = |what, path: &Path| {
            let path = path.to_owned();
            move |source| CommandError::Place { what, path, source }
        };
        std::fs::create_dir_all(&dir).map_err(fail("--dir", &dir))?;
        let work = tempfile::Builder::new()
            .prefix("killpoint-")
            .tempdir_in(&dir)
            .map_err(|error| no_path(&error))
            .map_err(fail("--dir", &dir))?;
        let (out, scratch) = if let Some(out) = &common.out {
            std::fs::create_dir_all(out).map_err(fail("--out", out))?;
            // Found out now rather than after the run.
            tempfile::tempfile_in(out)
                .map_err(|error| no_path(&error))
                .map_err(fail("--out", out))?;
            (out.clone(), None)
        } else {
            let scratch = tempfile::Builder::new()
                .prefix("killpoint-out-")
                .tempdir()
                .map_err(fail("temporary directory", &std::env::temp_dir()))?;
            (scratch.path().to_owned(), Some(scratch))
        };
        Ok(Self { work, out, named: common.out.is_some(), scratch })
    }

    /// Refuses a disk that is sure to be too small for `scenarios`, before anything runs.
    pub(super) fn check_room<'a>(
        &self,
        scenarios: impl IntoIterator<Item = &'a Scenario>,
        jobs: usize,
    ) -> Result<(), CommandError> {
        let needed = scenarios.into_iter().map(bytes_needed).max().unwrap_or(0)
            * u64::try_from(jobs).unwrap_or(1);
        let Some(free) = machine::free_bytes(self.work.path()) else { return Ok(()) };
        if free >= needed {
            return Ok(());
        }
        let dir = self.work.path().parent().unwrap_or(self.work.path());
        Err(CommandError::Usage(format!(
            "--dir {}: {} MiB are free and about {} are needed: free some, choose another place \
             with --dir, or run fewer --jobs",
            dir.display(),
            free >> 20,
            (needed >> 20) + 1
        )))
    }

    /// Keeps a temporary `out`, because it holds evidence.
    pub(super) fn keep(&mut self) {
        if let Some(scratch) = self.scratch.take() {
            self.out = scratch.keep();
        }
    }
}

/// Database, WAL and two copies of both, for one lane.
fn bytes_needed(scenario: &Scenario) -> u64 {
    let wal_pages = scenario
        .setting
        .iter()
        .map(|setting| match setting.wal_autocheckpoint {
            0 => 1_000,
            pages => u64::from(pages),
        })
        .max()
        .unwrap_or(1_000);
    // A WAL runs past its mark while readers hold it; the database itself stays smaller.
    3 * (wal_pages * 4_120 * 2 + (2 << 20))
}

/// The library adds the path to its errors; ours have it already.
fn no_path(error: &std::io::Error) -> std::io::Error {
    std::io::Error::from(error.kind())
}
