//! One script, struck at one point of it after another, each time from the same files.
//!
//! [`prepare`] makes the files that every strike starts from. A [`Range`] is one thread's place: it
//! [records](Range::record) the undisturbed run, point by point, and [strikes](Range::strike) at
//! one of them. The processes are the very workers of a kill cycle, under the supervisor of
//! [`trace`](super::trace); their ledger is the same, and so is the look at what is left.
//!
//! Not here: whether what is left is right.

mod driver;
mod strikes;

pub use strikes::{Blow, Strike, exhaustive, sampled};

use super::engine::{Engine, Engines};
use super::error::RunError;
use super::probe::Probe;
use super::trace::{
    CallKind, CallSet, Databases, Exit, FdUse, Nursery, Options, Phase, Receipt, RunEnd, Supervisor,
};
use super::{Lane, life};
use crate::history::Line;
use crate::plan::{CyclePlan, Ending};
use crate::scenario::sweep::{Script, Start};
use crate::scenario::{Setting, Workload};
use driver::{Recorder, Striker};
use killpoint_worker::gate::Gates;
use killpoint_worker::ledger::Ledger;
use killpoint_worker::wire::{self, Life, Role, Shape};
use killpoint_worker::{BELL_FD, GATES_FD, NURSERY, ORDER_FD};
use nix::sys::memfd::MFdFlags;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long one struck run may take.
const DEADLINE: Duration = Duration::from_secs(20);
/// Operations that fit the ledger of one process.
const OPS_MAX: usize = 1_024;
/// What is stopped at: everything that changes the files, orders or locks them.
/// Sleeps are among them so as to take no time: a lock that is refused for good is waited for, by
/// SQLite's own rules, for ten seconds.
const CALLS: CallSet = CallSet::FAULTS.with(CallKind::Sleep);

/// What every strike starts from.
#[derive(Debug)]
pub struct Prepared {
    /// By the ending of its name: the database, its WAL, and what the store keeps beside them.
    files: Vec<(&'static str, Vec<u8>)>,
    pub(super) probe: Probe,
    /// The plan of what was done before, and what was seen of it.
    pub before: (CyclePlan, Vec<Line>),
    /// The plan of what is struck: one cycle whose processes perform the script.
    pub plan: CyclePlan,
    /// What they run on.
    pub(super) engine: Engine,
}

/// One stop of the undisturbed run at a file of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// From 1, over all processes.
    pub number: u64,
    /// What SQLite was doing.
    pub phase: Phase,
    /// What kind of call it was.
    pub kind: CallKind,
    /// Bytes of a write, else 0.
    pub length: u64,
}

/// What a strike left.
#[derive(Debug)]
pub struct Struck {
    /// What was done; none if the point was never reached.
    pub receipt: Option<Receipt>,
    /// What the processes did, and what recovery gave.
    pub lines: Vec<Line>,
    /// A process that did not end, or ended by something that nobody sent.
    pub trouble: Option<String>,
}

fn shape(script: &Script) -> Shape {
    let usual = Workload::default();
    Shape {
        // Longer than any run: what a claim's end does is swept by asking for it.
        lease_ms: 600_000,
        tasks_ready: usual.tasks_ready,
        heartbeats_per_claim: usual.heartbeats_per_claim,
        events_per_burst: usual.events_per_burst,
        events_per_append: [script.events; 2],
        payload_bytes: [script.payload_bytes; 2],
        overstays_per_100_claims: 0,
        clock_steps_per_100: 0,
        clock_step_s: 0,
        pause_us: [0, 0],
        checkpoint_pages: 1_000,
        // A lock that is made to fail is waited for no longer than shows that it is waited for.
        busy_timeout_ms: 20,
    }
}

fn performer(script: &Script, setting: Setting, session: i64) -> Life {
    Life {
        session,
        role: Role::Script,
        engine: script.engine,
        target: script.target,
        settings: setting.connection(),
        shape: shape(script),
        seed: 1,
        script: script.steps.clone(),
        abandon: false,
        durability: BTreeMap::new(),
        ack_fd: None,
        header_check: false,
        untimed: false,
    }
}

fn cycle_of(number: u32, lives: Vec<Life>) -> CyclePlan {
    CyclePlan {
        generation: 0,
        cycle: number,
        setting: 0,
        lives,
        run_us: 0,
        kills: Vec::new(),
        pauses: Vec::new(),
        moment_wait_ms: 0,
        kills_sent: true,
        ending: Ending::Graceful,
        deadline_ms: 20_000,
    }
}

/// Makes a database in `dir`, and has the script performed there as often as it asks for.
pub fn prepare(
    script: &Script,
    setting: Setting,
    dir: &Path,
    engines: &Engines,
) -> Result<Prepared, RunError> {
    let engine = engines.get(script.engine)?.clone();
    let mut lane = Lane::start(dir, OPS_MAX, engines)?;
    let founder = Life { role: Role::Founder, ..performer(script, setting, 0) };
    lane.found_by(founder, 0)?;
    let mut first = performer(script, setting, 101);
    first.script = script.steps.repeat(script.prepare as usize);
    first.abandon = script.start == Start::WithWal;
    let before = cycle_of(0, vec![first]);
    let lines = lane.cycle(&before)?;
    let Some(there) = lane.database.as_ref() else { return Err(RunError::NoDatabase) };
    let mut files = Vec::new();
    // Not the -shm: that is made anew by whoever opens the database first.
    for suffix in ["", "-wal", "-journal", "-lock", "-anchor"] {
        let path = with_suffix(&there.file, suffix);
        match std::fs::read(&path) {
            Ok(bytes) => files.push((suffix, bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(RunError::place(&path, error)),
        }
    }
    let probe = there.probe.clone();
    let writers = (0..script.writers).map(|slot| performer(script, setting, 201 + i64::from(slot)));
    let plan = cycle_of(1, writers.collect());
    lane.discard()?;
    Ok(Prepared { files, probe, before: (before, lines), plan, engine })
}

impl Prepared {
    /// Writes the files, under the name of the database `file`.
    pub(super) fn put(&self, file: &Path) -> Result<(), RunError> {
        self.files.iter().try_for_each(|(suffix, bytes)| {
            let path = with_suffix(file, suffix);
            std::fs::write(&path, bytes).map_err(|source| RunError::place(&path, source))
        })
    }
}

/// One thread's place to strike in.
#[derive(Debug)]
pub struct Range<'a> {
    prepared: &'a Prepared,
    file: PathBuf,
    dir: PathBuf,
    ledger: Ledger,
    nursery: Nursery,
    on_one_core: bool,
    /// What the nursery reads of a child before it forks it.
    order: File,
}

impl<'a> Range<'a> {
    /// A place in `dir`. With `cpu` the calling thread and its victims run on that processor alone,
    /// where a stop costs half.
    pub fn new(prepared: &'a Prepared, dir: &Path, cpu: Option<usize>) -> Result<Self, RunError> {
        let place = |path: &Path| {
            let path = path.to_owned();
            move |source| RunError::place(&path, source)
        };
        std::fs::create_dir_all(dir).map_err(place(dir))?;
        // Names as the kernel has them: the supervisor knows files by where they lie.
        let dir = dir.canonicalize().map_err(place(dir))?;
        let system = |what| move |source| RunError::System { what, source };
        let (ledger, memory) = Ledger::create(OPS_MAX).map_err(|error| RunError::System {
            what: "shared memory for the ledger",
            source: std::io::Error::other(error),
        })?;
        let (gates, gates_memory) = Gates::create().map_err(|error| RunError::System {
            what: "shared memory for the gates",
            source: std::io::Error::other(error),
        })?;
        let log = dir.join("worker.stderr");
        let stderr = File::create(&log).map_err(place(&log))?;
        if let Some(cpu) = cpu {
            pin(cpu);
        }
        let order = nix::sys::memfd::memfd_create("killpoint-order", MFdFlags::MFD_CLOEXEC)
            .map_err(|errno| system("shared memory for the orders")(errno.into()))?;
        let theirs = order.try_clone().map_err(system("a descriptor"))?;
        let mut command = prepared
            .engine
            .traced()
            .args([NURSERY, &OPS_MAX.to_string()])
            .fd(0, memory, FdUse::Plain)
            .fd(2, stderr.into(), FdUse::Plain)
            .fd(ORDER_FD, theirs, FdUse::Plain)
            .fd(GATES_FD, gates_memory, FdUse::Plain);
        if let Some(cpu) = cpu {
            command = command.cpus([cpu]);
        }
        let nursery = Nursery::start(command, BELL_FD, CALLS, false, Some(Arc::new(gates)))?;
        let file = dir.join("board.db");
        let on_one_core = cpu.is_some();
        Ok(Self { prepared, file, dir, ledger, nursery, on_one_core, order: order.into() })
    }

    /// The points of the undisturbed run; with `abandon`, of one that does not close at its end.
    pub fn record(&mut self, abandon: bool) -> Result<Vec<Point>, RunError> {
        let mut recorder = Recorder::default();
        self.restore()?;
        let mut plan = self.prepared.plan.clone();
        for life in &mut plan.lives {
            life.abandon = abandon;
        }
        let run = self.supervise(&plan, &mut recorder)?;
        match run.end {
            RunEnd::AllExited => Ok(recorder.points),
            end => Err(RunError::Zygote(format!("the undisturbed run ended as {end:?}"))),
        }
    }

    /// Strikes once, and looks at what is left.
    pub fn strike(&mut self, strike: &Strike) -> Result<Struck, RunError> {
        self.restore()?;
        let mut plan = self.prepared.plan.clone();
        for life in &mut plan.lives {
            life.abandon = strike.abandon;
        }
        let mut striker = Striker::new(*strike, plan.lives.len() == 1);
        let run = self.supervise(&plan, &mut striker)?;
        let mut trouble = None;
        if run.end != RunEnd::AllExited {
            trouble = Some(format!("the run ended as {:?}", run.end));
        }
        let mut lines = Vec::new();
        for slot in 0..plan.lives.len() {
            let exit = run.exit_of(slot);
            let told = match exit {
                Some(Exit::Code(code)) => wire::Exit::Code(code),
                Some(Exit::Signal { signal, .. }) => wire::Exit::Signal(signal),
                None => wire::Exit::Code(-1),
            };
            let odd = match exit {
                Some(Exit::Code(101)) => Some("it panicked".to_owned()),
                Some(Exit::Signal { signal, by_supervisor: false }) => {
                    Some(format!("signal {signal} ended it"))
                }
                _ => None,
            };
            trouble = trouble.or(odd.map(|text| format!("process {slot}: {text}")));
            lines.push(Line::Life(life(&self.ledger, &plan, (slot, 0), told, false)));
        }
        let mut probe = self.prepared.probe.moved_to(&self.file, &self.dir);
        lines.push(Line::Observed(Box::new(probe.observe(plan.generation, plan.cycle)?)));
        Ok(Struck { receipt: run.receipts.into_iter().next(), lines, trouble })
    }

    /// Puts the files back as they were prepared.
    fn restore(&self) -> Result<(), RunError> {
        for suffix in ["-wal", "-shm", "-journal", "-lock", "-anchor"] {
            super::probe::remove(&with_suffix(&self.file, suffix))?;
        }
        self.prepared.put(&self.file)
    }

    fn supervise(
        &mut self,
        plan: &CyclePlan,
        driver: &mut dyn super::trace::Driver,
    ) -> Result<super::trace::Run, RunError> {
        let databases = Databases::At(vec![self.file.clone()]);
        let mut options = Options::new(CALLS, databases).deadline(DEADLINE);
        options.same_core = self.on_one_core;
        let mut supervisor = Supervisor::new(options)?;
        let cycle = wire::Cycle { database: self.file.clone(), lives: plan.lives.clone() };
        let mut birth = wire::Birth { slot: 0, cycle };
        for slot in 0..plan.lives.len() {
            super::crew::forget(&self.ledger, slot);
            birth.slot = slot;
            self.write_order(&birth)?;
            supervisor.spawn_from(&mut self.nursery, slot)?;
        }
        Ok(supervisor.run(driver)?)
    }

    /// Puts down what the next child will be.
    fn write_order(&mut self, birth: &wire::Birth) -> Result<(), RunError> {
        let text =
            serde_json::to_vec(birth).map_err(|error| RunError::Zygote(error.to_string()))?;
        let length = u64::try_from(text.len()).unwrap_or(u64::MAX);
        self.order
            .write_all_at(&text, 0)
            .and_then(|()| self.order.set_len(length))
            .map_err(|source| RunError::System { what: "writing an order", source })
    }
}

pub(super) fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Runs the calling thread on one processor. That it may not is no failure: it is only slower.
pub(super) fn pin(cpu: usize) {
    let mut set = nix::sched::CpuSet::new();
    if set.set(cpu).is_ok() {
        let this_thread = nix::unistd::Pid::from_raw(0);
        match nix::sched::sched_setaffinity(this_thread, &set) {
            Ok(()) | Err(_) => {}
        }
    }
}
