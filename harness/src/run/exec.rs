//! Any command as the victim: runs copies of it under the supervisor, strikes once, collects what
//! they acknowledged, and looks at what is left of the database.
//!
//! Acknowledgements are lines on a pipe whose number stands in `KILLPOINT_ACK_FD`:
//!
//! | line            | meaning                                                      |
//! |-----------------|--------------------------------------------------------------|
//! | `ack TOKEN`     | whatever TOKEN stands for is committed: it must be there     |
//! | `refused TOKEN` | it was not done: it must not be there                        |
//!
//! A line that the kill cut short counts for nothing.

use super::error::RunError;
use super::probe;
use super::trace::{
    CallKind, CallSet, Command, Databases, Decision, Driver, Event, Exit, Fault, FdUse, Options,
    Phase, PhasePattern, Receipt, RunEnd, Scene, Stop, Supervisor,
};
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The variable that names the descriptor of the acknowledgements.
pub const ACK_FD: &str = "KILLPOINT_ACK_FD";
/// Its number in the victims.
const ACK_NUMBER: i32 = 9;

/// The command and what it is given.
#[derive(Clone, Debug)]
pub struct Victim {
    /// Program and arguments.
    pub command: Vec<OsString>,
    /// How many run at once.
    pub copies: u32,
    /// Where they run.
    pub dir: PathBuf,
    /// Their databases; none: found by what they open.
    pub databases: Vec<PathBuf>,
    /// How long one run may take.
    pub deadline: Duration,
}

/// One blow at the so-many-th point of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Which points count.
    pub pattern: PhasePattern,
    /// Which of them, from 1.
    pub nth: u64,
    /// What is done.
    pub fault: Fault,
}

/// What one run showed.
#[derive(Debug)]
pub struct Executed {
    /// Tokens that were acknowledged.
    pub acked: Vec<String>,
    /// Tokens that were refused.
    pub refused: Vec<String>,
    /// Lines that were none of the protocol.
    pub strange: u64,
    /// What came of the blow.
    pub receipt: Option<Receipt>,
    /// Points by phase.
    pub phases: BTreeMap<Phase, u64>,
    /// Databases that were met.
    pub databases: Vec<PathBuf>,
    /// How each process ended.
    pub exits: Vec<(String, Option<Exit>)>,
    /// Why the run ended.
    pub end: RunEnd,
}

/// Strikes once, and remembers the databases that it meets.
struct Once {
    hit: Option<Hit>,
    seen: u64,
    struck: bool,
    phases: BTreeMap<Phase, u64>,
    databases: Vec<PathBuf>,
}

impl Driver for Once {
    fn at_stop(&mut self, stop: &Stop, _scene: &Scene<'_>) -> Decision {
        if stop.point.is_none() {
            return Decision::Continue;
        }
        *self.phases.entry(stop.phase).or_default() += 1;
        let Some(hit) = self.hit.filter(|hit| !self.struck && hit.pattern.matches(stop.phase))
        else {
            return Decision::Continue;
        };
        self.seen += 1;
        if self.seen < hit.nth {
            return Decision::Continue;
        }
        self.struck = true;
        Decision::Fault(hit.fault)
    }

    fn at_event(&mut self, _event: &Event, scene: &Scene<'_>) {
        for (_, database) in scene.databases() {
            if !self.databases.contains(&database.path) {
                self.databases.push(database.path.clone());
            }
        }
    }
}

/// Runs the command once, with at most one blow.
pub fn execute(victim: &Victim, hit: Option<Hit>) -> Result<Executed, RunError> {
    let system = |what| move |source| RunError::System { what, source };
    let databases = if victim.databases.is_empty() {
        Databases::Detect
    } else {
        Databases::At(victim.databases.clone())
    };
    let calls = CallSet::FAULTS.with(CallKind::Open).without(CallKind::Sleep);
    let options = Options::new(calls, databases).deadline(victim.deadline);
    let mut supervisor = Supervisor::new(options)?;
    let Some((program, arguments)) = victim.command.split_first() else {
        return Err(RunError::Zygote("no command".to_owned()));
    };
    let mut readers = Vec::new();
    for copy in 0..victim.copies {
        let (ours, theirs) = std::io::pipe().map_err(system("a pipe"))?;
        let command = Command::new(program)
            .args(arguments)
            .env(ACK_FD, ACK_NUMBER.to_string())
            .env("KILLPOINT_COPY", copy.to_string())
            .current_dir(&victim.dir)
            .fd(ACK_NUMBER, OwnedFd::from(theirs), FdUse::Ack);
        supervisor.spawn(&command)?;
        drop(command);
        // A pipe that nobody empties would stop the victim.
        readers.push(std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let mut ours = ours;
            ours.read_to_end(&mut bytes).map(|_| bytes)
        }));
    }
    let mut once = Once {
        hit,
        seen: 0,
        struck: false,
        phases: BTreeMap::new(),
        databases: victim.databases.clone(),
    };
    let run = supervisor.run(&mut once)?;
    let mut executed = Executed {
        acked: Vec::new(),
        refused: Vec::new(),
        strange: 0,
        receipt: run.receipts.first().cloned(),
        phases: once.phases,
        databases: once.databases,
        // Helpers that a shell starts on the way may end as they like.
        exits: run
            .processes
            .iter()
            .filter(|process| process.spawned || process.points > 0)
            .map(|process| (process.command.clone(), process.exit))
            .collect(),
        end: run.end,
    };
    for reader in readers {
        let bytes = reader
            .join()
            .map_err(|_| RunError::Zygote("the reader of acknowledgements panicked".to_owned()))?
            .map_err(system("reading acknowledgements"))?;
        executed.take(&String::from_utf8_lossy(&bytes));
    }
    Ok(executed)
}

impl Executed {
    /// Takes in what one process wrote. A last line without its end was cut short by a kill.
    fn take(&mut self, text: &str) {
        for line in text.split_inclusive('\n') {
            let Some(line) = line.strip_suffix('\n') else { continue };
            match line.split_once(' ') {
                Some(("ack", token)) => self.acked.push(token.trim().to_owned()),
                Some(("refused", token)) => self.refused.push(token.trim().to_owned()),
                _ => self.strange += 1,
            }
        }
    }
}

/// What recovery gave of any database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// Why it could not be read.
    pub unreadable: Option<String>,
    /// Complaints of `integrity_check`.
    pub integrity: Vec<String>,
    /// Whether two copies were recovered to the same file, and a second checkpoint changed nothing.
    pub stable: bool,
    /// Acknowledged tokens for which the query gives nothing.
    pub missing: Vec<String>,
    /// Refused tokens for which it gives something.
    pub present: Vec<String>,
}

/// Recovers two copies of `database` in `dir`, and asks `query` of the first for each token.
///
/// The query has one parameter, the token as text; it is there when the first column of the first
/// row is neither NULL nor 0.
pub fn inspect(
    database: &Path,
    dir: &Path,
    query: Option<&str>,
    acked: &[String],
    refused: &[String],
) -> Result<Remains, RunError> {
    let copies = [dir.join("killpoint-copy-1.db"), dir.join("killpoint-copy-2.db")];
    for copy in &copies {
        probe::copy_with_log(database, copy)?;
    }
    let mut remains = Remains::default();
    let read = (|| {
        let first = probe::open(&copies[0])?;
        remains.integrity = probe::integrity(&first)?;
        if let Some(query) = query {
            for (tokens, found) in [(acked, false), (refused, true)] {
                for token in tokens {
                    let there = is_there(&first, query, token).map_err(|error| {
                        match error.sqlite_error_code() {
                            // A mistake in the query's own text, not in the database.
                            Some(rusqlite::ErrorCode::Unknown) | None => {
                                probe::Stop::Run(RunError::Query(error.to_string()))
                            }
                            Some(_) => probe::Stop::Sqlite(error),
                        }
                    })?;
                    if there == found {
                        let list = if found { &mut remains.present } else { &mut remains.missing };
                        list.push(token.clone());
                    }
                }
            }
        }
        let mut hashes = Vec::new();
        probe::checkpoint(&first)?;
        hashes.push(probe::hash(&copies[0])?);
        probe::checkpoint(&first)?;
        hashes.push(probe::hash(&copies[0])?);
        probe::checkpoint(&probe::open(&copies[1])?)?;
        hashes.push(probe::hash(&copies[1])?);
        remains.stable = hashes.iter().all(|hash| *hash == hashes[0]);
        Ok(())
    })();
    match read {
        Ok(()) => {}
        Err(probe::Stop::Run(error)) => return Err(error),
        Err(probe::Stop::Sqlite(error)) => remains.unreadable = Some(error.to_string()),
    }
    for copy in &copies {
        probe::remove_with_log(copy)?;
    }
    Ok(remains)
}

fn is_there(conn: &Connection, query: &str, token: &str) -> rusqlite::Result<bool> {
    use rusqlite::OptionalExtension as _;
    use rusqlite::types::Value;
    let mut statement = conn.prepare_cached(query)?;
    let first = statement.query_row([token], |row| row.get::<_, Value>(0)).optional()?;
    Ok(!matches!(first, None | Some(Value::Null | Value::Integer(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing() -> Executed {
        Executed {
            acked: Vec::new(),
            refused: Vec::new(),
            strange: 0,
            receipt: None,
            phases: BTreeMap::new(),
            databases: Vec::new(),
            exits: Vec::new(),
            end: RunEnd::AllExited,
        }
    }

    #[test]
    fn lines_of_the_protocol_are_read_and_others_counted() {
        let mut executed = nothing();
        executed.take("ack 1\nack a b\nrefused 7\nhello\nack 9");
        assert_eq!(executed.acked, ["1", "a b"]);
        assert_eq!(executed.refused, ["7"]);
        assert_eq!(executed.strange, 1);
    }

    #[test]
    fn a_token_is_there_when_the_query_gives_something() {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY); INSERT INTO t VALUES (5);")
            .unwrap();
        for query in ["SELECT count(*) FROM t WHERE id = ?1", "SELECT 1 FROM t WHERE id = ?1"] {
            assert!(is_there(&conn, query, "5").unwrap());
            assert!(!is_there(&conn, query, "6").unwrap());
        }
    }
}
