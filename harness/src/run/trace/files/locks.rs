//! POSIX record locks as the kernel keeps them: by (table of open files, inode), not by descriptor.
//!
//! That is why closing *any* descriptor of a file drops *all* locks that the process has on it. The
//! model is fed with the calls that succeeded and told of closes and ends; it asks nobody. A test
//! holds it against `/proc/locks`.
//!
//! Not here: locks of open files (`F_OFD_*`), which closes do not drop while a copy is open.

use serde::Serialize;

use super::super::hash::NumberMap;
use super::super::operation::LockKind;
use super::FileId;

/// The owner of record locks: a table of open files, which is one process unless `CLONE_FILES` has
/// made several share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Owner(pub(in super::super) u32);

/// A range of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Range {
    /// First byte.
    pub first: u64,
    /// Last byte, included; `u64::MAX` is "to the end, however far it grows".
    pub last: u64,
}

impl Range {
    /// The range of a lock call that counts from the beginning of the file. `None` if it is not a
    /// range at all: the call fails.
    #[must_use]
    pub fn new(start: i64, length: i64) -> Option<Self> {
        let (first, last) = match length {
            0 => (start, None),
            1.. => (start, Some(start.checked_add(length - 1)?)),
            _ => (start.checked_add(length)?, Some(start - 1)),
        };
        let last = match last {
            Some(last) => u64::try_from(last).ok()?,
            None => u64::MAX,
        };
        Some(Self { first: u64::try_from(first).ok()?, last })
    }

    /// Whether the two have a byte in common.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Whether `byte` is in it.
    #[must_use]
    pub fn contains(self, byte: u64) -> bool {
        (self.first..=self.last).contains(&byte)
    }
}

/// A lock that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HeldLock {
    /// On which bytes.
    pub range: Range,
    /// Whether it excludes all others, or only exclusive ones.
    pub exclusive: bool,
    /// The descriptor through which it was got.
    pub fd: i32,
    /// The number of the event (from 1, in the order seen) at which it was got.
    pub since: u64,
}

/// All record locks of the traced processes.
#[derive(Clone, Debug, Default)]
pub struct LockModel {
    held: NumberMap<(Owner, FileId), Vec<HeldLock>>,
}

impl LockModel {
    /// Records a lock call that succeeded.
    pub(in super::super) fn apply(
        &mut self,
        owner: Owner,
        file: FileId,
        kind: LockKind,
        lock: HeldLock,
    ) {
        if kind == LockKind::Test {
            return;
        }
        let locks = self.held.entry((owner, file)).or_default();
        carve(locks, lock.range);
        if kind != LockKind::Unlock {
            locks.push(HeldLock { exclusive: kind == LockKind::Exclusive, ..lock });
            locks.sort_by_key(|held| held.range);
            merge(locks);
        }
        if locks.is_empty() {
            self.held.remove(&(owner, file));
        }
    }

    /// Drops all locks of `owner` on `file`, as the close of any of its descriptors does. Returns
    /// what was dropped.
    pub(in super::super) fn close(&mut self, owner: Owner, file: FileId) -> Vec<HeldLock> {
        self.held.remove(&(owner, file)).unwrap_or_default()
    }

    /// Drops everything of an owner that has ended.
    pub(in super::super) fn end(&mut self, owner: Owner) {
        self.held.retain(|(holder, _), _| *holder != owner);
    }

    /// The locks of `owner` on `file`, by range.
    #[must_use]
    pub fn of(&self, owner: Owner, file: FileId) -> &[HeldLock] {
        self.held.get(&(owner, file)).map_or(&[], Vec::as_slice)
    }

    /// Everything that is held on `file`.
    pub fn on(&self, file: FileId) -> impl Iterator<Item = (Owner, &HeldLock)> {
        self.held
            .iter()
            .filter(move |((_, locked), _)| *locked == file)
            .flat_map(|((owner, _), locks)| locks.iter().map(move |lock| (*owner, lock)))
    }

    /// Whether `owner` holds `byte` of `file`, exclusively if so asked.
    #[must_use]
    pub fn holds(&self, owner: Owner, file: FileId, byte: u64, exclusive: bool) -> bool {
        self.of(owner, file)
            .iter()
            .any(|lock| lock.range.contains(byte) && (lock.exclusive || !exclusive))
    }
}

/// Takes `hole` out of all locks; one that spans it falls into two.
fn carve(locks: &mut Vec<HeldLock>, hole: Range) {
    let mut left = Vec::with_capacity(locks.len() + 1);
    for lock in locks.drain(..) {
        if !lock.range.overlaps(hole) {
            left.push(lock);
            continue;
        }
        if lock.range.first < hole.first {
            let range = Range { first: lock.range.first, last: hole.first - 1 };
            left.push(HeldLock { range, ..lock });
        }
        if lock.range.last > hole.last {
            let range = Range { first: hole.last + 1, last: lock.range.last };
            left.push(HeldLock { range, ..lock });
        }
    }
    *locks = left;
}

/// Joins neighbours of one kind, as the kernel does. They must be sorted and disjoint.
fn merge(locks: &mut Vec<HeldLock>) {
    locks.dedup_by(|next, kept| {
        let joined = kept.exclusive == next.exclusive
            && kept.range.last != u64::MAX
            && kept.range.last + 1 == next.range.first;
        if joined {
            kept.range.last = next.range.last;
            kept.since = kept.since.max(next.since);
        }
        joined
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileId = FileId { device: 1, inode: 2 };
    const A: Owner = Owner(1);
    const B: Owner = Owner(2);

    fn lock(start: i64, length: i64) -> HeldLock {
        let range = Range::new(start, length).unwrap();
        HeldLock { range, exclusive: false, fd: 3, since: 1 }
    }

    #[track_caller]
    fn check(model: &LockModel, owner: Owner, expected: &[(u64, u64, bool)]) {
        let held: Vec<_> = model
            .of(owner, FILE)
            .iter()
            .map(|lock| (lock.range.first, lock.range.last, lock.exclusive))
            .collect();
        assert_eq!(held, expected);
    }

    #[test]
    fn unlock_in_the_middle_leaves_two_locks() {
        let mut model = LockModel::default();
        model.apply(A, FILE, LockKind::Exclusive, lock(100, 10));
        model.apply(A, FILE, LockKind::Unlock, lock(103, 2));
        check(&model, A, &[(100, 102, true), (105, 109, true)]);
    }

    #[test]
    fn second_lock_of_the_same_process_replaces_the_first_where_they_meet() {
        let mut model = LockModel::default();
        model.apply(A, FILE, LockKind::Exclusive, lock(0, 0));
        model.apply(A, FILE, LockKind::Shared, lock(10, 5));
        check(&model, A, &[(0, 9, true), (10, 14, false), (15, u64::MAX, true)]);
    }

    #[test]
    fn neighbours_of_one_kind_are_one_lock() {
        let mut model = LockModel::default();
        model.apply(A, FILE, LockKind::Shared, lock(124, 1));
        model.apply(A, FILE, LockKind::Shared, lock(125, 1));
        check(&model, A, &[(124, 125, false)]);
    }

    #[test]
    fn close_drops_the_locks_of_that_process_alone() {
        let mut model = LockModel::default();
        model.apply(A, FILE, LockKind::Shared, lock(128, 1));
        model.apply(B, FILE, LockKind::Shared, lock(128, 1));
        assert_eq!(model.close(A, FILE).len(), 1);
        check(&model, A, &[]);
        check(&model, B, &[(128, 128, false)]);
    }

    #[test]
    fn question_about_a_lock_changes_nothing() {
        let mut model = LockModel::default();
        model.apply(A, FILE, LockKind::Test, lock(1, 1));
        check(&model, A, &[]);
    }

    #[test]
    fn negative_length_counts_backwards() {
        assert_eq!(Range::new(10, -4), Some(Range { first: 6, last: 9 }));
        assert_eq!(Range::new(2, -4), None);
    }
}
