//! What to start: a program with all that it is given.
//!
//! Plain data and descriptors. Nothing is started here; `launch` does that.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What an inherited descriptor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FdUse {
    /// The victim's own business.
    Plain,
    /// Acknowledgements: a write to it says that a commit was promised to somebody. Such writes
    /// stop with the phase `ack`.
    Ack,
}

/// A command to run under the supervisor, any number of times.
///
/// It starts with the supervisor's environment unless [`env_clear`](Self::env_clear) is called,
/// with standard input, output and error shared unless given, in a process group of its own, with
/// all signals unblocked, and with `no_new_privs` set: set-user-ID programs gain nothing.
#[derive(Clone, Debug)]
pub struct Command {
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<OsString>,
    pub(super) environment: Vec<(OsString, Option<OsString>)>,
    pub(super) clear_environment: bool,
    pub(super) directory: Option<PathBuf>,
    pub(super) descriptors: Vec<Given>,
    pub(super) cpus: Option<Vec<usize>>,
    pub(super) fixed_addresses: bool,
}

/// One inherited descriptor.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) number: i32,
    pub(super) descriptor: Rc<OwnedFd>,
    pub(super) used_for: FdUse,
}

impl Command {
    /// Runs `program`, looked up in `PATH` if it holds no slash.
    pub fn new(program: impl AsRef<Path>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            clear_environment: false,
            directory: None,
            descriptors: Vec::new(),
            cpus: None,
            fixed_addresses: false,
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds several arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Takes an environment variable away.
    #[must_use]
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), None));
        self
    }

    /// Starts from an empty environment.
    #[must_use]
    pub fn env_clear(mut self) -> Self {
        self.clear_environment = true;
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn current_dir(mut self, directory: impl AsRef<Path>) -> Self {
        self.directory = Some(directory.as_ref().to_owned());
        self
    }

    /// Gives the victim `descriptor` under `number` (0 to 2 replace the standard ones).
    #[must_use]
    pub fn fd(mut self, number: i32, descriptor: OwnedFd, used_for: FdUse) -> Self {
        self.descriptors.push(Given { number, descriptor: Rc::new(descriptor), used_for });
        self
    }

    /// Runs only on these processors. With supervisor and victim on one processor a stop costs
    /// half.
    #[must_use]
    pub fn cpus(mut self, cpus: impl IntoIterator<Item = usize>) -> Self {
        self.cpus = Some(cpus.into_iter().collect());
        self
    }

    /// Turns address space randomisation off, so that addresses repeat from run to run.
    #[must_use]
    pub fn fixed_addresses(mut self) -> Self {
        self.fixed_addresses = true;
        self
    }
}
