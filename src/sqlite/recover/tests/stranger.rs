//! Another program on the same file: a plain SQLite connection in a process of its own, that knows
//! no board, keeps none of this crate's rules, and can be killed.
//!
//! It is this test binary itself, told by lines what to do.

use std::env;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, Command, Stdio};

use rusqlite::Connection;

use crate::sqlite::sidecar::beside;

/// Names the file, as a URI.
const FILE: &str = "HARDBOARD_TEST_STRANGER";

/// The part that runs in the other process.
#[test]
#[ignore = "is run by other tests as a process of its own"]
#[expect(clippy::print_stderr, reason = "the test runner lets standard error through")]
fn stranger_in_a_process() {
    let Some(uri) = env::var_os(FILE) else { return };
    let conn = Connection::open(uri.to_str().unwrap()).unwrap();
    for line in io::stdin().lines() {
        let line = line.unwrap();
        let done = match line.strip_prefix("stray close ") {
            // What a header check does: nothing is read, and yet all locks are gone.
            Some(path) => File::open(path).map(drop).map_err(|error| error.to_string()),
            None => run(&conn, &line).map_err(|error| error.to_string()),
        };
        eprintln!("answer: {}", done.err().unwrap_or_default());
    }
}

/// Statements may give rows, as some pragmas do.
fn run(conn: &Connection, sql: &str) -> rusqlite::Result<()> {
    for statement in sql.split("; ") {
        let mut statement = conn.prepare(statement)?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
    }
    Ok(())
}

/// The other process.
pub(super) struct Stranger {
    child: Child,
    /// `None` once nothing more will be asked.
    asks: Option<ChildStdin>,
    answers: BufReader<ChildStderr>,
}

impl Stranger {
    pub(super) fn start(path: &Path) -> Self {
        Self::start_with(path, "")
    }

    /// With parameters of a URI.
    pub(super) fn start_with(path: &Path, parameters: &str) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "--test-threads", "1"])
            .arg("sqlite::recover::tests::stranger::stranger_in_a_process")
            .env(FILE, format!("file:{}{parameters}", path.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stderr.take().unwrap());
        Self { asks: child.stdin.take(), child, answers }
    }

    /// Does it, and gives what went wrong; that it died, too.
    pub(super) fn try_do(&mut self, line: &str) -> Result<(), String> {
        writeln!(self.asks.as_mut().unwrap(), "{line}").map_err(|error| error.to_string())?;
        loop {
            let mut answer = String::new();
            if self.answers.read_line(&mut answer).unwrap() == 0 {
                return Err(format!("it ended: {}", self.child.wait().unwrap()));
            }
            if let Some(answer) = answer.trim_end().strip_prefix("answer: ") {
                return if answer.is_empty() { Ok(()) } else { Err(answer.to_owned()) };
            }
            if answer.trim_end() == "answer:" {
                return Ok(());
            }
        }
    }

    #[track_caller]
    pub(super) fn run(&mut self, line: &str) {
        if let Err(error) = self.try_do(line) {
            panic!("{line}: {error}");
        }
    }

    /// Opens and closes the files by itself, which drops its locks on them.
    pub(super) fn stray_close(&mut self, path: &Path) {
        for ending in ["", "-shm"] {
            let file = beside(path, ending);
            if file.exists() {
                self.run(&format!("stray close {}", file.display()));
            }
        }
    }

    /// SIGKILL.
    pub(super) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Lets it end in good order.
    pub(super) fn end(mut self) {
        drop(self.asks.take());
        self.child.wait().unwrap();
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        // It has ended already, or must not outlive a test that failed.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
