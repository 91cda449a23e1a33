//! Forking writers off a process that has one thread and no connection.
#![expect(
    unsafe_code,
    reason = "fork(2), prctl(2), signal(2) and inherited descriptors have no safe form"
)]

use nix::sys::signal::{SigHandler, Signal};
use nix::unistd::{ForkResult, Pid};
use std::fs::File;
use std::os::fd::{BorrowedFd, FromRawFd as _};

/// Which side of a fork this is.
pub(crate) enum Side {
    /// The zygote, with its new child.
    Parent(Pid),
    /// The child. It dies with the zygote.
    Child,
}

/// Forks. The child is killed by the kernel when this process ends, however that happens.
pub(crate) fn fork() -> nix::Result<Side> {
    let parent = nix::unistd::getpid();
    // SAFETY: the zygote has a single thread, so the child gets every lock in a sound state; no
    // SQLite connection is open in it, so none is carried over.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Side::Parent(child)),
        ForkResult::Child => {
            die_with_parent(parent)?;
            Ok(Side::Child)
        }
    }
}

/// Has the kernel take ended children away, with no signal and nothing to wait for.
pub(crate) fn forget_children() -> nix::Result<()> {
    children_are(SigHandler::SigIgn)
}

/// As it is in a process that nobody has changed.
pub(crate) fn remember_children() -> nix::Result<()> {
    children_are(SigHandler::SigDfl)
}

fn children_are(handler: SigHandler) -> nix::Result<()> {
    // SAFETY: neither disposition runs any code of ours.
    unsafe { nix::sys::signal::signal(Signal::SIGCHLD, handler) }.map(drop)
}

/// Takes over a descriptor that this process was started with.
pub(crate) fn adopt_fd(number: i32) -> nix::Result<File> {
    nix::fcntl::fcntl(
        // SAFETY: the descriptor is only borrowed for the question of whether it is open.
        unsafe { BorrowedFd::borrow_raw(number) },
        nix::fcntl::FcntlArg::F_GETFD,
    )?;
    // SAFETY: it is open, and by the table of descriptors at the caller nothing else here owns it.
    Ok(unsafe { File::from_raw_fd(number) })
}

/// Ends this process where it stands: nothing is closed, flushed or run.
pub(crate) fn end_at_once(code: i32) -> ! {
    // SAFETY: `_exit` touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// Writes `bytes` to a descriptor that this process was given, in one call.
///
/// That nobody takes them is told by their absence: there is nowhere else to tell it.
pub(crate) fn write_to(fd: i32, bytes: &[u8]) {
    // SAFETY: only the number is used, for one call; if it is not open the call fails.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    while nix::unistd::write(fd, bytes) == Err(nix::Error::EINTR) {}
}

/// Has the kernel kill this process when its parent, `parent`, ends.
pub(crate) fn die_with_parent(parent: Pid) -> nix::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes one number and touches no memory.
    let set = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    nix::Error::result(set)?;
    // The parent may have ended before the call; then nobody would send the signal.
    if nix::unistd::getppid() == parent { Ok(()) } else { Err(nix::Error::ESRCH) }
}
