//! Programs that fork, thread, exec, hang, die: no hang here, no orphan, a clear report.

#![allow(clippy::items_after_statements, reason = "each test has its driver beside it")]

use std::collections::HashSet;
use std::time::{Duration, Instant};

use killpoint::run::trace::{
    CallKind, CallSet, Choice, Command, Databases, Decision, Driver, Event, Exit, Leftovers,
    LookOn, Nursery, Options, ProcessId, Run, RunEnd, Scene, Standing, Stop, Supervisor,
    TraceError, Unseen,
};

use super::support::{Lab, Recorder, run, run_all};

fn shell(script: &str) -> Command {
    Command::new("/bin/sh").args(["-c", script])
}

fn options() -> Options {
    Options::new(CallSet::FAULTS, Databases::Detect).deadline(Duration::from_secs(20))
}

#[track_caller]
fn check_nothing_left(run: &Run) {
    for process in &run.processes {
        assert!(is_gone(process.process), "{} is left", process.process);
        assert!(process.exit.is_some(), "{run}");
    }
}

/// A zombie that waits for init to collect it is no orphan: it runs no more.
fn is_gone(process: ProcessId) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"));
    status.map_or(true, |status| status.contains("State:\tZ"))
}

#[test]
fn exit_code_and_signal_of_the_program_are_reported() {
    let code = run(options(), &shell("exit 7"), &mut LookOn);
    assert_eq!((code.end, code.exit_of(0)), (RunEnd::AllExited, Some(Exit::Code(7))));
    let signal = run(options(), &shell("kill -SEGV $$"), &mut LookOn);
    let own = Exit::Signal { signal: libc::SIGSEGV, by_supervisor: false };
    assert_eq!(signal.exit_of(0), Some(own));
}

#[test]
fn fifty_children_are_all_followed_and_reported() {
    let lab = Lab::new();
    let script = "for i in range(50):\n if os.fork() == 0:\n  os.setsid()\n  os._exit(i)\n\
        ends = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(50)]\n\
        os._exit(0 if sorted(ends) == list(range(50)) else 1)\n";
    let run = run(options(), &lab.python(script), &mut LookOn);
    assert_eq!(run.exit_of(0), Some(Exit::Code(0)), "{run}");
    assert_eq!(run.processes.len(), 51, "{run}");
    check_nothing_left(&run);
}

#[test]
fn hanging_family_is_killed_at_the_deadline_whatever_session_it_fled_to() {
    let lab = Lab::new();
    let script = "for i in range(10):\n if os.fork() == 0:\n  os.setsid()\n\
        \x20 if os.fork(): os._exit(0)\n  while True: time.sleep(100)\n\
        import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
        while True: pass\n";
    let began = Instant::now();
    let options = options().deadline(Duration::from_secs(2));
    let run = run(options, &lab.python(script), &mut LookOn);
    assert!(began.elapsed() < Duration::from_secs(10));
    assert_eq!(run.end, RunEnd::Deadline);
    let survivors = run.processes.iter().filter(|process| process.cut_short_in.is_some());
    assert_eq!(survivors.count(), 11, "{run}");
    check_nothing_left(&run);
}

#[test]
fn report_says_where_a_hanging_program_was() {
    let lab = Lab::new();
    std::fs::write(&lab.db, "").unwrap();
    let script = "f = open(DB, 'r+b')\nif os.fork() == 0:\n fcntl.lockf(f, fcntl.LOCK_EX)\n\
        \x20while True: time.sleep(1000)\n\
        time.sleep(0.3)\nfcntl.lockf(f, fcntl.LOCK_EX)\n";
    let options = options().deadline(Duration::from_secs(2));
    let run = run(options, &lab.python(script), &mut LookOn);
    let places: Vec<_> =
        run.processes.iter().filter_map(|process| process.cut_short_in.as_deref()).collect();
    assert_eq!(places, ["it was in fcntl", "it was in clock_nanosleep"], "{run}");
}

#[test]
fn children_that_outlive_the_command_are_killed_if_so_asked() {
    let options = options().leftovers(Leftovers::Kill);
    let run = run(options, &shell("sleep 1000 & sleep 1000 & exit 3"), &mut LookOn);
    assert_eq!((run.end, run.exit_of(0)), (RunEnd::LeftoversKilled, Some(Exit::Code(3))));
    assert_eq!(run.processes.len(), 3);
    check_nothing_left(&run);
}

#[test]
fn dropped_supervisor_leaves_nothing_behind() {
    let mut supervisor = Supervisor::new(options()).unwrap();
    let process = supervisor.spawn(&shell("sleep 1000")).unwrap();
    assert!(std::path::Path::new(&format!("/proc/{process}")).exists());
    drop(supervisor);
    assert!(!std::path::Path::new(&format!("/proc/{process}")).exists());
}

#[test]
fn panicking_driver_leaves_nothing_behind() {
    struct Panics(Option<ProcessId>);
    impl Driver for Panics {
        fn at_stop(&mut self, stop: &Stop, _scene: &Scene<'_>) -> Decision {
            self.0 = Some(stop.process);
            panic!("as planned");
        }
    }
    let mut driver = Panics(None);
    let attempt = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        run(options(), &shell("sleep 1 & sleep 1000; true"), &mut driver)
    }));
    assert!(attempt.is_err());
    assert!(is_gone(driver.0.unwrap()));
}

#[test]
fn exec_chain_keeps_being_traced() {
    let lab = Lab::new();
    let script = "if len(sys.argv) < 2 or sys.argv[1] != 'again':\n\
        \x20os.execv(sys.executable, [sys.executable, '-S', '-c', \
         open('script').read(), 'again'])\n\
        c = sqlite3.connect(DB)\nc.execute('CREATE TABLE t(x)')\nc.commit()\n";
    let head = format!("import os, sys, sqlite3\nDB = {:?}\n", lab.db.display().to_string());
    std::fs::write(lab.path("script"), format!("{head}{script}")).unwrap();
    let mut recorder = Recorder::default();
    let run = run(lab.options(CallSet::FAULTS), &lab.python(script), &mut recorder);
    assert_eq!(run.exit_of(0), Some(Exit::Code(0)), "{run}");
    assert!(recorder.phases().contains(&"db-page-write".to_owned()));
    assert!(run.processes[0].command.ends_with("again"), "{run}");
}

#[test]
fn exec_from_a_second_thread_is_followed() {
    let lab = Lab::new();
    let program = lab.compile(
        "execer",
        "#include <pthread.h>\n#include <unistd.h>\n\
         static void *go(void *arg) { execl(\"/bin/sh\", \"sh\", \"-c\", \"exit 5\", (char *)0);\
         return arg; }\n\
         static void *wait_for_ever(void *arg) { for (;;) pause(); return arg; }\n\
         int main() { pthread_t t; for (int i = 0; i < 5; i++)\
         pthread_create(&t, 0, wait_for_ever, 0);\n\
         pthread_create(&t, 0, go, 0); for (;;) pause(); }\n",
    );
    let run = run(options(), &Command::new(program), &mut LookOn);
    assert_eq!(run.exit_of(0), Some(Exit::Code(5)), "{run}");
    assert_eq!(run.processes.len(), 1);
}

#[test]
fn threads_of_one_process_stop_one_by_one() {
    let lab = Lab::new();
    let script = "import threading\n\
        def work(i):\n c = sqlite3.connect(DB + str(i), isolation_level=None)\n\
        \x20c.execute('CREATE TABLE t(x)')\n\
        ts = [threading.Thread(target=work, args=(i,)) for i in range(4)]\n\
        [t.start() for t in ts]\n[t.join() for t in ts]\n";
    let mut recorder = Recorder::default();
    let paths = (0..4).map(|i| lab.path(&format!("a.db{i}"))).collect();
    let options = Options::new(CallSet::FAULTS, Databases::At(paths));
    let run = run(options, &lab.python(script), &mut recorder);
    assert_eq!(run.exit_of(0), Some(Exit::Code(0)), "{run}");
    // Python may close the connections on its main thread.
    let writes = recorder.stops.iter().filter(|stop| stop.call.sys.kind() == CallKind::Write);
    let threads: HashSet<_> = writes.map(|stop| (stop.process, stop.thread)).collect();
    assert_eq!(threads.len(), 4);
    assert_eq!(run.processes.len(), 1);
}

#[test]
fn program_that_stops_itself_is_continued_from_outside() {
    let lab = Lab::new();
    let script = "import signal\npid = os.fork()\n\
        if pid == 0:\n os.kill(os.getpid(), signal.SIGSTOP)\n os._exit(9)\n\
        os.waitpid(pid, os.WUNTRACED)\nos.kill(pid, signal.SIGCONT)\n\
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n";
    let run = run(options(), &lab.python(script), &mut LookOn);
    assert_eq!(run.exit_of(0), Some(Exit::Code(9)), "{run}");
}

#[test]
fn real_time_signals_and_handlers_work_under_the_supervisor() {
    let lab = Lab::new();
    let script = "import signal\ngot = []\n\
        signal.signal(signal.SIGRTMIN + 5, lambda s, f: got.append(s))\n\
        signal.setitimer(signal.ITIMER_REAL, 0.01)\n\
        signal.signal(signal.SIGALRM, lambda s, f: got.append(s))\n\
        os.kill(os.getpid(), signal.SIGRTMIN + 5)\ntime.sleep(0.1)\n\
        os._exit(0 if len(got) == 2 else 1)\n";
    let run = run(options(), &lab.python(script), &mut LookOn);
    assert_eq!(run.exit_of(0), Some(Exit::Code(0)), "{run}");
}

#[test]
fn held_threads_go_on_in_the_order_the_driver_chooses() {
    /// Runs one copy to its end, then the other: a scheduler in small.
    #[derive(Default)]
    struct LastFirst {
        order: Vec<usize>,
    }
    impl Driver for LastFirst {
        fn at_stop(&mut self, _stop: &Stop, _scene: &Scene<'_>) -> Decision {
            Decision::Hold
        }
        fn choose(&mut self, standing: Standing<'_>, _scene: &Scene<'_>) -> Choice {
            if standing.running > 0 {
                return Choice::Wait;
            }
            let Some(next) = standing.held.iter().max_by_key(|stop| stop.copy) else {
                return Choice::Wait;
            };
            self.order.push(next.copy);
            Choice::Release(next.thread, Decision::SkipSleep)
        }
    }
    let lab = Lab::new();
    lab.ask(
        "c = sqlite3.connect(DB)\nc.execute('PRAGMA journal_mode=WAL')\n\
             c.execute('CREATE TABLE t(x)')\nc.commit()",
    );
    let script = "c = sqlite3.connect(DB, isolation_level=None, timeout=60)\n\
        for i in range(5): c.execute('INSERT INTO t VALUES(1)')\nos._exit(0)\n";
    let commands = [lab.python(script), lab.python(script), lab.python(script)];
    let mut driver = LastFirst::default();
    let run = run_all(lab.options(CallSet::FAULTS), &commands, &mut driver);
    assert_eq!(run.end, RunEnd::AllExited, "{run}");
    let mut order = driver.order;
    order.dedup();
    assert_eq!(order, [2, 1, 0]);
    assert_eq!(lab.recovered(), ("ok".to_owned(), 15));
}

#[test]
fn driver_that_lets_nobody_go_ends_the_run_as_stalled() {
    struct HoldAll;
    impl Driver for HoldAll {
        fn at_stop(&mut self, _stop: &Stop, _scene: &Scene<'_>) -> Decision {
            Decision::Hold
        }
    }
    let began = Instant::now();
    let run = run(options(), &shell("exec sleep 1000"), &mut HoldAll);
    assert_eq!(run.end, RunEnd::Stalled, "{run}");
    assert!(began.elapsed() < Duration::from_secs(10));
    check_nothing_left(&run);
}

#[test]
fn driver_may_end_the_run() {
    struct End;
    impl Driver for End {
        fn at_stop(&mut self, _stop: &Stop, _scene: &Scene<'_>) -> Decision {
            Decision::EndRun
        }
    }
    let run = run(options(), &shell("sleep 1000 & sleep 1000"), &mut End);
    assert_eq!(run.end, RunEnd::Driver, "{run}");
    check_nothing_left(&run);
}

#[test]
fn events_tell_of_every_process() {
    #[derive(Default)]
    struct Events(Vec<&'static str>);
    impl Driver for Events {
        fn at_stop(&mut self, _stop: &Stop, _scene: &Scene<'_>) -> Decision {
            Decision::Continue
        }
        fn at_event(&mut self, event: &Event, _scene: &Scene<'_>) {
            self.0.push(match event {
                Event::Started { .. } => "started",
                Event::Forked { .. } => "forked",
                Event::Executed { .. } => "executed",
                Event::Exited { .. } => "exited",
                _ => "unknown",
            });
        }
    }
    let mut driver = Events::default();
    let _run = run(options(), &shell("/bin/true; exit 0"), &mut driver);
    assert_eq!(driver.0, ["started", "forked", "executed", "exited", "exited"]);
}

#[test]
fn program_that_is_not_there_is_an_error_of_the_command() {
    let mut supervisor = Supervisor::new(options()).unwrap();
    for program in ["/no/such/program", "no-such-program-in-path", "/etc/passwd"] {
        let error = supervisor.spawn(&Command::new(program)).unwrap_err();
        assert!(matches!(error, TraceError::Start { .. }), "{error:?}");
    }
    let nowhere = shell("true").current_dir("/no/such/place");
    let error = supervisor.spawn(&nowhere).unwrap_err();
    let TraceError::Start { step, source, .. } = error else { panic!("{error:?}") };
    assert_eq!((step, source.raw_os_error()), ("enter the working directory", Some(libc::ENOENT)));
}

#[test]
fn command_gets_its_environment_directory_and_descriptors() {
    let lab = Lab::new();
    let (read, write) = std::io::pipe().unwrap();
    let command = Command::new("/bin/sh")
        .args(["-c", "echo $COLOUR $(pwd) >&9; test -z \"$HOME\""])
        .env_clear()
        .env("COLOUR", "blue")
        .env("PATH", "/bin:/usr/bin")
        .current_dir(lab.db.parent().unwrap())
        .fd(9, write.into(), killpoint::run::trace::FdUse::Plain);
    let run = run(options(), &command, &mut LookOn);
    drop(command);
    assert_eq!(run.exit_of(0), Some(Exit::Code(0)), "{run}");
    let said = std::io::read_to_string(read).unwrap();
    assert_eq!(said.trim(), format!("blue {}", lab.db.parent().unwrap().display()));
}

#[test]
fn write_to_the_acknowledgement_descriptor_is_a_phase() {
    let lab = Lab::new();
    let (_read, write) = std::io::pipe().unwrap();
    let script = "os.write(5, b'committed 1\\n')\nos.write(1, b'')\n";
    let command = lab.python(script).fd(5, write.into(), killpoint::run::trace::FdUse::Ack);
    let mut recorder = Recorder::default();
    let run = run(lab.options(CallSet::FAULTS), &command, &mut recorder);
    assert_eq!(recorder.phases(), ["ack"], "{run}");
    assert_eq!((run.points, recorder.stops[0].point), (0, None));
}

#[test]
fn refusal_of_ptrace_says_what_to_allow() {
    // The filter binds only this thread, which the test has for itself.
    let refused = std::thread::spawn(|| {
        forbid_ptrace();
        Supervisor::new(options()).unwrap().spawn(&shell("true")).unwrap_err()
    });
    let error = refused.join().unwrap();
    assert!(matches!(error, TraceError::NotPermitted { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("seccomp") && text.contains("SYS_PTRACE"), "{text}");
}

/// Makes every `ptrace` of the calling thread fail with EPERM.
fn forbid_ptrace() {
    let op =
        |code: u32, jt, jf, k| libc::sock_filter { code: u16::try_from(code).unwrap(), jt, jf, k };
    let number = u32::try_from(libc::SYS_ptrace).unwrap();
    let mut program = [
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number),
        op(
            libc::BPF_RET | libc::BPF_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned(),
        ),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    // SAFETY: the filter is alive during the call and says what the lines above say.
    #[expect(unsafe_code, reason = "there is no other way to make ptrace fail here")]
    unsafe {
        let (no, yes): (libc::c_ulong, libc::c_ulong) = (0, 1);
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, yes, no, no, no);
        let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program), 0);
    }
}

#[test]
fn calls_of_another_architecture_end_the_run_with_an_error() {
    let lab = Lab::new();
    let program = lab.compile(
        "foreign",
        "int main() { long r; __asm__ volatile(\"int $0x80\" : \"=a\"(r) : \"a\"(20));\
         for (;;) {} }\n",
    );
    let mut supervisor = Supervisor::new(options()).unwrap();
    let process = supervisor.spawn(&Command::new(program)).unwrap();
    let error = supervisor.run(&mut LookOn).unwrap_err();
    assert!(matches!(error, TraceError::ForeignAbi { .. }), "{error:?}");
    assert!(!std::path::Path::new(&format!("/proc/{process}")).exists());
}

#[test]
fn file_table_shared_by_two_processes_is_one_table() {
    let lab = Lab::new();
    std::fs::write(&lab.db, "").unwrap();
    // The child closes the parent's descriptor; a file opened then takes its number.
    let program = lab.compile(
        "shared",
        "#define _GNU_SOURCE\n#include <sched.h>\n#include <fcntl.h>\n#include <unistd.h>\n\
         #include <signal.h>\n#include <sys/wait.h>\nstatic int fd;\n\
         static int child(void *path) { close(fd); \
         return open(path, O_RDWR | O_CREAT, 0600) != fd; }\n\
         static char stack[65536];\n\
         int main(int c, char **v) {\n\
           fd = open(v[1], O_RDWR); pwrite(fd, \"x\", 1, 0);\n\
           int pid = clone(child, stack + sizeof stack, CLONE_FILES | SIGCHLD, v[2]), st;\n\
           waitpid(pid, &st, 0);\n\
           pwrite(fd, \"y\", 1, 0); return st != 0;\n\
         }\n",
    );
    let command = Command::new(program).arg(&lab.db).arg(lab.path("other"));
    let calls = CallSet::WRITES_AND_SYNCS.with(CallKind::Close);
    let mut recorder = Recorder::default();
    let run = run(lab.options(calls), &command, &mut recorder);
    assert_eq!(run.exit_of(0), Some(Exit::Code(0)), "{run}");
    assert_eq!(recorder.phases(), ["db-page-write", "close"], "{run}");
}

#[test]
fn process_whose_calls_may_go_unseen_is_named() {
    let lab = Lab::new();
    let program = lab.compile(
        "ring",
        "#define _GNU_SOURCE\n#include <unistd.h>\n#include <sys/syscall.h>\n#include <string.h>\n\
         int main() { char p[120]; memset(p, 0, sizeof p); syscall(425, 2, p); return 0; }\n",
    );
    let options = Options::new(CallSet::WRITES_AND_SYNCS, Databases::Detect);
    let ring = run(options, &Command::new(program), &mut LookOn);
    assert_eq!(ring.processes[0].unseen, [Unseen::Ring]);
    assert!(ring.to_string().contains("io_uring"));
    let plain = run(self::options(), &shell("true"), &mut LookOn);
    assert_eq!(plain.processes[0].unseen, []);
}

#[test]
fn driver_that_waits_at_most_so_long_is_asked_again() {
    /// Lets the held thread go once nothing has happened for a while.
    struct Patient(Vec<Duration>);
    impl Driver for Patient {
        fn at_stop(&mut self, stop: &Stop, _scene: &Scene<'_>) -> Decision {
            if stop.copy == 0 { Decision::Hold } else { Decision::Continue }
        }
        fn choose(&mut self, standing: Standing<'_>, _scene: &Scene<'_>) -> Choice {
            if standing.quiet < Duration::from_millis(100) {
                return Choice::WaitAtMost(Duration::from_millis(100));
            }
            self.0.push(standing.quiet);
            Choice::Release(standing.held[0].thread, Decision::SkipSleep)
        }
    }
    // The second copy blocks in a call that is not traced.
    let (read, _write) = std::io::pipe().unwrap();
    let fd = killpoint::run::trace::FdUse::Plain;
    let blocked = shell("read line").fd(0, read.into(), fd);
    let mut driver = Patient(Vec::new());
    let options = options().leftovers(Leftovers::Kill).deadline(Duration::from_secs(3));
    let run = run_all(options, &[shell("exec sleep 1000"), blocked], &mut driver);
    assert_eq!(run.exit_of(0), Some(Exit::Code(0)), "{run}");
    assert!(!driver.0.is_empty());
}

#[test]
fn nursery_forks_the_victims_of_one_run_after_another() {
    let lab = Lab::new();
    let forks = "signal = __import__('signal')\n\
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n\
        while os.read(4, 1):\n\
        \x20 if os.fork() == 0:\n\
        \x20  c = sqlite3.connect(DB, isolation_level=None)\n\
        \x20  c.execute('CREATE TABLE IF NOT EXISTS t (a)')\n\
        \x20  c.execute('INSERT INTO t VALUES (1)')\n\
        \x20  c.close()\n\
        \x20  os._exit(5)\n";
    let mut nursery = Nursery::start(lab.python(forks), 4, CallSet::FAULTS, false, None).unwrap();
    for round in 1..=3 {
        let mut supervisor = Supervisor::new(options()).unwrap();
        for _ in 0..2 {
            supervisor.spawn_from(&mut nursery, 0).unwrap();
        }
        let run = supervisor.run(&mut LookOn).unwrap();
        let five = Some(Exit::Code(5));
        assert_eq!((run.exit_of(0), run.exit_of(1), run.processes.len()), (five, five, 2), "{run}");
        assert!(run.points > 20, "the victims are traced: {run}");
        check_nothing_left(&run);
        assert_eq!(lab.recovered(), ("ok".to_owned(), 2 * round));
    }
}

#[test]
fn nursery_that_ends_is_an_error_and_no_hang() {
    let mut nursery = Nursery::start(shell("exit 0"), 4, CallSet::FAULTS, false, None).unwrap();
    let mut supervisor = Supervisor::new(options()).unwrap();
    let refused = supervisor.spawn_from(&mut nursery, 0);
    assert!(matches!(refused, Err(TraceError::Supervise { .. })), "{refused:?}");
}
