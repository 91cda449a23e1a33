//! Waiting for a condition, with a deadline.

use std::time::{Duration, Instant};

/// How long a wait sleeps between two looks.
const STEP: Duration = Duration::from_micros(60);

/// Waits until `met` or the deadline; says whether it was met.
pub(super) fn until(deadline: Instant, mut met: impl FnMut() -> bool) -> bool {
    loop {
        if met() {
            return true;
        }
        let now = Instant::now();
        if now >= deadline {
            return false;
        }
        sleep(STEP.min(deadline - now));
    }
}

/// Waits until `met` or the deadline without giving up the processor for longer than others want
/// it: for moments that last microseconds.
pub(super) fn closely(deadline: Instant, mut met: impl FnMut() -> bool) -> bool {
    loop {
        if met() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::yield_now();
    }
}

/// Waits until `time`.
pub(super) fn until_time(time: Instant) {
    while let Some(left) = time.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
        sleep(left);
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the module that waits")]
fn sleep(time: Duration) {
    std::thread::sleep(time);
}
