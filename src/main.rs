//! The `hardboard` command. All of it is in [`hardboard::cli`].

use std::env;
use std::io;
use std::process::ExitCode;

use hardboard::cli;

fn main() -> ExitCode {
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    cli::run(env::args_os(), |name| env::var_os(name), &mut out, &mut err).into()
}
