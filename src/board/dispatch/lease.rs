//! Who dispatches: at most one process for each board.
//!
//! Two things say so, each for what the other cannot. A lock of the kernel on a file beside the
//! board goes away with the process that holds it, so a dispatcher that is killed is replaced at
//! once. A lease in the board has an epoch that only grows, and every write of a dispatcher names
//! its own: so one that was stopped, and wakes up after another has taken over, changes nothing.
//!
//! | the lock is | the last holder                          | then                        |
//! |-------------|------------------------------------------|-----------------------------|
//! | free        | gave its office up, or there was none    | a new epoch                 |
//! | free        | is gone, or does not renew its lease     | a new epoch, runs orphaned  |
//! | free        | lives and renews its lease               | it stays                    |
//! | held        | renews its lease                         | it stays                    |
//! | held        | has not renewed its lease in time        | a new epoch, runs orphaned  |
//!
//! The file is not one of the database's, so opening and closing it drops no lock of SQLite.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::board::claim::Until;
use crate::board::process::{Liveness, Process};
use crate::board::sql::DispatcherRow;
use crate::board::write::{Kind, Stop, Writing};
use crate::board::{Board, OpKey};
use crate::error::{Result, StoreError};

/// Who dispatches instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Held {
    /// Its name.
    pub holder: String,
    /// Its process.
    pub process: Process,
    /// Its epoch.
    pub epoch: i64,
}

/// What came of an attempt to take the office.
#[derive(Debug)]
pub enum Taken<T> {
    /// It is ours.
    Ours(T),
    /// Somebody else has it.
    Theirs(Held),
}

/// The kernel's lock. Dropping it frees it.
#[derive(Debug)]
pub(super) struct OfficeLock {
    _file: File,
}

/// The file that the lock is on: the board's path with `-dispatch` after it.
#[must_use]
pub fn lock_path(board: &Path) -> PathBuf {
    let mut path = board.as_os_str().to_owned();
    path.push("-dispatch");
    path.into()
}

impl OfficeLock {
    /// The lock, unless another process has it. The file descriptor is closed on exec, so no worker
    /// inherits it.
    pub(super) fn try_get(board: &Path) -> Result<Option<Self>> {
        let path = lock_path(board);
        let failed = |source| StoreError::File { path: path.clone(), source };
        let open = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = open.map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

impl Board {
    /// Takes the office, if it may be taken. `locked`: this process has the lock.
    pub(super) fn take_office(
        &mut self,
        key: OpKey,
        holder: &str,
        lease: Duration,
        locked: bool,
    ) -> Result<Taken<i64>> {
        let process = this_process()?;
        let mut theirs = None;
        let written = self.write_if(Kind::Lease, key, |w| {
            let last = w.tx.dispatcher()?;
            if let Some(last) = &last
                && keeps_office(w, last, locked)
            {
                theirs = Some(Held {
                    holder: last.holder.clone(),
                    process: last.process,
                    epoch: last.epoch,
                });
                return Ok(None);
            }
            let epoch = last.as_ref().map_or(1, |last| last.epoch + 1);
            if let Some(last) = last.filter(|last| !last.released) {
                w.tx.orphan_runs(last.epoch, w.seq)?;
            }
            let until = Until::after(w.now, lease);
            let row = DispatcherRow {
                epoch,
                holder: holder.to_owned(),
                boot_id: w.boot_id.to_owned(),
                lease_until_ms: until.wall_ms,
                lease_until_boot_ms: until.boot_ms,
                process,
                released: false,
            };
            w.tx.put_dispatcher(&row, w.seq)?;
            Ok(Some(epoch))
        })?;
        Ok(match (written, theirs) {
            (Some((epoch, _)), _) => Taken::Ours(epoch),
            (None, Some(held)) => Taken::Theirs(held),
            (None, None) => return Err(StoreError::Poisoned),
        })
    }

    /// Renews the lease of the office.
    ///
    /// # Errors
    ///
    /// [`StoreError::StaleDispatcher`]: another has taken over.
    pub(super) fn renew_office(&mut self, key: OpKey, epoch: i64, lease: Duration) -> Result<()> {
        let ((), _renewed) = self.write(Kind::Renew, key, |w| {
            let mut row = in_office(w, epoch)?;
            let until = Until::after(w.now, lease);
            (row.lease_until_ms, row.lease_until_boot_ms) = (until.wall_ms, until.boot_ms);
            w.boot_id.clone_into(&mut row.boot_id);
            Ok(w.tx.put_dispatcher(&row, w.seq)?)
        })?;
        Ok(())
    }

    /// Gives the office up. `orphan`: the workers that are still at work end without anybody who
    /// learns how.
    pub(super) fn resign_office(&mut self, key: OpKey, epoch: i64, orphan: bool) -> Result<()> {
        let ((), _resigned) = self.write(Kind::Resign, key, |w| {
            let mut row = in_office(w, epoch)?;
            row.released = true;
            if orphan {
                w.tx.orphan_runs(epoch, w.seq)?;
            }
            Ok(w.tx.put_dispatcher(&row, w.seq)?)
        })?;
        Ok(())
    }

    /// Who dispatches, or did so last and did not give the office up.
    pub fn dispatcher(&self) -> Result<Option<Held>> {
        let row = self.read("read who dispatches", |tx| tx.dispatcher())?;
        Ok(row.filter(|row| !row.released).map(|row| Held {
            holder: row.holder,
            process: row.process,
            epoch: row.epoch,
        }))
    }
}

/// Goes on only if that epoch is the one in office.
pub(super) fn in_office(w: &Writing<'_>, epoch: i64) -> Result<DispatcherRow, Stop> {
    match w.tx.dispatcher()? {
        Some(row) if row.epoch == epoch && !row.released => Ok(row),
        row => {
            let newest = row.map_or(0, |row| row.epoch);
            Err(StoreError::StaleDispatcher { epoch, newest }.into())
        }
    }
}

/// Whether the last holder is still to be reckoned with.
fn keeps_office(w: &Writing<'_>, last: &DispatcherRow, locked: bool) -> bool {
    let renewed = last.boot_id == w.boot_id && last.lease_until_boot_ms > w.now.boot_ms;
    let gone = locked && last.process.liveness() == Liveness::Gone;
    !last.released && renewed && !gone
}

fn this_process() -> Result<Process> {
    Process::current()
        .map_err(|source| StoreError::File { path: PathBuf::from("/proc/self"), source })
}
