//! Which process works under a claim, so that a process of the same number is not mistaken for it.
//!
//! A process id alone says little: it is used again, and another container has its own count. So a
//! process is named by its id, the time it started, and the namespace in which the id counts.
//!
//! In: `/proc`. Out: a [`Process`], and whether it lives. Not here: stopping it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use serde::{Deserialize, Serialize};

/// A process of this start of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// When it started, in clock ticks since the machine did.
    pub started_ticks: i64,
    /// The inode of the namespace in which `pid` counts.
    pub namespace: i64,
}

/// Whether a process is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// It runs, or could: it may be stopped or waiting.
    Alive,
    /// It has ended. Its parent may not have noticed yet.
    Gone,
    /// Its id counts in another namespace, so it cannot be looked at from here.
    OutOfSight,
}

/// What `/proc` says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) state: char,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    pub(crate) session: i32,
    pub(crate) started_ticks: i64,
}

impl Stat {
    /// Of the process of that id in this namespace; `None`: there is none.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The name of the program, which may hold anything, stands in the last pair of parentheses.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        let group = fields.next()?.parse().ok()?;
        let session = fields.next()?.parse().ok()?;
        let started_ticks = fields.nth(15)?.parse().ok()?;
        Some(Self { state, parent, group, session, started_ticks })
    }

    /// Whether it has ended, and only its parent keeps it from being forgotten.
    pub(crate) fn has_ended(self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

impl Process {
    /// The process of that id, as it is counted here.
    ///
    /// # Errors
    ///
    /// Of the kind `NotFound` if there is none, or it has ended.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = Stat::of(pid).filter(|stat| !stat.has_ended());
        let stat = stat.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Self { pid, started_ticks: stat.started_ticks, namespace: namespace()? })
    }

    /// A child of this process that was not waited for, whether it has ended or not.
    pub(crate) fn of_child(pid: i32) -> io::Result<Self> {
        let stat = Stat::of(pid).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Self { pid, started_ticks: stat.started_ticks, namespace: namespace()? })
    }

    /// The process that calls this.
    ///
    /// # Errors
    ///
    /// What `/proc` gave, as where it is not mounted.
    pub fn current() -> io::Result<Self> {
        let pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        Self::of(pid)
    }

    /// Whether it is there.
    #[must_use]
    pub fn liveness(&self) -> Liveness {
        if namespace().ok() != Some(self.namespace) {
            return Liveness::OutOfSight;
        }
        match Stat::of(self.pid) {
            Some(stat) if stat.started_ticks == self.started_ticks && !stat.has_ended() => {
                Liveness::Alive
            }
            _ => Liveness::Gone,
        }
    }
}

/// The inode of the namespace in which this process counts ids.
fn namespace() -> io::Result<i64> {
    Ok(fs::metadata("/proc/self/ns/pid")?.ino().cast_signed())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn this_process_is_alive_and_one_that_ended_is_gone() {
        assert_eq!(Process::current().unwrap().liveness(), Liveness::Alive);
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id().try_into().unwrap()).unwrap();
        assert_eq!(process.liveness(), Liveness::Alive);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(process.liveness(), Liveness::Gone);
        assert!(Process::of(process.pid).is_err());
    }

    #[test]
    fn process_that_has_ended_and_was_not_waited_for_is_gone() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = child.id().try_into().unwrap();
        while Stat::of(pid).is_some_and(|stat| !stat.has_ended()) {}
        let started_ticks = Stat::of(pid).unwrap().started_ticks;
        let process = Process { pid, started_ticks, namespace: namespace().unwrap() };
        assert_eq!(process.liveness(), Liveness::Gone);
        assert!(Process::of(pid).is_err());
        child.wait().unwrap();
    }

    #[test]
    fn process_of_the_same_number_that_started_later_is_another() {
        let current = Process::current().unwrap();
        let earlier = Process { started_ticks: current.started_ticks - 1, ..current };
        assert_eq!(earlier.liveness(), Liveness::Gone);
    }

    #[test]
    fn number_that_counts_in_another_namespace_says_nothing_here() {
        let current = Process::current().unwrap();
        let foreign = Process { namespace: current.namespace + 1, ..current };
        assert_eq!(foreign.liveness(), Liveness::OutOfSight);
    }

    #[test]
    fn name_of_a_program_cannot_pose_as_other_fields() {
        let line = "7 (a) Z 1 (b) S 3 4 5 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 991 10 20";
        let stat = Stat::parse(line).unwrap();
        let want = Stat { state: 'S', parent: 3, group: 4, session: 5, started_ticks: 991 };
        assert_eq!(stat, want);
        assert_eq!(Stat::parse("7 (a) S 1"), None);
    }
}
