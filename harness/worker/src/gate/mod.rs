//! Calls that a supervisor has let pass beforehand, and what it later reads of them.
//!
//! A stop under ptrace costs two switches between processes. Where a scheduler knows already that
//! the same process goes on for some calls, it says so in shared memory: the *allowance*. The
//! victim's SQLite then makes lock calls and writes on files that the supervisor knows without
//! stopping, and notes each here *before* it is made. At the victim's next stop, or at its end, the
//! supervisor takes the notes for stops, in their order. With no allowance a call stops as ever.
//!
//! Only calls whose every effect on the supervisor's picture can be told from the note may pass:
//! see `arm`. All memory here is atomics, so neither side can be misled into more than wrong
//! numbers.
//!
//! Not here: what is let pass, and that what passed was let pass rightly.

mod map;
mod pass;

pub use map::{GateError, Gates};
pub(crate) use pass::arm;

use std::sync::atomic::{AtomicU64, Ordering};

/// Calls that can pass between two stops.
pub const NOTES: usize = 72;

/// The sixth argument of a call that passes, which no call that can pass has: the seccomp filter of
/// a nursery's children lets a call with it happen.
pub const PASS: u64 = 0x6b69_6c6c_7061_7373;

/// In an allowance: one lock that excludes others; calls are counted below it.
const EXCLUSIVE: u64 = 1 << 32;

/// Descriptors from this number on never pass.
const DESCRIPTORS: usize = 1_024;

/// One process's place.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Gate {
    /// How many calls may pass; and above, how many of them may be locks that exclude others.
    allowance: AtomicU64,
    /// How many have, since the notes were last taken.
    used: AtomicU64,
    /// The descriptors, a bit each, on which calls may pass.
    descriptors: [AtomicU64; DESCRIPTORS / 64],
    notes: [Note; NOTES],
}

/// One call that passed: its words as [`Passed`] has them.
#[derive(Debug)]
#[repr(C)]
struct Note([AtomicU64; 6]);

/// Where in a note it stands which step of its script the process was at.
const SCRIPT_STEP_AT: usize = 5;

/// A call that has passed, or was about to when its process was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// `pwrite64`.
    Write {
        /// The descriptor.
        fd: i32,
        /// Where in the file, in bytes.
        offset: u64,
        /// How much, in bytes.
        length: u64,
        /// Its first bytes; zeros behind its end.
        head: [u8; HEAD_BYTES],
    },
    /// `fcntl(F_SETLK)` or `fcntl(F_OFD_SETLK)`.
    Lock {
        /// The descriptor.
        fd: i32,
        /// Whether it is the latter.
        of_open_file: bool,
        /// `l_type`.
        kind: i16,
        /// `l_whence`.
        whence: i16,
        /// `l_start`.
        start: i64,
        /// `l_len`.
        length: i64,
    },
}

/// How much of a write is noted, in bytes: enough for the head of a frame or of a journal.
pub const HEAD_BYTES: usize = 16;

/// In the first word of a note: it is a lock; of the open file.
const LOCK: u64 = 1 << 63;
const OF_OPEN_FILE: u64 = 1 << 62;

impl Gate {
    /// Lets the next `calls` calls pass, or as many as there is room for; at most `exclusive` locks
    /// that exclude others among them.
    pub fn allow(&self, calls: u32, exclusive: u32) {
        let room = (NOTES as u64).saturating_sub(self.used.load(Ordering::Relaxed));
        let exclusive = u64::from(exclusive).min(room) * EXCLUSIVE;
        self.allowance.store(u64::from(calls).min(room) | exclusive, Ordering::Release);
    }

    /// Lets nothing pass any more, and gives what has, each with the step of its script that the
    /// process was at, as [`Slot::script_step`](crate::ledger::Slot::script_step) had it then.
    pub fn take(&self) -> impl Iterator<Item = (Passed, u32)> + use<'_> {
        self.allowance.store(0, Ordering::Relaxed);
        let used = usize::try_from(self.used.swap(0, Ordering::Acquire)).unwrap_or(0);
        self.notes[..used.min(NOTES)].iter().map(Note::read)
    }

    /// Whether something has passed and was not taken.
    #[must_use]
    pub fn has_notes(&self) -> bool {
        self.used.load(Ordering::Acquire) > 0
    }

    /// Lets calls on `fd` pass, if the number is below 1024.
    pub fn know(&self, fd: i32) {
        if let Some((word, bit)) = self.place(fd) {
            word.fetch_or(bit, Ordering::Release);
        }
    }

    /// Lets calls on `fd`, which is about to be closed, pass no more.
    pub fn forget(&self, fd: i32) {
        if let Some((word, bit)) = self.place(fd) {
            word.fetch_and(!bit, Ordering::Release);
        }
    }

    /// Lets calls on no descriptor pass.
    pub fn forget_all(&self) {
        self.descriptors.iter().for_each(|word| word.store(0, Ordering::Release));
    }

    /// The word and the bit of a descriptor.
    fn place(&self, fd: i32) -> Option<(&AtomicU64, u64)> {
        let fd = usize::try_from(fd).ok()?;
        Some((self.descriptors.get(fd / 64)?, 1 << (fd % 64)))
    }

    /// Empties it for another process.
    pub fn clear(&self) {
        for word in [&self.allowance, &self.used] {
            word.store(0, Ordering::Release);
        }
        self.forget_all();
    }

    /// The victim's side: notes a call if it may pass. The call is to be made in any case.
    fn pass(&self, call: Passed, script_step: u32) -> bool {
        let allowance = self.allowance.load(Ordering::Acquire);
        let fd = match call {
            Passed::Write { fd, .. } | Passed::Lock { fd, .. } => fd,
        };
        let excludes =
            matches!(call, Passed::Lock { kind, .. } if i32::from(kind) == libc::F_WRLCK);
        let (exclusive, left) = (allowance / EXCLUSIVE, allowance % EXCLUSIVE);
        let place = self.place(fd);
        let known = place.is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0);
        let used = self.used.load(Ordering::Relaxed);
        let note = usize::try_from(used).ok().and_then(|used| self.notes.get(used));
        let Some(note) = note.filter(|_| left > 0 && known) else { return false };
        if excludes && exclusive == 0 {
            return false;
        }
        note.write(call, script_step);
        let spent = if excludes { EXCLUSIVE + 1 } else { 1 };
        self.allowance.store(allowance - spent, Ordering::Relaxed);
        self.used.store(used + 1, Ordering::Release);
        true
    }
}

impl Note {
    fn write(&self, call: Passed, script_step: u32) {
        let words = match call {
            Passed::Write { fd, offset, length, head } => {
                let (first, second) = head.split_at(8);
                let word = |half: &[u8]| half.try_into().map_or(0, u64::from_ne_bytes);
                [u64::from(fd.cast_unsigned()), offset, length, word(first), word(second)]
            }
            Passed::Lock { fd, of_open_file, kind, whence, start, length } => {
                let kinds =
                    (u64::from(kind.cast_unsigned()) << 16) | u64::from(whence.cast_unsigned());
                let (start, length) = (start.cast_unsigned(), length.cast_unsigned());
                let what = if of_open_file { LOCK | OF_OPEN_FILE } else { LOCK };
                [what | u64::from(fd.cast_unsigned()), kinds, start, length, 0]
            }
        };
        for (place, word) in self.0.iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
        self.0[SCRIPT_STEP_AT].store(script_step.into(), Ordering::Relaxed);
    }

    fn read(&self) -> (Passed, u32) {
        let script_step = self.0[SCRIPT_STEP_AT].load(Ordering::Relaxed);
        (self.call(), u32::try_from(script_step).unwrap_or(u32::MAX))
    }

    fn call(&self) -> Passed {
        let [what, a, b, c, d] = [0, 1, 2, 3, 4].map(|at| self.0[at].load(Ordering::Relaxed));
        let low = |word: u64| {
            let [first, second, third, fourth, ..] = word.to_le_bytes();
            i32::from_le_bytes([first, second, third, fourth])
        };
        let half = |word: u64| {
            let [first, second, ..] = word.to_le_bytes();
            i16::from_le_bytes([first, second])
        };
        let fd = low(what);
        if what & LOCK != 0 {
            let (kind, whence) = (half(a >> 16), half(a));
            let (start, length) = (b.cast_signed(), c.cast_signed());
            let of_open_file = what & OF_OPEN_FILE != 0;
            return Passed::Lock { fd, of_open_file, kind, whence, start, length };
        }
        let mut head = [0; HEAD_BYTES];
        head[..8].copy_from_slice(&c.to_ne_bytes());
        head[8..].copy_from_slice(&d.to_ne_bytes());
        Passed::Write { fd, offset: a, length: b, head }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(kind: i32) -> Passed {
        let kind = i16::try_from(kind).unwrap();
        let of_open_file = i32::from(kind) == libc::F_UNLCK;
        Passed::Lock { fd: 5, of_open_file, kind, whence: 2, start: -1, length: 8 }
    }

    fn write(fd: i32) -> Passed {
        Passed::Write { fd, offset: 1 << 40, length: 24, head: *b"0123456789abcdef" }
    }

    #[test]
    fn what_passes_is_read_as_it_was_made_and_in_order() {
        let (gates, _file) = Gates::create().unwrap();
        let gate = gates.gate(3);
        gate.know(5);
        gate.allow(3, 9);
        let calls = [lock(libc::F_WRLCK), write(5), lock(libc::F_UNLCK)];
        assert!((7..).zip(&calls).all(|(step, call)| gate.pass(*call, step)));
        assert!(!gate.pass(write(5), 1), "three were allowed");
        assert!(gate.take().eq(calls.into_iter().zip(7..)));
        assert_eq!(gate.take().count(), 0);
    }

    #[test]
    fn nothing_passes_without_allowance_or_on_an_unknown_descriptor() {
        let (gates, _file) = Gates::create().unwrap();
        let gate = gates.gate(0);
        gate.know(5);
        assert!(!gate.pass(write(5), 1));
        gate.allow(9, 9);
        assert!(!gate.pass(write(6), 1));
        assert!(!gate.pass(write(1_024), 1) && !gate.pass(write(-1), 1));
        gate.know(1_023);
        assert!(gate.pass(write(1_023), 1));
        assert_eq!(gate.take().count(), 1);
        gate.allow(9, 9);
        gate.forget(5);
        assert!(!gate.pass(write(5), 1));
        assert!(!gate.has_notes());
    }

    #[test]
    fn lock_that_excludes_others_passes_only_where_that_is_said() {
        let (gates, _file) = Gates::create().unwrap();
        let gate = gates.gate(0);
        gate.know(5);
        gate.allow(9, 0);
        assert!(gate.pass(lock(libc::F_RDLCK), 1));
        assert!(!gate.pass(lock(libc::F_WRLCK), 1));
        gate.allow(9, 1);
        assert!(gate.pass(lock(libc::F_WRLCK), 1));
        assert!(!gate.pass(lock(libc::F_WRLCK), 1), "one was allowed");
    }

    #[test]
    fn no_more_passes_than_there_is_room_to_note() {
        let (gates, _file) = Gates::create().unwrap();
        let gate = gates.gate(0);
        gate.know(5);
        gate.allow(u32::MAX, 0);
        assert_eq!((0..1_000).filter(|_| gate.pass(write(5), 1)).count(), NOTES);
        gate.allow(1, 0);
        assert!(!gate.pass(write(5), 1));
        assert_eq!(gate.take().count(), NOTES);
    }
}
