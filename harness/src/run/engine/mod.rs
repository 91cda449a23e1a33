//! The builds of SQLite that processes can run on, side by side.
//!
//! | name      | what it is                                                       | had by       |
//! |-----------|------------------------------------------------------------------|--------------|
//! | `bundled` | the current one                                                  | compiled in  |
//! | `3.51.1`  | the last with the WAL-reset race that a rusqlite release bundles | building     |
//! | `3.50.2`  | the last line in which a stray close of the database destroys it | building     |
//! | `system`  | the machine's own libsqlite3                                     | the loader   |
//! | a path    | any other libsqlite3, as from a production host                  | `--engine`   |
//!
//! There is one worker source. The bundled engine is run by this very binary; for all others the
//! same worker is built once more, linked to a shared libsqlite3, and the loader is told where the
//! one that is wanted lies. What a process really loaded it says itself.

mod build;
mod error;

pub use error::EngineError;

use super::trace;
use build::Workshop;
use killpoint_worker::ledger::Loaded;
use killpoint_worker::wire::EngineName;
use killpoint_worker::{ARGV0, ENGINE};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What the loader looks for libraries in first.
const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";
/// Ourselves, wherever we lie.
const OWN: &str = "/proc/self/exe";

/// One SQLite that workers can be started on.
#[derive(Clone, Debug)]
pub struct Engine {
    /// By which name it was asked for.
    pub name: EngineName,
    /// What it says of itself.
    pub loaded: Loaded,
    worker: PathBuf,
    /// Where the loader is to look first; none where it finds the library by itself.
    libraries: Option<PathBuf>,
}

impl Engine {
    /// The engine that is compiled in.
    pub fn bundled() -> Result<Self, EngineError> {
        Self::ask(EngineName::Bundled, PathBuf::from(OWN), None)
    }

    /// Starts a worker on it once, which says what it loaded.
    fn ask(
        name: EngineName,
        worker: PathBuf,
        libraries: Option<PathBuf>,
    ) -> Result<Self, EngineError> {
        let loaded = Loaded { sqlite_version: 0, source_id: String::new() };
        let mut engine = Self { name, loaded, worker, libraries };
        let told = engine
            .command()
            .arg(ENGINE)
            .stdin(Stdio::null())
            .output()
            .map_err(|source| EngineError::Start { name, source })?;
        engine.loaded = serde_json::from_slice(&told.stdout).map_err(|_| {
            let words = String::from_utf8_lossy(&told.stderr);
            EngineError::Mute { name, message: one_line(&words, "it said nothing") }
        })?;
        let promised = name.promised_version();
        let found = engine.loaded.sqlite_version;
        if let Some(promised) = promised.filter(|promised| *promised != found) {
            return Err(EngineError::Other { name, promised, found });
        }
        Ok(engine)
    }

    /// BLAKE3 of the files that a worker on it consists of: the worker, and its library.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut hash = blake3::Hasher::new();
        let library = self.libraries.as_ref().map(|dir| dir.join("libsqlite3.so.0"));
        for file in [Some(self.worker.clone()), library].into_iter().flatten() {
            // One that cannot be read could not have been started.
            hash.update(&std::fs::read(file).unwrap_or_default());
        }
        hash.update(self.loaded.source_id.as_bytes());
        hash.finalize().to_hex().to_string()
    }

    /// A command that starts a worker on this engine: its arguments are those of
    /// [`killpoint_worker::main`]. Nothing of our environment reaches it.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.worker);
        command.arg0(ARGV0).env_clear();
        if let Some(libraries) = &self.libraries {
            command.env(LIBRARY_PATH, libraries);
        }
        command
    }

    /// The same to be started under a supervisor.
    pub(super) fn traced(&self) -> trace::Command {
        let command = trace::Command::new(&self.worker).env_clear();
        match &self.libraries {
            Some(libraries) => command.env(LIBRARY_PATH, libraries),
            // Under a supervisor a program has its own name: ours is the first argument.
            None if self.name == EngineName::Bundled => command.arg(ARGV0),
            None => command,
        }
    }
}

/// The engines of one run, each ready to be started.
#[derive(Clone, Debug)]
pub struct Engines(BTreeMap<EngineName, Engine>);

impl Engines {
    /// Only the one that is compiled in.
    pub fn bundled() -> Result<Self, EngineError> {
        Self::ready([EngineName::Bundled], None, &mut |_| {})
    }

    /// Makes all of `names` ready, building what is not there; `given` is the library that the
    /// command line names, and `tell` is told of what takes long.
    pub fn ready(
        names: impl IntoIterator<Item = EngineName>,
        given: Option<&Path>,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Self, EngineError> {
        let names: BTreeSet<EngineName> = names.into_iter().collect();
        let mut engines = BTreeMap::new();
        for name in names {
            let engine = match name {
                EngineName::Bundled => Engine::bundled()?,
                _ => shared(name, given, tell)?,
            };
            engines.insert(name, engine);
        }
        Ok(Self(engines))
    }

    /// The engine of that name.
    pub fn get(&self, name: EngineName) -> Result<&Engine, EngineError> {
        self.0.get(&name).ok_or(EngineError::NotReady { name })
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Engine> {
        self.0.values()
    }
}

fn shared(
    name: EngineName,
    given: Option<&Path>,
    tell: &mut dyn FnMut(&str),
) -> Result<Engine, EngineError> {
    let workshop = Workshop::enter(tell)?;
    let libraries = match name {
        EngineName::System => None,
        EngineName::Given => {
            let file = given.ok_or(EngineError::NotReady { name })?;
            Some(workshop.given(file)?)
        }
        EngineName::Bundled | EngineName::V3_51_1 | EngineName::V3_50_2 => {
            Some(workshop.library(name, tell)?)
        }
    };
    let worker = workshop.worker(libraries.as_deref(), tell)?;
    Engine::ask(name, worker, libraries)
}

/// What is known of an engine without building anything.
#[derive(Debug)]
pub enum State {
    /// It can be started at once.
    Ready(Engine),
    /// It has to be built first.
    NotBuilt,
    /// It cannot be had; why.
    Unavailable(EngineError),
}

/// How it is with each engine that has a name.
#[must_use]
pub fn survey() -> Vec<(EngineName, State)> {
    EngineName::NAMED.into_iter().map(|name| (name, state(name))).collect()
}

fn state(name: EngineName) -> State {
    let asked = match name {
        EngineName::Bundled => Engine::bundled(),
        _ => match Workshop::enter(&mut |_| {}) {
            Err(error) => Err(error),
            Ok(workshop) => match workshop.built(name) {
                None => return State::NotBuilt,
                Some((worker, libraries)) => Engine::ask(name, worker, libraries),
            },
        },
    };
    asked.map_or_else(State::Unavailable, State::Ready)
}

/// The last line that says something, or `otherwise`.
fn one_line(text: &str, otherwise: &str) -> String {
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty());
    line.unwrap_or(otherwise).to_owned()
}
