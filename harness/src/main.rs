//! The command `killpoint`; under another name, the zygote of its workers.

use std::process::{ExitCode, Termination as _};

fn main() -> ExitCode {
    let arguments: Vec<String> =
        std::env::args_os().map(|text| text.to_string_lossy().into_owned()).collect();
    match arguments.split_first() {
        // Before anything of the harness: a worker's process holds none of it.
        Some((name, rest)) if killpoint::run::is_worker(name) => killpoint_worker::main(rest),
        Some((_, [name, rest @ ..])) if killpoint::run::is_worker(name) => {
            killpoint_worker::main(rest)
        }
        Some((name, rest)) if name == killpoint::run::power::realfs::serve::ARGV0 => {
            killpoint::run::power::realfs::serve::main(rest)
        }
        _ => killpoint::main().report(),
    }
}
