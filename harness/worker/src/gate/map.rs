//! The shared memory itself.
#![expect(unsafe_code, reason = "shared memory is had from the kernel as a bare address")]

use super::Gate;
use crate::ledger::SLOTS;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

const BYTES: usize = SLOTS * size_of::<Gate>();

/// The memory could not be had.
#[derive(Debug, thiserror::Error)]
#[error("shared memory of {BYTES} bytes for the gates")]
pub struct GateError(#[source] std::io::Error);

impl From<nix::Error> for GateError {
    fn from(errno: nix::Error) -> Self {
        Self(errno.into())
    }
}

/// A mapping of the gates of all processes of a lane.
#[derive(Debug)]
pub struct Gates(NonNull<libc::c_void>);

// SAFETY: the mapping is plain memory that stays until `drop`; every word in it is an atomic.
unsafe impl Send for Gates {}
// SAFETY: as above: shared access is by atomics alone.
unsafe impl Sync for Gates {}

impl Gates {
    /// Makes them, and the file that carries them to another process.
    pub fn create() -> Result<(Self, OwnedFd), GateError> {
        let file = memfd_create("killpoint-gates", MFdFlags::MFD_CLOEXEC)?;
        nix::unistd::ftruncate(file.as_fd(), i64::try_from(BYTES).unwrap_or(i64::MAX))?;
        Ok((Self::map(file.as_fd())?, file))
    }

    /// Maps those that another process made.
    pub fn map(file: impl AsFd) -> Result<Self, GateError> {
        let there = nix::sys::stat::fstat(file.as_fd())?.st_size;
        if usize::try_from(there).is_ok_and(|there| there < BYTES) {
            return Err(nix::Error::EOVERFLOW.into());
        }
        let length = NonZeroUsize::new(BYTES).ok_or(nix::Error::EINVAL)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new shared mapping at an address of the kernel's choice aliases nothing of
        // ours, and the length was just checked against the file's.
        let base = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Self(base))
    }

    /// The gate of process `index`.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`SLOTS`].
    #[must_use]
    pub fn gate(&self, index: usize) -> &Gate {
        assert!(index < SLOTS, "slot {index} of {SLOTS}");
        // SAFETY: the address is within the mapping, a multiple of 64, and any bytes are a valid
        // `Gate`, which holds nothing but atomics.
        unsafe { self.0.cast::<Gate>().add(index).as_ref() }
    }
}

impl Drop for Gates {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and every reference into it borrows `self`.
        let unmapped = unsafe { munmap(self.0, BYTES) };
        debug_assert!(unmapped.is_ok(), "munmap of our own mapping");
    }
}
