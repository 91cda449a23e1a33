//! The picture of processes that come no further: who waits for what, and who has it.

use crate::run::trace::{LockKind, Operation, Phase, ProcessId, Stop};
use serde::Serialize;
use std::fmt::Write as _;

/// What a thread waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Waiting {
    /// The file, as it is called.
    pub(super) file: String,
    /// The device and inode of it, as `/proc/locks` has them.
    inode: u64,
    /// The bytes, as they were asked for.
    start: i64,
    length: i64,
    exclusive: bool,
    whole_file: bool,
}

impl Waiting {
    pub(super) fn of(stop: &Stop) -> Self {
        let (mut start, mut length, mut exclusive) = (0, 0, true);
        if let Operation::Lock { lock, .. } = &stop.operation {
            (start, length) = (lock.start, lock.length);
            exclusive = lock.kind == LockKind::Exclusive;
        }
        let fd = stop.operation.fd().unwrap_or(-1);
        let link = format!("/proc/{}/fd/{fd}", stop.process);
        let file = std::fs::read_link(&link)
            .map_or_else(|_| format!("descriptor {fd}"), |path| path.display().to_string());
        let inode = std::fs::metadata(&link)
            .map_or(0, |metadata| std::os::unix::fs::MetadataExt::ino(&metadata));
        let whole_file = stop.call.sys == crate::run::trace::Sys::Flock;
        Self { file, inode, start, length, exclusive, whole_file }
    }

    fn describe(&self) -> String {
        let kind = if self.exclusive { "an exclusive" } else { "a shared" };
        let bytes = match (self.whole_file, self.length) {
            (true, _) | (_, 0) if self.start == 0 => "all of it".to_owned(),
            (_, 0) => format!("bytes {} on", self.start),
            (_, 1) => format!("byte {}", self.start),
            (_, length) => format!("bytes {} to {}", self.start, self.start + length - 1),
        };
        let name = self.file.rsplit('/').next().unwrap_or(&self.file);
        format!("{kind} lock on {name}, {bytes}")
    }
}

/// One thread of the picture.
#[derive(Clone, Debug)]
pub(super) struct Thread {
    pub(super) slot: usize,
    pub(super) process: ProcessId,
    pub(super) phase: Phase,
    pub(super) waits: Option<Waiting>,
}

/// Processes that come no further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// Nobody can run any more; else they run and get nowhere.
    pub deadlock: bool,
    /// After so many steps.
    pub steps: u32,
    /// Who waits for what, and who has it: a line each.
    pub picture: Vec<String>,
}

impl Stuck {
    /// In one line.
    #[must_use]
    pub fn describe(&self) -> String {
        let what = if self.deadlock { "nobody can run" } else { "nobody gets anywhere" };
        format!("{what} after {} steps: {}", self.steps, self.picture.join("; "))
    }
}

/// Who waits for what, by what the threads said and the kernel's own list of locks.
pub(super) fn picture(deadlock: bool, steps: u32, who: &[Thread]) -> Stuck {
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let mut lines = Vec::new();
    for thread in who {
        let mut line = format!("process {} ", thread.slot);
        let done = match &thread.waits {
            Some(waits) => {
                let holders = holders(&locks, waits, thread, who);
                let held = if holders.is_empty() {
                    "that nobody here holds".to_owned()
                } else {
                    format!("held by {}", holders.join(" and "))
                };
                write!(line, "waits for {} ({held})", waits.describe())
            }
            None => write!(line, "is at {}", thread.phase),
        };
        // A String takes every write.
        debug_assert!(done.is_ok());
        lines.push(line);
    }
    Stuck { deadlock, steps, picture: lines }
}

/// Who of `who` holds what `waits` asks for, by lines of `/proc/locks` such as
/// `2: POSIX  ADVISORY  WRITE 4711 00:1b:1234 120 120`.
fn holders(locks: &str, waits: &Waiting, asks: &Thread, who: &[Thread]) -> Vec<String> {
    let mut found = Vec::new();
    for line in locks.lines().filter(|line| !line.contains("->")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, _, _, _, process, place, ..] = words[..] else { continue };
        let inode = place.rsplit(':').next().and_then(|text| text.parse::<u64>().ok());
        let holder = process.parse::<i32>().ok();
        let thread = who.iter().find(|thread| Some(thread.process.0) == holder);
        if let Some(thread) = thread
            && inode == Some(waits.inode)
            && thread.process != asks.process
        {
            let name = format!("process {}", thread.slot);
            if !found.contains(&name) {
                found.push(name);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(slot: usize, process: i32, waits: Option<Waiting>) -> Thread {
        Thread { slot, process: ProcessId(process), phase: Phase::Other, waits }
    }

    #[test]
    fn holder_is_named_by_its_slot() {
        let waits = Waiting {
            file: "/tmp/a.lock".to_owned(),
            inode: 77,
            start: 0,
            length: 0,
            exclusive: true,
            whole_file: true,
        };
        let who = [thread(0, 10, Some(waits.clone())), thread(1, 11, None)];
        let locks = "1: POSIX  ADVISORY  WRITE 11 00:1b:77 0 EOF\n\
                     2: POSIX  ADVISORY  WRITE 11 00:1b:78 0 EOF\n\
                     3: POSIX  ADVISORY  WRITE 99 00:1b:77 0 EOF\n";
        assert_eq!(holders(locks, &waits, &who[0], &who), ["process 1"]);
        assert_eq!(waits.describe(), "an exclusive lock on a.lock, all of it");
    }
}
