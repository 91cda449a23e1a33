//! Which file a call works on: files by (device, inode), and the descriptors of each process.
//!
//! Names are looked up through `/proc`, in the victim's own view of the file system. Nothing here
//! opens a file of a database, with one exception that [`Databases::Detect`] names.

mod locate;
mod locks;
mod registry;
mod table;

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

pub(super) use locate::{display_path, effective_position, file_at, file_bytes, link_of};
pub use locks::{HeldLock, LockModel, Owner, Range};
pub use registry::Database;
pub(super) use registry::{Files, Sight};
pub(super) use table::Slot;
pub use table::{Descriptor, FdTable, Inherited};

/// A file, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct FileId {
    /// The device, as `stat(2)` tells it.
    pub device: u64,
    /// The inode.
    pub inode: u64,
}

impl FileId {
    /// A file that does not exist yet: the one that an `open` is about to make.
    pub const NEW: Self = Self { device: 0, inode: 0 };
}

impl fmt::Display for FileId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:x}:{}", self.device, self.inode)
    }
}

/// What a file is to a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The database itself.
    Database,
    /// Its write-ahead log.
    Wal,
    /// Its wal-index.
    Shm,
    /// Its rollback journal.
    Journal,
    /// The directory it lies in.
    Directory,
    /// The pipe or file that takes acknowledgements.
    Ack,
}

/// A database of this run: an index into the supervisor's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct DatabaseId(pub(super) usize);

/// A file that belongs to a database, or takes acknowledgements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct FileRef {
    /// Which file.
    pub id: FileId,
    /// What it is.
    pub role: Role,
    /// Whose it is; none for [`Role::Ack`].
    pub database: Option<DatabaseId>,
}

/// Which files are databases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Databases {
    /// These, whether they exist yet or not. No database file is ever opened by the supervisor.
    At(Vec<PathBuf>),
    /// Whatever a victim locks as SQLite does, or whose header or sidecars say that it is a
    /// database.
    ///
    /// To see a header the supervisor opens, reads and closes the file. By the rules of POSIX that
    /// drops all locks that the *supervising* process has on it, so a process that has one of these
    /// databases open itself must name them with [`At`](Self::At) instead.
    Detect,
}
