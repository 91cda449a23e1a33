//! Having processes recorded: workers that perform a script, or any command.

use super::image::Content;
use super::model::Model;
use super::record::{CALLS, Recorder, name_of, start_files};
use super::recording::{Board, Entry, Header, Recording, StartFile};
use crate::history::Line;
use crate::run::engine::Engines;
use crate::run::error::RunError;
use crate::run::exec::ACK_FD;
use crate::run::sweep::{self, with_suffix};
use crate::run::trace::{
    Command, Databases, Exit, FdUse, FileId, Options, ProcessId, Run, RunEnd, Supervisor,
};
use crate::run::{crew, life, probe};
use crate::scenario::Setting;
use crate::scenario::power::{Profile, Script};
use crate::scenario::sweep as shape;
use hardboard::Durability;
use killpoint_worker::SOLO;
use killpoint_worker::ledger::Ledger;
use killpoint_worker::wire;
use std::ffi::OsString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a recorded run of workers may take.
const DEADLINE: Duration = Duration::from_mins(5);
/// The number of the descriptor that takes acknowledgements.
const ACK_NUMBER: i32 = 9;
/// How long a lock is waited for: every stop of all the others lies in between.
const BUSY_TIMEOUT_MS: u32 = 60_000;

/// A command that is to be recorded.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Program and arguments.
    pub command: Vec<OsString>,
    /// How many run at once.
    pub copies: u32,
    /// Where they run.
    pub dir: PathBuf,
    /// Their database.
    pub database: PathBuf,
    /// Asks for a token.
    pub check_sql: Option<String>,
    /// What an acknowledgement promises that says nothing of its own.
    pub promise: Durability,
    /// How long it may take.
    pub deadline: Duration,
}

/// Makes a database in `dir` and records what the processes of `script` do to it.
///
/// Runs on a thread of its own: a supervisor's thread may have no other children.
pub fn record_script(
    subject: &str,
    script: &Script,
    setting: Setting,
    dir: &Path,
    engines: &Engines,
) -> Result<Recording, RunError> {
    record_watched(subject, script, setting, dir, engines, &mut |_| {})
}

/// The same; `watch` is told when the recording begins, and of each entry.
pub(super) fn record_watched(
    subject: &str,
    script: &Script,
    setting: Setting,
    dir: &Path,
    engines: &Engines,
    watch: &mut (dyn FnMut(usize) + Send),
) -> Result<Recording, RunError> {
    let work = || Stage::prepare(script, setting, dir, engines)?.record(subject, script, watch);
    std::thread::scope(|scope| scope.spawn(work).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The files that the recorded processes start from.
struct Stage {
    prepared: sweep::Prepared,
    file: PathBuf,
    dir: PathBuf,
}

impl Stage {
    fn prepare(
        script: &Script,
        setting: Setting,
        dir: &Path,
        engines: &Engines,
    ) -> Result<Self, RunError> {
        let place = |path: &Path| {
            let path = path.to_owned();
            move |source| RunError::Place { path, source }
        };
        let of_sweep = shape::Script {
            target: script.target,
            engine: script.engine,
            steps: script.steps.clone(),
            prepare: script.prepare,
            start: script.start,
            writers: script.writers,
            events: script.events,
            payload_bytes: script.payload_bytes,
        };
        let prepared = sweep::prepare(&of_sweep, setting, &dir.join("prepare"), engines)?;
        let dir = dir.join("recorded");
        std::fs::create_dir_all(&dir).map_err(place(&dir))?;
        // Names as the kernel has them: the supervisor knows files by where they lie.
        let dir = dir.canonicalize().map_err(place(&dir))?;
        let file = dir.join("board.db");
        std::fs::write(&file, &prepared.database).map_err(place(&file))?;
        if let Some(wal) = &prepared.wal {
            let log = with_suffix(&file, "-wal");
            std::fs::write(&log, wal).map_err(place(&log))?;
        }
        add_ballast(&file, script.ballast_pages)?;
        Ok(Self { prepared, file, dir })
    }

    fn record(
        self,
        subject: &str,
        script: &Script,
        watch: &mut dyn FnMut(usize),
    ) -> Result<Recording, RunError> {
        let mut plan = self.prepared.plan.clone();
        for life in &mut plan.lives {
            life.script = script.steps.repeat(script.repeat as usize);
            life.shape.busy_timeout_ms = BUSY_TIMEOUT_MS;
            life.abandon = script.abandon;
            life.durability.clone_from(&script.durability);
            life.ack_fd = Some(ACK_NUMBER);
        }
        let system = |what| move |source| RunError::System { what, source };
        let operations = plan.lives.first().map_or(0, |life| life.script.len()) + 1;
        let (ledger, memory) = Ledger::create(operations).map_err(|error| RunError::System {
            what: "shared memory for the ledger",
            source: std::io::Error::other(error),
        })?;
        let acks = ack_file()?;
        let stderr = self.dir.join("worker.stderr");
        let stderr =
            std::fs::File::create(&stderr).map_err(|error| RunError::place(&stderr, error))?;
        let order = wire::Cycle { database: self.file.clone(), lives: plan.lives.clone() };
        let order =
            serde_json::to_string(&order).map_err(|error| RunError::Zygote(error.to_string()))?;
        let start = start_files(&self.file).map_err(|error| RunError::place(&self.file, error))?;
        let databases = Databases::At(vec![self.file.clone()]);
        let mut supervisor = Supervisor::new(Options::new(CALLS, databases).deadline(DEADLINE))?;
        for slot in 0..plan.lives.len() {
            crew::forget(&ledger, slot);
            let copy = |fd: &OwnedFd| fd.try_clone().map_err(system("a descriptor"));
            let command = self
                .prepared
                .engine
                .traced()
                .args([SOLO, &operations.to_string(), &slot.to_string(), &order])
                .fd(0, copy(&memory)?, FdUse::Plain)
                .fd(2, stderr.as_fd().try_clone_to_owned().map_err(system("a file"))?, FdUse::Plain)
                .fd(ACK_NUMBER, copy(&acks)?, FdUse::Ack);
            supervisor.spawn(&command)?;
        }
        let mut recorder = Recorder::new(&start, Durability::Process);
        watch(0);
        recorder.watch = Some(watch);
        let run = supervisor.run(&mut recorder)?;
        note_troubles(&run, &mut recorder);
        let mut lines = Vec::new();
        for slot in 0..plan.lives.len() {
            let exit = match run.exit_of(slot) {
                Some(Exit::Code(code)) => wire::Exit::Code(code),
                Some(Exit::Signal { signal, .. }) => wire::Exit::Signal(signal),
                None => wire::Exit::Code(-1),
            };
            lines.push(Line::Life(life(&ledger, &plan, (slot, 0), exit, false)));
        }
        let mut probe = self.prepared.probe.moved_to(&self.file, &self.dir);
        lines.push(Line::Observed(Box::new(probe.observe(plan.generation, plan.cycle)?)));
        let board = Board { before: self.prepared.before, recorded: (plan, lines) };
        let header = Header {
            subject: subject.to_owned(),
            database: name_of(&self.file),
            board: Some(board),
            check_sql: None,
            promise: Durability::Process,
            unseen: recorder.unseen,
            elapsed_us: u64::try_from(run.elapsed.as_micros()).unwrap_or(u64::MAX),
        };
        let recording = whole(header, start, recorder.entries, &self.file)?;
        probe::remove_with_log(&self.file)?;
        Ok(recording)
    }
}

/// The recording, once its end has been compared with the files: what was written down must be what
/// is there, to the byte.
fn whole(
    header: Header,
    start: Vec<(StartFile, FileId)>,
    entries: Vec<Entry>,
    database: &Path,
) -> Result<Recording, RunError> {
    let start = start.into_iter().map(|(file, _)| file).collect();
    let mut recording = Recording { header, start, entries };
    let there = start_files(database).map_err(|error| RunError::place(database, error))?;
    let mut different = Vec::new();
    {
        let mut model = Model::new(&recording, Profile::Strict);
        model.advance_to(recording.entries.len());
        for suffix in ["", "-wal", "-journal"] {
            let name = format!("{}{suffix}", recording.header.database);
            let on_disk = there.iter().find(|(file, _)| file.name == name);
            let on_disk = on_disk.map(|(file, _)| file.bytes.as_slice());
            if model.seen(&name).map(Content::to_vec).as_deref() != on_disk {
                different.push(format!("{name} is not what the recorded calls make of it"));
            }
        }
    }
    recording.header.unseen.extend(different);
    Ok(recording)
}

/// Adds a table of so many pages that nobody touches.
fn add_ballast(database: &Path, pages: u32) -> Result<(), RunError> {
    if pages == 0 {
        return Ok(());
    }
    let added = rusqlite::Connection::open(database).and_then(|conn| {
        conn.execute_batch("PRAGMA synchronous = OFF; BEGIN; CREATE TABLE ballast (bytes BLOB)")?;
        let mut insert = conn.prepare("INSERT INTO ballast VALUES (randomblob(3900))")?;
        for _ in 0..pages {
            insert.execute([])?;
        }
        drop(insert);
        conn.execute_batch("COMMIT; PRAGMA wal_checkpoint(TRUNCATE)")?;
        conn.close().map_err(|(_, error)| error)
    });
    added.map_err(|error| RunError::Place {
        path: database.to_owned(),
        source: std::io::Error::other(error),
    })
}

/// Memory that takes acknowledgements: writing to it never waits for anybody.
fn ack_file() -> Result<OwnedFd, RunError> {
    use rustix::fs::{MemfdFlags, OFlags, fcntl_setfl, memfd_create};
    let system = |errno: rustix::io::Errno| RunError::System {
        what: "memory for the acknowledgements",
        source: errno.into(),
    };
    let memory = memfd_create("killpoint-acks", MemfdFlags::CLOEXEC).map_err(system)?;
    fcntl_setfl(&memory, OFlags::APPEND).map_err(system)?;
    Ok(memory)
}

/// Notes what ended as it should not have.
fn note_troubles(run: &Run, recorder: &mut Recorder<'_>) {
    let mut note = |what: String| recorder.unseen.push(what);
    if run.end != RunEnd::AllExited {
        note(format!("the recorded run ended as {:?}", run.end));
    }
    for process in &run.processes {
        let ProcessId(number) = process.process;
        match process.exit {
            // How its own children end is the program's business.
            _ if !process.spawned => {}
            Some(Exit::Code(0)) => {}
            Some(exit) => note(format!("process {number} ended with {exit:?}")),
            None => note(format!("the end of process {number} was not seen")),
        }
        for unseen in &process.unseen {
            note(format!("process {number} did what cannot be followed: {unseen:?}"));
        }
    }
}

/// Records a command, in its directory.
pub fn record_command(recorded: &Recorded) -> Result<Recording, RunError> {
    let work = || run_command(recorded);
    std::thread::scope(|scope| scope.spawn(work).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn run_command(recorded: &Recorded) -> Result<Recording, RunError> {
    let Some((program, arguments)) = recorded.command.split_first() else {
        return Err(RunError::Zygote("no command".to_owned()));
    };
    let database = &recorded.database;
    let start = start_files(database).map_err(|error| RunError::place(database, error))?;
    let databases = Databases::At(vec![database.clone()]);
    let options = Options::new(CALLS, databases).deadline(recorded.deadline);
    let mut supervisor = Supervisor::new(options)?;
    let acks = ack_file()?;
    for copy in 0..recorded.copies {
        let acks =
            acks.try_clone().map_err(|source| RunError::System { what: "a descriptor", source })?;
        let command = Command::new(program)
            .args(arguments)
            .env(ACK_FD, ACK_NUMBER.to_string())
            .env("KILLPOINT_COPY", copy.to_string())
            .current_dir(&recorded.dir)
            .fd(ACK_NUMBER, acks, FdUse::Ack);
        supervisor.spawn(&command)?;
    }
    let mut scribe = Recorder::new(&start, recorded.promise);
    let run = supervisor.run(&mut scribe)?;
    note_troubles(&run, &mut scribe);
    let words: Vec<_> = recorded.command.iter().map(|word| word.to_string_lossy()).collect();
    let header = Header {
        subject: words.join(" "),
        database: name_of(database),
        board: None,
        check_sql: recorded.check_sql.clone(),
        promise: recorded.promise,
        unseen: scribe.unseen,
        elapsed_us: u64::try_from(run.elapsed.as_micros()).unwrap_or(u64::MAX),
    };
    whole(header, start, scribe.entries, database)
}
