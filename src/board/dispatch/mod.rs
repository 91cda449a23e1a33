//! The dispatcher's step: taking back what nobody keeps alive any more.

use crate::board::claim::TakenBack;
use crate::board::{Board, Session};
use crate::error::{Result, StoreError};

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
    /// Takes back all claims whose lease has expired, each in a transaction of its own.
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
