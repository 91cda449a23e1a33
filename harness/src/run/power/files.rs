//! Crash images as real files: a share of them is recovered by SQLite's own VFS too, beside a
//! `-shm` that is absent, zeroed, or left by another image.
//!
//! The wal-index is never durable, so after a power cut it may be any of these. That the content is
//! the same as from memory shows two things: the wal-index plays no part, and the VFS in memory
//! tells the truth.

use super::recover::{ImageDigest, Pages, pages_of};
use super::vfs::{self, Part};
use rusqlite::{Connection, OpenFlags};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Images of one enumeration that are recovered from files at most.
const MAX: u64 = 120;

/// Of so many images one is.
const EVERY: u8 = 61;

/// Bytes of a wal-index of one segment.
const SHM_BYTES: usize = 32_768;

/// Recovers images from files.
#[derive(Debug)]
pub(super) struct FileCheck {
    dir: PathBuf,
    done: AtomicU64,
}

impl FileCheck {
    /// One whose files lie in `dir`.
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), done: AtomicU64::new(0) }
    }

    /// Whether this image is one of the share.
    pub(super) fn wants(&self, digest: &ImageDigest) -> bool {
        digest[28].is_multiple_of(EVERY) && self.done.load(Ordering::Relaxed) < MAX
    }

    /// Whether the image on this thread's disk gives `pages` from files too; `None`: it cannot be
    /// read.
    pub(super) fn agrees(&self, pages: Option<Pages>) -> bool {
        let number = self.done.fetch_add(1, Ordering::Relaxed);
        let place = self.dir.join(format!("image-{number}"));
        let agrees = recover_files(&place, number).is_ok_and(|found| match (found, pages) {
            (Some(found), Some(pages)) => found.same_database(&pages),
            (found, pages) => found.is_none() && pages.is_none(),
        });
        // What cannot be removed now is removed with the directory around it.
        drop(std::fs::remove_dir_all(&place));
        agrees
    }
}

fn recover_files(dir: &Path, number: u64) -> std::io::Result<Option<Pages>> {
    std::fs::create_dir_all(dir)?;
    let database = dir.join("image.db");
    let path = |suffix: &str| {
        let mut name = database.clone().into_os_string();
        name.push(suffix);
        PathBuf::from(name)
    };
    for part in Part::ALL {
        let bytes = vfs::with_disk(|disk| disk.file(part).map(|layer| layer.to_vec()));
        if let Some(bytes) = bytes {
            std::fs::write(path(part.suffix()), bytes)?;
        }
    }
    match number % 3 {
        0 => {}
        1 => std::fs::write(path("-shm"), vec![0; SHM_BYTES])?,
        _ => std::fs::write(path("-shm"), stale_shm(dir)?)?,
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let recovered = Connection::open_with_flags(&database, flags).and_then(|conn| {
        // The files are thrown away: no disk is waited for.
        conn.execute_batch("PRAGMA synchronous = OFF")?;
        conn.query_row("PRAGMA user_version", [], |_| Ok(()))?;
        conn.close().map_err(|(_, error)| error)
    });
    if recovered.is_err() {
        return Ok(None);
    }
    Ok(Some(pages_of(&std::fs::read(&database)?)))
}

/// The wal-index of another database with a WAL of its own, as it is while that is open.
fn stale_shm(dir: &Path) -> std::io::Result<Vec<u8>> {
    let other = dir.join("other.db");
    let conn = Connection::open(&other).and_then(|conn| {
        conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
        conn.execute_batch(
            "PRAGMA synchronous = OFF; CREATE TABLE t (x);
             INSERT INTO t SELECT hex(randomblob(2000)) FROM (VALUES (1), (2), (3), (4), (5));",
        )?;
        Ok(conn)
    });
    let conn = conn.map_err(std::io::Error::other)?;
    let shm = std::fs::read(dir.join("other.db-shm"))?;
    drop(conn);
    Ok(shm)
}
