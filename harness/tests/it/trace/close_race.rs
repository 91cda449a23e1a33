//! A race inside SQLite that the watcher found: the close of one connection can drop the locks of
//! another thread's, in the same process, with one copy of SQLite.
//!
//! `unixClose` looks under the inode's mutex whether any connection holds a lock, leaves the mutex,
//! and then closes the descriptor. A lock that another thread gets between the two is dropped by
//! the kernel, and a second process writes in the middle of the transaction. Seen so with 3.40.1
//! and with 3.54.1 (this test, with `LD_LIBRARY_PATH`). In WAL mode it needs a moment when no
//! connection of the process has read yet.

use killpoint::run::trace::{
    CallKind, Choice, Databases, Decision, Driver, Event, Exit, Phase, Role, Scene, Standing, Stop,
    Watcher,
};

use super::support::{Lab, run};

/// Watches, and holds the second thread before it closes the database, until the first thread
/// sleeps for the second time.
#[derive(Default)]
struct HoldClose {
    watcher: Watcher,
    held: usize,
    sleeps: usize,
}

impl Driver for HoldClose {
    fn at_stop(&mut self, stop: &Stop, scene: &Scene<'_>) -> Decision {
        let second = stop.thread.0 != stop.process.0;
        let of_database = stop.file.is_some_and(|file| file.role == Role::Database);
        if second && of_database && stop.phase == Phase::Close {
            self.held += 1;
            return Decision::Hold;
        }
        if stop.phase == Phase::Sleep && !second {
            self.sleeps += 1;
        }
        self.watcher.at_stop(stop, scene)
    }

    fn at_result(&mut self, stop: &Stop, result: i64, scene: &Scene<'_>) {
        self.watcher.at_result(stop, result, scene);
    }

    fn at_event(&mut self, event: &Event, scene: &Scene<'_>) {
        self.watcher.at_event(event, scene);
    }

    fn choose(&mut self, standing: Standing<'_>, scene: &Scene<'_>) -> Choice {
        if self.sleeps < 2 {
            return Choice::Wait;
        }
        let stop = &standing.held[0];
        Choice::Release(stop.thread, self.watcher.at_stop(stop, scene))
    }
}

#[test]
fn close_of_one_connection_drops_the_lock_that_another_thread_has_just_got() {
    let lab = Lab::new();
    lab.ask(
        "c = sqlite3.connect(DB)\nc.execute('CREATE TABLE t(x)')\nc.commit()\n\
         c.execute('INSERT INTO t VALUES(0)')\nc.commit()",
    );
    let script = "import threading, subprocess\n\
        def connect(): return sqlite3.connect(DB, isolation_level=None, timeout=0,\
        check_same_thread=False)\n\
        def mine(): return [l for l in open('/proc/locks') if ' %d ' % os.getpid() in l]\n\
        first, second = connect(), connect()\n\
        for c in (first, second): c.execute('SELECT count(*) FROM t').fetchone()\n\
        closing = threading.Thread(target=second.close)\n\
        closing.start()\n\
        time.sleep(0.2)\n\
        first.execute('BEGIN IMMEDIATE')\n\
        first.execute('INSERT INTO t VALUES(1)')\n\
        before = mine()\n\
        time.sleep(0.2)\n\
        closing.join()\n\
        after = mine()\n\
        other = 'import sqlite3; c = sqlite3.connect(%r, isolation_level=None, timeout=0);' % DB\n\
        other += 'c.execute(\"INSERT INTO t VALUES(2)\")'\n\
        got_in = subprocess.run([sys.executable, '-S', '-c', other]).returncode == 0\n\
        try: first.execute('COMMIT'); committed = True\n\
        except sqlite3.Error: committed = False\n\
        said = (len(before) > 0, len(after), got_in, committed)\n\
        open('said', 'w').write(repr(said))\n\
        os._exit(0)\n";
    let mut options = Watcher::options(Databases::At(vec![lab.db.clone()]));
    options.calls = options.calls.with(CallKind::Sleep);
    let mut driver = HoldClose::default();
    let run = run(options, &lab.python(script), &mut driver);
    assert_eq!(run.exit_of(0), Some(Exit::Code(0)), "{run}");
    assert_eq!(driver.held, 1, "{run}");
    let said = std::fs::read_to_string(lab.path("said")).unwrap();
    assert!(said.starts_with("(True, 0, True, "), "{said}");
    let rules: Vec<_> =
        driver.watcher.findings().iter().map(|finding| finding.breach.rule()).collect();
    assert!(rules.contains(&"locks-dropped"), "{rules:?}");
}
