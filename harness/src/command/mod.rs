//! The commands: each ties the stages together for one purpose.

mod engines;
mod durability;
mod error;
mod exec;
mod execute;
mod judge;
mod place;
mod power;
mod progress;
mod real_fs;
mod run;
mod schedule;
mod sweep;
mod tune;
mod watch;

pub(crate) use engines::engines;
pub use error::CommandError;
pub(crate) use exec::exec;
pub(crate) use judge::judge;
pub(crate) use power::power;
pub(crate) use real_fs::real_fs;
pub(crate) use run::run;
pub(crate) use schedule::{replay, shrink};
pub(crate) use sweep::sweep;
pub(crate) use tune::tune;
pub(crate) use watch::watch;

use crate::exit::Exit;
use crate::scenario::builtin;
use std::io::Write as _;

/// `killpoint list`.
pub(crate) fn list() -> Result<Exit, CommandError> {
    let all = builtin::CANARIES.iter().chain(builtin::REPORTS).chain([&builtin::TUNE]);
    for builtin in all {
        let scenario = builtin.load()?;
        let expect = scenario.expect.describe();
        print(&format!("{:<34} expects {expect:<36} {}\n", builtin.name, scenario.claim))?;
    }
    for builtin in builtin::POWER_CANARIES {
        let power = builtin.load_power()?;
        let expect = power.expect.describe();
        print(&format!("{:<34} expects {expect:<36} {}\n", builtin.name, power.claim))?;
    }
    Ok(Exit::AsExpected)
}

/// To stdout. That nobody reads it any more is no failure.
fn print(text: &str) -> Result<(), CommandError> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CommandError::Output { path: "stdout".into(), source: error })
        }
        _ => Ok(()),
    }
}

/// A line to stderr, for a person. Nothing can be told if the terminal is gone.
fn say(text: &str) {
    drop(writeln!(std::io::stderr(), "{text}"));
}
