//! Why a command could not do what it was asked.

use crate::bundle::BundleError;
use crate::exit::Exit;
use crate::history::HistoryError;
use crate::run::trace::TraceError;
use crate::run::{EngineError, RunError};
use crate::scenario::ScenarioError;
use std::path::PathBuf;

/// A failed command, split by whose fault it is.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The scenario file: exit 2.
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    /// The arguments: exit 2.
    #[error("{0}")]
    Usage(String),
    /// A place that was named cannot be written to: exit 2, and nothing was run.
    #[error("{what} {}: {source}", path.display())]
    Place {
        /// Which argument.
        what: &'static str,
        /// Its value.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A bundle that cannot be written: exit 70; one that cannot be read or run: exit 2.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A history that cannot be read: exit 2.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// An engine that was asked for cannot be had: exit 2, and nothing was run.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The harness failed: exit 70.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A result cannot be written: exit 70.
    #[error("{}: {source}", path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A handler of signals cannot be had: exit 70.
    #[error("signal handler: {0}")]
    Signals(std::io::Error),
}

impl CommandError {
    /// What the process ends with.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Bundle(BundleError::Write { .. }) => Exit::Failed,
            Self::Bundle(_)
            | Self::Scenario(_)
            | Self::Usage(_)
            | Self::Place { .. }
            | Self::Engine(_)
            | Self::History(_)
            | Self::Run(
                RunError::Query(_) | RunError::Trace { source: TraceError::Start { .. } },
            ) => Exit::Usage,
            Self::Run(_) | Self::Output { .. } | Self::Signals(_) => Exit::Failed,
        }
    }
}
