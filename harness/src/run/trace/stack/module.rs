//! One ELF file that a process has mapped: its unwind tables and its symbols.

use std::cell::OnceCell;
use std::ops::{Deref, Range};
use std::rc::Rc;

use framehop::{ExplicitModuleSectionInfo, Module};
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

/// A part of a file that was read whole.
#[derive(Clone, Debug, Default)]
pub(super) struct Slice {
    file: Rc<Vec<u8>>,
    range: Range<usize>,
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.file[self.range.clone()]
    }
}

/// An ELF file.
#[derive(Debug)]
pub(super) struct Elf {
    file: Rc<Vec<u8>>,
    symbols: OnceCell<Vec<Symbol>>,
}

#[derive(Debug)]
struct Symbol {
    address: u64,
    length: u64,
    name: String,
}

impl Elf {
    pub(super) fn new(file: Vec<u8>) -> Self {
        Self { file: Rc::new(file), symbols: OnceCell::new() }
    }

    /// What is to be added to an address of the file to get that in memory, if the byte at `offset`
    /// of the file is mapped to `start`.
    pub(super) fn bias(&self, start: u64, offset: u64) -> Option<u64> {
        let elf = self.parse()?;
        let endian = elf.endian();
        let segments = elf.elf_program_headers().iter();
        segments.filter(|segment| segment.p_type(endian) == object::elf::PT_LOAD).find_map(
            |segment| {
                // The mapping begins at the page that the segment begins in.
                let (at, length) = (segment.p_offset(endian), segment.p_filesz(endian));
                let first = at & !0xfff;
                (first..at + length)
                    .contains(&offset)
                    .then(|| start.wrapping_sub(segment.p_vaddr(endian).wrapping_sub(at)))
                    .map(|base| base.wrapping_sub(offset))
            },
        )
    }

    /// The module for the unwinder, as mapped at `range` with `bias`.
    pub(super) fn module(&self, path: &str, range: Range<u64>, bias: u64) -> Module<Slice> {
        let elf = self.parse();
        let section = |name: &str| {
            let section = elf.as_ref()?.section_by_name(name)?;
            let (at, length) = section.file_range()?;
            let at = usize::try_from(at).ok()?;
            let end = at.checked_add(usize::try_from(length).ok()?)?;
            let address = section.address();
            let data = Slice { file: Rc::clone(&self.file), range: at..end };
            (end <= self.file.len()).then_some((address..address + section.size(), data))
        };
        let (text, eh_frame, eh_frame_hdr, got) =
            (section(".text"), section(".eh_frame"), section(".eh_frame_hdr"), section(".got"));
        let parts = |section: Option<(Range<u64>, Slice)>| section.unzip();
        let (text_svma, text) = parts(text);
        let (eh_frame_svma, eh_frame) = parts(eh_frame);
        let (eh_frame_hdr_svma, eh_frame_hdr) = parts(eh_frame_hdr);
        let sections = ExplicitModuleSectionInfo {
            base_svma: 0,
            text_svma,
            text,
            got_svma: got.map(|(range, _)| range),
            eh_frame_svma,
            eh_frame,
            eh_frame_hdr_svma,
            eh_frame_hdr,
            ..ExplicitModuleSectionInfo::default()
        };
        Module::new(path.to_owned(), range, bias, sections)
    }

    /// The function that the file has at `address`, and how far into it that is.
    pub(super) fn symbol(&self, address: u64) -> Option<(String, u64)> {
        let symbols = self.symbols.get_or_init(|| self.read_symbols());
        let behind = symbols.partition_point(|symbol| symbol.address <= address);
        let symbol = symbols.get(behind.checked_sub(1)?)?;
        let into = address - symbol.address;
        let inside = into < symbol.length;
        inside.then(|| (format!("{:#}", rustc_demangle::demangle(&symbol.name)), into))
    }

    fn read_symbols(&self) -> Vec<Symbol> {
        let Some(elf) = self.parse() else { return Vec::new() };
        let mut symbols: Vec<_> = elf
            .symbols()
            .chain(elf.dynamic_symbols())
            .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
            .filter_map(|symbol| {
                let name = symbol.name().ok()?.to_owned();
                Some(Symbol { address: symbol.address(), length: symbol.size(), name })
            })
            .collect();
        symbols.sort_by_key(|symbol| symbol.address);
        symbols
    }

    fn parse(&self) -> Option<ElfFile64<'_>> {
        ElfFile64::parse(self.file.as_slice()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_functions_are_named() {
        let elf = Elf::new(std::fs::read(std::env::current_exe().unwrap()).unwrap());
        let symbols = elf.read_symbols();
        let here = symbols.iter().find(|symbol| symbol.name.contains("own_functions_are_named"));
        let here = here.unwrap();
        let (name, into) = elf.symbol(here.address + 1).unwrap();
        assert!(name.contains("module::tests::own_functions_are_named"), "{name}");
        assert_eq!(into, 1);
    }

    #[test]
    fn file_that_is_no_elf_has_no_symbols_and_no_bias() {
        let elf = Elf::new(b"no such thing".to_vec());
        assert_eq!(elf.symbol(1), None);
        assert_eq!(elf.bias(0x1000, 0), None);
    }
}
