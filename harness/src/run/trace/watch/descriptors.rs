//! Rules about descriptors: closes that drop locks, forks, two copies, two names.
//!
//! A close that the program does not make itself (close-on-exec, the end of a process) breaks no
//! rule: the whole connection goes with it. A child that only closes what it inherited breaks none
//! either; `sqlite3_close` is seen by its lock calls.

use super::super::files::{FileRef, Role};
use super::super::operation::Operation;
use super::Watcher;
use super::finding::Breach;
use super::protocol::Moment;

impl Watcher {
    /// Descriptors of database files are about to be closed.
    pub(super) fn check_close(&mut self, moment: &Moment<'_>) {
        let operation = &moment.stop.operation;
        let owner = moment.owner();
        let Some(table) = moment.scene.descriptors(moment.stop.process) else { return };
        for (closed_fd, held) in table.descriptors().filter(|(fd, _)| operation.closes(*fd)) {
            // Whoever locks through the last descriptor gives the locks up knowingly. The kernel
            // does not tell through which one a lock was got, so any other that locked counts.
            let others = table
                .of_file(held.file.id)
                .any(|(fd, other)| other.locked && !operation.closes(fd));
            let locks = moment.scene.locks().of(owner, held.file.id);
            if others && !locks.is_empty() {
                self.robbed.insert((owner, held.file.id));
                let breach = Breach::LocksDropped { closed_fd, locks: locks.to_vec() };
                self.findings.add(moment, breach, held.file);
            }
        }
    }

    /// A call on a database file by way of a descriptor that came over a fork.
    pub(super) fn check_fork(&mut self, moment: &Moment<'_>, file: FileRef) {
        let uses = matches!(
            moment.stop.operation,
            Operation::Lock { .. }
                | Operation::Write { .. }
                | Operation::Sync { .. }
                | Operation::Truncate { .. }
                | Operation::Allocate { .. }
                | Operation::Map { .. }
        );
        let Some(fd) = moment.stop.operation.fd().filter(|_| uses) else { return };
        let inherited = moment.descriptor(fd).and_then(|held| held.inherited);
        let Some(inherited) = inherited else { return };
        // Nothing is locked through the descriptors of a WAL or journal: those go by the database.
        let used_before = inherited.locked || matches!(file.role, Role::Wal | Role::Journal);
        if used_before {
            let opened_by = inherited.from;
            self.findings.add(moment, Breach::CarriedOverFork { opened_by, fd }, file);
        }
    }

    /// A lock is asked for. If it is the first through its descriptor, see who else locks the file.
    pub(super) fn check_first_lock(&mut self, moment: &Moment<'_>, file: FileRef, fd: i32) {
        if !matches!(file.role, Role::Database | Role::Shm) {
            return;
        }
        let Some(mine) = moment.descriptor(fd).filter(|held| !held.locked) else { return };
        let me = moment.stop.process;
        let origin = mine.opened.as_ref().and_then(|stack| stack.origin());
        for process in moment.scene.processes() {
            let Some(table) = moment.scene.descriptors(process) else { continue };
            for (_, other) in table.of_file(file.id).filter(|(_, held)| held.locked) {
                let theirs = other.opened.as_ref().and_then(|stack| stack.origin());
                if process == me
                    && let (Some(first), Some(second)) = (theirs, origin)
                    && first != second
                {
                    let (first, second) = (first.to_owned(), second.to_owned());
                    self.findings.add(moment, Breach::TwoCopies { first, second }, file);
                }
                if file.role == Role::Database && other.path != mine.path {
                    let (first, second) = (other.path.clone(), mine.path.clone());
                    let breach = Breach::TwoPaths { first, second, process };
                    self.findings.add(moment, breach, file);
                }
            }
        }
    }
}
