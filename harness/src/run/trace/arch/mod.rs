//! What differs between processors: call numbers and registers.
//!
//! Everything else of the tracer is shared, since `PTRACE_GET_SYSCALL_INFO` tells a call and its
//! arguments in one form. Each processor's file offers the same functions; the tests compile that
//! of the other processor too, so that it cannot rot unseen.

#[cfg(any(target_arch = "aarch64", test))]
#[cfg_attr(not(target_arch = "aarch64"), expect(dead_code, reason = "compiled to be checked"))]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub(super) use aarch64::*;
#[cfg(target_arch = "x86_64")]
pub(super) use x86_64::*;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("killpoint traces on x86-64 and aarch64 only");

/// Where an unwinder begins.
#[derive(Clone, Copy)]
pub(super) struct UnwindStart<R> {
    /// Program counter.
    pub(super) pc: u64,
    /// Stack pointer.
    pub(super) sp: u64,
    /// The registers that an unwinder needs.
    pub(super) registers: R,
}
