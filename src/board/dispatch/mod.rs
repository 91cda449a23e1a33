//! The dispatcher: one for each board, it starts workers, and looks after what became of them.
//!
//! | module    | what                                                                        |
//! |-----------|-----------------------------------------------------------------------------|
//! | `lease`   | who dispatches: a lock of the kernel, and a lease with an epoch in the board |
//! | `tick`    | one round: what ended, what takes too long, what is due, what can start     |
//! | `breaker` | what a failure costs, and when a task is given up                           |
//! | `stop`    | ending a worker with all that it started, confirmed                         |
//! | `spawn`   | starting a worker, and how it ended                                         |
//! | `daemon`  | round after round, until told to stop                                       |
//!
//! Every write of a dispatcher names its epoch, and is refused once another has taken over. A claim
//! whose worker lives is never given away: the worker is stopped first, with its whole tree.

pub mod breaker;
pub mod daemon;
pub mod lease;
pub mod spawn;
pub mod stop;
pub mod tick;
#[cfg(test)]
mod tests;

pub use breaker::Limits;
pub use lease::{Held, Taken};
pub use tick::{Deferred, Dispatcher, Ended, Started, Tick};

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::board::claim::TakenBack;
use crate::board::{Board, Session};
use crate::error::{Result, StoreError};

/// How a dispatcher goes about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct DispatchOptions {
    /// From one round to the next. Every round writes, and reads all live runs: so often is enough
    /// for work that takes minutes, and a worker that ends brings the next round forward.
    #[serde(rename = "dispatch-interval-seconds", with = "seconds")]
    pub interval: Duration,
    /// How many workers a round may start. It keeps a full board from becoming a full machine.
    pub max_spawn: u32,
    /// How many workers may be at work at once; 0: any number.
    pub max_running: u32,
    /// What a failure costs.
    #[serde(flatten)]
    pub limits: Limits,
    /// How long the claim of a started worker is leased: it has to extend it before that.
    #[serde(rename = "claim-lease-seconds", with = "seconds")]
    pub claim_lease: Duration,
    /// How long a run may take where its task does not say; 0: any time.
    #[serde(rename = "max-runtime-seconds", with = "seconds")]
    pub max_runtime: Duration,
    /// How long a worker that is to stop has to do so after SIGTERM, before SIGKILL.
    #[serde(rename = "stop-grace-seconds", with = "seconds")]
    pub stop_grace: Duration,
    /// How long a killed worker is waited for. One that is not gone by then keeps its claim, and
    /// the next round tries again.
    #[serde(rename = "stop-confirm-seconds", with = "seconds")]
    pub stop_confirm: Duration,
    /// The program that works on a task, and its arguments; none: workers come by themselves.
    pub worker: Vec<String>,
    /// Where what workers print goes, a file for each run; `None`: nowhere.
    pub log_dir: Option<PathBuf>,
}

impl Default for DispatchOptions {
    /// A round each 120 s, 3 workers started by each, given up after 4 failures.
    fn default() -> Self {
        Self {
            interval: Duration::from_mins(2),
            max_spawn: 3,
            max_running: 0,
            limits: Limits::default(),
            claim_lease: Duration::from_mins(15),
            max_runtime: Duration::ZERO,
            stop_grace: Duration::from_secs(5),
            stop_confirm: Duration::from_secs(10),
            worker: Vec::new(),
            log_dir: None,
        }
    }
}

impl DispatchOptions {
    /// How long a dispatcher that does not come back keeps its office: two rounds and a half. One
    /// that was killed is replaced at once.
    #[must_use]
    pub fn lease(&self) -> Duration {
        (self.interval * 5 / 2).max(Duration::from_millis(200))
    }
}

/// Durations as seconds, which may have a fraction.
pub(crate) mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(time.as_secs_f64())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let seconds = f64::deserialize(from)?;
        Duration::try_from_secs_f64(seconds)
            .map_err(|_| D::Error::custom(format!("{seconds} is no number of seconds")))
    }
}

/// What one step of taking back did.
#[derive(Debug)]
#[must_use = "the acknowledgements in it cannot be checked after a crash if nobody records them"]
pub struct TickReport {
    /// The claims that were taken back, in that order.
    pub taken_back: Vec<TakenBack>,
    /// Why the step ended before all that had expired was taken back. What `taken_back` lists
    /// stands nevertheless.
    pub cut_short: Option<StoreError>,
}

impl Board {
    /// Takes back all claims whose lease has expired and whose process, if it is known, is gone,
    /// each in a transaction of its own. Any process may do so, and any number at the same time.
    ///
    /// # Errors
    ///
    /// As [`create_task`](Self::create_task), if it fails at once. A failure after something was
    /// taken back is in [`TickReport::cut_short`], so that no acknowledgement is lost.
    pub fn tick(&mut self, session: &mut Session) -> Result<TickReport> {
        let mut report = TickReport { taken_back: Vec::new(), cut_short: None };
        loop {
            match self.take_back_expired(session.next_key()) {
                Ok(Some(taken_back)) => report.taken_back.push(taken_back),
                Ok(None) => return Ok(report),
                Err(error) if report.taken_back.is_empty() => return Err(error),
                Err(error) => {
                    report.cut_short = Some(error);
                    return Ok(report);
                }
            }
        }
    }
}
