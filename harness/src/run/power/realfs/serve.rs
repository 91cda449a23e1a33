//! The process behind the recording disk: a FUSE file system of five files.
//!
//! | file | reading gives | writing does |
//! |---|---|---|
//! | `disk` | the recorded disk | writes to it; a sync is a flush |
//! | `trial` | what the last `cut` left | writes to that, and is forgotten at the next cut |
//! | `cut` | nothing | makes `trial` what a `BlockCut` leaves |
//! | `mark` | nothing | notes how far the recorded processes have come |
//! | `log` | what happened, as JSON | nothing |
//!
//! It is a process of its own: should the one that uses it be killed while it waits for a file
//! system on this disk, this one goes on serving until that wait is over, and then dies with it.
//! Marks are requests like the writes are, so that their order is known.

use super::disk::{BlockCut, Disk, Event, Image};
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, WriteFlags,
};
use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

/// The name under which the command is this process.
pub const ARGV0: &str = "killpoint-disk";

/// Names and numbers of the files.
const FILES: [(&str, u64); 5] = [("disk", 2), ("trial", 3), ("cut", 4), ("mark", 5), ("log", 6)];
const DISK: u64 = 2;
const TRIAL: u64 = 3;
const CUT: u64 = 4;
const MARK: u64 = 5;
const LOG: u64 = 6;
/// Nothing changes but by us.
const TTL: Duration = Duration::from_hours(1);

/// Serves until the file system is unmounted or the process that asked for it is gone.
///
/// Arguments: where to mount it, the disk's bytes, the process id of who asks.
#[must_use]
pub fn main(arguments: &[String]) -> ExitCode {
    let [place, bytes, parent] = arguments else { return ExitCode::from(64) };
    let (Ok(bytes), Ok(parent)) = (bytes.parse(), parent.parse::<i32>()) else {
        return ExitCode::from(64);
    };
    let follows = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
    if follows.is_err() || nix::unistd::getppid().as_raw() != parent {
        return ExitCode::FAILURE;
    }
    let state = State { bytes, disk: Disk::default(), trial: Image::default(), log: Vec::new() };
    let mut config = Config::default();
    config.mount_options =
        vec![MountOption::FSName("killpoint".to_owned()), MountOption::NoExec, MountOption::NoSuid];
    match fuser::mount(Recorder(Mutex::new(state)), Path::new(place), &config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write as _;
            drop(writeln!(std::io::stderr(), "{error}"));
            ExitCode::FAILURE
        }
    }
}

struct State {
    bytes: u64,
    disk: Disk,
    trial: Image,
    /// Of `log`, as it was when it was last opened.
    log: Vec<u8>,
}

struct Recorder(Mutex<State>);

impl Recorder {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attributes(&self, number: u64) -> Option<FileAttr> {
        let directory = number == u64::from(INodeNo::ROOT);
        let size = match number {
            DISK | TRIAL => self.state().bytes,
            LOG => self.state().log.len() as u64,
            CUT | MARK => 0,
            _ if directory => 0,
            _ => return None,
        };
        Some(FileAttr {
            ino: INodeNo(number),
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if directory { FileType::Directory } else { FileType::RegularFile },
            perm: if directory { 0o700 } else { 0o600 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for Recorder {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = FILES.iter().find(|(known, _)| name == *known);
        match found.and_then(|(_, number)| self.attributes(*number)) {
            Some(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, file: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(u64::from(file)) {
            Some(attributes) => reply.attr(&TTL, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, file: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if u64::from(file) == LOG {
            let mut state = self.state();
            state.log = serde_json::to_vec(&state.disk.told()).unwrap_or_default();
        }
        // What the kernel kept of it would not be what is there.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        file: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = self.state();
        let image = match u64::from(file) {
            DISK => &state.disk.now,
            TRIAL => &state.trial,
            LOG => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(state.log.len());
                let to = from.saturating_add(size as usize).min(state.log.len());
                return reply.data(&state.log[from..to]);
            }
            _ => return reply.data(&[]),
        };
        let left = state.bytes.saturating_sub(offset).min(size.into());
        let mut bytes = vec![0; usize::try_from(left).unwrap_or(0)];
        image.read(offset, &mut bytes);
        reply.data(&bytes);
    }

    fn write(
        &self,
        _: &Request,
        file: INodeNo,
        _: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.state();
        if matches!(u64::from(file), DISK | TRIAL) && offset + bytes.len() as u64 > state.bytes {
            return reply.error(Errno::ENOSPC);
        }
        match u64::from(file) {
            DISK => state.disk.write(offset, bytes),
            TRIAL => state.trial.write(offset, bytes),
            CUT => match serde_json::from_slice::<BlockCut>(bytes) {
                Ok(cut) => state.trial = state.disk.after(&cut),
                Err(_) => return reply.error(Errno::EINVAL),
            },
            MARK => match std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()) {
                Some(mark) => state.disk.note(Event::Mark(mark)),
                None => return reply.error(Errno::EINVAL),
            },
            _ => return reply.error(Errno::EPERM),
        }
        drop(state);
        reply.written(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, file: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        if u64::from(file) == DISK {
            self.state().disk.note(Event::Flush);
        }
        reply.ok();
    }
}
