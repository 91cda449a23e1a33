//! The processes: one zygote a lane, its children, and that none of them outlives us.
//!
//! Children are held by pidfd, so that a signal can reach no other process, whatever becomes of the
//! number. The zygote dies with the lane's thread, its children die with the zygote (both by
//! `PR_SET_PDEATHSIG`), and all are in a process group of their own, so that a Ctrl-C at the
//! terminal reaches the harness alone.

use super::engine::Engine;
use super::error::RunError;
use killpoint_worker::ARGV0;
use killpoint_worker::wire::{Cycle, Exit, Order, Reply};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// How long a zygote may take to answer. Forking and reaping take milliseconds.
const REPLY_DEADLINE: Duration = Duration::from_secs(30);

/// Whether this process was started as a zygote of workers; then it is to run
/// [`killpoint_worker::main`] and nothing else.
#[must_use]
pub fn is_worker(argv0: &str) -> bool {
    argv0 == ARGV0
}

/// The process that forks the writers of a lane.
#[derive(Debug)]
pub(super) struct Zygote {
    process: std::process::Child,
    replies: BufReader<UnixStream>,
}

/// One writer.
#[derive(Debug)]
pub(super) struct Child {
    pidfd: OwnedFd,
}

impl Zygote {
    /// Starts one on `engine`; what its children print on a panic goes to `stderr`.
    pub(super) fn start(
        engine: &Engine,
        (memory, ops_max): (&OwnedFd, usize),
        stderr: &Path,
    ) -> Result<Self, RunError> {
        let system = |what| move |source| RunError::System { what, source };
        let memory = memory.try_clone().map_err(system("a descriptor"))?;
        let (ours, theirs) = UnixStream::pair().map_err(system("a socket"))?;
        ours.set_read_timeout(Some(REPLY_DEADLINE)).map_err(system("a socket's timeout"))?;
        let log = File::create(stderr).map_err(|error| RunError::place(stderr, error))?;
        let process = engine
            .command()
            .args([ops_max.to_string(), std::process::id().to_string()])
            .process_group(0)
            .stdin(Stdio::from(memory))
            .stdout(Stdio::from(OwnedFd::from(theirs)))
            .stderr(Stdio::from(log))
            .spawn()
            .map_err(system("starting the zygote of the workers"))?;
        Ok(Self { process, replies: BufReader::new(ours) })
    }

    /// Forks those processes of a cycle that are in `slots`, and gives them in that order.
    pub(super) fn fork(&mut self, cycle: &Cycle, slots: &[usize]) -> Result<Vec<Child>, RunError> {
        match self.ask(&Order::Fork { cycle: cycle.clone(), slots: slots.to_vec() })? {
            Reply::Forked(pids) => pids.into_iter().map(Child::of).collect(),
            Reply::Failed(why) => Err(RunError::Zygote(why)),
            Reply::Reaped(_) => Err(RunError::Zygote("an answer to another order".to_owned())),
        }
    }

    /// How each child ended; to be asked when all have.
    pub(super) fn reap(&mut self) -> Result<Vec<Exit>, RunError> {
        match self.ask(&Order::Reap)? {
            Reply::Reaped(exits) => Ok(exits),
            Reply::Failed(why) => Err(RunError::Zygote(why)),
            Reply::Forked(_) => Err(RunError::Zygote("an answer to another order".to_owned())),
        }
    }

    fn ask(&mut self, order: &Order) -> Result<Reply, RunError> {
        let fail = |error: &dyn std::fmt::Display| RunError::Zygote(error.to_string());
        let mut line = serde_json::to_vec(order).map_err(|error| fail(&error))?;
        line.push(b'\n');
        self.replies.get_mut().write_all(&line).map_err(|error| fail(&error))?;
        let mut answer = String::new();
        let bytes = self.replies.read_line(&mut answer).map_err(|error| fail(&error))?;
        if bytes == 0 {
            return Err(RunError::Zygote("it ended before it answered".to_owned()));
        }
        serde_json::from_str(&answer).map_err(|error| fail(&error))
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        // Its children die with it. An error means that it is gone already.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Child {
    fn of(pid: i32) -> Result<Self, RunError> {
        let pid = Pid::from_raw(pid)
            .ok_or_else(|| RunError::Zygote(format!("{pid} is no process id")))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())
            .map_err(|errno| RunError::System { what: "pidfd_open", source: errno.into() })?;
        Ok(Self { pidfd })
    }

    /// Sends SIGKILL; that it is gone already is no error.
    pub(super) fn kill(&self) -> Result<(), RunError> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(RunError::System { what: "pidfd_send_signal", source: errno.into() }),
        }
    }

    /// Stops it. Whether it was there to be stopped.
    pub(super) fn stop(&self) -> bool {
        pidfd_send_signal(&self.pidfd, Signal::STOP).is_ok()
    }

    /// Lets it go on; that it is gone already is no error.
    pub(super) fn go_on(&self) {
        pidfd_send_signal(&self.pidfd, Signal::CONT).ok();
    }

    /// Whether it has ended.
    pub(super) fn is_gone(&self) -> bool {
        self.await_exit(Instant::now()).unwrap_or(false)
    }

    /// Waits for it to end; says whether it did by the deadline.
    pub(super) fn await_exit(&self, deadline: Instant) -> Result<bool, RunError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(ready) => return Ok(ready > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => {
                    return Err(RunError::System { what: "poll", source: errno.into() });
                }
            }
        }
    }
}
