//! `SUMMARY.md`: a report for a person who opens the folder a year later.

use super::{Counts, Report, ScenarioReport, SettingReport, bound, power, sweep, table};
use crate::scenario::Expect;
use crate::verdict::Verdict;

/// The file's text, made from the report alone.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut lines = vec!["# killpoint: summary\n".to_owned()];
    let mut line = |args: std::fmt::Arguments<'_>| lines.push(args.to_string());
    let machine = &report.machine;
    line(format_args!("Made from `report.json` by the command that made that file:\n"));
    line(format_args!("```text\n{}\n```\n", report.command));
    line(format_args!("| | |\n|---|---|"));
    line(format_args!("| exit code | {} |", report.exit_code));
    line(format_args!("| seed | {} |", report.seed));
    line(format_args!("| SQLite under test | {} |", report.engine.sqlite_version));
    if !report.engine.judge_sqlite_version.is_empty() {
        let judge = &report.engine.judge_sqlite_version;
        line(format_args!("| SQLite that looked at copies of the files | {judge} |"));
    }
    line(format_args!("| killpoint | {} |", report.killpoint));
    line(format_args!("| kernel | {}, {} |", machine.kernel, machine.arch));
    line(format_args!("| processor | {}, {} cores |", machine.cpu, machine.cores));
    line(format_args!("| memory | {} MiB |", machine.memory_mib));
    line(format_args!("| file system | {} |", machine.file_system));
    let [harness, process] = report.peak_memory_mib;
    line(format_args!("| peak memory | harness {harness} MiB, largest process {process} MiB |"));
    if let Some(error) = &report.error {
        line(format_args!("\n**The harness could not go on:** {error}"));
    }
    for scenario in &report.scenarios {
        render_scenario(scenario, &mut line);
    }
    for sweep in &report.sweeps {
        line(format_args!("{}", sweep::markdown(sweep)));
    }
    for power in &report.powers {
        line(format_args!("{}", power::markdown(power)));
    }
    for exec in &report.execs {
        line(format_args!("{}", exec.markdown()));
    }
    for schedule in &report.schedules {
        line(format_args!("{}", schedule.markdown()));
    }
    if !report.configs.is_empty() {
        line(format_args!("\n## Settings side by side\n"));
        line(format_args!("{}\n", table::render(&report.configs, true)));
        line(format_args!("{}\n", table::render_durability(&report.configs, true)));
        line(format_args!("{}", table::in_words(&report.configs)));
        if let Some(text) = &report.recommendation {
            line(format_args!("\n```text\n{}\n```\n\n`pareto.svg` shows both.", text.trim_end()));
        }
    }
    line(format_args!("\n## What this does not show\n"));
    for text in &report.not_shown {
        line(format_args!("- {text}"));
    }
    lines.join("\n") + "\n"
}

fn render_scenario(scenario: &ScenarioReport, line: &mut impl FnMut(std::fmt::Arguments<'_>)) {
    let s = scenario;
    let expected = if s.as_expected { "as expected" } else { "**not as expected**" };
    line(format_args!("\n## {}: {}, {expected}\n", s.name, s.verdict));
    line(format_args!("{}\n", s.claim));
    line(format_args!("Expected: {}. Seed {}.\n", s.expect.describe(), s.seed));
    line(format_args!(
        "| setting | cycles | graceful | kills | in a transaction or commit | acked | lost | \
         unknown (kept) | stale, refused | corrupt cycles |"
    ));
    line(format_args!("|---|---|---|---|---|---|---|---|---|---|"));
    for setting in &s.settings {
        row(&setting.name, &setting.counts, line);
    }
    row("all", &s.counts, line);
    render_settings(&s.settings, line);
    let kills: Vec<String> = s
        .counts
        .kills_by_activity
        .iter()
        .map(|(activity, count)| format!("{activity:?} {count}").to_lowercase())
        .collect();
    line(format_args!("\nKills by what the victim was doing: {}.", kills.join(", ")));
    let bounds = s.bounds;
    line(format_args!(
        "95 % upper bounds: lost share of acknowledged operations {}, damaged share of cycles {}.",
        bound::text(bounds.lost_acked_op_share),
        bound::text(bounds.corrupt_cycle_share)
    ));
    let spent = s.spent_ms;
    line(format_args!(
        "{:.1} cycles/s over {} ms with {} processes a cycle and {} lanes. Lane time, ms: founding \
         {}, processes {}, recovery {}, judging {}.",
        s.cycles_per_s,
        s.elapsed_ms,
        s.processes,
        s.jobs,
        spent.founding,
        spent.processes,
        spent.recovery,
        spent.judging
    ));
    if !s.findings.is_empty() {
        let kinds: Vec<String> =
            s.findings_by_kind.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        line(format_args!("\nFindings: {}. The first ones:\n", kinds.join(", ")));
        for finding in s.findings.iter().take(10) {
            line(format_args!("- `{}`: {}", finding.kind, finding.detail));
        }
    }
}

/// What the settings had of their own: engines, expectations, the first loss.
fn render_settings(settings: &[SettingReport], line: &mut impl FnMut(std::fmt::Arguments<'_>)) {
    if settings.iter().any(|setting| setting.expect.is_some()) {
        line(format_args!(
            "\n| setting | expected | gave | broken cycles | acked | lost | first loss after |"
        ));
        line(format_args!("|---|---|---|---|---|---|---|"));
        for setting in settings {
            let expect = setting.expect.map_or_else(String::new, Expect::describe);
            let gave = setting.verdict.map_or("", Verdict::as_str);
            let first =
                setting.first_loss_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms"));
            let (name, acked) = (&setting.name, setting.counts.acked_ops);
            let (lost, all) = (setting.counts.lost_acked_ops, setting.counts.cycles);
            let broken = setting.failed_cycles;
            line(format_args!(
                "| {name} | {expect} | {gave} | {broken} of {all} | {acked} | {lost} | {first} |"
            ));
        }
    }
    if settings.iter().any(|setting| !setting.engines.is_empty()) {
        line(format_args!("\nWhat each process loaded, in the library's own words:\n"));
        line(format_args!("| setting | role | asked for | SQLite | source id | processes |"));
        line(format_args!("|---|---|---|---|---|---|"));
        for setting in settings {
            for e in &setting.engines {
                let role = format!("{:?}", e.role).to_lowercase();
                let (name, engine, version) = (&setting.name, e.engine.as_str(), &e.sqlite_version);
                let (id, processes) = (&e.source_id, e.processes);
                line(format_args!(
                    "| {name} | {role} | {engine} | {version} | {id} | {processes} |"
                ));
            }
        }
    }
}

fn row(name: &str, c: &Counts, line: &mut impl FnMut(std::fmt::Arguments<'_>)) {
    line(format_args!(
        "| {name} | {} | {} | {} | {:.0} % | {} | {} | {} ({}) | {} | {} |",
        c.cycles,
        c.graceful_cycles,
        c.process_kills,
        c.in_flight_share() * 100.0,
        c.acked_ops,
        c.lost_acked_ops,
        c.unknown_ops,
        c.unknown_kept_ops,
        c.stale_refused_ops,
        c.corrupt_cycles
    ));
}
