//! The pages of a database file under its log, read without SQLite.
//!
//! Whatever the bytes are, nothing here panics: a page that is not there is `None`, a log that is
//! not sound ends at the last commit before it stops being so, as SQLite's own recovery has it
//! (SQLite documentation, *Database File Format*, section 4).
//!
//! In: a copy of a database, and of its log if it has one. Out: [`Pages`]. Not here: what the pages
//! mean.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::sqlite::sidecar::beside;

const LOG_HEADER_BYTES: u64 = 32;
const FRAME_HEADER_BYTES: u64 = 24;
/// What page 1 begins with.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// The size of a page where the file does not say it.
const USUAL_PAGE_BYTES: usize = 4096;

/// The pages of a database.
#[derive(Debug)]
pub(super) struct Pages {
    file: File,
    log: Option<File>,
    /// Where in the log the newest version of a page lies.
    in_log: HashMap<u32, u64>,
    page_bytes: usize,
    reserved_bytes: usize,
    count: u32,
}

impl Pages {
    /// Opens the copy at `path`, with the log beside it if there is one.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let log = match File::open(beside(path, "-wal")) {
            Ok(log) => Some(log),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let mut header = [0; 100];
        let read = file.read_at(&mut header, 0)?;
        let of_log = log.as_ref().and_then(|log| read_log(log).ok().flatten());
        let page_bytes = of_log
            .as_ref()
            .map(|log| log.page_bytes)
            .or_else(|| page_bytes_of(&header[..read]))
            .unwrap_or(USUAL_PAGE_BYTES);
        let reserved_bytes = if header.starts_with(MAGIC) { usize::from(header[20]) } else { 0 };
        let in_file = u32::try_from(bytes.div_ceil(page_bytes as u64)).unwrap_or(u32::MAX);
        let in_log = of_log.map(|log| log.pages).unwrap_or_default();
        let count = in_log.keys().copied().max().unwrap_or(0).max(in_file);
        Ok(Self { file, log, in_log, page_bytes, reserved_bytes, count })
    }

    /// How many pages there may be; the first is 1.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// The bytes of a page that hold content.
    pub(super) fn usable_bytes(&self) -> usize {
        self.page_bytes.saturating_sub(self.reserved_bytes).max(480)
    }

    /// The newest committed version of a page; `None` if there is none, or less than all of it.
    pub(super) fn read(&self, number: u32) -> Option<Vec<u8>> {
        if number == 0 || number > self.count {
            return None;
        }
        let mut page = vec![0; self.page_bytes];
        let read = if let (Some(at), Some(log)) = (self.in_log.get(&number), &self.log) {
            log.read_exact_at(&mut page, *at)
        } else {
            let at = u64::from(number - 1) * self.page_bytes as u64;
            self.file.read_exact_at(&mut page, at)
        };
        read.ok().map(|()| page)
    }
}

fn page_bytes_of(header: &[u8]) -> Option<usize> {
    if !header.starts_with(MAGIC) {
        return None;
    }
    match u16::from_be_bytes([*header.get(16)?, *header.get(17)?]) {
        1 => Some(65536),
        size if size >= 512 && size.is_power_of_two() => Some(usize::from(size)),
        _ => None,
    }
}

struct Log {
    page_bytes: usize,
    pages: HashMap<u32, u64>,
}

/// Reads the frames of a log up to its last sound commit.
fn read_log(log: &File) -> io::Result<Option<Log>> {
    let mut header = [0; 32];
    if log.read_at(&mut header, 0)? < header.len() {
        return Ok(None);
    }
    let word = |bytes: &[u8], index: usize| big(&bytes[index * 4..index * 4 + 4]);
    let magic = word(&header, 0);
    if magic & !1 != 0x377f_0682 {
        return Ok(None);
    }
    let big_endian = magic & 1 == 1;
    let page_bytes = word(&header, 2) as usize;
    if !(512..=65536).contains(&page_bytes) || !page_bytes.is_power_of_two() {
        return Ok(None);
    }
    let mut sum = checksum((0, 0), &header[..24], big_endian);
    if sum != (word(&header, 6), word(&header, 7)) {
        return Ok(None);
    }
    let salts = header[16..24].to_vec();
    let mut frame = vec![0; page_bytes + 24];
    let (mut pages, mut open) = (HashMap::new(), HashMap::new());
    let mut at = LOG_HEADER_BYTES;
    while log.read_exact_at(&mut frame, at).is_ok() {
        let (head, page) = frame.split_at(24);
        let (number, pages_after_commit) = (word(head, 0), word(head, 1));
        sum = checksum(sum, &head[..8], big_endian);
        sum = checksum(sum, page, big_endian);
        if head[8..16] != salts[..] || sum != (word(head, 4), word(head, 5)) || number == 0 {
            break;
        }
        open.insert(number, at + FRAME_HEADER_BYTES);
        if pages_after_commit > 0 {
            pages.extend(open.drain());
            pages.retain(|number, _| *number <= pages_after_commit);
        }
        at += FRAME_HEADER_BYTES + page_bytes as u64;
    }
    Ok(Some(Log { page_bytes, pages }))
}

/// The checksum of a log, section 4.2.
fn checksum(from: (u32, u32), bytes: &[u8], big_endian: bool) -> (u32, u32) {
    let (mut s0, mut s1) = from;
    for pair in bytes.chunks_exact(8) {
        let word = |at: usize| {
            let bytes = [pair[at], pair[at + 1], pair[at + 2], pair[at + 3]];
            if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
        };
        s0 = s0.wrapping_add(word(0)).wrapping_add(s1);
        s1 = s1.wrapping_add(word(4)).wrapping_add(s0);
    }
    (s0, s1)
}

/// The number that at most four bytes make, the greatest first.
pub(super) fn big(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |number, byte| (number << 8) | u32::from(*byte))
}
