//! Watches programs for breaches of the rules that SQLite relies on and cannot enforce.
//!
//! A [`Watcher`] is a driver that changes nothing: it reads the stream of stops and the
//! supervisor's picture of descriptors and locks. Each rule stands in a file of its own, with what
//! it does not see. Reads of pages and writes through mappings make no stops, so nothing is judged
//! by them.
//!
//! Not here: what a finding means for the data; the command line.

mod copies;
mod descriptors;
mod finding;
mod names;
mod order;
mod protocol;
mod wal_index;
mod writes;

use std::collections::HashSet;

use super::calls::CallSet;
use super::driver::{Decision, Driver, Event, Stop};
use super::files::{DatabaseId, Databases, FileId, FileRef, Owner};
use super::operation::{LockKind, Operation};
use super::options::Options;
use super::scene::Scene;
use copies::Copies;
pub use finding::{Breach, Finding, Stranger};
use order::Order;
use protocol::Moment;
use wal_index::WalIndexes;

/// Checks the rules. Use it with [`Watcher::options`].
#[derive(Debug, Default)]
pub struct Watcher {
    findings: Findings,
    order: Order,
    copies: Copies,
    wal_indexes: WalIndexes,
    /// Who has lost locks on which file unawares: what it does there without them is not its own
    /// doing.
    robbed: HashSet<(Owner, FileId)>,
}

/// What was found, each breach once.
#[derive(Debug, Default)]
struct Findings {
    all: Vec<Finding>,
}

impl Findings {
    /// Makes a finding of a breach, with the stack of the thread at hand.
    fn describe(moment: &Moment<'_>, breach: Breach, file: FileRef) -> Finding {
        let Moment { stop, scene } = moment;
        Finding {
            breach,
            process: stop.process,
            thread: stop.thread,
            command: scene.command(stop.process).to_owned(),
            at: stop.at,
            point: stop.point,
            path: scene.path(file.id).map(std::path::Path::to_owned).unwrap_or_default(),
            file: file.id,
            role: file.role,
            call: stop.call.sys,
            stack: super::stack::Stack::default(),
            times: 1,
        }
    }

    fn add(&mut self, moment: &Moment<'_>, breach: Breach, file: FileRef) {
        let finding = Self::describe(moment, breach, file);
        // The stack is the dear part: it is taken only once for each breach.
        if let Some(known) = self.all.iter_mut().find(|known| known.is_again(&finding)) {
            known.times += 1;
            return;
        }
        let stack = moment.scene.stack(moment.stop.thread);
        self.all.push(Finding { stack, ..finding });
    }

    fn add_finished(&mut self, finding: Finding) {
        match self.all.iter_mut().find(|known| known.is_again(&finding)) {
            Some(known) => known.times += finding.times,
            None => self.all.push(finding),
        }
    }
}

impl Watcher {
    /// A watcher that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes every acknowledgement for a promise that the commit survives a power cut, also by a
    /// process that was never seen to sync a commit.
    #[must_use]
    pub fn acks_promise_power_safety(mut self) -> Self {
        self.order.acks_promise_power_safety = true;
        self
    }

    /// The supervisor's options that the rules need.
    #[must_use]
    pub fn options(databases: Databases) -> Options {
        Options::new(CallSet::WATCH, databases).track_locks().ask_for_locks().open_stacks()
    }

    /// What was found, in the order of the first breach.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings.all
    }

    /// What was found.
    #[must_use]
    pub fn into_findings(self) -> Vec<Finding> {
        self.findings.all
    }

    fn on_database(&mut self, moment: &Moment<'_>, file: FileRef, database: DatabaseId) {
        self.check_fork(moment, file);
        match &moment.stop.operation {
            Operation::Close { .. }
            | Operation::CloseRange { .. }
            | Operation::Dup { to: Some(_), .. } => {
                self.check_close(moment);
                self.copies.closed(moment);
            }
            Operation::Lock { fd, lock } => {
                if matches!(lock.kind, LockKind::Shared | LockKind::Exclusive) {
                    self.check_first_lock(moment, file, *fd);
                }
                self.check_wal_index(moment, file);
            }
            Operation::Write { .. } => {
                self.check_write(moment, file, database);
                self.check_order_of_write(moment, file, database);
            }
            Operation::Truncate { .. } | Operation::TruncatePath { .. } => {
                self.check_truncate(moment, file, database);
            }
            Operation::Open { flags, .. }
                if flags & libc::O_TRUNC != 0 && file.id != FileId::NEW =>
            {
                self.check_truncate(moment, file, database);
            }
            Operation::Unlink { .. } => self.check_unlink(moment, file, database),
            Operation::Rename { .. } => self.check_rename(moment),
            Operation::Copy { .. } => self.check_copy_in(moment),
            _ => {}
        }
    }
}

impl Driver for Watcher {
    fn at_stop(&mut self, stop: &Stop, scene: &Scene<'_>) -> Decision {
        let moment = Moment { stop, scene: *scene };
        let Some(file) = stop.file.or(stop.target) else {
            return Decision::Continue;
        };
        match file.database {
            Some(database) => self.on_database(&moment, file, database),
            None => self.check_ack(&moment),
        }
        match &stop.operation {
            Operation::Sync { .. } | Operation::Read { .. } | Operation::Copy { .. } => {
                Decision::Observe
            }
            Operation::Lock { lock, .. } if lock.kind != LockKind::Unlock => Decision::Observe,
            _ => Decision::Continue,
        }
    }

    fn at_result(&mut self, stop: &Stop, result: i64, scene: &Scene<'_>) {
        let moment = Moment { stop, scene: *scene };
        let Ok(result) = u64::try_from(result) else { return };
        match &stop.operation {
            Operation::Sync { .. } => self.synced(&moment),
            Operation::Read { fd, .. } => self.copied_out(&moment, *fd, result),
            Operation::Copy { from, .. } => self.copied_out(&moment, *from, result),
            Operation::Lock { .. } => self.copies_meet_writer(&moment),
            _ => {}
        }
    }

    fn at_event(&mut self, event: &Event, _scene: &Scene<'_>) {
        match *event {
            Event::Executed { process } | Event::Exited { process, .. } => {
                self.wal_indexes.forget(process);
                self.copies.forget(process);
                if matches!(event, Event::Exited { .. }) {
                    self.order.forget(process);
                }
            }
            Event::Started { .. } | Event::Forked { .. } => {}
        }
    }
}
