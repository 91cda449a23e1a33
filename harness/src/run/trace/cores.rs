//! One core for the supervisor and its victim, whenever the victim is one thread.
//!
//! A stop is a switch from one to the other and back. On one core that costs half of what it costs
//! across two, and two cores gain nothing while only one of the two runs. As long as there is a
//! second thread everybody may go where they could before. What a victim can see of it:
//! `sched_getaffinity` tells one core otherwise.

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

use super::ThreadId;

/// Where the supervisor and its victim could run before they were put on one core.
#[derive(Debug)]
pub(super) struct OneCore {
    one: CpuSet,
    mine: CpuSet,
    victims: CpuSet,
}

impl OneCore {
    /// Puts the calling thread and `victim` on the core that the former is on. None if the kernel
    /// does not let it: then all is as it was.
    pub(super) fn share(victim: ThreadId) -> Option<Self> {
        let (me, victim) = (Pid::from_raw(0), Pid::from_raw(victim.0));
        let (mine, victims) = (sched_getaffinity(me).ok()?, sched_getaffinity(victim).ok()?);
        let mut one = CpuSet::new();
        one.set(sched_getcpu().ok()?).ok()?;
        sched_setaffinity(victim, &one).ok()?;
        if sched_setaffinity(me, &one).is_err() {
            sched_setaffinity(victim, &victims).ok();
            return None;
        }
        Some(Self { one, mine, victims })
    }

    /// Lets the calling thread and `victims`, of which some may be gone, run where they could.
    pub(super) fn leave(&self, victims: impl Iterator<Item = ThreadId>) {
        for thread in victims.map(|thread| Pid::from_raw(thread.0)) {
            // Who has chosen for itself since has chosen. Both calls fail only for those gone.
            if sched_getaffinity(thread) == Ok(self.one) {
                sched_setaffinity(thread, &self.victims).ok();
            }
        }
        sched_setaffinity(Pid::from_raw(0), &self.mine).ok();
    }
}
