//! The policy `delay`: all run at once, as the machine will, and some calls are delayed.

use crate::plan::Stream;
use crate::plan::schedule::SchedulePlan;
use crate::run::trace::{Decision, Driver, Fault, Scene, Stop};

/// Delays one call of about so many.
#[derive(Debug)]
pub(super) struct Free {
    stream: Stream,
    every: u32,
    ms_max: u32,
}

impl Free {
    pub(super) fn new(plan: &SchedulePlan, every: u32, ms_max: u32) -> Self {
        Self { stream: Stream::new(plan.seed, "delays"), every, ms_max }
    }
}

impl Driver for Free {
    fn at_stop(&mut self, stop: &Stop, _scene: &Scene<'_>) -> Decision {
        let delayed = stop.point.is_some() && self.stream.within([1, self.every]) == 1;
        if !delayed || self.ms_max == 0 {
            return Decision::Continue;
        }
        Decision::Fault(Fault::Delay { ms: self.stream.within([1, self.ms_max]).into() })
    }
}
