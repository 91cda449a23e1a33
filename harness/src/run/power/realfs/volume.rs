//! Devices and mounts, and that none of them outlives us.

use super::FileSystem;
use super::device::LoopDevice;
use super::disk::{BlockCut, Told};
use super::serve::ARGV0;
use crate::run::error::RunError;
use crate::run::wait;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the recording disk may take to be there.
const MOUNT_DEADLINE: Duration = Duration::from_secs(10);

/// Gives this thread, and all that it starts from now on, a mount namespace of its own: what is
/// mounted in it is seen by nobody else, and is gone with the last process in it.
pub fn enter_private_namespace() -> Result<(), RunError> {
    let fail = |what| move |errno: nix::Error| RunError::System { what, source: errno.into() };
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
        .map_err(fail("a mount namespace of our own"))?;
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .map_err(fail("making all mounts private"))
}

/// A recording disk with a file system on it.
#[derive(Debug)]
pub struct Stand {
    file_system: FileSystem,
    dir: PathBuf,
    server: Child,
}

impl Stand {
    /// Makes the disk, with its files under `dir`, and an empty file system on it.
    pub fn set_up(file_system: FileSystem, dir: &Path) -> Result<Self, RunError> {
        for place in ["fuse", "volume", "trial"] {
            let place = dir.join(place);
            std::fs::create_dir_all(&place).map_err(|error| RunError::place(&place, error))?;
        }
        let system = |what| move |source| RunError::System { what, source };
        let server = Command::new("/proc/self/exe")
            .arg0(ARGV0)
            .arg(dir.join("fuse"))
            .args([file_system.disk_bytes().to_string(), std::process::id().to_string()])
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(system("starting the recording disk"))?;
        let mut stand = Self { file_system, dir: dir.to_owned(), server };
        stand.await_server()?;
        let device = LoopDevice::over(&stand.file("disk")).map_err(system("a loop device"))?;
        let made = file_system.make().arg(device.path()).output().map_err(system("mkfs"))?;
        if !made.status.success() {
            let words = String::from_utf8_lossy(&made.stderr).into_owned();
            return Err(RunError::System { what: "mkfs", source: io::Error::other(words) });
        }
        Ok(stand)
    }

    fn await_server(&mut self) -> Result<(), RunError> {
        let disk = self.file("disk");
        let deadline = Instant::now() + MOUNT_DEADLINE;
        let server = &mut self.server;
        let mut ended = false;
        wait::until(deadline, || {
            ended = matches!(server.try_wait(), Ok(Some(_)) | Err(_));
            ended || disk.exists()
        });
        if !ended && disk.exists() {
            return Ok(());
        }
        let mut words = "it did not answer in time".to_owned();
        if let Some(stderr) = self.server.stderr.as_mut().filter(|_| ended) {
            words.clear();
            drop(stderr.read_to_string(&mut words));
        }
        Err(RunError::System { what: "the recording disk", source: io::Error::other(words) })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join("fuse").join(name)
    }

    /// Mounts the recorded disk.
    pub(super) fn volume(&self) -> Result<Mounted, RunError> {
        let fail = |source| RunError::System { what: "mounting the recorded disk", source };
        Mounted::new(self.file_system, &self.file("disk"), &self.dir.join("volume")).map_err(fail)
    }

    /// Where to note how far the recorded processes have come.
    pub(super) fn marks(&self) -> Result<File, RunError> {
        let file = self.file("mark");
        OpenOptions::new().write(true).open(&file).map_err(|error| RunError::place(&file, error))
    }

    /// What happened to the disk so far.
    pub(super) fn log(&self) -> Result<Vec<Told>, RunError> {
        let file = self.file("log");
        let mut text = Vec::new();
        File::open(&file)
            .and_then(|mut log| log.read_to_end(&mut text))
            .map_err(|error| RunError::place(&file, error))?;
        serde_json::from_slice(&text).map_err(|error| RunError::place(&file, error.into()))
    }

    /// Cuts the power in thought, and mounts what is left. An error of the mount is the file
    /// system's: it could not recover.
    pub(super) fn cut(&self, cut: &BlockCut) -> Result<io::Result<Mounted>, RunError> {
        let file = self.file("cut");
        let order = serde_json::to_vec(cut).map_err(|e| RunError::place(&file, e.into()))?;
        OpenOptions::new()
            .write(true)
            .open(&file)
            .and_then(|mut file| file.write_all(&order))
            .map_err(|error| RunError::place(&file, error))?;
        Ok(Mounted::new(self.file_system, &self.file("trial"), &self.dir.join("trial")))
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        // The server ends when its file system is unmounted; it is killed if that fails.
        detach(&self.dir.join("fuse"));
        drop(self.server.kill());
        drop(self.server.wait());
    }
}

/// A mounted file system; unmounted when it is dropped.
#[derive(Debug)]
pub(super) struct Mounted {
    at: PathBuf,
    _device: LoopDevice,
}

impl Mounted {
    fn new(file_system: FileSystem, disk: &Path, at: &Path) -> io::Result<Self> {
        let device = LoopDevice::over(disk)?;
        let options = (file_system == FileSystem::Xfs).then_some("nouuid");
        let flags = MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some(device.path()), at, Some(file_system.as_str()), flags, options)?;
        Ok(Self { at: at.to_owned(), _device: device })
    }

    /// Where it is.
    pub(super) fn at(&self) -> &Path {
        &self.at
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if umount2(&self.at, MntFlags::empty()).is_err() {
            // Somebody still looks at it: it goes when they do.
            detach(&self.at);
        }
    }
}

/// Unmounts as soon as nobody uses it any more. That it is not mounted is no failure.
fn detach(at: &Path) {
    match umount2(at, MntFlags::MNT_DETACH) {
        Ok(()) | Err(_) => {}
    }
}
