//! The statements about who dispatches.

use rusqlite::params;

use super::Tx;
use super::run::process_of;
use crate::board::CommitSeq;
use crate::board::process::Process;

/// Who dispatches, or did so last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::board) struct DispatcherRow {
    pub(in crate::board) epoch: i64,
    pub(in crate::board) holder: String,
    pub(in crate::board) boot_id: String,
    pub(in crate::board) lease_until_ms: i64,
    pub(in crate::board) lease_until_boot_ms: i64,
    pub(in crate::board) process: Process,
    pub(in crate::board) released: bool,
}

impl Tx<'_> {
    pub(in crate::board) fn dispatcher(self) -> rusqlite::Result<Option<DispatcherRow>> {
        self.maybe(
            "SELECT epoch, holder, boot_id, lease_until_ms, lease_until_boot_ms, released, pid, \
             pid_started_ticks, pid_namespace FROM dispatcher WHERE id = 1",
            [],
            |row| {
                Ok(DispatcherRow {
                    epoch: row.get(0)?,
                    holder: row.get(1)?,
                    boot_id: row.get(2)?,
                    lease_until_ms: row.get(3)?,
                    lease_until_boot_ms: row.get(4)?,
                    released: row.get(5)?,
                    process: process_of(row, 6)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?,
                })
            },
        )
    }

    pub(in crate::board) fn put_dispatcher(
        self,
        row: &DispatcherRow,
        seq: CommitSeq,
    ) -> rusqlite::Result<()> {
        self.run(
            "INSERT OR REPLACE INTO dispatcher (id, epoch, holder, boot_id, lease_until_ms, \
             lease_until_boot_ms, pid, pid_started_ticks, pid_namespace, released, changed_seq) \
             VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![
                row.epoch,
                row.holder,
                row.boot_id,
                row.lease_until_ms,
                row.lease_until_boot_ms,
                row.process.pid,
                row.process.started_ticks,
                row.process.namespace,
                row.released,
                seq,
            ],
        )
        .map(|_| ())
    }
}
