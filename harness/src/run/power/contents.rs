//! Looking into contents of the undisturbed run: which tokens they hold, and every row of a board.

use super::compose::{Choice, Most, compose};
use super::model::Model;
use super::recording::Recording;
use super::recover::{open, recover};
use super::vfs::{self, VfsError};
use crate::history::Line;
use crate::history::power::Course;
use crate::run::error::RunError;
use crate::run::probe::Probe;
use crate::scenario::power::Profile;
use rusqlite::Connection;
use std::path::Path;

/// Acknowledgements that are looked for at one content: more cannot be under way at once.
const AHEAD_MAX: usize = 256;

/// Goes through the contents of `course` in their order. `look` gets the number of each that
/// `wanted` wants, and a connection to it; it says whether to go on.
fn go_through(
    recording: &Recording,
    course: &Course,
    wanted: impl Fn(usize) -> bool,
    mut look: impl FnMut(usize, &Connection) -> Result<bool, RunError>,
) -> Result<(), RunError> {
    // Everything has reached the disk: the profile plays no part.
    let mut model = Model::new(recording, Profile::Strict);
    for (number, commit) in course.commits.iter().enumerate().filter(|(n, _)| wanted(*n)) {
        vfs::with_disk(vfs::Disk::release);
        model.advance_to(commit.from);
        vfs::with_disk(|disk| compose(&model, &Choice::whole(Most::Kept, &model), disk));
        // What cannot be recovered undisturbed is no content of the course.
        if recover().is_err() {
            continue;
        }
        let conn = open().map_err(|error| RunError::Query(error.to_string()))?;
        let more = look(number, &conn)?;
        if conn.close().is_err() || !more {
            break;
        }
    }
    vfs::with_disk(vfs::Disk::release);
    Ok(())
}

/// Finds for each acknowledgement the first content that holds its token, by the recording's query.
pub(super) fn bind(recording: &Recording, course: &mut Course) -> Result<(), RunError> {
    let Some(sql) = &recording.header.check_sql else { return Ok(()) };
    let mut acks = std::mem::take(&mut course.acks);
    let wrong = |error: rusqlite::Error| RunError::Query(error.to_string());
    let done = go_through(
        recording,
        course,
        |_| true,
        |number, conn| {
            let open = acks.iter_mut().filter(|ack| ack.commit.is_none());
            let mut query = match conn.prepare(sql) {
                Ok(query) => query,
                // The tables may not have been made yet.
                Err(_) if number + 1 < course.commits.len() => return Ok(true),
                Err(error) => return Err(wrong(error)),
            };
            for ack in open.take(AHEAD_MAX) {
                let mut rows = query.query([&ack.token]).map_err(wrong)?;
                let there = match rows.next().map_err(wrong)? {
                    None => false,
                    // A count of nothing is nothing.
                    Some(row) => !matches!(
                        row.get_ref(0).map_err(wrong)?,
                        rusqlite::types::ValueRef::Null | rusqlite::types::ValueRef::Integer(0)
                    ),
                };
                if there {
                    ack.commit = Some(number);
                }
            }
            Ok(true)
        },
    );
    course.acks = acks;
    done
}

/// Every row of some contents of a board, for the oracle that knows what they must be: at most
/// `most` of them, evenly, the last among them. Gives the number of the last commit with each.
pub fn observe(
    recording: &Recording,
    course: &Course,
    most: usize,
) -> Result<Vec<(i64, Line)>, RunError> {
    vfs::register().map_err(|error: VfsError| RunError::Query(error.to_string()))?;
    let Some(board) = &recording.header.board else { return Ok(Vec::new()) };
    let plan = &board.recorded.0;
    let mut probe = Probe::new(Path::new(""), Path::new(""));
    let last = course.commits.len().saturating_sub(1);
    let step = course.commits.len().div_ceil(most.max(1)).max(1);
    let mut lines = Vec::new();
    let wanted = |number: usize| number == 0 || number == last || number.is_multiple_of(step);
    go_through(recording, course, wanted, |number, conn| {
        if number == 0 {
            // What was there before the recording has been seen before.
            probe.look(conn, plan.generation, plan.cycle)?;
            return Ok(true);
        }
        let seen = probe.clone().look(conn, plan.generation, plan.cycle)?;
        let seq = course.commits[number].counter.map_or(0, |(seq, _)| seq);
        lines.push((seq, Line::Observed(Box::new(seen))));
        Ok(true)
    })?;
    Ok(lines)
}
