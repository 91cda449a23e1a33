//! The supervisor's picture of its victims: processes, threads, descriptors, locks.
//!
//! Changed only by what the kernel reports. No system call that changes a victim is made here.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::Instant;

use super::arch;
use super::calls::{CallKind, Sys};
use super::driver::{Fault, Stop, Trap};
use super::error::status_field;
use super::files::{Descriptor, FdTable, FileRef, Files, LockModel, Owner, Sight, Slot};
use super::hash::NumberMap;
use super::memory::Memory;
use super::operation::Operation;
use super::options::Options;
use super::ptrace;
use super::report::{Exit, ProcessReport, Unseen};
use super::stack::Unwinder;
use super::{ProcessId, ThreadId};

/// What a thread does.
#[derive(Debug)]
pub(super) enum Activity {
    /// It is new and has not yet reported.
    Starting,
    /// It runs, or is blocked in a call.
    Running,
    /// It opens a file that may become a database.
    Opening(Box<Operation>),
    /// It makes the call of this stop and will be stopped when it leaves it.
    Leaving(Box<Leaving>),
    /// It makes a call with another argument than its own, which is put back when it leaves it.
    Substituted { index: usize, value: u64 },
    /// It stands before a call until its time comes or the driver says so.
    Standing,
    /// It was sent SIGKILL.
    Dying,
}

/// What remains to be done when a call is left.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) stop: Stop,
    /// Whether the driver wants the result.
    pub(super) observe: bool,
    /// The fault under way, and the place of its receipt.
    pub(super) fault: Option<(Fault, usize)>,
    pub(super) restore: Option<Restore>,
    /// Whether the call is made again if it fails for want of a lock.
    pub(super) again: bool,
}

/// What was changed to make a call shorter, to be put back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Restore {
    /// The argument with the length or the count of pieces, and its old value.
    pub(super) argument: (usize, u64),
    /// The word in memory with the length of the last piece, and its old value.
    pub(super) memory: Option<(u64, u64)>,
}

/// One traced thread.
#[derive(Debug)]
pub(super) struct Thread {
    pub(super) process: ProcessId,
    pub(super) activity: Activity,
    /// The trap that it runs into, if one is set.
    pub(super) trap: Option<Trap>,
}

/// One traced process.
#[derive(Debug)]
pub(super) struct Process {
    /// Its place in the order of beginning, from 0.
    pub(super) index: usize,
    pub(super) parent: Option<ProcessId>,
    /// Whether it was spawned here, and not made by another victim.
    pub(super) spawned: bool,
    pub(super) copy: usize,
    pub(super) command: String,
    pub(super) owner: Owner,
    pub(super) memory: OnceCell<Memory>,
    pub(super) points: u64,
    pub(super) killed: bool,
    pub(super) unseen: Vec<Unseen>,
    pub(super) cut_short_in: Option<String>,
    /// Mappings of the wal-index.
    pub(super) maps: Vec<Mapping>,
}

/// A part of a file in a process's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mapping {
    pub(super) address: u64,
    pub(super) length: u64,
    /// Where in the file it begins.
    pub(super) offset: u64,
    pub(super) file: FileRef,
}

impl Process {
    pub(super) fn report(self, process: ProcessId, exit: Option<Exit>) -> ProcessReport {
        let Self { parent, spawned, copy, command, points, unseen, cut_short_in, .. } = self;
        ProcessReport {
            process,
            parent,
            spawned,
            copy,
            command,
            exit,
            points,
            unseen,
            cut_short_in,
        }
    }
}

/// Everything that is known.
#[derive(Debug)]
pub(super) struct State {
    pub(super) options: Options,
    /// The living.
    pub(super) processes: NumberMap<ProcessId, Process>,
    /// The dead, each with its place in the order of beginning. A number may occur twice.
    pub(super) finished: Vec<(usize, ProcessReport)>,
    pub(super) threads: NumberMap<ThreadId, Thread>,
    pub(super) tables: NumberMap<Owner, FdTable>,
    pub(super) files: Files,
    pub(super) locks: LockModel,
    pub(super) unwinder: RefCell<Unwinder>,
    pub(super) started: Instant,
    pub(super) events: u64,
    pub(super) points: u64,
    pub(super) stops: u64,
    /// Calls that were let pass and so made no stop.
    pub(super) passed: u64,
    pub(super) phases: BTreeMap<super::Phase, u64>,
    next_owner: u32,
}

impl State {
    pub(super) fn new(options: Options) -> Self {
        Self {
            files: Files::new(&options.databases),
            options,
            processes: NumberMap::default(),
            finished: Vec::new(),
            threads: NumberMap::default(),
            tables: NumberMap::default(),
            locks: LockModel::default(),
            unwinder: RefCell::default(),
            started: Instant::now(),
            events: 0,
            points: 0,
            stops: 0,
            passed: 0,
            phases: BTreeMap::new(),
            next_owner: 0,
        }
    }

    /// Adds a process with an empty table.
    pub(super) fn add_process(
        &mut self,
        process: ProcessId,
        parent: Option<ProcessId>,
        copy: usize,
        spawned: bool,
    ) {
        let owner = self.new_owner(FdTable::default());
        let record = Process {
            index: self.processes.len() + self.finished.len(),
            parent,
            spawned,
            copy,
            command: command_line(process),
            owner,
            memory: OnceCell::new(),
            points: 0,
            killed: false,
            unseen: Vec::new(),
            cut_short_in: None,
            maps: Vec::new(),
        };
        self.processes.insert(process, record);
    }

    fn new_owner(&mut self, table: FdTable) -> Owner {
        self.next_owner += 1;
        let owner = Owner(self.next_owner);
        self.tables.insert(owner, table);
        owner
    }

    pub(super) fn add_thread(&mut self, thread: ThreadId, process: ProcessId, activity: Activity) {
        self.threads.insert(thread, Thread { process, activity, trap: None });
    }

    /// Adds a thread that the kernel has begun to trace for us, and its process if that is new too.
    /// Returns the process if it is new, with its parent.
    pub(super) fn adopt(
        &mut self,
        thread: ThreadId,
        maker: Option<ProcessId>,
    ) -> Option<(ProcessId, ProcessId)> {
        let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
        let field = |name| status_field(&status, name).and_then(|text| text.parse::<i32>().ok());
        let process = field("Tgid:").map_or(ProcessId(thread.0), ProcessId);
        self.add_thread(thread, process, Activity::Starting);
        if self.processes.contains_key(&process) {
            return None;
        }
        let parent = maker.or_else(|| field("PPid:").map(ProcessId));
        let parent = parent.filter(|parent| self.processes.contains_key(parent));
        let copy = parent.and_then(|parent| self.processes.get(&parent)).map_or(0, |p| p.copy);
        self.add_process(process, parent, copy, false);
        let parent = parent?;
        self.inherit_files(process, parent);
        Some((process, parent))
    }

    /// Gives a new process the descriptors and mappings that it has from its parent.
    fn inherit_files(&mut self, child: ProcessId, parent: ProcessId) {
        let Some(record) = self.processes.get(&parent) else { return };
        let (owner, maps) = (record.owner, record.maps.clone());
        let shared = ptrace::same_files(parent.0, child.0) == Some(true);
        let table = self.tables.get(&owner).map(|table| table.inherited(parent));
        let Some(record) = self.processes.get_mut(&child) else { return };
        record.maps = maps;
        if shared {
            let own = std::mem::replace(&mut record.owner, owner);
            self.tables.remove(&own);
        } else if let Some(table) = table {
            self.tables.insert(record.owner, table);
        }
    }

    /// A process has executed another program.
    pub(super) fn executed(&mut self, process: ProcessId) {
        let Some(record) = self.processes.get_mut(&process) else { return };
        record.memory = OnceCell::new();
        record.command = command_line(process);
        record.maps.clear();
        let owner = record.owner;
        let mut table = match self.tables.get(&owner) {
            Some(table) if self.is_shared(owner) => {
                let copy = table.clone();
                let own = self.new_owner(FdTable::default());
                if let Some(record) = self.processes.get_mut(&process) {
                    record.owner = own;
                }
                copy
            }
            _ => self.tables.remove(&owner).unwrap_or_default(),
        };
        let owner = self.owner(process);
        let closed: Vec<_> = table
            .descriptors()
            .filter(|(fd, held)| Files::identity(process, *fd) != Some(held.file.id))
            .map(|(fd, held)| (fd, held.file))
            .collect();
        for (fd, file) in closed {
            self.locks.close(owner, file.id);
            table.forget(fd);
        }
        table.begin_anew();
        self.tables.insert(owner, table);
        self.unwinder.get_mut().forget(process);
    }

    fn is_shared(&self, owner: Owner) -> bool {
        self.processes.values().filter(|process| process.owner == owner).count() > 1
    }

    /// A process has ended. Its record is closed.
    pub(super) fn ended(&mut self, process: ProcessId, exit: Exit) {
        let Some(record) = self.processes.remove(&process) else { return };
        let owner = record.owner;
        if !self.processes.values().any(|other| other.owner == owner) {
            self.tables.remove(&owner);
            self.locks.end(owner);
        }
        self.unwinder.get_mut().forget(process);
        self.finished.push((record.index, record.report(process, Some(exit))));
    }

    /// Notes that calls of a process may go unseen.
    pub(super) fn note_unseen(&mut self, process: ProcessId, why: Unseen) {
        if let Some(record) = self.processes.get_mut(&process)
            && !record.unseen.contains(&why)
        {
            record.unseen.push(why);
        }
    }

    pub(super) fn owner(&self, process: ProcessId) -> Owner {
        self.processes.get(&process).map_or(Owner(0), |process| process.owner)
    }

    /// The process's memory.
    pub(super) fn memory(&self, process: ProcessId) -> io::Result<&Memory> {
        let record = self
            .processes
            .get(&process)
            .ok_or_else(|| io::Error::other("a process that is not traced"))?;
        if let Some(memory) = record.memory.get() {
            return Ok(memory);
        }
        let memory = Memory::open(process)?;
        Ok(record.memory.get_or_init(|| memory))
    }

    /// The file behind a descriptor, if it matters.
    pub(super) fn file_of(&mut self, process: ProcessId, fd: i32) -> Option<FileRef> {
        let owner = self.owner(process);
        // Without stops at `close` a number may mean another file by now: ask each time.
        let sure = self.options.calls.contains(CallKind::Close);
        let table = self.tables.entry(owner).or_default();
        match table.slot(fd) {
            Slot::Open(held) if sure || Files::identity(process, fd) == Some(held.file.id) => {
                return Some(held.file);
            }
            Slot::NotOurs if sure => return None,
            _ => {}
        }
        let opened = match table.slot(fd) {
            Slot::Undecided(opened) => opened.clone(),
            Slot::Unknown | Slot::NotOurs | Slot::Open(_) => None,
        };
        match self.files.look_at(process, fd) {
            Sight::File(file) => {
                self.note_descriptor(process, fd, file);
                if let Some(stack) = opened {
                    self.table_mut(owner).set_opened(fd, stack);
                }
                Some(file)
            }
            Sight::Undecided => {
                self.table_mut(owner).set(fd, Slot::Undecided(opened));
                None
            }
            Sight::NotOurs => {
                self.table_mut(owner).set(fd, Slot::NotOurs);
                None
            }
        }
    }

    /// Puts a file that matters into the table.
    pub(super) fn note_descriptor(&mut self, process: ProcessId, fd: i32, file: FileRef) {
        let owner = self.owner(process);
        let path = self.files.path(file.id).map(std::path::Path::to_owned).unwrap_or_default();
        let descriptor = Descriptor {
            file,
            path,
            locked: false,
            locked_as_open_file: false,
            inherited: None,
            opened: None,
        };
        self.table_mut(owner).set(fd, Slot::Open(descriptor));
    }

    pub(super) fn table_mut(&mut self, owner: Owner) -> &mut FdTable {
        self.tables.entry(owner).or_default()
    }

    /// Notes where each process is, for the report of a run that is cut short.
    pub(super) fn note_places(&mut self) {
        for (process, record) in &mut self.processes {
            let main = self.threads.get(&ThreadId(process.0)).map(|thread| &thread.activity);
            record.cut_short_in = Some(match main {
                Some(Activity::Standing) => "it stood before a call".to_owned(),
                Some(_) => place_of(*process),
                None => "its main thread had ended".to_owned(),
            });
        }
    }

    /// Threads that run or are blocked in a call.
    pub(super) fn running(&self) -> usize {
        self.threads
            .values()
            .filter(|thread| !matches!(thread.activity, Activity::Standing))
            .count()
    }
}

/// What a running process does, as the kernel tells it.
fn place_of(process: ProcessId) -> String {
    let call = fs::read_to_string(format!("/proc/{process}/syscall")).unwrap_or_default();
    let number = call.split_whitespace().next().unwrap_or_default();
    if let Ok(number) = number.parse::<u32>() {
        let named = Sys::ALL.iter().find(|call| arch::number(**call) == Some(number));
        return match named {
            Some(call) => format!("it was in {}", call.name()),
            None => format!("it was in system call {number}"),
        };
    }
    match number {
        "running" => "it ran its own code".to_owned(),
        _ => "it was stopped".to_owned(),
    }
}

/// The command line of a process, its arguments parted by spaces.
fn command_line(process: ProcessId) -> String {
    let raw = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&raw);
    text.trim_end_matches('\0').replace('\0', " ")
}
