//! Recorded sequences of SQLite's calls, and the phases they must get.

use std::path::PathBuf;

use super::super::files::{DatabaseId, FileId};
use super::super::operation::LockKind;
use super::*;

struct Recorded {
    head: Vec<u8>,
    file_bytes: u64,
    wal_in_use: bool,
}

impl Facts for Recorded {
    fn head(&self, head: &mut [u8]) -> bool {
        match self.head.get(..head.len()) {
            Some(bytes) => {
                head.copy_from_slice(bytes);
                true
            }
            None => false,
        }
    }
    fn file_bytes(&self) -> u64 {
        self.file_bytes
    }
    fn wal_in_use(&self) -> bool {
        self.wal_in_use
    }
}

fn database() -> Database {
    Database {
        path: PathBuf::from("/a.db"),
        wal: PathBuf::from("/a.db-wal"),
        wal_page_bytes: None,
        last_frame: None,
        wal_in_use: None,
    }
}

/// One recorded call: role, operation, first bytes written, size of the file before it.
type Call<'a> = (Role, Operation, &'a [u8], u64);

fn write_at(at: u64, length: u64) -> Operation {
    Operation::Write { fd: 3, offset: Offset::At(at), length }
}

#[track_caller]
fn check(database: &mut Database, wal_in_use: bool, calls: &[Call<'_>], expected: &[&str]) {
    let phases: Vec<_> = calls
        .iter()
        .map(|(role, operation, head, file_bytes)| {
            let id = FileId { device: 1, inode: 1 };
            let file = FileRef { id, role: *role, database: Some(DatabaseId(0)) };
            let facts = Recorded { head: head.to_vec(), file_bytes: *file_bytes, wal_in_use };
            classify(operation, file, Some(database), &facts).to_string()
        })
        .collect();
    assert_eq!(phases, expected);
}

/// A WAL header of 4096-byte pages.
const HEADER: [u8; 32] = {
    let mut header = [7; 32];
    header[8] = 0;
    header[9] = 0;
    header[10] = 0x10;
    header[11] = 0;
    header
};
const PLAIN_FRAME: [u8; 24] = {
    let mut frame = [9; 24];
    frame[4] = 0;
    frame[5] = 0;
    frame[6] = 0;
    frame[7] = 0;
    frame
};
const COMMIT_FRAME: [u8; 24] = {
    let mut frame = PLAIN_FRAME;
    frame[7] = 5;
    frame
};

#[test]
fn first_commit_of_a_wal_is_header_sync_frames_sync() {
    let calls = [
        (Role::Wal, write_at(0, 32), &HEADER[..], 0),
        (Role::Wal, Operation::Sync { fd: 3 }, &[], 32),
        (Role::Wal, write_at(32, 24), &PLAIN_FRAME[..], 32),
        (Role::Wal, write_at(56, 4096), &[1; 32], 56),
        (Role::Wal, write_at(4152, 24), &COMMIT_FRAME[..], 4152),
        (Role::Wal, write_at(4176, 4096), &[1; 32], 4176),
        (Role::Wal, Operation::Sync { fd: 3 }, &[], 8272),
    ];
    let expected = [
        "wal-header",
        "wal-sync",
        "frame-header",
        "frame-page",
        "commit-frame",
        "commit-page",
        "wal-sync",
    ];
    check(&mut database(), false, &calls, &expected);
}

#[test]
fn header_over_an_earlier_wal_is_a_reset() {
    let calls = [(Role::Wal, write_at(0, 32), &HEADER[..], 8272)];
    check(&mut database(), true, &calls, &["wal-reset"]);
}

#[test]
fn frames_are_told_by_their_lengths_before_any_header_was_seen() {
    let calls = [
        (Role::Wal, write_at(8272, 24), &COMMIT_FRAME[..], 8272),
        (Role::Wal, write_at(8296, 4096), &[0; 32], 8296),
        (Role::Wal, write_at(12392, 24), &PLAIN_FRAME[..], 8272),
        (Role::Wal, write_at(12416, 4096), &[0; 32], 8296),
    ];
    let expected = ["commit-frame", "commit-page", "frame-header", "frame-page"];
    check(&mut database(), true, &calls, &expected);
}

#[test]
fn commit_page_split_by_a_sync_is_a_commit_page_in_both_parts() {
    let calls = [
        (Role::Wal, write_at(0, 32), &HEADER[..], 0),
        (Role::Wal, write_at(32, 24), &COMMIT_FRAME[..], 32),
        (Role::Wal, write_at(56, 4040), &[0; 32], 56),
        (Role::Wal, Operation::Sync { fd: 3 }, &[], 4096),
        (Role::Wal, write_at(4096, 56), &[0; 32], 4096),
        (Role::Wal, write_at(4152, 24), &COMMIT_FRAME[..], 4152),
    ];
    let expected =
        ["wal-header", "commit-frame", "commit-page", "wal-sync", "commit-page", "commit-frame"];
    check(&mut database(), true, &calls, &expected);
}

#[test]
fn database_write_is_a_checkpoint_only_with_a_wal() {
    let write = [(Role::Database, write_at(4096, 4096), &[0; 32][..], 8192)];
    check(&mut database(), true, &write, &["checkpoint-page-write"]);
    check(&mut database(), false, &write, &["db-page-write"]);
}

#[test]
fn commit_in_delete_mode_goes_through_the_journal() {
    let magic: &[u8] = &[0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7, 0, 0, 0, 1];
    let calls = [
        (Role::Journal, write_at(0, 512), &[0; 32][..], 0),
        (Role::Journal, write_at(512, 4), &[0, 0, 0, 1], 512),
        (Role::Journal, write_at(516, 4096), &[5; 32], 516),
        (Role::Journal, write_at(4612, 4), &[1, 2, 3, 4], 4612),
        (Role::Journal, Operation::Sync { fd: 4 }, &[], 4616),
        (Role::Journal, write_at(0, 12), magic, 4616),
        (Role::Journal, Operation::Sync { fd: 4 }, &[], 4616),
        (Role::Directory, Operation::Sync { fd: 5 }, &[], 4096),
        (Role::Database, write_at(0, 4096), &[0; 32], 8192),
        (Role::Database, Operation::Sync { fd: 3 }, &[], 8192),
    ];
    let expected = [
        "journal-header",
        "journal-page",
        "journal-page",
        "journal-page",
        "journal-sync",
        "journal-header",
        "journal-sync",
        "directory-sync",
        "db-page-write",
        "db-sync",
    ];
    check(&mut database(), false, &calls, &expected);
}

#[test]
fn record_that_begins_at_a_sector_is_not_taken_for_a_header() {
    // The 64th record of 504-byte pages: 512 + 64 * 512.
    let calls = [(Role::Journal, write_at(33_280, 4), &[0, 0, 0, 9][..], 33_280)];
    check(&mut database(), false, &calls, &["journal-page"]);
}

#[test]
fn commit_in_persist_and_truncate_mode_has_a_phase_of_its_own() {
    let calls = [
        (Role::Journal, write_at(0, 28), &[0; 28][..], 8192),
        (Role::Journal, Operation::Truncate { fd: 4, length: 0 }, &[], 8192),
    ];
    check(&mut database(), false, &calls, &["journal-zero", "journal-truncate"]);
}

#[test]
fn locks_are_named_by_their_first_byte() {
    let lock = |start, length, kind| Operation::Lock {
        fd: 3,
        lock: LockCall { kind, waits: false, of_open_file: false, whence: 0, start, length },
    };
    let calls = [
        (Role::Shm, lock(124, 4, LockKind::Exclusive), &[][..], 0),
        (Role::Shm, lock(128, 1, LockKind::Test), &[], 0),
        (Role::Database, lock(0x4000_0002, 510, LockKind::Shared), &[], 0),
        (Role::Database, lock(0, 0, LockKind::Unlock), &[], 0),
        (Role::Database, lock(77, 1, LockKind::Shared), &[], 0),
    ];
    let expected = [
        "wal-index-lock.read1.exclusive",
        "wal-index-lock.dms.test",
        "db-lock.shared.shared",
        "db-lock.all.unlock",
        "other",
    ];
    check(&mut database(), true, &calls, &expected);
}
