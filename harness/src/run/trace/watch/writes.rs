//! Rules about writes: only SQLite writes to a database and its WAL, and only under its locks.
//!
//! By what is it SQLite? By having locked through the descriptor (database), or by having opened it
//! from the same module (WAL); and by holding, at the moment of the write, the lock that SQLite
//! takes for it. A process that has lost its locks unawares is not blamed for writing without them.

use super::super::files::{DatabaseId, FileRef, Role};
use super::super::operation::{Offset, Operation};
use super::Watcher;
use super::finding::{Breach, Stranger};
use super::protocol::Moment;

/// The smallest page, in bytes.
const PAGE_BYTES_MIN: u64 = 512;

impl Watcher {
    /// A write to a file of a database.
    pub(super) fn check_write(&mut self, moment: &Moment<'_>, file: FileRef, database: DatabaseId) {
        let Operation::Write { fd, offset, length } = moment.stop.operation else { return };
        if moment.locks_otherwise(database) {
            return;
        }
        let breach = match file.role {
            Role::Database => self.judge_database_write(moment, file, database, fd, offset, length),
            Role::Wal => self.judge_wal_write(moment, database, fd),
            Role::Shm | Role::Journal | Role::Directory | Role::Ack => None,
        };
        if let Some(breach) = breach {
            self.findings.add(moment, breach, file);
        }
    }

    fn judge_database_write(
        &self,
        moment: &Moment<'_>,
        file: FileRef,
        database: DatabaseId,
        fd: i32,
        offset: Offset,
        length: u64,
    ) -> Option<Breach> {
        let page = length >= PAGE_BYTES_MIN
            && length.is_power_of_two()
            && matches!(offset, Offset::At(at) if at.is_multiple_of(length));
        if !moment.descriptor(fd)?.locked {
            return judge_unlocked(moment, file, database, page);
        }
        if !page {
            return Some(Breach::ForeignWrite { why: Stranger::NoPage });
        }
        let held = moment.may_write_database(database) || self.is_robbed(moment, database);
        (!held).then_some(Breach::ForeignWrite { why: Stranger::NoLockHeld })
    }

    fn judge_wal_write(
        &self,
        moment: &Moment<'_>,
        database: DatabaseId,
        fd: i32,
    ) -> Option<Breach> {
        let origin =
            |stack: &std::rc::Rc<super::super::stack::Stack>| stack.origin().map(str::to_owned);
        let opener = moment.descriptor(fd)?.opened.as_ref().and_then(origin);
        let mut sqlite = moment
            .descriptors_of(database)
            .filter(|held| held.locked)
            .filter_map(|held| held.opened.as_ref().and_then(origin))
            .peekable();
        if sqlite.peek().is_none() && !moment.descriptors_of(database).any(|held| held.locked) {
            return Some(Breach::ForeignWrite { why: Stranger::NeverLocked });
        }
        if let Some(opener) = opener
            && sqlite.peek().is_some()
            && !sqlite.any(|module| module == opener)
        {
            return Some(Breach::ForeignWrite { why: Stranger::OpenedElsewhere });
        }
        let held = moment.may_write_wal(database) || self.is_robbed(moment, database);
        (!held).then_some(Breach::ForeignWrite { why: Stranger::NoLockHeld })
    }

    /// A copy within the kernel that has a database file as its target.
    pub(super) fn check_copy_in(&mut self, moment: &Moment<'_>) {
        let Some(target) = moment.stop.target else { return };
        if matches!(target.role, Role::Database | Role::Wal) {
            let breach = Breach::ForeignWrite { why: Stranger::NeverLocked };
            self.findings.add(moment, breach, target);
        }
    }

    /// Whether the process at hand has lost locks on a file of this database unawares.
    fn is_robbed(&self, moment: &Moment<'_>, database: DatabaseId) -> bool {
        let owner = moment.owner();
        moment.descriptors_of(database).any(|held| self.robbed.contains(&(owner, held.file.id)))
    }
}

/// A write to the database through a descriptor that was never locked: another program's, or a
/// SQLite's that was told not to lock. The latter keeps a journal or a WAL.
fn judge_unlocked(
    moment: &Moment<'_>,
    file: FileRef,
    database: DatabaseId,
    page: bool,
) -> Option<Breach> {
    let keeps_log = moment
        .descriptors_of(database)
        .any(|held| matches!(held.file.role, Role::Wal | Role::Journal));
    if !(page && keeps_log) {
        return Some(Breach::ForeignWrite { why: Stranger::NeverLocked });
    }
    let process = *moment.users(file, false).first()?;
    Some(Breach::DifferentLocking { process })
}
