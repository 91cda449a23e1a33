//! A disk that remembers: every write and flush it was given, and what a power cut leaves of them.
//!
//! Pure data. Its cache is volatile: a flush makes all writes before it safe, and of those after
//! the last flush a cut keeps any, each torn at any physical sector of 4 KiB. That is all that a
//! disk promises. Smaller sectors are for the models: on a disk that tore at 512 bytes ext4 refused
//! to be mounted in some runs, with EBADMSG; that its superblock was torn is a guess.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Content is kept in pieces of this many bytes, shared by all images that have them alike.
const CHUNK: usize = 4096;
/// Where a write may be torn.
const SECTOR: usize = 4096;

/// The content of a disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Image(BTreeMap<u64, Arc<[u8; CHUNK]>>);

impl Image {
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) {
        each_chunk(offset, into.len(), |chunk, within, range| {
            let to = &mut into[range];
            match self.0.get(&chunk) {
                Some(bytes) => to.copy_from_slice(&bytes[within..within + to.len()]),
                None => to.fill(0),
            }
        });
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        each_chunk(offset, bytes.len(), |chunk, within, range| {
            let from = &bytes[range];
            let to = self.0.entry(chunk).or_insert_with(|| Arc::new([0; CHUNK]));
            Arc::make_mut(to)[within..within + from.len()].copy_from_slice(from);
        });
    }
}

/// Each chunk of a range: its number, the first byte within it, and its bytes of the range.
fn each_chunk(offset: u64, bytes: usize, mut act: impl FnMut(u64, usize, std::ops::Range<usize>)) {
    let mut done = 0;
    while done < bytes {
        let at = offset + done as u64;
        let within = usize::try_from(at % CHUNK as u64).unwrap_or(0);
        let many = (CHUNK - within).min(bytes - done);
        act(at / CHUNK as u64, within, done..done + many);
        done += many;
    }
}

/// What happened to the disk.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// Bytes were written.
    Write(u64, Arc<[u8]>),
    /// All that was written is safe.
    Flush,
    /// So far the recorded processes had come.
    Mark(u64),
}

/// The same without the bytes: what a plan of cuts is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Told {
    /// How many bytes.
    Write(u64),
    /// See [`Event::Flush`].
    Flush,
    /// See [`Event::Mark`].
    Mark(u64),
}

/// A power cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct BlockCut {
    /// So many events had happened.
    pub(super) events: usize,
    /// Of each write since the last flush, in their order: which of its sectors are kept, by a bit
    /// of its own of a number that is used again after 64. What is not named is lost.
    pub(super) keep: Vec<u64>,
    /// The disk lies: its flushes do nothing, but for the last this many events. For the control.
    #[serde(default)]
    pub(super) lying_events: usize,
}

/// The disk and what happened to it.
#[derive(Debug, Default)]
pub(super) struct Disk {
    /// What is read from it.
    pub(super) now: Image,
    log: Vec<Event>,
    /// What was safe after so many events, for the next cut to start from.
    safe: (usize, Image),
}

impl Disk {
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.now.write(offset, bytes);
        self.log.push(Event::Write(offset, bytes.into()));
    }

    pub(super) fn note(&mut self, event: Event) {
        self.log.push(event);
    }

    pub(super) fn told(&self) -> Vec<Told> {
        let tell = |event: &Event| match event {
            Event::Write(_, bytes) => Told::Write(bytes.len() as u64),
            Event::Flush => Told::Flush,
            Event::Mark(mark) => Told::Mark(*mark),
        };
        self.log.iter().map(tell).collect()
    }

    /// What a cut leaves.
    pub(super) fn after(&mut self, cut: &BlockCut) -> Image {
        let events = cut.events.min(self.log.len());
        let from = events.saturating_sub(cut.lying_events);
        let flushed = self.log[..from].iter().rposition(|event| matches!(event, Event::Flush));
        let flushed = flushed.map_or(0, |at| at + 1);
        if self.safe.0 > flushed {
            self.safe = (0, Image::default());
        }
        for event in &self.log[self.safe.0..flushed] {
            if let Event::Write(offset, bytes) = event {
                self.safe.1.write(*offset, bytes);
            }
        }
        self.safe.0 = flushed;
        let mut image = self.safe.1.clone();
        let open = self.log[flushed..events].iter().filter_map(|event| match event {
            Event::Write(offset, bytes) => Some((*offset, bytes)),
            Event::Flush | Event::Mark(_) => None,
        });
        for ((offset, bytes), keep) in open.zip(&cut.keep) {
            let (mut at, mut rest, mut sector) = (offset, &bytes[..], 0);
            while !rest.is_empty() {
                let within = usize::try_from(at % SECTOR as u64).unwrap_or(0);
                let (part, more) = rest.split_at((SECTOR - within).min(rest.len()));
                if keep >> (sector % 64) & 1 == 1 {
                    image.write(at, part);
                }
                (at, rest, sector) = (at + part.len() as u64, more, sector + 1);
            }
        }
        image
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn byte(image: &Image, at: u64) -> u8 {
        let mut byte = [0];
        image.read(at, &mut byte);
        byte[0]
    }

    /// Two writes, a flush, two more.
    fn disk() -> Disk {
        let mut disk = Disk::default();
        disk.write(2048, &[1; 4096]);
        disk.write(9000, &[2; 512]);
        disk.note(Event::Flush);
        disk.note(Event::Mark(7));
        disk.write(2048, &[3; 4096]);
        disk.write(9000, &[4; 512]);
        disk
    }

    fn cut(events: usize, keep: &[u64]) -> BlockCut {
        BlockCut { events, keep: keep.to_vec(), lying_events: 0 }
    }

    #[test]
    fn what_was_flushed_is_kept_and_what_was_not_only_if_it_is_chosen() {
        let mut disk = disk();
        let seen = |image: &Image| [byte(image, 2048), byte(image, 4096), byte(image, 9100)];
        assert_eq!(seen(&disk.after(&cut(6, &[]))), [1, 1, 2]);
        assert_eq!(seen(&disk.after(&cut(6, &[0, u64::MAX]))), [1, 1, 4]);
        assert_eq!(seen(&disk.after(&cut(6, &[0b10, 0]))), [1, 3, 2]);
        // Earlier than an earlier cut, and before any flush.
        assert_eq!(seen(&disk.after(&cut(1, &[]))), [0, 0, 0]);
        assert_eq!(seen(&disk.after(&cut(2, &[u64::MAX, 0]))), [1, 1, 0]);
        assert_eq!(seen(&disk.now), [3, 3, 4]);
    }

    #[test]
    fn lying_disk_loses_what_it_said_was_flushed() {
        let lying = BlockCut { events: 6, keep: vec![0, u64::MAX], lying_events: 6 };
        let image = disk().after(&lying);
        assert_eq!([byte(&image, 2048), byte(&image, 9100)], [0, 2]);
    }

    #[test]
    fn log_tells_what_happened_in_its_order() {
        let told = disk().told();
        assert_eq!(told[1..4], [Told::Write(512), Told::Flush, Told::Mark(7)]);
    }
}
