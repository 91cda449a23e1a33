//! The commands that look after the file and not after what is in it.
//!
//! In: a [`Keep`] and the database. Out: an [`Answer`]. A command that finds damage tells it and
//! then fails, so that a program learns it from the exit code.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::answer::{Answer, one_line};
use crate::board::Board;
use crate::board::doctor::{self, Health};
use crate::board::recover::{recover, restore};
use crate::config::Config;
use crate::error::{Result, StoreError};
use crate::sqlite::backup::{Rotation, backups};
use crate::sqlite::checkpoint::Mode;
use crate::sqlite::recover::{Recovery, Request, Rung};
use crate::sqlite::verify::{Depth, Report};

/// What is done with the file.
#[derive(Debug, Subcommand)]
pub(super) enum Keep {
    /// Look whether the board is sound: its structure, every event and commit, the anchor
    Verify {
        /// Only the structure, without the comparison of indexes with their tables
        #[arg(long)]
        quick: bool,
        /// Quarantine the board if it is not sound
        #[arg(long)]
        quarantine: bool,
    },
    /// Make a verified copy while others write, and take old copies away
    Backup(BackupTo),
    /// Put a verified backup in the place of the board, and keep what was there
    Restore {
        /// The backup; else the newest beside the board
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
    },
    /// Get a damaged board back; without --apply only say what that would come to
    Recover {
        /// Put the result in the board's place, and keep what was there
        #[arg(long, conflicts_with = "dry_run")]
        apply: bool,
        /// Only say what it would come to, which is what is done anyway
        #[arg(long)]
        dry_run: bool,
        /// Take from this backup what the board has no more
        #[arg(long, value_name = "FILE")]
        backup: Option<PathBuf>,
    },
    /// Copy the log into the database now
    Checkpoint {
        /// passive: without any wait; truncate: wait for writers and readers, and cut the log
        #[arg(long, default_value = "passive", value_name = "MODE")]
        mode: ModeArgument,
    },
    /// Say what there is to know of the board's file, its place, its engine and its settings
    Doctor,
}

/// Where a backup goes, and which old ones stay.
#[derive(Debug, Args)]
pub(super) struct BackupTo {
    /// The directory; else that of the board
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// How many to keep, the new one included
    #[arg(long, value_name = "N")]
    keep: Option<usize>,
    /// Keep none that is older, but for the newest
    #[arg(long, value_name = "DAYS")]
    max_age_days: Option<u64>,
}

/// How a checkpoint goes about it.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum ModeArgument {
    /// Without any wait.
    Passive,
    /// Waits, and cuts the log.
    Truncate,
}

/// Does it.
pub(super) fn perform(command: Keep, database: &Path, config: &Config) -> Result<Answer> {
    let options = &config.options;
    match command {
        Keep::Recover { apply, backup, dry_run: _ } => {
            let request = Request { apply, backup: backup.as_deref() };
            recover(database, options, &request).map(|recovery| recovered(&recovery))
        }
        Keep::Restore { from } => {
            let from = from.map_or_else(|| newest_backup(database), Ok)?;
            let restored = restore(database, &from, options)?;
            let seq = restored.newest.map_or(0, |head| head.seq);
            let mut text = format!("the board is that of commit {seq}\n");
            if let Some(kept) = &restored.kept {
                line(&mut text, format_args!("what was there is kept in {}", kept.display()));
            }
            Ok(Answer::new(text, json!(restored)))
        }
        Keep::Doctor => Ok(examined(&doctor::examine(database, options), config)),
        Keep::Verify { quick, quarantine } => {
            let board = Board::open(database, options)?;
            let depth = if quick { Depth::Quick } else { Depth::Full };
            let report = board.database().verify(depth)?;
            if let (true, Some(reason)) = (quarantine, report.first()) {
                board.database().quarantine(reason)?;
            }
            Ok(verified(&report))
        }
        Keep::Backup(to) => {
            let board = Board::open(database, options)?;
            let directory = to.to.unwrap_or_else(|| directory_of(database));
            let max_age = to.max_age_days.map(|days| Duration::from_hours(days * 24));
            let rotation = Rotation { keep: to.keep, max_age };
            let backup = board.database().backup(&directory, rotation)?;
            let mut text = format!("backup of {} bytes: {}\n", backup.bytes, backup.path.display());
            for removed in &backup.removed {
                line(&mut text, format_args!("took away {}", removed.display()));
            }
            Ok(Answer::new(text, json!(backup)))
        }
        Keep::Checkpoint { mode } => {
            let mut board = Board::open(database, options)?;
            checkpointed(&mut board, mode, database)
        }
    }
}

fn checkpointed(board: &mut Board, mode: ModeArgument, database: &Path) -> Result<Answer> {
    let mode = match mode {
        ModeArgument::Passive => Mode::Passive,
        ModeArgument::Truncate => Mode::Truncate,
    };
    let done = board.checkpoint(mode)?;
    let holders = doctor::holders(database);
    let complete = done.is_some_and(|done| done.complete);
    let mut text = match done {
        Some(done) => format!("{} of {} pages copied\n", done.done_pages, done.log_pages),
        None => "another process checkpoints\n".to_owned(),
    };
    if !complete {
        for holder in &holders {
            let (pid, name) = (holder.pid, one_line(&holder.name));
            line(&mut text, format_args!("process {pid} ({name}) has the board open"));
        }
    }
    let owner = board.database().checkpoint_owner()?;
    let json = json!({ "checkpoint": done, "owner_pid": owner, "open_by": holders });
    Ok(Answer::new(text, json))
}

fn verified(report: &Report) -> Answer {
    let Report { commits, rows, .. } = report;
    let mut text = match (report.is_damaged(), report.complete) {
        (true, _) => "the board is damaged\n".to_owned(),
        (false, true) => format!("the board is sound: {commits} commits, {rows} events\n"),
        (false, false) => "nothing was found, and not all was looked at\n".to_owned(),
    };
    for complaint in report.structure.iter().chain(&report.foreign_keys).chain(&report.content) {
        line(&mut text, format_args!("{}", one_line(complaint)));
    }
    let found = report.first().map(|found| StoreError::Unsound { found: found.to_owned() });
    Answer { text, json: json!(report), then: found }
}

fn recovered(recovery: &Recovery) -> Answer {
    let rung = match recovery.rung {
        Rung::Log => "database and log are sound without the log's index",
        Rung::Reindex => "the indexes were made anew",
        Rung::Salvage => "the rows were read from the pages",
        Rung::Backup => "the rows were read from the pages and from a backup",
    };
    let mut text = format!("{rung}\n");
    for table in &recovery.tables {
        let lost = match table.lost {
            Some(lost) => lost.to_string(),
            None if table.broken_pages + table.broken_cells == 0 => "none known".to_owned(),
            None => "unknown".to_owned(),
        };
        let name = one_line(&table.table);
        line(&mut text, format_args!("{name}: {} rows saved, {lost} lost", table.saved));
    }
    if recovery.commits_lost_at_the_end > 0 {
        let lost = recovery.commits_lost_at_the_end;
        line(&mut text, format_args!("{lost} acknowledged commits are gone from the end"));
    }
    match &recovery.kept {
        Some(kept) => line(&mut text, format_args!("what was there is in {}", kept.display())),
        None => text.push_str("nothing was changed: see --apply\n"),
    }
    let lossy = !recovery.is_complete();
    let then = lossy.then(|| StoreError::Unsound {
        found: format!("{} rows and what is named above are lost", recovery.rows_lost()),
    });
    Answer { text, json: json!(recovery), then }
}

fn examined(health: &Health, config: &Config) -> Answer {
    let mut text = String::new();
    for (name, value) in health.lines() {
        line(&mut text, format_args!("{name}: {}", one_line(&value)));
    }
    let settings = Answer::options(&config.effective());
    text.push_str(&settings.text);
    let then = health.trouble.first().map(|found| StoreError::Unsound { found: found.clone() });
    Answer { text, json: json!({ "health": health, "settings": settings.json }), then }
}

fn newest_backup(database: &Path) -> Result<PathBuf> {
    let directory = directory_of(database);
    let found = backups(&directory, database).unwrap_or_default();
    found.into_iter().next().ok_or_else(|| StoreError::Invalid {
        what: format!("the directory {}", directory.display()),
        wanted: "one with a backup of the board, or a backup named by --from",
    })
}

fn directory_of(database: &Path) -> PathBuf {
    match database.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    writeln!(text, "{arguments}").ok();
}
