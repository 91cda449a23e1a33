use crate::support::{run, scenario, top};
use hardboard::Durability;
use killpoint::report::Report;
use killpoint::report::power::PowerReport;
use killpoint::run::power::{Content, Model, Op, Profile, Recorded, Recording, record_command};
use std::path::Path;
use std::time::Duration;

/// Where no disk is waited for, if there is such a place.
fn memory_dir() -> String {
    let dir = if Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
    dir.to_str().unwrap().to_owned()
}

/// Enumerates one of the repository's files, with `changes`; gives exit code, report, stderr, and
/// where the results lie.
fn cut(name: &str, changes: &[(&str, &str)], more: &[&str]) -> (i32, PowerReport, String, Place) {
    let place = scenario(&[]);
    let text = std::fs::read_to_string(top().join(format!("scenarios/power/{name}.toml")));
    let mut text = text.unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "the change must change something: {from}");
        text = text.replace(from, to);
    }
    let file = place.beside(&format!("{name}.toml"));
    std::fs::write(&file, text).unwrap();
    let out = place.beside("out");
    let dir = memory_dir();
    let mut arguments = vec!["power", &file, "--out", &out, "--dir", &dir];
    arguments.extend(more);
    let done = run(&arguments);
    let report = std::fs::read_to_string(Path::new(&out).join("report.json"))
        .unwrap_or_else(|error| panic!("{error}: {}", done.stderr));
    let report = Report::from_json(&report).unwrap();
    (done.code, report.powers.into_iter().next().unwrap(), done.stderr, place)
}

use crate::support::Scenario as Place;

#[test]
fn full_loses_nothing_that_was_acknowledged() {
    let changes = [("repeat = 60", "repeat = 12")];
    let (code, report, stderr, _) = cut("full", &changes, &["--states", "1500"]);
    assert_eq!(code, 0, "{stderr}");
    let full = &report.settings[0];
    assert!(full.states >= 1_500 && full.cuts_judged > full.states, "{full:?}");
    assert_eq!((full.power_acked, full.acked, full.commits), (60, 60, 60), "{full:?}");
    assert_eq!((full.corrupt, full.not_a_prefix, full.acks_lost), (0, 0, 0));
    assert!(full.power_acks_lost_share_upper_95 < 0.003);
    assert!(full.interrupted_recoveries > 10 && full.file_recoveries > 5, "{full:?}");
    assert!(full.model_checks > 10, "{full:?}");
}

#[test]
fn normal_loses_the_more_the_longer_its_log_grows_and_is_never_damaged() {
    let changes = [("repeat = 60", "repeat = 24"), ("[\"strict\", \"ordered\"]", "[\"ordered\"]")];
    let (code, report, stderr, _) = cut("normal", &changes, &["--states", "400"]);
    assert_eq!(code, 0, "{stderr}");
    let lost: Vec<f64> = report.settings.iter().map(|setting| setting.loss_commits.max).collect();
    assert!(lost[0] > 0.0 && lost[0] < lost[1] && lost[1] < lost[2], "{lost:?}");
    assert!(report.settings.iter().all(|s| s.corrupt + s.not_a_prefix == 0));
    assert!(report.settings.iter().all(|s| s.loss_bytes.max > 0.0 && s.acks_lost > 0));
}

#[test]
fn each_acknowledgement_is_judged_by_the_level_that_its_call_asked_for() {
    let changes = [("repeat = 20", "repeat = 6"), ("[\"strict\", \"ordered\"]", "[\"strict\"]")];
    let (code, report, stderr, _) = cut("levels-per-call", &changes, &["--states", "600"]);
    assert_eq!(code, 0, "{stderr}");
    let mixed = &report.settings[0];
    assert_eq!(mixed.processes, 2);
    assert!(mixed.power_acked > 0 && mixed.power_acked < mixed.acked, "{mixed:?}");
    assert!(mixed.loss_commits.max > 0.0, "what was asked for at Process can be lost: {mixed:?}");
    assert_eq!(mixed.power_acks_lost, 0);
}

#[test]
fn every_control_of_power_loss_is_caught_with_its_stated_finding() {
    let place = scenario(&[]);
    let out = place.beside("out");
    let done =
        run(&["power", "--canaries", "--states", "1500", "--out", &out, "--dir", &memory_dir()]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let text = std::fs::read_to_string(format!("{out}/report.json")).unwrap();
    let report = Report::from_json(&text).unwrap();
    assert_eq!(report.powers.len(), killpoint::scenario::builtin::POWER_CANARIES.len());
    assert!(report.powers.iter().all(|power| power.canary && power.as_expected));
}

#[test]
fn log_whose_name_is_not_durable_is_found_under_strict_alone() {
    let changes =
        [("expect.fail = \"lost-acked-write\"", "expect = \"pass\""), ("canary = true", "")];
    let more = ["--states", "500", "--profile", "ordered"];
    let (code, _, stderr, _) = cut("canary-no-directory-sync", &changes, &more);
    assert_eq!(code, 0, "ext4 makes the name durable with the log: {stderr}");
}

/// Four at once insert and acknowledge, and leave without closing, so that the log stays.
const WRITER: &str = r#"
import os, sqlite3, sys
conn = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
conn.execute("PRAGMA synchronous = FULL")
conn.execute("PRAGMA wal_autocheckpoint = 20")
ack, copy = int(os.environ["KILLPOINT_ACK_FD"]), os.environ["KILLPOINT_COPY"]
for index in range(25):
    token = f"{copy}-{index}"
    conn.execute("BEGIN IMMEDIATE")
    conn.execute("INSERT INTO entry (token, body) VALUES (?, ?)", (token, token * 200))
    conn.execute("COMMIT")
    os.write(ack, f"ack {token}\n".encode())
os._exit(0)
"#;

fn recorded_writers(dir: &Path) -> Recording {
    let dir = dir.canonicalize().unwrap();
    let database = dir.join("ledger.db");
    let conn = rusqlite::Connection::open(&database).unwrap();
    conn.execute_batch(
        "PRAGMA journal_mode = WAL; CREATE TABLE entry (token TEXT PRIMARY KEY, body TEXT)",
    )
    .unwrap();
    conn.close().unwrap();
    let script = dir.join("writer.py");
    std::fs::write(&script, WRITER).unwrap();
    let recorded = Recorded {
        command: vec!["python3".into(), script.into(), database.clone().into()],
        copies: 4,
        dir,
        database,
        check_sql: Some("SELECT count(*) FROM entry WHERE token = ?1".to_owned()),
        promise: Durability::Power,
        deadline: Duration::from_mins(1),
    };
    record_command(&recorded).unwrap()
}

#[test]
fn recording_of_four_processes_makes_the_files_on_disk_to_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    let recording = recorded_writers(dir.path());
    assert!(recording.header.unseen.is_empty(), "{:?}", recording.header.unseen);
    let processes: std::collections::BTreeSet<u32> =
        recording.entries.iter().map(|entry| entry.process).collect();
    assert_eq!(processes.len(), 4);
    let acks = recording.entries.iter().filter(|entry| matches!(entry.op, Op::Ack(_))).count();
    assert_eq!(acks, 100);
    let mut model = Model::new(&recording, Profile::Strict);
    model.advance_to(recording.entries.len());
    for name in ["ledger.db", "ledger.db-wal"] {
        let on_disk = std::fs::read(dir.path().join(name)).unwrap();
        assert!(!on_disk.is_empty());
        assert!(model.seen(name).map(Content::to_vec) == Some(on_disk), "{name} differs");
    }
    // And so it is after a round through a file.
    let file = dir.path().join("kept.recording");
    recording.save(&file).unwrap();
    assert_eq!(Recording::load(&file).unwrap(), recording);
}

#[test]
fn kept_recording_of_any_program_is_enumerated_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kept.recording");
    recorded_writers(dir.path()).save(&file).unwrap();
    let file = file.to_str().unwrap();
    let done = run(&["power", "--recording", file, "--states", "600", "--format", "jsonl"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let report: PowerReport = serde_json::from_str(done.stdout.trim()).unwrap();
    assert_eq!((report.settings[0].acked, report.settings[0].commits), (100, 100));
    assert_eq!(report.settings[0].power_acks_lost, 0);
}

#[test]
fn damaged_recording_is_refused_with_the_place_of_the_damage() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kept.recording");
    recorded_writers(dir.path()).save(&file).unwrap();
    let good = std::fs::read(&file).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    let refused = |bytes: &[u8], part: &str| {
        std::fs::write(&file, bytes).unwrap();
        let done = run(&["power", "--recording", file.to_str().unwrap()]);
        assert_eq!(done.code, 2, "{}", done.stderr);
        assert!(done.stderr.contains(part), "{}", done.stderr);
        assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    };
    refused(&bad, "damaged at byte ");
    refused(&good[..good.len() / 2], "cut short at byte ");
    refused(b"SQLite format 3\0", "not a recording");
    refused(&[&good[..20], &[9, 0, 0, 0]].concat(), "format 9");
}

#[test]
fn program_that_acknowledges_too_early_is_caught() {
    let place = scenario(&[]);
    let out = place.beside("out");
    let lying = "python3";
    let script = top().join("scenarios/exec/lying.py");
    let done = run(&[
        "power",
        "--db",
        "ledger.db",
        "--check-sql",
        "SELECT count(*) FROM entry WHERE token = ?1",
        "--states",
        "300",
        "--out",
        &out,
        "--",
        lying,
        script.to_str().unwrap(),
    ]);
    assert_eq!(done.code, 1, "{}", done.stderr);
    assert!(done.stderr.contains("lost-acked-write"), "{}", done.stderr);
}
