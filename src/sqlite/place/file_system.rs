//! Which file system a database lies on, and whether SQLite's log can work there.
//!
//! In WAL mode all processes share memory that is mapped from the `-shm` file, and locks on its
//! bytes (SQLite documentation, *Write-Ahead Logging*, section 8). A file system that passes
//! either through a network or a host shows different processes different bytes.
//!
//! In: a path. Out: a [`FileSystem`]. Nothing is opened.

use std::io;
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::statfs;
use rustix::system::uname;
use serde::Serialize;

/// What a file system is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fitness {
    /// A disk of this machine.
    Local,
    /// Known by no name here. The trial of locks and memory decides.
    Unknown,
    /// Everything is gone with the power.
    Memory,
    /// A layer over another; fit as long as the database was made on the upper one.
    Layer,
    /// Other machines, a host or a program are behind it.
    Shared,
}

/// A file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FileSystem {
    /// Its name; `unknown` for those that are not in the list.
    pub name: &'static str,
    /// What it is good for.
    pub fitness: Fitness,
}

/// What a file's time of change is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimeOfChange {
    /// A change after a look has another time than the look saw.
    Exact,
    /// The same, unless both are within one tick of the kernel's clock.
    Ticks,
    /// Nothing is known.
    Unknown,
}

/// Names by the number that `statfs` gives (Linux, `linux/magic.h` and the sources of each).
const KNOWN: [(i64, &str, Fitness); 25] = [
    (0xEF53, "ext4", Fitness::Local),
    (0x5846_5342, "xfs", Fitness::Local),
    (0x9123_683E, "btrfs", Fitness::Local),
    (0x2FC1_2FC1, "zfs", Fitness::Local),
    (0xF2F5_2010, "f2fs", Fitness::Local),
    (0xCA45_1A4E, "bcachefs", Fitness::Local),
    (0x4d44, "vfat", Fitness::Local),
    (0x2011_BAB0, "exfat", Fitness::Local),
    (0x0102_1994, "tmpfs", Fitness::Memory),
    (0x8584_58f6, "ramfs", Fitness::Memory),
    (0x794c_7630, "overlay", Fitness::Layer),
    (0x6969, "nfs", Fitness::Shared),
    (0x517B, "smb", Fitness::Shared),
    (0xFF53_4D42, "cifs", Fitness::Shared),
    (0xFE53_4D42, "smb2", Fitness::Shared),
    (0x0102_1997, "9p", Fitness::Shared),
    // virtiofs has the number of FUSE.
    (0x6573_5546, "fuse", Fitness::Shared),
    (0x5346_414F, "afs", Fitness::Shared),
    (0x00c3_6400, "ceph", Fitness::Shared),
    (0x7375_7245, "coda", Fitness::Shared),
    (0x7461_636f, "ocfs2", Fitness::Shared),
    (0x0116_1970, "gfs2", Fitness::Shared),
    (0x0BD0_0BD0, "lustre", Fitness::Shared),
    (0x4750_4653, "gpfs", Fitness::Shared),
    (0x786f_4256, "vboxsf", Fitness::Shared),
];

impl FileSystem {
    /// How a later change of a file, a new name or a lost one included, is told by its time of
    /// change (`ctime`): each file system below sets it at every such change (its `rename`, in the
    /// sources of Linux).
    pub(crate) fn time_of_change(self) -> TimeOfChange {
        match self.name {
            // The time is exact for whoever asked for it before (`multigrain-ts.rst` of Linux).
            "ext4" | "xfs" | "btrfs" | "tmpfs" if kernel_is_at_least(6, 13) => TimeOfChange::Exact,
            "ext4" | "xfs" | "btrfs" | "f2fs" | "tmpfs" => TimeOfChange::Ticks,
            _ => TimeOfChange::Unknown,
        }
    }

    /// That of the directory which holds the file.
    pub(crate) fn of(place: &Path) -> io::Result<Self> {
        let number = statfs(place.parent().unwrap_or(place))?.f_type;
        // The field's type differs among machines; the numbers have 32 bits.
        #[allow(clippy::useless_conversion, reason = "it is not i64 on every machine")]
        Ok(Self::by_number(i64::from(number) & 0xffff_ffff))
    }

    fn by_number(number: i64) -> Self {
        KNOWN
            .iter()
            .find(|(known, ..)| *known == number)
            .map_or(Self { name: "unknown", fitness: Fitness::Unknown }, |(_, name, fitness)| {
                Self { name, fitness: *fitness }
            })
    }

    /// What there is to say to somebody who puts a database there; `None`: nothing.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let name = self.name;
        match self.fitness {
            Fitness::Local => None,
            Fitness::Unknown => Some("the file system is not known here".to_owned()),
            Fitness::Memory => Some(format!("{name} lies in memory: a power cut takes all of it")),
            Fitness::Layer => Some(format!("{name} is a layer: keep the board in a volume")),
            Fitness::Shared => Some(format!("{name} is shared with other machines or a host")),
        }
    }
}

/// Whether the running kernel is of that version or a later one.
fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    static VERSION: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    let version = VERSION.get_or_init(|| {
        let system = uname();
        let mut numbers = system.release().to_str().ok()?.split(['.', '-', '+']);
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    });
    version.is_some_and(|version| version >= (major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_system_of_a_place_is_told_by_its_name() {
        let name = |path: &str| FileSystem::of(Path::new(path)).unwrap().name;
        assert_eq!(name("/dev/shm/any.db"), "tmpfs");
        assert_ne!(name("/proc/any.db"), "ext4");
        assert!(FileSystem::of(Path::new("/no/such/place/any.db")).is_err());
    }

    #[test]
    fn what_is_behind_a_network_or_a_host_is_shared_and_each_number_is_one_name() {
        for number in [0x6969, 0x0102_1997, 0x6573_5546, 0xFF53_4D42] {
            assert_eq!(FileSystem::by_number(number).fitness, Fitness::Shared, "{number:x}");
        }
        assert_eq!(FileSystem::by_number(1).fitness, Fitness::Unknown);
        for (index, (number, ..)) in KNOWN.iter().enumerate() {
            assert!(KNOWN[..index].iter().all(|(other, ..)| other != number), "{number:x}");
        }
    }
}
