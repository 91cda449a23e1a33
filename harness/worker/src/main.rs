//! The victims alone, to be run on whichever libsqlite3 the loader finds.
//!
//! The command `killpoint` is its own worker on the bundled engine; this is the same code for the
//! others. `killpoint engines` builds and starts it.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|text| text.to_string_lossy().into_owned()).collect();
    killpoint_worker::main(&arguments)
}
