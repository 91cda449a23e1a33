//! Damage that is met on a disk without room: on a tmpfs of its own, which only root may mount.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use super::{UNFINISHED, notice};
use crate::board::fixture::quick;
use crate::board::{Board, Session};
use crate::error::StoreError;
use crate::sqlite::recover::Request;
use crate::sqlite::sidecar::beside;
use crate::{NewEvent, NewTask};

/// A file system of four megabytes, gone with the value.
struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    fn mount() -> nix::Result<Self> {
        let dir = tempfile::tempdir().unwrap();
        let room = Some("size=4m");
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), room)?;
        Ok(Self { dir })
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("board.db")
    }

    /// Leaves so many bytes, and gives the file that has all others.
    fn fill(&self, leave: usize) -> PathBuf {
        let ballast = self.dir.path().join("ballast");
        let mut bytes = vec![0_u8; 8 << 20];
        while fs::write(&ballast, &bytes).is_err() {
            let had = usize::try_from(fs::metadata(&ballast).unwrap().len()).unwrap();
            bytes.truncate(had.saturating_sub(leave));
        }
        ballast
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        umount2(self.dir.path(), MntFlags::MNT_DETACH).ok();
    }
}

/// A closed board with a page in its middle zeroed.
fn damaged(path: &Path) -> Vec<u8> {
    let mut board = Board::create(path, &quick()).unwrap();
    let mut session = Session::new(1);
    for _ in 0..60 {
        let (task, _) = board
            .create_task(session.next_key(), &NewTask { title: "dig", ..NewTask::default() })
            .unwrap();
        let payload = "x".repeat(2000);
        let event = NewEvent { kind: "progress", payload: &payload };
        let _commit = board.append_events(session.next_key(), task, None, &[event]).unwrap();
    }
    board.close().unwrap();
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0);
    fs::write(path, &bytes).unwrap();
    bytes
}

#[test]
#[expect(clippy::print_stderr, reason = "a skip is said aloud")]
fn full_disk_refuses_the_damaged_board_changes_nothing_and_it_is_saved_once_there_is_room() {
    let disk = match SmallDisk::mount() {
        Ok(disk) => disk,
        Err(error) => return eprintln!("SKIPPED: a tmpfs cannot be mounted here: {error}"),
    };
    let path = disk.path();
    let bytes = damaged(&path);
    // Room for nothing, for the notice alone, and for a part of the copy.
    for leave in [0, 8192, bytes.len() / 2] {
        let ballast = disk.fill(leave);
        let verified = Board::open(&path, &quick()).and_then(|board| {
            let report = board.database().verify(crate::sqlite::verify::Depth::Full)?;
            Err::<(), _>(board.database().damaged(report.first().unwrap_or("nothing")))
        });
        let error = verified.unwrap_err();
        assert!(!matches!(error, StoreError::RolledBack { .. }), "{leave}: {error:?}");
        assert_eq!(fs::read(&path).unwrap(), bytes, "{leave}: the damaged file is as it was");
        assert!(!beside(&path, UNFINISHED).exists(), "{leave}");
        assert!(notice(&path).is_none_or(|notice| notice.copy.is_none()), "{leave}");
        let request = Request { apply: true, backup: None };
        let refused = crate::board::recover::recover(&path, &quick(), &request).unwrap_err();
        assert!(matches!(refused, StoreError::Beside { .. }), "{leave}: {refused:?}");
        assert_eq!(fs::read(&path).unwrap(), bytes, "{leave}: and after a recovery in vain");
        fs::remove_file(ballast).unwrap();
    }
    let request = Request { apply: true, backup: None };
    let recovery = crate::board::recover::recover(&path, &quick(), &request).unwrap();
    assert!(recovery.applied && recovery.after.is_sound(), "{recovery:?}");
    assert_eq!(fs::read(recovery.kept.unwrap().join("board.db")).unwrap(), bytes);
    Board::open(&path, &quick()).unwrap();
}
