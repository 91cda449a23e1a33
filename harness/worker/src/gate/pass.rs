//! The victim's side: SQLite's own ways to lock and to write, with the gate before them.
#![expect(unsafe_code, reason = "SQLite calls these as C functions, with bare pointers")]

use super::{Gate, HEAD_BYTES, PASS, Passed};
use crate::ledger::Slot;
use crate::shim;
use nix::errno::Errno;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// A write before this byte may be to the head of a WAL, where what it means depends on the file's
/// size at that moment: it always stops.
const HEAD_OF_WAL_BYTES: i64 = 32;

/// The numbers of the two calls.
const FCNTL: isize = if cfg!(target_arch = "x86_64") { 72 } else { 25 };
const PWRITE: isize = if cfg!(target_arch = "x86_64") { 18 } else { 68 };
const _: () = assert!(FCNTL as i64 == libc::SYS_fcntl && PWRITE as i64 == libc::SYS_pwrite64);

/// The gate of this process; set once, after the fork.
static GATE: AtomicPtr<Gate> = AtomicPtr::new(ptr::null_mut());
/// Where this process says how far it is in its script; likewise.
static SLOT: AtomicPtr<Slot> = AtomicPtr::new(ptr::null_mut());

/// Has lock calls and writes of this process's SQLite go through `gate`.
///
/// Those that may pass are `fcntl` with `F_SETLK` or `F_OFD_SETLK`, which waits for nobody, and
/// `pwrite` behind the head of a WAL. All else that a supervisor traces (syncs, truncations,
/// mappings, opens, closes, sleeps) changes more than the call itself tells, and stops.
pub(crate) fn arm(gate: &'static Gate, slot: &'static Slot) {
    type Any = unsafe extern "C" fn();
    type Fcntl = unsafe extern "C" fn(c_int, c_int, *mut c_void) -> c_int;
    type Pwrite = unsafe extern "C" fn(c_int, *const c_void, usize, i64) -> isize;
    SLOT.store(ptr::from_ref(slot).cast_mut(), Ordering::Release);
    GATE.store(ptr::from_ref(gate).cast_mut(), Ordering::Release);
    // SAFETY: SQLite calls what it is given by the types of `fcntl` and `pwrite`. The former is
    // variadic there; on the processors that are supported its third argument is where a fixed
    // one is.
    let (fcntl, pwrite) = unsafe {
        (std::mem::transmute::<Fcntl, Any>(fcntl), std::mem::transmute::<Pwrite, Any>(pwrite))
    };
    // A build of SQLite has one of the two names for writes.
    for (name, call) in [(c"fcntl", fcntl), (c"pwrite", pwrite), (c"pwrite64", pwrite)] {
        shim::set_system_call(name, call);
    }
}

/// A descriptor or a command as the kernel takes it; those that pass are not negative.
fn word(value: c_int) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// A system call with [`PASS`] as its sixth argument, which the kernel ignores where a call
/// has no more than four. The register is emptied again at once: a later call of the program, which
/// leaves it as it is, must not pass by it. So this is not `libc::syscall`.
///
/// # Safety
///
/// As for the call.
unsafe fn call(number: isize, [a, b, c, d]: [usize; 4]) -> isize {
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: by the caller; the kernel changes rax, rcx and r11 alone.
    unsafe {
        std::arch::asm!(
            "syscall",
            "xor r9d, r9d",
            inlateout("rax") number => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") 0_usize,
            inlateout("r9") PASS => _,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: by the caller; the kernel changes x0 alone.
    unsafe {
        std::arch::asm!(
            "svc 0",
            "mov x5, xzr",
            in("x8") number,
            inlateout("x0") a.cast_signed() => result,
            in("x1") b,
            in("x2") c,
            in("x3") d,
            in("x4") 0_usize,
            inlateout("x5") PASS => _,
            options(nostack),
        );
    }
    if result < 0 {
        let code = c_int::try_from(-result).unwrap_or(libc::EIO);
        Errno::from_raw(code).set();
        return -1;
    }
    result
}

fn gate() -> Option<&'static Gate> {
    // SAFETY: null or the address of a gate that lives for ever, by `arm`.
    unsafe { GATE.load(Ordering::Acquire).as_ref() }
}

/// Whether a call may pass; it is noted then.
fn passes(gate: &Gate, call: Passed) -> bool {
    // SAFETY: null or the address of a slot that lives for ever, by `arm`.
    let slot = unsafe { SLOT.load(Ordering::Acquire).as_ref() };
    gate.pass(call, slot.map_or(0, Slot::script_step))
}

unsafe extern "C" fn fcntl(fd: c_int, command: c_int, argument: *mut c_void) -> c_int {
    if matches!(command, libc::F_SETLK | libc::F_OFD_SETLK)
        && let Some(gate) = gate()
    {
        // SAFETY: with these commands the argument is a `struct flock`, as for the kernel.
        let asked = unsafe { &*argument.cast::<libc::flock>() };
        let lock = Passed::Lock {
            fd,
            of_open_file: command == libc::F_OFD_SETLK,
            kind: asked.l_type,
            whence: asked.l_whence,
            start: asked.l_start,
            length: asked.l_len,
        };
        if passes(gate, lock) {
            let (fd, command) = (word(fd), word(command));
            // SAFETY: the very call that was asked for.
            let result = unsafe { call(FCNTL, [fd, command, argument.addr(), 0]) };
            return c_int::try_from(result).unwrap_or(-1);
        }
    }
    // SAFETY: the caller's own arguments.
    unsafe { libc::fcntl(fd, command, argument) }
}

unsafe extern "C" fn pwrite(fd: c_int, from: *const c_void, bytes: usize, at: i64) -> isize {
    if at >= HEAD_OF_WAL_BYTES
        && let Some(gate) = gate()
    {
        let mut head = [0; HEAD_BYTES];
        // SAFETY: the caller's buffer has `bytes` bytes, and no more than that are read.
        unsafe {
            let count = bytes.min(HEAD_BYTES);
            ptr::copy_nonoverlapping(from.cast::<u8>(), head.as_mut_ptr(), count);
        }
        let (offset, length) = (at.unsigned_abs(), bytes as u64);
        if passes(gate, Passed::Write { fd, offset, length, head }) {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            // SAFETY: the very call that was asked for.
            return unsafe { call(PWRITE, [word(fd), from.addr(), bytes, at]) };
        }
    }
    // SAFETY: the caller's own arguments.
    unsafe { libc::pwrite(fd, from, bytes, at) }
}
