//! What victims are told of chance, time and themselves, where that is to repeat.
//!
//! `getrandom`, reads of clocks and process numbers are answered here and never happen;
//! `/dev/urandom` is opened as a file of seeded bytes; the vDSO, which would read the clock without
//! a call, is hidden from each program as it starts. Every answer is a function of the seed and of
//! what the victim did before.
//!
//! Not here: the time-stamp counter, addresses (see [`Command::fixed_addresses`]), and the numbers
//! that `fork` and `wait` give, which are the kernel's.
//!
//! [`Command::fixed_addresses`]: super::Command::fixed_addresses

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use rand::Rng as _;

use super::arch;
use super::calls::{CallKind, Sys};
use super::hash::NumberMap;
use super::memory::Memory;
use super::operation::{Syscall, low};
use super::ptrace::{self, CallInfo, Resume};
use super::state::{Activity, State};
use super::supervisor::{Supervisor, unless_dead};
use super::{ProcessId, ThreadId, TraceError};
use crate::plan::Stream;

/// Where virtual time begins: 2026-01-01, ns since the epoch; and the machine's up-time then.
const EPOCH_NS: u64 = 1_767_225_600_000_000_000;
const UPTIME_NS: u64 = 1_000_000_000_000;
/// What one look at a clock adds to it, so that waiting for a moment comes to an end.
const LOOK_NS: u64 = 1_000;
/// The first process number that a victim is told.
const FIRST_NUMBER: i64 = 70_000;
/// Bytes that one open of `/dev/urandom` can give.
const URANDOM_BYTES: usize = 4_096;
/// Below the stack pointer: 128 bytes that leaf functions use, and room for a path.
const RED_ZONE_BYTES: u64 = 128;
/// The most that one `getrandom` is answered with; the kernel, too, may give less than asked.
const RANDOM_BYTES_MAX: u64 = 4_096;

/// A made-up world.
#[derive(Clone, Debug)]
pub struct World {
    /// Decides all that is random in it.
    pub seed: u64,
    /// A directory for the files that stand in for `/dev/urandom`.
    pub dir: PathBuf,
}

/// The world of one run, under way.
#[derive(Debug)]
pub(super) struct Answers {
    world: World,
    /// Virtual time, ns since it began.
    now_ns: u64,
    known: NumberMap<ProcessId, Known>,
    /// Whether victims are forked by a nursery, which they may ask for by its number.
    pub(super) parents_are_real: bool,
    born: NumberMap<i32, u32>,
}

/// A process as this world knows it.
#[derive(Debug)]
struct Known {
    /// The number that it is told.
    number: i64,
    chance: Stream,
    /// Opens of `/dev/urandom`.
    opened: u32,
    label: String,
}

impl Answers {
    pub(super) fn new(world: World) -> Self {
        Self {
            world,
            now_ns: 0,
            known: NumberMap::default(),
            parents_are_real: false,
            born: NumberMap::default(),
        }
    }

    /// A process by its copy and its place among the processes of that copy: these repeat.
    fn known(&mut self, process: ProcessId, copy: usize) -> &mut Known {
        let seed = self.world.seed;
        let copy = i32::try_from(copy).unwrap_or(i32::MAX);
        let born = &mut self.born;
        self.known.entry(process).or_insert_with(|| {
            let nth = born.entry(copy).or_default();
            let label = format!("{copy}-{nth}");
            *nth += 1;
            let number = FIRST_NUMBER + i64::from(copy) * 100 + i64::from(*nth);
            let chance = Stream::new(seed, &format!("world/{label}"));
            Known { number, chance, opened: 0, label }
        })
    }

    fn look(&mut self) -> u64 {
        self.now_ns += LOOK_NS;
        self.now_ns
    }

    /// A sleep of `ns` takes no time, but is over later.
    fn sleep(&mut self, ns: u64) {
        self.now_ns = self.now_ns.saturating_add(ns);
    }
}

/// Seconds, and the rest in `parts` of a second.
fn split(ns: u64, parts: u64) -> [u8; 16] {
    let (seconds, rest) = (ns / 1_000_000_000, ns % 1_000_000_000 / (1_000_000_000 / parts));
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&seconds.to_ne_bytes());
    bytes[8..].copy_from_slice(&rest.to_ne_bytes());
    bytes
}

/// What a clock of this number says at virtual time `now_ns`.
fn clock_ns(clock: u32, now_ns: u64) -> u64 {
    let of_day = [libc::CLOCK_REALTIME, libc::CLOCK_REALTIME_COARSE, libc::CLOCK_TAI];
    let of_day = of_day.iter().any(|known| clock.cast_signed() == *known);
    now_ns + if of_day { EPOCH_NS } else { UPTIME_NS }
}

/// How a call is dealt with.
enum Answer {
    /// It does not happen and returns this.
    Result(i64),
    /// It happens on this path in place of its own.
    Path(PathBuf),
    /// It happens.
    None,
}

impl Supervisor {
    /// Answers a call of a made-up world; false if it is to be looked at as any other.
    pub(super) fn answer(&mut self, thread: ThreadId, call: &Syscall) -> Result<bool, TraceError> {
        let kind = call.sys.kind();
        if !super::CallSet::WORLD.contains(kind) {
            return Ok(false);
        }
        let Some(answers) = self.answers.as_mut() else { return Ok(false) };
        let wanted = self.state.options.calls.contains(kind);
        match answer(answers, &self.state, thread, call) {
            Answer::Result(result) => {
                self.state.stops += 1;
                self.skip(thread, result)?;
                Ok(true)
            }
            Answer::Path(path) => {
                self.substitute(thread, call, &path)?;
                Ok(true)
            }
            Answer::None if wanted => Ok(false),
            Answer::None => {
                self.resume(thread, Resume::Run, 0)?;
                Ok(true)
            }
        }
    }

    /// Lets an open happen on `path`, which is written below the thread's stack for it.
    fn substitute(
        &mut self,
        thread: ThreadId,
        call: &Syscall,
        path: &Path,
    ) -> Result<(), TraceError> {
        use std::os::unix::ffi::OsStrExt as _;
        let index = path_index(call.sys);
        let mut bytes = path.as_os_str().as_bytes().to_vec();
        bytes.push(0);
        let put = || -> Result<(), Errno> {
            let room = RED_ZONE_BYTES + bytes.len().next_multiple_of(16) as u64;
            let at = arch::stack_pointer(thread.0)?.saturating_sub(room);
            let process = self.state.threads.get(&thread).map(|record| record.process);
            let memory = process.and_then(|process| self.state.memory(process).ok());
            memory.ok_or(Errno::EFAULT)?.write(at, &bytes).map_err(|_| Errno::EFAULT)?;
            arch::set_argument(thread.0, index, at)
        };
        if let Err(errno) = put() {
            return unless_dead(thread, "give another path", errno);
        }
        self.resume(thread, Resume::ToExit, 0)?;
        self.set_activity(thread, Activity::Substituted { index, value: call.arguments[index] });
        Ok(())
    }

    /// A sleep that is skipped moves virtual time.
    pub(super) fn slept(&mut self, process: ProcessId, call: &Syscall) {
        let Some(answers) = self.answers.as_mut() else { return };
        let absolute = call.sys == Sys::ClockNanosleep && call.arguments[1] & 1 != 0;
        let at = if call.sys == Sys::ClockNanosleep { 2 } else { 0 };
        let Ok(memory) = self.state.memory(process) else { return };
        let Ok(bytes) = memory.bytes::<16>(call.arguments[at]) else { return };
        let (seconds, rest) = bytes.split_at(8);
        let word = |half: &[u8]| half.try_into().map_or(0, u64::from_ne_bytes);
        let asked = word(seconds).saturating_mul(1_000_000_000).saturating_add(word(rest));
        let now = clock_ns(low(call.arguments[0]), answers.now_ns);
        answers.sleep(if absolute { asked.saturating_sub(now) } else { asked });
    }
}

/// Where the path stands among the arguments of an open.
fn path_index(sys: Sys) -> usize {
    usize::from(matches!(sys, Sys::Openat | Sys::Openat2))
}

fn answer(answers: &mut Answers, state: &State, thread: ThreadId, call: &Syscall) -> Answer {
    let Some(record) = state.threads.get(&thread) else { return Answer::None };
    let process = record.process;
    let copy = state.processes.get(&process).map_or(0, |process| process.copy);
    let Ok(memory) = state.memory(process) else { return Answer::None };
    let [a, b, ..] = call.arguments;
    // A pointer that leads nowhere fails as it would: by the real call.
    let put = |at: u64, bytes: &[u8], result: i64| match memory.write(at, bytes) {
        Ok(()) => Answer::Result(result),
        Err(_) => Answer::None,
    };
    match call.sys {
        Sys::Getrandom => {
            let mut bytes = vec![0; usize::try_from(b.min(RANDOM_BYTES_MAX)).unwrap_or(0)];
            answers.known(process, copy).chance.rng().fill_bytes(&mut bytes);
            put(a, &bytes, i64::try_from(bytes.len()).unwrap_or(0))
        }
        Sys::ClockGettime => put(b, &split(clock_ns(low(a), answers.look()), 1_000_000_000), 0),
        Sys::Gettimeofday if a != 0 => put(a, &split(EPOCH_NS + answers.look(), 1_000_000), 0),
        Sys::Gettimeofday => Answer::Result(0),
        Sys::Time => {
            let seconds = (EPOCH_NS + answers.look()) / 1_000_000_000;
            let result = seconds.cast_signed();
            if a == 0 { Answer::Result(result) } else { put(a, &seconds.to_ne_bytes(), result) }
        }
        Sys::Getpid => Answer::Result(answers.known(process, copy).number),
        Sys::Gettid => {
            let number = answers.known(process, copy).number;
            // Threads are born one at a time, and the kernel numbers them upwards.
            let place = state
                .threads
                .iter()
                .filter(|(id, other)| other.process == process && id.0 < thread.0);
            Answer::Result(number + i64::try_from(place.count()).unwrap_or(0))
        }
        Sys::Getppid if answers.parents_are_real => Answer::None,
        Sys::Getppid => Answer::Result(FIRST_NUMBER),
        _ if call.sys.kind() == CallKind::Open => {
            let asked = memory.path(call.arguments[path_index(call.sys)]).unwrap_or_default();
            if asked != b"/dev/urandom" && asked != b"/dev/random" {
                return Answer::None;
            }
            let dir = answers.world.dir.clone();
            stand_in(answers.known(process, copy), &dir).map_or(Answer::None, Answer::Path)
        }
        _ => Answer::None,
    }
}

/// A new file of seeded bytes for one open of `/dev/urandom`.
fn stand_in(known: &mut Known, dir: &Path) -> io::Result<PathBuf> {
    let path = dir.join(format!("urandom-{}-{}", known.label, known.opened));
    known.opened += 1;
    let mut bytes = vec![0; URANDOM_BYTES];
    known.chance.rng().fill_bytes(&mut bytes);
    std::fs::write(&path, bytes)?;
    Ok(path)
}

/// Makes a program that stands at its beginning repeat: its clocks are read by calls, since the
/// vDSO is hidden, and the random bytes that the kernel put on its stack are fixed ones.
pub(super) fn prepare_program(process: i32) -> io::Result<()> {
    const AT_NULL: u64 = 0;
    const AT_IGNORE: u64 = 1;
    const AT_RANDOM: u64 = 25;
    const AT_SYSINFO_EHDR: u64 = 33;
    let memory = Memory::open(ProcessId(process))?;
    let mut at = arch::stack_pointer(process).map_err(io::Error::from)?;
    // The stack holds: the count of arguments, them, 0, the environment, 0, and pairs of words.
    at += 8 * (2 + memory.word(at)?);
    while memory.word(at)? != 0 {
        at += 8;
    }
    at += 8;
    loop {
        match memory.word(at)? {
            AT_NULL => return Ok(()),
            AT_SYSINFO_EHDR => memory.set_word(at, AT_IGNORE)?,
            AT_RANDOM => memory.write(memory.word(at + 8)?, &fixed_bytes(16))?,
            _ => {}
        }
        at += 16;
    }
}

fn fixed_bytes(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Stream::new(0, "program").rng().fill_bytes(&mut bytes);
    bytes
}

/// Answers a nursery that stands before a call: randomness is fixed, all else happens.
pub(super) fn answer_nursery(thread: i32) -> Result<(), Errno> {
    let CallInfo::Filtered { index, arguments } = ptrace::call_info(thread)? else {
        return Ok(());
    };
    if Sys::from_index(index) != Some(Sys::Getrandom) {
        return Ok(());
    }
    let length = arguments[1].min(RANDOM_BYTES_MAX);
    let bytes = fixed_bytes(usize::try_from(length).unwrap_or(0));
    let memory = Memory::open(ProcessId(thread)).map_err(|_| Errno::EFAULT)?;
    memory.write(arguments[0], &bytes).map_err(|_| Errno::EFAULT)?;
    arch::skip_call(thread, i64::try_from(length).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(seed: u64) -> Answers {
        Answers::new(World { seed, dir: PathBuf::new() })
    }

    #[test]
    fn randomness_repeats_by_copy_and_place_whatever_number_the_kernel_gives() {
        let bits = |seed, process, copy| {
            let mut answers = world(seed);
            answers.known(ProcessId(process), copy).chance.bits()
        };
        assert_eq!(bits(5, 4711, 0), bits(5, 999, 0));
        assert_ne!(bits(5, 4711, 0), bits(5, 4711, 1));
        assert_ne!(bits(5, 4711, 0), bits(6, 4711, 0));
    }

    #[test]
    fn a_child_has_another_number_and_other_randomness_than_its_parent() {
        let mut answers = world(1);
        let (parent, first) = {
            let known = answers.known(ProcessId(10), 0);
            (known.number, known.chance.bits())
        };
        let child = answers.known(ProcessId(11), 0);
        assert_ne!((parent, first), (child.number, child.chance.bits()));
    }

    #[test]
    fn time_goes_on_with_each_look_and_each_sleep() {
        let mut answers = world(1);
        let first = answers.look();
        answers.sleep(5_000_000);
        assert_eq!(answers.look(), first + 5_000_000 + LOOK_NS);
        assert_eq!(split(1_500_000_000, 1_000_000)[8..], 500_000_u64.to_ne_bytes());
    }
}
