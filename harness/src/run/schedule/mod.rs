//! Seeded schedules: a few real processes, of which one runs at a time, in an order that repeats.
//!
//! An [`Arena`] is one thread's place: it puts the files as they were prepared, runs one
//! [`SchedulePlan`] under the supervisor of [`trace`](super::trace), and looks at what is left. The
//! processes are our own workers on any engine, or copies of any program. Sleeps take no time; what
//! the processes are told of chance, time and themselves follows from the plan's seed.
//!
//! What does not repeat: threads that wait for one another inside a process (`futex`), and the
//! policy `delay`, under which all run at once. A run says when it had to do with the first.
//!
//! Not here: whether what is left is right.

mod driver;
mod free;
mod locks;
mod policy;
mod prepare;
mod seen;
mod story;
mod stuck;

pub use locks::Meeting;
pub use prepare::{Prepared, prepare};
pub use seen::{Seen, What};
pub use story::{Chapter, Story};
pub use stuck::Stuck;

use super::engine::Engines;
use super::error::RunError;
use super::exec::ACK_FD;
use super::life;
use super::trace::{
    CallSet, Command, Databases, Driver, Exit, FdUse, Nursery, Options, Receipt, Run, RunEnd,
    Supervisor, World,
};
use crate::history::Line;
use crate::plan::schedule::{Order, Preemption, SchedulePlan};
use crate::plan::{CyclePlan, Ending};
use crate::scenario::schedule::{Policy, Program};
use driver::Scheduler;
use free::Free;
use killpoint_worker::gate::Gates;
use killpoint_worker::ledger::Ledger;
use killpoint_worker::wire::{self, EngineName};
use killpoint_worker::{BELL_FD, GATES_FD, NURSERY, ORDER_FD};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// How long one schedule may take by the wall clock.
const DEADLINE: Duration = Duration::from_secs(30);
/// Operations that fit the ledger of one process.
const OPS_MAX: usize = 512;
/// The number of the descriptor for acknowledgements in a program.
const ACK_NUMBER: i32 = 9;
/// Where the files of one schedule lie, and the database among them.
const FILES: &str = "files";
const DATABASE: &str = "board.db";

/// What runs: our own workers, or copies of a program.
#[derive(Clone, Debug)]
pub enum Cast {
    /// Our own, each on the engine of its life.
    Workers(Engines),
    /// A program, its words made absolute, and its environment's additions.
    Program(Program),
}

/// What one schedule did.
#[derive(Debug)]
pub struct Played {
    /// A digest of each step.
    pub steps: Vec<u32>,
    /// The same steps, to be told.
    pub seen: Vec<Seen>,
    /// Where it left the rule.
    pub decisions: Vec<Preemption>,
    /// Switches away from a process that could have gone on.
    pub preemptions: u32,
    /// Traps that were set and met.
    pub traps: [u32; 2],
    /// Stops at traced calls, those that were only answered included, and those of `passed`.
    pub stops: u64,
    /// Steps at which the policy was certain that the same process goes on, so that the kernel was
    /// spared the stop.
    pub passed: u64,
    /// Which locks met which operations.
    pub meetings: BTreeSet<Meeting>,
    /// Processes that came no further.
    pub stuck: Option<Stuck>,
    /// Threads that waited in the kernel for what nobody here knows of.
    pub in_kernel: u32,
    /// What was broken.
    pub receipts: Vec<Receipt>,
    /// Why it ended.
    pub end: RunEnd,
    /// How each process ended, by slot.
    pub exits: Vec<Option<Exit>>,
    /// What our own workers did, and what is left of their database.
    pub lines: Vec<Line>,
    /// What the copies of a program acknowledged and were refused.
    pub acks: Acks,
    /// Database and WAL as the processes left them.
    pub images: Vec<(String, Vec<u8>)>,
    /// A digest of those files.
    pub left: String,
    /// Every step in words, if it was asked for.
    pub story: Option<Story>,
}

/// What programs said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acks {
    /// Tokens that must be there.
    pub acked: Vec<String>,
    /// Tokens that must not.
    pub refused: Vec<String>,
}

/// What is looked at beyond what every schedule gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// Every step in words.
    pub story: bool,
    /// A stop at each call, also where the policy is certain who goes on: what must give the same.
    pub each_call: bool,
}

/// One thread's place to run schedules in.
#[derive(Debug)]
pub struct Arena<'a> {
    prepared: &'a Prepared,
    cast: &'a Cast,
    dir: PathBuf,
    files: PathBuf,
    ledger: Rc<Ledger>,
    memory: OwnedFd,
    /// By which calls of our own workers pass.
    gates: Arc<Gates>,
    gates_memory: OwnedFd,
    stderr: File,
    cpu: Option<usize>,
    /// They fork our own workers, one for each engine; started when the first is needed.
    nurseries: BTreeMap<EngineName, Nursery>,
    /// What the nursery reads of a child before it forks it.
    order: File,
}

fn place(path: &Path) -> impl FnOnce(std::io::Error) -> RunError + use<> {
    let path = path.to_owned();
    move |source| RunError::place(&path, source)
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> RunError {
    move |source| RunError::System { what, source }
}

impl<'a> Arena<'a> {
    /// A place in `dir`. With `cpu` the calling thread and its victims run on that processor alone,
    /// where a stop costs half.
    pub fn new(
        prepared: &'a Prepared,
        cast: &'a Cast,
        dir: &Path,
        cpu: Option<usize>,
    ) -> Result<Self, RunError> {
        std::fs::create_dir_all(dir.join(FILES)).map_err(place(dir))?;
        // Names as the kernel has them: the supervisor knows files by where they lie.
        let dir = dir.canonicalize().map_err(place(dir))?;
        let (ledger, memory) = Ledger::create(OPS_MAX)
            .map_err(std::io::Error::other)
            .map_err(system("shared memory for the ledger"))?;
        let (gates, gates_memory) = Gates::create()
            .map_err(std::io::Error::other)
            .map_err(system("shared memory for the gates"))?;
        let log = dir.join("worker.stderr");
        let stderr = File::create(&log).map_err(place(&log))?;
        if let Some(cpu) = cpu {
            super::sweep::pin(cpu);
        }
        let files = dir.join(FILES);
        let order = memfd_create("killpoint-order", MFdFlags::MFD_CLOEXEC)
            .map_err(std::io::Error::from)
            .map_err(system("shared memory for the orders"))?
            .into();
        Ok(Self {
            prepared,
            cast,
            dir,
            files,
            ledger: Rc::new(ledger),
            memory,
            gates: Arc::new(gates),
            gates_memory,
            stderr,
            cpu,
            nurseries: BTreeMap::new(),
            order,
        })
    }

    /// Runs one schedule, and looks at what is left.
    pub fn play(&mut self, plan: &SchedulePlan, ask: Ask) -> Result<Played, RunError> {
        self.restore()?;
        let cycle = cycle_of(plan);
        if let Order::Drawn { policy: Policy::Delay { every, ms_max }, .. } = plan.order {
            let mut free = Free::new(plan, every, ms_max);
            let (run, acks) = self.supervise(plan, &cycle, &mut free, false)?;
            let played = Played::of(run, None);
            return self.look(plan, &cycle, played, acks);
        }
        let ledger = Rc::clone(&self.ledger);
        let mut scheduler = Scheduler::new(plan, &ledger, ask.story);
        scheduler.each_call = ask.each_call;
        let (run, acks) = self.supervise(plan, &cycle, &mut scheduler, true)?;
        let played = Played::of(run, Some(scheduler));
        self.look(plan, &cycle, played, acks)
    }

    /// Where the database lies.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        match self.cast {
            Cast::Workers(_) => self.files.join(DATABASE),
            Cast::Program(program) => self.files.join(&program.database),
        }
    }

    /// Puts the files as they were prepared, and no others.
    fn restore(&self) -> Result<(), RunError> {
        for entry in std::fs::read_dir(&self.files).map_err(place(&self.files))? {
            let path = entry.map_err(place(&self.files))?.path();
            if path.is_dir() {
                std::fs::remove_dir_all(&path).map_err(place(&path))?;
            } else {
                std::fs::remove_file(&path).map_err(place(&path))?;
            }
        }
        for (name, bytes) in &self.prepared.files {
            let path = self.files.join(name);
            if let Some(parent) = path.parent().filter(|parent| *parent != self.files) {
                std::fs::create_dir_all(parent).map_err(place(parent))?;
            }
            std::fs::write(&path, bytes).map_err(place(&path))?;
        }
        Ok(())
    }

    fn supervise(
        &mut self,
        plan: &SchedulePlan,
        cycle: &CyclePlan,
        driver: &mut dyn Driver,
        ordered: bool,
    ) -> Result<(Run, Vec<OwnedFd>), RunError> {
        let databases = Databases::At(vec![self.database()]);
        let mut options = Options::new(CallSet::SCHEDULE, databases)
            .deadline(DEADLINE)
            .world(World { seed: plan.seed, dir: self.dir.clone() });
        if ordered {
            options = options.one_at_a_time();
        }
        let mut supervisor = Supervisor::new(options)?;
        let mut acks = Vec::new();
        match self.cast {
            Cast::Workers(engines) => {
                let cycle = wire::Cycle { database: self.database(), lives: cycle.lives.clone() };
                let mut birth = wire::Birth { slot: 0, cycle };
                for (slot, life) in plan.lives.iter().enumerate() {
                    super::crew::forget(&self.ledger, slot);
                    birth.slot = slot;
                    self.write_order(&birth)?;
                    let mut nursery = match self.nurseries.remove(&life.engine) {
                        Some(nursery) => nursery,
                        None => self.nursery(engines, life.engine)?,
                    };
                    supervisor.spawn_from(&mut nursery, slot)?;
                    // One that failed is not used again.
                    self.nurseries.insert(life.engine, nursery);
                }
            }
            Cast::Program(program) => {
                for slot in 0..plan.slots() {
                    let command = self.copy(program, slot, &mut acks)?;
                    supervisor.spawn(&self.placed(command))?;
                }
            }
        }
        Ok((supervisor.run(driver)?, acks))
    }

    /// Addresses that differ from run to run would make hash tables differ.
    fn placed(&self, command: Command) -> Command {
        let command = command.fixed_addresses();
        match self.cpu {
            Some(cpu) => command.cpus([cpu]),
            None => command,
        }
    }

    fn nursery(&self, engines: &Engines, name: EngineName) -> Result<Nursery, RunError> {
        let memory = self.memory.try_clone().map_err(system("a descriptor"))?;
        let stderr = self.stderr.try_clone().map_err(system("a descriptor"))?;
        let order = self.order.try_clone().map_err(system("a descriptor"))?;
        let gates = self.gates_memory.try_clone().map_err(system("a descriptor"))?;
        let command = engines
            .get(name)?
            .traced()
            .args([NURSERY, &OPS_MAX.to_string()])
            .fd(0, memory, FdUse::Plain)
            .fd(2, stderr.into(), FdUse::Plain)
            .fd(ORDER_FD, order.into(), FdUse::Plain)
            .fd(GATES_FD, gates, FdUse::Plain);
        let gates = Some(Arc::clone(&self.gates));
        Ok(Nursery::start(self.placed(command), BELL_FD, CallSet::SCHEDULE, true, gates)?)
    }

    /// Puts down what the next child will be.
    fn write_order(&self, birth: &wire::Birth) -> Result<(), RunError> {
        let text =
            serde_json::to_vec(birth).map_err(|error| RunError::Zygote(error.to_string()))?;
        let length = u64::try_from(text.len()).unwrap_or(u64::MAX);
        self.order
            .write_all_at(&text, 0)
            .and_then(|()| self.order.set_len(length))
            .map_err(system("writing an order"))
    }

    fn copy(
        &self,
        program: &Program,
        slot: usize,
        acks: &mut Vec<OwnedFd>,
    ) -> Result<Command, RunError> {
        let Some((name, arguments)) = program.argv.split_first() else {
            return Err(RunError::Zygote("no command".to_owned()));
        };
        // A file takes whatever is written, read or not: no acknowledgement ever blocks.
        let ack = memfd_create("killpoint-acks", MFdFlags::MFD_CLOEXEC)
            .map_err(std::io::Error::from)
            .map_err(system("memory for acknowledgements"))?;
        acks.push(ack.try_clone().map_err(system("a descriptor"))?);
        let stderr = self.stderr.try_clone().map_err(system("a descriptor"))?;
        let quiet = File::open("/dev/null").map_err(system("/dev/null"))?;
        let stdout = self.stderr.try_clone().map_err(system("a descriptor"))?;
        Ok(Command::new(name)
            .args(arguments)
            // The hash of Python's strings is drawn at its start unless it is told.
            .env("PYTHONHASHSEED", "0")
            .env(ACK_FD, ACK_NUMBER.to_string())
            .env("KILLPOINT_COPY", slot.to_string())
            .current_dir(&self.files)
            .fd(0, quiet.into(), FdUse::Plain)
            .fd(1, stdout.into(), FdUse::Plain)
            .fd(2, stderr.into(), FdUse::Plain)
            .fd(ACK_NUMBER, ack, FdUse::Ack))
    }

    fn look(
        &mut self,
        plan: &SchedulePlan,
        cycle: &CyclePlan,
        mut played: Played,
        acks: Vec<OwnedFd>,
    ) -> Result<Played, RunError> {
        let database = self.database();
        let mut hash = blake3::Hasher::new();
        for suffix in ["", "-wal", "-journal"] {
            let mut path = database.clone().into_os_string();
            path.push(suffix);
            if let Ok(bytes) = std::fs::read(&path) {
                hash.update(&bytes);
                played.images.push((format!("{DATABASE}{suffix}"), bytes));
            }
        }
        played.left = hash.finalize().to_hex().to_string();
        for ack in acks {
            played.acks.take(ack)?;
        }
        if !plan.lives.is_empty() {
            for slot in 0..plan.lives.len() {
                let told = match played.exits.get(slot).copied().flatten() {
                    Some(Exit::Code(code)) => wire::Exit::Code(code),
                    Some(Exit::Signal { signal, .. }) => wire::Exit::Signal(signal),
                    None => wire::Exit::Code(-1),
                };
                played.lines.push(Line::Life(life(&self.ledger, cycle, (slot, 0), told, false)));
            }
            let mut probe = self.prepared.probe.moved_to(&database, &self.dir);
            let seen = probe.look_at_file(cycle.generation, cycle.cycle)?;
            played.lines.push(Line::Observed(Box::new(seen)));
        }
        Ok(played)
    }
}

impl Acks {
    /// Takes in the lines that one process wrote, as in [`exec`](super::exec).
    fn take(&mut self, file: OwnedFd) -> Result<(), RunError> {
        use std::io::{Read as _, Seek as _};
        let mut text = Vec::new();
        let mut file = File::from(file);
        file.rewind()
            .and_then(|()| file.read_to_end(&mut text))
            .map_err(system("reading acknowledgements"))?;
        for line in String::from_utf8_lossy(&text).split_inclusive('\n') {
            let Some(line) = line.strip_suffix('\n') else { continue };
            match line.split_once(' ') {
                Some(("ack", token)) => self.acked.push(token.trim().to_owned()),
                Some(("refused", token)) => self.refused.push(token.trim().to_owned()),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Played {
    fn of(run: Run, scheduler: Option<Scheduler<'_>>) -> Self {
        let slots = run.processes.iter().filter(|process| process.spawned);
        let exits = slots.map(|process| process.exit).collect();
        let mut played = Self {
            steps: Vec::new(),
            seen: Vec::new(),
            decisions: Vec::new(),
            preemptions: 0,
            traps: [0; 2],
            stops: run.stops + run.passed,
            passed: run.passed,
            meetings: BTreeSet::new(),
            stuck: None,
            in_kernel: 0,
            receipts: run.receipts,
            end: run.end,
            exits,
            lines: Vec::new(),
            acks: Acks::default(),
            images: Vec::new(),
            left: String::new(),
            story: None,
        };
        if let Some(scheduler) = scheduler {
            played.meetings = scheduler.meetings.all();
            played.traps = [scheduler.traps_set, scheduler.traps_met];
            played.story = scheduler.story.map(Story::of);
            played.steps = scheduler.steps;
            played.seen = scheduler.seen;
            played.decisions = scheduler.decisions;
            played.preemptions = scheduler.preemptions;
            played.stuck = scheduler.stuck;
            played.in_kernel = scheduler.in_kernel;
        }
        played
    }
}

/// The processes of a schedule as one cycle, for those who judge cycles.
#[must_use]
pub fn cycle_of(plan: &SchedulePlan) -> CyclePlan {
    CyclePlan {
        generation: 0,
        cycle: 1,
        setting: plan.setting,
        lives: plan.lives.clone(),
        run_us: 0,
        kills: Vec::new(),
        pauses: Vec::new(),
        moment_wait_ms: 0,
        kills_sent: true,
        ending: if plan.killed_at_end { Ending::Kill } else { Ending::Graceful },
        deadline_ms: 30_000,
    }
}
