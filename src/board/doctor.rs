//! All that can be said of a database without changing it, for a person who has to decide.
//!
//! In: a path. Out: a [`Health`], whatever state the file is in: what cannot be found out is said
//! to be so. Not here: repair.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::board::Board;
use crate::options::Options;
use crate::sqlite::anchor::{Anchor, AnchorFile};
use crate::sqlite::database::Opened;
use crate::sqlite::engine::Engine;
use crate::sqlite::place::file_system::FileSystem;
use crate::sqlite::place::{self, trial};
use crate::sqlite::pragma::Pragmas;
use crate::sqlite::quarantine::{self, Notice};
use crate::sqlite::sidecar::beside;

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Health {
    /// The loaded SQLite.
    pub engine: Option<Engine>,
    /// The file, without symbolic links.
    pub place: PathBuf,
    /// What it lies on.
    pub file_system: Option<FileSystem>,
    /// Its bytes; `None`: it is not there.
    pub database_bytes: Option<u64>,
    /// The bytes of its log.
    pub log_bytes: Option<u64>,
    /// The newest commit that is anchored.
    pub anchored: Option<Anchor>,
    /// The newest commit that is there.
    pub newest_seq: Option<i64>,
    /// Whether and why nobody may open it.
    pub quarantined: Option<Notice>,
    /// What its open found.
    pub opened: Option<Opened>,
    /// SQLite's settings.
    pub pragmas: Option<Pragmas>,
    /// Which process copies the log at this moment.
    pub checkpoint_owner_pid: Option<u32>,
    /// The processes that have it open, as far as this user may see them.
    pub open_by: Vec<Holder>,
    /// What is worth a look.
    pub warnings: Vec<String>,
    /// What is wrong.
    pub trouble: Vec<String>,
}

/// A process that has a database open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// Its number.
    pub pid: u32,
    /// Its name, as the kernel has it.
    pub name: String,
}

/// Looks at the board at `path`.
#[must_use]
pub fn examine(path: &Path, options: &Options) -> Health {
    let engine = Engine::loaded();
    let place = place::resolve(path).unwrap_or_else(|_| path.to_owned());
    let mut health = Health {
        file_system: FileSystem::of(&place).ok(),
        database_bytes: fs::metadata(&place).ok().map(|file| file.len()),
        log_bytes: fs::metadata(beside(&place, "-wal")).ok().map(|file| file.len()),
        quarantined: quarantine::notice(&place),
        open_by: holders(&place),
        place,
        ..Health::default()
    };
    if engine.may_reset_log() {
        health.warnings.push(format!("SQLite {engine} is of a version that can lose commits"));
    }
    health.warnings.extend(health.file_system.and_then(|file_system| file_system.warning()));
    match trial::trial(&health.place) {
        Ok(None) => {}
        Ok(Some(wrong)) => health.trouble.push(wrong.to_owned()),
        Err(error) => health.warnings.push(format!("locks and memory were not tried: {error}")),
    }
    health.engine = Some(engine);
    if beside(&health.place, "-anchor").exists() {
        health.anchored = AnchorFile::open(&health.place).ok().and_then(|f| f.newest().ok()?);
    }
    open(path, options, &mut health);
    health
}

/// What only an open can tell.
fn open(path: &Path, options: &Options, health: &mut Health) {
    let board = match Board::open(path, options) {
        Ok(board) => board,
        Err(error) => return health.trouble.push(with_source(&error)),
    };
    health.newest_seq = board.commit_seq().ok().map(|seq| seq.get());
    match board.pragmas() {
        Ok(pragmas) => health.pragmas = Some(pragmas),
        Err(error) => health.trouble.push(with_source(&error)),
    }
    health.checkpoint_owner_pid = board.database().checkpoint_owner().ok().flatten();
    let opened = board.database().opened().clone();
    if !opened.guarded {
        health.warnings.push("SQLite's locks are not guarded in this process".to_owned());
    }
    health.opened = Some(opened);
}

fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error} ({source})"),
        None => error.to_string(),
    }
}

/// The processes that have the database, its log or its index open, but for this one.
#[must_use]
pub fn holders(place: &Path) -> Vec<Holder> {
    let place = place::resolve(place).unwrap_or_else(|_| place.to_owned());
    let names = ["", "-wal", "-shm"].map(|ending| beside(&place, ending));
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    processes
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_string_lossy().parse().ok()?;
            let open = fs::read_dir(entry.path().join("fd")).ok()?;
            let mut open = open.flatten().filter_map(|file| fs::read_link(file.path()).ok());
            if pid == std::process::id() || !open.any(|file| names.contains(&file)) {
                return None;
            }
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            Some(Holder { pid, name: name.trim_end().to_owned() })
        })
        .collect()
}

impl Health {
    /// For people: each thing and what was found of it.
    #[must_use]
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let number =
            |value: Option<u64>| value.map_or("none".to_owned(), |value| value.to_string());
        let mut lines = vec![
            ("place", self.place.display().to_string()),
            ("database bytes", number(self.database_bytes)),
            ("log bytes", number(self.log_bytes)),
        ];
        if let Some(engine) = &self.engine {
            lines.push(("SQLite", format!("{engine}, {}", engine.source_id)));
        }
        if let Some(file_system) = self.file_system {
            lines.push(("file system", file_system.name.to_owned()));
        }
        if let Some(seq) = self.newest_seq {
            lines.push(("newest commit", seq.to_string()));
        }
        lines.push(match self.anchored {
            Some(anchor) => ("anchored", format!("{} at {}", anchor.head.seq, anchor.durability)),
            None => ("anchored", "nothing".to_owned()),
        });
        if let Some(opened) = &self.opened {
            let closed = if opened.unclean { "no, its users were killed" } else { "yes" };
            lines.push(("closed in good order", closed.to_owned()));
            let guarded = if opened.guarded { "yes" } else { "no" };
            lines.push(("locks guarded", guarded.to_owned()));
        }
        if let Some(pid) = self.checkpoint_owner_pid {
            lines.push(("checkpoints", format!("process {pid}")));
        }
        if let Some(notice) = &self.quarantined {
            lines.push(("quarantined", notice.reason.clone()));
            lines.push(("next", notice.next_step.clone()));
        }
        lines.extend(
            self.open_by
                .iter()
                .map(|holder| ("open by", format!("process {} ({})", holder.pid, holder.name))),
        );
        lines.extend(self.warnings.iter().map(|warning| ("warning", warning.clone())));
        lines.extend(self.trouble.iter().map(|trouble| ("TROUBLE", trouble.clone())));
        lines
    }
}
