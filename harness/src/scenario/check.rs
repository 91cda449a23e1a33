//! What a scenario must hold beyond its shape: each complaint names the key that it is about.

use super::{FORMAT, Scenario};
use killpoint_worker::ledger::SLOTS;
use killpoint_worker::wire::EngineName;
use killpoint_worker::wire::{Journal, Target};

/// A value that cannot be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    /// The keys from the top of the file to the value.
    pub(super) path: &'static [&'static str],
    /// What is wrong with it, and what to write instead.
    pub(super) text: String,
}

/// Processes that one scenario may have, a checkpoint owner not counted.
const WRITERS_MAX: u64 = SLOTS as u64 - 2;

/// The first thing that is wrong with `scenario`.
pub(super) fn check(scenario: &Scenario) -> Result<(), Complaint> {
    let complain = |path, text: String| Err(Complaint { path, text });
    if scenario.format != FORMAT {
        let found = scenario.format;
        return complain(&["format"], format!("format {found} is not known: this reads {FORMAT}"));
    }
    if scenario.claim.trim().is_empty() {
        return complain(&["claim"], "the claim is empty: say what the run is to show".to_owned());
    }
    let w = &scenario.writers;
    let writers = u64::from(w.dispatcher)
        + u64::from(w.worker)
        + u64::from(w.reviewer)
        + u64::from(w.visitor);
    if writers == 0 {
        return complain(
            &["writers"],
            "0 writers: at least one dispatcher, worker, reviewer or visitor is needed".to_owned(),
        );
    }
    if writers + u64::from(w.reader) > WRITERS_MAX {
        return complain(&["writers"], format!("at most {WRITERS_MAX} processes in all"));
    }
    if w.dispatcher == 0 {
        return complain(
            &["writers"],
            "no dispatcher: nobody would create tasks to work on".to_owned(),
        );
    }
    check_workload(scenario)?;
    check_settings(scenario)?;
    check_cycles(scenario)
}

fn check_workload(scenario: &Scenario) -> Result<(), Complaint> {
    let w = &scenario.workload;
    let ranges: [(&'static [&'static str], [u32; 2], u32, u32); 3] = [
        (&["workload", "events-per-append"], w.events_per_append, 1, 1_000),
        (&["workload", "payload-bytes"], w.payload_bytes, 1, 1 << 20),
        (&["workload", "pause-us"], w.pause_us, 0, 10_000_000),
    ];
    for (path, range, least, most) in ranges {
        check_range(path, range, least, most)?;
    }
    let numbers: [(&'static [&'static str], u32, u32, u32); 8] = [
        (&["workload", "lease-ms"], w.lease_ms, 1, 600_000),
        (&["workload", "tasks-ready"], w.tasks_ready, 1, 10_000),
        (&["workload", "heartbeats-per-claim"], w.heartbeats_per_claim, 0, 10_000),
        (&["workload", "events-per-burst"], w.events_per_burst, 1, 100_000),
        (&["workload", "overstays-per-100-claims"], w.overstays_per_100_claims, 0, 100),
        (&["workload", "busy-timeout-ms"], w.busy_timeout_ms, 1, 600_000),
        (&["workload", "clock-steps-per-100"], w.clock_steps_per_100, 0, 100),
        (&["workload", "clock-step-s"], w.clock_step_s, 1, 100_000_000),
    ];
    for (path, number, least, most) in numbers {
        check_number(path, number, least, most)?;
    }
    Ok(())
}

fn check_settings(scenario: &Scenario) -> Result<(), Complaint> {
    if scenario.setting.is_empty() {
        return Err(Complaint {
            path: &["setting"],
            text: "no setting: write at least one [[setting]]".to_owned(),
        });
    }
    if scenario.engines().any(|engine| engine == EngineName::Given) {
        return Err(Complaint {
            path: &["engine"],
            text: "the engine `given` is the one of the command line: --engine FILE".to_owned(),
        });
    }
    for setting in &scenario.setting {
        check_number(&["setting", "wal-autocheckpoint"], setting.wal_autocheckpoint, 0, 1_000_000)?;
        let delete = setting.journal_mode == Journal::Delete;
        let target = setting.target.unwrap_or(scenario.workload.target);
        if target == Target::Hardboard && (delete || setting.page_bytes > 0) {
            return Err(Complaint {
                path: &["setting"],
                text: "hardboard has WAL and SQLite's own page size: take target = \"baseline\""
                    .to_owned(),
            });
        }
        if setting.page_bytes > 0
            && !(setting.page_bytes.is_power_of_two()
                && (512..=65_536).contains(&setting.page_bytes))
        {
            return Err(Complaint {
                path: &["setting", "page-bytes"],
                text: format!("{} is no power of two from 512 to 65536", setting.page_bytes),
            });
        }
        if let Some(events) = setting.events_per_append {
            check_range(&["setting", "events-per-append"], events, 1, 1_000)?;
        }
        if let Some(workers) = setting.workers {
            check_number(&["setting", "workers"], workers, 1, 32)?;
        }
        if setting.wal_autocheckpoint == 0 && !setting.checkpoint_owner && !delete {
            return Err(Complaint {
                path: &["setting"],
                text: "wal-autocheckpoint = 0 lets the WAL grow without end: add \
                       checkpoint-owner = true"
                    .to_owned(),
            });
        }
    }
    Ok(())
}

fn check_cycles(scenario: &Scenario) -> Result<(), Complaint> {
    let c = &scenario.cycles;
    check_number(&["cycles", "count"], c.count, 1, 100_000_000)?;
    check_number(&["cycles", "per-database"], c.per_database, 1, 10_000)?;
    check_number(&["cycles", "graceful-every"], c.graceful_every, 0, 10_000)?;
    check_number(&["cycles", "deadline-ms"], c.deadline_ms, 1, 3_600_000)?;
    check_range(&["cycles", "run-ms"], c.run_ms, 0, 600_000)?;
    check_number(&["pause", "count"], scenario.pause.count, 0, 1_000)?;
    check_range(&["pause", "ms"], scenario.pause.ms, 1, 600_000)?;
    check_number(
        &["kill", "dispatcher"],
        scenario.kill.dispatcher,
        0,
        scenario.writers.dispatcher,
    )?;
    let k = &scenario.kill;
    check_number(&["kill", "wait-ms"], k.wait_ms, 0, 60_000)?;
    let kills = [k.any_moment, k.transaction, k.commit, k.checkpoint, k.taken_back, k.dispatcher];
    let asked: u64 = kills.iter().map(|count| u64::from(*count)).sum();
    let w = &scenario.writers;
    let victims = u64::from(w.dispatcher)
        + u64::from(w.worker)
        + u64::from(w.reviewer)
        + u64::from(w.reader)
        + u64::from(w.visitor);
    if asked > victims {
        return Err(Complaint {
            path: &["kill"],
            text: format!("{asked} kills a cycle, but only {victims} processes to kill"),
        });
    }
    if k.none && (asked > 0 || c.graceful_every != 1) {
        return Err(Complaint {
            path: &["kill", "none"],
            text: "none = true, but kills are asked for, or cycles that do not end gracefully are \
                   ended by kills: write graceful-every = 1 and no kills"
                .to_owned(),
        });
    }
    if !k.none && asked == 0 && c.graceful_every == 1 {
        return Err(Complaint {
            path: &["cycles", "graceful-every"],
            text: "no kill is asked for and every cycle ends gracefully: nothing would be killed; \
                   if that is meant, write none = true under [kill]"
                .to_owned(),
        });
    }
    Ok(())
}

fn check_number(
    path: &'static [&'static str],
    number: u32,
    least: u32,
    most: u32,
) -> Result<(), Complaint> {
    if (least..=most).contains(&number) {
        return Ok(());
    }
    Err(Complaint { path, text: format!("{number} is not within {least} to {most}") })
}

fn check_range(
    path: &'static [&'static str],
    [from, to]: [u32; 2],
    least: u32,
    most: u32,
) -> Result<(), Complaint> {
    if from > to {
        return Err(Complaint {
            path,
            text: format!("[{from}, {to}] runs backwards: least first"),
        });
    }
    check_number(path, from, least, most)?;
    check_number(path, to, least, most)
}
