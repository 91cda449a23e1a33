//! The two drivers of a sweep: one that writes down, one that strikes.

use super::Point;
use super::strikes::{Blow, Strike, Where};
use crate::run::trace::{
    Ahead, Decision, Driver, Fault, KillWhen, Operation, Phase, Scene, Stop, ThreadId, Whom,
};

/// Writes down every point.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    pub(super) points: Vec<Point>,
}

impl Driver for Recorder {
    fn at_stop(&mut self, stop: &Stop, _scene: &Scene<'_>) -> Decision {
        if stop.phase == Phase::Sleep {
            return Decision::SkipSleep;
        }
        if let Some(number) = stop.point {
            let length = match stop.operation {
                Operation::Write { length, .. } => length,
                _ => 0,
            };
            let kind = stop.call.sys.kind();
            self.points.push(Point { number, phase: stop.phase, kind, length });
        }
        Decision::Continue
    }
}

/// Strikes once, where it was told to; an error for good from then on.
#[derive(Debug)]
pub(super) struct Striker {
    strike: Strike,
    struck: Option<Phase>,
    seen_of_phase: u64,
    /// The last point that was met.
    points: u64,
    alone: bool,
}

impl Striker {
    /// `alone` says that there is one process: then it is known what comes next.
    pub(super) fn new(strike: Strike, alone: bool) -> Self {
        Self { strike, struck: None, seen_of_phase: 0, points: 0, alone }
    }

    /// Stops that are certain to be let happen, for the only process there is.
    fn ahead(&self) -> u32 {
        match (self.struck, self.strike) {
            (Some(_), Strike { blow: Blow::FailForGood(_), .. })
            | (None, Strike { at: Where::Nth { .. }, .. }) => 0,
            (Some(_), _) => u32::MAX,
            (None, Strike { at: Where::Point(at), .. }) => {
                u32::try_from(at.saturating_sub(self.points + 1)).unwrap_or(u32::MAX)
            }
        }
    }

    fn is_here(&mut self, stop: &Stop) -> bool {
        match self.strike.at {
            Where::Point(number) => stop.point == Some(number),
            Where::Nth { phase, nth } => {
                self.seen_of_phase += u64::from(stop.phase == phase);
                stop.phase == phase && self.seen_of_phase == nth
            }
        }
    }
}

impl Driver for Striker {
    fn at_stop(&mut self, stop: &Stop, _scene: &Scene<'_>) -> Decision {
        if stop.phase == Phase::Sleep {
            return Decision::SkipSleep;
        }
        let Some(point) = stop.point else { return Decision::Continue };
        self.points = point;
        if let Some(phase) = self.struck {
            return match self.strike.blow {
                Blow::FailForGood(code) if stop.phase == phase => {
                    Decision::Fault(Fault::Fail(code))
                }
                _ => Decision::Continue,
            };
        }
        if !self.is_here(stop) {
            return Decision::Continue;
        }
        self.struck = Some(stop.phase);
        let kill = |when| Fault::Kill { when, whom: Whom::Process };
        Decision::Fault(match self.strike.blow {
            Blow::KillBefore => kill(KillWhen::Before),
            Blow::KillAfter => kill(KillWhen::After),
            Blow::Tear { bytes } => kill(KillWhen::Inside { bytes }),
            Blow::Fail(code) | Blow::FailForGood(code) => Fault::Fail(code),
        })
    }

    fn ahead(&self, _thread: ThreadId) -> Ahead {
        Ahead { stops: if self.alone { self.ahead() } else { 0 }, exclusive: u32::MAX }
    }
}
