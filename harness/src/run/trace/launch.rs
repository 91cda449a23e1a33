//! Starts a command under the tracer: fork, wait to be seized, install the filter, exec.
//!
//! In: a [`Command`] and a seccomp program. Out: a process stopped at its first instruction,
//! traced, that dies with the supervisor. The child's side makes only async-signal-safe calls,
//! since the harness may have other threads.
#![expect(unsafe_code, reason = "fork, exec and what must happen between them")]

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::TraceError;
use super::command::Command;
use super::error::ptrace_advice;
use super::ptrace::{self, Resume, Status, Whose};

/// Descriptors that the child needs stand at or above this number, so that none is overwritten
/// while the given ones are placed below it.
const STAGING_FD: RawFd = 200;

/// What the child does, in order. The number is what it reports when a step fails.
const STEPS: [&str; 9] = [
    "make a process group",
    "unblock signals",
    "place the inherited descriptors",
    "enter the working directory",
    "fix the addresses",
    "choose the processors",
    "set no_new_privs",
    "install the seccomp filter",
    "execute the program",
];
/// The place of "install the seccomp filter" in [`STEPS`].
const FILTER_STEP: usize = 7;

/// Everything that the child needs, made before the fork: it must not allocate.
struct Prepared {
    program: CString,
    /// Kept for the pointers of `argv`.
    _arguments: Vec<CString>,
    _environment: Vec<CString>,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    directory: Option<CString>,
    /// (a copy of the descriptor, its number in the child)
    descriptors: Vec<(OwnedFd, RawFd)>,
    cpus: Option<libc::cpu_set_t>,
    fixed_addresses: bool,
    go: OwnedFd,
    /// The supervisor's end of that pipe: the child must not keep it open for itself.
    go_write: RawFd,
    failure: OwnedFd,
    filter: libc::sock_fprog,
}

/// Starts `command`. On return its main thread is stopped at the event of its exec.
pub(super) fn launch(
    command: &Command,
    filter: &mut [libc::sock_filter],
) -> Result<i32, TraceError> {
    let failed =
        |step, source| TraceError::Start { program: command.program.clone(), step, source };
    let (go_read, go_write) = pipe().map_err(|error| failed("make a pipe", error))?;
    let (failure_read, failure_write) = pipe().map_err(|error| failed("make a pipe", error))?;
    let prepared = prepare(command, filter, (go_read, go_write.as_raw_fd()), failure_write)
        .map_err(|error| failed("prepare the command", error))?;
    // SAFETY: the child calls only async-signal-safe functions until it executes or exits.
    let child = match unsafe { libc::fork() } {
        -1 => return Err(failed("fork", io::Error::last_os_error())),
        0 => in_child(&prepared),
        child => child,
    };
    drop(prepared);
    if let Err(errno) = ptrace::seize(child) {
        // The child waits for a byte; the closed pipe makes it leave.
        drop(go_write);
        reap(child);
        return Err(match errno {
            Errno::EPERM | Errno::ENOSYS => TraceError::NotPermitted {
                step: "PTRACE_SEIZE",
                advice: ptrace_advice(),
                source: errno,
            },
            errno => TraceError::supervise("seize the new process", child, errno),
        });
    }
    let mut guard = KillOnError { child, armed: true };
    write_byte(&go_write).map_err(|error| failed("wake the child", error))?;
    wait_for_exec(child, &failure_read, &command.program)?;
    guard.armed = false;
    Ok(child)
}

/// Kills the child when its start is given up half-way.
struct KillOnError {
    child: i32,
    armed: bool,
}

impl Drop for KillOnError {
    fn drop(&mut self) {
        if self.armed {
            // A child that is gone already has been reaped: then waiting says ECHILD and ends.
            if ptrace::wait(Whose::Thread(self.child), false) != Err(Errno::ECHILD) {
                ptrace::signal(self.child, libc::SIGKILL).ok();
                reap(self.child);
            }
        }
    }
}

fn reap(child: i32) {
    loop {
        match ptrace::wait(Whose::Thread(child), true) {
            Ok(Some((_, Status::Exited(_) | Status::Killed { .. }))) => return,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

/// Passes the child through to the event of its exec.
fn wait_for_exec(child: i32, failure: &OwnedFd, program: &Path) -> Result<(), TraceError> {
    let lost = |errno| TraceError::supervise("wait for the new process", child, errno);
    loop {
        match ptrace::wait(Whose::Thread(child), true) {
            Ok(Some((_, Status::Exited(_) | Status::Killed { .. }))) => {
                return Err(start_failure(failure, program));
            }
            Ok(Some((_, Status::Event { event: ptrace::event::EXEC, .. }))) => return Ok(()),
            // A write of the failure report may itself be a traced call.
            Ok(Some((_, Status::Event { .. } | Status::Call))) => {
                ptrace::resume(child, Resume::Run, 0).map_err(lost)?;
            }
            Ok(Some((_, Status::Signal(signal)))) => {
                ptrace::resume(child, Resume::Run, signal).map_err(lost)?;
            }
            Ok(None) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(lost(errno)),
        }
    }
}

/// What the child reported before it gave up: the step in the first byte, then errno.
fn start_failure(failure: &OwnedFd, program: &Path) -> TraceError {
    let mut report = [0_u8; 8];
    let read = nix::unistd::read(failure, &mut report).unwrap_or(0);
    let [step, _, _, _, errno @ ..] = report;
    let (place, errno) = (usize::from(step), i32::from_ne_bytes(errno));
    if read < report.len() || place >= STEPS.len() {
        let source = io::Error::other("the new process died before it could say why");
        return TraceError::Start { program: program.to_owned(), step: "start", source };
    }
    if place == FILTER_STEP {
        let (what, source) = ("seccomp filters (CONFIG_SECCOMP_FILTER)", Errno::from_raw(errno));
        return TraceError::Unsupported { what, source };
    }
    let source = io::Error::from_raw_os_error(errno);
    TraceError::Start { program: program.to_owned(), step: STEPS[place], source }
}

/// Both ends of a pipe, reading first.
pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: `ends` has room for the two descriptors that the call writes.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both descriptors are new and owned by nobody else.
    let (read, write) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    Ok((staged(&read)?, staged(&write)?))
}

/// A copy at a high number that exec closes.
fn staged(descriptor: &OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: the command duplicates an open descriptor and touches no memory.
    let copy = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, STAGING_FD) };
    if copy == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// The descriptors to give, staged; their numbers must lie below the staged ones.
fn given(command: &Command) -> io::Result<Vec<(OwnedFd, RawFd)>> {
    let place = |given: &super::command::Given| {
        if !(0..STAGING_FD).contains(&given.number) {
            let message = format!("descriptor numbers are 0 to {}", STAGING_FD - 1);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        Ok((staged(&given.descriptor)?, given.number))
    };
    command.descriptors.iter().map(place).collect()
}

fn write_byte(to: &OwnedFd) -> io::Result<()> {
    nix::unistd::write(to, &[1]).map(|_| ()).map_err(io::Error::from)
}

fn prepare(
    command: &Command,
    filter: &mut [libc::sock_filter],
    (go, go_write): (OwnedFd, RawFd),
    failure: OwnedFd,
) -> io::Result<Prepared> {
    let environment = environment(command);
    let program = find_program(command, &environment)?;
    let arguments = std::iter::once(command.program.as_os_str())
        .chain(command.arguments.iter().map(OsString::as_os_str))
        .map(c_string)
        .collect::<io::Result<Vec<_>>>()?;
    let environment = environment
        .into_iter()
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            c_string(&name)
        })
        .collect::<io::Result<Vec<_>>>()?;
    Ok(Prepared {
        program: c_string(program.as_os_str())?,
        argv: pointers(&arguments),
        envp: pointers(&environment),
        _arguments: arguments,
        _environment: environment,
        directory: command.directory.as_ref().map(|path| c_string(path.as_os_str())).transpose()?,
        descriptors: given(command)?,
        cpus: command.cpus.as_deref().map(cpu_set),
        fixed_addresses: command.fixed_addresses,
        go,
        go_write,
        failure,
        filter: libc::sock_fprog {
            len: u16::try_from(filter.len()).map_err(io::Error::other)?,
            filter: filter.as_mut_ptr(),
        },
    })
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(io::Error::from)
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}

fn environment(command: &Command) -> BTreeMap<OsString, OsString> {
    let mut environment = BTreeMap::new();
    if !command.clear_environment {
        environment.extend(std::env::vars_os());
    }
    for (name, value) in &command.environment {
        match value {
            Some(value) => environment.insert(name.clone(), value.clone()),
            None => environment.remove(name),
        };
    }
    environment
}

/// The file to execute: as given if it holds a slash, else the first match in the child's `PATH`.
fn find_program(
    command: &Command,
    environment: &BTreeMap<OsString, OsString>,
) -> io::Result<PathBuf> {
    if command.program.as_os_str().as_bytes().contains(&b'/') {
        return Ok(command.program.clone());
    }
    let path = environment.get(OsStr::new("PATH")).cloned().unwrap_or_default().into_vec();
    let mut places =
        path.split(|&byte| byte == b':').map(|place| Path::new(OsStr::from_bytes(place)));
    places
        .find_map(|place| {
            let candidate = place.join(&command.program);
            nix::unistd::access(&candidate, nix::unistd::AccessFlags::X_OK).ok()?;
            candidate.is_file().then_some(candidate)
        })
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such program in PATH"))
}

fn cpu_set(cpus: &[usize]) -> libc::cpu_set_t {
    // SAFETY: an all-zero set is the empty set.
    let mut set = unsafe { MaybeUninit::<libc::cpu_set_t>::zeroed().assume_init() };
    for &cpu in cpus {
        // SAFETY: the macro checks the number against the size of the set.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    set
}

/// The child's side of the fork. Does not return.
fn in_child(prepared: &Prepared) -> ! {
    let step = match child_steps(prepared) {
        Ok(()) => STEPS.len() - 1,
        Err(step) => step,
    };
    let errno = Errno::last_raw().to_ne_bytes();
    let mut report = [0_u8; 8];
    report[0] = u8::try_from(step).unwrap_or(u8::MAX);
    report[4..].copy_from_slice(&errno);
    // SAFETY: the descriptor is open, the buffer is alive, and _exit ends the process at once.
    unsafe {
        libc::write(prepared.failure.as_raw_fd(), report.as_ptr().cast(), report.len());
        libc::_exit(127)
    }
}

/// Runs the steps. `Err` holds the place in [`STEPS`] of the one that failed, with errno set; `Ok`
/// means that the last one, exec, came back.
fn child_steps(prepared: &Prepared) -> Result<(), usize> {
    // SAFETY: only async-signal-safe calls on memory that was prepared before the fork; this is
    // the only thread of the child.
    unsafe {
        let mut byte = 0_u8;
        libc::close(prepared.go_write);
        // End of file: the supervisor gave up.
        if libc::read(prepared.go.as_raw_fd(), (&raw mut byte).cast(), 1) != 1 {
            libc::_exit(127);
        }
        check(0, libc::setpgid(0, 0))?;
        let mut none = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        check(1, libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut()))?;
        // The Rust runtime ignores SIGPIPE, and an ignored signal stays ignored across exec.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        place_descriptors(prepared).map_err(|()| 2_usize)?;
        if let Some(directory) = &prepared.directory {
            check(3, libc::chdir(directory.as_ptr()))?;
        }
        if prepared.fixed_addresses {
            check(4, libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong))?;
        }
        if let Some(cpus) = &prepared.cpus {
            check(5, libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), cpus))?;
        }
        let (no, yes): (libc::c_ulong, libc::c_ulong) = (0, 1);
        check(6, libc::prctl(libc::PR_SET_NO_NEW_PRIVS, yes, no, no, no))?;
        let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
        check(7, libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const prepared.filter))?;
        libc::execve(prepared.program.as_ptr(), prepared.argv.as_ptr(), prepared.envp.as_ptr());
    }
    Ok(())
}

fn check(step: usize, answer: libc::c_int) -> Result<(), usize> {
    if answer == -1 { Err(step) } else { Ok(()) }
}

/// Puts every given descriptor at its number.
///
/// # Safety
///
/// Only in a child that is about to execute: the descriptors of this process are rearranged.
unsafe fn place_descriptors(prepared: &Prepared) -> Result<(), ()> {
    for (staged, number) in &prepared.descriptors {
        // SAFETY: the caller vouches that nothing relies on the numbers any more; `dup2` leaves
        // the new descriptor open across exec.
        if unsafe { libc::dup2(staged.as_raw_fd(), *number) } == -1 {
            return Err(());
        }
    }
    Ok(())
}
