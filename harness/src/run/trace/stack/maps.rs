//! The memory map of a process, from `/proc/PID/maps`.

use std::fs;

use super::super::ProcessId;
use super::super::files::FileId;

/// One line: a mapping of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) offset: u64,
    pub(super) file: FileId,
    pub(super) path: String,
    /// It holds code.
    pub(super) executable: bool,
}

/// The mappings of files, in the order of their addresses.
pub(super) fn mappings(process: ProcessId) -> Vec<Mapping> {
    let text = fs::read(format!("/proc/{process}/maps")).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().filter_map(parse).collect()
}

/// `start-end perms offset major:minor inode path`, all numbers but the inode in hexadecimal.
fn parse(line: &str) -> Option<Mapping> {
    let mut rest = line;
    let mut field = || {
        let trimmed = rest.trim_start();
        let end = trimmed.find(' ').unwrap_or(trimmed.len());
        let (field, left) = trimmed.split_at(end);
        rest = left;
        field
    };
    let (range, permissions, offset, device, inode) = (field(), field(), field(), field(), field());
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let (start, end) = range.split_once('-')?;
    let (major, minor) = device.split_once(':')?;
    let (major, minor) = (hex(major)?, hex(minor)?);
    let inode = inode.parse().ok().filter(|inode| *inode != 0)?;
    let device = libc::makedev(u32::try_from(major).ok()?, u32::try_from(minor).ok()?);
    Some(Mapping {
        start: hex(start)?,
        end: hex(end)?,
        offset: hex(offset)?,
        file: FileId { device, inode },
        path: rest.trim_start().to_owned(),
        executable: permissions.contains('x'),
    })
}

/// Where a process has mapped the beginning of `file`.
pub(in super::super) fn mapping_of(process: ProcessId, file: FileId) -> Option<u64> {
    // Some file systems show another device here than in stat(2); the inode and the beginning do.
    let all = mappings(process);
    let first = all.iter().filter(|mapping| mapping.offset == 0);
    let exact = first.clone().find(|mapping| mapping.file == file);
    exact
        .or_else(|| first.clone().find(|mapping| mapping.file.inode == file.inode))
        .map(|mapping| mapping.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_with_spaces_in_its_path_is_read() {
        let line = "7f0000000000-7f0000008000 rw-s 00008000 fd:01 1234       /tmp/a b.db-shm";
        let expected = Mapping {
            start: 0x7f00_0000_0000,
            end: 0x7f00_0000_8000,
            offset: 0x8000,
            file: FileId { device: libc::makedev(0xfd, 1), inode: 1234 },
            path: "/tmp/a b.db-shm".to_owned(),
            executable: false,
        };
        assert_eq!(parse(line), Some(expected));
    }

    #[test]
    fn mapping_of_no_file_is_left_out() {
        assert_eq!(parse("7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0      [stack]"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn own_executable_is_found_in_the_own_map() {
        let me = ProcessId(i32::try_from(std::process::id()).unwrap());
        let path = std::env::current_exe().unwrap();
        let found = mappings(me);
        assert!(found.iter().any(|mapping| mapping.path == path.display().to_string()));
    }
}
