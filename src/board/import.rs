//! Bringing a board of the Hermes agent (`kanban.db`) here.
//!
//! The old board is read, never written, at one moment. Everything goes into an empty board in one
//! transaction, or nothing does. Tasks get numbers in the order of their making; the names that
//! they had, and all columns that this board has no place for, are kept in `extra`.
//!
//! In: the file. Out: what a dry run says would come, and what came. Not here: its workspaces,
//! attachments and logs, which stay where they are; its recipes and board metadata.

mod convert;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::board::write::{Kind, Stop, Writing};
use crate::board::{Board, Commit, OpKey};
use crate::error::{Result, StoreError};
use convert::{Converted, convert};

/// What an old board has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Tasks.
    pub tasks: usize,
    /// Links between them.
    pub links: usize,
    /// Runs.
    pub runs: usize,
    /// Events.
    pub events: usize,
    /// Comments.
    pub comments: usize,
    /// Attachments.
    pub attachments: usize,
    /// Subscriptions.
    pub subscriptions: usize,
}

/// What an import would bring, or has brought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Import {
    /// Rows of the old board.
    pub found: Counts,
    /// Rows that this board gets for them.
    pub kept: Counts,
    /// Tasks by where they stand.
    pub statuses: BTreeMap<String, usize>,
    /// What cannot come as it is, each with the reason; nothing else is left out or changed.
    pub changed: Vec<String>,
    /// What is in the way of an import at all.
    pub obstacles: Vec<String>,
}

impl Import {
    /// Looks at an old board.
    ///
    /// # Errors
    ///
    /// [`StoreError::Open`], [`StoreError::Import`]: it cannot be read, or is no such board.
    pub fn plan(from: &Path) -> Result<Self> {
        convert(from).map(|converted| converted.report)
    }
}

impl Board {
    /// Brings an old board into this one, which must be empty.
    ///
    /// # Errors
    ///
    /// - As [`Import::plan`].
    /// - [`StoreError::Import`]: there is an obstacle, or this board is not empty, or what came is
    ///   not what was read. Nothing was written.
    /// - Others as [`create_task`](Self::create_task).
    pub fn import(&mut self, key: OpKey, from: &Path) -> Result<(Import, Commit)> {
        let converted = convert(from)?;
        if let Some(what) = converted.report.obstacles.first() {
            return Err(StoreError::Import { what: what.clone() });
        }
        self.write(Kind::Import, key, |w| {
            if w.seq.get() != 1 {
                let what = "this board is not empty".to_owned();
                return Err(StoreError::Import { what }.into());
            }
            write(w, &converted)?;
            let came = w.tx.row_counts()?;
            if came != converted.report.kept {
                let what = format!("{came:?} came of {:?}", converted.report.kept);
                return Err(StoreError::Import { what }.into());
            }
            Ok(converted.report)
        })
    }

    /// Whether this board was imported.
    pub fn is_imported(&self) -> Result<bool> {
        self.read("look whether it was imported", |tx| tx.is_imported())
    }
}

fn write(w: &mut Writing<'_>, converted: &Converted) -> Result<(), Stop> {
    for task in &converted.tasks {
        w.tx.import_task(task, w.seq)?;
    }
    for (parent, child) in &converted.links {
        w.tx.insert_link(*parent, *child, w.seq)?;
    }
    for run in &converted.runs {
        w.tx.import_run(run, w.seq)?;
    }
    for event in &converted.events {
        w.event(event.task, event.token, &event.kind, &event.payload)?;
    }
    for comment in &converted.comments {
        w.tx.insert_comment((comment.task, None), &comment.author, &comment.body, w.seq)?;
    }
    for file in &converted.attachments {
        w.tx.insert_attachment(file.task, &file.as_new(), w.seq)?;
    }
    for subscription in &converted.subscriptions {
        w.tx.insert_subscription(&subscription.as_new(), subscription.cursor, w.seq)?;
    }
    Ok(())
}
