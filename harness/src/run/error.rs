//! What can keep a cycle from being carried out: never what the store did wrong.

use crate::history::HistoryError;
use std::path::PathBuf;

/// The harness could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A directory or file of ours cannot be made, copied or removed.
    #[error("{}: {source}", path.display())]
    Place {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The disk under the databases is full.
    #[error("{}: no space left: free some, or choose another --dir ({message})", path.display())]
    NoSpace {
        /// Where the databases lie.
        path: PathBuf,
        /// In whose words.
        message: String,
    },
    /// A process or its memory could not be had.
    #[error("{what}: {source}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
    /// An engine cannot be had.
    #[error(transparent)]
    Engine(#[from] super::engine::EngineError),
    /// The zygote said no, or said nothing.
    #[error("the zygote of the workers: {0}")]
    Zygote(String),
    /// The process that makes the database failed.
    #[error("the database could not be made ({exit}): {message}")]
    Founder {
        /// How it ended.
        exit: String,
        /// Its own words.
        message: String,
    },
    /// The query that asks for a token is wrong.
    #[error("--check-sql: {0}")]
    Query(String),
    /// The supervisor could not do its work.
    #[error("{source}{}", because(source))]
    Trace {
        /// What it says.
        #[from]
        source: super::trace::TraceError,
    },
    /// A cycle was asked for before a database was made.
    #[error("no database yet")]
    NoDatabase,
    /// The history could not be written.
    #[error(transparent)]
    History(#[from] HistoryError),
}

/// The sources of an error, each behind a colon.
fn because(error: &dyn std::error::Error) -> String {
    let mut text = String::new();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

impl RunError {
    /// From a failed file operation on `path`.
    pub(crate) fn place(path: &std::path::Path, source: std::io::Error) -> Self {
        if source.kind() == std::io::ErrorKind::StorageFull {
            return Self::NoSpace { path: path.to_owned(), message: source.to_string() };
        }
        Self::Place { path: path.to_owned(), source }
    }
}
