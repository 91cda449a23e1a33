//! The two clocks of a lease, read together.
//!
//! The wall clock can be set, and is: by hand, by a time server, by a machine that wakes up. So a
//! lease ends by the clock that counts from the machine's start (`CLOCK_BOOTTIME`, which nobody
//! can set and which counts on during sleep), and the wall clock beside it is for people. A
//! lease of another start of the machine is over: whoever held it ended with that start.
//!
//! In: the kernel's clocks, its boot id. Out: a [`Now`]. Not here: what ends when.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// Where the kernel says which start of the machine this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Stands for the start of the machine where the kernel does not name it. Leases then end by the
/// wall clock.
const UNKNOWN_BOOT: &str = "wall-clock";

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since 1970 on the wall clock.
    pub wall_ms: i64,
    /// Milliseconds since the machine was started, sleep included.
    pub boot_ms: i64,
}

/// Reads the clocks.
///
/// Its clones share their shifts, so a test or a harness that keeps one can move the clocks of a
/// board that is open.
#[derive(Clone, Debug)]
pub struct Clock {
    boot_id: Arc<str>,
    shifts: Arc<Shifts>,
}

#[derive(Debug, Default)]
struct Shifts {
    wall_ms: AtomicI64,
    boot_ms: AtomicI64,
}

impl Default for Clock {
    /// The machine's own clocks.
    fn default() -> Self {
        let boot_id = fs::read_to_string(BOOT_ID).unwrap_or_default();
        let boot_id = boot_id.trim();
        let boot_id = if boot_id.is_empty() { UNKNOWN_BOOT } else { boot_id };
        Self { boot_id: boot_id.into(), shifts: Arc::default() }
    }
}

impl PartialEq for Clock {
    /// Whether both read the same now.
    fn eq(&self, other: &Self) -> bool {
        let shifts = |clock: &Self| {
            let Shifts { wall_ms, boot_ms } = &*clock.shifts;
            (wall_ms.load(Ordering::Relaxed), boot_ms.load(Ordering::Relaxed))
        };
        self.boot_id == other.boot_id && shifts(self) == shifts(other)
    }
}

impl Eq for Clock {}

impl Clock {
    /// A clock as after another start of the machine, called `boot_id`. For tests.
    #[must_use]
    pub fn of_boot(boot_id: &str) -> Self {
        Self { boot_id: boot_id.into(), shifts: Arc::default() }
    }

    /// Sets the wall clock forward, or back when negative, for all clones.
    pub fn shift_wall_ms(&self, by: i64) {
        self.shifts.wall_ms.fetch_add(by, Ordering::Relaxed);
    }

    /// Lets time pass: both clocks go forward, for all clones.
    pub fn pass(&self, time: Duration) {
        let ms = milliseconds(time);
        self.shifts.boot_ms.fetch_add(ms, Ordering::Relaxed);
        self.shifts.wall_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// Names this start of the machine.
    #[must_use]
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// Both clocks, now.
    #[must_use]
    pub fn now(&self) -> Now {
        let Shifts { wall_ms, boot_ms } = &*self.shifts;
        let wall = wall_clock_ms().saturating_add(wall_ms.load(Ordering::Relaxed));
        if &*self.boot_id == UNKNOWN_BOOT {
            return Now { wall_ms: wall, boot_ms: wall };
        }
        let boot = boot_clock_ms().saturating_add(boot_ms.load(Ordering::Relaxed));
        Now { wall_ms: wall, boot_ms: boot }
    }
}

fn wall_clock_ms() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => milliseconds(since),
        Err(before) => -milliseconds(before.duration()),
    }
}

fn boot_clock_ms() -> i64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec.saturating_mul(1000).saturating_add(time.tv_nsec / 1_000_000)
}

/// Whole milliseconds; what is too long for a column is as long as the column can hold.
pub(crate) fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_clock_that_is_set_leaves_the_other_alone() {
        let clock = Clock::default();
        let before = clock.now();
        clock.clone().shift_wall_ms(-3_600_000);
        let after = clock.now();
        assert!(after.wall_ms <= before.wall_ms - 3_500_000, "{before:?} {after:?}");
        assert!(after.boot_ms >= before.boot_ms);
        assert_ne!(clock, Clock::default());
    }

    #[test]
    fn time_that_passes_passes_on_both_clocks() {
        let clock = Clock::default();
        let before = clock.now();
        clock.pass(Duration::from_hours(1));
        let after = clock.now();
        assert!(after.wall_ms >= before.wall_ms + 3_600_000);
        assert!(after.boot_ms >= before.boot_ms + 3_600_000);
    }

    #[test]
    fn start_of_the_machine_has_a_name_that_stays() {
        assert_eq!(Clock::default().boot_id(), Clock::default().boot_id());
        assert!(!Clock::default().boot_id().is_empty());
    }

    #[test]
    fn without_a_boot_id_the_wall_clock_stands_in() {
        let Now { wall_ms, boot_ms } = Clock::of_boot(UNKNOWN_BOOT).now();
        assert_eq!(wall_ms, boot_ms);
    }
}
