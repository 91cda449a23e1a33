//! Loop devices that are gone with whoever holds them.
#![expect(
    unsafe_code,
    reason = "a loop device is had by ioctl(2) with a structure of the kernel's"
)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

/// `LOOP_CTL_GET_FREE`, `LOOP_CONFIGURE` and `LO_FLAGS_AUTOCLEAR` of `linux/loop.h`.
const GET_FREE: libc::c_ulong = 0x4C82;
const CONFIGURE: libc::c_ulong = 0x4C0A;
const AUTOCLEAR: u32 = 4;

/// How often a free device is asked for: another process may take it first.
const TRIES: u32 = 20;

/// `struct loop_info64`.
#[repr(C)]
struct Info {
    numbers: [u64; 5],
    number: u32,
    encryption: [u32; 2],
    flags: u32,
    names: [u8; 160],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Configuration {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// A block device over a file. The kernel takes it away when it is neither held here nor mounted.
#[derive(Debug)]
pub(super) struct LoopDevice {
    path: PathBuf,
    _held: File,
}

impl LoopDevice {
    /// One over `file`.
    pub(super) fn over(file: &Path) -> io::Result<Self> {
        let backing = OpenOptions::new().read(true).write(true).open(file)?;
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for _ in 0..TRIES {
            // SAFETY: this request takes no argument, and gives a number.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), GET_FREE) };
            if number < 0 {
                return Err(io::Error::last_os_error());
            }
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = OpenOptions::new().read(true).write(true).open(&path)?;
            match configure(&device, &backing) {
                Ok(()) => return Ok(Self { path, _held: device }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// `/dev/loop3`.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn configure(device: &File, backing: &File) -> io::Result<()> {
    let info = Info {
        numbers: [0; 5],
        number: 0,
        encryption: [0; 2],
        flags: AUTOCLEAR,
        names: [0; 160],
        init: [0; 2],
    };
    let fd = u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?;
    let configuration = Configuration { fd, block_size: 512, info, reserved: [0; 8] };
    // SAFETY: the structure is laid out as the kernel's is, and is only read, during the call.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE, &raw const configuration) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
