//! The WAL-reset race on a real SQLite that has it, against a board: a stranger's checkpoint is
//! held between its two looks at the log, and the board starts the log anew meanwhile.
//!
//! The board's own engine has no fault. It cannot help that another program on the same file has
//! one; it can find what is missing, which `integrity_check` cannot.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hardboard::board::recover::recover;
use hardboard::sqlite::checkpoint::Mode;
use hardboard::sqlite::recover::Request;
use hardboard::sqlite::verify::Depth;
use hardboard::{Board, NewTask, Options, Session, StoreError, Synchronous};
use killpoint::run::trace::{
    self, CallKind, CallSet, Command, Databases, Decision, Driver, Exit, Fault, FdUse, KillWhen,
    Operation, Phase, Scene, Stop, Supervisor, Whom,
};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::support::top;
use crate::trace::support::python;

/// Maps the database, so that its checkpoint gives the map back where the header has changed: by a
/// system call that lies between the two looks.
const STRANGER: &str = r"
import os, sqlite3, sys
c = sqlite3.connect(sys.argv[1], isolation_level=None)
c.execute('PRAGMA wal_autocheckpoint = 0')
c.execute('PRAGMA mmap_size = 100000000')
c.execute('SELECT count(*), max(title) FROM tasks').fetchone()
os.write(9, b'ack looked\n')
c.execute('PRAGMA wal_checkpoint(PASSIVE)').fetchone()
os.write(9, b'ack checkpointed\n')
c.close()
";

/// How far the stranger's checkpoint has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Before,
    /// It holds the lock for it.
    Locked,
    /// It has looked how long the log is, and not yet how much of that is copied.
    Within,
}

/// The board's side of it.
struct Race {
    board: Option<Board>,
    /// Another process's connection, as it were: it has seen nothing of what the first one writes.
    other: Option<Board>,
    session: Session,
    /// Whether the board commits within the stranger's checkpoint.
    within: bool,
    acks: u32,
    moment: Moment,
    /// Pages that the stranger then copies, though all of the log was copied before.
    copied: u32,
    /// Whether the stranger is killed after its checkpoint; else it is the last to close.
    killed: bool,
    /// What the write of the other gave.
    found: Option<Result<(), StoreError>>,
    /// What the board's close gave, after more commits.
    closed: Option<Result<(), StoreError>>,
}

impl Race {
    fn commit(&mut self, times: u32) -> Result<(), StoreError> {
        let Some(board) = &mut self.board else { return Ok(()) };
        for _ in 0..times {
            let task = NewTask { title: "dig", ..NewTask::default() };
            let _made = board.create_task(self.session.next_key(), &task)?;
        }
        Ok(())
    }
}

impl Driver for Race {
    fn at_stop(&mut self, stop: &Stop, _scene: &Scene<'_>) -> Decision {
        let acked = stop.phase == Phase::Ack;
        self.acks += u32::from(acked);
        match (self.acks, acked) {
            // The header changes after the stranger's look, and all of the log is copied.
            (1, true) => {
                self.commit(20).unwrap();
                let done = self.board.as_mut().unwrap().checkpoint(Mode::Passive).unwrap();
                assert!(done.unwrap().complete);
            }
            (1, false) => {
                let copies = self.moment == Moment::Within;
                self.copied += u32::from(copies && stop.phase == Phase::CheckpointPageWrite);
                match (self.moment, &stop.operation) {
                    (Moment::Before, Operation::Lock { .. }) => self.moment = Moment::Locked,
                    (Moment::Locked, Operation::Unmap { .. }) => {
                        self.moment = Moment::Within;
                        if self.within {
                            self.commit(1).unwrap();
                        }
                    }
                    _ => {}
                }
            }
            (2, true) => {
                // The first sees its own commits: its pages are in its cache.
                self.commit(2).unwrap();
                if let Some(mut other) = self.other.take() {
                    let task = NewTask { title: "dig", ..NewTask::default() };
                    let made = other.create_task(Session::new(2).next_key(), &task);
                    self.found = Some(made.map(drop));
                }
                self.closed = Some(self.board.take().unwrap().close());
                if self.killed {
                    let when = KillWhen::Before;
                    return Decision::Fault(Fault::Kill { when, whom: Whom::Process });
                }
            }
            _ => {}
        }
        Decision::Continue
    }
}

fn options() -> Options {
    Options {
        synchronous: Synchronous::Off,
        wal_autocheckpoint_pages: 0,
        busy_timeout: Duration::from_millis(200),
        ..Options::default()
    }
}

/// Plays it, and gives the board's place and its side.
fn play(engine: &str, within: bool, killed: bool) -> (TempDir, PathBuf, Race) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap().join("board.db");
    let board = Board::create(&path, &options()).unwrap();
    let mut race = Race {
        board: Some(board),
        other: Some(Board::open(&path, &options()).unwrap()),
        session: Session::new(1),
        within,
        acks: 0,
        moment: Moment::Before,
        copied: 0,
        killed,
        found: None,
        closed: None,
    };
    race.commit(20).unwrap();
    // What the stranger maps must be in the database.
    race.board.as_mut().unwrap().checkpoint(Mode::Passive).unwrap();
    race.commit(1).unwrap();
    let (_reader, acks) = std::io::pipe().unwrap();
    let command = Command::new(python())
        .args(["-S", "-c", STRANGER])
        .arg(&path)
        .env("LD_LIBRARY_PATH", top().join("target/engines").join(engine))
        .fd(9, acks.into(), FdUse::Ack);
    let calls = CallSet::FAULTS.with(CallKind::Open);
    let options = trace::Options::new(calls, Databases::At(vec![path.clone()]))
        .deadline(Duration::from_secs(30))
        .other_files();
    let mut supervisor = Supervisor::new(options).unwrap();
    supervisor.spawn(&command).unwrap();
    let exit = supervisor.run(&mut race).unwrap().exit_of(0).unwrap();
    let dead = matches!(exit, Exit::Signal { by_supervisor: true, .. });
    assert!(if killed { dead } else { exit == Exit::Code(0) }, "{exit:?}");
    assert!(race.moment == Moment::Within, "the moment within the checkpoint was not met");
    (dir, path, race)
}

/// Whether the library is there; says so if not. The worker for it is not needed here.
fn is_built(engine: &str) -> bool {
    let built = top().join("target/engines").join(engine).join("libsqlite3.so.0").exists();
    if !built {
        eprintln!("SKIPPED: {engine} is not built: run `killpoint engines --build`");
    }
    built
}

fn integrity(path: &Path) -> String {
    let copy = path.with_file_name("copy.db");
    fs::copy(path, &copy).unwrap();
    let log = hardboard::sqlite::sidecar::beside(path, "-wal");
    assert!(fs::metadata(log).map_or(0, |log| log.len()) == 0, "everybody has closed");
    let conn = Connection::open(copy).unwrap();
    conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap()
}

#[test]
fn commits_that_a_strangers_faulty_sqlite_lost_are_found_by_the_board_and_not_by_sqlite() {
    for engine in ["3.51.1", "3.50.2"] {
        if !is_built(engine) {
            continue;
        }
        let (_dir, path, race) = play(engine, true, false);
        assert!(race.copied > 0, "{engine}: the new log was not taken for the old one");
        // Its connections find the loss by the anchor, before they commit anything on top of it.
        let found = race.found.unwrap();
        assert!(matches!(found, Err(StoreError::RolledBack { .. })), "{engine}: {found:?}");
        // The board sees what was done to the log; the stranger, who closes last, does not.
        let closed = race.closed.unwrap();
        assert!(matches!(closed, Err(StoreError::BrokenLog { .. })), "{engine}: {closed:?}");
        assert_eq!(integrity(&path), "ok", "{engine}");
        let error = Board::open(&path, &options()).unwrap_err();
        let StoreError::RolledBack { missing, newest, .. } = error else {
            panic!("{engine}: {error:?}")
        };
        assert!(missing > newest, "{engine}: {missing}, {newest}");
        let request = Request { apply: true, backup: None };
        let recovery = recover(&path, &options(), &request).unwrap();
        let lost = u64::try_from(missing - newest).unwrap();
        assert_eq!(recovery.commits_lost_at_the_end, lost, "{engine}");
        Board::open(&path, &options()).unwrap();
    }
}

#[test]
fn log_that_a_stranger_broke_is_left_as_it_is_by_the_board_and_gives_every_commit_back() {
    if !is_built("3.51.1") {
        return;
    }
    let (_dir, path, race) = play("3.51.1", true, true);
    assert!(race.copied > 0, "the new log was not taken for the old one");
    let closed = race.closed.unwrap();
    assert!(matches!(closed, Err(StoreError::BrokenLog { .. })), "{closed:?}");
    let board = Board::open(&path, &options()).unwrap();
    assert_eq!(board.commit_seq().unwrap().get(), 44);
    assert!(board.database().verify(Depth::Full).unwrap().is_sound());
}

#[test]
fn without_a_commit_within_the_checkpoint_nothing_is_lost_on_the_faulty_engine_either() {
    if !is_built("3.51.1") {
        return;
    }
    let (_dir, path, race) = play("3.51.1", false, false);
    assert_eq!(race.copied, 0);
    race.found.unwrap().unwrap();
    race.closed.unwrap().unwrap();
    assert_eq!(integrity(&path), "ok");
    assert_eq!(Board::open(&path, &options()).unwrap().commit_seq().unwrap().get(), 44);
}
