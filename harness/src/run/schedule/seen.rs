//! What a step was: as it is told, and as a digest by which two runs are compared.

use crate::run::trace::{Offset, Operation, Phase, Stop, Sys};

/// A step as far as it is told when two runs part at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Who, by slot.
    pub slot: usize,
    /// What it came to.
    pub what: What,
}

/// What a thread came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A call, with its offset or first byte.
    Call(Sys, Phase, u64),
    /// A trap.
    Trap,
    /// A lock that it was refused.
    Refused,
    /// A wait in the kernel.
    Waits,
    /// Its end.
    End,
}

impl std::fmt::Display for Seen {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "process {} ", self.slot)?;
        match self.what {
            What::Call(sys, phase, at) => write!(out, "at {} ({phase}, {at})", sys.name()),
            What::Trap => out.write_str("in a trap"),
            What::Refused => out.write_str("refused a lock"),
            What::Waits => out.write_str("waiting in the kernel"),
            What::End => out.write_str("at its end"),
        }
    }
}

/// Where in its file a call works.
pub(super) fn place(stop: &Stop) -> u64 {
    match stop.operation {
        Operation::Write { offset: Offset::At(at), .. }
        | Operation::Read { offset: Offset::At(at), .. }
        | Operation::Map { offset: at, .. }
        | Operation::Truncate { length: at, .. } => at,
        Operation::Lock { ref lock, .. } => lock.start.cast_unsigned(),
        _ => 0,
    }
}

/// What repeats of a stop: the call and what it asks for, but no address and no process number.
pub(super) fn digest(stop: &Stop) -> u32 {
    let (a, b) = match stop.operation {
        Operation::Write { offset: Offset::At(at), length, .. }
        | Operation::Read { offset: Offset::At(at), length, .. } => (at, length),
        Operation::Lock { ref lock, .. } => {
            let kind = lock.kind as u64;
            (lock.start.cast_unsigned() ^ (kind << 60), lock.length.cast_unsigned())
        }
        Operation::Truncate { length, .. } => (length, 1),
        Operation::Map { offset, length, .. } => (offset, length),
        _ => (0, 0),
    };
    let role = stop.file.map_or(0, |file| file.role as u64 + 1);
    let mixed = (stop.call.sys as u64)
        .wrapping_add(role << 8)
        .wrapping_add(a.rotate_left(16))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(b)
        .wrapping_mul(0xd6e8_feb8_6659_fd93);
    u32::try_from(mixed >> 32).unwrap_or(0)
}
