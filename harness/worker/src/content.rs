//! What each operation writes, as a function of who sends it.
//!
//! Titles, payloads and results follow from the session, the operation's number and the index in
//! it. So a judge who knows only that "session 12 sent operation 7, three events" knows every byte
//! that must be there, and no history has to carry the bytes.

use std::fmt::Write as _;

/// What a claim is taken back with that nobody extended.
pub const LEASE_EXPIRED: &str = "lease expired";

/// Mixes a session, an operation and an index into 64 bits (the finaliser of splitmix64).
fn mix(session: i64, op: i64, index: u64) -> u64 {
    let mut x = session.cast_unsigned().wrapping_mul(0x9E37_79B9_7F4A_7C15)
        ^ op.cast_unsigned().rotate_left(32)
        ^ index.wrapping_mul(0xD1B5_4A32_D192_ED03);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The payload of the `index`-th event (from 0) of an operation; `bytes` is least and most.
#[must_use]
pub fn payload(session: i64, op: i64, index: u64, bytes: [u32; 2]) -> String {
    let bits = mix(session, op, index);
    let [least, most] = bytes;
    let span = u64::from(most.saturating_sub(least)) + 1;
    let length = usize::try_from(u64::from(least) + bits % span).unwrap_or(0);
    let mut text = format!("s{session}.{op}.{index} ");
    let mut block = 0_u64;
    while text.len() < length {
        block += 1;
        write!(text, "{:016x}", mix(session, op, index ^ (block << 32)))
            .expect("a String takes every write");
    }
    text.truncate(length.max(1));
    text
}

/// The title of the task that an operation creates.
#[must_use]
pub fn title(session: i64, op: i64) -> String {
    format!("task of session {session}, operation {op}")
}

/// The result that an operation completes a task with.
#[must_use]
pub fn result(session: i64, op: i64) -> String {
    format!("done by session {session}, operation {op}")
}

/// The name that a session claims under.
#[must_use]
pub fn worker(session: i64) -> String {
    format!("worker-{session}")
}

/// The priority of the task that an operation creates, 0 to 2.
#[must_use]
pub fn priority(session: i64, op: i64) -> i64 {
    i64::try_from(mix(session, op, 0) % 3).unwrap_or(0)
}

/// The kind of the `index`-th event of an operation.
#[must_use]
pub fn event_kind(index: u64) -> &'static str {
    if index.is_multiple_of(2) { "progress" } else { "note" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payload_is_the_same_each_time_and_within_its_bounds() {
        for op in 0..200 {
            let text = payload(7, op, 3, [20, 90]);
            assert_eq!(text, payload(7, op, 3, [20, 90]));
            assert!((20..=90).contains(&text.len()), "{} bytes", text.len());
        }
    }

    #[test]
    fn payloads_of_neighbours_differ() {
        assert_ne!(payload(1, 1, 0, [40, 40]), payload(1, 1, 1, [40, 40]));
        assert_ne!(payload(1, 1, 0, [40, 40]), payload(1, 2, 0, [40, 40]));
        assert_ne!(payload(1, 1, 0, [40, 40]), payload(2, 1, 0, [40, 40]));
    }

    #[test]
    fn a_payload_of_no_bytes_still_holds_one() {
        assert_eq!(payload(1, 1, 0, [0, 0]).len(), 1);
    }
}
