//! Which wal-index locks each process holds, and which operations of others met them.
//!
//! Since one process runs at a time and all of them are seen, whether a lock is had can be told
//! before the kernel says so. Only the bytes of the wal-index are kept: they are SQLite's own.

use crate::run::trace::{LockCall, LockKind, Operation, Phase, WalLock};
use std::collections::BTreeSet;

/// Locks of one process, a bit for each byte from 120 on.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    shared: u16,
    exclusive: u16,
}

/// The wal-index locks of all processes.
#[derive(Clone, Debug, Default)]
pub(super) struct WalLocks {
    held: Vec<Held>,
}

/// The bits of a lock's range; 0 if it is on no wal-index lock.
fn bits(lock: &LockCall) -> u16 {
    let first = WalLock::Write.byte();
    let Some(start) = u64::try_from(lock.start).ok().and_then(|at| at.checked_sub(first)) else {
        return 0;
    };
    let count = u64::try_from(lock.length).unwrap_or(0);
    (start..start.saturating_add(count))
        .take_while(|bit| *bit < 9)
        .fold(0, |all, bit| all | 1 << bit)
}

impl WalLocks {
    fn of(&mut self, slot: usize) -> &mut Held {
        if self.held.len() <= slot {
            self.held.resize(slot + 1, Held::default());
        }
        &mut self.held[slot]
    }

    /// Follows a lock call on the wal-index. Says whether it excludes others and is had.
    pub(super) fn follow(&mut self, slot: usize, lock: &LockCall) -> bool {
        let asked = bits(lock);
        let others = self.held.iter().enumerate().filter(|(other, _)| *other != slot);
        let (shared, exclusive) =
            others.fold((0, 0), |(s, x), (_, held)| (s | held.shared, x | held.exclusive));
        let held = self.of(slot);
        match lock.kind {
            LockKind::Test => false,
            LockKind::Unlock => {
                held.shared &= !asked;
                held.exclusive &= !asked;
                false
            }
            LockKind::Shared => {
                if asked & exclusive == 0 {
                    held.shared |= asked;
                    held.exclusive &= !asked;
                }
                false
            }
            LockKind::Exclusive => {
                let free = asked & (exclusive | shared) == 0;
                if free {
                    held.exclusive |= asked;
                    held.shared &= !asked;
                }
                free && asked != 0
            }
        }
    }

    /// A process is gone, or has closed the wal-index.
    pub(super) fn drop_all(&mut self, slot: usize) {
        *self.of(slot) = Held::default();
    }
}

/// A lock that one process held while another did something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Meeting {
    /// The lock.
    pub held: WalLock,
    /// Whether it excluded others.
    pub exclusive: bool,
    /// What the other did.
    pub phase: Phase,
}

/// The meetings of a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Meetings {
    /// Seen in this schedule: a mask of the locks met, by phase.
    by_phase: Vec<(Phase, u32)>,
}

impl Meetings {
    /// Notes that `slot` does what `phase` says while the others hold what they hold.
    pub(super) fn note(&mut self, locks: &WalLocks, slot: usize, phase: Phase) {
        let others = locks.held.iter().enumerate().filter(|(other, _)| *other != slot);
        let met = others.fold(0_u32, |all, (_, held)| {
            all | u32::from(held.shared) | (u32::from(held.exclusive) << 16)
        });
        if met == 0 {
            return;
        }
        match self.by_phase.iter_mut().find(|(known, _)| *known == phase) {
            Some((_, mask)) => *mask |= met,
            None => self.by_phase.push((phase, met)),
        }
    }

    /// All of them.
    pub(super) fn all(&self) -> BTreeSet<Meeting> {
        let mut all = BTreeSet::new();
        for (phase, mask) in &self.by_phase {
            for (bit, held) in WalLock::ALL.into_iter().enumerate() {
                for (exclusive, shift) in [(false, 0), (true, 16)] {
                    if mask & (1 << (bit + shift)) != 0 {
                        all.insert(Meeting { held, exclusive, phase: *phase });
                    }
                }
            }
        }
        all
    }
}

/// The lock call of an operation.
pub(super) fn lock_of(operation: &Operation) -> Option<&LockCall> {
    match operation {
        Operation::Lock { lock, .. } => Some(lock),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(kind: LockKind, start: i64, length: i64) -> LockCall {
        LockCall { kind, waits: false, of_open_file: false, whence: 0, start, length }
    }

    #[test]
    fn a_lock_that_another_holds_is_not_had() {
        let mut locks = WalLocks::default();
        assert!(locks.follow(0, &lock(LockKind::Exclusive, 121, 1)));
        assert!(!locks.follow(1, &lock(LockKind::Exclusive, 121, 1)));
        locks.follow(0, &lock(LockKind::Unlock, 121, 1));
        assert!(locks.follow(1, &lock(LockKind::Exclusive, 121, 1)));
    }

    #[test]
    fn what_one_does_under_the_lock_of_another_is_a_meeting() {
        let mut locks = WalLocks::default();
        locks.follow(0, &lock(LockKind::Exclusive, 121, 1));
        let mut meetings = Meetings::default();
        meetings.note(&locks, 0, Phase::CheckpointPageWrite);
        assert!(meetings.all().is_empty(), "nobody meets himself");
        meetings.note(&locks, 1, Phase::WalReset);
        let met = Meeting { held: WalLock::Checkpoint, exclusive: true, phase: Phase::WalReset };
        assert_eq!(meetings.all(), BTreeSet::from([met]));
    }

    #[test]
    fn a_range_holds_each_of_its_bytes() {
        assert_eq!(bits(&lock(LockKind::Exclusive, 124, 4)), 0b1111_0000);
        assert_eq!(bits(&lock(LockKind::Exclusive, 0x4000_0000, 1)), 0);
    }
}
