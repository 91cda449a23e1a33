//! Whether the run was what it says: faults landed, settings took, processes ended as planned.

use super::{Cycle, Tally};
use crate::history::{Life, Receipt};
use crate::plan::{Ending, Moment, Plan};
use crate::verdict::{Finding, FindingKind};
use hardboard::Synchronous;
use killpoint_worker::ledger::{Activity, Effective};
use killpoint_worker::wire::{self, Exit, Journal, Settings};

const SIGKILL: i32 = 9;

pub(super) fn judge(cycle: &Cycle<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (slot, life) in cycle.plan.lives.iter().enumerate() {
        let Some(seen) = cycle.lives.iter().find(|seen| seen.slot == slot) else {
            let text = format!("nothing is known of process {slot}");
            findings.push(cycle.finding(FindingKind::LedgerCutShort, &text));
            continue;
        };
        findings.extend(
            settings(life, seen).map(|text| cycle.finding(FindingKind::SettingNotEffective, &text)),
        );
        findings.extend(
            engine(life, seen).map(|text| cycle.finding(FindingKind::SettingNotEffective, &text)),
        );
        let killed = cycle.receipts.iter().any(|receipt| receipt.slot == slot);
        findings.extend(end(cycle, seen, killed));
    }
    for (index, kill) in cycle.plan.kills.iter().enumerate() {
        if !cycle.receipts.iter().any(|receipt| receipt.planned == Some(index)) {
            let text = format!("kill {index} ({:?}) was never sent", kill.moment);
            findings.push(cycle.finding(FindingKind::FaultNotDelivered, &text));
        }
    }
    findings
}

/// In what another SQLite was loaded than asked for, or none at all by one that opened its
/// connection.
fn engine(asked: &wire::Life, seen: &Life) -> Option<String> {
    let (session, name) = (seen.session, asked.engine.as_str());
    let Some(loaded) = &seen.loaded else {
        let opened = seen.effective.is_some();
        return opened.then(|| format!("session {session} did not say which SQLite it runs on"));
    };
    let promised = asked.engine.promised_version()?;
    let found = loaded.sqlite_version;
    (found != promised)
        .then(|| format!("session {session} ran on SQLite {found}, asked for {name}"))
}

/// What is not as asked for.
fn settings(asked: &wire::Life, seen: &Life) -> Option<String> {
    let Effective { synchronous, wal_autocheckpoint, wal, .. } = seen.effective?;
    let Settings { synchronous: level, wal_autocheckpoint: pages, journal, .. } = asked.settings;
    let number = match level {
        Synchronous::Off => 0,
        Synchronous::Normal => 1,
        Synchronous::Full => 2,
        Synchronous::Extra => 3,
    };
    let session = seen.session;
    if synchronous != number {
        return Some(format!(
            "session {session} ran with synchronous = {synchronous}, asked for {number}"
        ));
    }
    if wal_autocheckpoint != pages {
        return Some(format!(
            "session {session} ran with wal_autocheckpoint = {wal_autocheckpoint}, asked for \
             {pages}"
        ));
    }
    let asked_wal = journal == Journal::Wal;
    (wal != asked_wal).then(|| {
        let not = if wal { "" } else { "not " };
        format!("session {session} did {not}run in WAL mode, asked for {}", journal.as_str())
    })
}

/// What is wrong with a process's end.
fn end(cycle: &Cycle<'_>, life: &Life, killed: bool) -> Option<Finding> {
    let Life { session, role, activity, exit, .. } = life;
    let message = life.message.as_deref().unwrap_or("no message");
    if life.hung {
        let text = format!("{role:?} {session} did not end in time (it was {activity:?})");
        return Some(cycle.finding(FindingKind::Hung, &text));
    }
    if killed && *exit == Exit::Signal(SIGKILL) {
        return None;
    }
    let asked_to_end = cycle.plan.ending == Ending::Graceful || !cycle.plan.kills_sent;
    if asked_to_end && !killed && *exit == Exit::Code(0) {
        return None;
    }
    if killed && *exit == Exit::Code(0) {
        let text = format!("{role:?} {session} had ended before its kill was sent");
        return Some(cycle.finding(FindingKind::FaultNotDelivered, &text));
    }
    if !killed && *exit == Exit::Signal(SIGKILL) {
        let text = format!("{role:?} {session} was killed by somebody else (out of memory?)");
        return Some(cycle.finding(FindingKind::FaultNotDelivered, &text));
    }
    if !killed && *exit == Exit::Code(0) {
        let text = format!("{role:?} {session} ended of itself and was not killed");
        return Some(cycle.finding(FindingKind::FaultNotDelivered, &text));
    }
    let text = format!("{role:?} {session} ended with {exit:?} while {activity:?}: {message}");
    Some(cycle.finding(FindingKind::UnexpectedExit, &text))
}

/// What a whole run lacks.
pub(super) fn judge_whole(plan: &Plan, tally: &Tally) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut lacks = |kind, detail: String| findings.push(Finding { kind, detail });
    if tally.process_kills == 0 && !plan.scenario.kill.none {
        lacks(FindingKind::FaultNotDelivered, "no process was killed".to_owned());
    }
    let kill = plan.scenario.kill;
    let asked = [
        (Moment::Transaction, kill.transaction, "transaction"),
        (Moment::Commit, kill.commit, "commit"),
        (Moment::Checkpoint, kill.checkpoint, "checkpoint"),
        (Moment::TakenBack, kill.taken_back, "taken-back"),
    ];
    for (moment, count, name) in asked {
        let met = tally.moments.get(&moment).copied().unwrap_or_default();
        // Seen there is not yet killed there: that is told by what the victim did when it ended.
        if count > 0 && met.landed == 0 {
            let sent = met.sent;
            lacks(
                FindingKind::FaultNotDelivered,
                format!("none of {sent} kills planned for the moment {name} landed there"),
            );
        }
    }
    // One pause of many may find nobody who holds a claim; how many are needed, `least` says.
    if tally.pauses == 0 && plan.scenario.pause.count > 0 {
        lacks(FindingKind::FaultNotDelivered, "no worker was stopped".to_owned());
    }
    let least = plan.scenario.least;
    let asked = [
        (least.claims, tally.claims, "claims"),
        (least.stale_refused, tally.stale_ops, "stale writes refused"),
        (least.pauses_past_lease, tally.pauses_past_lease, "pauses past a lease"),
    ];
    for (wanted, seen, what) in asked {
        if seen < wanted {
            let detail = format!("{seen} {what}, and {wanted} are to be seen at least");
            lacks(FindingKind::TooLittleSeen, detail);
        }
    }
    if tally.acked_ops == 0 {
        lacks(
            FindingKind::NothingAcked,
            "no operation was acknowledged: nothing could have been lost".to_owned(),
        );
    }
    findings
}

/// Whether a kill landed at the moment that it was planned for.
pub(super) fn landed(receipt: &Receipt) -> bool {
    match receipt.moment {
        Moment::Any | Moment::Ending => true,
        Moment::Transaction => {
            matches!(receipt.activity, Activity::Transaction | Activity::Commit)
        }
        Moment::Commit => receipt.activity == Activity::Commit,
        Moment::Checkpoint => receipt.activity == Activity::Checkpoint,
        Moment::TakenBack => receipt.met,
    }
}
