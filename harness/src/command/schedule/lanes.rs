//! Lanes that play schedules side by side, and say which of some have a finding.
//!
//! In: plans. Out: the first of them that gives the finding, with the decisions that it took.
//! A lane is a thread, since the kernel ties tracing to one, and has a processor of its own.

use super::shrink::with_decisions;
use super::stage::{Judged, Stage};
use crate::command::CommandError;
use crate::plan::schedule::SchedulePlan;
use crate::run::RunError;
use crate::run::schedule::{Arena, Ask};
use crate::verdict::FindingKind;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Scope;

/// A plan with its place among those asked about together.
type Job = (usize, SchedulePlan);
/// What came of it: the plan with its decisions, if it has the finding.
type Answer = (usize, Result<Option<SchedulePlan>, RunError>);

/// The lanes. They end when this is dropped.
pub(super) struct Lanes {
    jobs: Sender<Job>,
    answers: Receiver<Answer>,
    count: usize,
}

impl Lanes {
    /// Starts `count` lanes below `dir`, which look for any of `kinds`.
    pub(super) fn start<'scope, 'env>(
        scope: &'scope Scope<'scope, 'env>,
        stage: &'env Stage,
        kinds: &'env BTreeSet<FindingKind>,
        dir: &'env Path,
        count: usize,
    ) -> Self {
        let (jobs, taken) = channel::<Job>();
        let (told, answers) = channel();
        let taken = Arc::new(Mutex::new(taken));
        for lane in 0..count {
            let (taken, told) = (Arc::clone(&taken), told.clone());
            let dir: PathBuf = dir.join(format!("lane-{lane}"));
            scope.spawn(move || {
                let mut arena = None;
                loop {
                    let job = taken.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((place, plan)) = job else { return };
                    let answer =
                        match arena.take().map_or_else(|| stage.arena(&dir, Some(lane)), Ok) {
                            Ok(made) => has(stage, arena.insert(made), kinds, &plan),
                            Err(error) => Err(error),
                        };
                    if told.send((place, answer)).is_err() {
                        return;
                    }
                }
            });
        }
        Self { jobs, answers, count }
    }

    /// How many can be tried side by side.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The first of `plans` that has the finding, with its place.
    pub(super) fn first(
        &self,
        plans: Vec<SchedulePlan>,
    ) -> Result<Option<(usize, SchedulePlan)>, CommandError> {
        let asked = plans.len();
        for job in plans.into_iter().enumerate() {
            self.jobs.send(job).map_err(|_| gone())?;
        }
        let mut first: Option<(usize, SchedulePlan)> = None;
        for _ in 0..asked {
            let (place, answer) = self.answers.recv().map_err(|_| gone())?;
            if let Some(plan) = answer?
                && first.as_ref().is_none_or(|(before, _)| place < *before)
            {
                first = Some((place, plan));
            }
        }
        Ok(first)
    }
}

fn gone() -> RunError {
    RunError::Zygote("a lane has ended".to_owned())
}

fn has(
    stage: &Stage,
    arena: &mut Arena<'_>,
    kinds: &BTreeSet<FindingKind>,
    plan: &SchedulePlan,
) -> Result<Option<SchedulePlan>, RunError> {
    let Judged { played, findings } = stage.play(arena, plan, Ask::default())?;
    let same = findings.iter().any(|finding| kinds.contains(&finding.kind));
    // What was decided and never came to pass is left out.
    Ok(same.then(|| with_decisions(plan, played.decisions)))
}
