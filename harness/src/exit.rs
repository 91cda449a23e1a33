//! The exit codes: part of the interface.

use crate::verdict::Verdict;
use std::process::{ExitCode, Termination};

/// How a command ended. A suite ends with the gravest, in the order 4, 1, 70, 3, 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// Every scenario gave the verdict that it expects.
    AsExpected = 0,
    /// A promise was broken.
    Broken = 1,
    /// Bad arguments or scenario file.
    Usage = 2,
    /// Not enough was seen to judge.
    Inconclusive = 3,
    /// A canary went unnoticed: no pass means anything.
    Blind = 4,
    /// The harness itself failed: this says nothing about the store.
    Failed = 70,
}

impl Exit {
    /// The exit of several scenarios together; none at all is inconclusive.
    pub fn merge(exits: impl IntoIterator<Item = Self>) -> Self {
        exits.into_iter().max_by_key(|exit| exit.gravity()).unwrap_or(Self::Inconclusive)
    }

    /// The exit of one scenario.
    #[must_use]
    pub fn of(as_expected: bool, canary: bool, verdict: Verdict) -> Self {
        match (as_expected, canary, verdict) {
            (true, _, _) => Self::AsExpected,
            (false, true, _) => Self::Blind,
            (false, false, Verdict::Inconclusive) => Self::Inconclusive,
            // A control that should have shown a broken promise and shows none is as bad.
            (false, false, Verdict::Fail | Verdict::Pass) => Self::Broken,
        }
    }

    /// The number that the process ends with.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    fn gravity(self) -> u8 {
        match self {
            Self::AsExpected => 0,
            Self::Inconclusive => 1,
            Self::Failed => 2,
            Self::Broken => 3,
            Self::Blind => 4,
            Self::Usage => 5,
        }
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::Exit::{AsExpected, Blind, Broken, Failed, Inconclusive};
    use super::*;

    #[track_caller]
    fn check(parts: &[Exit], whole: Exit) {
        assert_eq!(Exit::merge(parts.iter().copied()), whole);
    }

    #[test]
    fn a_blind_harness_outweighs_even_a_broken_promise() {
        check(&[Broken, Blind, Failed, Inconclusive, AsExpected], Blind);
        check(&[Broken, Failed, Inconclusive, AsExpected], Broken);
        check(&[Failed, Inconclusive, AsExpected], Failed);
        check(&[Inconclusive, AsExpected], Inconclusive);
        check(&[AsExpected, AsExpected], AsExpected);
    }

    #[test]
    fn nothing_run_is_inconclusive() {
        check(&[], Inconclusive);
    }

    #[test]
    fn a_canary_that_passes_makes_the_harness_blind() {
        assert_eq!(Exit::of(false, true, Verdict::Pass), Blind);
        assert_eq!(Exit::of(false, true, Verdict::Fail), Blind);
        assert_eq!(Exit::of(true, true, Verdict::Fail), AsExpected);
        assert_eq!(Exit::of(false, false, Verdict::Pass), Broken);
    }
}
