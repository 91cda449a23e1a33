//! Walks the stack of a stopped thread.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::rc::Rc;

use framehop::{CacheNative, FrameAddress, MayAllocateDuringUnwind, Unwinder as _, UnwinderNative};

use super::super::arch;
use super::super::files::FileId;
use super::super::memory::Memory;
use super::super::{ProcessId, ThreadId};
use super::maps::{Mapping, mappings};
use super::module::{Elf, Slice};
use super::{Frame, Stack};

/// How much of the stack is read at once, in bytes. What lies further up is read word by word.
const STACK_BYTES: usize = 16 * 1024;

/// The largest file that is read as a module, in bytes.
const MODULE_BYTES_MAX: u64 = 512 << 20;

/// Unwinds stacks of any number of processes.
#[derive(Default)]
pub(in super::super) struct Unwinder {
    files: HashMap<(FileId, String), Rc<Elf>>,
    processes: HashMap<ProcessId, Known>,
    cache: CacheNative<MayAllocateDuringUnwind>,
}

/// The modules of one process.
struct Known {
    unwinder: UnwinderNative<Slice, MayAllocateDuringUnwind>,
    modules: Vec<Mapped>,
}

/// One module where it is mapped.
struct Mapped {
    start: u64,
    end: u64,
    bias: u64,
    path: String,
    elf: Rc<Elf>,
}

impl fmt::Debug for Unwinder {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Unwinder").field("files", &self.files.len()).finish_non_exhaustive()
    }
}

impl Unwinder {
    /// Forgets a process that has ended or executed another program.
    pub(in super::super) fn forget(&mut self, process: ProcessId) {
        self.processes.remove(&process);
    }

    /// The stack of a thread that is stopped.
    pub(in super::super) fn unwind(
        &mut self,
        process: ProcessId,
        thread: ThreadId,
        memory: &Memory,
    ) -> Stack {
        let fresh = !self.processes.contains_key(&process);
        if fresh {
            self.learn(process);
        }
        let stack = self.walk(process, thread, memory);
        // A library loaded since then: look at the map once more.
        if !fresh && stack.frames.iter().any(|frame| frame.module.is_none()) {
            self.learn(process);
            return self.walk(process, thread, memory);
        }
        stack
    }

    /// Reads the map of a process and the files that it names.
    fn learn(&mut self, process: ProcessId) {
        let all = mappings(process);
        // Only files with code in them are opened: never one of a database, mapped or not.
        let code: HashSet<_> =
            all.iter().filter(|m| m.executable).map(|m| m.path.as_str()).collect();
        let mut modules: Vec<Mapped> = Vec::new();
        for mapping in all.iter().filter(|mapping| code.contains(mapping.path.as_str())) {
            let last = modules.last_mut().filter(|last| last.path == mapping.path);
            if let Some(last) = last {
                last.end = mapping.end;
                continue;
            }
            let Some(elf) = self.file(process, mapping) else { continue };
            let Some(bias) = elf.bias(mapping.start, mapping.offset) else { continue };
            let (start, end, path) = (mapping.start, mapping.end, mapping.path.clone());
            modules.push(Mapped { start, end, bias, path, elf });
        }
        let mut unwinder = UnwinderNative::new();
        for module in &modules {
            let range = module.start..module.end;
            unwinder.add_module(module.elf.module(&module.path, range, module.bias));
        }
        self.processes.insert(process, Known { unwinder, modules });
    }

    fn file(&mut self, process: ProcessId, mapping: &Mapping) -> Option<Rc<Elf>> {
        let key = (mapping.file, mapping.path.clone());
        if let Some(elf) = self.files.get(&key) {
            return Some(Rc::clone(elf));
        }
        let path = format!("/proc/{process}/root{}", mapping.path);
        let size = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?.len();
        if size > MODULE_BYTES_MAX {
            return None;
        }
        let elf = Rc::new(Elf::new(fs::read(&path).ok()?));
        self.files.insert(key, Rc::clone(&elf));
        Some(elf)
    }

    fn walk(&mut self, process: ProcessId, thread: ThreadId, memory: &Memory) -> Stack {
        let Some(known) = self.processes.get(&process) else { return Stack::default() };
        let Ok(start) = arch::unwind_start(thread.0) else { return Stack::default() };
        let mut chunk = vec![0; STACK_BYTES];
        let bytes = memory.read_some(start.sp, &mut chunk);
        chunk.truncate(bytes);
        let mut read = |address: u64| {
            let at = address.checked_sub(start.sp).and_then(|at| usize::try_from(at).ok());
            let near = at.and_then(|at| chunk.get(at..at.checked_add(8)?));
            match near.and_then(|word| word.try_into().ok()) {
                Some(word) => Ok(u64::from_ne_bytes(word)),
                None => memory.word(address).map_err(|_| ()),
            }
        };
        let mut frames = Vec::new();
        let mut walk =
            known.unwinder.iter_frames(start.pc, start.registers, &mut self.cache, &mut read);
        while let (Ok(Some(frame)), true) = (walk.next(), frames.len() < Stack::FRAMES_MAX) {
            frames.push(known.describe(frame));
        }
        Stack { frames }
    }
}

impl Known {
    fn describe(&self, frame: FrameAddress) -> Frame {
        // A return address may be the first byte behind its function: look up the call instead.
        let (address, lookup) = (frame.address(), frame.address_for_lookup());
        let module = self.modules.iter().find(|m| (m.start..m.end).contains(&lookup));
        let Some(module) = module else {
            return Frame { address, module: None, offset: 0, symbol: None };
        };
        let behind = address - lookup;
        let symbol = module.elf.symbol(lookup.wrapping_sub(module.bias));
        Frame {
            address,
            module: Some(module.path.clone()),
            offset: address.wrapping_sub(module.bias),
            symbol: symbol.map(|(name, into)| (name, into + behind)),
        }
    }
}
