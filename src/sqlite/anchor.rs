//! The last link of a database's chain, kept beside it.
//!
//! A database that was rolled back does not know it. The anchor does: a small file that holds,
//! apart from all that SQLite writes, the number and the link of the newest commits. At the next
//! open the commit that it names must be there, with that link.
//!
//! | what is lost or put back | what the anchor says |
//! |---|---|
//! | an old copy of the database put over it | the newest commit of it is older |
//! | `-wal` removed, or lost by a checkpoint | the same |
//! | another database under this name | no such commit, or one with another link |
//! | the anchor itself | nothing, and that is said; it is made anew |
//!
//! # What it promises after a power cut
//!
//! A record names the start of the machine that it was made in. One made at
//! [`Durability::Process`] binds only in that start: after a power cut its commit may be gone by
//! right, and the record, which is not synced either, may be there. One made at
//! [`Durability::Power`] binds for ever.
//!
//! It is written after the commit, so it never names one that is not there. At `Power` it is put
//! on its way to the disk (`sync_file_range`), but not waited for: the sync of the log that the
//! next commit at `Power` makes waits for it too, on every disk that syncs as a whole. A burst does
//! so once in 10 ms, since a write on its way costs the next sync a tenth of its time. So a power
//! cut takes the record of the newest commit, in a burst those of its last 10 ms, and leaves those
//! before. A second sync for each commit would double its price to guard these records too
//! ([`crate::Options::anchor_sync`] buys it).
//!
//! # The file
//!
//! One page: a header, then two rings of eight records, one for each durability. A record goes to
//! the place that its number has in the ring, so writers that overtake each other cost no record,
//! and a torn one is told by its checksum and costs the older ones nothing.
//!
//! In: a [`Head`] and its durability. Out: an [`Anchor`]. Not here: what a mismatch means.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use crate::sqlite::chain::{Head, Link};
use crate::sqlite::durability::Durability;
use crate::sqlite::sidecar::beside;

const MAGIC: &[u8; 32] = b"hardboard anchor, format 1\n\0\0\0\0\0";
const RECORD_BYTES: usize = 128;
const RECORDS: i64 = 8;
/// The header has a sector of its own.
const RINGS_AT: usize = 512;
/// How long records at `Power` may gather before they are put on their way to the disk.
const GATHERED_FOR: Duration = Duration::from_millis(10);
const FILE_BYTES: usize = RINGS_AT + 2 * 8 * RECORD_BYTES;

/// Where the kernel says which start of the machine this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The anchor file of a database, open.
#[derive(Debug)]
pub(crate) struct AnchorFile {
    file: File,
    boot: [u8; 16],
    /// When this connection last put records on their way to the disk.
    started: Cell<Option<Instant>>,
}

/// A record that binds: the database must have that commit, with that link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Anchor {
    /// The commit.
    #[serde(flatten)]
    pub head: Head,
    /// What the commit survives.
    pub durability: Durability,
}

impl AnchorFile {
    /// Opens the anchor of `database`, made first if it is not there.
    pub(crate) fn open(database: &Path) -> io::Result<Self> {
        let path = beside(database, "-anchor");
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        Ok(Self { file, boot: boot_id(), started: Cell::new(None) })
    }

    /// The newest record that binds, if there is any. Records that are torn or of another format
    /// are as if they were not there.
    pub(crate) fn newest(&self) -> io::Result<Option<Anchor>> {
        let mut page = [0; FILE_BYTES];
        let mut read = 0;
        while read < page.len() {
            match self.file.read_at(&mut page[read..], read as u64)? {
                0 => break,
                bytes => read += bytes,
            }
        }
        if page[..32] != *MAGIC {
            return Ok(None);
        }
        let records = page[RINGS_AT..].chunks_exact(RECORD_BYTES);
        Ok(records.filter_map(|record| self.decode(record)).max_by_key(|anchor| anchor.head.seq))
    }

    /// The newest record that binds of this commit or a later one: whoever is about to make the
    /// commit of this number and finds one has before him a database that lost what was
    /// acknowledged. One small read, and no checksum while all is well.
    pub(crate) fn newest_from(&self, seq: i64) -> io::Result<Option<Anchor>> {
        let mut rings = [0; FILE_BYTES - RINGS_AT];
        match self.file.read_exact_at(&mut rings, RINGS_AT as u64) {
            Ok(()) => {}
            // A new file, or one that was cut: it says nothing.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let is_late = |record: &&[u8]| {
            let number = record[..8].try_into().map(i64::from_le_bytes);
            number.is_ok_and(|number| number >= seq)
        };
        let late = rings.chunks_exact(RECORD_BYTES).filter(is_late);
        Ok(late.filter_map(|record| self.decode(record)).max_by_key(|anchor| anchor.head.seq))
    }

    /// Writes a record down.
    pub(crate) fn write(&self, anchor: &Anchor) -> io::Result<()> {
        self.file.write_all_at(&self.encode(anchor), place(anchor))?;
        if anchor.durability == Durability::Power {
            let now = Instant::now();
            if self.started.get().is_none_or(|before| now - before >= GATHERED_FOR) {
                self.started.set(Some(now));
                start_writing(&self.file);
            }
        }
        Ok(())
    }

    /// Makes the file new, with that record alone or none: for a database that was made, restored
    /// or repaired. It is on the disk when this returns.
    pub(crate) fn reset(&self, anchor: Option<&Anchor>) -> io::Result<()> {
        let mut page = [0; FILE_BYTES];
        page[..32].copy_from_slice(MAGIC);
        if let Some(anchor) = anchor {
            let at = usize::try_from(place(anchor)).unwrap_or(RINGS_AT);
            page[at..at + RECORD_BYTES].copy_from_slice(&self.encode(anchor));
        }
        self.file.write_all_at(&page, 0)?;
        self.file.sync_all()
    }

    /// Waits until all that was written is on the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn encode(&self, anchor: &Anchor) -> [u8; RECORD_BYTES] {
        let mut record = [0; RECORD_BYTES];
        record[..8].copy_from_slice(&anchor.head.seq.to_le_bytes());
        record[8..40].copy_from_slice(anchor.head.link.as_bytes());
        record[40..56].copy_from_slice(&self.boot);
        record[56] = u8::from(anchor.durability == Durability::Power);
        let check = checksum(&record[..RECORD_BYTES - 8]);
        record[RECORD_BYTES - 8..].copy_from_slice(&check);
        record
    }

    fn decode(&self, record: &[u8]) -> Option<Anchor> {
        let (body, check) = record.split_at_checked(RECORD_BYTES - 8)?;
        if checksum(body) != check {
            return None;
        }
        let seq = i64::from_le_bytes(body[..8].try_into().ok()?);
        let link = Link::new(body[8..40].try_into().ok()?);
        let durability = if body[56] == 1 { Durability::Power } else { Durability::Process };
        let binds = durability == Durability::Power || body[40..56] == self.boot;
        (binds && seq > 0).then_some(Anchor { head: Head { seq, link }, durability })
    }
}

fn place(anchor: &Anchor) -> u64 {
    let ring = if anchor.durability == Durability::Power { RECORDS } else { 0 };
    let index = usize::try_from(ring + anchor.head.seq.rem_euclid(RECORDS)).unwrap_or(0);
    (RINGS_AT + index * RECORD_BYTES) as u64
}

/// Tells a record from a torn one and from nothing: an empty record has not this checksum.
fn checksum(body: &[u8]) -> [u8; 8] {
    xxh3_64(body).to_le_bytes()
}

/// Which start of the machine this is; all zero where the kernel does not say.
fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
    let mut id = [0; 16];
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).unwrap_or("0");
        *byte = u8::from_str_radix(pair, 16).unwrap_or(0);
    }
    id
}

/// Puts the records on their way to the disk without waiting for them.
#[expect(unsafe_code, reason = "a system call that no library wraps")]
fn start_writing(file: &File) {
    use nix::libc;
    use std::os::fd::AsRawFd;
    let bytes = i64::try_from(FILE_BYTES).unwrap_or(0);
    // SAFETY: no memory is touched. A file system that does not know the call writes the record
    // back in its own time.
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), 0, bytes, libc::SYNC_FILE_RANGE_WRITE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anchor(seq: i64, durability: Durability) -> Anchor {
        let link = Link::new([u8::try_from(seq % 251).unwrap(); 32]);
        Anchor { head: Head { seq, link }, durability }
    }

    fn file() -> (tempfile::TempDir, AnchorFile) {
        let dir = tempfile::tempdir().unwrap();
        let file = AnchorFile::open(&dir.path().join("any.db")).unwrap();
        file.reset(None).unwrap();
        (dir, file)
    }

    #[test]
    fn newest_record_of_either_ring_is_the_one_that_binds() {
        let (_dir, file) = file();
        assert_eq!(file.newest().unwrap(), None);
        for seq in 1..40 {
            let durability = if seq % 3 == 0 { Durability::Power } else { Durability::Process };
            file.write(&anchor(seq, durability)).unwrap();
            assert_eq!(file.newest().unwrap(), Some(anchor(seq, durability)));
        }
    }

    #[test]
    fn records_of_a_burst_are_put_on_their_way_once_in_a_while() {
        let (_dir, file) = file();
        file.write(&anchor(1, Durability::Process)).unwrap();
        assert_eq!(file.started.get(), None, "only those that are to survive a power cut");
        file.write(&anchor(2, Durability::Power)).unwrap();
        let first = file.started.get().unwrap();
        // As if it had just been: the machine may have been busy.
        let just_now = Instant::now() + Duration::from_hours(1);
        file.started.set(Some(just_now));
        file.write(&anchor(3, Durability::Power)).unwrap();
        assert_eq!(file.started.get(), Some(just_now));
        file.started.set(first.checked_sub(GATHERED_FOR));
        file.write(&anchor(4, Durability::Power)).unwrap();
        assert!(file.started.get().unwrap() >= first);
    }

    #[test]
    fn record_that_comes_late_hides_no_newer_one() {
        let (_dir, file) = file();
        for seq in [10, 12, 11, 9] {
            file.write(&anchor(seq, Durability::Process)).unwrap();
        }
        assert_eq!(file.newest().unwrap().unwrap().head.seq, 12);
    }

    #[test]
    fn record_without_a_sync_binds_only_until_the_machine_starts_anew() {
        let (_dir, mut file) = file();
        file.write(&anchor(5, Durability::Power)).unwrap();
        file.write(&anchor(6, Durability::Process)).unwrap();
        assert_eq!(file.newest().unwrap().unwrap().head.seq, 6);
        file.boot = [0xee; 16];
        assert_eq!(file.newest().unwrap(), Some(anchor(5, Durability::Power)));
    }

    #[test]
    fn damage_of_any_byte_costs_at_most_its_own_record() {
        let (dir, file) = file();
        for seq in 1..=16 {
            file.write(&anchor(seq, Durability::Power)).unwrap();
        }
        let path = beside(&dir.path().join("any.db"), "-anchor");
        let whole = std::fs::read(&path).unwrap();
        for byte in RINGS_AT..whole.len() {
            let mut damaged = whole.clone();
            damaged[byte] ^= 0x40;
            std::fs::write(&path, &damaged).unwrap();
            let newest = file.newest().unwrap().unwrap();
            assert!(newest.head.seq >= 15, "byte {byte}: {newest:?}");
            assert_eq!(newest, anchor(newest.head.seq, Durability::Power), "byte {byte}");
        }
        for length in [0, 10, 100, 511, 600] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(file.newest().unwrap().is_none_or(|newest| newest.head.seq <= 16));
        }
    }

    #[test]
    fn boot_id_is_the_kernels() {
        assert_ne!(boot_id(), [0; 16]);
        assert_eq!(boot_id(), boot_id());
    }
}
