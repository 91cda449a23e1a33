//! Enumerates the images of a recording, recovers each different one once, and tells what it gave.
//!
//! Three passes, each over all cuts of the recording:
//!
//! 1. *prefixes*: everything up to the cut has reached the disk. What a reader sees there is what
//!    the commits made, one after another: the [`Course`].
//! 2. *barriers*: at each cut all that was not synced is lost; before each sync, where most is
//!    open, every subset, or, where there are too many, each write alone left out, alone kept.
//! 3. *samples*: by a seed, writes kept, lost and torn, sizes and names, until there are as many
//!    different images beyond the prefixes as were asked for.
//!
//! The recording is cut into segments, each gone through by one thread from a copy of the model at
//! its start. Which images are made depends on the seed alone, not on the number of threads.

use super::choose;
use super::compose::{Choice, Most};
use super::contents;
use super::files::FileCheck;
use super::hand::{Hand, Raw, Shared, lock};
use super::model::Model;
use super::recording::{Entry, Op, Recording};
use super::vfs;
use crate::history::power::{Ack, Commit, Course, Cut};
use crate::plan::Stream;
use crate::run::error::RunError;
use crate::run::trace::{Phase, Sidecar};
use crate::scenario::power::Profile;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Parts that a recording is cut into.
const SEGMENTS: usize = 16;

/// Images made at one cut in one round of samples.
const SAMPLES_MAX: u64 = 64;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// The crash model.
    pub profile: Profile,
    /// So many different images beyond the prefixes, if there are so many.
    pub states: u64,
    /// Of the samples.
    pub seed: u64,
    /// Threads.
    pub jobs: usize,
    /// Whether only the cuts after a commit's last write and after each acknowledgement are gone
    /// through, besides the samples: enough for the loss, and much quicker on a long log. Right
    /// only for what writes as SQLite does.
    pub sparse: bool,
    /// Where some images are recovered from real files too, beside a `-shm` that is absent, zeroed
    /// or stale.
    pub dir: Option<&'a Path>,
    /// Stops early when it is set.
    pub interrupted: &'a AtomicBool,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Explored {
    /// Different images, each recovered.
    pub states: u64,
    /// Judgements: one image may be left by many cuts, with other acknowledgements given.
    pub judged: u64,
    /// Different logical contents, each checked.
    pub contents: u64,
    /// Images recovered again after their recovery was cut off in between.
    pub interrupted_recoveries: u64,
    /// Images recovered from real files too.
    pub file_recoveries: u64,
    /// Wall time.
    pub elapsed: Duration,
    /// Time of all threads, by what they did.
    pub spent: Spent,
}

/// Where the threads' time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Following the recording and choosing.
    pub choose: Duration,
    /// Putting images together.
    pub compose: Duration,
    /// Their digests, and whether they are known.
    pub digest: Duration,
    /// SQLite's recovery.
    pub recover: Duration,
    /// The digest of what it gave.
    pub content: Duration,
    /// Checks of new contents.
    pub check: Duration,
    /// Second recoveries, cut off or from real files.
    pub again: Duration,
}

impl Spent {
    fn add(&mut self, other: &Self) {
        self.choose += other.choose;
        self.compose += other.compose;
        self.digest += other.digest;
        self.recover += other.recover;
        self.content += other.content;
        self.check += other.check;
        self.again += other.again;
    }
}

/// Takes what was seen: one a thread.
pub trait Sink: Send {
    /// One cut with one image; `how` describes the image.
    fn take(&mut self, cut: &Cut<'_>, how: &dyn Fn() -> String);
}

/// A segment of the recording: the model before it, and the last cut in it.
struct Segment<'r> {
    index: usize,
    model: Model<'r>,
    to: usize,
}

fn segments(recording: &Recording, profile: Profile) -> Vec<Segment<'_>> {
    let entries = recording.entries.len();
    let mut model = Model::new(recording, profile);
    (0..SEGMENTS)
        .map(|index| {
            // Cuts are numbered 0 to `entries`; each belongs to one segment.
            let from = index * (entries + 1) / SEGMENTS;
            let to = (index + 1) * (entries + 1) / SEGMENTS;
            model.advance_to(from);
            Segment { index, model: model.clone(), to }
        })
        .filter(|segment| segment.model.at() < segment.to)
        .collect()
}

/// Enumerates the images of `recording`. `make` gives each thread its sink, once the course of the
/// undisturbed run is known.
///
/// # Errors
///
/// [`RunError::Query`] if the recording's query for a token is wrong.
pub fn explore<S: Sink>(
    recording: &Recording,
    options: &Options<'_>,
    make: &(dyn Fn(&Arc<Course>) -> S + Sync),
) -> Result<(Arc<Course>, Explored, Vec<S>), RunError> {
    vfs::register().map_err(|error| RunError::System {
        what: "the VFS of crash images",
        source: std::io::Error::other(error),
    })?;
    let began = Instant::now();
    let mut passes = Passes {
        recording,
        options,
        segments: segments(recording, options.profile),
        shared: Shared {
            images: (0..64).map(|_| Mutex::default()).collect(),
            raws: Mutex::default(),
            states: AtomicU64::new(0),
            judged: AtomicU64::new(0),
            again: [AtomicU64::new(0), AtomicU64::new(0)],
            file_check: options.dir.map(FileCheck::new),
            by_pages: !has_journal(recording),
        },
        spent: Spent::default(),
        goal: 0,
    };
    let kept = passes.prefixes();
    passes.goal = passes.shared.states() + options.states;
    let mut course = course(recording, &kept, &passes.shared);
    contents::bind(recording, &mut course)?;
    let course = Arc::new(course);
    let make = || make(&course);
    let mut sinks = vec![passes.tell_prefixes(&kept, make())];
    sinks.extend(passes.barriers(&make));
    for round in 0.. {
        let states = passes.shared.states();
        if states >= passes.goal || options.interrupted.load(Ordering::Relaxed) {
            break;
        }
        let before = passes.shared.judged.load(Ordering::Relaxed);
        sinks.extend(passes.samples(round, &make));
        let tried = passes.shared.judged.load(Ordering::Relaxed) - before;
        // Nearly all that there is has been seen.
        if (passes.shared.states() - states) * 200 <= tried {
            break;
        }
    }
    vfs::with_disk(vfs::Disk::release);
    let Passes { shared, spent, .. } = passes;
    let explored = Explored {
        states: shared.states(),
        judged: shared.judged.load(Ordering::Relaxed),
        contents: lock(&shared.raws).looks.len() as u64,
        interrupted_recoveries: shared.again[0].load(Ordering::Relaxed),
        file_recoveries: shared.again[1].load(Ordering::Relaxed),
        elapsed: began.elapsed(),
        spent,
    };
    Ok((course, explored, sinks))
}

/// Whether the last call may have been the one that commits.
fn commits_at(model: &Model<'_>) -> bool {
    let at = model.at();
    let entries = &model.recording.entries;
    let Some(last) = at.checked_sub(1).and_then(|last| entries.get(last)) else { return true };
    let commits = matches!(
        last.phase,
        Phase::CommitPage
            | Phase::CommitFrame
            | Phase::SidecarUnlink(Sidecar::Journal)
            | Phase::JournalTruncate
            | Phase::JournalZero
    );
    commits || at == entries.len()
}

/// Whether the last entry is an acknowledgement.
fn acknowledges_at(model: &Model<'_>) -> bool {
    let last = model.at().checked_sub(1).and_then(|last| model.recording.entries.get(last));
    matches!(last, Some(Entry { op: Op::Ack(_), .. }))
}

fn has_journal(recording: &Recording) -> bool {
    let journal = format!("{}-journal", recording.header.database);
    let makes = |op: &Op| matches!(op, Op::Create { name, .. } if *name == journal);
    recording.entries.iter().any(|entry| makes(&entry.op))
        || recording.start.iter().any(|file| file.name == journal)
}

/// The passes over one recording.
struct Passes<'r, 'o> {
    recording: &'r Recording,
    options: &'o Options<'o>,
    segments: Vec<Segment<'r>>,
    shared: Shared,
    spent: Spent,
    /// Different images, prefixes included, after which it is enough.
    goal: u64,
}

impl<'r> Passes<'r, '_> {
    /// By cut, what recovery gives where everything has reached the disk.
    fn prefixes(&mut self) -> Vec<(usize, u32)> {
        let sparse = self.options.sparse;
        let kept = self.pass(&Vec::new, &|hand, model, _, seen: &mut Vec<_>| {
            if sparse && !commits_at(model) {
                return;
            }
            let choice = Choice::whole(Most::Kept, model);
            seen.push((model.at(), hand.recovered(model, &choice)));
        });
        let mut kept: Vec<(usize, u32)> = kept.into_iter().flatten().collect();
        kept.sort_unstable();
        kept
    }

    /// Tells what they gave, now that it is known what it is.
    fn tell_prefixes<S: Sink>(&self, kept: &[(usize, u32)], mut sink: S) -> S {
        for (at, number) in kept {
            let found = self.shared.found(*number);
            self.shared.judged.fetch_add(1, Ordering::Relaxed);
            let cut = Cut { at: *at, all_lost: false, found: &found };
            sink.take(&cut, &|| "everything had reached the disk".to_owned());
        }
        sink
    }

    /// At each cut all that is unsynced is lost; before each sync, where most is open, subsets.
    fn barriers<S: Sink>(&mut self, make: &(impl Fn() -> S + Sync)) -> Vec<S> {
        let entries = &self.recording.entries;
        let half = self.goal - self.options.states / 2;
        let sparse = self.options.sparse;
        self.pass(make, &|hand, model, _, sink| {
            if !sparse || acknowledges_at(model) {
                hand.tell(model, &Choice::whole(Most::Lost, model), true, sink);
            }
            let syncs = |op: &Op| matches!(op, Op::Sync { .. } | Op::SyncDirectory);
            let next = entries.get(model.at());
            if !next.is_none_or(|entry| syncs(&entry.op)) {
                return;
            }
            for choice in choose::subsets(model) {
                if hand.shared.states() >= half {
                    break;
                }
                hand.tell(model, &choice, false, sink);
            }
        })
    }

    /// Images by chance, at every cut that leaves anything open.
    fn samples<S: Sink>(&mut self, round: u64, make: &(impl Fn() -> S + Sync)) -> Vec<S> {
        let options = *self.options;
        let cuts = self.recording.entries.len() as u64 + 1;
        let goal = self.goal;
        let lacking = goal - self.shared.states();
        let each = (lacking * 5 / 4).div_ceil(cuts).clamp(1, SAMPLES_MAX);
        self.pass(make, &|hand, model, segment, sink| {
            if model.pending() == 0 {
                return;
            }
            let label = format!("power/{}/{round}/{segment}/{}", options.profile, model.at());
            let mut chance = Stream::new(options.seed, &label);
            for _ in 0..each {
                if hand.shared.states() >= goal {
                    return;
                }
                let choice = choose::random(model, &mut chance);
                hand.tell(model, &choice, false, sink);
            }
        })
    }

    /// Lets threads go through the segments, each with a value of its own, and gives the values.
    fn pass<T: Send>(
        &mut self,
        make: &(impl Fn() -> T + Sync),
        at_cut: &(impl Fn(&mut Hand<'_>, &Model<'r>, usize, &mut T) + Sync),
    ) -> Vec<T> {
        let next = AtomicUsize::new(0);
        let (shared, segments, options) = (&self.shared, &self.segments, self.options);
        let of_course = self.goal == 0;
        let work = || {
            let mut value = make();
            let mut hand =
                Hand { shared, of_course, spent: Spent::default(), clock: Instant::now() };
            while let Some(segment) = segments.get(next.fetch_add(1, Ordering::Relaxed)) {
                let mut model = segment.model.clone();
                while model.at() < segment.to && !options.interrupted.load(Ordering::Relaxed) {
                    at_cut(&mut hand, &model, segment.index, &mut value);
                    // The layers must let go of the blocks, or each change would copy them all.
                    vfs::with_disk(vfs::Disk::release);
                    let before = model.at();
                    model.advance();
                    if model.at() == before {
                        break;
                    }
                }
            }
            (value, hand.spent)
        };
        let done: Vec<_> = std::thread::scope(|scope| {
            let hands: Vec<_> = (0..options.jobs.max(1)).map(|_| scope.spawn(work)).collect();
            hands.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        let mut values = Vec::new();
        for done in done {
            match done {
                Ok((value, spent)) => {
                    self.spent.add(&spent);
                    values.push(value);
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        values
    }
}

/// The commits in their order: each new content that a reader of everything sees.
fn course(recording: &Recording, kept: &[(usize, u32)], shared: &Shared) -> Course {
    let mut raws = lock(&shared.raws);
    let raws = &mut *raws;
    let mut commits: Vec<Commit> = Vec::new();
    let mut last = None;
    for (at, number) in kept {
        let Raw::Content(pages) = &raws.list[*number as usize].0 else { continue };
        let Some(look) = raws.looks.get(pages) else { continue };
        let by_pages = shared.by_pages.then(|| pages.key());
        let Some(content) = by_pages.or(look.content) else { continue };
        if last == Some(content) {
            continue;
        }
        last = Some(content);
        let earlier = raws.commits.insert(content, commits.len());
        if let (Some(rows), Some(_)) = (look.content, by_pages) {
            raws.commits.insert(rows, commits.len());
        }
        commits.push(Commit {
            from: *at,
            counter: look.commits,
            complaints: look.complaints.clone(),
            earlier,
        });
    }
    // What was found before the commits were known is told anew.
    for index in 0..raws.list.len() {
        let found = raws.found(&raws.list[index].0);
        raws.list[index].1 = Arc::new(found);
    }
    let mut course = Course {
        entries: recording.entries.len(),
        at_us: recording.entries.iter().map(|entry| entry.at_us).collect(),
        written_bytes: vec![0],
        commits,
        acks: Vec::new(),
    };
    let mut written = 0;
    let processes = recording.entries.iter().map(|entry| entry.process).max().unwrap_or(0);
    for (index, entry) in recording.entries.iter().enumerate() {
        if let Op::Write { bytes, .. } = &entry.op {
            written += bytes.len() as u64;
        }
        course.written_bytes.push(written);
        if let Op::Ack(ack) = &entry.op {
            let from = index + 1;
            let there =
                |commit: &Commit| commit.counter.is_some_and(|(seq, _)| Some(seq) >= ack.seq);
            let commit = match ack.seq {
                Some(_) => course.commits.iter().position(there),
                // A query finds it.
                None if recording.header.check_sql.is_some() => None,
                // One process acknowledges what it has just committed.
                None if processes == 0 => {
                    course.commits.iter().rposition(|commit| commit.from <= from)
                }
                None => None,
            };
            let (token, durability) = (ack.token.clone(), ack.durability);
            course.acks.push(Ack { from, token, durability, commit });
        }
    }
    course
}
