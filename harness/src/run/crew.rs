//! The zygotes of a lane: one for each engine, all with one ledger.
//!
//! A cycle's processes may run on different engines. Each is forked by the zygote of its own, in
//! the slot that the plan gives it, so that nobody who reads the ledger has to know.

use super::engine::Engines;
use super::error::RunError;
use super::supervise::{Child, Zygote};
use killpoint_worker::ledger::Ledger;
use killpoint_worker::wire::{Cycle, EngineName, Exit};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Zygotes, started as they are needed.
#[derive(Debug)]
pub(super) struct Crew {
    engines: Engines,
    ledger: Ledger,
    memory: OwnedFd,
    ops_max: usize,
    /// Where what processes print on a panic goes.
    dir: PathBuf,
    zygotes: BTreeMap<EngineName, Zygote>,
    /// Which slots were forked by which, since the last reaping.
    forked: Vec<(EngineName, Vec<usize>)>,
}

impl Crew {
    pub(super) fn new(engines: &Engines, ops_max: usize, dir: &Path) -> Result<Self, RunError> {
        let (ledger, memory) = Ledger::create(ops_max).map_err(|error| RunError::System {
            what: "shared memory for the ledger",
            source: std::io::Error::other(error),
        })?;
        Ok(Self {
            engines: engines.clone(),
            ledger,
            memory,
            ops_max,
            dir: dir.to_owned(),
            zygotes: BTreeMap::new(),
            forked: Vec::new(),
        })
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Forks the processes of a cycle, and gives them by slot.
    pub(super) fn fork(&mut self, cycle: &Cycle) -> Result<Vec<Child>, RunError> {
        // Entries of an earlier cycle must not be taken for this one's.
        for slot in 0..cycle.lives.len() {
            forget(&self.ledger, slot);
        }
        let mut by_engine: BTreeMap<EngineName, Vec<usize>> = BTreeMap::new();
        for (slot, life) in cycle.lives.iter().enumerate() {
            by_engine.entry(life.engine).or_default().push(slot);
        }
        let mut children: BTreeMap<usize, Child> = BTreeMap::new();
        for (name, slots) in by_engine {
            let forked = self.zygote(name)?.fork(cycle, &slots)?;
            children.extend(slots.iter().copied().zip(forked));
            self.forked.push((name, slots));
        }
        if children.len() == cycle.lives.len() {
            return Ok(children.into_values().collect());
        }
        Err(RunError::Zygote("it forked fewer processes than it was told to".to_owned()))
    }

    /// How each child ended, by slot; to be asked when all have.
    pub(super) fn reap(&mut self) -> Result<Vec<Exit>, RunError> {
        let mut exits: BTreeMap<usize, Exit> = BTreeMap::new();
        for (name, slots) in std::mem::take(&mut self.forked) {
            exits.extend(slots.into_iter().zip(self.zygote(name)?.reap()?));
        }
        Ok(exits.into_values().collect())
    }

    fn zygote(&mut self, name: EngineName) -> Result<&mut Zygote, RunError> {
        match self.zygotes.entry(name) {
            std::collections::btree_map::Entry::Occupied(there) => Ok(there.into_mut()),
            std::collections::btree_map::Entry::Vacant(vacant) => {
                let log = self.dir.join(format!("worker-{}.stderr", name.as_str()));
                let engine = self.engines.get(name)?;
                let zygote = Zygote::start(engine, (&self.memory, self.ops_max), &log)?;
                Ok(vacant.insert(zygote))
            }
        }
    }
}

/// Empties a slot of the ledger, and those of its entries that were used.
pub(super) fn forget(ledger: &Ledger, slot: usize) {
    let used = ledger.slot(slot).used().min(ledger.capacity());
    for entry in ledger.entries(slot).iter().take(used + 1) {
        entry.clear();
    }
    ledger.slot(slot).clear();
}
