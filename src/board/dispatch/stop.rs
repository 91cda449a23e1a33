//! Ending a worker with all that it started: SIGTERM, some time, SIGKILL, and a look that they are
//! gone.
//!
//! The tree is what descends from the worker, what shares its process group or session where it
//! leads them, and what carries its claim in the environment: so a process that was started in the
//! background, or has left group and session, is found too. Each is known by its id and the time it
//! started, and is signalled through a descriptor of its own, so that no other process of the same
//! id is ever hit.
//!
//! In: a process, and how its claim is spelt. Out: whether all are gone. Not here: the board.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::board::process::{Process, Stat};

/// The variable by which the processes of a claim are known.
pub const CLAIM_VARIABLE: &str = "HARDBOARD_CLAIM";

/// How long one look waits for somebody to end.
const LOOK: Duration = Duration::from_millis(20);

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// All are gone.
    Confirmed,
    /// These are not: waiting for a disk that does not answer, or not to be signalled by us.
    Survives(Vec<i32>),
}

/// Stops the worker and its tree. `root`: its process, where it is known; `claim`: the value of
/// [`CLAIM_VARIABLE`] in its environment.
pub(super) fn stop(
    root: Option<Process>,
    claim: &str,
    grace: Duration,
    confirm: Duration,
) -> Stopped {
    let mut tree = Tree { root, claim, known: BTreeMap::new() };
    tree.signal_and_wait(Signal::TERM, grace);
    // What is started while others end is found by the next look, so a few rounds may be needed.
    let alive = tree.signal_and_wait(Signal::KILL, confirm);
    if alive.is_empty() { Stopped::Confirmed } else { Stopped::Survives(alive) }
}

/// The processes that carry that claim in their environment: what is left of a worker of which
/// nothing else is known. The oldest first.
pub(super) fn of_claim(claim: &str) -> Vec<Process> {
    let tree = Tree { root: None, claim, known: BTreeMap::new() };
    let mut found: Vec<Process> = tree
        .look()
        .into_iter()
        .filter_map(|(pid, started)| {
            Process::of(pid).ok().filter(|process| process.started_ticks == started)
        })
        .collect();
    found.sort_by_key(|process| (process.started_ticks, process.pid));
    found
}

struct Tree<'a> {
    root: Option<Process>,
    claim: &'a str,
    /// Everybody who was ever seen to belong to it: id, and when it started.
    known: BTreeMap<i32, i64>,
}

impl Tree<'_> {
    /// Signals all, again and again whoever is new, until none is left or the time is up. Gives
    /// those that are left.
    fn signal_and_wait(&mut self, signal: Signal, time: Duration) -> Vec<i32> {
        let deadline = Instant::now() + time;
        let mut signalled = BTreeMap::new();
        loop {
            let alive = self.look();
            self.known.extend(&alive);
            if alive.is_empty() {
                return Vec::new();
            }
            let mut descriptors = Vec::new();
            for (pid, started) in &alive {
                let again = signal == Signal::KILL || !signalled.contains_key(pid);
                descriptors.extend(signal_one(*pid, *started, again.then_some(signal)));
                signalled.insert(*pid, *started);
            }
            if Instant::now() >= deadline {
                return alive.into_keys().collect();
            }
            let mut ends: Vec<_> =
                descriptors.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
            let left = deadline.saturating_duration_since(Instant::now()).min(LOOK);
            let timeout = Timespec::try_from(left).ok();
            // Whatever it says, the next look decides.
            poll(&mut ends, timeout.as_ref()).ok();
        }
    }

    /// Who of the tree is there and has not ended.
    fn look(&self) -> BTreeMap<i32, i64> {
        let all = all_processes();
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let mut members: BTreeMap<i32, i64> = BTreeMap::new();
        for (pid, stat) in &all {
            let known = self.known.get(pid) == Some(&stat.started_ticks);
            let is_root = self
                .root
                .is_some_and(|root| (root.pid, root.started_ticks) == (*pid, stat.started_ticks));
            if known || is_root || (*pid != own && carries(*pid, self.claim)) {
                members.insert(*pid, stat.started_ticks);
            }
        }
        if let Some(root) = self.root {
            // Groups and sessions keep the number of their leader even when that has ended, and
            // while they do no new process gets it. So it is enough that the leader was the root.
            let led = |stat: &Stat| stat.group == root.pid || stat.session == root.pid;
            let of_root = self.known.contains_key(&root.pid) || members.contains_key(&root.pid);
            if of_root {
                let led = all.iter().filter(|(_, stat)| led(stat));
                members.extend(led.map(|(pid, stat)| (*pid, stat.started_ticks)));
            }
        }
        // Parents may come after their children: go on until nobody is added.
        loop {
            let before = members.len();
            for (pid, stat) in &all {
                if members.contains_key(&stat.parent) {
                    members.insert(*pid, stat.started_ticks);
                }
            }
            if members.len() == before {
                break;
            }
        }
        members.retain(|pid, _| *pid != own && all.get(pid).is_some_and(|stat| !stat.has_ended()));
        members
    }
}

/// Signals that very process, and gives a descriptor that is readable once it has ended.
fn signal_one(pid: i32, started: i64, signal: Option<Signal>) -> Option<std::os::fd::OwnedFd> {
    let descriptor = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // The descriptor is of whoever has that id now. If that is not who was meant, it has ended.
    if Stat::of(pid).is_none_or(|stat| stat.started_ticks != started) {
        return None;
    }
    if let Some(signal) = signal {
        // One that may not be signalled is still there at the end, and then told of.
        pidfd_send_signal(&descriptor, signal).ok();
    }
    Some(descriptor)
}

fn all_processes() -> BTreeMap<i32, Stat> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, Stat::of(pid)?)))
        .collect()
}

fn carries(pid: i32, claim: &str) -> bool {
    environment_of(pid).is_ok_and(|environment| {
        environment.split(|byte| *byte == 0).any(|variable| {
            variable
                .strip_prefix(CLAIM_VARIABLE.as_bytes())
                .and_then(|rest| rest.strip_prefix(b"="))
                .is_some_and(|value| value == claim.as_bytes())
        })
    })
}

fn environment_of(pid: i32) -> io::Result<Vec<u8>> {
    /// One that is just beginning to run another program has none for that moment.
    const LOOKS: u32 = 5;
    let path = format!("/proc/{pid}/environ");
    for _ in 1..LOOKS {
        let environment = fs::read(&path)?;
        if !environment.is_empty() {
            return Ok(environment);
        }
        std::thread::yield_now();
    }
    fs::read(path)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::process::CommandExt as _;
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::board::process::Liveness;

    const GRACE: Duration = Duration::from_millis(300);
    const CONFIRM: Duration = Duration::from_secs(20);

    /// A shell that has started others, and what it printed of them: one id a line.
    fn tree(claim: &str, script: &str, lines: usize) -> (Child, Vec<Process>) {
        let mut child = Command::new("sh")
            .args(["-c", script])
            .env(CLAIM_VARIABLE, claim)
            .process_group(0)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let told = BufReader::new(child.stdout.take().unwrap()).lines().take(lines);
        let pids = told.map(|line| Process::of(line.unwrap().trim().parse().unwrap()).unwrap());
        let pids = pids.collect();
        (child, pids)
    }

    /// Stops the tree of the script, of which so many processes are told, and none is left.
    #[track_caller]
    fn check(claim: &str, script: &str, lines: usize) {
        let (mut child, pids) = tree(claim, script, lines);
        let root = Process::of(child.id().try_into().unwrap()).unwrap();
        let reaper = std::thread::spawn(move || child.wait().unwrap());
        assert_eq!(stop(Some(root), claim, GRACE, CONFIRM), Stopped::Confirmed);
        for process in pids.into_iter().chain([root]) {
            assert_eq!(process.liveness(), Liveness::Gone, "{process:?}");
        }
        reaper.join().unwrap();
    }

    fn claim(name: &str) -> String {
        format!("{name}-{}", std::process::id())
    }

    #[test]
    fn worker_that_listens_ends_with_its_children() {
        check(&claim("listens"), "sleep 60 & echo $!; sleep 60 & echo $!; wait", 2);
    }

    #[test]
    fn worker_that_does_not_listen_is_killed_with_its_children() {
        check(&claim("deaf"), "trap '' TERM; sleep 60 & echo $!; wait; wait; sleep 60", 1);
    }

    #[test]
    fn child_that_has_left_session_and_parent_is_found_by_its_environment() {
        let script = "setsid sh -c 'sleep 60 & echo $!; wait' & sleep 60 & echo $!; wait";
        check(&claim("daemon"), script, 2);
        // The parent has ended before anybody looks.
        let claim = claim("orphan");
        let (mut child, pids) = tree(&claim, "setsid sleep 60 & echo $!", 1);
        child.wait().unwrap();
        assert_eq!(of_claim(&claim), pids);
        assert_eq!(stop(None, &claim, GRACE, CONFIRM), Stopped::Confirmed);
        assert_eq!(pids[0].liveness(), Liveness::Gone);
    }

    #[test]
    fn worker_that_is_stopped_ends_nevertheless() {
        let claim = claim("stopped");
        let (mut child, _) = tree(&claim, "echo $$; kill -STOP $$; sleep 60", 1);
        let root = Process::of(child.id().try_into().unwrap()).unwrap();
        while Stat::of(root.pid).is_some_and(|stat| stat.state != 'T') {}
        let reaper = std::thread::spawn(move || child.wait().unwrap());
        assert_eq!(stop(Some(root), &claim, Duration::ZERO, CONFIRM), Stopped::Confirmed);
        reaper.join().unwrap();
    }

    #[test]
    fn nobody_else_is_touched() {
        let (mut other, _) = tree(&claim("other"), "echo $$; exec sleep 60", 1);
        let (mut child, _) = tree(&claim("mine"), "echo $$; exec sleep 60", 1);
        let root = Process::of(child.id().try_into().unwrap()).unwrap();
        let earlier = Process { started_ticks: root.started_ticks - 1, ..root };
        let nobodys = claim("nobodys");
        assert_eq!(stop(Some(earlier), &nobodys, Duration::ZERO, CONFIRM), Stopped::Confirmed);
        assert_eq!(root.liveness(), Liveness::Alive);
        for child in [&mut other, &mut child] {
            assert!(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
