//! Why an engine cannot be had: each says what to do.

use killpoint_worker::wire::EngineName;
use std::path::PathBuf;

/// An engine that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The sources that killpoint was built from are not where they were.
    #[error(
        "engines other than bundled are built from killpoint's own sources, which are not at {}: \
         build killpoint where they are, or use the bundled engine",
        place.display()
    )]
    NoSources {
        /// Where they were.
        place: PathBuf,
    },
    /// Cargo or the C compiler could not be started.
    #[error("{program}: {source}: needed to build an engine")]
    NoTool {
        /// Which one.
        program: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// A build failed.
    #[error(
        "{what} cannot be built: {message}; it needs crates.io once: run `killpoint engines \
         --build` where it can be reached"
    )]
    Build {
        /// What was to be built.
        what: String,
        /// The builder's last words.
        message: String,
    },
    /// The machine has no SQLite of its own.
    #[error(
        "no libsqlite3.so.0 among the libraries of this machine: install it (Debian: \
             libsqlite3-0), or name another engine"
    )]
    NoSystem,
    /// The library that the command line names cannot be used.
    #[error("--engine {}: {source}", path.display())]
    Given {
        /// The library.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file or directory of ours.
    #[error("{}: {source}", path.display())]
    Place {
        /// Which one.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A worker on it cannot be started.
    #[error("engine {}: a worker on it cannot be started: {source}", name.as_str())]
    Start {
        /// Which engine.
        name: EngineName,
        /// What the system says.
        source: std::io::Error,
    },
    /// A worker on it ended without a word, as when the library lacks what it needs.
    #[error("engine {}: a worker cannot run on it: {message}", name.as_str())]
    Mute {
        /// Which engine.
        name: EngineName,
        /// The loader's words.
        message: String,
    },
    /// It is not what its name says.
    #[error("engine {} says that it is {found}, not {promised}", name.as_str())]
    Other {
        /// Which engine.
        name: EngineName,
        /// As `sqlite3_libversion_number` has it.
        promised: u32,
        /// Likewise.
        found: u32,
    },
    /// It was not made ready before the run.
    #[error("engine {} was not made ready (a library is given with --engine)", name.as_str())]
    NotReady {
        /// Which engine.
        name: EngineName,
    },
}
