//! Stopping workers past their lease, and letting them go on, each pause with a receipt.
//!
//! A worker that is stopped cannot know that its claim was taken back meanwhile. When it goes on it
//! writes as if nothing had been, which is the write that fencing is there for.

use super::supervise::Child;
use super::wait;
use crate::history::Pause;
use crate::plan::{CyclePlan, PausePlan};
use killpoint_worker::ledger::{Activity, Entry, Kind, Ledger, State};
use std::time::{Duration, Instant};

/// Who is stopped now.
struct Stopped {
    slot: usize,
    until: Instant,
}

/// Each planned pause in its turn; several may last at the same time. Whoever was stopped goes on
/// in any case, before this returns.
pub(super) fn pause_on_the_way(
    plan: &CyclePlan,
    children: &[Child],
    ledger: &Ledger,
    began: Instant,
) -> Vec<Pause> {
    let mut receipts = Vec::new();
    let mut stopped: Vec<Stopped> = Vec::new();
    let end = began + Duration::from_micros(plan.run_us);
    for (planned, pause) in plan.pauses.iter().enumerate() {
        let at = began + Duration::from_micros(pause.at_us);
        go_on_until(at, &mut stopped, children);
        let deadline = end.max(at + Duration::from_millis(plan.moment_wait_ms.into()));
        let mut holder = None;
        wait::until(deadline, || {
            let is_stopped = |slot| stopped.iter().any(|one| one.slot == slot);
            holder =
                first_holder(pause, ledger, |slot| is_stopped(slot) || children[slot].is_gone());
            holder.is_some()
        });
        let Some((slot, (task, token))) = holder else { continue };
        if !children[slot].stop() {
            // It ended meanwhile: a pause that did not land has no receipt.
            continue;
        }
        let now = Instant::now();
        stopped.push(Stopped { slot, until: now + Duration::from_micros(pause.for_us) });
        let CyclePlan { generation, cycle, .. } = *plan;
        let at_us = u64::try_from((now - began).as_micros()).unwrap_or(u64::MAX);
        let (for_us, activity) = (pause.for_us, ledger.slot(slot).activity());
        receipts.push(Pause {
            generation,
            cycle,
            planned,
            slot,
            task,
            token,
            at_us,
            for_us,
            activity,
        });
    }
    let last = stopped.iter().map(|one| one.until).max();
    go_on_until(last.unwrap_or(began), &mut stopped, children);
    receipts
}

/// Waits until then, and lets go on whose time is up meanwhile.
fn go_on_until(time: Instant, stopped: &mut Vec<Stopped>, children: &[Child]) {
    loop {
        let now = Instant::now();
        stopped.retain(|one| {
            if one.until <= now {
                children[one.slot].go_on();
            }
            one.until > now
        });
        if now >= time {
            return;
        }
        let next = stopped.iter().map(|one| one.until).min().map_or(time, |next| next.min(time));
        wait::until_time(next, || false);
    }
}

/// The first of the plan's victims that holds a claim, and that claim.
fn first_holder(
    pause: &PausePlan,
    ledger: &Ledger,
    not: impl Fn(usize) -> bool,
) -> Option<(usize, (i64, i64))> {
    pause.victims.iter().copied().filter(|slot| !not(*slot)).find_map(|slot| {
        if ledger.slot(slot).activity() == Activity::Closed {
            return None;
        }
        held(ledger, slot).map(|claim| (slot, claim))
    })
}

/// The claim that a process holds by its own ledger: it was acknowledged, and no completion of it
/// was sent since.
fn held(ledger: &Ledger, slot: usize) -> Option<(i64, i64)> {
    let used = ledger.slot(slot).used().min(ledger.capacity());
    let last = ledger.entries(slot)[..used]
        .iter()
        .rev()
        .filter_map(Entry::read)
        .find(|record| matches!(record.kind, Kind::Claim | Kind::Complete))?;
    (last.kind == Kind::Claim && last.state == State::Acked).then_some((last.task, last.token))
}
