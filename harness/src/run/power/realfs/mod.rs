//! Power cuts under a real file system: what it leaves is recovered, judged, and compared with what
//! the crash models say it may leave.
//!
//! The database lies on a file system on a loop device over a [recording disk](serve), and the
//! processes are recorded as for the models, so that it is known which of their calls had been made
//! when a block was written. A cut makes a disk of what was flushed and a part of what was not;
//! that disk is mounted, which runs the file system's own journal recovery, and the database's
//! files are read from it.
//!
//! Needs root. All mounts are made in a mount namespace of our own, and devices go with whoever
//! holds them: nothing is left behind, however this ends.

mod device;
mod disk;
pub mod serve;
mod trials;
mod volume;

pub use trials::{Asked, Seen, Tried, try_cuts};
pub use volume::{Stand, enter_private_namespace};

use std::fmt;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;

/// A file system that can be put under a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileSystem {
    /// With its default mode, `data=ordered`.
    Ext4,
    /// With its defaults.
    Xfs,
    /// With its defaults.
    Btrfs,
}

impl FileSystem {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    /// As the kernel calls it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// Bytes of a small one: each has a least size of its own.
    fn disk_bytes(self) -> u64 {
        match self {
            Self::Ext4 => 64 << 20,
            Self::Xfs => 320 << 20,
            Self::Btrfs => 160 << 20,
        }
    }

    /// What makes one on a device: quickly, and without discarding.
    fn make(self) -> Command {
        let mut command = Command::new(self.maker());
        match self {
            Self::Ext4 => command.args([
                "-q",
                "-F",
                "-b",
                "4096",
                "-E",
                "nodiscard,lazy_itable_init=0,lazy_journal_init=0",
            ]),
            Self::Xfs => command.args(["-q", "-f", "-K"]),
            Self::Btrfs => command.args(["-q", "-f", "-K"]),
        };
        command
    }

    fn maker(self) -> String {
        format!("mkfs.{}", self.as_str())
    }

    /// Whether a sync of one file also makes durable all changes of names before it, as the model
    /// `ordered` says. Btrfs logs the one file alone.
    #[must_use]
    pub fn is_ordered(self) -> bool {
        self != Self::Btrfs
    }

    /// What stands in the way of using it here; none if nothing does.
    #[must_use]
    pub fn obstacle(self) -> Option<String> {
        if !nix::unistd::geteuid().is_root() {
            return Some("mounting needs root".to_owned());
        }
        for device in ["/dev/fuse", "/dev/loop-control"] {
            if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open(device) {
                return Some(format!("{device}: {error}"));
            }
        }
        let maker = self.maker();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
        if !places.into_iter().any(|place| place.join(&maker).is_file()) {
            return Some(format!("{maker} is not installed"));
        }
        let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        let there = known.split_whitespace().any(|name| name == self.as_str());
        // It may still be a module that the kernel loads when it is asked for.
        let module = Path::new("/lib/modules").is_dir();
        (!there && !module).then(|| format!("this kernel has no {self}"))
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for FileSystem {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|known| known.as_str() == text);
        found.ok_or_else(|| "there are ext4, xfs and btrfs".to_owned())
    }
}
