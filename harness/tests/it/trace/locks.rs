//! The lock model against the kernel's own list.

use std::collections::BTreeSet;

use killpoint::run::trace::{
    Choice, Databases, Decision, Driver, Exit, Role, Scene, Standing, Stop, Watcher,
};

use super::support::{Lab, run_all};

/// A held lock: process, inode, exclusive, first and last byte.
type Lock = (i32, u64, bool, u64, u64);

/// Lets one thread at a time go on, and compares whenever nobody runs.
struct Compare {
    inode: u64,
    seed: u32,
    comparisons: usize,
    most: usize,
}

impl Compare {
    fn random(&mut self, below: usize) -> usize {
        // xorshift: any order of the processes will do.
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 17;
        self.seed ^= self.seed << 5;
        self.seed as usize % below
    }

    fn compare(&mut self, scene: Scene<'_>) {
        let mut model = BTreeSet::new();
        for process in scene.processes() {
            let Some(table) = scene.descriptors(process) else { continue };
            let main = table
                .descriptors()
                .map(|(_, held)| held.file)
                .find(|file| file.role == Role::Database);
            let Some(file) = main else { continue };
            for lock in scene.locks().of(scene.owner(process), file.id) {
                let (first, last) = (lock.range.first, lock.range.last);
                model.insert((process.0, file.id.inode, lock.exclusive, first, last));
            }
        }
        // The kernel gives the list in pieces, and leaves lines out when others lock meanwhile.
        let mut listed = kernel(self.inode);
        for _ in 0..100 {
            if listed == model {
                break;
            }
            listed = kernel(self.inode);
        }
        assert_eq!(model, listed);
        self.comparisons += 1;
        self.most = self.most.max(listed.len());
    }
}

/// What the kernel lists for an inode in `/proc/locks`.
fn kernel(inode: u64) -> BTreeSet<Lock> {
    let text = std::fs::read_to_string("/proc/locks").unwrap();
    text.lines()
        .filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let [_, "POSIX", "ADVISORY", kind, process, file, first, last] = fields[..] else {
                return None;
            };
            let at = file.rsplit(':').next()?.parse().ok().filter(|at| *at == inode)?;
            let last = if last == "EOF" { u64::MAX } else { last.parse().ok()? };
            Some((process.parse().ok()?, at, kind == "WRITE", first.parse().ok()?, last))
        })
        .collect()
}

impl Driver for Compare {
    fn at_stop(&mut self, _stop: &Stop, _scene: &Scene<'_>) -> Decision {
        Decision::Hold
    }

    fn choose(&mut self, standing: Standing<'_>, scene: &Scene<'_>) -> Choice {
        if standing.running > 0 {
            return Choice::Wait;
        }
        self.compare(*scene);
        let next = self.random(standing.held.len());
        Choice::Release(standing.held[next].thread, Decision::Continue)
    }
}

#[test]
fn model_agrees_with_the_kernel_after_every_call_of_random_programs() {
    let lab = Lab::new();
    std::fs::write(&lab.db, vec![0; 100]).unwrap();
    let script = "import random\nr = random.Random(SEED)\nfds = []\n\
        def step():\n\
        \x20k = r.random()\n\
        \x20if not fds or k < 0.1: fds.append(os.open(DB, os.O_RDWR))\n\
        \x20elif k < 0.13: os.close(fds.pop(r.randrange(len(fds))))\n\
        \x20elif k < 0.15: fds.append(os.dup(r.choice(fds)))\n\
        \x20elif k < 0.17: os.dup2(r.choice(fds), r.choice(fds))\n\
        \x20elif k < 0.18: os.lseek(r.choice(fds), r.randrange(40), 0)\n\
        \x20else:\n\
        \x20 kind = r.choice([fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN])\n\
        \x20 flags = 0 if kind == fcntl.LOCK_UN else fcntl.LOCK_NB\n\
        \x20 try: fcntl.lockf(r.choice(fds), kind | flags, r.randrange(30), r.randrange(60),\
        r.choice([0, 0, 1, 2]))\n\
        \x20 except OSError: pass\n\
        for i in range(150): step()\n\
        if os.fork() == 0:\n\
        \x20for i in range(40): step()\n\
        \x20os._exit(0)\n\
        while os.waitpid(-1, os.WNOHANG)[0] == 0: step()\n";
    let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&lab.db).unwrap());
    let commands: Vec<_> =
        (1..4).map(|seed| lab.python(&script.replace("SEED", &seed.to_string()))).collect();
    let mut driver = Compare { inode, seed: 7, comparisons: 0, most: 0 };
    let options = Watcher::options(Databases::At(vec![lab.db.clone()]));
    let run = run_all(options, &commands, &mut driver);
    for copy in 0..3 {
        assert_eq!(run.exit_of(copy), Some(Exit::Code(0)), "{run}");
    }
    assert!(driver.comparisons > 500, "{}", driver.comparisons);
    assert!(driver.most > 5, "{}", driver.most);
}
