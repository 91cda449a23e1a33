//! What a stopped call asks for: its arguments, decoded, in one vocabulary for all its variants.
//!
//! In: the call and its six arguments, and the victim's memory for what they point to. Out: an
//! [`Operation`]. Which file a descriptor means and what SQLite is doing is found elsewhere.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use serde::Serialize;

use super::calls::Sys;
use super::memory::Memory;

/// A traced call before it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syscall {
    /// Which call.
    pub sys: Sys,
    /// Its arguments as the kernel gets them.
    pub arguments: [u64; 6],
}

/// Where in a file a read or write happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Offset {
    /// At this byte.
    At(u64),
    /// At the position of the open file, or at its end if opened so.
    Position,
}

/// What a lock call asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LockKind {
    /// `F_RDLCK`.
    Shared,
    /// `F_WRLCK`.
    Exclusive,
    /// `F_UNLCK`.
    Unlock,
    /// Only asks whether a lock could be had (`F_GETLK`).
    Test,
}

impl LockKind {
    /// That of `l_type` in a call that is no test.
    pub(super) fn of(kind: i16) -> Self {
        match i32::from(kind) {
            libc::F_RDLCK => Self::Shared,
            libc::F_WRLCK => Self::Exclusive,
            _ => Self::Unlock,
        }
    }
}

/// A lock call, with its range as the program gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LockCall {
    /// What is asked.
    pub kind: LockKind,
    /// Whether the call waits for the lock.
    pub waits: bool,
    /// Whether the lock belongs to the open file (`F_OFD_*`) and not to the process.
    pub of_open_file: bool,
    /// `SEEK_SET`, `SEEK_CUR` or `SEEK_END`: what `start` counts from.
    pub whence: i16,
    /// First byte, counted from `whence`.
    pub start: i64,
    /// Length in bytes; 0 is "to the end, however far it grows".
    pub length: i64,
}

/// A path argument: relative to a directory descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PathArgument {
    /// The directory that a relative path starts from; `AT_FDCWD` is the working directory.
    pub directory: i32,
    /// The path as given.
    pub path: PathBuf,
}

/// What a call asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the fields are the arguments of the calls that each variant names")]
pub enum Operation {
    /// `read`, `pread64` and their kin.
    Read { fd: i32, offset: Offset, length: u64 },
    /// `write`, `pwrite64` and their kin.
    Write { fd: i32, offset: Offset, length: u64 },
    /// `fsync`, `fdatasync`, `sync_file_range`.
    Sync { fd: i32 },
    /// `ftruncate`.
    Truncate { fd: i32, length: u64 },
    /// `truncate`.
    TruncatePath { path: PathArgument, length: u64 },
    /// `fallocate`.
    Allocate { fd: i32, offset: u64, length: u64 },
    /// `fcntl` with a lock command.
    Lock { fd: i32, lock: LockCall },
    /// `open` and its kin.
    Open { path: PathArgument, flags: i32 },
    /// `close`.
    Close { fd: i32 },
    /// `close_range`: both ends included. With `only_mark` it sets close-on-exec and closes
    /// nothing.
    CloseRange { first: u32, last: u32, only_mark: bool },
    /// `dup`, `dup2`, `dup3`, `fcntl(F_DUPFD)`. `to` is closed first if it is given and open.
    Dup { from: i32, to: Option<i32> },
    /// `unlink`, `unlinkat`.
    Unlink { path: PathArgument },
    /// `rename` and its kin. With `exchange` the two swap names.
    Rename { from: PathArgument, to: PathArgument, exchange: bool },
    /// `link`, `linkat`.
    Link { from: PathArgument, to: PathArgument },
    /// `mmap` of a file, shared.
    Map { fd: i32, offset: u64, length: u64, writable: bool },
    /// `munmap`.
    Unmap { address: u64, length: u64 },
    /// `nanosleep`, `clock_nanosleep`.
    Sleep,
    /// `io_uring_setup`.
    Ring,
    /// What is answered in a made-up [`World`](super::World): randomness, time, numbers.
    World,
    /// `sendfile`, `copy_file_range`, `splice`, `ioctl(FICLONE)`.
    Copy { from: i32, to: i32 },
}

impl Operation {
    /// Decodes a call. Fails only where the victim's own pointers lead nowhere.
    #[expect(clippy::many_single_char_names, reason = "the six arguments of a system call")]
    #[expect(clippy::too_many_lines, reason = "a line or two for each call")]
    pub(super) fn decode(call: &Syscall, memory: &Memory) -> io::Result<Self> {
        let [a, b, c, d, e, f] = call.arguments;
        let at_cwd = |address| path_at(memory, libc::AT_FDCWD, address);
        Ok(match call.sys {
            Sys::Read => Self::Read { fd: fd(a), offset: Offset::Position, length: c },
            Sys::Pread64 => Self::Read { fd: fd(a), offset: Offset::At(d), length: c },
            Sys::Readv => {
                Self::Read { fd: fd(a), offset: Offset::Position, length: total(memory, b, c)? }
            }
            Sys::Preadv | Sys::Preadv2 => {
                Self::Read { fd: fd(a), offset: positioned(d), length: total(memory, b, c)? }
            }
            Sys::Write => Self::Write { fd: fd(a), offset: Offset::Position, length: c },
            Sys::Pwrite64 => Self::Write { fd: fd(a), offset: Offset::At(d), length: c },
            Sys::Writev => {
                Self::Write { fd: fd(a), offset: Offset::Position, length: total(memory, b, c)? }
            }
            Sys::Pwritev | Sys::Pwritev2 => {
                Self::Write { fd: fd(a), offset: positioned(d), length: total(memory, b, c)? }
            }
            Sys::Fsync | Sys::Fdatasync | Sys::SyncFileRange => Self::Sync { fd: fd(a) },
            Sys::Ftruncate => Self::Truncate { fd: fd(a), length: b },
            Sys::Truncate => Self::TruncatePath { path: at_cwd(a)?, length: b },
            Sys::Fallocate => Self::Allocate { fd: fd(a), offset: c, length: d },
            Sys::FcntlLock => Self::Lock { fd: fd(a), lock: lock(memory, fd(b), c)? },
            Sys::Open => Self::Open { path: at_cwd(a)?, flags: fd(b) },
            Sys::Creat => {
                let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC;
                Self::Open { path: at_cwd(a)?, flags }
            }
            Sys::Openat => Self::Open { path: path_at(memory, fd(a), b)?, flags: fd(c) },
            Sys::Openat2 => {
                let flags = fd(memory.word(c)?);
                Self::Open { path: path_at(memory, fd(a), b)?, flags }
            }
            Sys::Close => Self::Close { fd: fd(a) },
            Sys::CloseRange => {
                let only_mark = c & u64::from(libc::CLOSE_RANGE_CLOEXEC) != 0;
                Self::CloseRange { first: low(a), last: low(b), only_mark }
            }
            Sys::Dup | Sys::FcntlDup => Self::Dup { from: fd(a), to: None },
            Sys::Dup2 | Sys::Dup3 => Self::Dup { from: fd(a), to: Some(fd(b)) },
            Sys::Unlink => Self::Unlink { path: at_cwd(a)? },
            Sys::Unlinkat => Self::Unlink { path: path_at(memory, fd(a), b)? },
            Sys::Rename => Self::Rename { from: at_cwd(a)?, to: at_cwd(b)?, exchange: false },
            Sys::Renameat | Sys::Renameat2 => {
                let has_flags = call.sys == Sys::Renameat2;
                let exchange = has_flags && low(e) & libc::RENAME_EXCHANGE != 0;
                let (from, to) = (path_at(memory, fd(a), b)?, path_at(memory, fd(c), d)?);
                Self::Rename { from, to, exchange }
            }
            Sys::Link => Self::Link { from: at_cwd(a)?, to: at_cwd(b)? },
            Sys::Linkat => {
                Self::Link { from: path_at(memory, fd(a), b)?, to: path_at(memory, fd(c), d)? }
            }
            Sys::Mmap => {
                let writable = fd(c) & libc::PROT_WRITE != 0;
                Self::Map { fd: fd(e), offset: f, length: b, writable }
            }
            Sys::Munmap => Self::Unmap { address: a, length: b },
            Sys::Flock => Self::Lock { fd: fd(a), lock: whole_file(low(b).cast_signed()) },
            Sys::Nanosleep | Sys::ClockNanosleep => Self::Sleep,
            Sys::Getrandom
            | Sys::ClockGettime
            | Sys::Gettimeofday
            | Sys::Time
            | Sys::Getpid
            | Sys::Gettid
            | Sys::Getppid => Self::World,
            Sys::IoUringSetup => Self::Ring,
            Sys::Sendfile => Self::Copy { from: fd(b), to: fd(a) },
            Sys::CopyFileRange | Sys::Splice => Self::Copy { from: fd(a), to: fd(c) },
            Sys::IoctlClone => Self::Copy { from: clone_source(memory, b, c)?, to: fd(a) },
        })
    }

    /// Whether the call closes `fd`, if that is open.
    #[must_use]
    pub fn closes(&self, fd: i32) -> bool {
        match *self {
            Self::Close { fd: closed } => fd == closed,
            Self::Dup { from, to: Some(to) } => fd == to && from != to,
            Self::CloseRange { first, last, only_mark: false } => {
                u32::try_from(fd).is_ok_and(|fd| (first..=last).contains(&fd))
            }
            _ => false,
        }
    }

    /// The descriptor that the call works on, if it names one.
    #[must_use]
    pub fn fd(&self) -> Option<i32> {
        match *self {
            Self::Read { fd, .. }
            | Self::Write { fd, .. }
            | Self::Sync { fd }
            | Self::Truncate { fd, .. }
            | Self::Allocate { fd, .. }
            | Self::Lock { fd, .. }
            | Self::Close { fd }
            | Self::Map { fd, .. } => Some(fd),
            Self::Dup { from, .. } => Some(from),
            Self::Copy { to, .. } => Some(to),
            Self::TruncatePath { .. }
            | Self::Open { .. }
            | Self::CloseRange { .. }
            | Self::Unlink { .. }
            | Self::Rename { .. }
            | Self::Link { .. }
            | Self::Unmap { .. }
            | Self::Ring
            | Self::World
            | Self::Sleep => None,
        }
    }
}

/// The low half of an argument, as the kernel reads an `int`.
fn fd(argument: u64) -> i32 {
    low(argument).cast_signed()
}

pub(super) fn low(argument: u64) -> u32 {
    let [a, b, c, d, ..] = argument.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The offset of `preadv2` and `pwritev2`: -1 is "at the position".
fn positioned(argument: u64) -> Offset {
    if argument == u64::MAX { Offset::Position } else { Offset::At(argument) }
}

/// One element of a vector of buffers: its address in the array, and its length.
pub(super) struct Piece {
    /// Where the length stands, to be overwritten.
    pub length_at: u64,
    /// Bytes.
    pub length: u64,
}

/// The elements of an `iovec` array. The kernel takes at most 1024.
pub(super) fn pieces(memory: &Memory, address: u64, count: u64) -> io::Result<Vec<Piece>> {
    (0..count.min(1024))
        .map(|index| {
            let length_at = address + 16 * index + 8;
            Ok(Piece { length_at, length: memory.word(length_at)? })
        })
        .collect()
}

fn total(memory: &Memory, address: u64, count: u64) -> io::Result<u64> {
    Ok(pieces(memory, address, count)?.iter().map(|piece| piece.length).sum())
}

fn path_at(memory: &Memory, directory: i32, address: u64) -> io::Result<PathArgument> {
    let path = PathBuf::from(OsString::from_vec(memory.path(address)?));
    Ok(PathArgument { directory, path })
}

/// `struct flock`: type, whence, start, length, with four bytes of padding after the first two.
fn lock(memory: &Memory, command: i32, address: u64) -> io::Result<LockCall> {
    let bytes: [u8; 24] = memory.bytes(address)?;
    let half = |at: usize| i16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let long = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        i64::from_ne_bytes(word)
    };
    let tests = matches!(command, libc::F_GETLK | libc::F_OFD_GETLK);
    let kind = if tests { LockKind::Test } else { LockKind::of(half(0)) };
    Ok(LockCall {
        kind,
        waits: matches!(command, libc::F_SETLKW | libc::F_OFD_SETLKW),
        of_open_file: matches!(command, libc::F_OFD_GETLK | libc::F_OFD_SETLK | libc::F_OFD_SETLKW),
        whence: half(2),
        start: long(8),
        length: long(16),
    })
}

/// `flock` as a lock of the open file on all of it.
fn whole_file(operation: i32) -> LockCall {
    let kind = match operation & !libc::LOCK_NB {
        libc::LOCK_SH => LockKind::Shared,
        libc::LOCK_EX => LockKind::Exclusive,
        _ => LockKind::Unlock,
    };
    let waits = operation & libc::LOCK_NB == 0 && kind != LockKind::Unlock;
    LockCall { kind, waits, of_open_file: true, whence: 0, start: 0, length: 0 }
}

/// `FICLONE` has the source as its argument, `FICLONERANGE` at the head of a structure.
fn clone_source(memory: &Memory, command: u64, argument: u64) -> io::Result<i32> {
    const FICLONE: u32 = 0x4004_9409;
    if low(command) == FICLONE { Ok(fd(argument)) } else { memory.word(argument).map(fd) }
}
