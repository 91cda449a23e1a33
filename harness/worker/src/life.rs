//! One writer's life: open, play a role until killed or told to drain, close.
//!
//! Every operation is entered in the ledger before it is sent and after it is answered. What a role
//! does next depends on what it reads from the board and on its own seed, on nothing else.

use crate::content;
use crate::engine;
use crate::fork;
use crate::ledger::{self, Activity, Ledger, Reason, Slot, now_ns};
use crate::shim;
use crate::target::{self, Done, Failure, Mode, Op, Target};
use crate::visit;
use crate::wire::{self, EXIT_FULL, EXIT_OPEN, EXIT_STORE, Flaw, Life, Role, Shape, Step};
use hardboard::OpKey;
use rusqlite::{Connection, OptionalExtension as _};
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

/// How long a role waits that found nothing to do.
const NOTHING_TO_DO: Duration = Duration::from_micros(300);

/// Lives `life` in slot `index`, and gives the exit code.
pub(crate) fn live(ledger: &'static Ledger, index: usize, path: &Path, life: &Life) -> i32 {
    let slot = ledger.slot(index);
    slot.set_loaded(&engine::loaded());
    if life.role == Role::Visitor {
        return visit::live(ledger, index, path, life);
    }
    once(ledger, index, path, life)
}

/// The same for a single connection: what a visitor does again and again.
pub(crate) fn once(ledger: &'static Ledger, index: usize, path: &Path, life: &Life) -> i32 {
    let slot = ledger.slot(index);
    if life.untimed {
        ledger::leave_out_times();
    }
    let code = match begin(slot, path, life) {
        Ok(target) => play(ledger, index, path, target, life),
        Err(message) => {
            slot.set_message(&message);
            EXIT_OPEN
        }
    };
    slot.set_ready();
    code
}

fn begin(slot: &'static Slot, path: &Path, life: &Life) -> Result<Box<dyn Target>, String> {
    shim::observe(slot);
    let target = target::open(path, life, life.role == Role::Founder)?;
    let effective = target.effective()?;
    slot.set_effective(&effective);
    slot.set_activity(Activity::Idle);
    slot.set_ready();
    Ok(target)
}

fn play(
    ledger: &'static Ledger,
    index: usize,
    path: &Path,
    target: Box<dyn Target>,
    life: &Life,
) -> i32 {
    let slot = ledger.slot(index);
    // A visitor goes on where the visit before it ended.
    let sent = u32::try_from(slot.used()).unwrap_or(u32::MAX);
    let choices = Choices(life.seed.wrapping_add(sent.into()));
    let mut writer = Writer { ledger, index, slot, path, target, life, sent, choices };
    let end = match life.role {
        Role::Founder => End::Drained,
        Role::Dispatcher => writer.dispatch(),
        Role::Worker => writer.work(),
        Role::Reviewer => writer.review(),
        Role::Reader => writer.read(),
        Role::Checkpointer => writer.checkpoint(),
        Role::Visitor => writer.visit(),
        Role::Script => writer.perform_script(),
    };
    if life.abandon {
        fork::end_at_once(0);
    }
    let (mut code, message) = match end {
        End::Drained => (0, None),
        End::Full(message) => (EXIT_FULL, Some(message)),
        End::Broken(message) => (EXIT_STORE, Some(message)),
    };
    if let Err(message) = writer.target.close() {
        slot.set_message(&message);
        code = EXIT_STORE;
    } else {
        slot.set_activity(Activity::Closed);
    }
    if let Some(message) = message {
        slot.set_message(&message);
    }
    code
}

/// Why a role stopped.
enum End {
    /// It was asked to.
    Drained,
    /// The disk is full; the error's text.
    Full(String),
    /// The store is unusable; the error's text.
    Broken(String),
}

/// A writer's own choices: splitmix64, since nothing else is asked of them than a seed.
struct Choices(u64);

impl Choices {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// From `least` to `most`, both included.
    fn within(&mut self, [least, most]: [u32; 2]) -> u32 {
        let span = u64::from(most.saturating_sub(least)) + 1;
        least + u32::try_from(self.next() % span).unwrap_or(0)
    }
}

struct Writer<'a> {
    ledger: &'static Ledger,
    index: usize,
    slot: &'static Slot,
    path: &'a Path,
    target: Box<dyn Target>,
    life: &'a Life,
    sent: u32,
    choices: Choices,
}

/// What came of an operation, to the role that asked for it.
enum Told {
    Done(Done),
    Refused(Reason),
}

impl Writer<'_> {
    /// Sends one operation; `Err` ends the life.
    fn send(&mut self, op: &Op<'_>) -> Result<Told, End> {
        let Some(entry) = self.ledger.entries(self.index).get(self.sent as usize) else {
            // The ledger is full. What it holds can be judged; more would not be.
            self.wait_for_drain();
            return Err(End::Drained);
        };
        let key = self.next_key();
        let (task, token) = op.names();
        let from = now_ns();
        entry.send(op.kind(), task, token, op.rows(), from);
        self.sent += 1;
        self.slot.set_used(self.sent);
        let ack_fd = self.life.ack_fd;
        let mut early = |done: Done| {
            entry.ack(done.task, done.token, done.seq, done.durability);
            tell(ack_fd, key, &done);
        };
        let durability = self.life.durability.get(&op.step()).copied();
        let told = self.target.perform(key, op, durability, &mut early);
        let spent = now_ns().saturating_sub(from);
        match told {
            Ok(done) => {
                entry.time(spent, done.commit_ns);
                entry.ack(done.task, done.token, done.seq, done.durability);
                tell(ack_fd, key, &done);
                if self.life.header_check {
                    check_header(self.path);
                }
                Ok(Told::Done(done))
            }
            Err(Failure::Refused(reason, message)) => {
                entry.time(spent, 0);
                entry.refuse(reason);
                match reason {
                    Reason::Full => Err(End::Full(message)),
                    Reason::Error => Err(End::Broken(message)),
                    Reason::None | Reason::Nothing | Reason::Stale | Reason::Busy => {
                        Ok(Told::Refused(reason))
                    }
                }
            }
            Err(Failure::Unknown(message)) => {
                entry.lose_track();
                Err(End::Broken(message))
            }
        }
    }

    /// Operations count from 1, so that `op` is the entry's index and one.
    fn next_key(&self) -> OpKey {
        OpKey { session: self.life.session, op: i64::from(self.sent) + 1 }
    }

    fn draining(&self) -> bool {
        self.slot.draining() && self.life.target != wire::Target::Flawed(Flaw::NeverEnds)
    }

    fn shape(&self) -> Shape {
        self.life.shape
    }

    fn pause(&mut self) {
        let us = self.choices.within(self.shape().pause_us);
        if us > 0 {
            sleep(Duration::from_micros(us.into()));
        }
    }

    fn wait_for_drain(&self) {
        while !self.draining() {
            sleep(NOTHING_TO_DO);
        }
    }

    fn dispatch(&mut self) -> End {
        while !self.draining() {
            match self.dispatch_once() {
                Ok(true) => self.pause(),
                Ok(false) => sleep(NOTHING_TO_DO),
                Err(end) => return end,
            }
        }
        End::Drained
    }

    /// Takes back what expired, creates one task if too few are ready; says if it did anything.
    fn dispatch_once(&mut self) -> Result<bool, End> {
        let expired = tolerate_busy(self.target.expired(), "count the expired claims")?;
        if expired > 0 {
            self.send(&Op::TakeBack)?;
            self.step_the_clock();
            return Ok(true);
        }
        let conn = self.target.connection();
        let ready = number(conn, "SELECT count(*) FROM tasks WHERE status = ?1", "ready")?;
        if ready >= i64::from(self.shape().tasks_ready) {
            return Ok(false);
        }
        let OpKey { session, op } = self.next_key();
        let title = content::title(session, op);
        self.send(&Op::Create { title: &title, priority: content::priority(session, op) })?;
        Ok(true)
    }

    fn work(&mut self) -> End {
        let name = content::worker(self.life.session);
        while !self.draining() {
            let lease_ms = self.shape().lease_ms;
            match self.send(&Op::ClaimNext { worker: &name, lease_ms }) {
                Ok(Told::Done(claim)) => {
                    if let Err(end) = self.work_on(claim.task, claim.token) {
                        return end;
                    }
                    self.step_the_clock();
                }
                Ok(Told::Refused(_)) => sleep(NOTHING_TO_DO),
                Err(end) => return end,
            }
        }
        End::Drained
    }

    /// Now and then, and of its own choice, sets its wall clock forward or back.
    fn step_the_clock(&mut self) {
        let Shape { clock_steps_per_100, clock_step_s, .. } = self.shape();
        if clock_steps_per_100 == 0 {
            return;
        }
        let draw = self.choices.next();
        if draw % 100 < u64::from(clock_steps_per_100) {
            let forward = (draw >> 32).is_multiple_of(2);
            let by_ms = i64::from(clock_step_s) * 1000;
            self.target.shift_clock(if forward { by_ms } else { -by_ms });
        }
    }

    /// One task, if there is one.
    fn visit(&mut self) -> End {
        let name = content::worker(self.life.session);
        match self.send(&Op::ClaimNext { worker: &name, lease_ms: self.shape().lease_ms }) {
            Ok(Told::Done(claim)) => match self.work_on(claim.task, claim.token) {
                Ok(()) => End::Drained,
                Err(end) => end,
            },
            Ok(Told::Refused(_)) => {
                sleep(NOTHING_TO_DO);
                End::Drained
            }
            Err(end) => end,
        }
    }

    /// From a claim to its completion; an abandoned claim is left to its lease.
    fn work_on(&mut self, task: i64, token: i64) -> Result<(), End> {
        let shape = self.shape();
        let overstays = self.choices.next() % 100 < u64::from(shape.overstays_per_100_claims);
        let beat = Op::Heartbeat { task, token, lease_ms: shape.lease_ms };
        for _ in 0..shape.heartbeats_per_claim {
            if self.draining() {
                return Ok(());
            }
            self.pause();
            let many = self.choices.within(shape.events_per_append);
            if !self.append(task, token, many)? {
                return Ok(());
            }
            if matches!(self.send(&beat)?, Told::Refused(Reason::Stale)) {
                return Ok(());
            }
        }
        if overstays {
            // A worker that was stopped past its lease, and comes back as if nothing had been.
            sleep(Duration::from_millis(u64::from(shape.lease_ms) + 3));
            self.append(task, token, 1)?;
            self.send(&beat)?;
        }
        let OpKey { session, op } = self.next_key();
        self.send(&Op::Complete { task, token, result: &content::result(session, op) })?;
        Ok(())
    }

    /// Appends `many` events; says whether the claim still held.
    fn append(&mut self, task: i64, token: i64, many: u32) -> Result<bool, End> {
        let OpKey { session, op } = self.next_key();
        let bytes = self.shape().payload_bytes;
        let events: Vec<(&'static str, String)> = (0..u64::from(many))
            .map(|index| (content::event_kind(index), content::payload(session, op, index, bytes)))
            .collect();
        let told = self.send(&Op::Events { task, token, events: &events })?;
        Ok(!matches!(told, Told::Refused(Reason::Stale)))
    }

    /// Every step is tried, whatever came of those before: what a broken store says then matters.
    fn perform_script(&mut self) -> End {
        let (mut task, mut token) = (0, 0);
        for (number, step) in (1..).zip(&self.life.script) {
            self.slot.set_script_step(number);
            if self.shape().pause_us[1] > 0 {
                self.pause();
            }
            let OpKey { session, op } = self.next_key();
            let lease_ms = self.shape().lease_ms;
            match step {
                Step::Create => {
                    let title = content::title(session, op);
                    let priority = content::priority(session, op);
                    if let Ok(Told::Done(done)) = self.send(&Op::Create { title: &title, priority })
                        && task == 0
                    {
                        task = done.task;
                    }
                }
                Step::Claim => {
                    let worker = content::worker(session);
                    let op = Op::ClaimNext { worker: &worker, lease_ms };
                    if let Ok(Told::Done(claim)) = self.send(&op) {
                        (task, token) = (claim.task, claim.token);
                    }
                }
                Step::Events => {
                    let many = self.choices.within(self.shape().events_per_append);
                    drop(self.append(task.max(1), token, many));
                }
                Step::Heartbeat => drop(self.send(&Op::Heartbeat { task, token, lease_ms })),
                Step::Complete => {
                    let result = content::result(session, op);
                    drop(self.send(&Op::Complete { task, token, result: &result }));
                    token = 0;
                }
                Step::Checkpoint => self.checkpoint_once(Mode::Passive),
                Step::CheckpointFull => self.checkpoint_once(Mode::Full),
                Step::CheckpointRestart => self.checkpoint_once(Mode::Restart),
                Step::CheckpointTruncate => self.checkpoint_once(Mode::Truncate),
            }
        }
        let steps = u32::try_from(self.life.script.len()).unwrap_or(u32::MAX);
        self.slot.set_script_step(steps.saturating_add(1));
        End::Drained
    }

    /// What a checkpoint that fails leaves undone is left to the next.
    fn checkpoint_once(&mut self, mode: Mode) {
        if let Err(error) = self.target.checkpoint(mode) {
            self.slot.set_message(&format!("checkpoint: {error}"));
        }
    }

    fn review(&mut self) -> End {
        while !self.draining() {
            if let Err(end) = self.burst() {
                return end;
            }
        }
        End::Drained
    }

    fn burst(&mut self) -> Result<(), End> {
        let shape = self.shape();
        let tasks =
            number(self.target.connection(), "SELECT coalesce(max(id), 0) + ?1 FROM tasks", 0)?;
        if tasks == 0 {
            sleep(NOTHING_TO_DO);
            return Ok(());
        }
        let task = 1 + i64::try_from(self.choices.next() % tasks.unsigned_abs()).unwrap_or(0);
        let mut left = shape.events_per_burst;
        while left > 0 && !self.draining() {
            let many = self.choices.within(shape.events_per_append).clamp(1, left);
            self.append(task, 0, many)?;
            left -= many;
            self.pause();
        }
        Ok(())
    }

    fn read(&mut self) -> End {
        while !self.draining() {
            let conn = self.target.connection();
            let seen = conn
                .execute_batch("BEGIN; SELECT count(*), max(commit_seq) FROM events;")
                .and_then(|()| {
                    conn.execute_batch(
                        "SELECT status, count(*) FROM tasks GROUP BY status; COMMIT;",
                    )
                });
            if let Err(error) = seen {
                if error.sqlite_error_code() != Some(rusqlite::ErrorCode::DatabaseBusy) {
                    return End::Broken(format!("read: {error}"));
                }
                if !conn.is_autocommit() && conn.execute_batch("ROLLBACK").is_err() {
                    return End::Broken(format!("read: {error}"));
                }
            }
            self.pause();
        }
        End::Drained
    }

    /// Checkpoints whenever the WAL holds enough pages, and checks the answer.
    fn checkpoint(&mut self) -> End {
        let ask = |conn: &Connection| -> rusqlite::Result<i64> {
            conn.prepare_cached("PRAGMA wal_checkpoint(NOOP)")?
                .query_row([], |row| Ok(row.get::<_, i64>(1)? - row.get::<_, i64>(2)?))
        };
        while !self.draining() {
            let enough = i64::from(self.shape().checkpoint_pages);
            let answer = match ask(self.target.connection()) {
                Ok(pages) if pages < enough => Ok(None),
                Ok(_) => self.target.checkpoint(Mode::Passive),
                Err(e) if e.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => {
                    Ok(None)
                }
                Err(error) => Err(error.to_string()),
            };
            match answer {
                Ok(Some((log, done))) if done > log => {
                    return End::Broken(format!("checkpoint answered {done} of {log} frames"));
                }
                Ok(_) => {}
                Err(error) => return End::Broken(format!("checkpoint: {error}")),
            }
            sleep(Duration::from_millis(1));
        }
        End::Drained
    }
}

/// Says an acknowledgement where a supervisor hears it, in one write.
fn tell(ack_fd: Option<i32>, key: OpKey, done: &Done) {
    let Some(fd) = ack_fd else { return };
    let OpKey { session, op } = key;
    let line = format!("ack {session}.{op} {} {}\n", done.durability, done.seq);
    fork::write_to(fd, line.as_bytes());
}

/// One number from one query with one parameter.
fn number(conn: &Connection, sql: &str, value: impl rusqlite::ToSql) -> Result<i64, End> {
    let found = conn
        .prepare_cached(sql)
        .and_then(|mut query| query.query_row([value], |row| row.get(0)).optional());
    tolerate_busy(found.map(Option::unwrap_or_default), sql)
}

/// A number that could not be had because of a lock is 0.
fn tolerate_busy(found: rusqlite::Result<i64>, what: &str) -> Result<i64, End> {
    found.or_else(|error| match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseBusy) => Ok(0),
        _ => Err(End::Broken(format!("{what}: {error}"))),
    })
}

/// Reads the file's header as the application of the production report did after its commits. What
/// matters is the close at the end: with it all locks are gone that this process, and so SQLite,
/// holds on the file. What is read, or that nothing can be, matters to nobody.
fn check_header(path: &Path) {
    let mut header = [0; 100];
    drop(std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut header)));
}

#[expect(clippy::disallowed_methods, reason = "the pace of the workload, not a wait for anything")]
fn sleep(time: Duration) {
    std::thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Kind;

    #[test]
    fn choices_repeat_for_a_seed_and_stay_within_bounds() {
        let draw = |seed| {
            let mut choices = Choices(seed);
            (0..100).map(|_| choices.within([3, 9])).collect::<Vec<_>>()
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
        assert!(draw(5).iter().all(|x| (3..=9).contains(x)));
    }

    #[test]
    fn every_kind_of_operation_has_its_own_column_text() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_column(kind.as_str()), Some(kind));
        }
        assert_eq!(Kind::from_column("state"), None);
    }
}
