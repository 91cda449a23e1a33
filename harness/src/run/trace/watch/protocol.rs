//! SQLite's locking protocol, as questions to the supervisor's picture.

use super::super::ProcessId;
use super::super::driver::Stop;
use super::super::files::{DatabaseId, Descriptor, FdTable, FileId, FileRef, Owner, Role};
use super::super::phase::{DbLock, WalLock};
use super::super::scene::Scene;

/// The first of the shared bytes: whoever has it alone has the database alone.
const SHARED_FIRST: u64 = DbLock::PENDING_BYTE + 2;
const RESERVED: u64 = DbLock::PENDING_BYTE + 1;

/// A stop on a database file, and the picture at that moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment<'a> {
    pub(super) stop: &'a Stop,
    pub(super) scene: Scene<'a>,
}

impl<'a> Moment<'a> {
    pub(super) fn owner(&self) -> Owner {
        self.scene.owner(self.stop.process)
    }

    /// A descriptor of the process at hand.
    pub(super) fn descriptor(&self, fd: i32) -> Option<&'a Descriptor> {
        self.scene.descriptors(self.stop.process)?.get(fd)
    }

    /// Whether the process at hand may write to the database itself: it has it alone, or it has the
    /// checkpoint lock.
    pub(super) fn may_write_database(&self, database: DatabaseId) -> bool {
        self.has_alone(database) || self.holds(database, WalLock::Checkpoint)
    }

    /// Whether it may write to the WAL.
    pub(super) fn may_write_wal(&self, database: DatabaseId) -> bool {
        self.has_alone(database) || self.holds(database, WalLock::Write)
    }

    /// Whether it may write to the rollback journal.
    pub(super) fn may_write_journal(&self, database: DatabaseId) -> bool {
        self.holds_byte(database, Role::Database, RESERVED) || self.has_alone(database)
    }

    /// Whether it has the database alone.
    pub(super) fn has_alone(&self, database: DatabaseId) -> bool {
        self.holds_byte(database, Role::Database, SHARED_FIRST)
    }

    /// Whether it holds a lock of the wal-index exclusively.
    pub(super) fn holds(&self, database: DatabaseId, lock: WalLock) -> bool {
        self.holds_byte(database, Role::Shm, lock.byte())
    }

    fn holds_byte(&self, database: DatabaseId, role: Role, byte: u64) -> bool {
        let owner = self.owner();
        self.files(database, role)
            .into_iter()
            .any(|file| self.scene.locks().holds(owner, file, byte, true))
    }

    /// The files that the process has open in this role, by identity: more than one if names were
    /// changed under it.
    pub(super) fn files(&self, database: DatabaseId, role: Role) -> Vec<FileId> {
        files_of(self.scene, self.stop.process, database, role)
    }

    /// When the process got the checkpoint lock that it holds, as the number of an event.
    pub(super) fn checkpoint_since(&self, database: DatabaseId) -> Option<u64> {
        self.since(database, WalLock::Checkpoint)
    }

    /// When it got a lock of the wal-index that it holds.
    pub(super) fn since(&self, database: DatabaseId, lock: WalLock) -> Option<u64> {
        let owner = self.owner();
        self.files(database, Role::Shm).into_iter().find_map(|file| {
            let held = self.scene.locks().of(owner, file).iter();
            held.filter(|held| held.range.contains(lock.byte())).map(|held| held.since).max()
        })
    }

    /// Whether the process locks this database in a way that the lock model leaves out.
    pub(super) fn locks_otherwise(&self, database: DatabaseId) -> bool {
        self.descriptors_of(database).any(|held| held.locked_as_open_file)
    }

    /// Its descriptors of a database and its sidecars.
    pub(super) fn descriptors_of(
        &self,
        database: DatabaseId,
    ) -> impl Iterator<Item = &'a Descriptor> + use<'a> {
        self.scene
            .descriptors(self.stop.process)
            .into_iter()
            .flat_map(FdTable::descriptors)
            .map(|(_, held)| held)
            .filter(move |held| held.file.database == Some(database))
    }

    /// A process, other than the one at hand, that holds a lock under which SQLite writes.
    pub(super) fn writer_elsewhere(&self, database: DatabaseId) -> Option<ProcessId> {
        let me = self.owner();
        self.scene
            .processes()
            .filter(|process| self.scene.owner(*process) != me)
            .find(|process| is_writing(self.scene, *process, database))
    }

    /// The process at hand, if it holds such a lock itself.
    pub(super) fn writer_here(&self, database: DatabaseId) -> Option<ProcessId> {
        let process = self.stop.process;
        is_writing(self.scene, process, database).then_some(process)
    }

    /// Whether another process has locked through a descriptor of `file` that it still has.
    pub(super) fn is_locked_elsewhere(&self, file: FileRef) -> bool {
        let me = self.owner();
        self.scene
            .processes()
            .filter(|process| self.scene.owner(*process) != me)
            .filter_map(|process| self.scene.descriptors(process))
            .any(|table| table.of_file(file.id).any(|(_, held)| held.locked))
    }

    /// The processes that have `file` open and use SQLite on its database: they have locked some
    /// file of it. With `and_me` the one at hand counts too.
    pub(super) fn users(&self, file: FileRef, and_me: bool) -> Vec<ProcessId> {
        let me = self.owner();
        let mut users: Vec<_> = self
            .scene
            .processes()
            .filter(|process| and_me || self.scene.owner(*process) != me)
            .filter(|process| {
                let Some(table) = self.scene.descriptors(*process) else { return false };
                let uses = |held: &Descriptor| held.file.database == file.database && held.locked;
                table.of_file(file.id).next().is_some()
                    && table.descriptors().any(|(_, held)| uses(held))
            })
            .collect();
        users.sort_unstable();
        users
    }
}

fn files_of(scene: Scene<'_>, process: ProcessId, database: DatabaseId, role: Role) -> Vec<FileId> {
    let Some(table) = scene.descriptors(process) else { return Vec::new() };
    let mut files: Vec<_> = table
        .descriptors()
        .map(|(_, held)| held.file)
        .filter(|file| file.database == Some(database) && file.role == role)
        .map(|file| file.id)
        .collect();
    files.dedup();
    files
}

/// Whether a process holds a lock under which SQLite writes or is about to.
fn is_writing(scene: Scene<'_>, process: ProcessId, database: DatabaseId) -> bool {
    let owner = scene.owner(process);
    let holds = |role, bytes: &[u64]| {
        files_of(scene, process, database, role)
            .into_iter()
            .any(|file| bytes.iter().any(|byte| scene.locks().holds(owner, file, *byte, true)))
    };
    holds(Role::Database, &[RESERVED, DbLock::PENDING_BYTE, SHARED_FIRST])
        || holds(Role::Shm, &[WalLock::Write.byte(), WalLock::Checkpoint.byte()])
}
