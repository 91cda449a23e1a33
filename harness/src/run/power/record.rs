//! The recorder: a driver of the supervisor that writes down what was done to the files.
//!
//! Of all processes only one call at a time is let in: a thread that stands before a call that
//! changes a file or syncs it is held until the one before has returned. So the order of the
//! entries is the order in which the kernel did them, and a sync covers exactly the writes that
//! stand before it. What is written down is what the call's result says was done.
//!
//! Nothing is broken and no sleep is cut short; a run only takes longer.

use super::recording::{Ack, Bytes, Entry, FileIndex, Op, StartFile};
use crate::run::trace::{
    CallKind, CallSet, Choice, Decision, Driver, Event, FileId, Operation, ProcessId, Role, Scene,
    Standing, Stop,
};
use hardboard::Durability;
use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

/// What is stopped at: everything that changes a file or its name, makes it durable, or could do
/// so unseen. `close` keeps the descriptors right.
pub(super) const CALLS: CallSet = CallSet::WRITES_AND_SYNCS
    .with(CallKind::Open)
    .with(CallKind::Close)
    .with(CallKind::Dup)
    .with(CallKind::Unlink)
    .with(CallKind::Rename)
    .with(CallKind::Link)
    .with(CallKind::Map)
    .with(CallKind::Copy);

/// A call that was let in and has not returned.
struct Flight {
    stop: Stop,
    /// What a write is about to write.
    bytes: Vec<u8>,
}

/// Writes down what is done to one database.
pub(super) struct Recorder<'w> {
    /// Told of each entry: how many there are now.
    pub(super) watch: Option<&'w mut dyn FnMut(usize)>,
    promise: Durability,
    flight: Option<Flight>,
    numbers: HashMap<FileId, FileIndex>,
    files: u32,
    processes: HashMap<ProcessId, u32>,
    seen_before: HashMap<blake3::Hash, Bytes>,
    acks: HashMap<ProcessId, String>,
    pub(super) entries: Vec<Entry>,
    pub(super) unseen: Vec<String>,
}

/// Reads the files of a database that are there.
pub(super) fn start_files(database: &Path) -> io::Result<Vec<(StartFile, FileId)>> {
    let mut files = Vec::new();
    for suffix in ["", "-wal", "-journal"] {
        let mut path = database.as_os_str().to_owned();
        path.push(suffix);
        let path = Path::new(&path);
        let metadata = match std::fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let id = FileId { device: metadata.dev(), inode: metadata.ino() };
        files.push((StartFile { name: name_of(path), bytes: std::fs::read(path)? }, id));
    }
    Ok(files)
}

/// The last part of a path.
pub(super) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl Recorder<'_> {
    /// A recorder of a database whose files are `start`.
    pub(super) fn new(start: &[(StartFile, FileId)], promise: Durability) -> Self {
        let numbered = start.iter().zip(0..).map(|((_, id), number)| (*id, FileIndex(number)));
        Self {
            watch: None,
            promise,
            flight: None,
            numbers: numbered.collect(),
            files: u32::try_from(start.len()).unwrap_or(u32::MAX),
            processes: HashMap::new(),
            seen_before: HashMap::new(),
            acks: HashMap::new(),
            entries: Vec::new(),
            unseen: Vec::new(),
        }
    }

    fn note(&mut self, what: String) {
        if !self.unseen.contains(&what) {
            self.unseen.push(what);
        }
    }

    /// Whether the call may change what a power cut leaves; notes those that are not followed.
    fn matters(&mut self, stop: &Stop) -> bool {
        let role = stop.file.or(stop.target).map(|file| file.role);
        match &stop.operation {
            _ if role == Some(Role::Shm) => false,
            Operation::Write { .. }
            | Operation::Sync { .. }
            | Operation::Truncate { .. }
            | Operation::TruncatePath { .. }
            | Operation::Allocate { .. }
            | Operation::Unlink { .. }
            | Operation::Rename { .. } => role.is_some(),
            Operation::Open { flags, .. } => {
                role.is_some() && flags & (libc::O_CREAT | libc::O_TRUNC) != 0
            }
            Operation::Map { writable: true, .. } if role.is_some() => {
                self.note("a file of the database is mapped for writing".to_owned());
                false
            }
            Operation::Copy { .. } if stop.target.is_some() => {
                self.note("a file of the database is written by a copy in the kernel".to_owned());
                false
            }
            Operation::Link { .. } if role.is_some() => {
                self.note("a file of the database is given a second name".to_owned());
                false
            }
            _ => false,
        }
    }

    /// Takes note of a call that is let in now.
    fn let_in(&mut self, stop: &Stop, scene: Scene<'_>) {
        let bytes = match stop.operation {
            Operation::Write { length, .. } => {
                let most = usize::try_from(length).unwrap_or(usize::MAX);
                scene.written(stop, most).unwrap_or_else(|error| {
                    self.note(format!("the memory of a process cannot be read: {error}"));
                    Vec::new()
                })
            }
            _ => Vec::new(),
        };
        self.flight = Some(Flight { stop: stop.clone(), bytes });
    }

    fn number(&mut self, id: FileId) -> FileIndex {
        if let Some(number) = self.numbers.get(&id) {
            return *number;
        }
        self.note("a file is written to whose making was not seen".to_owned());
        self.new_number(id)
    }

    fn new_number(&mut self, id: FileId) -> FileIndex {
        let number = FileIndex(self.files);
        self.files += 1;
        self.numbers.insert(id, number);
        number
    }

    fn push(&mut self, stop: &Stop, op: Op) {
        let next = u32::try_from(self.processes.len()).unwrap_or(u32::MAX);
        let process = *self.processes.entry(stop.process).or_insert(next);
        let at_us = u64::try_from(stop.at.as_micros()).unwrap_or(u64::MAX);
        self.entries.push(Entry { at_us, process, phase: stop.phase, op });
        if let Some(watch) = &mut self.watch {
            watch(self.entries.len());
        }
    }

    fn shared(&mut self, bytes: &[u8]) -> Bytes {
        let known = self.seen_before.entry(blake3::hash(bytes));
        Arc::clone(known.or_insert_with(|| bytes.into()))
    }

    /// The call has returned `result`, which is no error.
    fn returned(&mut self, stop: &Stop, bytes: &[u8], result: u64, scene: Scene<'_>) {
        let file = stop.file.map(|file| (file.role, file.id));
        let op = match (&stop.operation, file) {
            (Operation::Write { offset, .. }, Some((role, id))) => {
                let written = usize::try_from(result).unwrap_or(usize::MAX).min(bytes.len());
                if role == Role::Ack {
                    return self.acknowledged(stop, &bytes[..written]);
                }
                let crate::run::trace::Offset::At(offset) = *offset else {
                    return self.note("a write at a position that is not known".to_owned());
                };
                let file = self.number(id);
                Op::Write { file, offset, bytes: self.shared(&bytes[..written]) }
            }
            (Operation::Sync { .. }, Some((Role::Directory, _))) => Op::SyncDirectory,
            (Operation::Sync { .. }, Some((_, id))) => Op::Sync { file: self.number(id) },
            (
                Operation::Truncate { length, .. } | Operation::TruncatePath { length, .. },
                Some((_, id)),
            ) => Op::Truncate { file: self.number(id), length: *length },
            (Operation::Allocate { offset, length, .. }, Some((_, id))) => {
                Op::Allocate { file: self.number(id), offset: *offset, length: *length }
            }
            (Operation::Open { path, flags }, Some((_, FileId::NEW))) => {
                let fd = i32::try_from(result).unwrap_or(-1);
                let made = scene.descriptors(stop.process).and_then(|table| table.get(fd));
                let Some(made) = made else {
                    return self.note(format!("{} was made and is not known", path.path.display()));
                };
                debug_assert!(flags & libc::O_CREAT != 0);
                let file = self.new_number(made.file.id);
                Op::Create { file, name: name_of(&path.path) }
            }
            (Operation::Open { flags, .. }, Some((_, id))) if flags & libc::O_TRUNC != 0 => {
                Op::Truncate { file: self.number(id), length: 0 }
            }
            (Operation::Unlink { path }, Some(_)) => Op::Unlink { name: name_of(&path.path) },
            (Operation::Rename { from, to, exchange: false }, _) => {
                Op::Rename { from: name_of(&from.path), to: name_of(&to.path) }
            }
            (Operation::Rename { .. }, _) => {
                return self.note("two files of the database changed names".to_owned());
            }
            _ => return,
        };
        self.push(stop, op);
    }

    /// Lines may come in pieces.
    fn acknowledged(&mut self, stop: &Stop, bytes: &[u8]) {
        let text = self.acks.entry(stop.process).or_default();
        text.push_str(&String::from_utf8_lossy(bytes));
        let mut lines = Vec::new();
        while let Some(end) = text.find('\n') {
            lines.push(text.drain(..=end).collect::<String>());
        }
        for line in lines {
            match Ack::parse(&line, self.promise) {
                Some(ack) => self.push(stop, Op::Ack(ack)),
                None if line.trim_start().starts_with("refused") => {}
                None => self.note(format!("a line that acknowledges nothing: {}", line.trim())),
            }
        }
    }
}

impl Driver for Recorder<'_> {
    fn at_stop(&mut self, stop: &Stop, scene: &Scene<'_>) -> Decision {
        if !self.matters(stop) {
            return Decision::Continue;
        }
        if self.flight.is_some() {
            return Decision::Hold;
        }
        self.let_in(stop, *scene);
        Decision::Observe
    }

    fn at_result(&mut self, stop: &Stop, result: i64, scene: &Scene<'_>) {
        let Some(flight) = self.flight.take() else { return };
        if let Ok(result) = u64::try_from(result) {
            self.returned(stop, &flight.bytes, result, *scene);
        }
    }

    fn at_event(&mut self, event: &Event, _scene: &Scene<'_>) {
        if let Event::Exited { process, .. } = event
            && self.flight.as_ref().is_some_and(|flight| flight.stop.process == *process)
        {
            self.flight = None;
            self.note("a process ended within a call: nobody can tell what it did".to_owned());
        }
    }

    fn choose(&mut self, standing: Standing<'_>, scene: &Scene<'_>) -> Choice {
        match standing.held.first() {
            Some(next) if self.flight.is_none() => {
                self.let_in(next, *scene);
                Choice::Release(next.thread, Decision::Observe)
            }
            _ => Choice::Wait,
        }
    }
}
