//! What was seen of a recorded run and of the images that power cuts could leave of it.
//!
//! Plain data between the enumeration, which makes and recovers the images, and the oracle, which
//! knows what they should hold.

use hardboard::Durability;

/// The recorded run, undisturbed: its commits in their order, and what was acknowledged when.
///
/// A content is what a reader would see of the database. Content 0 is the start; each further one
/// is what one more commit made of it. That these are right is not taken from here: they are judged
/// by themselves, against the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Course {
    /// Entries of the recording: a cut is after 0 to so many.
    pub entries: usize,
    /// When each entry happened, µs of the recorded run.
    pub at_us: Vec<u64>,
    /// Bytes written by the first 0, 1, 2, … entries.
    pub written_bytes: Vec<u64>,
    /// The contents in the order of the commits.
    pub commits: Vec<Commit>,
    /// The acknowledgements in their order.
    pub acks: Vec<Ack>,
}

/// One content of the undisturbed run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// After how many entries it was there for every reader.
    pub from: usize,
    /// The greatest number in `commits`, and how many rows there are; of boards alone.
    pub counter: Option<(i64, i64)>,
    /// What is wrong with it, undisturbed: nothing, or the checks' complaints.
    pub complaints: Vec<String>,
    /// An earlier commit with the very same content: the two cannot be told apart.
    pub earlier: Option<usize>,
}

/// One acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// After how many entries it had been given.
    pub from: usize,
    /// What it names.
    pub token: String,
    /// What it promises.
    pub durability: Durability,
    /// The first content that holds it; none if no content does, or if that cannot be told.
    pub commit: Option<usize>,
}

/// A cut, and what recovery made of one image that it could leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut<'a> {
    /// After how many entries.
    pub at: usize,
    /// Whether the image is the one in which everything unsynced is lost.
    pub all_lost: bool,
    /// What recovery gave.
    pub found: &'a Found,
}

/// What recovery made of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The content of that number in [`Course::commits`], structure and all.
    Commit(usize),
    /// A content of no commit; what else is wrong with it.
    Other {
        /// Greatest number in `commits`, and how many rows there are.
        counter: Option<(i64, i64)>,
        /// The checks' complaints; none if the structure is sound.
        complaints: Vec<String>,
    },
    /// No database: SQLite's own words, or that there is no file.
    Unreadable(String),
    /// Two recoveries of the image gave two contents.
    Diverged,
}
