//! After a power cut the database holds a prefix of the commits, and in it every one whose
//! acknowledgement promised that.
//!
//! What was recovered is one of the contents of the [`Course`], to the byte; or it is a prefix of
//! nothing. Which prefix it must be at least is known from the acknowledgements that had been given
//! by the cut, each by its own promise: one of [`Durability::Power`] must be there, one of
//! [`Durability::Process`] may be lost, and how much of those is lost is measured.
//!
//! That the contents of the course are themselves right is judged by [`Judge`], which
//! replays the commits and knows each row; see [`board`].

use super::Judge;
use crate::history::power::{Ack, Course, Cut, Found};
use crate::history::{Life, Line};
use crate::plan::CyclePlan;
use crate::verdict::{Finding, FindingKind};
use hardboard::Durability;
use killpoint_worker::ledger::State;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Findings of one judge that are told in full.
const TOLD_MAX: usize = 20;

/// Judges the cuts of one recording. Several may share the work, and are then merged.
#[derive(Clone, Debug)]
pub struct PowerJudge {
    course: Arc<Course>,
    /// By cut: the content that was there for readers, undisturbed.
    reached: Vec<usize>,
    /// By cut: the content that must be there at least, and which acknowledgement says so.
    must: Vec<(usize, Option<usize>)>,
    /// By cut: the content that had been told of, at any level, and by which acknowledgement.
    told: Vec<(usize, Option<usize>)>,
    /// What was found.
    pub seen: PowerTally,
}

/// What the judged cuts showed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PowerTally {
    /// Cuts judged, an image counted once for each cut that leaves it.
    pub judged: u64,
    /// Of those: not to be read, damaged, or of two minds.
    pub corrupt: u64,
    /// Sound, and no prefix of the commits.
    pub not_a_prefix: u64,
    /// Without a commit whose acknowledgement promised power safety.
    pub power_acks_lost: u64,
    /// Without a commit that was acknowledged at all.
    pub acks_lost: u64,
    /// Of the cuts after which all that was unsynced is lost: how many acknowledged commits each
    /// cost, one for each cut.
    pub lost_commits: Vec<u32>,
    /// The time from the first of these acknowledgements to the cut, µs of the recorded run.
    pub lost_us: Vec<u64>,
    /// Bytes written between the content that was kept and the last that was told of.
    pub lost_bytes: Vec<u64>,
    /// Findings by kind.
    pub by_kind: BTreeMap<FindingKind, u64>,
    /// The first of them.
    pub findings: Vec<Finding>,
}

impl PowerTally {
    /// Both together.
    pub fn add(&mut self, other: Self) {
        self.judged += other.judged;
        self.corrupt += other.corrupt;
        self.not_a_prefix += other.not_a_prefix;
        self.power_acks_lost += other.power_acks_lost;
        self.acks_lost += other.acks_lost;
        self.lost_commits.extend(other.lost_commits);
        self.lost_us.extend(other.lost_us);
        self.lost_bytes.extend(other.lost_bytes);
        for (kind, count) in other.by_kind {
            *self.by_kind.entry(kind).or_default() += count;
        }
        let room = TOLD_MAX.saturating_sub(self.findings.len());
        self.findings.extend(other.findings.into_iter().take(room));
    }

    /// Adds what is wrong with the recorded run itself.
    pub fn find_in_course(&mut self, finding: Finding) {
        self.find(finding.kind, || finding.detail);
    }

    fn find(&mut self, kind: FindingKind, detail: impl FnOnce() -> String) {
        let count = self.by_kind.entry(kind).or_default();
        *count += 1;
        // The first of each kind are told, however many there are of another.
        if *count <= 4 && self.findings.len() < TOLD_MAX {
            self.findings.push(Finding { kind, detail: detail() });
        }
    }
}

impl PowerJudge {
    /// A judge of the cuts of `course`.
    #[must_use]
    pub fn new(course: Arc<Course>) -> Self {
        let cuts = course.entries + 1;
        let mut reached = Vec::with_capacity(cuts);
        let (mut must, mut told) = (Vec::with_capacity(cuts), Vec::with_capacity(cuts));
        let mut next = 0;
        let mut acks = course.acks.iter().enumerate().peekable();
        let (mut promised, mut last) = ((0, None), (0, None));
        for cut in 0..cuts {
            while course.commits.get(next).is_some_and(|commit| commit.from <= cut) {
                next += 1;
            }
            reached.push(next.saturating_sub(1));
            while let Some((index, Ack { commit, durability, .. })) =
                acks.next_if(|(_, ack)| ack.from <= cut)
            {
                let Some(commit) = *commit else { continue };
                if commit >= last.0 {
                    last = (commit, Some(index));
                }
                if *durability == Durability::Power && commit >= promised.0 {
                    promised = (commit, Some(index));
                }
            }
            must.push(promised);
            told.push(last);
        }
        Self { course, reached, must, told, seen: PowerTally::default() }
    }

    /// Judges one cut.
    pub fn judge(&mut self, cut: &Cut<'_>, place: &dyn Fn() -> String) {
        self.seen.judged += 1;
        let at = cut.at.min(self.course.entries);
        match cut.found {
            Found::Unreadable(why) => {
                self.seen.corrupt += 1;
                let why = why.replace('\n', " ");
                self.seen.find(FindingKind::Corrupt, || format!("{}: {why}", place()));
            }
            Found::Diverged => {
                self.seen.corrupt += 1;
                self.seen.find(FindingKind::RecoveryDiverged, || {
                    format!("{}: two recoveries of one image gave two contents", place())
                });
            }
            Found::Other { complaints, .. } if !complaints.is_empty() => {
                self.seen.corrupt += 1;
                let first = &complaints[0];
                self.seen.find(FindingKind::Corrupt, || format!("{}: {first}", place()));
            }
            Found::Other { counter, .. } => {
                self.seen.not_a_prefix += 1;
                let counter = counter.map_or_else(String::new, |(seq, rows)| {
                    format!("; it counts {rows} commits, the last is {seq}")
                });
                self.seen.find(FindingKind::NotAPrefix, || {
                    format!("{}: sound, and the content of no commit{counter}", place())
                });
            }
            Found::Commit(number) => self.prefix(at, *number, cut.all_lost, place),
        }
        if cut.all_lost && !matches!(cut.found, Found::Commit(_)) {
            // What is unreadable has lost all that was told of.
            self.lose(at, 0);
        }
    }

    /// What survived is the content after commit `number`.
    fn prefix(&mut self, at: usize, number: usize, all_lost: bool, place: &dyn Fn() -> String) {
        let reached = self.reached[at];
        let mut number = number;
        while number > reached {
            let earlier = self.course.commits.get(number).and_then(|commit| commit.earlier);
            let Some(earlier) = earlier else {
                self.seen.not_a_prefix += 1;
                return self.seen.find(FindingKind::AlienWrite, || {
                    format!("{}: commit {number} before it was made", place())
                });
            };
            number = earlier;
        }
        let (must, by) = self.must[at];
        if number < must {
            self.seen.power_acks_lost += 1;
            let course = Arc::clone(&self.course);
            let token = by.map_or("", |index| course.acks[index].token.as_str());
            let many = must - number;
            self.seen.find(FindingKind::LostAckedWrite, || {
                format!(
                    "{}: {many} commits are lost, the last of them acknowledged as {token} with \
                     the promise to survive a power cut",
                    place()
                )
            });
        }
        if number < self.told[at].0 {
            self.seen.acks_lost += 1;
        }
        if all_lost {
            self.lose(at, number);
        }
    }

    /// Measures what is lost where all that was unsynced is.
    fn lose(&mut self, at: usize, number: usize) {
        let told = self.told[at].0;
        let lost = told.saturating_sub(number);
        self.seen.lost_commits.push(u32::try_from(lost).unwrap_or(u32::MAX));
        if lost == 0 {
            self.seen.lost_us.push(0);
            self.seen.lost_bytes.push(0);
            return;
        }
        let now = at.checked_sub(1).and_then(|last| self.course.at_us.get(last)).copied();
        let first = self.course.acks.iter().find(|ack| ack.commit.is_some_and(|c| c > number));
        let since = first.and_then(|ack| self.course.at_us.get(ack.from.saturating_sub(1)));
        let lost_us = now.unwrap_or(0).saturating_sub(since.copied().unwrap_or(0));
        self.seen.lost_us.push(lost_us);
        let written = |commit: usize| {
            let from = self.course.commits.get(commit).map_or(0, |commit| commit.from);
            self.course.written_bytes.get(from).copied().unwrap_or(0)
        };
        self.seen.lost_bytes.push(written(told).saturating_sub(written(number)));
    }
}

/// What keeps a recording from being judged, or is wrong with its undisturbed course.
#[must_use]
pub fn undisturbed(course: &Course) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |kind, detail: String| findings.push(Finding { kind, detail });
    if course.acks.is_empty() {
        let detail = "no operation was acknowledged: there was nothing to lose".to_owned();
        find(FindingKind::NothingAcked, detail);
    }
    for (number, commit) in course.commits.iter().enumerate() {
        if let Some(first) = commit.complaints.first() {
            find(FindingKind::Corrupt, format!("undisturbed, commit {number}: {first}"));
        }
        if let Some((seq, rows)) = commit.counter
            && seq != rows
        {
            let detail = format!("undisturbed, commit {number} counts {rows}, the last is {seq}");
            find(FindingKind::CommitHole, detail);
        }
    }
    let untied = course.acks.iter().filter(|ack| ack.commit.is_none()).count();
    if untied > 0 {
        let detail = format!(
            "{untied} acknowledgements belong to no commit that can be told: give a --check-sql \
             that finds what a token stands for"
        );
        find(FindingKind::LedgerCutShort, detail);
    }
    findings.truncate(TOLD_MAX);
    findings
}

/// Judges the content of a board after its commit `seq` by the model that knows each row.
///
/// `before` is what was done to it before the recording, `recorded` what its processes were told,
/// and `seen` what a look at the content gave. Operations that were acknowledged with a later
/// number had not been committed: they must not be there.
#[must_use]
pub fn board(
    before: &(CyclePlan, Vec<Line>),
    recorded: &(CyclePlan, Vec<Line>),
    seen: Line,
    seq: i64,
) -> Vec<Finding> {
    let mut judge = Judge::default();
    let mut findings = judge.after_fault(&before.0, &before.1);
    let (plan, lines) = recorded;
    let mut lines: Vec<Line> = lines
        .iter()
        .filter_map(|line| match line {
            Line::Life(life) => Some(Line::Life(up_to(life, seq))),
            _ => None,
        })
        .collect();
    lines.push(seen);
    findings.extend(judge.after_fault(plan, &lines));
    findings
}

/// What a process had been told when commit `seq` was the last.
fn up_to(life: &Life, seq: i64) -> Life {
    let mut life = life.clone();
    for op in &mut life.ops {
        if op.state == State::Acked && op.seq > seq {
            op.state = State::Refused;
        }
    }
    life
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::power::Commit;

    /// Three commits, made by entries 2, 4 and 6, acknowledged after entries 3, 5 and 7.
    fn course(promises: [Durability; 3]) -> Course {
        let commit = |from| Commit { from, counter: None, complaints: Vec::new(), earlier: None };
        let ack = |(index, durability)| Ack {
            from: 2 * index + 3,
            token: format!("t{index}"),
            durability,
            commit: Some(index + 1),
        };
        Course {
            entries: 8,
            at_us: (1..=8).map(|at| at * 1_000).collect(),
            written_bytes: (0..=8).map(|entries| entries * 100).collect(),
            commits: [0, 2, 4, 6].map(commit).to_vec(),
            acks: promises.into_iter().enumerate().map(ack).collect(),
        }
    }

    #[track_caller]
    fn check(promises: [Durability; 3], at: usize, found: &Found, kind: Option<FindingKind>) {
        let course = course(promises);
        let mut judge = PowerJudge::new(Arc::new(course));
        judge.judge(&Cut { at, all_lost: true, found }, &String::new);
        let kinds: Vec<FindingKind> = judge.seen.by_kind.keys().copied().collect();
        assert_eq!(kinds, kind.into_iter().collect::<Vec<_>>(), "{found:?} at {at}");
    }

    use Durability::{Power, Process};

    #[test]
    fn power_promise_holds_from_its_acknowledgement_on() {
        check([Power; 3], 2, &Found::Commit(0), None);
        check([Power; 3], 3, &Found::Commit(0), Some(FindingKind::LostAckedWrite));
        check([Power; 3], 3, &Found::Commit(1), None);
        check([Power; 3], 8, &Found::Commit(2), Some(FindingKind::LostAckedWrite));
    }

    #[test]
    fn each_acknowledgement_is_judged_by_its_own_promise() {
        check([Process; 3], 8, &Found::Commit(0), None);
        check([Process, Power, Process], 8, &Found::Commit(2), None);
        check([Process, Power, Process], 8, &Found::Commit(1), Some(FindingKind::LostAckedWrite));
    }

    #[test]
    fn content_of_no_commit_and_content_of_a_later_one_are_no_prefix() {
        let other = |complaints: &[&str]| Found::Other {
            counter: None,
            complaints: complaints.iter().map(|text| (*text).to_owned()).collect(),
        };
        check([Process; 3], 8, &other(&[]), Some(FindingKind::NotAPrefix));
        check([Process; 3], 8, &other(&["a row is missing"]), Some(FindingKind::Corrupt));
        check([Process; 3], 3, &Found::Commit(2), Some(FindingKind::AlienWrite));
        check([Process; 3], 8, &Found::Unreadable("malformed".into()), Some(FindingKind::Corrupt));
        check([Process; 3], 8, &Found::Diverged, Some(FindingKind::RecoveryDiverged));
    }

    #[test]
    fn commit_may_survive_before_it_is_acknowledged() {
        check([Power; 3], 2, &Found::Commit(1), None);
    }

    #[test]
    fn loss_is_measured_from_the_first_lost_acknowledgement_to_the_cut() {
        let course = course([Process; 3]);
        let mut judge = PowerJudge::new(Arc::new(course));
        judge.judge(&Cut { at: 8, all_lost: true, found: &Found::Commit(1) }, &String::new);
        judge.judge(&Cut { at: 8, all_lost: false, found: &Found::Commit(0) }, &String::new);
        assert_eq!(judge.seen.lost_commits, [2]);
        assert_eq!(judge.seen.lost_us, [8_000 - 5_000]);
        assert_eq!(judge.seen.lost_bytes, [400]);
        assert_eq!(judge.seen.acks_lost, 2);
    }

    #[test]
    fn course_that_is_wrong_by_itself_is_told() {
        let mut wrong = course([Power; 3]);
        wrong.commits[2].complaints.push("a row is missing".to_owned());
        wrong.commits[3].counter = Some((4, 3));
        wrong.acks[0].commit = None;
        let kinds: Vec<_> = undisturbed(&wrong).into_iter().map(|finding| finding.kind).collect();
        assert_eq!(
            kinds,
            [FindingKind::Corrupt, FindingKind::CommitHole, FindingKind::LedgerCutShort]
        );
        assert!(undisturbed(&course([Power; 3])).is_empty());
    }
}
