//! Waiting for what another process holds: short pauses that grow, with jitter, up to a deadline.
//!
//! Without jitter, processes that met once meet again at each try. Without a bound on the pause,
//! the unluckiest waits long after the lock is free.

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant};

/// The first pause and the longest, before jitter.
const SHORTEST: Duration = Duration::from_micros(50);
const LONGEST: Duration = Duration::from_micros(200);

/// The pauses of one wait.
#[derive(Debug)]
pub(crate) struct Backoff {
    started: Instant,
    patience: Duration,
    next: Duration,
    longest: Duration,
}

impl Backoff {
    pub(crate) fn new(started: Instant, patience: Duration) -> Self {
        Self { started, patience, next: SHORTEST, longest: LONGEST }
    }

    /// Pauses that do not grow.
    pub(crate) fn steady(started: Instant, patience: Duration, pause: Duration) -> Self {
        Self { started, patience, next: pause, longest: pause }
    }

    /// Pauses for a while. `false`: the deadline has passed, and there was no pause.
    pub(crate) fn pause(&mut self) -> bool {
        let left = self.patience.saturating_sub(self.started.elapsed());
        if left.is_zero() {
            return false;
        }
        let pause = self.next.mul_f64(0.5 + random_fraction());
        self.next = (self.next * 2).min(self.longest);
        sleep(pause.min(left));
        true
    }
}

#[expect(clippy::disallowed_methods, reason = "a lock of another process gives no sign when free")]
fn sleep(pause: Duration) {
    thread::sleep(pause);
}

/// Somewhere from 0 up to 1, other in every process and thread. It decides nothing but how long a
/// pause is.
fn random_fraction() -> f64 {
    thread_local! {
        static STATE: Cell<u64> = Cell::new(seed());
    }
    STATE.with(|state| {
        // xorshift64 (Marsaglia 2003).
        let mut x = state.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        state.set(x);
        f64::from(u32::try_from(x >> 32).unwrap_or(0)) / (f64::from(u32::MAX) + 1.0)
    })
}

fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id()) | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_end_at_the_deadline_and_not_before() {
        let started = Instant::now();
        let patience = Duration::from_millis(20);
        let mut backoff = Backoff::new(started, patience);
        while backoff.pause() {}
        assert!(started.elapsed() >= patience);
        assert!(!Backoff::new(Instant::now(), Duration::ZERO).pause());
    }

    #[test]
    fn fractions_differ_and_stay_below_one() {
        let fractions: Vec<_> = (0..100).map(|_| random_fraction()).collect();
        assert!(fractions.iter().all(|fraction| (0.0..1.0).contains(fraction)));
        assert!(fractions.windows(2).any(|pair| pair[0] < pair[1]));
        assert!(fractions.windows(2).any(|pair| pair[0] > pair[1]));
    }
}
