//! Dispatchers as processes of their own.

use std::env;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use super::*;

/// The part of the next test that runs in a process of its own: the command, as it is.
#[test]
#[ignore = "is run by the next test as a process of its own"]
fn command_in_a_process() {
    let Some(line) = env::var_os("HARDBOARD_TEST_COMMAND") else { return };
    let line = line.into_string().unwrap();
    let arguments = line.split(' ').map(OsString::from);
    // The test runner lets standard error through.
    let exit = run(arguments, |_| None, &mut io::stderr(), &mut io::stderr());
    assert_eq!(exit, Exit::Done);
}

/// A dispatcher, and the lines that it tells.
struct Daemon {
    child: Child,
    told: BufReader<std::process::ChildStderr>,
}

impl Daemon {
    fn start(place: &Place, name: &str) -> Self {
        let db = place.path().display().to_string();
        let line = format!("hardboard --db {db} dispatch --daemon --holder {name} -- sleep 60");
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--ignored", "--exact", "cli::tests::daemon::command_in_a_process"])
            .arg("--nocapture")
            .env("HARDBOARD_TEST_COMMAND", line)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let told = BufReader::new(child.stderr.take().unwrap());
        Self { child, told }
    }

    /// Reads until a line that holds the text.
    #[track_caller]
    fn await_line(&mut self, text: &str) {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            assert!(self.told.read_line(&mut line).unwrap() > 0, "not told: {text}; told: {seen}");
            if line.contains(text) {
                return;
            }
            seen += &line;
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

#[test]
fn of_many_dispatchers_one_works_and_the_next_does_when_it_is_killed() {
    let place = Place::new();
    on(&place, "init");
    on(&place, "create dig");
    let mut first = Daemon::start(&place, "first");
    first.await_line("dispatching, epoch 1");
    first.await_line("task 1, run 1: process ");
    let mut second = Daemon::start(&place, "second");
    second.await_line("waiting: first (process ");
    let from = Instant::now();
    first.signal(Signal::KILL);
    first.child.wait().unwrap();
    second.await_line("dispatching, epoch 2");
    // Far sooner than its lease of five minutes would end.
    assert!(from.elapsed() < Duration::from_mins(1));
    let stats = on(&place, "stats --json");
    let stats: Value = serde_json::from_str(&stats.out).unwrap();
    assert_eq!(stats["dispatcher"]["holder"], "second");
    // Its worker is none of the second one's children, and is let alone.
    assert_eq!(stats["tasks"]["running"], 1);
    second.signal(Signal::TERM);
    assert!(second.child.wait().unwrap().success());
    let stats = on(&place, "stats --json");
    assert_eq!(serde_json::from_str::<Value>(&stats.out).unwrap()["dispatcher"], Value::Null);
    let run = place.board().runs(crate::TaskId::new(1)).unwrap().pop().unwrap();
    let worker = Pid::from_raw(run.process.unwrap().pid).unwrap();
    kill_process(worker, Signal::KILL).unwrap();
}
