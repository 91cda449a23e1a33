//! What can stop the supervisor itself from working, split by what the caller does next.
//!
//! A victim that misbehaves, dies or hangs is never an error here: that is what a run is for, and
//! it is told in the [`Run`](super::Run). An error means that nothing was learnt about the victim.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

use super::ProcessId;

/// A failure of the tracing machinery, never of the traced program.
///
/// The variants are split by the *caller's next move*: change what the machine permits
/// ([`NotPermitted`](Self::NotPermitted)), use another machine
/// ([`Unsupported`](Self::Unsupported)), correct the command ([`Start`](Self::Start),
/// [`ForeignAbi`](Self::ForeignAbi)), or report a fault of the harness
/// ([`Supervise`](Self::Supervise)).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// This process may not trace another. Permit it as `advice` says, then repeat.
    #[error("tracing is not permitted here ({step} was refused): {advice}")]
    NotPermitted {
        /// The operation that was refused.
        step: &'static str,
        /// What to change, by the settings found on this machine.
        advice: String,
        /// What the kernel answered.
        #[source]
        source: Errno,
    },

    /// The kernel lacks something that tracing needs. No setting of this machine helps.
    #[error("this kernel cannot do it: {what}")]
    Unsupported {
        /// What is missing.
        what: &'static str,
        /// What the kernel answered.
        #[source]
        source: Errno,
    },

    /// The command did not start. None of its code has run.
    #[error("cannot start {}: {step} failed", program.display())]
    Start {
        /// The program as asked for.
        program: PathBuf,
        /// The step that failed.
        step: &'static str,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },

    /// A program makes system calls of another architecture (32-bit x86, x32), which cannot be
    /// told apart here. Everything was killed: going on would have meant not seeing its calls.
    #[error("process {process} ({program}) makes system calls of another architecture")]
    ForeignAbi {
        /// The process.
        process: ProcessId,
        /// Its command line.
        program: String,
    },

    /// The supervisor failed. All its processes are killed when it is dropped.
    #[error("the supervisor failed to {step} (thread {thread})")]
    Supervise {
        /// What it was doing.
        step: &'static str,
        /// The thread it did it to; 0 if to none.
        thread: i32,
        /// What the kernel answered.
        #[source]
        source: Errno,
    },
}

impl TraceError {
    pub(super) fn supervise(step: &'static str, thread: i32, source: Errno) -> Self {
        Self::Supervise { step, thread, source }
    }
}

/// Which settings of this machine stand in the way of ptrace, as advice to a person.
///
/// Reads `kernel.yama.ptrace_scope` and the seccomp mode of this thread; both are named in the
/// answer only where they can be the cause.
pub(super) fn ptrace_advice() -> String {
    let mut advice = Vec::new();
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    match scope.trim() {
        "2" => advice.push(
            "kernel.yama.ptrace_scope is 2: run with CAP_SYS_PTRACE or `sysctl \
             kernel.yama.ptrace_scope=1`"
                .to_owned(),
        ),
        "3" => advice.push(
            "kernel.yama.ptrace_scope is 3, which forbids ptrace until the next boot: set it \
             to 1 or less in /etc/sysctl.d and restart the machine"
                .to_owned(),
        ),
        _ => {}
    }
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    if status_field(&status, "Seccomp:") == Some("2") {
        advice.push(
            "a seccomp filter is in force, as in a container: allow ptrace in its profile \
             (`--cap-add=SYS_PTRACE` or `--security-opt seccomp=unconfined`)"
                .to_owned(),
        );
    }
    if advice.is_empty() {
        advice.push(
            "allow ptrace for this process: CAP_SYS_PTRACE, kernel.yama.ptrace_scope of at most \
             1, and a container profile that does not filter it"
                .to_owned(),
        );
    }
    advice.join("; ")
}

/// The value of one line of a `/proc/*/status` file.
pub(super) fn status_field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}
