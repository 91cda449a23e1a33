//! The commands that look after the file.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::{Exit, Place, Told, check, on};

/// A board with some tasks, closed, of several pages.
fn board() -> Place {
    let place = Place::new();
    assert_eq!(on(&place, "init").exit, Exit::Done);
    for _ in 0..30 {
        let title = "x".repeat(900);
        assert_eq!(on(&place, &format!("create {title}")).exit, Exit::Done);
    }
    place
}

fn json(told: &Told) -> Value {
    assert_eq!(told.out.lines().count(), 1, "{}{}", told.out, told.err);
    serde_json::from_str(&told.out).unwrap()
}

/// Writes noise over a page that holds rows.
fn spoil(place: &Place) -> Vec<u8> {
    let mut bytes = fs::read(place.path()).unwrap();
    let page = (1..bytes.len() / 4096).rev().find(|page| bytes[page * 4096] == 13).unwrap();
    bytes[page * 4096..(page + 1) * 4096].fill(0x77);
    fs::write(place.path(), &bytes).unwrap();
    bytes
}

#[test]
fn board_that_is_sound_is_said_to_be_and_every_commit_was_looked_at() {
    let place = board();
    check(&place, "verify", "the board is sound: 30 commits, 30 events\n");
    let report = json(&on(&place, "verify --quick --json"));
    assert_eq!((&report["complete"], &report["commits"]), (&true.into(), &0.into()));
}

#[test]
fn damage_is_told_recovered_and_gone() {
    let place = board();
    let damaged = spoil(&place);
    let told = on(&place, "verify");
    assert_eq!(told.exit, Exit::Damaged, "{}{}", told.out, told.err);
    let dry = on(&place, "recover --dry-run --json");
    assert_eq!(dry.exit, Exit::Damaged, "{}", dry.err);
    let dry = json(&dry);
    assert_eq!((&dry["rung"], &dry["applied"]), (&"salvage".into(), &false.into()));
    assert_eq!(fs::read(place.path()).unwrap(), damaged);
    let applied = on(&place, "recover --apply --json");
    assert_eq!(applied.exit, Exit::Damaged, "something was lost: {}", applied.err);
    let applied = json(&applied);
    assert_eq!(applied["tables"], dry["tables"], "the dry run told it all");
    let kept = PathBuf::from(applied["kept"].as_str().unwrap()).join("board.db");
    assert_eq!(fs::read(kept).unwrap(), damaged);
    assert_eq!(on(&place, "verify").exit, Exit::Done);
    assert_eq!(on(&place, "create more").exit, Exit::Done);
}

#[test]
fn backup_is_made_listed_by_time_and_put_back() {
    let place = board();
    let first = json(&on(&place, "backup --json"));
    assert_eq!(on(&place, "create later").exit, Exit::Done);
    let second = json(&on(&place, "backup --keep 1 --json"));
    assert_eq!(second["removed"][0], first["path"]);
    assert_eq!(on(&place, "create latest").exit, Exit::Done);
    let told = on(&place, "restore");
    assert_eq!((told.exit, told.err.as_str()), (Exit::Done, ""));
    assert!(told.out.starts_with("the board is that of commit 31\n"), "{}", told.out);
    let told = on(&place, "list --limit 1000");
    assert!(!told.out.contains("latest"), "{}{}", told.out, told.err);
    let told = on(&place, "restore --from no/such/file");
    assert_eq!(told.exit, Exit::Failed, "{}", told.err);
}

#[test]
fn restore_without_any_backup_says_where_it_looked() {
    let place = board();
    let told = on(&place, "restore");
    assert_eq!((told.exit, told.err.lines().count()), (Exit::Usage, 1), "{}", told.err);
    assert!(told.err.contains("--from"), "{}", told.err);
}

#[test]
fn log_is_copied_when_asked() {
    let place = board();
    let told = json(&on(&place, "checkpoint --mode truncate --json"));
    assert_eq!(told["checkpoint"]["complete"], true);
    assert_eq!(told["checkpoint"]["mode"], "truncate");
    assert_eq!(on(&place, "checkpoint --mode none").exit, Exit::Usage);
}

#[test]
fn doctor_tells_of_a_sound_board_and_of_one_that_nobody_may_open() {
    let place = board();
    let told = on(&place, "doctor --json");
    assert_eq!((told.exit, told.err.as_str()), (Exit::Done, ""));
    let told = json(&told);
    assert_eq!(told["health"]["anchored"]["seq"], 30);
    assert_eq!(told["health"]["newest_seq"], 30);
    assert_eq!(told["health"]["opened"]["guarded"], true);
    assert_eq!(told["health"]["pragmas"]["journal_mode"], "wal");
    spoil(&place);
    assert_eq!(on(&place, "verify --quarantine").exit, Exit::Damaged);
    let told = on(&place, "doctor");
    assert_eq!(told.exit, Exit::Damaged, "{}{}", told.out, told.err);
    assert!(told.out.contains("next: hardboard recover --dry-run\n"), "{}", told.out);
    let told = on(&place, "create more");
    assert_eq!(told.exit, Exit::Damaged, "{}", told.err);
    assert!(told.err.contains("quarantined"), "{}", told.err);
}
