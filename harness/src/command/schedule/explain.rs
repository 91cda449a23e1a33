//! A small schedule told to a person: a table in the order of time, and a scenario of its own.

use super::stage::Judged;
use crate::plan::schedule::{Order, Preemption, SchedulePlan};
use crate::run::schedule::Chapter;
use crate::scenario::schedule::{Exact, ExactProcess, Expected, Schedules};
use crate::verdict::FindingKind;
use comfy_table::{ContentArrangement, Table, presets};

/// Steps that are told before and after each preemption, whatever they are.
const AROUND: usize = 2;
/// Phases that are told wherever they stand.
const TOLD: [&str; 9] = [
    "trap",
    "wal-header",
    "wal-reset",
    "commit-frame",
    "checkpoint-page-write",
    "wal-truncate",
    "wal-index-lock.checkpoint.exclusive",
    "wal-index-lock.write.exclusive",
    "sidecar-unlink.wal",
];

/// Who did what to which file, byte and lock, with the preemptions marked.
pub(super) fn table(plan: &SchedulePlan, judged: &Judged) -> String {
    let Some(story) = &judged.played.story else { return String::new() };
    let decisions = match &plan.order {
        Order::Decided(decisions) => decisions.as_slice(),
        Order::Drawn { .. } => &[],
    };
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["step", "process", "what", "mxFrame", "nBackfill", ""]);
    let marks = marks(&story.chapters, decisions);
    let told = told(&story.chapters, &marks);
    let mut gap = false;
    for (index, chapter) in story.chapters.iter().enumerate() {
        if !told[index] {
            gap = true;
            continue;
        }
        if std::mem::take(&mut gap) {
            table.add_row(["...", "", "", "", "", ""]);
        }
        let frames = chapter.wal_index.map(|(frames, _)| frames.to_string());
        let backfilled = chapter.wal_index.map(|(_, backfilled)| backfilled.to_string());
        table.add_row([
            chapter.number.to_string(),
            chapter.slot.to_string(),
            chapter.what.clone(),
            frames.unwrap_or_default(),
            backfilled.unwrap_or_default(),
            marks[index].clone(),
        ]);
    }
    let mut text = table.to_string() + "\n";
    for finding in judged.findings.iter().take(3) {
        text = format!("{text}{}: {}\n", finding.kind, finding.detail);
    }
    text
}

/// A checkpointer that was stopped with a copy of the wal-index header that grows old.
struct Copied {
    slot: usize,
    /// The frames that it took the WAL to have.
    frames: u32,
    /// Whether another process has begun the WAL anew since.
    reset: bool,
}

/// What is to be said of each step beyond itself.
fn marks(chapters: &[Chapter], decisions: &[Preemption]) -> Vec<String> {
    let mut copied: Option<Copied> = None;
    // Who holds the checkpointer's lock, and so has copied the header or is about to.
    let mut checkpointer = None;
    let mut beyond = false;
    let mut marks = Vec::with_capacity(chapters.len());
    for chapter in chapters {
        let mut parts = Vec::new();
        let at_trap = chapter.phase == "trap";
        match chapter.phase.as_str() {
            "wal-index-lock.checkpoint.exclusive" => checkpointer = Some(chapter.slot),
            "wal-index-lock.checkpoint.unlock" => checkpointer = None,
            _ => {}
        }
        if let Some(decision) = decided(chapter, decisions) {
            let of_header = at_trap && chapter.what.contains("copy of the header");
            let checkpoints = checkpointer == Some(chapter.slot);
            let what = match (checkpoints, of_header) {
                (true, true) => "HEADER COPIED by the checkpointer, and ",
                (true, false) if at_trap => "HEADER COPIED before, by the checkpointer, and ",
                _ => "",
            };
            parts.push(format!("<== {what}PREEMPTED: process {} goes on", decision.to));
            if let (true, true, Some((frames, _))) = (checkpoints, at_trap, chapter.wal_index) {
                copied = Some(Copied { slot: chapter.slot, frames, reset: false });
            }
        }
        if let Some(copied) = &mut copied {
            let begins = matches!(chapter.phase.as_str(), "wal-reset" | "wal-header");
            copied.reset |= begins && chapter.slot != copied.slot;
        }
        if chapter.phase == "wal-reset" {
            parts.push("<== WAL RESET: the old frames are given up, nBackfill is 0".to_owned());
        }
        if chapter.phase == "checkpoint-page-write"
            && let Some(old) = copied.take_if(|old| old.reset && old.slot == chapter.slot)
        {
            parts.push(format!(
                "<== STALE nBackfill: by its old header it copies {0} frames of the WAL that was \
                 begun since, and then sets nBackfill to {0}",
                old.frames
            ));
        }
        if let Some((frames, backfilled)) = chapter.wal_index {
            if backfilled > frames && !beyond {
                parts.push(format!("<== {backfilled} frames count as copied, of {frames}"));
            }
            beyond = backfilled > frames;
        }
        marks.push(parts.join(" "));
    }
    marks
}

/// The decision that was taken at a step.
fn decided<'a>(chapter: &Chapter, decisions: &'a [Preemption]) -> Option<&'a Preemption> {
    let at_trap = chapter.phase == "trap";
    decisions.iter().find(|decision| {
        (decision.slot, (decision.op, decision.step)) == (chapter.slot, chapter.step)
            && decision.trap.is_some() == at_trap
    })
}

fn told(chapters: &[Chapter], marks: &[String]) -> Vec<bool> {
    let mut told: Vec<bool> =
        chapters.iter().map(|chapter| TOLD.contains(&chapter.phase.as_str())).collect();
    for (index, mark) in marks.iter().enumerate() {
        if !mark.is_empty() {
            let last = (index + AROUND + 1).min(told.len());
            told[index.saturating_sub(AROUND)..last].fill(true);
        }
    }
    told
}

/// The schedule as a scenario that stands for itself.
pub(super) fn scenario(
    asked: &Schedules,
    plan: &SchedulePlan,
    kind: FindingKind,
) -> Result<String, toml::ser::Error> {
    let mut exact = asked.clone();
    exact.claim = format!("The smallest schedule found that gives {kind}, on its engine.");
    exact.expect = Expected::Fail(vec![kind]);
    exact.schedule.count = 1;
    exact.schedule.seeds = 1;
    exact.schedule.twice_per_100 = 100;
    exact.setting = asked.setting.get(plan.setting).copied().into_iter().collect();
    let shape = plan.lives.first().map(|life| life.shape);
    if let (Some(work), Some(shape)) = (&mut exact.work, shape) {
        work.processes = u32::try_from(plan.lives.len()).unwrap_or(1);
        work.events = shape.events_per_append;
        work.payload_bytes = shape.payload_bytes;
        work.steps = 1;
    }
    exact.exact = Some(Exact {
        seed: format!("{:#x}", plan.seed),
        process: plan
            .lives
            .iter()
            .map(|life| ExactProcess {
                seed: format!("{:#x}", life.seed),
                script: life.script.clone(),
            })
            .collect(),
        preemption: match &plan.order {
            Order::Decided(decisions) => decisions.clone(),
            Order::Drawn { .. } => Vec::new(),
        },
    });
    let text = toml::to_string(&exact)?;
    Ok(format!("# Made by `killpoint shrink`: killpoint run this file.\n\n{text}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::trace::Trap;

    fn chapter(slot: usize, step: u32, phase: &str, what: &str, seen: (u32, u32)) -> Chapter {
        let (what, phase) = (what.to_owned(), phase.to_owned());
        Chapter { number: 0, slot, step: (1, step), phase, what, wal_index: Some(seen) }
    }

    #[test]
    fn header_copy_reset_and_stale_backfill_are_marked_in_that_order() {
        let trap = Some(Trap::Touch { offset: 88, skip: 0 });
        let decisions = [Preemption { slot: 0, op: 1, step: 3, to: 1, trap }];
        let touched = "has touched bytes 88 to 95 of -shm: the second copy of the header";
        let chapters = [
            chapter(0, 3, "wal-index-lock.checkpoint.exclusive", "asks", (6, 6)),
            chapter(0, 3, "trap", touched, (6, 6)),
            chapter(1, 8, "wal-reset", "writes", (0, 0)),
            chapter(0, 4, "checkpoint-page-write", "writes", (3, 0)),
            chapter(0, 5, "wal-index-lock.checkpoint.unlock", "gives up", (3, 6)),
        ];
        let marks = marks(&chapters, &decisions);
        let expected = ["", "HEADER COPIED", "WAL RESET", "STALE nBackfill", "6 frames count"];
        for (mark, expected) in marks.iter().zip(expected) {
            assert!(mark.contains(expected), "{marks:?}");
        }
        assert!(marks[1].contains("PREEMPTED: process 1 goes on"), "{marks:?}");
    }
}
