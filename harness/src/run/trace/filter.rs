//! The seccomp program: which system calls stop, decided in the kernel.
//!
//! In: a set of calls. Out: classic BPF for `seccomp(2)`. Nothing here touches a process.
//!
//! A call that stops carries its index in the low 16 bits of the verdict, so that the supervisor
//! learns which it is without knowing a number. What can be decided from the arguments alone (the
//! command of `fcntl`, a private or anonymous `mmap`) is decided here and costs the victim no stop.

use super::arch;
use super::calls::{CallKind, CallSet, Sys};
use killpoint_worker::gate::PASS;

/// The data of a stop at a call of another architecture.
pub(super) const FOREIGN: u16 = 0xffff;

const RET_TRACE: u32 = libc::SECCOMP_RET_TRACE;
const RET_ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

/// Offsets into `struct seccomp_data`: `nr`, `arch`, and the low half of each argument on a
/// little-endian machine.
const NR_AT: u32 = 0;
const ARCH_AT: u32 = 4;
const fn argument_at(index: u32) -> u32 {
    16 + 8 * index
}

/// The sixth argument.
const LAST: u32 = 5;

/// Classic BPF operation codes, as in `linux/bpf_common.h`.
const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const ANY_BIT: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// The commands of `fcntl` that lock: POSIX and open-file-description locks.
const LOCK_COMMANDS: &[u32] = &[
    libc::F_GETLK.cast_unsigned(),
    libc::F_SETLK.cast_unsigned(),
    libc::F_SETLKW.cast_unsigned(),
    libc::F_OFD_GETLK.cast_unsigned(),
    libc::F_OFD_SETLK.cast_unsigned(),
    libc::F_OFD_SETLKW.cast_unsigned(),
];
const DUP_COMMANDS: &[u32] =
    &[libc::F_DUPFD.cast_unsigned(), libc::F_DUPFD_CLOEXEC.cast_unsigned()];
/// `FICLONE` and `FICLONERANGE` of `linux/fs.h`.
const CLONE_COMMANDS: &[u32] = &[0x4004_9409, 0x4020_940d];

/// What of the arguments must hold for a call to stop.
enum Condition {
    Always,
    /// The low half of the argument is one of these.
    OneOf(u32, &'static [u32]),
    /// The low half of the argument has one of these bits.
    Bits(u32, u32),
}

/// Several traced calls may share a number (`fcntl`): each has a condition of its own.
fn condition(call: Sys) -> Condition {
    match call {
        Sys::FcntlLock => Condition::OneOf(1, LOCK_COMMANDS),
        Sys::FcntlDup => Condition::OneOf(1, DUP_COMMANDS),
        Sys::IoctlClone => Condition::OneOf(1, CLONE_COMMANDS),
        // MAP_SHARED or MAP_SHARED_VALIDATE: libraries are mapped privately.
        Sys::Mmap => Condition::Bits(3, libc::MAP_SHARED.cast_unsigned()),
        _ => Condition::Always,
    }
}

/// The program for `calls`, to be given to `seccomp(SECCOMP_SET_MODE_FILTER)`. With `gated` a call
/// that says of itself that it was let pass happens without a stop.
pub(super) fn program(calls: CallSet, gated: bool) -> Vec<libc::sock_filter> {
    let mut program = vec![
        statement(LOAD, ARCH_AT),
        jump(EQUAL, arch::AUDIT_ARCH, 1, 0),
        statement(RETURN, RET_TRACE | u32::from(FOREIGN)),
    ];
    program.push(statement(LOAD, NR_AT));
    if let (true, Some(write), Some(lock)) =
        (gated, arch::number(Sys::Pwrite64), arch::number(Sys::FcntlLock))
    {
        let [low, high] = halves(PASS);
        program.extend([
            jump(EQUAL, write, 1, 0),
            jump(EQUAL, lock, 0, 6),
            statement(LOAD, argument_at(LAST)),
            jump(EQUAL, low, 0, 3),
            statement(LOAD, argument_at(LAST) + 4),
            jump(EQUAL, high, 0, 1),
            statement(RETURN, RET_ALLOW),
            statement(LOAD, NR_AT),
        ]);
    }
    if let Some(first) = arch::FOREIGN_NUMBERS_FROM {
        program.push(jump(AT_LEAST, first, 0, 1));
        program.push(statement(RETURN, RET_TRACE | u32::from(FOREIGN)));
    }
    let calls = calls.with(CallKind::Ring);
    let traced = Sys::ALL.iter().copied().filter(|call| calls.contains(call.kind()));
    for (call, number) in traced.filter_map(|call| Some((call, arch::number(call)?))) {
        let block = block(call);
        program.push(jump(EQUAL, number, 0, length(&block)));
        program.extend(block);
    }
    program.push(statement(RETURN, RET_ALLOW));
    program
}

/// What follows once the number is found to be that of `call`. Where the condition does not hold,
/// the number is loaded again and the search goes on behind the block.
fn block(call: Sys) -> Vec<libc::sock_filter> {
    let stop = statement(RETURN, RET_TRACE | u32::from(call as u16));
    match condition(call) {
        Condition::Always => vec![stop],
        Condition::OneOf(index, values) => {
            let mut block = vec![statement(LOAD, argument_at(index))];
            for (place, &value) in values.iter().enumerate() {
                let last = place + 1 == values.len();
                let to_stop = jump_distance(values.len() - place - 1);
                block.push(jump(EQUAL, value, to_stop, u8::from(last)));
            }
            block.extend([stop, statement(LOAD, NR_AT)]);
            block
        }
        Condition::Bits(index, mask) => vec![
            statement(LOAD, argument_at(index)),
            jump(ANY_BIT, mask, 0, 1),
            stop,
            statement(LOAD, NR_AT),
        ],
    }
}

/// The low and the high half of a word.
const fn halves(word: u64) -> [u32; 2] {
    let [low @ .., _, _, _, _] = word.to_le_bytes();
    let [_, _, _, _, high @ ..] = word.to_le_bytes();
    [u32::from_le_bytes(low), u32::from_le_bytes(high)]
}

fn length(block: &[libc::sock_filter]) -> u8 {
    jump_distance(block.len())
}

/// A block has at most nine instructions, so the distance always fits.
fn jump_distance(instructions: usize) -> u8 {
    u8::try_from(instructions).unwrap_or(u8::MAX)
}

const fn statement(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do with a call: classic BPF, interpreted.
    fn verdict(program: &[libc::sock_filter], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend(number.to_le_bytes());
        data.extend(arch.to_le_bytes());
        data.extend(0_u64.to_le_bytes());
        data.extend(arguments.iter().flat_map(|argument| argument.to_le_bytes()));
        let (mut at, mut a) = (0, 0);
        loop {
            let step = program[at];
            at += 1;
            let holds = match step.code {
                LOAD => {
                    let k = step.k as usize;
                    a = u32::from_le_bytes(data[k..k + 4].try_into().unwrap());
                    continue;
                }
                RETURN => return step.k,
                EQUAL => a == step.k,
                AT_LEAST => a >= step.k,
                ANY_BIT => a & step.k != 0,
                other => panic!("unknown operation {other:#x}"),
            };
            at += usize::from(if holds { step.jt } else { step.jf });
        }
    }

    #[track_caller]
    fn check(calls: CallSet, call: Sys, arguments: [u64; 6], stops: bool) {
        let program = program(calls, false);
        let number = arch::number(call).unwrap();
        let expected = if stops { RET_TRACE | u32::from(call as u16) } else { RET_ALLOW };
        assert_eq!(verdict(&program, arch::AUDIT_ARCH, number, arguments), expected);
    }

    #[test]
    fn every_call_of_the_full_set_stops_with_its_own_index() {
        for &call in Sys::ALL.iter().filter(|&&call| arch::number(call).is_some()) {
            let arguments = match condition(call) {
                Condition::Always => [0; 6],
                Condition::OneOf(index, values) => with_argument(index, values[0]),
                Condition::Bits(index, mask) => with_argument(index, mask),
            };
            check(CallSet::ALL, call, arguments, true);
        }
    }

    fn with_argument(index: u32, value: u32) -> [u64; 6] {
        let mut arguments = [0; 6];
        arguments[index as usize] = u64::from(value);
        arguments
    }

    #[test]
    fn call_outside_the_set_runs_at_full_speed() {
        check(CallSet::WRITES_AND_SYNCS, Sys::Pread64, [0; 6], false);
        check(CallSet::WRITES_AND_SYNCS, Sys::Close, [0; 6], false);
        check(CallSet::NONE, Sys::Pwrite64, [0; 6], false);
    }

    #[test]
    fn fcntl_that_neither_locks_nor_duplicates_runs_at_full_speed() {
        for command in [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL] {
            check(CallSet::ALL, Sys::FcntlLock, with_argument(1, command.cast_unsigned()), false);
        }
    }

    #[test]
    fn last_command_of_a_list_stops_as_the_first_does() {
        for commands in [LOCK_COMMANDS, CLONE_COMMANDS, DUP_COMMANDS] {
            let call = match commands.len() {
                6 => Sys::FcntlLock,
                _ if commands == DUP_COMMANDS => Sys::FcntlDup,
                _ => Sys::IoctlClone,
            };
            for &command in commands {
                check(CallSet::ALL, call, with_argument(1, command), true);
            }
        }
    }

    #[test]
    fn private_mapping_runs_at_full_speed() {
        let map = CallSet::NONE.with(CallKind::Map);
        check(map, Sys::Mmap, with_argument(3, libc::MAP_PRIVATE.cast_unsigned()), false);
        check(map, Sys::Mmap, with_argument(3, libc::MAP_SHARED.cast_unsigned()), true);
    }

    #[test]
    fn call_that_was_let_pass_makes_no_stop_where_there_are_gates() {
        let check = |call: Sys, last, gated, passes: bool| {
            let program = program(CallSet::ALL, gated);
            let number = arch::number(call).unwrap();
            let arguments = [0, u64::from(libc::F_SETLK.cast_unsigned()), 0, 0, 0, last];
            let stops = RET_TRACE | u32::from(call as u16);
            let expected = if passes { RET_ALLOW } else { stops };
            assert_eq!(verdict(&program, arch::AUDIT_ARCH, number, arguments), expected);
        };
        for call in [Sys::Pwrite64, Sys::FcntlLock] {
            check(call, PASS, true, true);
            check(call, PASS ^ 1, true, false);
            check(call, PASS ^ (1 << 40), true, false);
            check(call, PASS, false, false);
        }
        check(Sys::Fdatasync, PASS, true, false);
        check(Sys::ClockNanosleep, PASS, true, false);
    }

    #[test]
    fn call_of_another_architecture_is_not_taken_for_ours() {
        let program = program(CallSet::NONE, true);
        let foreign = RET_TRACE | u32::from(FOREIGN);
        assert_eq!(verdict(&program, 0x4000_0003, 1, [0; 6]), foreign);
        if let Some(first) = arch::FOREIGN_NUMBERS_FROM {
            assert_eq!(verdict(&program, arch::AUDIT_ARCH, first, [0; 6]), foreign);
        }
    }
}
