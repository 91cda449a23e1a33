//! Power loss: one run is recorded, and every state that a power cut could have left of it is put
//! together, recovered by the real SQLite, and looked at.
//!
//! A SIGKILL loses nothing that was written, so kills cannot tell `synchronous` NORMAL from FULL
//! from OFF. What can is the difference between what processes wrote and what the disk has.
//!
//! ```text
//! processes ─record─▶ Recording ─advance─▶ Model ─choose─▶ Choice ─compose─▶ image ─recover─▶ seen
//!            (trace)  (a file)   (durable,        (profile,        (memory)         (SQLite)
//!                                 pending)         seed)
//! ```
//!
//! | module                | what it does                                                       |
//! |-----------------------|--------------------------------------------------------------------|
//! | `record`, `victims`   | a driver of the supervisor: all calls of all processes, one order   |
//! | `recording`           | what was recorded, and its file                                    |
//! | `model`               | per inode and directory: what is durable, what is pending          |
//! | `choose`, `witness`   | what a profile may leave; whether it allows what was found         |
//! | `image`, `compose`    | images that cost what they change                                  |
//! | `vfs`, `recover`      | SQLite's own recovery on an image; looks at what it gave           |
//! | `files`               | a share of the images as real files, beside any `-shm`             |
//! | `explore`, `hand`     | all images, each different one once, on every core                 |
//! | `realfs`              | a real file system under the database, to check the profiles       |
//! | `contents`            | every row of contents of the undisturbed run, for the oracle       |
//!
//! # What is remembered, and why that is sound
//!
//! - *An image is recovered once.* Two images with the same digest (BLAKE3 over the files that are
//!   there and the sums of their blocks) are the same files, and recovery of the same files gives
//!   the same: the VFS in memory has neither clock nor chance. The outcome is judged for each cut
//!   that can leave the image, since by a later cut more may have been acknowledged.
//! - *A recovered content is checked once.* After recovery and close a database is one file.
//!   `integrity_check`, `foreign_key_check`, the digest of all rows and a second recovery are
//!   functions of that file, and are remembered by BLAKE3 of its pages. The recovery itself is
//!   never skipped for an image that is new.
//! - *Of a database over 4 MiB* the contents of the undisturbed run are checked in a share by
//!   chance, known by their pages otherwise; every other content is still checked.
//!
//! Not here: whether what was seen is right, which is `oracle::power`'s work.

mod choose;
mod compose;
mod contents;
mod explore;
mod files;
mod hand;
mod image;
mod model;
pub mod realfs;
mod record;
mod recording;
mod recover;
mod vfs;
mod victims;
mod witness;

pub use vfs::VfsError;
pub use victims::{Recorded, record_command, record_script};

pub use crate::scenario::power::Profile;
pub use contents::observe;
pub use explore::{Explored, Options, Sink, Spent, explore};
pub use image::Content;
pub use model::Model;
pub use recording::{
    Ack, Board, Bytes, Entry, FileIndex, Header, Op, Recording, RecordingError, StartFile,
};
