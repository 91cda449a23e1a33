//! Rules about order: WAL frames are synced before a checkpoint copies them, and, with FULL, before
//! their commit is acknowledged.
//!
//! Whether a process syncs at all is not announced, so it is judged by what it does. A process that
//! never syncs a database is taken for one with `synchronous=OFF` and breaks nothing; a suspicion
//! against it waits until it syncs. It is taken for one with FULL once it has synced a commit of
//! its own under the write lock, outside a checkpoint. A process that changes the setting half-way
//! may be blamed for what it did before or after.

use std::collections::{HashMap, HashSet};

use super::super::ProcessId;
use super::super::files::{DatabaseId, FileRef, Role};
use super::super::phase::{Phase, WalLock};
use super::finding::{Breach, Finding};
use super::protocol::Moment;
use super::{Findings, Watcher};

/// A process and one of the databases.
type User = (ProcessId, DatabaseId);

/// What was written and not synced. Events are numbered as in [`Stop::event`](super::Stop).
#[derive(Debug, Default)]
pub(super) struct Order {
    pub(super) acks_promise_power_safety: bool,
    /// The first and the last frame written since the last sync of each WAL.
    unsynced: HashMap<DatabaseId, (u64, u64)>,
    /// The last commit frame of each process that is not known to be synced.
    commits: HashMap<User, u64>,
    /// Processes that have synced a file of the database.
    syncs: HashSet<User>,
    /// Processes that have synced a commit of theirs.
    full: HashSet<User>,
    /// Suspicions against processes that were not yet seen to sync, or to sync commits.
    if_it_syncs: HashMap<User, Finding>,
    if_it_is_full: HashMap<User, Finding>,
}

impl Order {
    pub(super) fn forget(&mut self, process: ProcessId) {
        self.commits.retain(|(who, _), _| *who != process);
        self.syncs.retain(|(who, _)| *who != process);
        self.full.retain(|(who, _)| *who != process);
        self.if_it_syncs.retain(|(who, _), _| *who != process);
        self.if_it_is_full.retain(|(who, _), _| *who != process);
    }
}

impl Watcher {
    /// A write to the WAL, or of a checkpoint.
    pub(super) fn check_order_of_write(
        &mut self,
        moment: &Moment<'_>,
        file: FileRef,
        database: DatabaseId,
    ) {
        let event = moment.stop.event;
        let user = (moment.stop.process, database);
        match moment.stop.phase {
            Phase::FrameHeader | Phase::FramePage | Phase::CommitFrame | Phase::CommitPage => {
                self.order.unsynced.entry(database).or_insert((event, event)).1 = event;
                if matches!(moment.stop.phase, Phase::CommitFrame | Phase::CommitPage) {
                    self.order.commits.insert(user, event);
                }
            }
            // The frames of the earlier WAL are given up; they were in the database.
            Phase::WalHeader | Phase::WalReset => {
                self.order.unsynced.remove(&database);
            }
            Phase::CheckpointPageWrite => {
                // Frames that were written since the checkpoint began are not what it copies.
                let began = moment.checkpoint_since(database).unwrap_or(event);
                let early =
                    self.order.unsynced.get(&database).is_some_and(|(first, _)| *first < began);
                if !early {
                    return;
                }
                if self.order.syncs.contains(&user) {
                    self.findings.add(moment, Breach::CheckpointBeforeSync, file);
                } else {
                    let breach = Breach::CheckpointBeforeSync;
                    let waiting = self.order.if_it_syncs.entry(user);
                    waiting.or_insert_with(|| suspicion(moment, breach, file));
                }
            }
            _ => {}
        }
    }

    /// A sync has succeeded.
    pub(super) fn synced(&mut self, moment: &Moment<'_>) {
        let stop = moment.stop;
        let Some((role, database)) = stop.file.and_then(|file| Some((file.role, file.database?)))
        else {
            return;
        };
        if !matches!(role, Role::Wal | Role::Database) {
            return;
        }
        let user = (stop.process, database);
        self.order.syncs.insert(user);
        if let Some(finding) = self.order.if_it_syncs.remove(&user) {
            self.findings.add_finished(finding);
        }
        if role != Role::Wal {
            return;
        }
        // A sync covers what was written before it began.
        if let Some((first, last)) = self.order.unsynced.remove(&database)
            && last > stop.event
        {
            self.order.unsynced.insert(database, (first.max(stop.event), last));
        }
        let committed = self.order.commits.get(&user).copied();
        let own = moment
            .since(database, WalLock::Write)
            .is_some_and(|since| committed.is_some_and(|commit| commit > since));
        if own && !moment.holds(database, WalLock::Checkpoint) {
            self.order.full.insert(user);
            if let Some(finding) = self.order.if_it_is_full.remove(&user) {
                self.findings.add_finished(finding);
            }
        }
        self.order.commits.retain(|(_, of), commit| *of != database || *commit > stop.event);
    }

    /// An acknowledgement is about to be written.
    pub(super) fn check_ack(&mut self, moment: &Moment<'_>) {
        let process = moment.stop.process;
        let open: Vec<_> = self
            .order
            .commits
            .keys()
            .filter(|(who, _)| *who == process)
            .map(|(_, database)| *database)
            .collect();
        for database in open {
            let user = (process, database);
            let wal = moment.descriptors_of(database).find(|held| held.file.role == Role::Wal);
            let Some(file) = wal.map(|held| held.file) else { continue };
            if self.order.full.contains(&user) || self.order.acks_promise_power_safety {
                self.findings.add(moment, Breach::AckBeforeSync, file);
            } else {
                let waiting = self.order.if_it_is_full.entry(user);
                waiting.or_insert_with(|| suspicion(moment, Breach::AckBeforeSync, file));
            }
        }
    }
}

/// A finding that is not yet one.
fn suspicion(moment: &Moment<'_>, breach: Breach, file: FileRef) -> Finding {
    let stack = moment.scene.stack(moment.stop.thread);
    Finding { stack, ..Findings::describe(moment, breach, file) }
}
