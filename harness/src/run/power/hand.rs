//! One image after another: put together, compared with those that are known, recovered, looked at.
//!
//! A [`Hand`] is one thread at this work; [`Shared`] is what all threads know.

use super::compose::{Choice, compose};
use super::explore::{Sink, Spent};
use super::files::FileCheck;
use super::model::Model;
use super::recover::{self, Depth, Look, Pages};
use super::vfs;
use crate::history::power::{Cut, Found};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Of so many different images one is recovered a second time, cut off in between.
const INTERRUPT_EVERY: u8 = 32;

/// What recovery gave, before it is known what the commits are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Raw {
    Content(Pages),
    Unreadable(String),
    Diverged,
}

/// What all threads know.
pub(super) struct Shared {
    pub(super) images: Vec<Mutex<HashMap<[u8; 16], u32>>>,
    pub(super) raws: Mutex<Raws>,
    pub(super) states: AtomicU64,
    pub(super) judged: AtomicU64,
    pub(super) again: [AtomicU64; 2],
    pub(super) file_check: Option<FileCheck>,
    /// The run had no rollback journal: what recovery gives is then the pages of a commit, to the
    /// byte. (A rollback leaves free pages as they are.)
    pub(super) by_pages: bool,
}

impl Shared {
    pub(super) fn states(&self) -> u64 {
        self.states.load(Ordering::Relaxed)
    }

    pub(super) fn found(&self, number: u32) -> Arc<Found> {
        Arc::clone(&lock(&self.raws).list[number as usize].1)
    }
}

#[derive(Default)]
pub(super) struct Raws {
    pub(super) list: Vec<(Raw, Arc<Found>)>,
    pub(super) by_pages: HashMap<Pages, u32>,
    pub(super) looks: HashMap<Pages, Arc<Look>>,
    pub(super) by_text: HashMap<String, u32>,
    /// The content's number by its digest, once the course is known.
    pub(super) commits: HashMap<[u8; 32], usize>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Another thread's panic ends the whole enumeration; what it left is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Raws {
    pub(super) fn found(&self, raw: &Raw) -> Found {
        match raw {
            Raw::Unreadable(why) => Found::Unreadable(why.clone()),
            Raw::Diverged => Found::Diverged,
            Raw::Content(pages) => {
                let look = self.looks.get(pages).cloned().unwrap_or_default();
                let by_rows = || self.commits.get(&look.content?);
                let number = self.commits.get(&pages.key()).or_else(by_rows);
                match number {
                    Some(number) if look.complaints.is_empty() => Found::Commit(*number),
                    _ => {
                        Found::Other { counter: look.commits, complaints: look.complaints.clone() }
                    }
                }
            }
        }
    }

    pub(super) fn insert(&mut self, raw: Raw) -> u32 {
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
pub(super) struct Hand<'a> {
    pub(super) shared: &'a Shared,
    /// It goes through the undisturbed run.
    pub(super) of_course: bool,
    pub(super) spent: Spent,
    pub(super) clock: Instant,
}

impl Hand<'_> {
    fn lap(&mut self, of: impl FnOnce(&mut Spent) -> &mut Duration) {
        let now = Instant::now();
        *of(&mut self.spent) += now - self.clock;
        self.clock = now;
    }

    /// What recovery makes of a choice, by its number.
    pub(super) fn recovered(&mut self, model: &Model<'_>, choice: &Choice) -> u32 {
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
            let of_course = self.of_course && self.shared.by_pages;
            let depth = if of_course { pages.depth_of_course() } else { Depth::Whole };
            let look = Arc::new(recover::look(depth));
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

    pub(super) fn tell(
        &mut self,
        model: &Model<'_>,
        choice: &Choice,
        all_lost: bool,
        sink: &mut dyn Sink,
    ) {
        let number = self.recovered(model, choice);
        let found = self.shared.found(number);
        self.shared.judged.fetch_add(1, Ordering::Relaxed);
        let cut = Cut { at: model.at(), all_lost, found: &found };
        sink.take(&cut, &|| format!("{choice:?}"));
    }
}
