//! x86-64: numbers of `arch/x86/entry/syscalls/syscall_64.tbl`, registers of `user_regs_struct`.

use framehop::x86_64::UnwindRegsX86_64;
use nix::errno::Errno;

use super::super::calls::Sys;
use super::super::ptrace::{self, RegisterSet};
use super::UnwindStart;

/// `AUDIT_ARCH_X86_64`.
pub(in super::super) const AUDIT_ARCH: u32 = 0xc000_003e;

/// From here on a number is one of the x32 architecture (`__X32_SYSCALL_BIT`).
pub(in super::super) const FOREIGN_NUMBERS_FROM: Option<u32> = Some(0x4000_0000);

/// The number of `call`; every traced call has one here.
#[expect(clippy::unnecessary_wraps, reason = "on aarch64 some calls have no number")]
pub(in super::super) const fn number(call: Sys) -> Option<u32> {
    Some(match call {
        Sys::Read => 0,
        Sys::Write => 1,
        Sys::Open => 2,
        Sys::Close => 3,
        Sys::Mmap => 9,
        Sys::Munmap => 11,
        Sys::IoctlClone => 16,
        Sys::Pread64 => 17,
        Sys::Pwrite64 => 18,
        Sys::Readv => 19,
        Sys::Writev => 20,
        Sys::Dup => 32,
        Sys::Dup2 => 33,
        Sys::Nanosleep => 35,
        Sys::Getpid => 39,
        Sys::Sendfile => 40,
        Sys::FcntlLock | Sys::FcntlDup => 72,
        Sys::Flock => 73,
        Sys::Fsync => 74,
        Sys::Fdatasync => 75,
        Sys::Truncate => 76,
        Sys::Ftruncate => 77,
        Sys::Rename => 82,
        Sys::Creat => 85,
        Sys::Link => 86,
        Sys::Unlink => 87,
        Sys::Gettimeofday => 96,
        Sys::Getppid => 110,
        Sys::Gettid => 186,
        Sys::Time => 201,
        Sys::ClockGettime => 228,
        Sys::ClockNanosleep => 230,
        Sys::Openat => 257,
        Sys::Unlinkat => 263,
        Sys::Renameat => 264,
        Sys::Linkat => 265,
        Sys::Splice => 275,
        Sys::SyncFileRange => 277,
        Sys::Fallocate => 285,
        Sys::Dup3 => 292,
        Sys::Preadv => 295,
        Sys::Pwritev => 296,
        Sys::Renameat2 => 316,
        Sys::Getrandom => 318,
        Sys::CopyFileRange => 326,
        Sys::Preadv2 => 327,
        Sys::Pwritev2 => 328,
        Sys::IoUringSetup => 425,
        Sys::CloseRange => 436,
        Sys::Openat2 => 437,
    })
}

/// Makes the call that `thread` is stopped before not happen, and return `result`.
pub(in super::super) fn skip_call(thread: i32, result: i64) -> Result<(), Errno> {
    let mut registers = read(thread)?;
    registers.orig_rax = u64::MAX;
    registers.rax = result.cast_unsigned();
    write(thread, &registers)
}

/// Sets one argument (0 to 5) of the call that `thread` is stopped before or has just left.
pub(in super::super) fn set_argument(thread: i32, index: usize, value: u64) -> Result<(), Errno> {
    let mut registers = read(thread)?;
    let register = match index {
        0 => &mut registers.rdi,
        1 => &mut registers.rsi,
        2 => &mut registers.rdx,
        3 => &mut registers.r10,
        4 => &mut registers.r8,
        _ => &mut registers.r9,
    };
    *register = value;
    write(thread, &registers)
}

/// Has a thread that has just left a call make that call again, with its arguments as they were.
pub(in super::super) fn repeat_call(thread: i32, call: Sys) -> Result<(), Errno> {
    /// Bytes of the instruction `syscall`.
    const SYSCALL_BYTES: u64 = 2;
    let mut registers = read(thread)?;
    registers.rip -= SYSCALL_BYTES;
    registers.rax = number(call).map_or(u64::MAX, u64::from);
    write(thread, &registers)
}

/// The stack pointer of a stopped thread.
pub(in super::super) fn stack_pointer(thread: i32) -> Result<u64, Errno> {
    read(thread).map(|registers| registers.rsp)
}

/// Stops `thread` after each access to the eight bytes at `address`, by the first debug register;
/// `None` ends that.
pub(in super::super) fn watch(thread: i32, address: Option<u64>) -> Result<(), Errno> {
    /// DR7: the first register, local; and at its place for it "read or write" and "8 bytes".
    const ENABLE: u64 = 1 | (0b1011 << 16);
    // The address is only ever changed while the register is off; what DR6 tells is not looked at.
    match address {
        Some(address) => {
            ptrace::set_debug_register(thread, 0, address)?;
            ptrace::set_debug_register(thread, 7, ENABLE)
        }
        None => ptrace::set_debug_register(thread, 7, 0),
    }
}

/// Where the stack of a stopped thread begins.
pub(in super::super) fn unwind_start(thread: i32) -> Result<UnwindStart<UnwindRegsX86_64>, Errno> {
    let registers = read(thread)?;
    let (pc, sp) = (registers.rip, registers.rsp);
    Ok(UnwindStart { pc, sp, registers: UnwindRegsX86_64::new(pc, sp, registers.rbp) })
}

fn read(thread: i32) -> Result<libc::user_regs_struct, Errno> {
    ptrace::registers(thread, RegisterSet::General)
}

fn write(thread: i32, registers: &libc::user_regs_struct) -> Result<(), Errno> {
    ptrace::set_registers(thread, RegisterSet::General, registers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_c_library() {
        let known = [
            (Sys::Pwrite64, libc::SYS_pwrite64),
            (Sys::Pwritev2, libc::SYS_pwritev2),
            (Sys::Preadv, libc::SYS_preadv),
            (Sys::Fdatasync, libc::SYS_fdatasync),
            (Sys::SyncFileRange, libc::SYS_sync_file_range),
            (Sys::Ftruncate, libc::SYS_ftruncate),
            (Sys::Truncate, libc::SYS_truncate),
            (Sys::Fallocate, libc::SYS_fallocate),
            (Sys::FcntlLock, libc::SYS_fcntl),
            (Sys::Openat2, libc::SYS_openat2),
            (Sys::Creat, libc::SYS_creat),
            (Sys::CloseRange, libc::SYS_close_range),
            (Sys::Dup3, libc::SYS_dup3),
            (Sys::Renameat2, libc::SYS_renameat2),
            (Sys::Linkat, libc::SYS_linkat),
            (Sys::Unlinkat, libc::SYS_unlinkat),
            (Sys::Munmap, libc::SYS_munmap),
            (Sys::ClockNanosleep, libc::SYS_clock_nanosleep),
            (Sys::CopyFileRange, libc::SYS_copy_file_range),
            (Sys::Sendfile, libc::SYS_sendfile),
            (Sys::Splice, libc::SYS_splice),
            (Sys::IoctlClone, libc::SYS_ioctl),
            (Sys::Flock, libc::SYS_flock),
            (Sys::Getrandom, libc::SYS_getrandom),
            (Sys::ClockGettime, libc::SYS_clock_gettime),
            (Sys::Gettimeofday, libc::SYS_gettimeofday),
            (Sys::Time, libc::SYS_time),
            (Sys::Getpid, libc::SYS_getpid),
            (Sys::Gettid, libc::SYS_gettid),
            (Sys::Getppid, libc::SYS_getppid),
        ];
        for (call, expected) in known {
            assert_eq!(number(call).map(i64::from), Some(expected), "{}", call.name());
        }
    }
}
