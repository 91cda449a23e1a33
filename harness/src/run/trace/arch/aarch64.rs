//! aarch64: numbers of `asm-generic/unistd.h`, registers of `user_pt_regs`.
//!
//! The number of the pending call is a register set of its own (`NT_ARM_SYSTEM_CALL`). Calls that
//! the generic table leaves out (`open`, `unlink`, `rename`, `dup2`) have no number: the C library
//! makes the `*at` call in their place.

use framehop::aarch64::{PtrAuthMask, UnwindRegsAarch64};
use nix::errno::Errno;

use super::super::calls::Sys;
use super::super::ptrace::{self, RegisterSet};
use super::UnwindStart;

/// `AUDIT_ARCH_AARCH64`.
pub(in super::super) const AUDIT_ARCH: u32 = 0xc000_00b7;

/// No numbers of another architecture hide behind the same audit value.
pub(in super::super) const FOREIGN_NUMBERS_FROM: Option<u32> = None;

/// `struct user_pt_regs` of `asm/ptrace.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Registers {
    x: [u64; 31],
    sp: u64,
    pc: u64,
    pstate: u64,
}

/// The number of `call`, if the generic table has it.
pub(in super::super) const fn number(call: Sys) -> Option<u32> {
    Some(match call {
        Sys::Dup => 23,
        Sys::Dup3 => 24,
        Sys::FcntlLock | Sys::FcntlDup => 25,
        Sys::IoctlClone => 29,
        Sys::Flock => 32,
        Sys::Unlinkat => 35,
        Sys::Linkat => 37,
        Sys::Renameat => 38,
        Sys::Truncate => 45,
        Sys::Ftruncate => 46,
        Sys::Fallocate => 47,
        Sys::Openat => 56,
        Sys::Close => 57,
        Sys::Read => 63,
        Sys::Write => 64,
        Sys::Readv => 65,
        Sys::Writev => 66,
        Sys::Pread64 => 67,
        Sys::Pwrite64 => 68,
        Sys::Preadv => 69,
        Sys::Pwritev => 70,
        Sys::Sendfile => 71,
        Sys::Splice => 76,
        Sys::Fsync => 82,
        Sys::Fdatasync => 83,
        Sys::SyncFileRange => 84,
        Sys::Nanosleep => 101,
        Sys::ClockGettime => 113,
        Sys::ClockNanosleep => 115,
        Sys::Gettimeofday => 169,
        Sys::Getpid => 172,
        Sys::Getppid => 173,
        Sys::Gettid => 178,
        Sys::Munmap => 215,
        Sys::Mmap => 222,
        Sys::Renameat2 => 276,
        Sys::Getrandom => 278,
        Sys::CopyFileRange => 285,
        Sys::Preadv2 => 286,
        Sys::Pwritev2 => 287,
        Sys::IoUringSetup => 425,
        Sys::CloseRange => 436,
        Sys::Openat2 => 437,
        Sys::Open | Sys::Creat | Sys::Dup2 | Sys::Unlink | Sys::Rename | Sys::Link | Sys::Time => {
            return None;
        }
    })
}

/// Makes the call that `thread` is stopped before not happen, and return `result`.
pub(in super::super) fn skip_call(thread: i32, result: i64) -> Result<(), Errno> {
    ptrace::set_registers(thread, RegisterSet::SystemCall, &-1_i32)?;
    set_argument(thread, 0, result.cast_unsigned())
}

/// Sets one argument (0 to 5) of the call that `thread` is stopped before or has just left.
pub(in super::super) fn set_argument(thread: i32, index: usize, value: u64) -> Result<(), Errno> {
    let mut registers = read(thread)?;
    registers.x[index] = value;
    ptrace::set_registers(thread, RegisterSet::General, &registers)
}

/// Has a thread that has just left a call make that call again, with its arguments as they were.
pub(in super::super) fn repeat_call(thread: i32, call: Sys) -> Result<(), Errno> {
    /// Bytes of the instruction `svc`.
    const SVC_BYTES: u64 = 4;
    let mut registers = read(thread)?;
    registers.pc -= SVC_BYTES;
    registers.x[8] = number(call).map_or(u64::MAX, u64::from);
    ptrace::set_registers(thread, RegisterSet::General, &registers)
}

/// The stack pointer of a stopped thread.
pub(in super::super) fn stack_pointer(thread: i32) -> Result<u64, Errno> {
    read(thread).map(|registers| registers.sp)
}

/// Watchpoints are not done on this processor: counted steps take their place.
pub(in super::super) fn watch(_thread: i32, address: Option<u64>) -> Result<(), Errno> {
    if address.is_some() { Err(Errno::ENOTSUP) } else { Ok(()) }
}

/// Where the stack of a stopped thread begins.
pub(in super::super) fn unwind_start(thread: i32) -> Result<UnwindStart<UnwindRegsAarch64>, Errno> {
    let Registers { x, sp, pc, .. } = read(thread)?;
    let (fp, lr) = (x[29], x[30]);
    // User addresses have at most 48 bits; pointer authentication uses those above.
    let mask = PtrAuthMask::from_max_known_address(0xffff_ffff_ffff);
    let registers = UnwindRegsAarch64::new_with_ptr_auth_mask(mask, lr, sp, fp);
    Ok(UnwindStart { pc, sp, registers })
}

fn read(thread: i32) -> Result<Registers, Errno> {
    ptrace::registers(thread, RegisterSet::General)
}
