//! The file of a recording.
//!
//! ```text
//! "killpoint recording\n", version u32
//! record*: length varint, payload, check of 8 bytes
//! ```
//!
//! The check is the start of BLAKE3 over the check before it and the payload, so a record that is
//! changed, missing, doubled or out of place is found at its own offset. The first record is the
//! header, then come the files of the start, the entries, and an end that counts them: what has no
//! end was cut short. Numbers are little-endian; a varint has seven bits a byte, least first.
//! A payload of a write that was made before (a checkpoint copies what a commit wrote) is one
//! number.

use super::{Ack, Bytes, Entry, FileIndex, Header, Op, Recording, StartFile};
use crate::run::trace::Phase;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8; 20] = b"killpoint recording\n";
/// Raised when the format changes; no other is read.
const VERSION: u32 = 1;
/// No record is longer: a length beyond it is damage, and no reason to ask for the memory.
const RECORD_BYTES_MAX: u64 = 1 << 30;
/// Writes shorter than this are not looked for among those before.
const SHARED_BYTES_MIN: usize = 64;

/// A file that is not a whole recording.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it says.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("{}: not a recording of killpoint", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// It is of another version.
    #[error(
        "{}: a recording of format {found}, and this killpoint reads {VERSION}: record it again",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// What it says of itself.
        found: u32,
    },
    /// It ends before its end.
    #[error(
        "{}: cut short at byte {offset}, after {records} whole records: record it again",
        path.display()
    )]
    CutShort {
        /// The file.
        path: PathBuf,
        /// Where the first record begins that is not whole.
        offset: u64,
        /// Those before it.
        records: u64,
    },
    /// A record is not what was written.
    #[error("{}: damaged at byte {offset}, in record {record}: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the record begins.
        offset: u64,
        /// Its number, from 1.
        record: u64,
        /// What is wrong with it.
        what: &'static str,
    },
}

const KIND_HEADER: u8 = 1;
const KIND_START: u8 = 2;
const KIND_ENTRY: u8 = 3;
const KIND_END: u8 = 4;

const OP_WRITE: u8 = 1;
const OP_WRITE_AGAIN: u8 = 2;
const OP_TRUNCATE: u8 = 3;
const OP_ALLOCATE: u8 = 4;
const OP_SYNC: u8 = 5;
const OP_SYNC_DIRECTORY: u8 = 6;
const OP_CREATE: u8 = 7;
const OP_UNLINK: u8 = 8;
const OP_RENAME: u8 = 9;
const OP_ACK: u8 = 10;

impl Recording {
    /// Writes the recording to `path`, in place of what was there.
    pub fn save(&self, path: &Path) -> Result<(), RecordingError> {
        let fail = |source| RecordingError::Io { path: path.to_owned(), source };
        let file = File::create(path).map_err(fail)?;
        self.write_to(BufWriter::new(file)).map_err(fail)
    }

    fn write_to(&self, file: impl Write) -> io::Result<()> {
        let mut writer = Writer { file, check: [0; 8] };
        writer.file.write_all(MAGIC)?;
        writer.file.write_all(&VERSION.to_le_bytes())?;
        let mut payload = vec![KIND_HEADER];
        serde_json::to_writer(&mut payload, &self.header)?;
        writer.record(&payload)?;
        for start in &self.start {
            payload.clear();
            payload.push(KIND_START);
            put_text(&mut payload, &start.name);
            payload.extend_from_slice(&start.bytes);
            writer.record(&payload)?;
        }
        let mut before: HashMap<Bytes, u64> = HashMap::new();
        let mut last_us = 0;
        for entry in &self.entries {
            payload.clear();
            payload.push(KIND_ENTRY);
            put_number(&mut payload, entry.at_us.saturating_sub(last_us));
            last_us = entry.at_us;
            put_number(&mut payload, entry.process.into());
            put_text(&mut payload, &entry.phase.to_string());
            put_op(&mut payload, &entry.op, &mut before);
            writer.record(&payload)?;
        }
        payload.clear();
        payload.push(KIND_END);
        put_number(&mut payload, self.entries.len() as u64);
        writer.record(&payload)?;
        writer.file.flush()
    }

    /// Reads the recording at `path`.
    ///
    /// # Errors
    ///
    /// [`RecordingError::CutShort`] and [`RecordingError::Damaged`] say where: nothing of such a
    /// file is used.
    pub fn load(path: &Path) -> Result<Self, RecordingError> {
        let file = File::open(path)
            .map_err(|source| RecordingError::Io { path: path.to_owned(), source })?;
        Self::read_from(BufReader::new(file), path)
    }

    fn read_from(mut file: impl Read, path: &Path) -> Result<Self, RecordingError> {
        let foreign = || RecordingError::Foreign { path: path.to_owned() };
        let mut magic = [0; MAGIC.len()];
        let mut version = [0; 4];
        file.read_exact(&mut magic).map_err(|_| foreign())?;
        if magic != *MAGIC {
            return Err(foreign());
        }
        file.read_exact(&mut version).map_err(|_| foreign())?;
        let found = u32::from_le_bytes(version);
        if found != VERSION {
            return Err(RecordingError::Version { path: path.to_owned(), found });
        }
        let offset = (MAGIC.len() + version.len()) as u64;
        let mut reader = Reader { file, path, check: [0; 8], offset, next: offset, records: 0 };
        let mut header = None;
        let mut start = Vec::new();
        let mut entries: Vec<Entry> = Vec::new();
        let mut before: Vec<Bytes> = Vec::new();
        let mut last_us = 0;
        loop {
            let payload = reader.record()?;
            let damaged = |what| reader.damaged(what);
            let Some((kind, rest)) = payload.split_first() else {
                return Err(damaged("it is empty"));
            };
            let mut rest = rest;
            match (*kind, &header) {
                (KIND_HEADER, None) => {
                    let read = serde_json::from_slice::<Header>(rest);
                    header = Some(read.map_err(|_| damaged("a header that is not understood"))?);
                }
                (KIND_START, Some(_)) if entries.is_empty() => {
                    let name = text(&mut rest).ok_or_else(|| damaged("a file without a name"))?;
                    start.push(StartFile { name, bytes: rest.to_vec() });
                }
                (KIND_ENTRY, Some(_)) => {
                    let entry = entry(&mut rest, &mut last_us, &mut before)
                        .filter(|_| rest.is_empty())
                        .ok_or_else(|| damaged("an entry that is not understood"))?;
                    entries.push(entry);
                }
                (KIND_END, Some(_)) => {
                    if number(&mut rest) != Some(entries.len() as u64) {
                        return Err(damaged("it counts other entries than there are"));
                    }
                    let Some(header) = header else { return Err(damaged("no header")) };
                    return Ok(Self { header, start, entries });
                }
                _ => return Err(damaged("a record that cannot be here")),
            }
        }
    }
}

struct Writer<W> {
    file: W,
    check: [u8; 8],
}

impl<W: Write> Writer<W> {
    fn record(&mut self, payload: &[u8]) -> io::Result<()> {
        let mut length = Vec::with_capacity(5);
        put_number(&mut length, payload.len() as u64);
        self.check = check(self.check, payload);
        self.file.write_all(&length)?;
        self.file.write_all(payload)?;
        self.file.write_all(&self.check)
    }
}

struct Reader<'p, R> {
    file: R,
    path: &'p Path,
    check: [u8; 8],
    /// Where the present record begins, and the next.
    offset: u64,
    next: u64,
    records: u64,
}

impl<R: Read> Reader<'_, R> {
    fn record(&mut self) -> Result<Vec<u8>, RecordingError> {
        self.offset = self.next;
        let mut length = 0_u64;
        let mut shift = 0;
        loop {
            let mut byte = [0; 1];
            self.fill(&mut byte)?;
            length |= u64::from(byte[0] & 0x7f) << shift;
            self.next += 1;
            if byte[0] & 0x80 == 0 {
                break;
            }
            shift += 7;
            if shift > 35 {
                return Err(self.damaged_next("a length that cannot be"));
            }
        }
        if length > RECORD_BYTES_MAX {
            return Err(self.damaged_next("a length that cannot be"));
        }
        // Read as it comes: a damaged length must not ask for memory that no bytes fill.
        let mut payload = Vec::new();
        let read = (&mut self.file).take(length).read_to_end(&mut payload);
        read.map_err(|source| RecordingError::Io { path: self.path.to_owned(), source })?;
        if (payload.len() as u64) < length {
            return Err(self.cut_short());
        }
        let mut told = [0; 8];
        self.fill(&mut told)?;
        self.check = check(self.check, &payload);
        if told != self.check {
            return Err(self.damaged_next("its check does not fit"));
        }
        self.next += length + 8;
        self.records += 1;
        Ok(payload)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), RecordingError> {
        match self.file.read_exact(buffer) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(self.cut_short()),
            Err(source) => Err(RecordingError::Io { path: self.path.to_owned(), source }),
        }
    }

    fn cut_short(&self) -> RecordingError {
        let (offset, records) = (self.offset, self.records);
        RecordingError::CutShort { path: self.path.to_owned(), offset, records }
    }

    /// Of the record that is being read.
    fn damaged_next(&self, what: &'static str) -> RecordingError {
        let (path, offset) = (self.path.to_owned(), self.offset);
        RecordingError::Damaged { path, offset, record: self.records + 1, what }
    }

    /// Of the record that was read last.
    fn damaged(&self, what: &'static str) -> RecordingError {
        let (path, offset) = (self.path.to_owned(), self.offset);
        RecordingError::Damaged { path, offset, record: self.records, what }
    }
}

fn check(before: [u8; 8], payload: &[u8]) -> [u8; 8] {
    let mut hash = blake3::Hasher::new();
    hash.update(&before);
    hash.update(payload);
    let mut check = [0; 8];
    check.copy_from_slice(&hash.finalize().as_bytes()[..8]);
    check
}

fn put_number(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(u8::try_from(number & 0x7f).unwrap_or(0) | 0x80);
        number >>= 7;
    }
    to.push(u8::try_from(number).unwrap_or(0));
}

fn put_text(to: &mut Vec<u8>, text: &str) {
    put_number(to, text.len() as u64);
    to.extend_from_slice(text.as_bytes());
}

fn put_op(to: &mut Vec<u8>, op: &Op, before: &mut HashMap<Bytes, u64>) {
    match op {
        Op::Write { file, offset, bytes } => {
            let known = before.get(bytes).copied();
            to.push(if known.is_some() { OP_WRITE_AGAIN } else { OP_WRITE });
            put_number(to, file.0.into());
            put_number(to, *offset);
            if let Some(known) = known {
                put_number(to, known);
                return;
            }
            if bytes.len() >= SHARED_BYTES_MIN {
                before.insert(Arc::clone(bytes), before.len() as u64);
            }
            to.extend_from_slice(bytes);
        }
        Op::Truncate { file, length } => {
            to.push(OP_TRUNCATE);
            put_number(to, file.0.into());
            put_number(to, *length);
        }
        Op::Allocate { file, offset, length } => {
            to.push(OP_ALLOCATE);
            put_number(to, file.0.into());
            put_number(to, *offset);
            put_number(to, *length);
        }
        Op::Sync { file } => {
            to.push(OP_SYNC);
            put_number(to, file.0.into());
        }
        Op::SyncDirectory => to.push(OP_SYNC_DIRECTORY),
        Op::Create { file, name } => {
            to.push(OP_CREATE);
            put_number(to, file.0.into());
            put_text(to, name);
        }
        Op::Unlink { name } => {
            to.push(OP_UNLINK);
            put_text(to, name);
        }
        Op::Rename { from, to: new } => {
            to.push(OP_RENAME);
            put_text(to, from);
            put_text(to, new);
        }
        Op::Ack(ack) => {
            to.push(OP_ACK);
            put_text(to, &ack.token);
            put_text(to, ack.durability.as_str());
            put_text(to, &ack.seq.map(|seq| seq.to_string()).unwrap_or_default());
        }
    }
}

fn number(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        number |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn text(from: &mut &[u8]) -> Option<String> {
    let length = usize::try_from(number(from)?).ok()?;
    let (text, rest) = from.split_at_checked(length)?;
    *from = rest;
    String::from_utf8(text.to_vec()).ok()
}

fn file(from: &mut &[u8]) -> Option<FileIndex> {
    u32::try_from(number(from)?).ok().map(FileIndex)
}

fn entry(from: &mut &[u8], last_us: &mut u64, before: &mut Vec<Bytes>) -> Option<Entry> {
    let at_us = last_us.checked_add(number(from)?)?;
    *last_us = at_us;
    let process = u32::try_from(number(from)?).ok()?;
    let phase = text(from)?.parse::<Phase>().ok()?;
    let (kind, rest) = from.split_first()?;
    *from = rest;
    let op = match *kind {
        OP_WRITE => {
            let (file, offset) = (file(from)?, number(from)?);
            let bytes: Bytes = std::mem::take(from).into();
            if bytes.len() >= SHARED_BYTES_MIN {
                before.push(Arc::clone(&bytes));
            }
            Op::Write { file, offset, bytes }
        }
        OP_WRITE_AGAIN => {
            let (file, offset) = (file(from)?, number(from)?);
            let known = usize::try_from(number(from)?).ok()?;
            Op::Write { file, offset, bytes: Arc::clone(before.get(known)?) }
        }
        OP_TRUNCATE => Op::Truncate { file: file(from)?, length: number(from)? },
        OP_ALLOCATE => {
            Op::Allocate { file: file(from)?, offset: number(from)?, length: number(from)? }
        }
        OP_SYNC => Op::Sync { file: file(from)? },
        OP_SYNC_DIRECTORY => Op::SyncDirectory,
        OP_CREATE => Op::Create { file: file(from)?, name: text(from)? },
        OP_UNLINK => Op::Unlink { name: text(from)? },
        OP_RENAME => Op::Rename { from: text(from)?, to: text(from)? },
        OP_ACK => {
            let token = text(from)?;
            let durability = text(from)?.parse().ok()?;
            let seq = text(from)?;
            let seq = if seq.is_empty() { None } else { Some(seq.parse().ok()?) };
            Op::Ack(Ack { token, durability, seq })
        }
        _ => return None,
    };
    Some(Entry { at_us, process, phase, op })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::power::Header;
    use hardboard::Durability;

    fn recording() -> Recording {
        let entry = |at_us, op| Entry { at_us, process: 3, phase: Phase::CommitPage, op };
        let page: Bytes = vec![7; 4_096].into();
        let file = FileIndex(1);
        let write = |offset, bytes: &Bytes| Op::Write { file, offset, bytes: Arc::clone(bytes) };
        let ack = |seq| Ack { token: "201.5".to_owned(), durability: Durability::Power, seq };
        Recording {
            header: Header {
                subject: "a test".to_owned(),
                database: "a.db".to_owned(),
                board: None,
                check_sql: Some("SELECT 1".to_owned()),
                promise: Durability::Process,
                unseen: Vec::new(),
                elapsed_us: 12,
            },
            start: vec![StartFile { name: "a.db".to_owned(), bytes: vec![1, 2, 3] }],
            entries: vec![
                entry(0, Op::Create { file, name: "a.db-wal".to_owned() }),
                entry(5, write(32, &vec![9; 24].into())),
                entry(700, write(56, &page)),
                entry(701, write(1 << 40, &page)),
                entry(702, Op::Truncate { file, length: u64::MAX }),
                entry(703, Op::Allocate { file, offset: 1, length: 2 }),
                entry(704, Op::Sync { file }),
                entry(704, Op::SyncDirectory),
                entry(704, Op::Ack(ack(Some(-3)))),
                entry(704, Op::Ack(ack(None))),
                entry(705, Op::Rename { from: "a".to_owned(), to: "b".to_owned() }),
                entry(u64::MAX, Op::Unlink { name: "a.db-wal".to_owned() }),
            ],
        }
    }

    fn bytes(recording: &Recording) -> Vec<u8> {
        let mut bytes = Vec::new();
        recording.write_to(&mut bytes).unwrap();
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Recording, RecordingError> {
        Recording::read_from(bytes, Path::new("r"))
    }

    #[test]
    fn what_is_written_is_read() {
        let recording = recording();
        assert_eq!(read(&bytes(&recording)).unwrap(), recording);
    }

    #[test]
    fn page_that_was_written_before_takes_no_room_again() {
        assert!(bytes(&recording()).len() < 5_000);
    }

    #[test]
    fn recording_cut_short_anywhere_is_refused_at_the_record_that_is_not_whole() {
        let bytes = bytes(&recording());
        for length in 24..bytes.len() {
            match read(&bytes[..length]).unwrap_err() {
                RecordingError::CutShort { offset, records, .. } => {
                    assert!(offset <= length as u64 && (records > 0 || offset == 24));
                }
                other => panic!("{length}: {other}"),
            }
        }
    }

    #[test]
    fn each_changed_byte_is_refused_not_behind_its_record() {
        let good = bytes(&recording());
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 0x21;
            let error = read(&bad).unwrap_err();
            match &error {
                RecordingError::Foreign { .. } => assert!(place < 20),
                RecordingError::Version { .. } => assert!((20..24).contains(&place)),
                RecordingError::Damaged { offset, .. }
                | RecordingError::CutShort { offset, .. } => {
                    assert!(*offset <= place as u64, "{place}: {error}");
                }
                RecordingError::Io { .. } => panic!("{error}"),
            }
            assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn record_that_is_doubled_or_left_out_is_refused() {
        let recording = recording();
        let all = bytes(&recording);
        let mut fewer = recording.clone();
        fewer.entries.truncate(4);
        // Everything but the end's record: its length, payload and check.
        let before = bytes(&fewer).len() - 11;
        let mut doubled = all[..before].to_vec();
        doubled.extend_from_slice(&all[24..]);
        assert!(matches!(read(&doubled), Err(RecordingError::Damaged { .. })));
        let mut without = all[..24].to_vec();
        without.extend_from_slice(&all[before..]);
        assert!(matches!(read(&without), Err(RecordingError::Damaged { offset: 24, .. })));
    }
}
