//! How the board keeps the chain over its commits: see [`crate::sqlite::chain`].

use crate::sqlite::chain::Ledger;

/// The columns of a commit and of an event stand here in the order in which `end` and `event` of
/// a write hash them.
pub(in crate::board) static LEDGER: Ledger = Ledger {
    head: "SELECT seq, link FROM commits ORDER BY seq DESC LIMIT 1",
    link_of: "SELECT link FROM commits WHERE seq = ?1",
    commits: "SELECT seq, link, content, rows, session, op, kind, task_id, token, rows, at_ms \
         FROM commits WHERE seq > ?1 ORDER BY seq",
    rows: "SELECT commit_seq, checksum, id, task_id, token, kind, payload, commit_seq \
         FROM events WHERE commit_seq > ?1 ORDER BY id",
    rows_table: "events",
    pruned_to: "SELECT coalesce((SELECT coalesce((SELECT commit_seq - 1 FROM events \
             WHERE id = first_event_id), (SELECT max(seq) FROM commits)) FROM horizon), 0)",
    set_row: "UPDATE events SET checksum = ?2 WHERE id = ?1",
    set_commit: "UPDATE commits SET rows = ?2, content = ?3, link = ?4 WHERE seq = ?1",
    drop_commit: "DELETE FROM commits WHERE seq = ?1",
    fill_gap: "INSERT INTO commits \
         (seq, session, op, kind, task_id, token, rows, at_ms, content, link) \
         VALUES (?1, -1, ?1, 'lost', 0, NULL, 0, 0, 0, zeroblob(32))",
};
