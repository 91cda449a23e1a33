//! The tracing thread: starts commands, waits for what happens to them, asks the driver, and leaves
//! nothing behind.
//!
//! All of a supervisor's work is done on the thread that made it, since the kernel ties tracing to
//! a thread. Whatever happens to that thread or its process, the victims die with it
//! (`PTRACE_O_EXITKILL`); threads and children of a victim are traced from their first instruction,
//! whatever session or process group they go to.

use std::collections::HashSet;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::alarm::{self, Alarm};
use super::asked::Asked;
use super::command::{Command, FdUse};
use super::cores::OneCore;
use super::driver::{Choice, Decision, Driver, Event, Standing, Stop, Trap, Whom};
use super::files::FileId;
use super::filter;
use super::launch::launch;
use super::nursery::Nursery;
use super::options::{Leftovers, Options};
use super::passed::Passes;
use super::ptrace::{self, Resume, Status, Whose};
use super::report::{Receipt, Run, RunEnd};
use super::scene::Scene;
use super::state::{Activity, State};
use super::world::{self, Answers};
use super::{CallSet, ProcessId, ThreadId, TraceError};

/// How long the thread looks for news before it blocks. While a victim runs from stop to stop the
/// news is there within this time, and a wake-up would cost more. The processor is offered to
/// others meanwhile; once they have used it for longer, waiting is left to the kernel.
const LOOKING: Duration = Duration::from_micros(40);

/// The deadline is looked at after this many events, and whenever nothing happens.
const EVENTS_BETWEEN_LOOKS: u64 = 256;

/// The longest that killed processes may take to go.
const REAPING: Duration = Duration::from_secs(20);

/// Runs commands as victims.
///
/// One supervisor is one run: spawn every command, then [`run`](Self::run). It stays on the thread
/// that made it, and that thread must have no other children while it runs: their ends would be
/// taken for those of victims. Dropping it kills whatever it has started.
#[derive(Debug)]
pub struct Supervisor {
    pub(super) state: State,
    pub(super) log: Log,
    /// Threads that the driver holds, the longest first.
    pub(super) held: Vec<Stop>,
    /// Threads that stand still at no call, the longest first.
    pub(super) parked: Vec<ThreadId>,
    pub(super) answers: Option<Answers>,
    pub(super) timers: Vec<Timer>,
    /// Locks whose outcome the kernel is asked for.
    pub(super) asked: Asked,
    /// The core that is shared with the only victim.
    pub(super) shared_core: Option<OneCore>,
    /// The gates of victims that have one.
    pub(super) passes: Passes,
    /// The driver asked for the end.
    pub(super) ending: bool,
    filter: Vec<libc::sock_filter>,
    /// What the filter stops at.
    calls: CallSet,
    /// Spawned, and not yet let go.
    ready: Vec<ThreadId>,
    /// Copies of which every process is to die, those not yet born too.
    pub(super) doomed: HashSet<usize>,
    /// Threads that reported themselves before their maker's report of them was read.
    pub(super) early: HashSet<ThreadId>,
    copies: usize,
    end: Option<RunEnd>,
    alarm: Alarm,
    last_event: Instant,
    ask_again: Option<Instant>,
    /// Tracing belongs to a thread.
    _on_one_thread: PhantomData<*const ()>,
}

/// What a run will be told by.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) receipts: Vec<Receipt>,
    pub(super) sleeps_skipped: u64,
}

/// A stop that goes on by itself when its time comes.
#[derive(Debug)]
pub(super) struct Timer {
    pub(super) due: Instant,
    pub(super) stop: Stop,
    pub(super) receipt: usize,
    /// The process was sent SIGSTOP.
    pub(super) paused: bool,
}

impl Supervisor {
    /// A supervisor of the calling thread.
    pub fn new(options: Options) -> Result<Self, TraceError> {
        let calls = match &options.world {
            Some(_) => options.calls.and(CallSet::WORLD),
            None => options.calls,
        };
        let filter = filter::program(calls, false);
        let answers = options.world.clone().map(Answers::new);
        alarm::quiet_stops();
        let alarm =
            Alarm::new().map_err(|errno| TraceError::supervise("make a timer", 0, errno))?;
        Ok(Self {
            state: State::new(options),
            log: Log::default(),
            held: Vec::new(),
            parked: Vec::new(),
            answers,
            timers: Vec::new(),
            asked: Asked::default(),
            shared_core: None,
            passes: Passes::default(),
            ending: false,
            filter,
            calls,
            ready: Vec::new(),
            doomed: HashSet::new(),
            early: HashSet::new(),
            copies: 0,
            end: None,
            alarm,
            last_event: Instant::now(),
            ask_again: None,
            _on_one_thread: PhantomData,
        })
    }

    /// Starts `command`, stopped at its first instruction until [`run`](Self::run).
    ///
    /// The commands are numbered from 0 in the order of their spawning.
    pub fn spawn(&mut self, command: &Command) -> Result<ProcessId, TraceError> {
        for given in command.descriptors.iter().filter(|given| given.used_for == FdUse::Ack) {
            if let Ok(status) = nix::sys::stat::fstat(&*given.descriptor) {
                self.state.files.add_ack(FileId { device: status.st_dev, inode: status.st_ino });
            }
        }
        let child = launch(command, &mut self.filter)?;
        if self.answers.is_some() {
            world::prepare_program(child).map_err(|source| TraceError::Start {
                program: command.program.clone(),
                step: "hide the vDSO",
                source,
            })?;
        }
        Ok(self.add_spawned(child))
    }

    /// Has `nursery` fork a victim, which then is as one that was spawned. `place` is the number
    /// that the nursery knows it by: that of its gate, if there are gates.
    ///
    /// # Panics
    ///
    /// If the nursery's children stop at other calls than this supervisor deals with.
    pub fn spawn_from(
        &mut self,
        nursery: &mut Nursery,
        place: usize,
    ) -> Result<ProcessId, TraceError> {
        assert_eq!(nursery.calls(), self.calls, "the filter is inherited");
        if let Some(gates) = nursery.gates() {
            gates.gate(place).clear();
        }
        let child = nursery.birth()?;
        if let Some(gates) = nursery.gates() {
            self.passes.add(ThreadId(child), gates, place);
        }
        if let Some(answers) = &mut self.answers {
            answers.parents_are_real = true;
        }
        Ok(self.add_spawned(child))
    }

    fn add_spawned(&mut self, child: i32) -> ProcessId {
        let (process, thread) = (ProcessId(child), ThreadId(child));
        self.state.add_process(process, None, self.copies, true);
        self.state.add_thread(thread, process, Activity::Starting);
        self.copies += 1;
        self.ready.push(thread);
        process
    }

    /// Lets all commands go and asks `driver` at every stop, until every process has ended or been
    /// killed.
    ///
    /// # Errors
    ///
    /// [`TraceError::ForeignAbi`] and [`TraceError::Supervise`]; everything is killed then.
    pub fn run(mut self, driver: &mut dyn Driver) -> Result<Run, TraceError> {
        self.state.started = Instant::now();
        self.share_core();
        for thread in std::mem::take(&mut self.ready) {
            driver.at_event(&Event::Started { process: ProcessId(thread.0) }, &self.scene());
            self.let_go(thread)?;
        }
        self.choose(driver)?;
        while !self.state.threads.is_empty() {
            let status = self.next_status()?;
            if let Some((thread, status)) = status {
                self.learn_lock(driver);
                self.state.events += 1;
                self.handle(driver, thread, status)?;
                if !(self.held.is_empty() && self.parked.is_empty()) {
                    self.last_event = Instant::now();
                }
            }
            self.look_at_clock(status.is_none())?;
            self.choose(driver)?;
            self.look_for_end()?;
        }
        Ok(self.finish())
    }

    pub(super) fn scene(&self) -> Scene<'_> {
        Scene { state: &self.state }
    }

    /// The next thing that happened; `None` if it is time to look at the clock.
    fn next_status(&mut self) -> Result<Option<(ThreadId, Status)>, TraceError> {
        if !self.blocks_at_once()
            && let Some(status) = wait(false)?
        {
            return Ok(Some(status));
        }
        // A victim on this very core runs when we block.
        let began = Instant::now();
        let looks = !self.blocks_at_once();
        while looks && began.elapsed() < LOOKING {
            // Yielding cannot fail on Linux.
            nix::sched::sched_yield().ok();
            if let Some(status) = wait(false)? {
                return Ok(Some(status));
            }
        }
        let due = self.timers.iter().map(|timer| timer.due).chain(self.ask_again).min();
        let deadline = self.deadline();
        let due = due.map_or(deadline, |due| due.min(deadline));
        // Where one runs at a time the next stop is microseconds away: an alarm that goes off
        // before what is due, and again every few milliseconds, need not be set anew for each.
        if looks || !self.alarm.goes_off_by(due) {
            self.alarm
                .set(Some(due))
                .map_err(|errno| TraceError::supervise("set a timer", 0, errno))?;
            if Instant::now() >= due {
                return wait(false);
            }
        }
        wait(true)
    }

    fn blocks_at_once(&self) -> bool {
        let options = &self.state.options;
        options.one_at_a_time || options.same_core || self.shared_core.is_some()
    }

    /// Puts the only thread there is on this core, if that is asked for.
    pub(super) fn share_core(&mut self) {
        let mut threads = self.state.threads.keys();
        if self.state.options.one_core
            && self.shared_core.is_none()
            && let (Some(only), None) = (threads.next(), threads.next())
        {
            self.shared_core = OneCore::share(*only);
        }
    }

    /// Lets everybody run on the cores that they could run on before.
    pub(super) fn leave_core(&mut self) {
        if let Some(core) = self.shared_core.take() {
            core.leave(self.state.threads.keys().copied());
        }
    }

    /// The moment at which everything is killed; once it has been, the moment to give up waiting.
    fn deadline(&self) -> Instant {
        let limit = self.state.options.deadline;
        let limit = if self.end.is_some() { limit + REAPING } else { limit };
        self.state.started + limit
    }

    /// Does what is due. `quiet` says that nothing happened, so that the clock may be what woke us.
    fn look_at_clock(&mut self, quiet: bool) -> Result<(), TraceError> {
        let nothing_timed = self.timers.is_empty() && self.ask_again.is_none();
        if nothing_timed && !quiet && !self.state.events.is_multiple_of(EVENTS_BETWEEN_LOOKS) {
            return Ok(());
        }
        let now = Instant::now();
        while let Some(place) = self.timers.iter().position(|timer| timer.due <= now) {
            let timer = self.timers.remove(place);
            self.timer_over(timer)?;
        }
        if now >= self.deadline() {
            if self.end.is_some() {
                let step = "see the end of the killed processes";
                return Err(TraceError::supervise(step, 0, Errno::ETIMEDOUT));
            }
            self.cut_short(RunEnd::Deadline)?;
        }
        Ok(())
    }

    fn choose(&mut self, driver: &mut dyn Driver) -> Result<(), TraceError> {
        self.ask_again = None;
        while !(self.held.is_empty() && self.parked.is_empty())
            && self.end.is_none()
            && !self.ending
        {
            let running = self.state.running();
            let quiet = self.last_event.elapsed();
            let standing = Standing { held: &self.held, parked: &self.parked, running, quiet };
            let mut choice = driver.choose(standing, &self.scene());
            if let Choice::Release(thread, _) = choice
                && !self.held.iter().any(|stop| stop.thread == thread)
                && !self.parked.contains(&thread)
            {
                choice = Choice::Wait;
            }
            match choice {
                Choice::Wait => {
                    if running == 0 && self.timers.is_empty() {
                        self.cut_short(RunEnd::Stalled)?;
                    }
                    return Ok(());
                }
                Choice::WaitAtMost(limit) => {
                    self.ask_again = Some(Instant::now() + limit);
                    return Ok(());
                }
                Choice::Release(thread, decision) => {
                    let place = self.held.iter().position(|stop| stop.thread == thread);
                    let Some(place) = place else {
                        self.parked.retain(|parked| *parked != thread);
                        self.let_pass(driver, thread, decision);
                        self.unpark(thread, decision)?;
                        continue;
                    };
                    let stop = self.held.remove(place);
                    let decision = match decision {
                        Decision::Hold => Decision::Continue,
                        other => other,
                    };
                    self.let_pass(driver, stop.thread, decision);
                    self.apply(stop, decision)?;
                }
            }
        }
        Ok(())
    }

    fn look_for_end(&mut self) -> Result<(), TraceError> {
        if self.end.is_some() || self.state.threads.is_empty() {
            return Ok(());
        }
        if self.ending {
            return self.cut_short(RunEnd::Driver);
        }
        let kills = self.state.options.leftovers == Leftovers::Kill;
        if kills && !self.state.processes.values().any(|process| process.spawned) {
            return self.cut_short(RunEnd::LeftoversKilled);
        }
        Ok(())
    }

    /// Kills everything, noting where each process was.
    fn cut_short(&mut self, why: RunEnd) -> Result<(), TraceError> {
        self.end = Some(why);
        self.state.note_places();
        self.kill(ProcessId(0), Whom::All)
    }

    /// Whether nothing new may begin any more.
    pub(super) fn is_over(&self) -> bool {
        self.end.is_some()
    }

    fn finish(mut self) -> Run {
        let one_core = self.shared_core.is_some();
        self.leave_core();
        let mut finished = std::mem::take(&mut self.state.finished);
        finished.sort_by_key(|(index, _)| *index);
        Run {
            end: self.end.unwrap_or(RunEnd::AllExited),
            elapsed: self.state.started.elapsed(),
            processes: finished.into_iter().map(|(_, report)| report).collect(),
            receipts: std::mem::take(&mut self.log.receipts),
            points: self.state.points,
            phases: std::mem::take(&mut self.state.phases),
            stops: self.state.stops,
            passed: self.state.passed,
            one_core,
            sleeps_skipped: self.log.sleeps_skipped,
        }
    }

    /// Lets a stopped thread go on.
    pub(super) fn resume(
        &mut self,
        thread: ThreadId,
        how: Resume,
        signal: i32,
    ) -> Result<(), TraceError> {
        let steps = matches!(self.trap_of(thread), Some(Trap::Steps(_)));
        let how = if steps && how == Resume::Run { Resume::Step } else { how };
        if let Err(errno) = ptrace::resume(thread.0, how, signal) {
            return unless_dead(thread, "resume", errno);
        }
        if let Some(record) = self.state.threads.get_mut(&thread)
            && !matches!(record.activity, Activity::Dying)
        {
            record.activity = Activity::Running;
        }
        Ok(())
    }

    /// Lets a new thread go, or has it stand still where the driver is to say when.
    pub(super) fn let_go(&mut self, thread: ThreadId) -> Result<(), TraceError> {
        if !self.state.options.one_at_a_time {
            return self.resume(thread, Resume::Run, 0);
        }
        self.park(thread);
        Ok(())
    }

    /// Has a thread stand still where it is stopped.
    pub(super) fn park(&mut self, thread: ThreadId) {
        self.set_activity(thread, Activity::Standing);
        self.parked.push(thread);
    }

    pub(super) fn set_activity(
        &mut self,
        thread: ThreadId,
        activity: Activity,
    ) -> Option<Activity> {
        let record = self.state.threads.get_mut(&thread)?;
        Some(std::mem::replace(&mut record.activity, activity))
    }
}

/// A thread that has been killed no longer obeys; its end will be reported.
pub(super) fn unless_dead(
    thread: ThreadId,
    step: &'static str,
    errno: Errno,
) -> Result<(), TraceError> {
    match errno {
        Errno::ESRCH => Ok(()),
        errno => Err(TraceError::supervise(step, thread.0, errno)),
    }
}

fn wait(block: bool) -> Result<Option<(ThreadId, Status)>, TraceError> {
    match ptrace::wait(Whose::Mine, block) {
        Ok(status) => Ok(status.map(|(thread, status)| (ThreadId(thread), status))),
        Err(Errno::EINTR) => Ok(None),
        Err(errno) => Err(TraceError::supervise("wait for the victims", 0, errno)),
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.leave_core();
        if self.state.threads.is_empty() {
            return;
        }
        // Nobody is left to tell; what cannot be killed here dies with this process (EXITKILL).
        self.kill(ProcessId(0), Whom::All).ok();
        let until = Instant::now() + REAPING;
        while !self.state.threads.is_empty() && Instant::now() < until {
            self.alarm.set(Some(until)).ok();
            match ptrace::wait(Whose::Mine, true) {
                Ok(Some((thread, Status::Exited(_) | Status::Killed { .. }))) => {
                    self.state.threads.remove(&ThreadId(thread));
                }
                Ok(Some((thread, _))) => {
                    // A child that was born while its parent was being killed.
                    ptrace::signal(thread, libc::SIGKILL).ok();
                    ptrace::resume(thread, Resume::Run, 0).ok();
                    self.state.add_thread(ThreadId(thread), ProcessId(thread), Activity::Dying);
                }
                Ok(None) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}
