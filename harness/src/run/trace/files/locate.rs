//! Paths and descriptors of another process, seen through `/proc`.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::super::ProcessId;
use super::super::operation::PathArgument;
use super::FileId;

/// The identity of an inode.
pub(super) fn id_of(metadata: &Metadata) -> FileId {
    FileId { device: metadata.dev(), inode: metadata.ino() }
}

/// The magic link to a descriptor.
pub(in super::super) fn link_of(process: ProcessId, fd: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{process}/fd/{fd}"))
}

/// The path that a descriptor was opened by, as it is called now. A removed file keeps its name.
pub(super) fn path_of(process: ProcessId, fd: i32) -> io::Result<PathBuf> {
    let path = fs::read_link(link_of(process, fd))?;
    let gone = path.as_os_str().as_bytes().strip_suffix(b" (deleted)");
    Ok(match gone {
        Some(name) => PathBuf::from(std::ffi::OsStr::from_bytes(name)),
        None => path,
    })
}

/// The way to a path argument from here: through the victim's root, working directory, or
/// descriptor.
fn way_to(process: ProcessId, argument: &PathArgument) -> PathBuf {
    if let Ok(inner) = argument.path.strip_prefix("/") {
        Path::new(&format!("/proc/{process}/root")).join(inner)
    } else if argument.directory == libc::AT_FDCWD {
        Path::new(&format!("/proc/{process}/cwd")).join(&argument.path)
    } else {
        link_of(process, argument.directory).join(&argument.path)
    }
}

/// The file that a path argument names. With `follow`, a symbolic link at its end is followed.
pub(in super::super) fn file_at(
    process: ProcessId,
    argument: &PathArgument,
    follow: bool,
) -> io::Result<(FileId, Metadata)> {
    let way = way_to(process, argument);
    let metadata = if follow { fs::metadata(way) } else { fs::symlink_metadata(way) }?;
    Ok((id_of(&metadata), metadata))
}

/// Where the next read of a descriptor begins, or with `appends` its next write.
pub(in super::super) fn effective_position(
    process: ProcessId,
    fd: i32,
    appends: bool,
) -> Option<u64> {
    let info = fs::read_to_string(format!("/proc/{process}/fdinfo/{fd}")).ok()?;
    let field = |name| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let flags = i32::from_str_radix(field("flags:")?, 8).unwrap_or(0);
    if appends && flags & libc::O_APPEND != 0 {
        return Some(file_bytes(process, fd));
    }
    field("pos:")?.parse().ok()
}

/// The present size of an open file in bytes; 0 if it cannot be told.
pub(in super::super) fn file_bytes(process: ProcessId, fd: i32) -> u64 {
    fs::metadata(link_of(process, fd)).map_or(0, |metadata| metadata.len())
}

/// A path argument as one absolute path without links in its directory part.
pub(in super::super) fn display_path(process: ProcessId, argument: &PathArgument) -> PathBuf {
    let way = way_to(process, argument);
    match (way.parent().map(fs::canonicalize), way.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => argument.path.clone(),
    }
}
