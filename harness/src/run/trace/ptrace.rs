//! The kernel's tracing interface: `ptrace(2)` and `waitpid(2)`, and the unsafe code they need.
//!
//! Thin and without memory: each function is one system call on one thread. What the calls are
//! made for is decided elsewhere. `nix` is not used for these because its wait status refuses
//! real-time signals, and one refused status would lose a thread for ever.
#![expect(unsafe_code, reason = "ptrace and waitpid hand raw pointers to the kernel")]

use std::ffi::c_void;
use std::mem::{MaybeUninit, size_of};

use nix::errno::Errno;

/// `NT_PRSTATUS` and `NT_ARM_SYSTEM_CALL` of `linux/elf.h`.
#[derive(Clone, Copy, Debug)]
pub(super) enum RegisterSet {
    /// The general registers.
    General,
    /// The number of the pending call (aarch64).
    #[cfg_attr(target_arch = "x86_64", allow(dead_code, reason = "a register set of aarch64"))]
    SystemCall,
}

impl RegisterSet {
    fn note(self) -> usize {
        match self {
            Self::General => 1,
            Self::SystemCall => 0x404,
        }
    }
}

/// `struct ptrace_syscall_info`, with its union as plain words.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawCallInfo {
    op: u8,
    pad: [u8; 3],
    arch: u32,
    instruction_pointer: u64,
    stack_pointer: u64,
    words: [u64; 8],
}

/// What a thread does at a stop that concerns a system call.
#[derive(Clone, Copy, Debug)]
pub(super) enum CallInfo {
    /// It stands before a call that the filter chose.
    Filtered {
        /// The index that the filter gave to the call.
        index: u16,
        /// The arguments.
        arguments: [u64; 6],
    },
    /// It has left a call.
    Left {
        /// The result, `-errno` on failure.
        result: i64,
    },
    /// Neither of these.
    Elsewhere,
}

/// How a thread goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resume {
    /// To the next call that the filter chooses.
    Run,
    /// The same, and stop where the present call is left.
    ToExit,
    /// For one instruction.
    Step,
    /// Stay stopped, but hear of SIGCONT (`PTRACE_LISTEN`).
    Listen,
}

/// What `waitpid` told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// The process ended by itself.
    Exited(i32),
    /// A signal ended it.
    Killed { signal: i32, core: bool },
    /// A signal is about to be delivered.
    Signal(i32),
    /// A stop at the entry or exit of a call.
    Call,
    /// A ptrace event, with the signal that came with it.
    Event { event: i32, signal: i32 },
}

/// `PTRACE_EVENT_*` of `linux/ptrace.h`.
pub(super) mod event {
    pub(in super::super) use libc::{
        PTRACE_EVENT_CLONE as CLONE, PTRACE_EVENT_EXEC as EXEC, PTRACE_EVENT_FORK as FORK,
        PTRACE_EVENT_SECCOMP as SECCOMP, PTRACE_EVENT_STOP as STOP, PTRACE_EVENT_VFORK as VFORK,
    };
}

/// The options of every traced thread. Threads and children inherit them with the tracing itself.
///
/// `PTRACE_O_TRACEEXIT` is left out: the wait status tells how a process ended, and the stop it
/// adds to every thread's end would tell nothing more.
const OPTIONS: i32 = libc::PTRACE_O_EXITKILL
    | libc::PTRACE_O_TRACESECCOMP
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACEEXEC
    | libc::PTRACE_O_TRACESYSGOOD;

/// Begins to trace `thread`. It is not stopped by this.
pub(super) fn seize(thread: i32) -> Result<(), Errno> {
    request(libc::PTRACE_SEIZE, thread, 0, word(OPTIONS))
}

/// Lets a stopped thread go on, delivering `signal` unless it is 0.
pub(super) fn resume(thread: i32, how: Resume, signal: i32) -> Result<(), Errno> {
    let operation = match how {
        Resume::Run => libc::PTRACE_CONT,
        Resume::ToExit => libc::PTRACE_SYSCALL,
        Resume::Step => libc::PTRACE_SINGLESTEP,
        Resume::Listen => libc::PTRACE_LISTEN,
    };
    request(operation, thread, 0, word(signal))
}

/// The message of the present event: the number of a new thread, or of the one that called exec.
pub(super) fn event_message(thread: i32) -> Result<i32, Errno> {
    let mut message: libc::c_ulong = 0;
    request(libc::PTRACE_GETEVENTMSG, thread, 0, std::ptr::from_mut(&mut message).addr())?;
    Ok(i32::try_from(message).unwrap_or(0))
}

/// What call the stopped thread is at.
pub(super) fn call_info(thread: i32) -> Result<CallInfo, Errno> {
    const GET_SYSCALL_INFO: libc::c_uint = 0x420e;
    const EXIT: u8 = 2;
    const SECCOMP: u8 = 3;
    let mut raw = RawCallInfo::default();
    let at = std::ptr::from_mut(&mut raw).addr();
    request(GET_SYSCALL_INFO, thread, size_of::<RawCallInfo>(), at)?;
    Ok(match raw.op {
        EXIT => CallInfo::Left { result: raw.words[0].cast_signed() },
        SECCOMP => {
            let [_number, arguments @ .., verdict] = raw.words;
            CallInfo::Filtered { index: low_bits(verdict), arguments }
        }
        _ => CallInfo::Elsewhere,
    })
}

/// The lowest 16 bits: what the filter attached to its verdict.
fn low_bits(word: u64) -> u16 {
    let [first, second, ..] = word.to_ne_bytes();
    u16::from_ne_bytes([first, second])
}

/// Reads a register set of a stopped thread.
///
/// `T` must be a plain structure of integers of the layout that the kernel gives this set.
pub(super) fn registers<T: Copy>(thread: i32, set: RegisterSet) -> Result<T, Errno> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut vector =
        libc::iovec { iov_base: value.as_mut_ptr().cast::<c_void>(), iov_len: size_of::<T>() };
    let at = std::ptr::from_mut(&mut vector).addr();
    request(libc::PTRACE_GETREGSET, thread, set.note(), at)?;
    // SAFETY: the memory was zeroed and then filled by the kernel; T is a structure of integers,
    // for which every bit pattern is a value.
    Ok(unsafe { value.assume_init() })
}

/// Writes a register set of a stopped thread.
pub(super) fn set_registers<T: Copy>(
    thread: i32,
    set: RegisterSet,
    value: &T,
) -> Result<(), Errno> {
    let base = std::ptr::from_ref(value).cast_mut().cast::<c_void>();
    let mut vector = libc::iovec { iov_base: base, iov_len: size_of::<T>() };
    let at = std::ptr::from_mut(&mut vector).addr();
    request(libc::PTRACE_SETREGSET, thread, set.note(), at)
}

/// Sets a debug register of a stopped thread.
#[cfg(target_arch = "x86_64")]
pub(super) fn set_debug_register(thread: i32, index: usize, value: u64) -> Result<(), Errno> {
    let place = std::mem::offset_of!(libc::user, u_debugreg) + index * size_of::<u64>();
    let value = usize::try_from(value).map_err(|_| Errno::EINVAL)?;
    request(libc::PTRACE_POKEUSER, thread, place, value)
}

/// Whether a watchpoint stops a process where it should: a child that touches a word of ours.
pub(super) fn watchpoint_works(
    watch: impl Fn(i32, Option<u64>) -> Result<(), Errno>,
) -> Result<bool, Errno> {
    static WORD: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let address = std::ptr::from_ref(&WORD).addr() as u64;
    // SAFETY: the child makes only async-signal-safe calls and touches one atomic.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: as above; the process ends here.
        unsafe {
            libc::raise(libc::SIGSTOP);
            WORD.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            libc::_exit(0);
        }
    }
    if child < 0 {
        return Err(Errno::last());
    }
    let (mut set, mut hit) = (Ok(()), false);
    let seized = seize(child);
    loop {
        match wait(Whose::Thread(child), true) {
            Ok(Some((_, Status::Exited(_) | Status::Killed { .. }))) => break,
            Ok(Some((_, Status::Signal(libc::SIGTRAP)))) => {
                hit = true;
                watch(child, None).ok();
                resume(child, Resume::Run, 0).ok();
            }
            Ok(Some((_, Status::Signal(libc::SIGSTOP) | Status::Event { .. }))) => {
                if set.is_ok() && !hit {
                    set = watch(child, Some(address));
                }
                // Without the stop: it is let run.
                resume(child, Resume::Run, 0).ok();
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => {
                signal(child, libc::SIGKILL).ok();
                return Err(errno);
            }
        }
        if seized.is_err() {
            signal(child, libc::SIGKILL).ok();
        }
    }
    seized.and(set).map(|()| hit)
}

/// One ptrace request. Pointers are passed as addresses, so the caller keeps the memory alive and
/// of the size that the request asks for.
fn request(operation: libc::c_uint, thread: i32, address: usize, data: usize) -> Result<(), Errno> {
    // SAFETY: every caller above passes either a number or the address of a live local that is as
    // large as the kernel's structure for that request; the kernel writes nowhere else.
    let answer = unsafe {
        libc::ptrace(
            operation,
            thread,
            std::ptr::with_exposed_provenance_mut::<c_void>(address),
            std::ptr::with_exposed_provenance_mut::<c_void>(data),
        )
    };
    if answer == -1 { Err(Errno::last()) } else { Ok(()) }
}

/// A small non-negative number as the machine word that ptrace takes.
fn word(value: i32) -> usize {
    usize::try_from(value).unwrap_or(0)
}

/// Whose status to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// Any child or traced thread of the calling thread, and of no other thread.
    Mine,
    /// This one.
    Thread(i32),
}

/// Waits for a change of state. `None` if none is there yet and `block` is false.
///
/// # Errors
///
/// `ECHILD` where there is nobody to wait for, `EINTR` when a signal came in while blocked.
pub(super) fn wait(whose: Whose, block: bool) -> Result<Option<(i32, Status)>, Errno> {
    let (target, only_mine) = match whose {
        Whose::Mine => (-1, libc::__WNOTHREAD),
        Whose::Thread(thread) => (thread, libc::__WNOTHREAD),
    };
    let flags = libc::__WALL | only_mine | if block { 0 } else { libc::WNOHANG };
    let mut status = 0;
    // SAFETY: `status` is a live integer for the kernel to write to.
    let thread = unsafe { libc::waitpid(target, &raw mut status, flags) };
    match thread {
        -1 => Err(Errno::last()),
        0 => Ok(None),
        _ => Ok(Some((thread, decode(status)))),
    }
}

fn decode(status: i32) -> Status {
    const CALL_STOP: i32 = libc::SIGTRAP | 0x80;
    if libc::WIFEXITED(status) {
        return Status::Exited(libc::WEXITSTATUS(status));
    }
    if libc::WIFSIGNALED(status) {
        let core = libc::WCOREDUMP(status);
        return Status::Killed { signal: libc::WTERMSIG(status), core };
    }
    match (status >> 16, libc::WSTOPSIG(status)) {
        (0, CALL_STOP) => Status::Call,
        (0, signal) => Status::Signal(signal),
        (event, signal) => Status::Event { event, signal },
    }
}

/// Sends `signal` to a process. `ESRCH` counts as done: it is dead already.
///
/// Only for a process whose end this supervisor has not yet seen: until then its number cannot
/// have gone to another.
pub(super) fn signal(process: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: kill takes two numbers and touches no memory.
    match unsafe { libc::kill(process, signal) } {
        0 => Ok(()),
        _ => match Errno::last() {
            Errno::ESRCH => Ok(()),
            other => Err(other),
        },
    }
}

/// Whether two processes share one table of open files. `None` if the kernel cannot tell.
pub(super) fn same_files(first: i32, second: i32) -> Option<bool> {
    const KCMP_FILES: i32 = 2;
    // SAFETY: kcmp compares two kernel objects by number and touches no memory of ours.
    let answer = unsafe { libc::syscall(libc::SYS_kcmp, first, second, KCMP_FILES, 0, 0) };
    (answer >= 0).then_some(answer == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_of_a_seccomp_stop_is_told_from_a_plain_trap() {
        let trap = 0x7f | (libc::SIGTRAP << 8);
        let event = Status::Event { event: event::SECCOMP, signal: libc::SIGTRAP };
        assert_eq!(decode(trap | (event::SECCOMP << 16)), event);
        assert_eq!(decode(trap), Status::Signal(libc::SIGTRAP));
        assert_eq!(decode(trap | 0x8000), Status::Call);
    }

    #[test]
    fn real_time_signal_is_not_lost() {
        let signal = libc::SIGRTMIN() + 3;
        assert_eq!(decode(0x7f | (signal << 8)), Status::Signal(signal));
        assert_eq!(decode(signal), Status::Killed { signal, core: false });
    }

    #[test]
    fn call_info_has_the_size_of_the_kernels_structure() {
        assert_eq!(size_of::<RawCallInfo>(), 88);
    }
}
