//! Which process this is, without asking the kernel each time.
//!
//! A connection must not be used in another process than the one that opened it. `getpid` would
//! tell, before every write, at the price of a system call. A page that the kernel clears in every
//! child (`madvise(2)`, `MADV_WIPEONFORK`, Linux 4.14) tells for that of a look at memory, and for
//! every way to make a child that does not share the memory.
//!
//! In: nothing. Out: the number of this process. Not here: what is done about a fork.
#![expect(unsafe_code, reason = "a page of memory with a life of its own")]

use std::num::NonZeroUsize;
use std::process;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};

/// The number of this process: that of `getpid`.
pub(crate) fn pid() -> u32 {
    let Some(noted) = noted() else { return process::id() };
    match noted.load(Ordering::Relaxed) {
        0 => {
            let pid = process::id();
            noted.store(pid, Ordering::Relaxed);
            pid
        }
        pid => pid,
    }
}

/// Where this process has noted its number; 0 in a child that has not yet. `None`: the kernel has
/// no such pages.
fn noted() -> Option<&'static AtomicU32> {
    static PAGE: OnceLock<Option<&'static AtomicU32>> = OnceLock::new();
    *PAGE.get_or_init(|| {
        let length = NonZeroUsize::new(4096)?;
        // SAFETY: a new page that is nobody else's, is never unmapped, and is given out only as an
        // atomic number, which all of its bytes are fit for.
        unsafe {
            let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            let page = mmap_anonymous(None, length, access, MapFlags::MAP_PRIVATE).ok()?;
            madvise(page, length.get(), MmapAdvise::MADV_WIPEONFORK).ok()?;
            Some(page.cast::<AtomicU32>().as_ref())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_is_that_of_the_kernel() {
        assert_eq!(pid(), process::id());
        assert_eq!(pid(), process::id());
        assert!(noted().is_some(), "this kernel clears no page, so each write asks for the number");
    }

    #[test]
    fn child_of_a_fork_has_its_own() {
        use nix::sys::wait::{WaitStatus, waitpid};
        use nix::unistd::{ForkResult, fork};
        let parent = pid();
        // SAFETY: the child looks at memory, asks for its number and ends.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let differs = pid() != parent && pid() == process::id();
                // SAFETY: ends the child without anything of the parent's.
                unsafe { nix::libc::_exit(i32::from(!differs)) }
            }
            ForkResult::Parent { child } => {
                let ended = waitpid(child, None).unwrap();
                assert_eq!(ended, WaitStatus::Exited(child, 0));
            }
        }
        assert_eq!(pid(), parent);
    }
}
