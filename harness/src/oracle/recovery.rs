//! What recovery must give whatever was killed: a sound file, the same twice, and for good.

use super::Cycle;
use crate::history::Observation;
use crate::verdict::{Finding, FindingKind};

pub(super) fn judge(cycle: &Cycle<'_>, seen: &Observation) -> Vec<Finding> {
    if let Some(why) = &seen.unreadable {
        return vec![cycle.finding(FindingKind::Corrupt, &format!("cannot be read: {why}"))];
    }
    let mut findings = Vec::new();
    if let Some(first) = seen.integrity.first() {
        let count = seen.integrity.len();
        let text = format!("integrity_check has {count} complaints, the first: {first}");
        findings.push(cycle.finding(FindingKind::Corrupt, &text));
    }
    if let Some(first) = seen.foreign_keys.first() {
        let count = seen.foreign_keys.len();
        let text = format!("foreign_key_check has {count} complaints, the first: {first}");
        findings.push(cycle.finding(FindingKind::ForeignKeyViolation, &text));
    }
    if seen.first_file != seen.second_file {
        let text = "two copies of the same files were recovered to different databases";
        findings.push(cycle.finding(FindingKind::RecoveryDiverged, text));
    }
    if seen.first_file != seen.first_file_again {
        let text = "a second checkpoint changed the database file";
        findings.push(cycle.finding(FindingKind::CheckpointNotIdempotent, text));
    }
    findings
}
