//! What the tests share: victims, drivers, and a place for their databases.

use std::path::{Path, PathBuf};
use std::process;
use std::sync::OnceLock;
use std::time::Duration;

use killpoint::run::trace::{
    CallSet, Command, Databases, Decision, Driver, Fault, Options, PhasePattern, Run, Scene, Stop,
    Supervisor,
};
use tempfile::TempDir;

/// A directory for one test, and the database in it.
pub(crate) struct Lab {
    directory: TempDir,
    pub(crate) db: PathBuf,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let db = directory.path().canonicalize().unwrap().join("a.db");
        Self { directory, db }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join(name)
    }

    /// A Python program that finds the path of the database in `DB`.
    pub(crate) fn python(&self, script: &str) -> Command {
        let head = format!(
            "import os, sys, time, fcntl, sqlite3\nDB = {:?}\nos.chdir({:?})\n",
            self.db.display().to_string(),
            self.db.parent().unwrap().display().to_string()
        );
        Command::new(python()).args(["-S", "-c", &format!("{head}{script}")])
    }

    /// Runs a Python program outside any supervisor and returns what it printed.
    pub(crate) fn ask(&self, script: &str) -> String {
        let head = format!("import sqlite3, os\nDB = {:?}\n", self.db.display().to_string());
        let output =
            process::Command::new(python()).args(["-c", &format!("{head}{script}")]).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// `integrity_check` and the number of rows of `t`, as a fresh process sees them.
    pub(crate) fn recovered(&self) -> (String, usize) {
        let answer = self.ask(
            "c = sqlite3.connect(DB)\n\
             print(c.execute('PRAGMA integrity_check').fetchone()[0])\n\
             print(c.execute('SELECT count(*) FROM t').fetchone()[0])",
        );
        let (check, rows) = answer.split_once('\n').unwrap();
        (check.to_owned(), rows.parse().unwrap())
    }

    pub(crate) fn options(&self, calls: CallSet) -> Options {
        Options::new(calls, Databases::At(vec![self.db.clone()])).deadline(Duration::from_secs(30))
    }

    /// Compiles a C program and returns its path.
    pub(crate) fn compile(&self, name: &str, source: &str) -> PathBuf {
        let (from, to) = (self.path(&format!("{name}.c")), self.path(name));
        std::fs::write(&from, source).unwrap();
        let output = process::Command::new("gcc")
            .args(["-O1", "-g", "-o"])
            .args([&to, &from])
            .args(["-lpthread", "-lsqlite3"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        to
    }
}

/// The interpreter itself: a version manager's shim would be one more program.
pub(crate) fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let debian = PathBuf::from("/usr/bin/python3");
        if debian.exists() {
            return debian;
        }
        let ask = ["-c", "import sys; print(sys.executable)"];
        let output = process::Command::new("python3").args(ask).output().unwrap();
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    })
}

/// Runs one command under `driver`.
#[track_caller]
pub(crate) fn run(options: Options, command: &Command, driver: &mut dyn Driver) -> Run {
    run_all(options, std::slice::from_ref(command), driver)
}

/// Runs several commands under `driver`.
#[track_caller]
pub(crate) fn run_all(options: Options, commands: &[Command], driver: &mut dyn Driver) -> Run {
    let mut supervisor = Supervisor::new(options).unwrap();
    for command in commands {
        supervisor.spawn(command).unwrap();
    }
    supervisor.run(driver).unwrap()
}

/// Keeps every stop.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) stops: Vec<Stop>,
}

impl Recorder {
    /// The names of the phases, in order.
    pub(crate) fn phases(&self) -> Vec<String> {
        self.stops.iter().map(|stop| stop.phase.to_string()).collect()
    }

    /// The phases, each once where several of it follow each other.
    pub(crate) fn runs_of_phases(&self) -> Vec<String> {
        let mut phases = self.phases();
        phases.dedup();
        phases
    }
}

impl Driver for Recorder {
    fn at_stop(&mut self, stop: &Stop, _scene: &Scene<'_>) -> Decision {
        self.stops.push(stop.clone());
        Decision::Continue
    }
}

/// Does one thing at the n-th stop of a phase (from 1).
pub(crate) struct Once {
    pub(crate) at: PhasePattern,
    pub(crate) nth: usize,
    pub(crate) decision: Decision,
    pub(crate) seen: usize,
    pub(crate) results: Vec<i64>,
}

impl Once {
    pub(crate) fn new(phase: &str, nth: usize, decision: Decision) -> Self {
        Self { at: phase.parse().unwrap(), nth, decision, seen: 0, results: Vec::new() }
    }

    pub(crate) fn fault(phase: &str, nth: usize, fault: Fault) -> Self {
        Self::new(phase, nth, Decision::Fault(fault))
    }
}

impl Driver for Once {
    fn at_stop(&mut self, stop: &Stop, _scene: &Scene<'_>) -> Decision {
        if !self.at.matches(stop.phase) {
            return Decision::Continue;
        }
        self.seen += 1;
        if self.seen == self.nth { self.decision } else { Decision::Continue }
    }

    fn at_result(&mut self, _stop: &Stop, result: i64, _scene: &Scene<'_>) {
        self.results.push(result);
    }
}
