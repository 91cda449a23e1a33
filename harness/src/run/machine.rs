//! The machine that a run ran on: what a reader needs to weigh its figures.

use rustix::fs::statfs;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The machine, and the file system that the databases lay on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// `Linux 6.12.0`.
    pub kernel: String,
    /// `x86_64`.
    pub arch: String,
    /// As /proc/cpuinfo has it.
    pub cpu: String,
    /// Processors that this process may use.
    pub cores: usize,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// `ext4`, `tmpfs`, or a number in hexadecimal.
    pub file_system: String,
}

impl Machine {
    /// This machine, with the file system under `dir`.
    #[must_use]
    pub fn here(dir: &Path) -> Self {
        let name = rustix::system::uname();
        let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
        Self {
            kernel: format!("{} {}", text(name.sysname()), text(name.release())),
            arch: text(name.machine()),
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            cores: cores(),
            memory_mib: field("/proc/meminfo", "MemTotal")
                .and_then(|text| text.split(' ').next()?.parse::<u64>().ok())
                .map_or(0, |kib| kib / 1024),
            file_system: file_system(dir),
        }
    }
}

/// Processors that this process may use.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Bytes that can still be written under `dir`; none if the system does not say.
#[must_use]
pub fn free_bytes(dir: &Path) -> Option<u64> {
    let there = statfs(dir).ok()?;
    Some(there.f_bavail.saturating_mul(there.f_bsize.unsigned_abs()))
}

/// The most memory that this process and its children have had at once, MiB, each for itself.
#[must_use]
pub fn peak_memory_mib() -> [u64; 2] {
    use nix::sys::resource::{UsageWho, getrusage};
    [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN]
        .map(|who| getrusage(who).map_or(0, |usage| usage.max_rss().unsigned_abs() / 1024))
}

fn field(file: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Magic numbers of `statfs(2)`.
fn file_system(dir: &Path) -> String {
    let Ok(there) = statfs(dir) else { return "unknown".to_owned() };
    let name = match there.f_type {
        0xEF53 => "ext4",
        0x0102_1994 => "tmpfs",
        0x5846_5342 => "xfs",
        0x9123_683E => "btrfs",
        0x794C_7630 => "overlay",
        0x2FC1_2FC1 => "zfs",
        0x6969 => "nfs",
        0x6573_5546 => "fuse",
        0x0102_1997 => "9p",
        other => return format!("{other:#x}"),
    };
    name.to_owned()
}
