//! Schedules, one after another, on as many lanes as there are cores: played, judged, some of them
//! twice; a failing one is on disk before anything else is done.

use super::stage::{Judged, Stage, landed};
use crate::command::CommandError;
use crate::command::progress::Progress;
use crate::plan::schedule::{Order, SchedulePlan, beside, schedule};
use crate::plan::{Stream, round_seed};
use crate::report::bound;
use crate::report::cost::round;
use crate::report::ratio;
use crate::report::schedule::{ScheduleReport, ScheduleSetting};
use crate::run::schedule::{Arena, Ask, Meeting, Played, Seen};
use crate::run::trace::{Preemption, preemption};
use crate::run::{Engines, RunError, machine};
use crate::scenario::schedule::{Policy, Schedules};
use crate::verdict::{Finding, FindingKind, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Findings that are kept word for word.
const FINDINGS_MAX: usize = 40;
/// Bundles that are written of one setting.
const BUNDLES_MAX: usize = 24;
/// Schedules after which it is looked where something new was seen. Lanes wait for one another
/// there, so that what follows is the same however fast each of them is.
const GENERATION: u64 = 250;
/// Of so many schedules beside others, one stays a fresh one: nothing is left out for good.
const FRESH_OF: u32 = 3;
/// Schedules that are remembered as having shown something new.
const BESIDE_MAX: usize = 64;
/// Schedules that are played to measure how many steps one takes.
const PILOTS: u64 = 3;

/// One scenario under one seed.
pub(super) struct Explorer<'a> {
    pub(super) name: &'a str,
    pub(super) asked: &'a Schedules,
    pub(super) engines: &'a Engines,
    pub(super) seed: u64,
    pub(super) jobs: usize,
    pub(super) deadline: Option<Instant>,
    pub(super) interrupted: &'a AtomicBool,
    pub(super) out: &'a Path,
}

/// What the lanes of one setting have together.
#[derive(Default)]
struct Gathered {
    told: ScheduleSetting,
    findings: Vec<Finding>,
    by_kind: BTreeMap<FindingKind, u64>,
    bundles: Vec<String>,
    /// All pairs that were met.
    seen: BTreeSet<Meeting>,
    /// Those of the generations before the one under way, by which the next ones are steered.
    pairs: BTreeSet<Meeting>,
    /// What each schedule of the generation under way met.
    met: BTreeMap<u64, BTreeSet<Meeting>>,
    /// Of the seed under way: when the first broken promise was found.
    first: Option<(Duration, u64)>,
    error: Option<CommandError>,
}

/// What a second run of a schedule gave.
#[derive(Debug, PartialEq)]
enum Again {
    NotRun,
    Same,
    Differs(Finding),
}

/// One seed of one setting under way.
struct Search<'a> {
    stage: &'a Stage,
    setting: usize,
    seed: u64,
    /// Steps of one schedule, as measured.
    length: Option<u32>,
    began: Instant,
    next: AtomicU64,
    /// The first number of the next generation.
    until: AtomicU64,
    /// Schedules that showed something new, in order.
    favoured: Mutex<Vec<u64>>,
    shared: &'a Mutex<Gathered>,
    progress: &'a Progress,
}

impl Explorer<'_> {
    pub(super) fn run(&self, dir: &Path) -> Result<ScheduleReport, CommandError> {
        let began = Instant::now();
        let mut report = ScheduleReport {
            name: self.name.to_owned(),
            claim: self.asked.claim.clone(),
            expect: self.asked.expect.describe(),
            canary: self.asked.canary,
            seed: format!("{:#x}", self.seed),
            verdict: Verdict::Pass,
            as_expected: false,
            findings: Vec::new(),
            findings_by_kind: BTreeMap::new(),
            settings: Vec::new(),
            preemption: match preemption() {
                Preemption::Watchpoints => "by hardware watchpoints".to_owned(),
                Preemption::Steps { why } => format!("by counted steps, since {why}"),
            },
            bundles: Vec::new(),
            elapsed_ms: 0,
            jobs: self.jobs,
        };
        let mut by_kind: BTreeMap<FindingKind, u64> = BTreeMap::new();
        for index in 0..self.asked.setting.len().max(1) {
            let gathered = self.setting(index, &dir.join(format!("setting-{index}")))?;
            for (kind, count) in gathered.by_kind {
                *by_kind.entry(kind).or_default() += count;
            }
            report.findings.extend(gathered.findings);
            report.bundles.extend(gathered.bundles);
            report.settings.push(gathered.told);
        }
        if self.interrupted.load(Ordering::Relaxed) {
            let detail = "stopped before the last schedule".to_owned();
            report.findings.push(Finding { kind: FindingKind::Interrupted, detail });
            *by_kind.entry(FindingKind::Interrupted).or_default() += 1;
        }
        report.verdict = Verdict::merge(
            std::iter::once(Verdict::Pass).chain(by_kind.keys().map(|kind| kind.verdict())),
        );
        report.as_expected = self.asked.expect.met(report.verdict, by_kind.keys().copied());
        report.findings_by_kind =
            by_kind.iter().map(|(kind, n)| (kind.as_str().to_owned(), *n)).collect();
        report.elapsed_ms = ms(began.elapsed());
        Ok(report)
    }

    fn setting(&self, index: usize, dir: &Path) -> Result<Gathered, CommandError> {
        let stage = Stage::prepare(self.name, self.asked, index, self.engines, dir)?;
        let mut gathered = Gathered::default();
        let named = self.asked.setting.get(index).map(|setting| setting.name());
        gathered.told.name = named.unwrap_or_else(|| "command".to_owned());
        gathered.told.engine.clone_from(&stage.build.what);
        let before = stage.before();
        gathered.take_findings(&before, "before any schedule");
        let length = self.measured(&stage, index, &dir.join("pilot"))?;
        let count = u64::from(self.asked.schedule.count);
        let seeds = u64::from(self.asked.schedule.seeds);
        let progress = Progress::new(&gathered.told.name, count * seeds);
        let shared = Mutex::new(gathered);
        let began = Instant::now();
        for round in 0..seeds {
            let search = Search {
                stage: &stage,
                setting: index,
                seed: round_seed(self.seed, round),
                length,
                began: Instant::now(),
                next: AtomicU64::new(0),
                until: AtomicU64::new(0),
                favoured: Mutex::default(),
                shared: &shared,
                progress: &progress,
            };
            self.search(&search, dir);
            let mut gathered = lock(&shared);
            gathered.told.seeds += 1;
            if let Some((time, schedules)) = gathered.first.take() {
                gathered.told.first_finding_ms.push(ms(time));
                gathered.told.first_finding_schedules.push(schedules);
            }
            if gathered.error.is_some() || self.is_over() {
                break;
            }
        }
        let mut gathered = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = gathered.error.take() {
            return Err(error);
        }
        gathered.finish(began.elapsed(), self.jobs);
        Ok(gathered)
    }

    fn is_over(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
            || self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// How many steps a schedule takes: probabilistic concurrency testing draws its changes among
    /// them, and those that lie beyond the end are none.
    fn measured(
        &self,
        stage: &Stage,
        setting: usize,
        dir: &Path,
    ) -> Result<Option<u32>, CommandError> {
        if !matches!(self.asked.schedule.policy, Policy::Pct { .. }) || self.asked.exact.is_some() {
            return Ok(None);
        }
        let mut arena = stage.arena(dir, None)?;
        let mut lengths = Vec::new();
        for number in 0..PILOTS {
            let mut plan = schedule(self.asked, self.seed, setting, number);
            plan.order = Order::Decided(Vec::new());
            plan.faults.clear();
            lengths.push(arena.play(&plan, Ask::default())?.steps.len());
        }
        lengths.sort_unstable();
        Ok(lengths.get(lengths.len() / 2).and_then(|length| u32::try_from(*length).ok()))
    }

    fn is_steered(&self) -> bool {
        self.asked.schedule.steered || self.deadline.is_some()
    }

    fn search(&self, search: &Search<'_>, dir: &Path) {
        let count = u64::from(self.asked.schedule.count);
        let each = if self.is_steered() { GENERATION } else { count };
        let mut from = 0;
        while from < count {
            let until = count.min(from + each);
            search.next.store(from, Ordering::Relaxed);
            search.until.store(until, Ordering::Relaxed);
            self.generation(search, dir);
            from = until;
            if self.is_over() || search.is_found(self.asked.schedule.to_the_end) {
                return;
            }
            if self.is_steered() {
                search.favour();
            }
        }
    }

    /// Who is next: a schedule of its own, or one beside another that showed something new.
    fn planned(&self, search: &Search<'_>, number: u64) -> SchedulePlan {
        let favoured = search.favoured.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stream = Stream::new(search.seed, &format!("steer/{}/{number}", search.setting));
        let mut plan = match u32::try_from(favoured.len()).unwrap_or(0).checked_sub(1) {
            Some(last) if self.is_steered() && stream.within([1, FRESH_OF]) > 1 => {
                let earlier = favoured[stream.within([0, last]) as usize];
                beside(self.asked, search.seed, search.setting, number, earlier)
            }
            _ => schedule(self.asked, search.seed, search.setting, number),
        };
        plan.length = search.length.unwrap_or(plan.length);
        plan
    }

    fn generation(&self, search: &Search<'_>, dir: &Path) {
        std::thread::scope(|scope| {
            for lane in 0..self.jobs {
                scope.spawn(move || {
                    // A lane and its processes have a processor of their own: a stop costs half.
                    let free = matches!(self.asked.schedule.policy, Policy::Delay { .. });
                    let cpu = (!free).then(|| lane % machine::cores());
                    let dir = dir.join(format!("lane-{lane}"));
                    if let Err(error) = self.lane(search, &dir, cpu) {
                        lock(search.shared).error.get_or_insert(error);
                    }
                });
            }
        });
    }

    fn lane(
        &self,
        search: &Search<'_>,
        dir: &Path,
        cpu: Option<usize>,
    ) -> Result<(), CommandError> {
        let mut arena = search.stage.arena(dir, cpu)?;
        loop {
            let number = search.next.fetch_add(1, Ordering::Relaxed);
            let over = number >= search.until.load(Ordering::Relaxed) || self.is_over();
            if over || search.is_found(self.asked.schedule.to_the_end) {
                return Ok(());
            }
            let plan = self.planned(search, number);
            let began = Instant::now();
            let played = arena.play(&plan, Ask::default())?;
            let run = began.elapsed();
            let findings = search.stage.judge(&arena, &plan, &played)?;
            let judged = Judged { played, findings };
            let found_after = search.began.elapsed();
            let kept = self.keep(search, &plan, &judged)?;
            let spent = (run, began.elapsed().saturating_sub(run));
            let differs = self.again(search, &mut arena, &plan, &judged)?;
            let kept = (kept, self.is_steered());
            search.gather(&plan, &judged, kept, differs, spent, found_after);
            search.progress.step();
        }
    }

    /// Writes a failing schedule down, before anything else can go wrong.
    fn keep(
        &self,
        search: &Search<'_>,
        plan: &SchedulePlan,
        judged: &Judged,
    ) -> Result<Option<String>, CommandError> {
        if judged.findings.is_empty() || lock(search.shared).bundles.len() >= BUNDLES_MAX {
            return Ok(None);
        }
        let name = self.name.replace('/', "-");
        let (seed, setting, number) = (search.seed, plan.setting, plan.number);
        let name = format!("{name}-{seed:x}-{setting}-{number}.bundle");
        let path: PathBuf = self.out.join(&name);
        search.stage.bundle(search.seed, plan, judged, self.out).save(&path)?;
        Ok(Some(name))
    }

    /// Runs a share of the schedules, and every failing one, a second time, by their decisions.
    fn again(
        &self,
        search: &Search<'_>,
        arena: &mut Arena<'_>,
        plan: &SchedulePlan,
        judged: &Judged,
    ) -> Result<Again, RunError> {
        let asked = plan.is_run_twice(self.asked.schedule.twice_per_100);
        if judged.played.steps.is_empty() || (judged.findings.is_empty() && !asked) {
            return Ok(Again::NotRun);
        }
        let order = Order::Decided(judged.played.decisions.clone());
        let again = SchedulePlan { order, ..plan.clone() };
        // By its decisions, not its policy, and with a stop at each call: neither may matter.
        let played = arena.play(&again, Ask { each_call: true, story: false })?;
        let waited = judged.played.in_kernel + played.in_kernel > 0;
        let why =
            if waited { ", after a wait in the kernel for what is not known here" } else { "" };
        let differs = difference(&judged.played, &played).map(|what| Finding {
            kind: FindingKind::NotDeterministic,
            detail: format!("schedule {} of seed {:#x}: {what}{why}", plan.number, search.seed),
        });
        Ok(differs.map_or(Again::Same, Again::Differs))
    }
}

/// Where two runs of one plan part; none if they are the same.
pub(super) fn difference(first: &Played, second: &Played) -> Option<String> {
    let parted = steps_differ(&first.steps, &second.steps).map(|what| {
        let differs = first.steps.iter().zip(&second.steps).position(|(one, other)| one != other);
        let at = differs.unwrap_or(first.steps.len().min(second.steps.len()));
        let tell = |seen: &[Seen]| {
            seen.get(at).map_or_else(|| "nothing any more".to_owned(), Seen::to_string)
        };
        format!("{what}: {}, and the second time {}", tell(&first.seen), tell(&second.seen))
    });
    parted.or_else(|| {
        (first.left != second.left)
            .then(|| "every step is the same, and the files that are left are not".to_owned())
    })
}

/// The first step in which two runs differ.
pub(super) fn steps_differ(first: &[u32], second: &[u32]) -> Option<String> {
    let place = first.iter().zip(second).position(|(one, other)| one != other);
    let shorter = first.len().min(second.len());
    let (is, was) = (second.len(), first.len());
    match place {
        Some(place) => Some(format!("step {} differs, of {was}", place + 1)),
        None if first.len() != second.len() => {
            Some(format!("it goes on differently after step {shorter}: {is} steps, not {was}"))
        }
        None => None,
    }
}

impl Search<'_> {
    /// Looks which schedules of the last generation met pairs that none before them did.
    fn favour(&self) {
        let mut gathered = lock(self.shared);
        let mut favoured = self.favoured.lock().unwrap_or_else(PoisonError::into_inner);
        let met = std::mem::take(&mut gathered.met);
        for (number, met) in met {
            let before = gathered.pairs.len();
            gathered.pairs.extend(met);
            if gathered.pairs.len() > before {
                favoured.push(number);
            }
        }
        let beyond = favoured.len().saturating_sub(BESIDE_MAX);
        favoured.drain(..beyond);
    }

    /// Whether the search is over because something was found.
    fn is_found(&self, to_the_end: bool) -> bool {
        let gathered = lock(self.shared);
        gathered.error.is_some() || (gathered.first.is_some() && !to_the_end)
    }

    fn gather(
        &self,
        plan: &SchedulePlan,
        judged: &Judged,
        (bundle, steered): (Option<String>, bool),
        again: Again,
        (running, judging): (Duration, Duration),
        found_after: Duration,
    ) {
        let mut gathered = lock(self.shared);
        let played = &judged.played;
        let told = &mut gathered.told;
        let place = told.schedules / 1_000;
        told.schedules += 1;
        told.killed_at_end += u64::from(plan.killed_at_end);
        told.steps += played.steps.len() as u64;
        told.stops += played.stops;
        told.passed += played.passed;
        told.preemptions += u64::from(played.preemptions);
        told.traps_set += u64::from(played.traps[0]);
        told.traps_met += u64::from(played.traps[1]);
        told.faults += plan.faults.len() as u64;
        told.faults_landed += landed(played);
        told.running_ms += ms_rounded(running);
        told.judging_ms += ms_rounded(judging);
        let broken = judged.findings.iter().any(|f| f.kind.verdict() == Verdict::Fail);
        told.failing += u64::from(broken);
        told.failing_killed += u64::from(broken && plan.killed_at_end);
        told.run_twice += u64::from(again != Again::NotRun);
        if let Again::Differs(finding) = again {
            told.differing += 1;
            gathered.take_findings(&[finding], "");
        }
        let new = played.meetings.difference(&gathered.seen).count() as u64;
        gathered.seen.extend(played.meetings.iter().copied());
        let place = usize::try_from(place).unwrap_or(0);
        if gathered.told.new_pairs_per_thousand.len() <= place {
            gathered.told.new_pairs_per_thousand.resize(place + 1, 0);
        }
        gathered.told.new_pairs_per_thousand[place] += new;
        if plan.beside.is_some() {
            gathered.told.beside += 1;
            gathered.told.new_pairs_beside += new;
        }
        if plan.beside.is_some() || steered {
            gathered.met.insert(plan.number, played.meetings.clone());
        }
        if broken && gathered.first.is_none() {
            gathered.first = Some((found_after, plan.number + 1));
        }
        let name = format!("schedule {} of seed {:#x}", plan.number, self.seed);
        gathered.take_findings(&judged.findings, &name);
        gathered.bundles.extend(bundle);
    }
}

impl Gathered {
    fn take_findings(&mut self, findings: &[Finding], place: &str) {
        for finding in findings {
            *self.by_kind.entry(finding.kind).or_default() += 1;
            if self.findings.len() < FINDINGS_MAX {
                let mut finding = finding.clone();
                if !place.is_empty() {
                    finding.detail = format!("{place}: {}", finding.detail);
                }
                self.findings.push(finding);
            }
        }
    }

    fn finish(&mut self, elapsed: Duration, jobs: usize) {
        let lanes_s = elapsed.as_secs_f64().max(1e-9) * ratio(jobs as u64, 1);
        let told = &mut self.told;
        told.elapsed_ms = ms(elapsed);
        told.running_ms /= 1_000;
        told.judging_ms /= 1_000;
        told.pairs = self.seen.len() as u64;
        told.stops_per_s_and_core = round(ratio(told.stops, 1) / lanes_s, 0);
        told.schedules_per_s_and_core = round(ratio(told.schedules, 1) / lanes_s, 1);
        told.failing_share_bound = bound::upper_95(told.failing, told.schedules);
        if told.faults > 0 && told.faults_landed == 0 {
            let detail = "no fault landed".to_owned();
            self.take_findings(&[Finding { kind: FindingKind::FaultNotDelivered, detail }], "");
        }
    }
}

fn lock(shared: &Mutex<Gathered>) -> MutexGuard<'_, Gathered> {
    // Another lane's panic leaves counts that are at most one schedule short.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// In µs here; divided once all are added.
fn ms_rounded(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
