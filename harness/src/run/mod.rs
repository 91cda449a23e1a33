//! Carrying out a plan: the only stage with side effects.
//!
//! A [`Lane`] is one thread's world: its zygotes, their ledger, one database at a time. It turns a
//! [`CyclePlan`] into the lines of a history. Lanes share nothing, so as many run as there are
//! cores: while one copies and reads files, the writers of another write.
//!
//! In: one cycle's plan. Out: what was seen. Not here: whether that was right.

mod crew;
pub mod engine;
mod error;
pub mod exec;
mod kill;
mod pause;
pub mod machine;
pub mod power;
mod probe;
pub mod schedule;
mod supervise;
pub mod sweep;
pub mod trace;
mod wait;

pub use engine::{EngineError, Engines};
pub use error::RunError;
pub use supervise::is_worker;

use crate::history::{Counters, Life, Line, Op, Receipt, Timing};
use crate::plan::{CyclePlan, Ending, Generation, Moment, Plan};
use crew::Crew;
use killpoint_worker::ledger::{Ledger, Slot, State};
use killpoint_worker::wire;
use probe::Probe;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use supervise::Child;

/// How long all connections of a cycle may take to open.
const OPEN_DEADLINE: Duration = Duration::from_secs(20);
/// How long that takes at most when all is well.
const OPEN_USUALLY: Duration = Duration::from_millis(100);
/// How long the process that makes a database may take.
const FOUND_DEADLINE: Duration = Duration::from_secs(20);
/// How long a killed process may take to be gone.
const DEATH_DEADLINE: Duration = Duration::from_secs(20);

/// One thread's world.
#[derive(Debug)]
pub struct Lane {
    dir: PathBuf,
    crew: Crew,
    database: Option<Database>,
    /// Of the last cycle: its processes, its recoveries.
    spent: (Duration, Duration),
}

#[derive(Debug)]
struct Database {
    dir: PathBuf,
    file: PathBuf,
    probe: Probe,
}

impl Lane {
    /// A lane whose databases lie in `dir`, with room in the ledger for `ops_max` operations a
    /// process and a life. Its processes run on `engines`.
    pub fn start(dir: &Path, ops_max: usize, engines: &Engines) -> Result<Self, RunError> {
        std::fs::create_dir_all(dir).map_err(|source| RunError::place(dir, source))?;
        wait::wake_promptly();
        let crew = Crew::new(engines, ops_max, dir)?;
        let spent = (Duration::ZERO, Duration::ZERO);
        Ok(Self { dir: dir.to_owned(), crew, database: None, spent })
    }

    /// Makes a new database for `generation`, in place of the one before.
    pub fn found(&mut self, plan: &Plan, generation: Generation) -> Result<(), RunError> {
        self.found_by(plan.founder(generation), generation.index)
    }

    /// The same, by a life that is given.
    fn found_by(&mut self, founder: wire::Life, index: u32) -> Result<(), RunError> {
        self.discard()?;
        let dir = self.dir.join(format!("generation-{index}"));
        std::fs::create_dir_all(&dir).map_err(|source| RunError::place(&dir, source))?;
        let file = dir.join("board.db");
        let probe = Probe::new(&file, &dir);
        let cycle = wire::Cycle { database: file.clone(), lives: vec![founder] };
        let children = self.crew.fork(&cycle)?;
        let hung = Self::await_exits(&children, FOUND_DEADLINE)?;
        let exits = self.crew.reap()?;
        let message = self.crew.ledger().slot(0).message().unwrap_or_default();
        self.database = Some(Database { dir, file, probe });
        let full = self.crew.ledger().slot(0).no_space();
        match exits.first() {
            Some(wire::Exit::Code(0)) => Ok(()),
            Some(_) if full => Err(RunError::NoSpace { path: self.dir.clone(), message }),
            Some(exit) if hung.is_empty() => {
                Err(RunError::Founder { exit: format!("{exit:?}"), message })
            }
            _ => Err(RunError::Founder { exit: "it hung".to_owned(), message }),
        }
    }

    /// Removes the database and all that belongs to it.
    pub fn discard(&mut self) -> Result<(), RunError> {
        let Some(database) = self.database.take() else { return Ok(()) };
        std::fs::remove_dir_all(&database.dir)
            .map_err(|source| RunError::place(&database.dir, source))
    }

    /// Keeps the database and its files where they are, and says where: evidence.
    pub fn keep(&mut self) -> Option<PathBuf> {
        self.database.take().map(|database| database.dir)
    }

    /// How long the last cycle's processes took from fork to reaping, and the recoveries after.
    #[must_use]
    pub fn spent(&self) -> (Duration, Duration) {
        self.spent
    }

    /// Carries out one cycle on the current database.
    ///
    /// The database's own files stay as the processes left them: what is read is copies.
    pub fn cycle(&mut self, plan: &CyclePlan) -> Result<Vec<Line>, RunError> {
        let Some(file) = self.database.as_ref().map(|database| database.file.clone()) else {
            return Err(RunError::NoDatabase);
        };
        let from = Instant::now();
        let order = wire::Cycle { database: file, lives: plan.lives.clone() };
        let children = self.crew.fork(&order)?;
        let Played { receipts, pauses, timing, began_ns } = self.play(plan, &children)?;
        let deadline = Duration::from_millis(plan.deadline_ms.into());
        let hung = Self::await_exits(&children, deadline)?;
        let exits = self.crew.reap()?;
        self.spent.0 = from.elapsed();
        let mut lines: Vec<Line> = vec![Line::Timed(timing)];
        for (slot, exit) in exits.iter().enumerate() {
            let ledger = self.crew.ledger();
            let hung = hung.contains(&slot);
            lines.push(Line::Life(life(ledger, plan, (slot, began_ns), *exit, hung)));
        }
        for mut receipt in receipts {
            receipt.activity = self.crew.ledger().slot(receipt.slot).activity();
            lines.push(Line::Killed(receipt));
        }
        lines.extend(pauses.into_iter().map(Line::Paused));
        // Then it is the disk that is told of, not the store.
        let ledger = self.crew.ledger();
        if let Some(slot) = (0..exits.len()).find(|slot| ledger.slot(*slot).no_space()) {
            let message = ledger.slot(slot).message().unwrap_or_default();
            return Err(RunError::NoSpace { path: self.dir.clone(), message });
        }
        if let Some(database) = &mut self.database {
            let seen = database.probe.observe(plan.generation, plan.cycle)?;
            lines.push(Line::Observed(Box::new(seen)));
        }
        self.spent.1 = from.elapsed().saturating_sub(self.spent.0);
        Ok(lines)
    }

    /// Opens, kills on the way, and brings about the ending.
    fn play(&self, plan: &CyclePlan, children: &[Child]) -> Result<Played, RunError> {
        let forked = Instant::now();
        let ledger = self.crew.ledger();
        wait::until(forked + OPEN_DEADLINE, || {
            (0..children.len()).all(|slot| ledger.slot(slot).ready())
                // Asking the kernel costs: only when it takes long may somebody have died of it.
                || (forked.elapsed() > OPEN_USUALLY && children.iter().any(Child::is_gone))
        });
        let began_ns = killpoint_worker::ledger::now_ns();
        let mut killer = kill::Killer::new(plan, children, ledger);
        let began = killer.began();
        let (sent, pauses) = std::thread::scope(|scope| {
            let pauser = scope.spawn(|| pause::pause_on_the_way(plan, children, ledger, began));
            let sent = killer.kill_on_the_way();
            (sent, pauser.join().unwrap_or_default())
        });
        sent?;
        let over = || killer.nothing_to_wait_for();
        wait::until_time(began + Duration::from_micros(plan.run_us), over);
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let timing = Timing {
            generation: plan.generation,
            cycle: plan.cycle,
            open_us: us(killer.began() - forked),
            write_us: us(killer.began().elapsed()),
        };
        match plan.ending {
            Ending::Kill => killer.kill_the_rest()?,
            Ending::Graceful => {
                for slot in 0..children.len() {
                    ledger.slot(slot).drain();
                }
            }
        }
        // A harness whose kills are removed still has to come to an end.
        if !plan.kills_sent {
            for slot in 0..children.len() {
                ledger.slot(slot).drain();
            }
        }
        Ok(Played { receipts: killer.into_receipts(), pauses, timing, began_ns })
    }

    /// Waits for every child to end; kills those that do not, and gives their slots.
    fn await_exits(children: &[Child], within: Duration) -> Result<Vec<usize>, RunError> {
        let deadline = Instant::now() + within;
        let mut hung = Vec::new();
        for (slot, child) in children.iter().enumerate() {
            if child.await_exit(deadline)? {
                continue;
            }
            hung.push(slot);
            child.kill()?;
            child.await_exit(Instant::now() + DEATH_DEADLINE)?;
        }
        Ok(hung)
    }
}

/// What came of the time between opening and ending.
struct Played {
    receipts: Vec<Receipt>,
    pauses: Vec<crate::history::Pause>,
    timing: Timing,
    /// When the last connection was open, ns of the monotonic clock.
    began_ns: u64,
}

/// What one process did, by its part of the ledger; operations are timed from `began_ns`.
fn life(
    ledger: &Ledger,
    plan: &CyclePlan,
    (slot, began_ns): (usize, u64),
    exit: wire::Exit,
    hung: bool,
) -> Life {
    let of = ledger.slot(slot);
    let used = of.used().min(ledger.capacity());
    let mut ops: Vec<_> = Vec::with_capacity(used);
    // One more than told: a kill may land between an entry and the count of entries.
    for entry in ledger.entries(slot).iter().take(used + 1) {
        match entry.read() {
            Some(record) => {
                ops.push(Op::of(&record, began_ns));
                if record.state == State::Sent {
                    break;
                }
            }
            None => break,
        }
    }
    Life {
        generation: plan.generation,
        cycle: plan.cycle,
        slot,
        session: plan.lives[slot].session,
        role: plan.lives[slot].role,
        engine: plan.lives[slot].engine,
        loaded: of.loaded(),
        effective: of.effective(),
        exit,
        activity: of.activity(),
        hung,
        ledger_full: used == ledger.capacity(),
        message: of.message(),
        counters: counters(of),
        ops,
    }
}

fn counters(slot: &Slot) -> Counters {
    let c = &slot.counters;
    let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    Counters {
        database_syncs: read(&c.database_syncs),
        log_syncs: read(&c.log_syncs),
        database_bytes: read(&c.database_bytes),
        log_bytes: read(&c.log_bytes),
        wal_end_max_bytes: read(&c.wal_end_max),
        checkpoints: read(&c.checkpoints),
        checkpoint_ns: read(&c.checkpoint_ns),
        checkpoint_ns_max: read(&c.checkpoint_ns_max),
    }
}

impl Moment {
    /// Whether a process that does this is at the moment.
    fn is(self, activity: killpoint_worker::ledger::Activity) -> bool {
        use killpoint_worker::ledger::Activity;
        match self {
            Self::Any | Self::Ending => true,
            Self::Transaction => activity == Activity::Transaction,
            Self::Commit => activity == Activity::Commit,
            Self::Checkpoint => activity == Activity::Checkpoint,
            Self::TakenBack => false,
        }
    }
}
