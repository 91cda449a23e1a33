//! What the store does to its own files, struck at every call: a recovery, a restore, a backup.
//!
//! The victim is the command `hardboard` as it is linked into this very binary. It is killed before
//! each call that changes a file, a name or a lock anywhere in the directory, and in the midst of
//! each write. Then: what was there is there still or the new one is, whole; nothing in between can
//! be opened; and the same command run again finishes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hardboard::board::recover::recover;
use hardboard::sqlite::backup::{Rotation, backups};
use hardboard::sqlite::recover::Request;
use hardboard::sqlite::verify::Depth;
use hardboard::{Board, NewEvent, NewTask, Options, Session, StoreError, Synchronous};
use killpoint::run::trace::{
    self, CallKind, CallSet, Command, Databases, Decision, Driver, Exit, Fault, KillWhen,
    Operation, Outcome, Receipt, Scene, Stop, Supervisor, Whom,
};
use rusqlite::Connection;
use rusqlite::types::Value;
use tempfile::TempDir;

const PAGE: usize = 4096;

fn options() -> Options {
    Options {
        synchronous: Synchronous::Off,
        busy_timeout: Duration::from_millis(200),
        ..Options::default()
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    hardboard::sqlite::sidecar::beside(path, ending)
}

/// A directory in memory, if there is such a place, and a board in it.
struct Lab {
    dir: TempDir,
}

impl Lab {
    fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        Self { dir: tempfile::tempdir_in(place).unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join("board.db")
    }

    /// Every file below the directory.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        fn read(dir: &Path, below: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    read(&path, below, files);
                } else {
                    let name = path.strip_prefix(below).unwrap().to_owned();
                    files.insert(name, fs::read(&path).unwrap());
                }
            }
        }
        let mut files = BTreeMap::new();
        read(self.dir.path(), self.dir.path(), &mut files);
        files
    }

    /// The directory as it was when it had these files.
    fn put(&self, files: &BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(self.dir.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
        }
        for (name, bytes) in files {
            let path = self.dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }
}

fn work(board: &mut Board, session: &mut Session, tasks: u32) {
    for number in 0..tasks {
        let title = format!("task {number}: {}", "resize the pictures ".repeat(6));
        let task = NewTask { title: &title, ..NewTask::default() };
        let (task, _) = board.create_task(session.next_key(), &task).unwrap();
        let payload = "x".repeat(300);
        let events = [NewEvent { kind: "progress", payload: &payload }; 2];
        let _commit = board.append_events(session.next_key(), task, None, &events).unwrap();
    }
}

/// All of it, as text.
fn content(path: &Path) -> Vec<String> {
    let conn = Connection::open(path).unwrap();
    let tables: Vec<String> = conn
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let mut content = Vec::new();
    for table in tables {
        let mut rows = conn.prepare(&format!("SELECT * FROM {table} ORDER BY 1, 2")).unwrap();
        let columns = rows.column_count();
        let text = |row: &rusqlite::Row<'_>| {
            let values: Result<Vec<Value>, _> =
                (0..columns).map(|column| row.get(column)).collect();
            Ok(format!("{table}: {:?}", values?))
        };
        content.extend(rows.query_map([], text).unwrap().map(Result::unwrap));
    }
    content
}

/// Counts the calls from the first that names a file of the directory on, and strikes at one.
struct Striker {
    dir: PathBuf,
    /// Which call, from 1, and the part of a write that happens; none: only looks on.
    strike: Option<(usize, KillWhen)>,
    begun: bool,
    /// The length of each call that is a write, else 0.
    calls: Vec<u64>,
}

impl Striker {
    fn new(dir: &Path, strike: Option<(usize, KillWhen)>) -> Self {
        Self { dir: dir.to_owned(), strike, begun: false, calls: Vec::new() }
    }
}

impl Driver for Striker {
    fn at_stop(&mut self, stop: &Stop, _scene: &Scene<'_>) -> Decision {
        if let Operation::Open { path, .. } = &stop.operation {
            self.begun |= path.path.starts_with(&self.dir);
        }
        if !self.begun {
            return Decision::Continue;
        }
        if stop.operation == Operation::Sleep {
            return Decision::SkipSleep;
        }
        self.calls.push(match stop.operation {
            Operation::Write { length, .. } => length,
            _ => 0,
        });
        match self.strike {
            Some((at, when)) if at == self.calls.len() => {
                Decision::Fault(Fault::Kill { when, whom: Whom::Process })
            }
            _ => Decision::Continue,
        }
    }
}

/// Everything that changes a file, a name or a lock, and what leads to it.
const CALLS: CallSet =
    CallSet::FAULTS.with(CallKind::Open).with(CallKind::Copy).with(CallKind::Link);

/// Runs the command on the board, and gives how it ended and whether the strike landed.
fn hardboard(lab: &Lab, arguments: &[&str], striker: &mut Striker) -> (Exit, bool) {
    let path = lab.path();
    let command = Command::new(env!("CARGO_BIN_EXE_killpoint"))
        .args(["killpoint-worker", "hardboard", "--db"])
        .arg(&path)
        .args(arguments)
        .env("HARDBOARD_BUSY_TIMEOUT_MS", "200")
        .fd(1, fs::File::create("/dev/null").unwrap().into(), trace::FdUse::Plain)
        .fd(2, fs::File::create("/dev/null").unwrap().into(), trace::FdUse::Plain);
    let options = trace::Options::new(CALLS, Databases::At(vec![path]))
        .deadline(Duration::from_secs(30))
        .other_files();
    let mut supervisor = Supervisor::new(options).unwrap();
    supervisor.spawn(&command).unwrap();
    let run = supervisor.run(striker).unwrap();
    let landed = |receipt: &Receipt| matches!(receipt.outcome, Outcome::Killed { .. });
    (run.exit_of(0).unwrap(), run.receipts.iter().any(landed))
}

/// Runs the command once more, undisturbed.
#[track_caller]
fn again(lab: &Lab, arguments: &[&str], strike: &str) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_killpoint"));
    command.args(["killpoint-worker", "hardboard", "--db"]).arg(lab.path()).args(arguments);
    let done = command.output().unwrap();
    assert!(done.status.success(), "{strike}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Strikes at every call of the command, which undisturbed ends with `code`, from the same files
/// each time, and has `judge` look at what each strike left.
#[track_caller]
fn sweep(lab: &Lab, arguments: &[&str], code: i32, judge: &mut dyn FnMut(&str)) {
    let before = lab.files();
    let dir = lab.path().parent().unwrap().to_owned();
    let mut whole = Striker::new(&dir, None);
    assert_eq!(hardboard(lab, arguments, &mut whole), (Exit::Code(code), false));
    judge("not struck");
    let mut landed = 0;
    let mut strikes = Vec::new();
    for (index, length) in whole.calls.iter().enumerate() {
        strikes.push((index + 1, KillWhen::Before));
        if *length > 1 {
            strikes.push((index + 1, KillWhen::Inside { bytes: length / 2 }));
        }
    }
    for strike in &strikes {
        lab.put(&before);
        let struck = hardboard(lab, arguments, &mut Striker::new(&dir, Some(*strike)));
        landed += u32::from(struck.1);
        // The very last calls differ by a few from run to run. Where the helper was struck that a
        // new place is tried with, the command itself goes on, to an end of its own.
        assert!(struck.1 || struck.0 == Exit::Code(code), "{strike:?}: {struck:?}");
        judge(&format!("{strike:?} of {}", whole.calls.len()));
    }
    let asked = u32::try_from(strikes.len()).unwrap();
    eprintln!("{arguments:?}: {} calls, {landed} of {asked} strikes landed", whole.calls.len());
    assert!(asked > 100 && landed * 100 >= asked * 98, "{landed} of {asked} landed");
}

/// A board that a kill has left with its log, and a page of its database zeroed.
fn damaged_board(lab: &Lab) {
    let path = lab.path();
    let mut board = Board::create(&path, &options()).unwrap();
    let mut session = Session::new(1);
    work(&mut board, &mut session, 12);
    board.checkpoint(hardboard::sqlite::checkpoint::Mode::Truncate).unwrap();
    work(&mut board, &mut session, 3);
    let page: u32 = board
        .connection()
        .query_row(
            "SELECT min(pageno) FROM dbstat WHERE name = 'events' AND pagetype = 'leaf'",
            [],
            |row| row.get(0),
        )
        .unwrap();
    let mut left = lab.files();
    board.close().unwrap();
    let file = left.get_mut(Path::new("board.db")).unwrap();
    file[(page as usize - 1) * PAGE..][..PAGE].fill(0);
    left.remove(Path::new("board.db-shm"));
    lab.put(&left);
}

/// Database and log, wherever both lie together: in the place, or kept.
fn is_kept(lab: &Lab, original: &BTreeMap<PathBuf, Vec<u8>>) -> bool {
    let names = ["board.db", "board.db-wal"];
    let files = lab.files();
    let dirs = files.keys().filter_map(|name| name.parent().map(Path::to_owned));
    let mut dirs: Vec<PathBuf> = dirs.collect();
    dirs.dedup();
    dirs.iter().any(|dir| {
        names.iter().all(|name| files.get(&dir.join(name)) == original.get(Path::new(name)))
    })
}

#[test]
fn recovery_killed_at_every_call_leaves_the_original_or_the_result_and_the_next_one_finishes() {
    let lab = Lab::new();
    damaged_board(&lab);
    let (path, original) = (lab.path(), lab.files());
    let apply = Request { apply: true, backup: None };
    let recovery = recover(&path, &options(), &apply).unwrap();
    assert!(recovery.rows_lost() > 0, "there is something that can be lost: {recovery:?}");
    let wanted = content(&path);
    lab.put(&original);
    let mut number = 0;
    let mut opened = 0;
    // Its answer says that rows are lost.
    sweep(&lab, &["recover", "--apply"], 5, &mut |strike| {
        assert!(is_kept(&lab, &original), "{strike}: the original is nowhere");
        number += 1;
        // Every other time somebody opens the board before it is recovered again.
        if number % 2 == 1 {
            match Board::open(&path, &options()) {
                Ok(board) => {
                    drop(board);
                    opened += 1;
                    assert!(
                        content(&path) == wanted,
                        "{strike}: what was opened is not the result"
                    );
                }
                Err(StoreError::Quarantined { .. }) => {}
                Err(error) => panic!("{strike}: {error:?}"),
            }
            assert!(is_kept(&lab, &original), "{strike}: the original is gone after an open");
        }
        let again = recover(&path, &options(), &apply).unwrap();
        assert!(again.after.is_sound(), "{strike}: {again:?}");
        assert!(content(&path) == wanted, "{strike}: recovered again it is another");
        assert!(is_kept(&lab, &original), "{strike}: the original is gone at last");
        let board = Board::open(&path, &options()).unwrap();
        assert!(board.database().verify(Depth::Full).unwrap().is_sound(), "{strike}");
        drop(board);
        let left: Vec<_> = lab
            .files()
            .into_keys()
            .filter(|name| name.to_string_lossy().contains("unfinished"))
            .collect();
        assert!(left.is_empty(), "{strike}: left behind: {left:?}");
    });
    assert!(opened > 1, "some strikes came after the swap");
}

#[test]
fn restore_killed_at_every_call_leaves_the_old_board_or_the_backup_and_the_next_one_finishes() {
    let lab = Lab::new();
    let path = lab.path();
    let mut board = Board::create(&path, &options()).unwrap();
    let mut session = Session::new(1);
    work(&mut board, &mut session, 6);
    let backup = board.database().backup(path.parent().unwrap(), Rotation::default()).unwrap();
    work(&mut board, &mut session, 4);
    // As a kill leaves it, with its log.
    let mut left = lab.files();
    board.close().unwrap();
    left.remove(Path::new("board.db-shm"));
    lab.put(&left);
    let copy = Lab::new();
    copy.put(&left);
    let old = content(&copy.path());
    let wanted = content(&backup.path);
    fs::remove_file(beside(&backup.path, "-wal")).ok();
    fs::remove_file(beside(&backup.path, "-shm")).ok();
    assert!(old != wanted);
    let original = left;
    let mut seen = [0, 0, 0];
    sweep(&lab, &["restore"], 0, &mut |strike| {
        assert!(is_kept(&lab, &original), "{strike}: the old board is nowhere");
        match Board::open(&path, &options()) {
            Ok(board) => {
                board.close().unwrap();
                let there = content(&path);
                seen[usize::from(there == wanted)] += 1;
                assert!(
                    there == old || there == wanted,
                    "{strike}: neither the old nor the backup"
                );
            }
            Err(StoreError::Quarantined { .. }) => seen[2] += 1,
            Err(error) => panic!("{strike}: {error:?}"),
        }
        hardboard::board::recover::restore(&path, &backup.path, &options()).unwrap();
        assert!(content(&path) == wanted, "{strike}: restored again it is another");
        let board = Board::open(&path, &options()).unwrap();
        assert!(board.database().verify(Depth::Full).unwrap().is_sound(), "{strike}");
    });
    assert!(seen.iter().all(|times| *times > 1), "before, after, and in between: {seen:?}");
}

#[test]
fn backup_killed_at_every_call_leaves_the_board_and_a_whole_backup() {
    let lab = Lab::new();
    let path = lab.path();
    let dir = path.parent().unwrap().join("backups");
    fs::create_dir(&dir).unwrap();
    let mut board = Board::create(&path, &options()).unwrap();
    let mut session = Session::new(1);
    work(&mut board, &mut session, 4);
    board.database().backup(&dir, Rotation::default()).unwrap();
    work(&mut board, &mut session, 2);
    board.close().unwrap();
    let wanted = content(&path);
    let to = dir.to_str().unwrap().to_owned();
    let mut seen = [0, 0];
    sweep(&lab, &["backup", "--to", &to, "--keep", "1"], 0, &mut |strike| {
        let there = backups(&dir, Path::new("board.db")).unwrap();
        assert!(!there.is_empty(), "{strike}: no backup is left");
        for backup in &there {
            let conn = Connection::open(backup).unwrap();
            let said: String =
                conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(said, "ok", "{strike}");
        }
        seen[usize::from(content(&there[0]) == wanted)] += 1;
        assert!(content(&path) == wanted, "{strike}: the board itself has changed");
        let board = Board::open(&path, &options()).unwrap();
        let keep = Rotation { keep: Some(1), ..Rotation::default() };
        let made = board.database().backup(&dir, keep).unwrap();
        assert_eq!(
            backups(&dir, Path::new("board.db")).unwrap(),
            std::slice::from_ref(&made.path),
            "{strike}"
        );
        assert!(content(&made.path) == wanted, "{strike}");
    });
    assert!(seen.iter().all(|times| *times > 1), "before and after: {seen:?}");
}

/// The rows of those tables: nothing in them says when it was written.
fn rows_of(path: &Path, tables: &[&str]) -> Vec<String> {
    let is_asked = |row: &String| tables.iter().any(|table| row.starts_with(&format!("{table}: ")));
    content(path).into_iter().filter(is_asked).collect()
}

#[test]
fn import_killed_at_every_call_brings_all_or_nothing_and_leaves_the_old_board_alone() {
    const TABLES: [&str; 5] = ["tasks", "links", "comments", "attachments", "subscriptions"];
    let lab = Lab::new();
    let from = lab.path().with_file_name("kanban.db");
    let sql = crate::support::top().join("src/board/import/kanban.sql");
    Connection::open(&from).unwrap().execute_batch(&fs::read_to_string(sql).unwrap()).unwrap();
    let old = fs::read(&from).unwrap();
    let import = ["import", "--from", from.to_str().unwrap(), "--apply"];
    let mut wanted = Vec::new();
    let mut seen = [0, 0, 0];
    sweep(&lab, &import, 0, &mut |strike| {
        let there = lab.path().exists().then(|| Board::open(&lab.path(), &options()));
        let is_whole = match there {
            // It was killed before the tables were made.
            None | Some(Err(StoreError::NotABoard { .. })) => None,
            Some(Ok(board)) => {
                assert!(board.database().verify(Depth::Full).unwrap().is_sound(), "{strike}");
                Some(board.commit_seq().unwrap().get() > 0)
            }
            Some(Err(error)) => panic!("{strike}: {error:?}"),
        };
        if wanted.is_empty() {
            wanted = rows_of(&lab.path(), &TABLES);
            assert!(wanted.len() > 10 && is_whole == Some(true), "{wanted:?}");
        }
        seen[is_whole.map_or(2, usize::from)] += 1;
        if is_whole != Some(true) {
            again(&lab, &import, strike);
        }
        assert!(rows_of(&lab.path(), &TABLES) == wanted, "{strike}: half of it came");
        assert_eq!(fs::read(&from).unwrap(), old, "{strike}: the old board was written to");
    });
    assert!(seen.iter().all(|times| *times > 1), "before, after, and without a table: {seen:?}");
}

#[test]
fn reconciliation_killed_at_every_call_is_wholly_done_or_not_at_all_and_can_be_applied_again() {
    const TABLES: [&str; 2] = ["tasks", "runs"];
    let lab = Lab::new();
    let path = lab.path();
    let mut board = Board::create(&path, &options()).unwrap();
    let mut session = Session::new(1);
    work(&mut board, &mut session, 6);
    for task in 1..=3 {
        let task = hardboard::TaskId::new(task);
        let claim = board.claim(session.next_key(), task, "ann", Duration::from_secs(1)).unwrap();
        let _done = board.complete(session.next_key(), task, claim.token, "deep").unwrap();
    }
    let spoil = "UPDATE tasks SET status = 'ready', result = NULL WHERE id <= 3";
    board.connection().execute_batch(spoil).unwrap();
    let plan = board.plan_reconciliation().unwrap();
    assert_eq!(plan.findings.len(), 3, "{plan:?}");
    board.close().unwrap();
    let file = path.with_file_name("plan.json");
    fs::write(&file, serde_json::to_vec(&plan).unwrap()).unwrap();
    let before = rows_of(&path, &TABLES);
    let apply = ["reconcile", "--apply", file.to_str().unwrap()];
    let mut after = Vec::new();
    let mut seen = [0, 0];
    sweep(&lab, &apply, 0, &mut |strike| {
        let there = rows_of(&path, &TABLES);
        if after.is_empty() {
            after.clone_from(&there);
            assert!(after != before, "something was reconciled");
        }
        assert!(there == before || there == after, "{strike}: half of it is done");
        seen[usize::from(there == after)] += 1;
        again(&lab, &apply, strike);
        assert!(rows_of(&path, &TABLES) == after, "{strike}: applied again it is another");
        let board = Board::open(&path, &options()).unwrap();
        assert!(board.database().verify(Depth::Full).unwrap().is_sound(), "{strike}");
    });
    assert!(seen.iter().all(|times| *times > 1), "before and after: {seen:?}");
}
