//! `killpoint replay`: a failing schedule again, from its bundle.

use super::explore::{difference, steps_differ};
use super::stage::Stage;
use crate::bundle::Bundle;
use crate::cli;
use crate::command::engines::Choice;
use crate::command::{CommandError, say};
use crate::exit::Exit;
use crate::run::schedule::Ask;
use crate::verdict::Finding;

/// Carries out the command.
pub(crate) fn replay(arguments: &cli::Replay) -> Result<Exit, CommandError> {
    let bundle = Bundle::load(&arguments.bundle)?;
    let choice = Choice::of(&arguments.engine)?;
    let mut scenario = bundle.scenario.clone();
    scenario.schedule.engine = choice.name.unwrap_or(scenario.schedule.engine);
    let mut bundle = Bundle { scenario, ..bundle };
    for life in &mut bundle.plan.lives {
        life.engine = choice.name.unwrap_or(life.engine);
    }
    let engines = choice.ready([bundle.scenario.schedule.engine])?;
    let stage = Stage::of_bundle(&bundle, &engines)?;
    if !arguments.any_build {
        stage.is_build_of(&bundle, &arguments.bundle)?;
    }
    let dir = tempfile::Builder::new().prefix("killpoint-").tempdir_in(arguments.place());
    let dir = dir.map_err(|source| CommandError::Place {
        what: "--dir",
        path: arguments.place(),
        source,
    })?;
    for finding in &bundle.manifest.findings {
        say(&format!("bundle: {}: {}", finding.kind, finding.detail));
    }
    let mut arena = stage.arena(dir.path(), Some(0))?;
    let mut same = 0;
    let mut found = false;
    for time in 1..=arguments.times {
        // Every second time with a stop at each call, which must make no difference.
        let ask = Ask { each_call: time % 2 == 0, story: false };
        let judged = stage.play(&mut arena, &bundle.plan, ask)?;
        let steps = steps_differ(&bundle.steps, &judged.played.steps);
        let left = bundle.manifest.left == judged.played.left;
        let findings = kinds(&judged.findings) == kinds(&bundle.manifest.findings);
        found |= !judged.findings.is_empty();
        let word = match (&steps, findings, left) {
            (None, true, true) => {
                same += 1;
                format!("reproduced: same finding, same step ({} steps)", judged.played.steps.len())
            }
            (None, true, false) => {
                "not reproduced: same finding, same steps, and other files are left".to_owned()
            }
            (Some(what), true, _) => format!("same finding, but another way: {what}"),
            (what, false, _) => {
                let what = what.clone().unwrap_or_else(|| "every step is the same".to_owned());
                let told = describe(&judged.findings);
                format!("not reproduced: {told}; {what}")
            }
        };
        say(&format!("replay {time} of {}: {word}", arguments.times));
        debug_assert!(difference(&judged.played, &judged.played).is_none());
    }
    say(&format!("{same} of {} replays identical", arguments.times));
    Ok(if same == arguments.times {
        Exit::AsExpected
    } else if found {
        Exit::Broken
    } else {
        Exit::Inconclusive
    })
}

pub(super) fn kinds(findings: &[Finding]) -> Vec<(crate::verdict::FindingKind, &str)> {
    findings.iter().map(|finding| (finding.kind, finding.detail.as_str())).collect()
}

fn describe(findings: &[Finding]) -> String {
    match findings.first() {
        Some(first) => format!("another finding, {}: {}", first.kind, first.detail),
        None => "no finding".to_owned(),
    }
}
