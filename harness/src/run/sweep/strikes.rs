//! Which blows at which points: all of them, or as many of each phase.
//!
//! Pure: a function of the recorded points and what was asked for.

use super::Point;
use crate::plan::Stream;
use crate::run::trace::{CallKind, ErrorCode, Phase};
use crate::scenario::sweep::Faults;
use std::collections::BTreeMap;

/// What is done at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blow {
    /// SIGKILL; the call does not happen.
    KillBefore,
    /// SIGKILL; the call has happened.
    KillAfter,
    /// SIGKILL; so many bytes of the write have happened.
    Tear {
        /// At least 1, less than the write.
        bytes: u64,
    },
    /// The call fails.
    Fail(ErrorCode),
    /// This call and every later one of its phase fail.
    FailForGood(ErrorCode),
}

/// Where the blow falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Where {
    /// At the point of this number.
    Point(u64),
    /// At the so-many-th point (from 1) of this phase, over all processes.
    Nth { phase: Phase, nth: u64 },
}

/// One blow at one point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Strike {
    pub(super) at: Where,
    /// The phase of the point in the undisturbed run.
    pub phase: Phase,
    /// What is done.
    pub blow: Blow,
    /// Whether the processes then end without closing.
    pub abandon: bool,
}

impl Strike {
    /// As findings call it.
    #[must_use]
    pub fn describe(&self) -> String {
        let at = match self.at {
            Where::Point(number) => format!("point {number} ({})", self.phase),
            Where::Nth { phase, nth } => format!("{phase} number {nth}"),
        };
        let blow = match self.blow {
            Blow::KillBefore => "killed before".to_owned(),
            Blow::KillAfter => "killed after".to_owned(),
            Blow::Tear { bytes } => format!("killed after {bytes} bytes of"),
            Blow::Fail(code) => format!("{code:?} at").to_uppercase().replace(" AT", " at"),
            Blow::FailForGood(code) => {
                format!("{} from then on at", format!("{code:?}").to_uppercase())
            }
        };
        let end = if self.abandon { ", and not closed" } else { "" };
        format!("{blow} {at}{end}")
    }
}

/// Errors that a call of this kind can fail with.
fn errors_of(kind: CallKind) -> &'static [ErrorCode] {
    use ErrorCode::{Eacces, Eagain, Edquot, Efbig, Eintr, Eio, Enolck, Enomem, Enospc};
    match kind {
        CallKind::Write => &[Eio, Enospc, Edquot, Efbig, Eintr],
        CallKind::Sync => &[Eio, Enospc, Edquot],
        CallKind::Truncate => &[Eio, Efbig, Eintr],
        CallKind::Lock => &[Eagain, Enolck, Eintr, Eacces],
        CallKind::Unlink => &[Eio, Eacces],
        CallKind::Map => &[Enomem],
        _ => &[],
    }
}

/// After how many bytes a write is torn.
fn tears(length: u64, tear_bytes: u32) -> impl Iterator<Item = u64> {
    let step = if length > u64::from(tear_bytes) { u64::from(tear_bytes) } else { 8 };
    (1..).map(move |n| n * step).take_while(move |bytes| tear_bytes > 0 && *bytes < length)
}

/// Every blow at every point, in order. Processes that do not close come no further than to the
/// `abandoned`-th point.
#[must_use]
pub fn exhaustive(points: &[Point], abandoned: u64, faults: &Faults) -> Vec<Strike> {
    let mut strikes = Vec::new();
    for point in points {
        let strike = |blow, abandon| Strike {
            at: Where::Point(point.number),
            phase: point.phase,
            blow,
            abandon,
        };
        if faults.kill {
            strikes.push(strike(Blow::KillBefore, false));
        }
        strikes.extend(
            tears(point.length, faults.tear_bytes).map(|bytes| strike(Blow::Tear { bytes }, false)),
        );
        let possible = errors_of(point.kind);
        for code in faults.errors.iter().copied().filter(|code| possible.contains(code)) {
            // What a failed write or sync left in the page cache shows only if nobody tidies up.
            for abandon in [false, true] {
                if abandon && point.number > abandoned {
                    continue;
                }
                strikes.push(strike(Blow::Fail(code), abandon));
                // A call that is interrupted is made again, by SQLite as by anybody: for ever.
                if faults.errors_for_good && code != ErrorCode::Eintr {
                    strikes.push(strike(Blow::FailForGood(code), abandon));
                }
            }
        }
    }
    if let Some(last) = points.last().filter(|_| faults.kill) {
        let at = Where::Point(last.number);
        let (phase, blow) = (last.phase, Blow::KillAfter);
        strikes.push(Strike { at, phase, blow, abandon: false });
    }
    strikes
}

/// As many kills of each phase, so that those which happen most do not take them all.
#[must_use]
pub fn sampled(points: &[Point], faults: &Faults, seed: u64) -> Vec<Strike> {
    let mut counts: BTreeMap<Phase, u32> = BTreeMap::new();
    for point in points {
        *counts.entry(point.phase).or_default() += 1;
    }
    let mut strikes = Vec::new();
    for (phase, count) in counts {
        let mut stream = Stream::new(seed, &format!("sweep/{phase}"));
        for sample in 0..faults.samples_per_phase {
            // All of them while they last, then any again: interleavings differ each time.
            let nth = if sample < count { sample + 1 } else { stream.within([1, count]) };
            let at = Where::Nth { phase, nth: nth.into() };
            strikes.push(Strike { at, phase, blow: Blow::KillBefore, abandon: false });
        }
    }
    strikes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(number: u64, phase: Phase, kind: CallKind, length: u64) -> Point {
        Point { number, phase, kind, length }
    }

    fn faults() -> Faults {
        Faults {
            kill: true,
            tear_bytes: 512,
            errors: vec![ErrorCode::Eio, ErrorCode::Enolck],
            errors_for_good: false,
            require: Vec::new(),
            samples_per_phase: 3,
        }
    }

    #[test]
    fn a_page_is_torn_at_every_sector_and_a_header_at_every_eighth_byte() {
        assert_eq!(tears(4096, 512).collect::<Vec<_>>(), [512, 1024, 1536, 2048, 2560, 3072, 3584]);
        assert_eq!(tears(24, 512).collect::<Vec<_>>(), [8, 16]);
        assert_eq!(tears(4096, 0).count(), 0);
        assert_eq!(tears(0, 512).count(), 0);
    }

    #[test]
    fn every_point_gets_its_kill_and_the_errors_that_its_call_can_have() {
        let points = [
            point(1, Phase::FramePage, CallKind::Write, 1024),
            point(2, Phase::WalSync, CallKind::Sync, 0),
            point(3, Phase::Close, CallKind::Close, 0),
        ];
        let strikes = exhaustive(&points, 2, &faults());
        let count = |blow: &dyn Fn(Blow) -> bool| strikes.iter().filter(|s| blow(s.blow)).count();
        assert_eq!(count(&|blow| blow == Blow::KillBefore), 3);
        assert_eq!(count(&|blow| blow == Blow::KillAfter), 1);
        assert_eq!(count(&|blow| matches!(blow, Blow::Tear { .. })), 1);
        assert_eq!(count(&|blow| blow == Blow::Fail(ErrorCode::Eio)), 4);
        let closed = exhaustive(&points, 1, &faults());
        assert_eq!(closed.len(), strikes.len() - 1, "point 2 is not reached by who does not close");
        assert_eq!(count(&|blow| blow == Blow::Fail(ErrorCode::Enolck)), 0);
    }

    #[test]
    fn a_hot_phase_gets_no_more_samples_than_a_rare_one() {
        let hot = (1..=50).map(|n| point(n, Phase::FramePage, CallKind::Write, 4096));
        let points: Vec<Point> =
            hot.chain([point(51, Phase::WalSync, CallKind::Sync, 0)]).collect();
        let strikes = sampled(&points, &faults(), 1);
        assert_eq!(strikes.iter().filter(|s| s.phase == Phase::FramePage).count(), 3);
        assert_eq!(strikes.iter().filter(|s| s.phase == Phase::WalSync).count(), 3);
        assert_eq!(strikes, sampled(&points, &faults(), 1));
    }
}
