//! Building engines and the worker that runs on them, once, into a cache.
//!
//! ```text
//! target/engines/build/             cargo's own
//! target/engines/3.51.1/            libsqlite3.so.0, and what it was built from
//! target/engines/link/              the library that the worker was linked to
//! target/engines/given/DIGEST/      a link to a library that the command line names
//! target/engines/worker             the worker, and worker.from: what it was built from
//! ```
//!
//! SQLite is compiled by the build script of the crate that pins it, as the bundled one is: with
//! the same flags because by the same means. What that gives is linked into a shared library.

use super::EngineError;
use killpoint_worker::wire::EngineName;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The name that the loader looks for.
const LIBRARY: &str = "libsqlite3.so.0";
/// The name that the linker looks for.
const LINK_NAME: &str = "libsqlite3.so";
/// What names a file's origin: its digest stands in it.
const FROM: &str = "from";

/// The cache, held by a lock so that two commands never build the same at once.
#[derive(Debug)]
pub(super) struct Workshop {
    sources: PathBuf,
    cache: PathBuf,
    _lock: File,
}

impl Workshop {
    /// Waits until nobody else builds.
    pub(super) fn enter(tell: &mut dyn FnMut(&str)) -> Result<Self, EngineError> {
        let harness = Path::new(env!("CARGO_MANIFEST_DIR"));
        let sources = harness.parent().unwrap_or(harness).to_owned();
        if !sources.join("harness/worker/Cargo.toml").exists() {
            return Err(EngineError::NoSources { place: sources });
        }
        let cache = sources.join("target/engines");
        make_dir(&cache)?;
        let lock = cache.join("lock");
        let file = File::create(&lock).map_err(at(&lock))?;
        if file.try_lock().is_err() {
            tell("waiting for another killpoint that builds engines");
            file.lock().map_err(at(&lock))?;
        }
        Ok(Self { sources, cache, _lock: file })
    }

    /// The directory of a pinned engine's library, built if need be.
    pub(super) fn library(
        &self,
        name: EngineName,
        tell: &mut dyn FnMut(&str),
    ) -> Result<PathBuf, EngineError> {
        let dir = self.cache.join(name.as_str());
        let package = self.package(name);
        let digest = digest_of(&[package.join("Cargo.toml"), package.join("Cargo.lock")])?;
        if is_from(&dir.join(FROM), &digest) && dir.join(LIBRARY).exists() {
            return Ok(dir);
        }
        tell(&format!("building SQLite {}: a minute, once", name.as_str()));
        let archive = self.compile(name, &package)?;
        make_dir(&dir)?;
        let library = dir.join(LIBRARY);
        let mut link = Command::new("cc");
        link.arg("-shared").arg("-o").arg(&library);
        link.arg(format!("-Wl,-soname,{LIBRARY}"));
        link.arg("-Wl,--whole-archive").arg(&archive).arg("-Wl,--no-whole-archive");
        link.args(["-lm", "-ldl", "-lpthread"]);
        run(&mut link, &format!("SQLite {}", name.as_str()))?;
        write(&dir.join(FROM), &digest)?;
        Ok(dir)
    }

    /// Has cargo compile a pinned SQLite, and gives the archive that its build script made.
    fn compile(&self, name: EngineName, package: &Path) -> Result<PathBuf, EngineError> {
        let what = format!("SQLite {}", name.as_str());
        let mut build = self.cargo();
        build.args(["--message-format", "json", "--manifest-path"]);
        build.arg(package.join("Cargo.toml"));
        let told = run(&mut build, &what)?;
        let told = String::from_utf8_lossy(&told.stdout);
        let archive = told
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter(|line| line["reason"] == "build-script-executed")
            .filter_map(|line| Some(Path::new(line["out_dir"].as_str()?).join("libsqlite3.a")))
            .find(|archive| archive.exists());
        archive.ok_or_else(|| EngineError::Build {
            what,
            message: "cargo named no libsqlite3.a".to_owned(),
        })
    }

    /// A directory in which a library that the command line names has the name that is looked for.
    pub(super) fn given(&self, file: &Path) -> Result<PathBuf, EngineError> {
        let fail = |source| EngineError::Given { path: file.to_owned(), source };
        let file = file.canonicalize().map_err(fail)?;
        let bytes = std::fs::read(&file).map_err(fail)?;
        let digest = blake3::hash(&bytes).to_hex();
        let dir = self.cache.join("given").join(&digest.as_str()[..16]);
        make_dir(&dir)?;
        link(&file, &dir.join(LIBRARY))?;
        Ok(dir)
    }

    /// The worker, built if need be: linked to the library in `libraries`, or to the machine's own.
    pub(super) fn worker(
        &self,
        libraries: Option<&Path>,
        tell: &mut dyn FnMut(&str),
    ) -> Result<PathBuf, EngineError> {
        let worker = self.cache.join("worker");
        let from = self.cache.join("worker.from");
        let digest = self.worker_digest()?;
        if is_from(&from, &digest) && worker.exists() {
            return Ok(worker);
        }
        tell("building the worker for other engines: a minute, once");
        let library = match libraries {
            Some(dir) => dir.join(LIBRARY),
            None => system_library()?,
        };
        let link_dir = self.cache.join("link");
        make_dir(&link_dir)?;
        link(&library, &link_dir.join(LINK_NAME))?;
        let mut build = self.cargo();
        build.args(["--package", "killpoint-worker", "--bin", "killpoint-worker"]);
        build.args(["--no-default-features", "--features", "shared-engine"]);
        build.current_dir(&self.sources);
        build.env("SQLITE3_LIB_DIR", &link_dir).env("SQLITE3_INCLUDE_DIR", &link_dir);
        build.env("SQLITE3_NO_PKG_CONFIG", "1").env_remove("SQLITE3_STATIC");
        run(&mut build, "the worker for other engines")?;
        let made = self.cache.join("build/release/killpoint-worker");
        // A new file in place of the old one: a worker that still runs keeps its own.
        let new = self.cache.join("worker.new");
        std::fs::copy(&made, &new).map_err(at(&made))?;
        std::fs::rename(&new, &worker).map_err(at(&worker))?;
        write(&from, &digest)?;
        Ok(worker)
    }

    /// The worker and an engine's libraries, if both are there and of today.
    pub(super) fn built(&self, name: EngineName) -> Option<(PathBuf, Option<PathBuf>)> {
        let worker = self.cache.join("worker");
        let digest = self.worker_digest().ok()?;
        let fresh = is_from(&self.cache.join("worker.from"), &digest) && worker.exists();
        if !fresh {
            return None;
        }
        if name == EngineName::System {
            return Some((worker, None));
        }
        let (package, dir) = (self.package(name), self.cache.join(name.as_str()));
        let digest = digest_of(&[package.join("Cargo.toml"), package.join("Cargo.lock")]).ok()?;
        let fresh = is_from(&dir.join(FROM), &digest) && dir.join(LIBRARY).exists();
        fresh.then_some((worker, Some(dir)))
    }

    fn package(&self, name: EngineName) -> PathBuf {
        self.sources.join("harness/engines").join(name.as_str())
    }

    /// `cargo build`, apart from any other build.
    fn cargo(&self) -> Command {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.args(["build", "--release", "--locked", "--target-dir"]);
        command.arg(self.cache.join("build"));
        command
    }

    /// What the worker is made of: the sources of the store and the worker, and the lock file.
    fn worker_digest(&self) -> Result<String, EngineError> {
        let mut files = vec![self.sources.join("Cargo.toml"), self.sources.join("Cargo.lock")];
        files.push(self.sources.join("harness/worker/Cargo.toml"));
        for dir in ["src", "harness/worker/src"] {
            sources_in(&self.sources.join(dir), &mut files)?;
        }
        files.sort();
        digest_of(&files)
    }
}

fn sources_in(dir: &Path, files: &mut Vec<PathBuf>) -> Result<(), EngineError> {
    for entry in std::fs::read_dir(dir).map_err(at(dir))? {
        let path = entry.map_err(at(dir))?.path();
        if path.is_dir() {
            sources_in(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

fn digest_of(files: &[PathBuf]) -> Result<String, EngineError> {
    let mut hasher = blake3::Hasher::new();
    for file in files {
        let bytes = std::fs::read(file).map_err(at(file))?;
        hasher.update(file.as_os_str().as_encoded_bytes());
        hasher.update(&bytes.len().to_le_bytes());
        hasher.update(&bytes);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn is_from(file: &Path, digest: &str) -> bool {
    std::fs::read_to_string(file).is_ok_and(|text| text == digest)
}

/// Runs a builder to its end.
fn run(command: &mut Command, what: &str) -> Result<Output, EngineError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| EngineError::NoTool { program, source })?;
    if output.status.success() {
        return Ok(output);
    }
    Err(EngineError::Build { what: what.to_owned(), message: complaint(&output.stderr) })
}

/// The line of a builder's output that says what went wrong.
fn complaint(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let cause = text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("");
    let first = text.lines().map(str::trim).find(|line| line.starts_with("error"));
    match first {
        Some(first) if first != cause => format!("{first}: {cause}"),
        _ => cause.to_owned(),
    }
}

/// The machine's own library, where the loader's cache or custom has it.
fn system_library() -> Result<PathBuf, EngineError> {
    let listed = ["/sbin/ldconfig", "/usr/sbin/ldconfig"]
        .iter()
        .find_map(|program| Command::new(program).arg("-p").output().ok())
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    let cached = listed
        .lines()
        .filter(|line| line.trim_start().starts_with(LIBRARY))
        .filter_map(|line| Some(PathBuf::from(line.split_once("=> ")?.1.trim())));
    let multiarch = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let usual = [multiarch.as_str(), "/usr/lib64", "/usr/lib", "/lib64", "/lib", "/usr/local/lib"];
    let usual = usual.iter().map(|dir| Path::new(dir).join(LIBRARY));
    cached.chain(usual).find(|file| file.exists()).ok_or(EngineError::NoSystem)
}

fn link(to: &Path, name: &Path) -> Result<(), EngineError> {
    match std::fs::remove_file(name) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(at(name)(error)),
        _ => {}
    }
    std::os::unix::fs::symlink(to, name).map_err(at(name))
}

fn make_dir(dir: &Path) -> Result<(), EngineError> {
    std::fs::create_dir_all(dir).map_err(at(dir))
}

fn write(file: &Path, text: &str) -> Result<(), EngineError> {
    std::fs::write(file, text).map_err(at(file))
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> EngineError + use<> {
    let path = path.to_owned();
    move |source| EngineError::Place { path, source }
}
