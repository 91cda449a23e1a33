//! `killpoint engines`: the builds of SQLite that processes can run on; and `--engine`.

use super::run::version;
use super::{CommandError, print, say};
use crate::cli::{self, Format};
use crate::exit::Exit;
use crate::run::engine::{self, Engine, Engines, State};
use crate::scenario::Scenario;
use killpoint_worker::wire::EngineName;
use std::path::PathBuf;

/// Carries out the command.
pub(crate) fn engines(arguments: &cli::Engines) -> Result<Exit, CommandError> {
    if let Some(names) = &arguments.build {
        let mut wanted = EngineName::NAMED.to_vec();
        if !names.is_empty() {
            wanted = names.iter().map(|text| named(text)).collect::<Result<_, _>>()?;
        }
        Engines::ready(wanted, None, &mut |text| say(text))?;
    }
    let rows: Vec<Row> =
        engine::survey().into_iter().map(|(name, state)| row(name, &state)).collect();
    match arguments.format {
        Format::Jsonl => {
            for row in &rows {
                let line = serde_json::to_string(row)
                    .map_err(|error| CommandError::Usage(error.to_string()))?;
                print(&(line + "\n"))?;
            }
        }
        Format::Text => {
            for Row { engine, state, sqlite_version, source_id, what } in &rows {
                let version = sqlite_version.as_deref().unwrap_or("-");
                print(&format!("{engine:<8} {version:<8} {state:<10} {what}\n"))?;
                if let Some(id) = source_id {
                    print(&format!("{:28}{id}\n", ""))?;
                }
            }
            print("Any other: --engine /path/to/libsqlite3.so.0, with run, tune or sweep.\n")?;
        }
    }
    Ok(Exit::AsExpected)
}

/// One engine as it is told.
#[derive(serde::Serialize)]
struct Row {
    engine: &'static str,
    state: String,
    sqlite_version: Option<String>,
    source_id: Option<String>,
    what: &'static str,
}

fn row(name: EngineName, state: &State) -> Row {
    let what = match name {
        EngineName::Bundled => "the current one, compiled in",
        EngineName::V3_51_1 => "the last with the WAL-reset race that a rusqlite release bundles",
        EngineName::V3_50_2 => "the last line in which a stray close of the database destroys it",
        EngineName::System => "this machine's own",
        EngineName::Given => "named by --engine",
    };
    let (state, loaded) = match state {
        State::Ready(Engine { loaded, .. }) => ("ready".to_owned(), Some(loaded)),
        State::NotBuilt => ("not built".to_owned(), None),
        State::Unavailable(error) => (format!("unavailable: {error}"), None),
    };
    Row {
        engine: name.as_str(),
        state,
        sqlite_version: loaded.map(|loaded| version(loaded.sqlite_version)),
        source_id: loaded.map(|loaded| loaded.source_id.clone()),
        what,
    }
}

fn named(text: &str) -> Result<EngineName, CommandError> {
    let names = EngineName::NAMED.map(EngineName::as_str);
    EngineName::NAMED.into_iter().find(|name| name.as_str() == text).ok_or_else(|| {
        CommandError::Usage(format!("no engine is called {text}: there are {}", names.join(", ")))
    })
}

/// What `--engine` says: a name, or a file.
pub(super) struct Choice {
    /// The engine for all processes, if one was named.
    pub(super) name: Option<EngineName>,
    /// Its library, if a file was named.
    pub(super) library: Option<PathBuf>,
}

impl Choice {
    /// What has a slash in it, or is a file, is a library.
    pub(super) fn of(argument: &cli::EngineChoice) -> Result<Self, CommandError> {
        let Some(text) = &argument.engine else { return Ok(Self { name: None, library: None }) };
        let path = PathBuf::from(text);
        if text.contains('/') || path.is_file() {
            return Ok(Self { name: Some(EngineName::Given), library: Some(path) });
        }
        Ok(Self { name: Some(named(text)?), library: None })
    }

    /// Has a scenario's processes run on the chosen engine.
    pub(super) fn apply(&self, scenario: &mut Scenario) {
        if let Some(name) = self.name {
            scenario.run_all_on(name);
        }
    }

    /// Makes ready what will be needed, before anything runs.
    pub(super) fn ready(
        &self,
        names: impl IntoIterator<Item = EngineName>,
    ) -> Result<Engines, CommandError> {
        let names = names.into_iter().chain([EngineName::Bundled]);
        Ok(Engines::ready(names, self.library.as_deref(), &mut |text| say(text))?)
    }

    /// The words that say it again.
    pub(super) fn words(argument: &cli::EngineChoice, words: &mut Vec<String>) {
        words.extend(argument.engine.iter().map(|text| format!("--engine {text}")));
    }
}
