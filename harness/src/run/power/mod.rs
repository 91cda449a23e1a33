//! Power loss: one run is recorded, and every state that a power cut could have left of it is put
//! together, recovered by the real SQLite, and looked at.
mod admits;
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
pub use admits::Impossible;
pub use contents::observe;
pub use explore::{Explored, Options, Sink, Spent, explore};
pub use image::Content;
pub use model::Model;
pub use recording::{
    Ack, Board, Bytes, Entry, FileIndex, Header, Op, Recording, RecordingError, StartFile,
};
