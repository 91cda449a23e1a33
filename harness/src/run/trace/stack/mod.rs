//! The user-space stack of a stopped thread: module and offset of each frame, and its symbol where
//! the module has one.
//!
//! Read from `/proc/PID/maps`, `/proc/PID/mem` and the files of the modules. Unwinding goes by
//! `.eh_frame`, and by frame pointers where there is none. Modules are read once per supervisor.

mod maps;
mod module;
mod unwind;

use std::fmt;

use serde::Serialize;

pub(super) use maps::mapping_of;
pub(super) use unwind::Unwinder;

use super::ThreadId;
use super::state::State;

/// One frame of a stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Frame {
    /// The address in the process: of the next instruction, or of a return.
    pub address: u64,
    /// The file that the code comes from; none for code made at run time.
    pub module: Option<String>,
    /// The address in that file, as its symbol table counts.
    pub offset: u64,
    /// The function, if the file names it, and how far into it the address is.
    pub symbol: Option<(String, u64)>,
}

impl Frame {
    /// The module without its directory.
    #[must_use]
    pub fn module_name(&self) -> Option<&str> {
        self.module.as_deref().map(|path| path.rsplit('/').next().unwrap_or(path))
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.module_name() {
            Some(module) => write!(out, "{module}+{:#x}", self.offset)?,
            None => write!(out, "{:#x}", self.address)?,
        }
        match &self.symbol {
            Some((name, into)) => write!(out, " {name}+{into:#x}"),
            None => Ok(()),
        }
    }
}

/// A stack, innermost frame first. Empty if it could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stack {
    /// The frames, at most [`Stack::FRAMES_MAX`].
    pub frames: Vec<Frame>,
}

impl Stack {
    /// The most frames that are taken.
    pub const FRAMES_MAX: usize = 64;

    /// The module on whose behalf the call was made: the innermost that is neither the C library
    /// nor the loader. For SQLite's calls that is the copy of SQLite.
    #[must_use]
    pub fn origin(&self) -> Option<&str> {
        self.frames
            .iter()
            .filter(|frame| !frame.module_name().is_some_and(is_c_library))
            .find_map(|frame| frame.module.as_deref())
    }
}

impl fmt::Display for Stack {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, frame) in self.frames.iter().enumerate() {
            writeln!(out, "#{index:<2} {frame}")?;
        }
        Ok(())
    }
}

fn is_c_library(name: &str) -> bool {
    const PREFIXES: [&str; 6] =
        ["libc.so", "libc-", "libpthread", "ld-linux", "ld-musl", "libc.musl"];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

impl State {
    /// The stack of a thread that is stopped now.
    pub(super) fn stack(&self, thread: ThreadId) -> Stack {
        let Some(process) = self.threads.get(&thread).map(|record| record.process) else {
            return Stack::default();
        };
        match self.memory(process) {
            Ok(memory) => self.unwinder.borrow_mut().unwind(process, thread, memory),
            Err(_) => Stack::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(module: Option<&str>) -> Frame {
        Frame { address: 0x1234, module: module.map(str::to_owned), offset: 0x34, symbol: None }
    }

    #[test]
    fn origin_is_the_caller_of_the_c_library() {
        let frames = ["/lib/libc.so.6", "/lib/libsqlite3.so.0", "/usr/bin/python3.11"];
        let stack = Stack { frames: frames.map(|module| frame(Some(module))).to_vec() };
        assert_eq!(stack.origin(), Some("/lib/libsqlite3.so.0"));
        assert_eq!(Stack::default().origin(), None);
    }

    #[test]
    fn frame_is_told_by_module_and_offset() {
        let mut told = frame(Some("/lib/libsqlite3.so.0"));
        assert_eq!(told.to_string(), "libsqlite3.so.0+0x34");
        told.symbol = Some(("sqlite3_step".to_owned(), 4));
        assert_eq!(told.to_string(), "libsqlite3.so.0+0x34 sqlite3_step+0x4");
        assert_eq!(frame(None).to_string(), "0x1234");
    }
}
