//! The command as a person or a program sees it: arguments in, texts and exit code out.

mod board;
mod daemon;
mod store;

use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;

use serde_json::{Value, json};
use std::time::Duration;

use super::*;
use crate::board::OpKey;
use crate::board::fixture::{Place, dump, quick};

/// What one run of the command gave.
struct Told {
    exit: Exit,
    out: String,
    err: String,
}

fn told(
    arguments: impl IntoIterator<Item = OsString>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Told {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let arguments = [OsString::from("hardboard")].into_iter().chain(arguments);
    let exit = run_with(quick(), arguments, variable, &mut out, &mut err);
    Told { exit, out: String::from_utf8(out).unwrap(), err: String::from_utf8(err).unwrap() }
}

/// Runs the command on the board of the place, its arguments separated by spaces.
fn on(place: &Place, line: &str) -> Told {
    let database = [OsString::from("--db"), place.path().into_os_string()];
    told(database.into_iter().chain(line.split(' ').map(OsString::from)), |_| None)
}

#[track_caller]
fn check(place: &Place, line: &str, out: &str) {
    let told = on(place, line);
    assert_eq!((told.exit, told.err.as_str(), told.out.as_str()), (Exit::Done, "", out));
}

#[track_caller]
fn check_json(place: &Place, line: &str, want: &Value) {
    let told = on(place, &format!("{line} --json"));
    assert_eq!((told.exit, told.err.as_str()), (Exit::Done, ""));
    assert_eq!(told.out.lines().count(), 1);
    assert_eq!(&serde_json::from_str::<Value>(&told.out).unwrap(), want);
}

/// Nothing on stdout, one line on stderr with that beginning and end, and that exit code.
#[track_caller]
fn check_error(told: &Told, exit: Exit, start: &str, end: &str) {
    assert_eq!((told.exit, told.out.as_str()), (exit, ""), "{}", told.err);
    assert_eq!(told.err.lines().count(), 1, "{}", told.err);
    assert!(told.err.starts_with(&format!("hardboard: {start}")), "{}", told.err);
    assert!(told.err.ends_with(&format!("{end}\n")), "{}", told.err);
}

#[test]
fn life_of_a_task_is_told_in_short_lines() {
    let place = Place::new();
    let path = place.path().display().to_string();
    check(&place, "init", &format!("board with 0 commits: {path}\n"));
    check(&place, "create dig --priority -3", "created task 1\n");
    check(&place, "create rest", "created task 2\n");
    check(
        &place,
        "list",
        " task  status  priority  assignee  title\n 1     ready   -3                  dig\n \
         2     ready   0                   rest\n",
    );
    check(&place, "claim --worker ann --lease-ms 0", "claimed task 2 with token 1\n");
    check(&place, "tick", "took back task 2, token 1, of ann\n");
    check(&place, "tick", "no lease has expired\n");
    check(&place, "claim 2 --worker bob --lease-ms 3600000", "claimed task 2 with token 2\n");
    check(&place, "heartbeat 2 --token 2 --lease-ms 3600000", "extended the claim of task 2\n");
    check(&place, "event 2 --kind note --token 2 a b", "appended 2 events to task 2\n");
    check(&place, "event 2 --kind note c", "appended 1 event to task 2\n");
    check(&place, "complete 2 --token 2 --result well", "completed task 2\n");
    check(
        &place,
        "list --status done",
        " task  status  priority  assignee  title\n 2     done    0                   rest\n",
    );
    check(
        &place,
        "show 2",
        "2\tdone\tpriority 0\trest\n\
         result: well\n\
         run 1 by ann: taken-back, 0 heartbeats\n\
         run 2 by bob: completed, 1 heartbeats\n\
         event 2 created: rest\nevent 3 claimed: ann\nevent 4 taken-back: lease expired\n\
         event 5 claimed: bob\nevent 6 note: a\nevent 7 note: b\nevent 8 note: c\n\
         event 9 completed: well\n",
    );
    check(&place, "init", &format!("board with 9 commits: {path}\n"));
}

#[test]
fn json_has_the_columns_of_the_board_and_the_commit() {
    let place = Place::new();
    check_json(&place, "init", &json!({ "path": place.path(), "commit_seq": 0 }));
    check_json(&place, "create dig", &json!({ "task_id": 1, "commit_seq": 1 }));
    let claim = on(&place, "claim --worker ann --lease-ms 0 --json");
    let claim: Value = serde_json::from_str(&claim.out).unwrap();
    assert_eq!((&claim["task_id"], &claim["token"]), (&json!(1), &json!(1)));
    let until = &claim["lease_until_ms"];
    assert!(until.is_i64());
    check_json(
        &place,
        "tick",
        &json!({ "taken_back": [
            { "task_id": 1, "token": 1, "worker": "ann", "commit_seq": 3 }
        ] }),
    );
    check_json(&place, "tick", &json!({ "taken_back": [] }));
    let events = json!({ "task_id": 1, "events": 1, "commit_seq": 4 });
    check_json(&place, "event 1 --kind note a", &events);
    let list = on(&place, "list --json");
    let list: Value = serde_json::from_str(&list.out).unwrap();
    let task = &list[0];
    assert_eq!((&task["id"], &task["status"]), (&json!(1), &json!("ready")));
    check_json(&place, "list --status done", &json!([]));
    let show = on(&place, "show 1 --json");
    let show: Value = serde_json::from_str(&show.out).unwrap();
    assert_eq!(&show["task"], task);
    assert_eq!(show["runs"][0]["outcome"], "taken-back");
    assert_eq!(show["runs"][0]["lease_until_ms"], *until);
    let kinds: Vec<_> = show["events"].as_array().unwrap().iter().map(|e| &e["kind"]).collect();
    assert_eq!(kinds, ["created", "claimed", "taken-back", "note"]);
}

#[test]
fn settings_in_effect_are_read_back() {
    let place = Place::new();
    on(&place, "init");
    let pragmas = json!({
        "journal_mode": "wal", "synchronous": "off", "wal_autocheckpoint_pages": 1000,
        "busy_timeout_ms": 40, "foreign_keys": true, "mmap_size": 0, "trusted_schema": false,
        "cell_size_check": true, "defensive": true,
    });
    check_json(&place, "pragmas", &pragmas);
    let told = on(&place, "pragmas");
    assert!(told.out.starts_with("journal_mode = wal\nsynchronous = off\n"), "{}", told.out);
}

#[test]
fn environment_names_the_database_and_overrides_the_settings() {
    let (named, other) = (Place::new(), Place::new());
    let variable = |name: &str| match name {
        DATABASE_VARIABLE => Some(named.path().into_os_string()),
        "HARDBOARD_SYNCHRONOUS" => Some("extra".into()),
        "HARDBOARD_WAL_AUTOCHECKPOINT" => Some("7".into()),
        _ => None,
    };
    assert_eq!(told([OsString::from("init")], variable).exit, Exit::Done);
    let pragmas = told([OsString::from("pragmas")], variable).out;
    assert!(pragmas.contains("synchronous = extra\nwal_autocheckpoint = 7\n"), "{pragmas}");
    let elsewhere = ["init".into(), "--db".into(), other.path().into_os_string()];
    assert_eq!(told(elsewhere, variable).exit, Exit::Done);
    assert!(other.path().exists(), "--db goes before the environment");
}

#[test]
fn setting_that_is_not_understood_is_a_bad_option() {
    let place = Place::new();
    on(&place, "init");
    let database = ["list".into(), "--db".into(), place.path().into_os_string()];
    let told = told(database, |name| (name == "HARDBOARD_SYNCHRONOUS").then(|| "off".into()));
    let start = "HARDBOARD_SYNCHRONOUS is \"off\": understood are normal, full and extra: ";
    check_error(&told, Exit::Usage, start, "change it or unset it");
}

#[test]
fn help_and_version_go_to_stdout() {
    for line in ["--help", "-h", "help", "claim --help", "--version"] {
        let told = told(line.split(' ').map(OsString::from), |_| None);
        assert_eq!((told.exit, told.err.as_str()), (Exit::Done, ""), "{line}");
        assert!(!told.out.is_empty());
    }
    let help = told([OsString::from("--help")], |_| None).out;
    for exit in [0, 1, 2, 3, 4, 5, 70] {
        assert!(help.contains(&format!("\n  {exit:<3} ")), "{help}");
    }
}

#[test]
fn bad_arguments_are_told_in_one_line() {
    let place = Place::new();
    let lines = [
        ("", "a command is missing"),
        ("create", "the following required arguments were not provided: <TITLE>"),
        ("paint", "unrecognized subcommand 'paint'"),
        ("show one", "invalid value 'one' for '<TASK>'"),
        ("show 99999999999999999999", "invalid value '99999999999999999999' for '<TASK>'"),
        ("claim --worker ann --lease-ms -1", "invalid value '-1' for '--lease-ms <N>'"),
        ("list --status lost", "invalid value 'lost' for '--status <S>'"),
        ("event 1 --kind note", "the following required arguments were not provided: <PAYLOAD>"),
    ];
    for (line, start) in lines {
        let told = if line.is_empty() { told([], |_| None) } else { on(&place, line) };
        check_error(&told, Exit::Usage, start, "command line: see hardboard --help");
    }
    assert!(!place.path().exists());
}

#[test]
fn argument_that_is_not_utf8_is_a_bad_argument() {
    let bytes = OsString::from_vec(vec![b'x', 0xff]);
    let told = told(["create".into(), bytes], |_| None);
    check_error(&told, Exit::Usage, "invalid UTF-8", "see hardboard --help");
}

#[test]
fn command_without_a_database_is_a_bad_argument() {
    for variable in [None, Some("")] {
        let told = told([OsString::from("list")], |name| {
            variable.filter(|_| name == DATABASE_VARIABLE).map(OsString::from)
        });
        check_error(&told, Exit::Usage, "no database is named", "set one of them");
    }
}

#[test]
fn what_the_rules_forbid_is_refused() {
    let place = Place::new();
    on(&place, "init");
    let at = place.path().display().to_string();
    let told = on(&place, "claim --worker ann --lease-ms 1");
    check_error(&told, Exit::Refused, &format!("no task is ready: {at}: "), "or try again later");
    on(&place, "create dig");
    on(&place, "claim --worker ann --lease-ms 3600000");
    let before = dump(place.board().connection());
    let lines = [
        ("claim 1 --worker bob --lease-ms 1", "task 1 cannot be claimed: it is running"),
        ("claim 7 --worker bob --lease-ms 1", "there is no task 7"),
        ("claim -7 --worker bob --lease-ms 1", "there is no task -7"),
        ("show 7", "there is no task 7"),
        ("event 7 --kind note a", "there is no task 7"),
        ("heartbeat 1 --token 2 --lease-ms 1", "claim 2 of task 1 is not live"),
        ("complete 1 --token -2", "claim -2 of task 1 is not live"),
        ("event 1 --kind note --token 2 a", "claim 2 of task 1 is not live"),
    ];
    for (line, start) in lines {
        let told = on(&place, line);
        assert_eq!((told.exit, told.out.as_str()), (Exit::Refused, ""), "{}", told.err);
        assert!(told.err.starts_with(&format!("hardboard: {start}")), "{}", told.err);
        assert!(told.err.contains(&format!(": {at}: ")), "{}", told.err);
    }
    assert_eq!(dump(place.board().connection()), before);
}

#[test]
fn lock_that_another_holds_is_busy() {
    let place = Place::new();
    on(&place, "init");
    let other = place.board();
    other.connection().execute_batch("BEGIN IMMEDIATE").unwrap();
    let told = on(&place, "create dig");
    check_error(&told, Exit::Busy, "the write lock was still held after ", "try again");
}

#[test]
fn unknown_outcome_has_an_exit_code_of_its_own() {
    let source = rusqlite::Error::InvalidQuery;
    let error = StoreError::Indeterminate { key: OpKey { session: 1, op: 2 }, source };
    let complaint = complaint(&error, Path::new("a.db"));
    assert_eq!(complaint.exit, Exit::Unknown);
    assert_eq!(
        complaint.to_string(),
        "the outcome of write 1/2 is unknown (Query is not read-only): a.db: \
         look before writing it again"
    );
}

#[test]
fn file_that_is_not_a_board_is_told_and_left_as_it_is() {
    let place = Place::new();
    fs::write(place.path(), "").unwrap();
    let told = on(&place, "list");
    check_error(
        &told,
        Exit::Damaged,
        "not a board, it is empty",
        "make it one with hardboard init",
    );
    for content in [vec![b'x'], vec![b'x'; 9999]] {
        fs::write(place.path(), &content).unwrap();
        for line in ["list", "init", "tick", "create dig"] {
            let told = on(&place, line);
            let start = "not a board, it is not a SQLite database";
            check_error(&told, Exit::Damaged, start, "name another file");
            assert_eq!(fs::read(place.path()).unwrap(), content);
        }
    }
}

#[test]
fn file_that_cannot_be_opened_is_neither_made_nor_called_damaged() {
    let place = Place::new();
    let told = on(&place, "list");
    check_error(&told, Exit::Failed, "cannot open the database (", "that can be written");
    assert!(!place.path().exists());
    fs::create_dir(place.path()).unwrap();
    let told = on(&place, "init");
    let start = "cannot open the database (not a regular file, SQLite code 14): ";
    check_error(&told, Exit::Failed, start, "that can be written");
}

#[test]
fn damaged_board_is_told_with_what_sqlite_says() {
    let place = Place::new();
    on(&place, "init");
    let whole = fs::read(place.path()).unwrap();
    fs::write(place.path(), &whole[..whole.len() / 2]).unwrap();
    let told = on(&place, "list");
    let start = "the database is damaged (database disk image is malformed, SQLite code 11)";
    check_error(&told, Exit::Damaged, start, "keep the file with its -wal and -shm");
}

#[test]
fn text_of_others_can_neither_break_a_line_nor_steer_a_terminal() {
    let mut place = Place::new();
    let mut board = place.board();
    place.create(&mut board, "two\nlines\u{1b}[2J\u{9b}ü", 0);
    let list = on(&place, "list");
    assert!(list.out.ends_with("  two\\nlines\\u{1b}[2J\\u{9b}ü\n"), "{}", list.out);
    let odd = place.path().with_file_name("no\nsuch");
    let told = told(["list".into(), "--db".into(), odd.into_os_string()], |_| None);
    assert_eq!(told.err.lines().count(), 1, "{}", told.err);
}

#[test]
fn path_that_is_not_utf8_is_a_path() {
    let place = Place::new();
    let name = OsString::from_vec(vec![b'b', 0xff]);
    let path = place.path().with_file_name(name).into_os_string();
    let told = told(["init".into(), "--db".into(), path.clone()], |_| None);
    assert_eq!((told.exit, told.err.as_str()), (Exit::Done, ""));
    assert!(Path::new(&path).is_file());
}

/// A pipe whose other end is closed.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn answer_that_nobody_takes_is_a_failure_that_says_it_was_done() {
    let place = Place::new();
    let arguments = ["hardboard", "init", "--db"].map(OsString::from).into_iter();
    let arguments = arguments.chain([place.path().into_os_string()]);
    let mut err = Vec::new();
    let exit = run_with(quick(), arguments.clone(), |_| None, &mut Closed, &mut err);
    assert_eq!(exit, Exit::Failed);
    let told = String::from_utf8(err).unwrap();
    assert!(told.starts_with("hardboard: done, but the answer was not taken"), "{told}");
    assert!(place.path().exists());
    assert_eq!(run(arguments, |_| None, &mut Closed, &mut Closed), Exit::Failed);
}

#[test]
fn tick_that_is_cut_short_tells_what_it_did_and_then_fails() {
    let report = crate::TickReport {
        taken_back: Vec::new(),
        cut_short: Some(StoreError::Busy { waited: Duration::from_millis(1) }),
    };
    let answer = Answer::ticked(report);
    assert!(matches!(answer.then, Some(StoreError::Busy { .. })));
}

#[test]
fn exit_codes_are_those_of_the_help_text() {
    let exits = [
        (Exit::Done, 0),
        (Exit::Refused, 1),
        (Exit::Usage, 2),
        (Exit::Busy, 3),
        (Exit::Unknown, 4),
        (Exit::Damaged, 5),
        (Exit::Failed, 70),
    ];
    for (exit, code) in exits {
        assert_eq!(exit.code(), code);
        assert_eq!(ExitCode::from(exit), ExitCode::from(code));
    }
}
