//! Real recovery of crash images, and looking at what it gave.
//!
//! The SQLite that is linked here opens the image, recovers its WAL or rolls its journal back, and
//! closes it, which copies the WAL into the database. What is left is one file, and that file is
//! the whole logical content: everything that is asked of a recovered database is a function of
//! it. So each crash image is recovered, each for itself, and what came out is compared by its
//! [`Sum`]; the checks (`integrity_check`, `foreign_key_check`, the digest of all rows, a second
//! recovery) run once for each different content and are remembered by BLAKE3 of it. Two contents
//! that are told to be equal are equal to the last byte, unless BLAKE3 collides.

use super::image::{BLOCK_BYTES, Content, Layer, Sum};
use super::vfs::{self, DATABASE, Part};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use std::sync::Arc;

/// Complaints of a check that are kept.
const COMPLAINTS_MAX: usize = 5;

/// What identifies a logical content: its pages, in number and bytes, and what recovery left beside
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pages {
    sum: Sum,
    bytes: u64,
    /// Of a WAL or journal that recovery has looked at and left: one that is not valid, or not hot.
    left: [Option<(Sum, u64)>; 2],
}

/// How thoroughly a content is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// Every check, every row.
    Whole,
    /// Only how far its commits go.
    Counter,
}

impl Pages {
    /// A key for maps that hold digests of rows too.
    pub(super) fn key(&self) -> [u8; 32] {
        let mut hash = blake3::Hasher::new();
        for word in self.sum.words() {
            hash.update(&word.to_le_bytes());
        }
        hash.update(&self.bytes.to_le_bytes());
        *hash.finalize().as_bytes()
    }

    /// The depth for a content of the undisturbed run. Of a small database each is looked at whole;
    /// of a large one a share by chance, so that it costs no more.
    pub(super) fn depth_of_course(&self) -> Depth {
        let share = self.bytes.div_ceil(WHOLE_BYTES_MAX).max(1);
        if self.sum.words()[0].is_multiple_of(share) { Depth::Whole } else { Depth::Counter }
    }

    /// Whether the database is the same, whatever lies beside it.
    pub(super) fn same_database(&self, other: &Self) -> bool {
        (self.sum, self.bytes) == (other.sum, other.bytes)
    }
}

/// Contents of the undisturbed run that are no larger are each looked at whole.
const WHOLE_BYTES_MAX: u64 = 4 << 20;

/// What identifies a crash image: which files there are, and their bytes.
pub(super) type ImageDigest = [u8; 32];

/// What a look at a recovered database gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// Why it cannot be read, or what `integrity_check` and `foreign_key_check` complain of.
    pub(super) complaints: Vec<String>,
    /// BLAKE3 over the schema and all rows of all tables, in order; none if it was not asked for.
    pub(super) content: Option<[u8; 32]>,
    /// Greatest number and count of the rows of `commits`, if there is such a table.
    pub(super) commits: Option<(i64, i64)>,
}

/// The digest of the crash image on this thread's disk.
pub(super) fn image_digest() -> ImageDigest {
    vfs::with_disk(|disk| {
        let mut hash = blake3::Hasher::new();
        for part in Part::ALL {
            match disk.file(part) {
                None => {
                    hash.update(&[0]);
                }
                Some(layer) => {
                    let bytes = layer.len();
                    hash.update(&[1]);
                    hash.update(&bytes.to_le_bytes());
                    for word in layer.sum(bytes).words() {
                        hash.update(&word.to_le_bytes());
                    }
                }
            }
        }
        *hash.finalize().as_bytes()
    })
}

pub(super) fn open() -> rusqlite::Result<Connection> {
    // As an application opens it: one that is missing is made anew, and is empty.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags_and_vfs(DATABASE, flags, vfs::NAME)?;
    // Exclusive before the first look at the file: the wal-index is then on the heap.
    conn.execute_batch("PRAGMA locking_mode = EXCLUSIVE")?;
    Ok(conn)
}

/// Recovers the image on this thread's disk. An error is SQLite's own words.
pub(super) fn recover() -> Result<(), String> {
    let recovered = || -> rusqlite::Result<()> {
        let conn = open()?;
        // The cheapest look that begins a read transaction; it needs no schema.
        conn.query_row("PRAGMA user_version", [], |_| Ok(()))?;
        conn.close().map_err(|(_, error)| error)
    };
    recovered().map_err(|error| error.to_string())
}

/// The identity of the recovered content: the pages that its header counts.
pub(super) fn pages() -> Option<Pages> {
    vfs::with_disk(|disk| {
        let layer = disk.file(Part::Database)?;
        let bytes = logical_bytes(layer.block(0), layer.len());
        let sum = layer.sum(bytes);
        let left = [Part::Wal, Part::Journal].map(|part| {
            let layer = disk.file(part)?;
            let bytes = layer.len();
            Some((layer.sum(bytes), bytes))
        });
        Some(Pages { sum, bytes, left })
    })
}

/// How much of the file counts (SQLite documentation, *Database File Format*, section 1.3): the
/// size in the header, if the change counter says that it is valid.
fn logical_bytes(first: Option<&[u8; BLOCK_BYTES]>, file_bytes: u64) -> u64 {
    let Some(first) = first else { return file_bytes };
    let word =
        |at: usize| u32::from_be_bytes([first[at], first[at + 1], first[at + 2], first[at + 3]]);
    let page_bytes = match u16::from_be_bytes([first[16], first[17]]) {
        1 => 65_536,
        bytes => u64::from(bytes),
    };
    let bytes = u64::from(word(28)) * page_bytes;
    if word(24) == word(92) && bytes > 0 { bytes.min(file_bytes) } else { file_bytes }
}

/// Looks at the recovered database on this thread's disk, which is a second recovery of it.
pub(super) fn look(depth: Depth) -> Look {
    let before = pages();
    let mut look = Look::default();
    match open() {
        Err(error) => look.complaints.push(format!("open: {error}")),
        Ok(conn) => {
            if let Err(error) = examine(&conn, depth, &mut look) {
                look.complaints.push(error.to_string());
            }
            if let Err((_, error)) = conn.close() {
                look.complaints.push(format!("close: {error}"));
            }
        }
    }
    let same = match (pages(), before) {
        (Some(after), Some(before)) => after.same_database(&before),
        (after, before) => after.is_none() && before.is_none(),
    };
    if !same {
        look.complaints.push("a second recovery gave another content".to_owned());
    }
    look
}

fn examine(conn: &Connection, depth: Depth, look: &mut Look) -> rusqlite::Result<()> {
    conn.execute_batch("PRAGMA temp_store = MEMORY; PRAGMA cell_size_check = ON")?;
    if depth == Depth::Whole {
        check(conn, look)?;
        look.content = Some(content(conn)?);
    }
    // A table of this name that is not ours has other columns.
    let counter = conn.prepare("SELECT coalesce(max(seq), 0), count(*) FROM commits");
    if let Ok(mut counter) = counter {
        look.commits = match counter.query_row([], |row| Ok((row.get(0)?, row.get(1)?))) {
            Ok(commits) => Some(commits),
            // A page that cannot be read is damage, not another table.
            Err(error @ rusqlite::Error::SqliteFailure(..)) => return Err(error),
            Err(_) => None,
        };
    }
    Ok(())
}

fn check(conn: &Connection, look: &mut Look) -> rusqlite::Result<()> {
    let mut integrity = conn.prepare("PRAGMA integrity_check(5)")?;
    let lines = integrity.query_map([], |row| row.get::<_, String>(0))?;
    for line in lines {
        let line = line?;
        if line != "ok" {
            look.complaints.push(format!("integrity_check: {}", line.replace('\n', " ")));
        }
    }
    let mut foreign = conn.prepare("PRAGMA foreign_key_check")?;
    let rows = foreign.query_map([], |row| row.get::<_, String>(0))?;
    for table in rows.take(COMPLAINTS_MAX) {
        look.complaints.push(format!("foreign_key_check: a row of {}", table?));
    }
    look.complaints.truncate(COMPLAINTS_MAX);
    Ok(())
}

/// The digest of schema and rows.
fn content(conn: &Connection) -> rusqlite::Result<[u8; 32]> {
    let mut hash = blake3::Hasher::new();
    let mut tables = Vec::new();
    let mut schema = conn.prepare(
        "SELECT type, name, coalesce(sql, ''), rootpage FROM sqlite_schema ORDER BY type, name",
    )?;
    let mut rows = schema.query([])?;
    while let Some(row) = rows.next()? {
        let (kind, name, sql): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        hash_part(&mut hash, 1, kind.as_bytes());
        hash_part(&mut hash, 1, name.as_bytes());
        hash_part(&mut hash, 1, sql.as_bytes());
        // A virtual table has no pages of its own, and its module may not be here.
        if kind == "table" && row.get::<_, i64>(3)? > 0 {
            tables.push(name);
        }
    }
    for table in &tables {
        hash_part(&mut hash, 2, table.as_bytes());
        let quoted = table.replace('"', "\"\"");
        let mut query = conn.prepare(&format!("SELECT * FROM \"{quoted}\" NOT INDEXED"))?;
        let columns = query.column_count();
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            for column in 0..columns {
                match row.get_ref(column)? {
                    ValueRef::Null => hash_part(&mut hash, 3, &[]),
                    ValueRef::Integer(value) => hash_part(&mut hash, 4, &value.to_le_bytes()),
                    ValueRef::Real(value) => hash_part(&mut hash, 5, &value.to_le_bytes()),
                    ValueRef::Text(value) => hash_part(&mut hash, 6, value),
                    ValueRef::Blob(value) => hash_part(&mut hash, 7, value),
                }
            }
        }
    }
    Ok(*hash.finalize().as_bytes())
}

fn hash_part(hash: &mut blake3::Hasher, kind: u8, bytes: &[u8]) {
    hash.update(&[kind]);
    hash.update(&(bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

/// The identity of a recovered content that lies in a plain file.
pub(super) fn pages_of(file: &[u8]) -> Pages {
    let mut layer = Layer::default();
    layer.begin(Some(Arc::new(Content::new(file))));
    let bytes = logical_bytes(layer.block(0), layer.len());
    Pages { sum: layer.sum(bytes), bytes, left: [None; 2] }
}
