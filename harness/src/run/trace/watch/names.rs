//! Rules about names and sizes: files removed, renamed, replaced or cut under those who use them.
//!
//! SQLite itself removes a sidecar only when nobody else can have it open, and cuts a file only
//! under a lock that says so. Whoever has a file open without using SQLite on it does not count.

use super::super::files::{DatabaseId, FileRef, Role};
use super::super::phase::WalLock;
use super::Watcher;
use super::finding::Breach;
use super::protocol::Moment;

impl Watcher {
    /// A file of a database is about to be removed.
    pub(super) fn check_unlink(
        &mut self,
        moment: &Moment<'_>,
        file: FileRef,
        database: DatabaseId,
    ) {
        // Committing removes the journal; whoever looks whether it is hot may have it open.
        if file.role == Role::Journal && moment.may_write_journal(database) {
            return;
        }
        // SQLite closes its WAL before it removes it, and the wal-index only afterwards.
        let open_in = moment.users(file, matches!(file.role, Role::Database | Role::Wal));
        if !open_in.is_empty() {
            self.findings.add(moment, Breach::RemovedWhileOpen { open_in }, file);
        }
    }

    /// A file of a database is about to be renamed, or to be replaced by another.
    pub(super) fn check_rename(&mut self, moment: &Moment<'_>) {
        if let Some(file) = moment.stop.file {
            let open_in = moment.users(file, true);
            if !open_in.is_empty() {
                self.findings.add(moment, Breach::RenamedWhileOpen { open_in }, file);
            }
        }
        let target = moment.stop.target.filter(|target| {
            // Renaming a file to another name of itself does nothing.
            moment.stop.file.is_none_or(|file| file.id != target.id)
        });
        if let Some(target) = target {
            let open_in = moment.users(target, true);
            if !open_in.is_empty() {
                self.findings.add(moment, Breach::ReplacedWhileOpen { open_in }, target);
            }
        }
    }

    /// A file of a database is about to be cut.
    pub(super) fn check_truncate(
        &mut self,
        moment: &Moment<'_>,
        file: FileRef,
        database: DatabaseId,
    ) {
        let owner = moment.owner();
        let robbed = self.robbed.iter().any(|(who, _)| *who == owner);
        let allowed = match file.role {
            Role::Database => moment.may_write_database(database),
            Role::Wal => moment.may_write_wal(database),
            Role::Journal => moment.may_write_journal(database),
            // Cutting it is right only for the first who opens it; all others have locked it.
            Role::Shm => moment.holds(database, WalLock::Dms) && !moment.is_locked_elsewhere(file),
            Role::Directory | Role::Ack => true,
        };
        if allowed || moment.locks_otherwise(database) || (robbed && file.role != Role::Shm) {
            return;
        }
        let open_in = moment.users(file, true);
        if !open_in.is_empty() {
            self.findings.add(moment, Breach::TruncatedWhileOpen { open_in }, file);
        }
    }
}
