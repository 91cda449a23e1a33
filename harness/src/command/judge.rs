//! `killpoint judge`: the verdict on a stored history, by today's oracle.

use super::{CommandError, say};
use crate::cli;
use crate::exit::Exit;
use crate::history::{Line, Reader};
use crate::oracle::{self, Judge, Tally};
use crate::plan::{CyclePlan, Plan};
use crate::verdict::{Finding, FindingKind, Verdict};
use std::collections::HashMap;
use std::path::Path;

/// Carries out the command.
pub(crate) fn judge(arguments: &cli::Judge) -> Result<Exit, CommandError> {
    let judged = judge_file(&arguments.history)?;
    for finding in judged.findings.iter().take(20) {
        say(&format!("{}: {}", finding.kind, finding.detail));
    }
    let kinds = judged.findings.iter().map(|finding| finding.kind);
    let scenario = &judged.plan.scenario;
    let as_expected = scenario.expect.met(judged.verdict, kinds);
    let exit = Exit::of(as_expected, scenario.canary, judged.verdict);
    let tally = &judged.tally;
    say(&format!(
        "{}: {} ({}) · {} cycles · {} kills · {} acked · {} lost · {} findings",
        judged.plan.name,
        judged.verdict,
        if as_expected { "as expected" } else { "not as expected" },
        tally.cycles,
        tally.process_kills,
        tally.acked_ops,
        tally.lost_acked_ops,
        judged.findings.len()
    ));
    Ok(exit)
}

/// What a history shows.
#[derive(Debug)]
pub(super) struct Judged {
    /// What was planned, as the history's header has it.
    pub(crate) plan: Plan,
    /// All that was found.
    pub(crate) findings: Vec<Finding>,
    /// The merge of the findings.
    pub(crate) verdict: Verdict,
    /// What was judged.
    pub(crate) tally: Tally,
}

/// A cycle whose lines are still being read, with its database's judge.
#[derive(Default)]
struct Database {
    judge: Judge,
    plan: Option<CyclePlan>,
    lines: Vec<Line>,
}

/// Judges the history at `path`.
pub(super) fn judge_file(path: &Path) -> Result<Judged, CommandError> {
    let mut reader = Reader::open(path)?;
    let Some(Line::Header(header)) = reader.next_line()? else {
        return Err(CommandError::Usage(format!(
            "{}: does not begin with a history's header",
            path.display()
        )));
    };
    let digits = header.seed.trim_start_matches("0x");
    let seed = u64::from_str_radix(digits, 16).unwrap_or(0);
    let plan = Plan::new(&header.name, &header.scenario, seed);
    let mut databases: HashMap<u32, Database> = HashMap::new();
    let mut findings = Vec::new();
    let mut tally = Tally::default();
    let mut end = None;
    while let Some(line) = reader.next_line()? {
        let Some(generation) = generation_of(&line) else {
            if let Line::End(seen) = line {
                end = Some(seen);
            }
            continue;
        };
        let database = databases.entry(generation).or_default();
        match line {
            Line::Planned(plan) => database.plan = Some(plan),
            line => {
                let last = matches!(line, Line::Observed(_));
                database.lines.push(line);
                if last && let Some(plan) = database.plan.take() {
                    let judgement = database.judge.cycle(&plan, &database.lines);
                    database.lines.clear();
                    findings.extend(judgement.findings);
                    tally.add(&judgement.tally);
                }
            }
        }
    }
    if let Some(open) = databases.values().find_map(|database| database.plan.as_ref()) {
        findings.push(Finding {
            kind: FindingKind::LedgerCutShort,
            detail: format!(
                "the history ends in database {}, cycle {}",
                open.generation, open.cycle
            ),
        });
    }
    let interrupted = reader.torn() || end.is_none_or(|end| end.interrupted);
    findings.extend(oracle::judge_whole(&plan, &tally, interrupted));
    let verdict = Verdict::merge(
        std::iter::once(Verdict::Pass).chain(findings.iter().map(|f| f.kind.verdict())),
    );
    Ok(Judged { plan, findings, verdict, tally })
}

fn generation_of(line: &Line) -> Option<u32> {
    match line {
        Line::Planned(plan) => Some(plan.generation),
        Line::Timed(timing) => Some(timing.generation),
        Line::Life(process) => Some(process.generation),
        Line::Killed(receipt) => Some(receipt.generation),
        Line::Paused(pause) => Some(pause.generation),
        Line::Observed(seen) => Some(seen.generation),
        Line::Header(_) | Line::End(_) => None,
    }
}
