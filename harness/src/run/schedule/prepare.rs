//! The files that every schedule starts from, made by the processes themselves.

use super::{Arena, Ask, Cast, DATABASE, RunError, cycle_of, place};
use crate::history::Line;
use crate::plan::CyclePlan;
use crate::plan::schedule::{Order, SchedulePlan, shape};
use crate::run::probe::Probe;
use crate::run::trace::Exit;
use crate::scenario::Setting;
use crate::scenario::schedule::{Program, Work};
use killpoint_worker::wire::{EngineName, Life, Role, Step};
use std::path::Path;
use std::process::{Command, Stdio};

/// The session that prepares.
const SESSION: i64 = 101;
/// Bytes that a prepared directory may hold.
const BYTES_MAX: u64 = 64 << 20;

/// What every schedule starts from.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Each file by its path in the directory of a schedule.
    pub files: Vec<(String, Vec<u8>)>,
    /// The plan of what our own worker did before, and what was seen of it.
    pub before: Option<(CyclePlan, Vec<Line>)>,
    pub(super) probe: Probe,
}

impl Prepared {
    /// From files that were kept, as a bundle keeps them, and what was done before.
    #[must_use]
    pub fn kept(files: Vec<(String, Vec<u8>)>, before: Option<(CyclePlan, Vec<Line>)>) -> Self {
        let mut probe = Probe::new(Path::new(DATABASE), Path::new("."));
        if let Some((_, lines)) = &before {
            for line in lines {
                if let Line::Observed(seen) = line {
                    probe.has_seen(seen);
                }
            }
        }
        Self { files, before, probe }
    }
}

/// Makes them in `dir`.
pub fn prepare(
    work: Option<(&Work, Setting, EngineName)>,
    cast: &Cast,
    dir: &Path,
) -> Result<Prepared, RunError> {
    match (work, cast) {
        (Some(asked), Cast::Workers(_)) => by_worker(asked, cast, dir),
        (_, Cast::Program(program)) => by_command(program, dir),
        (None, Cast::Workers(_)) => Ok(Prepared::kept(Vec::new(), None)),
    }
}

fn plan(life: Life) -> SchedulePlan {
    SchedulePlan {
        number: 0,
        setting: 0,
        seed: 0,
        lives: vec![life],
        copies: 0,
        order: Order::Decided(Vec::new()),
        killed_at_end: false,
        faults: Vec::new(),
        faults_at: Vec::new(),
        stops_max: 200_000,
        length: 0,
        beside: None,
    }
}

fn by_worker(
    (work, setting, engine): (&Work, Setting, EngineName),
    cast: &Cast,
    dir: &Path,
) -> Result<Prepared, RunError> {
    let life = |role, script| Life {
        session: SESSION,
        role,
        engine,
        target: work.target,
        settings: setting.connection(),
        shape: shape(work),
        seed: 1,
        script,
        abandon: false,
        durability: std::collections::BTreeMap::new(),
        ack_fd: None,
        header_check: false,
        untimed: true,
    };
    let nothing = Prepared::kept(Vec::new(), None);
    let beginning = plan(life(Role::Founder, Vec::new()));
    let founded = Arena::new(&nothing, cast, dir, None)?.play(&beginning, Ask::default())?;
    if founded.exits.first() != Some(&Some(Exit::Code(0))) {
        let message = founded.lines.iter().find_map(|line| match line {
            Line::Life(life) => life.message.clone(),
            _ => None,
        });
        return Err(RunError::Founder {
            exit: format!("{:?}", founded.exits.first()),
            message: message.unwrap_or_else(|| format!("{:?}", founded.end)),
        });
    }
    let empty = Prepared::kept(founded.images, None);
    let script = vec![Step::Create, Step::Create, Step::Create, Step::Events];
    let first = plan(life(Role::Script, script));
    let done = Arena::new(&empty, cast, dir, None)?.play(&first, Ask::default())?;
    Ok(Prepared::kept(done.images, Some((cycle_of(&first), done.lines))))
}

fn by_command(program: &Program, dir: &Path) -> Result<Prepared, RunError> {
    let files = dir.join("setup");
    std::fs::create_dir_all(&files).map_err(place(&files))?;
    if let Some((name, arguments)) = program.setup.split_first() {
        let done = Command::new(name)
            .args(arguments)
            .current_dir(&files)
            .stdin(Stdio::null())
            .output()
            .map_err(|source| RunError::System { what: "the setup command", source })?;
        if !done.status.success() {
            let words = String::from_utf8_lossy(&done.stderr).trim().to_owned();
            let message = words.lines().last().unwrap_or_default().to_owned();
            return Err(RunError::Founder { exit: done.status.to_string(), message });
        }
    }
    let mut kept = Vec::new();
    collect(&files, "", &mut kept)?;
    Ok(Prepared::kept(kept, None))
}

fn collect(dir: &Path, prefix: &str, kept: &mut Vec<(String, Vec<u8>)>) -> Result<(), RunError> {
    for entry in std::fs::read_dir(dir).map_err(place(dir))? {
        let path = entry.map_err(place(dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = format!("{prefix}{name}");
        let metadata = std::fs::metadata(&path).map_err(place(&path))?;
        if metadata.is_dir() {
            collect(&path, &format!("{name}/"), kept)?;
        } else if metadata.len() > BYTES_MAX {
            let why = std::io::Error::other("too large to be put back for every schedule");
            return Err(RunError::place(&path, why));
        } else {
            kept.push((name, std::fs::read(&path).map_err(place(&path))?));
        }
    }
    kept.sort();
    Ok(())
}
