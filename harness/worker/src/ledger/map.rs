//! The shared memory itself.
#![expect(unsafe_code, reason = "shared memory is had from the kernel as a bare address")]

use super::{Entry, SLOTS, Slot};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

/// The memory could not be had.
#[derive(Debug, thiserror::Error)]
#[error("shared memory of {bytes} bytes for the ledger")]
pub struct LedgerError {
    bytes: usize,
    #[source]
    source: std::io::Error,
}

/// A mapping of the whole ledger: [`SLOTS`] slots, each with the same number of entries.
#[derive(Debug)]
pub struct Ledger {
    base: NonNull<libc::c_void>,
    bytes: usize,
    entries: usize,
}

// SAFETY: the mapping is plain memory that stays until `drop`; every word in it is an atomic.
unsafe impl Send for Ledger {}
// SAFETY: as above: shared access is by atomics alone.
unsafe impl Sync for Ledger {}

const fn slot_bytes(entries: usize) -> usize {
    size_of::<Slot>().next_multiple_of(64) + entries * size_of::<Entry>()
}

impl Ledger {
    /// Makes a ledger with room for `entries` operations a process, and the file that carries it
    /// to another process.
    pub fn create(entries: usize) -> Result<(Self, OwnedFd), LedgerError> {
        let bytes = SLOTS * slot_bytes(entries);
        let fail = |errno: nix::Error| LedgerError { bytes, source: errno.into() };
        let file = memfd_create("killpoint-ledger", MFdFlags::MFD_CLOEXEC).map_err(fail)?;
        let length = i64::try_from(bytes).unwrap_or(i64::MAX);
        nix::unistd::ftruncate(file.as_fd(), length).map_err(fail)?;
        Ok((Self::map(file.as_fd(), entries)?, file))
    }

    /// Maps a ledger that another process made with as many `entries`.
    pub fn map(file: impl AsFd, entries: usize) -> Result<Self, LedgerError> {
        let bytes = SLOTS * slot_bytes(entries);
        let fail = |errno: nix::Error| LedgerError { bytes, source: errno.into() };
        let there = nix::sys::stat::fstat(file.as_fd()).map_err(fail)?.st_size;
        if u64::try_from(there).is_ok_and(|there| there < bytes as u64) {
            return Err(fail(nix::Error::EOVERFLOW));
        }
        let length = NonZeroUsize::new(bytes).ok_or_else(|| fail(nix::Error::EINVAL))?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new shared mapping at an address of the kernel's choice aliases nothing of
        // ours, and the length was just checked against the file's.
        let base = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, file, 0) };
        Ok(Self { base: base.map_err(fail)?, bytes, entries })
    }

    /// How many operations a process can record.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.entries
    }

    /// The slot of process `index`.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`SLOTS`].
    #[must_use]
    pub fn slot(&self, index: usize) -> &Slot {
        assert!(index < SLOTS, "slot {index} of {SLOTS}");
        // SAFETY: the address is within the mapping, a multiple of 64, and any bytes are a valid
        // `Slot`, which holds nothing but atomics.
        unsafe { self.base.byte_add(index * slot_bytes(self.entries)).cast::<Slot>().as_ref() }
    }

    /// The entries of process `index`.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`SLOTS`].
    #[must_use]
    pub fn entries(&self, index: usize) -> &[Entry] {
        assert!(index < SLOTS, "slot {index} of {SLOTS}");
        let offset = index * slot_bytes(self.entries) + size_of::<Slot>().next_multiple_of(64);
        // SAFETY: as for `slot`; `slot_bytes` leaves room for exactly `entries` entries there.
        unsafe {
            let first = self.base.byte_add(offset).cast::<Entry>();
            std::slice::from_raw_parts(first.as_ptr(), self.entries)
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and every reference into it borrows `self`.
        let unmapped = unsafe { munmap(self.base, self.bytes) };
        debug_assert!(unmapped.is_ok(), "munmap of our own mapping");
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, Reason, State};
    use super::*;

    #[test]
    fn what_one_mapping_writes_the_other_reads() {
        let (here, file) = Ledger::create(8).unwrap();
        let there = Ledger::map(&file, 8).unwrap();
        for slot in [0, 1, SLOTS - 1] {
            for index in [0, 7] {
                here.entries(slot)[index].send(Kind::Events, 5, 6, 7, 8);
                let seq = i64::try_from(slot * 100 + index).unwrap();
                here.entries(slot)[index].ack(5, 6, seq, hardboard::Durability::Power);
            }
            here.slot(slot).set_message("disk full");
        }
        for slot in [0, 1, SLOTS - 1] {
            for index in [0, 7] {
                let record = there.entries(slot)[index].read().unwrap();
                assert_eq!(record.seq, i64::try_from(slot * 100 + index).unwrap());
                assert_eq!((record.state, record.kind), (State::Acked, Kind::Events));
                assert_eq!(record.reason, Reason::None);
            }
            assert_eq!(there.slot(slot).message().as_deref(), Some("disk full"));
        }
        assert_eq!(there.entries(2)[0].read(), None);
    }

    #[test]
    fn a_file_that_is_too_short_is_refused() {
        let (_, file) = Ledger::create(8).unwrap();
        assert!(Ledger::map(&file, 9).is_err());
    }
}
