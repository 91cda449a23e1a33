//! Starting the command, and reading what it leaves.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// The repository's top.
pub(crate) fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The command, with the repository's top as its place.
pub(crate) fn killpoint(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_killpoint"));
    command.args(arguments).current_dir(top()).stdin(Stdio::null());
    command
}

/// What it did.
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs it to its end.
pub(crate) fn run(arguments: &[&str]) -> Done {
    killpoint(arguments).output().unwrap().into()
}

/// A scenario file in a directory of its own.
pub(crate) struct Scenario {
    pub(crate) dir: TempDir,
    pub(crate) file: PathBuf,
}

/// A small scenario that passes, with `changes` made to its text.
pub(crate) fn scenario(changes: &[(&str, &str)]) -> Scenario {
    let mut text = SMALL.to_owned();
    for (from, to) in changes {
        assert!(text.contains(from), "the change must change something: {from}");
        text = text.replace(from, to);
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("small.toml");
    std::fs::write(&file, text).unwrap();
    Scenario { dir, file }
}

impl Scenario {
    pub(crate) fn path(&self) -> &str {
        self.file.to_str().unwrap()
    }

    /// A path in the same directory.
    pub(crate) fn beside(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }
}

const SMALL: &str = r#"format = 1
claim = "A small run passes."
expect = "pass"

[writers]
dispatcher = 1
worker = 3
reviewer = 2
reader = 1

[workload]
target = "hardboard"
lease-ms = 8

[[setting]]
synchronous = "normal"
wal-autocheckpoint = 100

[[setting]]
synchronous = "full"
wal-autocheckpoint = 0
checkpoint-owner = true

[cycles]
count = 12
per-database = 4
run-ms = [4, 12]
graceful-every = 4

[kill]
any-moment = 1
transaction = 1
commit = 1
"#;

/// Lines of `text`, empty ones left out.
pub(crate) fn lines(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.trim().is_empty()).collect()
}
