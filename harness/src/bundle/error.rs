//! Why a bundle is of no use.

use std::path::PathBuf;

/// A bundle that cannot be written, read or run.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It cannot be written.
    #[error("bundle {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It cannot be read.
    #[error("bundle {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is no bundle, or no longer.
    #[error("bundle {}: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// It was made with another build: what it shows need not show here.
    #[error(
        "bundle {}: it was made with another build ({was}; here: {is}); give --any-build to run \
         it nevertheless",
        path.display()
    )]
    OtherBuild {
        /// The file.
        path: PathBuf,
        /// What ran then.
        was: String,
        /// What would run now.
        is: String,
    },
}
