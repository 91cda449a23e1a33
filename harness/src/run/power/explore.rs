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
use super::compose::{Choice, Most, compose};
use super::contents;
use super::files::FileCheck;
use super::model::Model;
use super::recording::{Op, Recording};
use super::recover::{self, Look, Pages};
use super::vfs;
use crate::history::power::{Ack, Commit, Course, Cut, Found};
use crate::plan::Stream;
use crate::run::error::RunError;
use crate::scenario::power::Profile;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Parts that a recording is cut into.
const SEGMENTS: usize = 16;

/// Of so many different images one is recovered a second time, cut off in between.
const INTERRUPT_EVERY: u8 = 32;

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

/// What recovery gave, before it is known what the commits are.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Raw {
    Content(Pages),
    Unreadable(String),
    Diverged,
}

/// What all threads know.
struct Shared {
    images: Vec<Mutex<HashMap<[u8; 16], u32>>>,
    raws: Mutex<Raws>,
    states: AtomicU64,
    judged: AtomicU64,
    again: [AtomicU64; 2],
    file_check: Option<FileCheck>,
}

impl Shared {
    fn states(&self) -> u64 {
        self.states.load(Ordering::Relaxed)
    }

    fn found(&self, number: u32) -> Arc<Found> {
        Arc::clone(&lock(&self.raws).list[number as usize].1)
    }
}

#[derive(Default)]
struct Raws {
    list: Vec<(Raw, Arc<Found>)>,
    by_pages: HashMap<Pages, u32>,
    looks: HashMap<Pages, Arc<Look>>,
    by_text: HashMap<String, u32>,
    /// The content's number by its digest, once the course is known.
    commits: HashMap<[u8; 32], usize>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Another thread's panic ends the whole enumeration; what it left is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Raws {
    fn found(&self, raw: &Raw) -> Found {
        match raw {
            Raw::Unreadable(why) => Found::Unreadable(why.clone()),
            Raw::Diverged => Found::Diverged,
            Raw::Content(pages) => {
                let look = self.looks.get(pages).cloned().unwrap_or_default();
                let number = look.content.and_then(|content| self.commits.get(&content));
                match number {
                    Some(number) if look.complaints.is_empty() => Found::Commit(*number),
                    _ => {
                        Found::Other { counter: look.commits, complaints: look.complaints.clone() }
                    }
                }
            }
        }
    }

    fn insert(&mut self, raw: Raw) -> u32 {
        let number = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        let found = Arc::new(self.found(&raw));
        let known = match &raw {
            Raw::Content(pages) => *self.by_pages.entry(*pages).or_insert(number),
            Raw::Unreadable(why) => *self.by_text.entry(why.clone()).or_insert(number),
            Raw::Diverged => number,
        };
        if known == number {
            self.list.push((raw, found));
        }
        known
    }
}

/// One thread at work on one segment.
struct Hand<'a> {
    shared: &'a Shared,
    spent: Spent,
    clock: Instant,
}

impl Hand<'_> {
    fn lap(&mut self, of: impl FnOnce(&mut Spent) -> &mut Duration) {
        let now = Instant::now();
        *of(&mut self.spent) += now - self.clock;
        self.clock = now;
    }

    /// What recovery makes of a choice, by its number.
    fn recovered(&mut self, model: &Model<'_>, choice: &Choice) -> u32 {
        self.lap(|spent| &mut spent.choose);
        vfs::with_disk(|disk| compose(model, choice, disk));
        self.lap(|spent| &mut spent.compose);
        let digest = recover::image_digest();
        let mut key = [0; 16];
        key.copy_from_slice(&digest[..16]);
        let shard = &self.shared.images[usize::from(digest[31]) % self.shared.images.len()];
        let known = lock(shard).get(&key).copied();
        self.lap(|spent| &mut spent.digest);
        if let Some(known) = known {
            return known;
        }
        let mut raw = self.recover();
        if digest[30].is_multiple_of(INTERRUPT_EVERY) {
            raw = self.interrupted(model, choice, raw, digest[29]);
        }
        if let Some(files) = &self.shared.file_check
            && files.wants(&digest)
        {
            vfs::with_disk(|disk| compose(model, choice, disk));
            let pages = match &raw {
                Raw::Content(pages) => Some(*pages),
                Raw::Unreadable(_) | Raw::Diverged => None,
            };
            if !files.agrees(pages) {
                raw = Raw::Diverged;
            }
            self.shared.again[1].fetch_add(1, Ordering::Relaxed);
            self.lap(|spent| &mut spent.again);
        }
        let number = lock(&self.shared.raws).insert(raw);
        let new = lock(shard).insert(key, number).is_none();
        self.shared.states.fetch_add(u64::from(new), Ordering::Relaxed);
        self.lap(|spent| &mut spent.content);
        number
    }

    /// Recovers what is on this thread's disk, and checks the content if it is a new one.
    fn recover(&mut self) -> Raw {
        let recovered = recover::recover();
        self.lap(|spent| &mut spent.recover);
        let pages = match (recovered, recover::pages()) {
            (Err(why), _) => return Raw::Unreadable(why),
            (Ok(()), None) => return Raw::Unreadable("there is no database".to_owned()),
            (Ok(()), Some(pages)) => pages,
        };
        let known = lock(&self.shared.raws).looks.contains_key(&pages);
        self.lap(|spent| &mut spent.content);
        if !known {
            let look = Arc::new(recover::look());
            lock(&self.shared.raws).looks.insert(pages, look);
            self.lap(|spent| &mut spent.check);
        }
        Raw::Content(pages)
    }

    /// Recovers the image anew, cut off in between, and then to its end: the content must be the
    /// same.
    fn interrupted(&mut self, model: &Model<'_>, choice: &Choice, raw: Raw, where_: u8) -> Raw {
        let Raw::Content(pages) = raw else { return raw };
        let changes = vfs::with_disk(|disk| disk.changes);
        vfs::with_disk(|disk| {
            compose(model, choice, disk);
            disk.fuse = Some(changes * u64::from(where_) / 256);
        });
        // That it fails is what was asked for.
        drop(recover::recover());
        vfs::with_disk(|disk| disk.fuse = None);
        let again = recover::recover().ok().and_then(|()| recover::pages());
        self.shared.again[0].fetch_add(1, Ordering::Relaxed);
        self.lap(|spent| &mut spent.again);
        match again {
            Some(again) if again.same_database(&pages) => Raw::Content(pages),
            _ => Raw::Diverged,
        }
    }

    fn tell(&mut self, model: &Model<'_>, choice: &Choice, all_lost: bool, sink: &mut dyn Sink) {
        let number = self.recovered(model, choice);
        let found = self.shared.found(number);
        self.shared.judged.fetch_add(1, Ordering::Relaxed);
        let cut = Cut { at: model.at(), all_lost, found: &found };
        sink.take(&cut, &|| format!("{choice:?}"));
    }
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
        let kept = self.pass(&Vec::new, &|hand, model, _, seen: &mut Vec<_>| {
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
        self.pass(make, &|hand, model, _, sink| {
            hand.tell(model, &Choice::whole(Most::Lost, model), true, sink);
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
        let work = || {
            let mut value = make();
            let mut hand = Hand { shared, spent: Spent::default(), clock: Instant::now() };
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
        let Some(content) = look.content else { continue };
        if last == Some(content) {
            continue;
        }
        last = Some(content);
        let earlier = raws.commits.insert(content, commits.len());
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
