//! The owner of checkpoints: who may copy the log, and when. Why so stands in
//! [`crate::sqlite::checkpoint`].

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::Database;
use crate::error::{Result, StoreError};
use crate::sqlite::checkpoint::{self, Checkpoint, Mode, STEP_PATIENCE};
use crate::sqlite::engine::Engine;
use crate::sqlite::sidecar::{Hold, Part};

impl Database {
    /// Copies the log into the database now, as the one process that may.
    ///
    /// `None`: another has the right to, and did not give it back within the patience of the
    /// options; or it belongs to another program. Whether anything is left to copy stands in the
    /// result.
    ///
    /// # Errors
    ///
    /// - [`StoreError::BrokenLog`]: the log's index is damaged.
    /// - Others as [`write`](Self::write).
    pub fn checkpoint(&mut self, mode: Mode) -> Result<Option<Checkpoint>> {
        self.usable()?;
        let patience = self.options.busy_timeout;
        let Some(lock) = &self.lock else { return Ok(None) };
        let owner = lock.wait(Part::Checkpoint, Hold::Exclusive, patience);
        if !owner.map_err(self.beside("lock the lock file"))? {
            return Ok(None);
        }
        lock.sign(Part::Checkpoint).ok();
        let done = self.checkpoint_as_owner(mode);
        self.release_checkpoint();
        done
    }

    /// Who has the right to checkpoint at this moment: the number of a process, 0 if it did not
    /// sign; `None`: nobody but this connection.
    pub fn checkpoint_owner(&self) -> Result<Option<u32>> {
        let Some(lock) = &self.lock else { return Ok(None) };
        let held = lock.is_held_elsewhere(Part::Checkpoint);
        if !held.map_err(self.beside("read the lock file"))? {
            return Ok(None);
        }
        let signature = lock.signature(Part::Checkpoint);
        Ok(Some(signature.map_err(self.beside("read the lock file"))?.unwrap_or(0)))
    }

    /// Takes the right to checkpoint if a step is due, without any wait.
    pub(super) fn before_write(&self) -> bool {
        let Some(callbacks) = self.callbacks() else { return false };
        let pages = callbacks.log_pages();
        if self.policy.due(pages).is_none() {
            return false;
        }
        let Some(lock) = &self.lock else { return false };
        let owner = lock.take(Part::Checkpoint, Hold::Exclusive).unwrap_or(false);
        if owner {
            lock.sign(Part::Checkpoint).ok();
        } else {
            self.policy.made(pages);
        }
        owner
    }

    /// The owner's step after its commit. What it cannot do is left to the next step; what it
    /// finds broken poisons the connection: the commit stands.
    pub(super) fn step(&mut self, committed: bool) {
        if let (true, Some(callbacks)) = (committed, self.callbacks()) {
            let pages = callbacks.log_pages();
            if let Some(mode) = self.policy.due(pages) {
                let patience = callbacks.set_patience(STEP_PATIENCE);
                let done = checkpoint::run(self.connection(), mode);
                callbacks.set_patience(patience);
                self.policy.made(pages);
                if matches!(done, Err(checkpoint::Failure::Impossible { .. })) {
                    self.poisoned.set(true);
                }
            }
        }
        self.release_checkpoint();
    }

    fn release_checkpoint(&self) {
        if let Some(lock) = &self.lock {
            // Failing that, the lock goes with the descriptor.
            lock.release(Part::Checkpoint).ok();
        }
    }

    fn checkpoint_as_owner(&mut self, mode: Mode) -> Result<Option<Checkpoint>> {
        if Engine::loaded().may_reset_log() {
            // So that there is something to copy: see the module's documentation.
            touch(self.connection()).map_err(|source| self.refused(source, "checkpoint"))?;
        }
        match checkpoint::run(self.connection(), mode) {
            Ok(done) => {
                if let Some(callbacks) = self.callbacks() {
                    callbacks.forget_log();
                }
                Ok(Some(done))
            }
            Err(checkpoint::Failure::Busy) => Ok(None),
            Err(checkpoint::Failure::Impossible { log_pages, done_pages }) => {
                self.poisoned.set(true);
                Err(StoreError::BrokenLog { path: self.path.clone(), log_pages, done_pages })
            }
            Err(checkpoint::Failure::Sqlite(source)) => Err(self.refused(source, "checkpoint")),
        }
    }
}

/// A commit that changes nothing: the `user_version` is set to what it is.
pub(super) fn touch(conn: &Connection) -> rusqlite::Result<()> {
    let open = Transaction::new_unchecked(conn, TransactionBehavior::Immediate)?;
    let version: i64 = open.pragma_query_value(None, "user_version", |row| row.get(0))?;
    open.pragma_update(None, "user_version", version)?;
    open.commit()
}
