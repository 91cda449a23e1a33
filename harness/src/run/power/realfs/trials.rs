//! One recorded run on a real file system, and one cut of it after another.

use super::super::compose::{Choice, Most, compose};
use super::super::image::Content;
use super::super::model::Model;
use super::super::recording::Recording;
use super::super::recover;
use super::super::vfs::{self, Part};
use super::super::victims::record_watched;
use super::super::witness::{Left, admits};
use super::super::{Options, Sink, explore};
use super::FileSystem;
use super::disk::{BlockCut, Told};
use super::volume::Stand;
use crate::history::power::{Course, Cut, Found};
use crate::plan::Stream;
use crate::run::Engines;
use crate::run::error::RunError;
use crate::scenario::Setting;
use crate::scenario::power::{Profile, Script};
use std::collections::HashMap;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Of so many entries after one the kernel is asked to begin writing a file back, as it does by
/// itself in a run that takes longer.
const WRITE_BACK_EVERY: u32 = 7;
/// Where the database lies on the volume.
const PLACE: &str = "work";

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The scenario's name.
    pub subject: &'a str,
    /// What the processes do.
    pub script: &'a Script,
    /// How the database is set.
    pub setting: Setting,
    /// What lies under it.
    pub file_system: FileSystem,
    /// Cuts in all, those at the flushes included.
    pub cuts: u32,
    /// Whether the disk's flushes do nothing: for the control.
    pub lying: bool,
    /// Of every choice.
    pub seed: u64,
    /// What the processes run on.
    pub engines: &'a Engines,
    /// Stops early when it is set.
    pub interrupted: &'a AtomicBool,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    /// Calls and acknowledgements recorded.
    pub operations: u64,
    /// Writes that reached the disk in the recorded run.
    pub block_writes: u64,
    /// Flushes that did.
    pub flushes: u64,
    /// Cuts tried.
    pub cuts: u64,
    /// Different files left, the database and what is beside it.
    pub states: u64,
    /// Cuts after which the file system could not be mounted.
    pub unmountable: u64,
    /// Of the different states: what is neither all that was written nor all that was synced.
    pub between: u64,
}

/// One state that was seen.
#[derive(Debug)]
pub struct Seen<'a> {
    /// Where the cut fell, and what recovery of the database gave.
    pub cut: Cut<'a>,
    /// Profiles in which this state is impossible.
    pub impossible: &'a [Profile],
    /// Why the file system could not be mounted, if it could not.
    pub unmountable: Option<String>,
}

/// Records a run on a new file system and tries cuts; `take` is told of each, with its place.
pub fn try_cuts(
    asked: &Asked<'_>,
    dir: &Path,
    take: &mut dyn FnMut(&Arc<Course>, &Seen<'_>, &str),
) -> Result<(Recording, Tried), RunError> {
    let stand = Stand::set_up(asked.file_system, dir)?;
    let recording = record(asked, &stand)?;
    let log = stand.log()?;
    let mut trials = Trials::new(asked, &recording, &stand)?;
    let from = log.iter().position(|told| *told == Told::Mark(0)).unwrap_or(0);
    let last = recording.entries.len() as u64;
    let to = log.iter().position(|told| *told == Told::Mark(last)).unwrap_or(log.len());
    let count = |wanted: fn(&Told) -> bool| log[from..to].iter().filter(|t| wanted(t)).count();
    trials.tried.operations = last;
    trials.tried.block_writes = count(|told| matches!(told, Told::Write(_))) as u64;
    trials.tried.flushes = count(|told| matches!(told, Told::Flush)) as u64;
    for cut in plan(asked, &log, from..to) {
        if asked.interrupted.load(Ordering::Relaxed) {
            break;
        }
        let mark = log[..cut.events].iter().rev().find_map(|told| match told {
            Told::Mark(mark) => usize::try_from(*mark).ok(),
            Told::Write(_) | Told::Flush => None,
        });
        trials.cut(&cut, mark.unwrap_or(0), take)?;
    }
    let tried = trials.tried;
    Ok((recording, tried))
}

fn record(asked: &Asked<'_>, stand: &Stand) -> Result<Recording, RunError> {
    let volume = stand.volume()?;
    let mut marks = stand.marks()?;
    let place = volume.at().join(PLACE);
    std::fs::create_dir_all(&place).map_err(|error| RunError::place(&place, error))?;
    let mut chance = Stream::new(asked.seed, "realfs/write-back");
    let database = place.join("recorded/board.db");
    let mut failed = None;
    let mut watch = |entries: usize| {
        if entries == 0 {
            // What was there before is durable: that is what a recording begins with.
            failed = sync_all(&place).err();
        } else if chance.within([1, WRITE_BACK_EVERY]) == 1 {
            let suffix = if chance.within([0, 1]) == 0 { "" } else { "-wal" };
            write_back(&database, suffix);
        }
        let marked = marks.write_all(entries.to_string().as_bytes());
        failed = failed.take().or(marked.err());
    };
    let (script, setting) = (asked.script, asked.setting);
    let recorded =
        record_watched(asked.subject, script, setting, &place, asked.engines, &mut watch)?;
    match failed {
        Some(error) => Err(RunError::place(&place, error)),
        None => Ok(recorded),
    }
}

fn sync_all(place: &Path) -> std::io::Result<()> {
    nix::unistd::syncfs(std::fs::File::open(place)?).map_err(Into::into)
}

/// Has the kernel begin to write a file back. That it may not be there is no failure.
///
/// This process holds no lock on the file that its closing could drop.
fn write_back(database: &Path, suffix: &str) {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    if let Ok(file) = std::fs::File::open(path) {
        match posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED) {
            Ok(()) | Err(_) => {}
        }
    }
}

/// The cuts: at each flush all that was not flushed is lost; in between, parts of it are kept.
fn plan(asked: &Asked<'_>, log: &[Told], within: std::ops::Range<usize>) -> Vec<BlockCut> {
    let mut cuts = Vec::new();
    let mut open: Vec<(usize, Vec<u64>)> = Vec::new();
    let mut since: Vec<u64> = Vec::new();
    for (at, told) in log.iter().enumerate().take(within.end).skip(within.start) {
        match told {
            Told::Flush => {
                since.clear();
                cuts.push(BlockCut { events: at + 1, keep: Vec::new(), lying_events: 0 });
            }
            Told::Write(bytes) => {
                since.push(*bytes);
                open.push((at + 1, since.clone()));
            }
            Told::Mark(_) => {}
        }
    }
    let most = asked.cuts as usize;
    if asked.lying {
        cuts.clear();
    }
    // Evenly, if there are more flushes than cuts.
    let step = (2 * cuts.len()).div_ceil(most.max(1)).max(1);
    let mut cuts: Vec<BlockCut> = cuts.into_iter().step_by(step).collect();
    let mut chance = Stream::new(asked.seed, "realfs/cuts");
    while cuts.len() < most && !open.is_empty() {
        let pick = u32::try_from(open.len() - 1).unwrap_or(u32::MAX);
        let (events, writes) = &open[chance.within([0, pick]) as usize];
        let mut cut = BlockCut { events: *events, keep: Vec::new(), lying_events: 0 };
        let writes = if asked.lying { 200 } else { writes.len() };
        if asked.lying {
            cut.lying_events = 400;
        }
        cut.keep = keep(writes, &mut chance);
        cuts.push(cut);
    }
    cuts.sort_by_key(|cut| cut.events);
    cuts
}

/// Of so many writes in their order, which sectors are kept.
fn keep(writes: usize, chance: &mut Stream) -> Vec<u64> {
    match chance.within([0, 3]) {
        // All of them: the cache was empty.
        0 => vec![u64::MAX; writes],
        // All but one.
        1 => {
            let last = u32::try_from(writes.saturating_sub(1)).unwrap_or(u32::MAX);
            let lost = chance.within([0, last]) as usize;
            (0..writes).map(|index| if index == lost { 0 } else { u64::MAX }).collect()
        }
        // Any.
        2 => (0..writes).map(|_| if chance.within([0, 1]) == 0 { 0 } else { u64::MAX }).collect(),
        // Any, torn.
        _ => (0..writes).map(|_| chance.bits() | chance.bits()).collect(),
    }
}

/// Whoever only wants the course.
struct Nothing;

impl Sink for Nothing {
    fn take(&mut self, _: &Cut<'_>, _: &dyn Fn() -> String) {}
}

struct Trials<'a> {
    asked: &'a Asked<'a>,
    recording: &'a Recording,
    stand: &'a Stand,
    course: Arc<Course>,
    /// The content's number by its digest.
    numbers: HashMap<[u8; 32], usize>,
    /// What is known of files that were seen before, at the same cut.
    known: HashMap<([u8; 32], usize), (Arc<Found>, Vec<Profile>)>,
    states: std::collections::HashSet<[u8; 32]>,
    /// Models as far as the cuts have come, one a profile.
    models: Vec<Model<'a>>,
    tried: Tried,
}

impl<'a> Trials<'a> {
    fn new(
        asked: &'a Asked<'a>,
        recording: &'a Recording,
        stand: &'a Stand,
    ) -> Result<Self, RunError> {
        let options = Options {
            profile: Profile::Strict,
            states: 0,
            seed: asked.seed,
            jobs: 1,
            sparse: false,
            dir: None,
            interrupted: asked.interrupted,
        };
        let (course, _, _) = explore(recording, &options, &|_| Nothing)?;
        let profiles: &[Profile] = if asked.file_system.is_ordered() {
            &[Profile::Strict, Profile::Ordered]
        } else {
            &[Profile::Strict]
        };
        let numbers = numbers(recording, &course);
        let models = profiles.iter().map(|profile| Model::new(recording, *profile)).collect();
        Ok(Self {
            asked,
            recording,
            stand,
            course,
            numbers,
            known: HashMap::new(),
            states: std::collections::HashSet::new(),
            models,
            tried: Tried::default(),
        })
    }

    fn cut(
        &mut self,
        cut: &BlockCut,
        mark: usize,
        take: &mut dyn FnMut(&Arc<Course>, &Seen<'_>, &str),
    ) -> Result<(), RunError> {
        self.tried.cuts += 1;
        // The call that was let in may have had its effect though it was not told yet.
        let at = (mark + 1).min(self.recording.entries.len());
        let kept = cut.keep.iter().filter(|keep| **keep != 0).count();
        let place = format!(
            "{}, {}, {kept} of {} unflushed writes kept",
            self.asked.file_system,
            self.recording.describe(mark),
            cut.keep.len()
        );
        let left = match self.stand.cut(cut)? {
            Ok(mounted) => read(&mounted.at().join(PLACE).join("recorded"), self.recording)?,
            Err(error) => {
                self.tried.unmountable += 1;
                let found = Found::Unreadable(format!("the file system: {error}"));
                let cut = Cut { at, all_lost: false, found: &found };
                let seen = Seen { cut, impossible: &[], unmountable: Some(error.to_string()) };
                take(&self.course, &seen, &place);
                return Ok(());
            }
        };
        let digest = digest(&left);
        self.states.insert(digest);
        self.tried.states = self.states.len() as u64;
        if !self.known.contains_key(&(digest, mark)) {
            let found = Arc::new(self.recover(&left));
            let impossible = self.impossible(&left, mark);
            self.known.insert((digest, mark), (found, impossible));
        }
        let (found, impossible) = &self.known[&(digest, mark)];
        let cut = Cut { at, all_lost: false, found };
        take(&self.course, &Seen { cut, impossible, unmountable: None }, &place);
        Ok(())
    }

    /// Profiles that allow these files neither before nor after the call that was under way.
    fn impossible(&mut self, left: &Left, mark: usize) -> Vec<Profile> {
        let mut impossible = Vec::new();
        let mut between = true;
        for model in &mut self.models {
            model.advance_to(mark);
            let mut next = model.clone();
            next.advance();
            if !admits(model, left) && !admits(&next, left) {
                impossible.push(model.profile);
            }
            for most in [Most::Kept, Most::Lost] {
                between &= whole(model, most) != *left;
            }
        }
        self.tried.between += u64::from(between);
        impossible
    }

    /// What SQLite makes of the files.
    fn recover(&self, left: &Left) -> Found {
        put(left);
        if let Err(why) = recover::recover() {
            return Found::Unreadable(why);
        }
        let look = recover::look(recover::Depth::Whole);
        vfs::with_disk(vfs::Disk::release);
        let number = look.content.and_then(|content| self.numbers.get(&content));
        match number {
            Some(number) if look.complaints.is_empty() => Found::Commit(*number),
            _ => Found::Other { counter: look.commits, complaints: look.complaints },
        }
    }
}

/// The contents of the undisturbed run, by their digests.
fn numbers(recording: &Recording, course: &Course) -> HashMap<[u8; 32], usize> {
    let mut model = Model::new(recording, Profile::Strict);
    let mut numbers = HashMap::new();
    for (number, commit) in course.commits.iter().enumerate() {
        vfs::with_disk(vfs::Disk::release);
        model.advance_to(commit.from);
        vfs::with_disk(|disk| compose(&model, &Choice::whole(Most::Kept, &model), disk));
        if recover::recover().is_ok()
            && let Some(content) = recover::look(recover::Depth::Whole).content
        {
            numbers.insert(content, number);
        }
    }
    vfs::with_disk(vfs::Disk::release);
    numbers
}

fn whole(model: &Model<'_>, most: Most) -> Left {
    vfs::with_disk(|disk| {
        compose(model, &Choice::whole(most, model), disk);
        let left = Part::ALL.map(|part| disk.file(part).map(|layer| layer.to_vec()));
        disk.release();
        left
    })
}

fn put(left: &Left) {
    vfs::with_disk(|disk| {
        disk.release();
        for (part, bytes) in Part::ALL.into_iter().zip(left) {
            let content = bytes.as_ref().map(|bytes| Arc::new(Content::new(bytes)));
            disk.begin(part, content, bytes.is_some());
        }
    });
}

fn read(dir: &Path, recording: &Recording) -> Result<Left, RunError> {
    let mut left: Left = [None, None, None];
    for (part, bytes) in Part::ALL.into_iter().zip(&mut left) {
        let path = dir.join(format!("{}{}", recording.header.database, part.suffix()));
        match std::fs::read(&path) {
            Ok(content) => *bytes = Some(content),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(RunError::place(&path, error)),
        }
    }
    Ok(left)
}

fn digest(left: &Left) -> [u8; 32] {
    let mut hash = blake3::Hasher::new();
    for bytes in left {
        match bytes {
            None => hash.update(&[0]),
            Some(bytes) => hash.update(&[1]).update(&bytes.len().to_le_bytes()).update(bytes),
        };
    }
    *hash.finalize().as_bytes()
}
