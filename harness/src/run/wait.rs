//! Waiting for a condition, with a deadline.

use std::time::{Duration, Instant};

/// How long a wait sleeps between two looks.
const STEP: Duration = Duration::from_micros(200);
/// The same for moments that last tens of microseconds.
const CLOSE_STEP: Duration = Duration::from_micros(8);
/// How long a wait for a time goes on without asking whether there is anything left to wait for.
const LONG: Duration = Duration::from_millis(50);
/// How late the kernel may wake this thread, ns; by default it takes 50 µs.
const TIMER_SLACK_NS: u64 = 1;

/// Has this thread's waits end when they should. Without it they are only less close.
pub(super) fn wake_promptly() {
    match nix::sys::prctl::set_timerslack(TIMER_SLACK_NS) {
        Ok(()) | Err(_) => {}
    }
}

/// Waits until `met` or the deadline; says whether it was met.
pub(super) fn until(deadline: Instant, met: impl FnMut() -> bool) -> bool {
    looking_each(STEP, deadline, met)
}

/// The same for moments that last tens of microseconds. It sleeps between two looks all the same:
/// whoever spins takes the processor from the processes that are to reach the moment.
pub(super) fn closely(deadline: Instant, met: impl FnMut() -> bool) -> bool {
    looking_each(CLOSE_STEP, deadline, met)
}

fn looking_each(step: Duration, deadline: Instant, mut met: impl FnMut() -> bool) -> bool {
    loop {
        if met() {
            return true;
        }
        let now = Instant::now();
        if now >= deadline {
            return false;
        }
        sleep(step.min(deadline - now));
    }
}

/// Waits until `time`, or until `over`, which is asked now and then.
pub(super) fn until_time(time: Instant, mut over: impl FnMut() -> bool) {
    while let Some(left) = time.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
        if left > LONG && over() {
            return;
        }
        sleep(left.min(LONG));
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the module that waits")]
fn sleep(time: Duration) {
    std::thread::sleep(time);
}
