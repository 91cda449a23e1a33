//! Each rule with a program that breaks it and one that does not, and busy programs that break
//! none.

use std::path::PathBuf;

use killpoint::run::trace::{
    Breach, Command, Databases, Exit, FdUse, Finding, Role, Stranger, Sys, Watcher,
};

use super::support::{Lab, python, run_all};

/// A WAL database with one table.
fn wal() -> Lab {
    let lab = Lab::new();
    lab.ask(
        "c = sqlite3.connect(DB, isolation_level=None)\nc.execute('PRAGMA journal_mode=WAL')\n\
         c.execute('CREATE TABLE t(x)')\nc.execute('INSERT INTO t VALUES(zeroblob(30000))')",
    );
    lab
}

/// A database in DELETE mode with one table.
fn delete() -> Lab {
    let lab = Lab::new();
    lab.ask(
        "c = sqlite3.connect(DB, isolation_level=None)\nc.execute('CREATE TABLE t(x)')\n\
         c.execute('INSERT INTO t VALUES(zeroblob(30000))')",
    );
    lab
}

/// What every program begins with. `python` runs another program to its end.
const HEAD: &str = "import subprocess\n\
    def python(script): subprocess.run([sys.executable, '-S', '-c', \
        'import os, sqlite3, fcntl, sys, shutil\\nDB = %r\\n' % DB + script], check=True)\n\
    c = sqlite3.connect(DB, isolation_level=None, timeout=60)\n\
    def put(): c.execute('INSERT INTO t VALUES(1)')\n";

fn watched(lab: &Lab, watcher: Watcher, commands: &[Command]) -> Vec<Finding> {
    let mut watcher = watcher;
    let options = Watcher::options(Databases::At(vec![lab.db.clone()]));
    let run = run_all(options.deadline(std::time::Duration::from_mins(1)), commands, &mut watcher);
    for copy in 0..commands.len() {
        assert_eq!(run.exit_of(copy), Some(Exit::Code(0)), "{run}");
    }
    watcher.into_findings()
}

fn findings(lab: &Lab, script: &str) -> Vec<Finding> {
    watched(lab, Watcher::new(), &[lab.python(&format!("{HEAD}{script}"))])
}

fn rules(findings: &[Finding]) -> Vec<String> {
    let mut rules: Vec<_> = findings
        .iter()
        .map(|finding| format!("{} {:?}", finding.breach.rule(), finding.role).to_lowercase())
        .collect();
    rules.sort();
    rules.dedup();
    rules
}

/// The program breaks these rules and no others.
#[track_caller]
fn check(lab: &Lab, script: &str, expected: &[&str]) -> Vec<Finding> {
    let findings = findings(lab, script);
    let shown: Vec<_> = findings
        .iter()
        .map(|finding| {
            format!("{:?} in {}\n{}", finding.breach, finding.call.name(), finding.stack)
        })
        .collect();
    assert_eq!(rules(&findings), expected, "{}", shown.join("\n"));
    findings
}

#[test]
fn header_check_after_each_commit_drops_the_locks() {
    let lab = wal();
    let script = "for i in range(5):\n put()\n f = open(DB, 'rb'); f.read(100); f.close()\n";
    let findings = check(&lab, script, &["locks-dropped database"]);
    let finding = &findings[0];
    let Breach::LocksDropped { locks, .. } = &finding.breach else { panic!("{finding:?}") };
    assert!(locks.iter().any(|lock| lock.range.contains(0x4000_0002)), "{locks:?}");
    assert!(finding.command.contains("python3"), "{finding:?}");
    assert_eq!((finding.call, finding.path.clone()), (Sys::Close, lab.db.clone()));
    assert!(finding.times >= 1);
    let modules: Vec<_> =
        finding.stack.frames.iter().filter_map(|frame| frame.module_name()).collect();
    assert!(modules.iter().any(|module| module.starts_with("python3")), "{}", finding.stack);
    assert!(!modules.iter().any(|module| module.contains("sqlite")), "{}", finding.stack);
}

#[test]
fn same_program_without_the_header_check_is_silent() {
    check(&wal(), "for i in range(5): put()\n", &[]);
    check(&delete(), "for i in range(5): put()\n", &[]);
}

#[test]
fn header_check_by_another_process_is_silent() {
    let script = "for i in range(3):\n put()\n python('open(DB, \"rb\").read(100)')\n";
    check(&wal(), script, &[]);
}

#[test]
fn stray_close_of_the_wal_index_drops_its_locks() {
    let script = "put()\nos.close(os.open(DB + '-shm', os.O_RDWR))\nos._exit(0)\n";
    check(&wal(), script, &["locks-dropped shm"]);
}

#[test]
fn dup2_over_a_second_descriptor_drops_the_locks() {
    let script = "put()\nfd = os.open(DB, os.O_RDONLY)\nos.dup2(1, fd)\nos._exit(0)\n";
    let findings = check(&wal(), script, &["locks-dropped database"]);
    assert!(matches!(findings[0].call, Sys::Dup2 | Sys::Dup3));
}

#[test]
fn header_check_before_anything_is_locked_is_silent() {
    let script = "f = open(DB, 'rb'); f.read(100); f.close()\nput()\n";
    check(&wal(), script, &[]);
}

#[test]
fn connections_of_one_process_may_come_and_go() {
    let script = "for i in range(10):\n put()\n d = sqlite3.connect(DB, isolation_level=None)\n\
        \x20d.execute('SELECT count(*) FROM t').fetchone()\n d.close()\n";
    check(&wal(), script, &[]);
    check(&delete(), script, &[]);
}

#[test]
fn connection_used_in_a_child_was_carried_over_the_fork() {
    let script = "put()\npid = os.fork()\n\
        if pid == 0:\n put()\n os._exit(0)\n\
        os.waitpid(pid, 0)\nput()\nos._exit(0)\n";
    let lab = wal();
    let expected = ["carried-over-fork shm", "carried-over-fork wal"];
    let findings = check(&lab, script, &expected);
    let Breach::CarriedOverFork { opened_by, .. } = findings[0].breach else { panic!() };
    assert_ne!(opened_by, findings[0].process);
}

#[test]
fn connection_closed_in_a_child_was_carried_over_the_fork() {
    let script = "put()\npid = os.fork()\n\
        if pid == 0:\n c.close()\n os._exit(0)\n\
        os.waitpid(pid, 0)\nput()\nos._exit(0)\n";
    let findings = findings(&wal(), script);
    assert!(rules(&findings).contains(&"carried-over-fork database".to_owned()), "{findings:?}");
}

#[test]
fn child_that_opens_its_own_connection_is_silent() {
    let script = "put()\npid = os.fork()\n\
        if pid == 0:\n os.closerange(3, 100)\n d = sqlite3.connect(DB, isolation_level=None)\n\
        \x20d.execute('INSERT INTO t VALUES(2)')\n os._exit(0)\n\
        os.waitpid(pid, 0)\nput()\n";
    check(&wal(), script, &[]);
}

#[test]
fn child_that_executes_another_program_is_silent() {
    let script = "put()\nsubprocess.run(['/bin/true'], close_fds=False)\n\
        subprocess.run(['/bin/true'], close_fds=True)\nput()\n";
    check(&wal(), script, &[]);
}

#[test]
fn sidecar_removed_under_another_process_is_told() {
    for (name, expected) in [("-wal", "removed-while-open wal"), ("-shm", "removed-while-open shm")]
    {
        let script = format!("put()\npython('os.unlink(DB + \"{name}\")')\nos._exit(0)\n");
        let findings = check(&wal(), &script, &[expected]);
        let Breach::RemovedWhileOpen { open_in } = &findings[0].breach else { panic!() };
        assert_eq!(open_in.len(), 1);
        assert_ne!(open_in[0], findings[0].process);
    }
}

#[test]
fn sidecars_left_by_a_dead_process_may_be_removed() {
    let script = "c.close()\npython('c = sqlite3.connect(DB, isolation_level=None); \
        c.execute(\"INSERT INTO t VALUES(1)\"); os._exit(0)')\n\
        os.unlink(DB + '-wal')\nos.unlink(DB + '-shm')\n";
    check(&wal(), script, &[]);
}

#[test]
fn last_connection_removes_the_sidecars_in_silence() {
    let script = "put()\npython('c = sqlite3.connect(DB, isolation_level=None); \
        c.execute(\"INSERT INTO t VALUES(1)\"); c.close()')\nc.close()\n";
    check(&wal(), script, &[]);
}

#[test]
fn journal_removed_under_a_running_transaction_is_told() {
    let script = "c.execute('PRAGMA cache_size=2')\nc.execute('BEGIN IMMEDIATE')\n\
        c.execute('UPDATE t SET x = zeroblob(60000)')\n\
        python('os.unlink(DB + \"-journal\")')\nos._exit(0)\n";
    check(&delete(), script, &["removed-while-open journal"]);
}

#[test]
fn database_renamed_removed_or_replaced_while_open_is_told() {
    for (action, expected) in [
        ("os.rename(DB, DB + \".old\")", "renamed-while-open database"),
        ("os.unlink(DB)", "removed-while-open database"),
        (
            "open(\"new\", \"w\").write(\"x\"); os.rename(\"new\", DB)",
            "replaced-while-open database",
        ),
    ] {
        let script = format!("put()\npython('{action}')\nos._exit(0)\n");
        check(&wal(), &script, &[expected]);
        let own = format!("put()\n{action}\nos._exit(0)\n");
        check(&wal(), &own, &[expected]);
    }
}

#[test]
fn database_that_nobody_has_open_may_be_renamed_and_removed() {
    let script = "put()\nc.close()\nos.rename(DB, DB + '.old')\nos.rename(DB + '.old', DB)\n\
        os.unlink(DB)\n";
    check(&wal(), script, &[]);
}

#[test]
fn file_cut_under_its_user_is_told() {
    for (name, role) in [("", "database"), ("-wal", "wal"), ("-shm", "shm")] {
        for action in ["os.truncate(p, 0)", "open(p, \"w\").close()"] {
            let script = format!("put()\npython('p = DB + \"{name}\"; {action}')\nos._exit(0)\n");
            check(&wal(), &script, &[&format!("truncated-while-open {role}")]);
        }
    }
}

#[test]
fn sqlite_itself_may_cut_its_files() {
    let script = "c.execute('PRAGMA journal_size_limit=0')\n\
        for i in range(3):\n put()\n c.execute('PRAGMA wal_checkpoint(TRUNCATE)')\n\
        c.execute('DELETE FROM t')\nc.execute('VACUUM')\n\
        c.execute('PRAGMA journal_mode=TRUNCATE')\nput()\nc.execute('VACUUM')\n\
        c.execute('PRAGMA journal_mode=PERSIST')\nput()\n";
    check(&wal(), script, &[]);
}

/// A second copy of the system's SQLite beside Python's own, through ctypes.
fn second_copy(lab: &Lab) -> String {
    let ask = "import ctypes.util, os\n\
        print([l.split()[-1] for l in open('/proc/self/maps') if 'libsqlite3' in l][0])";
    let library = PathBuf::from(lab.ask(ask));
    let copy = lab.path("other.so");
    std::fs::copy(library, &copy).unwrap();
    format!(
        "import ctypes\nlib = ctypes.CDLL({:?})\n\
         def other(*sqls):\n h = ctypes.c_void_p()\n\
         \x20lib.sqlite3_open(DB.encode(), ctypes.byref(h))\n\
         \x20for sql in sqls: assert lib.sqlite3_exec(h, sql.encode(), None, None, None) == 0\n\
         \x20lib.sqlite3_close(h)\n",
        copy.display().to_string()
    )
}

#[test]
fn two_copies_of_sqlite_in_one_process_are_told_apart() {
    let lab = wal();
    let script =
        format!("{}put()\nother('SELECT count(*) FROM t')\nos._exit(0)\n", second_copy(&lab));
    let findings = findings(&lab, &script);
    // The second copy thinks that it is the last to close: that is why.
    let expected =
        ["locks-dropped shm", "removed-while-open wal", "two-copies database", "two-copies shm"];
    assert_eq!(rules(&findings), expected, "{findings:?}");
    let Breach::TwoCopies { first, second } = &findings[0].breach else { panic!("{findings:?}") };
    assert!(first.contains("libsqlite3") && second.ends_with("other.so"), "{first} {second}");
}

#[test]
fn two_copies_on_two_databases_are_silent() {
    let lab = wal();
    let script = format!(
        "{}put()\nDB = os.path.join(os.path.dirname(DB), 'b.db')\nother('CREATE TABLE u(x)')\n",
        second_copy(&lab)
    );
    check(&lab, &script, &[]);
}

#[test]
fn hard_link_makes_two_paths() {
    let open_both = "os.link(DB, DB + '.link')\n\
        python('c = sqlite3.connect(DB + \".link\", isolation_level=None); \
        c.execute(\"PRAGMA user_version\").fetchall(); os._exit(0)')\nos._exit(0)\n";
    let lab = delete();
    let findings = check(&lab, &format!("put()\n{open_both}"), &["two-paths database"]);
    let Breach::TwoPaths { first, second, .. } = &findings[0].breach else { panic!() };
    assert_eq!((first, second), (&lab.db, &lab.path("a.db.link")));
    check(&delete(), &format!("put()\nc.close()\n{open_both}"), &[]);
}

#[test]
fn symbolic_link_is_one_path() {
    let script = "os.symlink(DB, DB + '.link')\nc.execute('BEGIN IMMEDIATE')\n\
        python('c = sqlite3.connect(DB + \".link\", isolation_level=None); \
        c.execute(\"PRAGMA user_version\").fetchall(); os._exit(0)')\nos._exit(0)\n";
    check(&delete(), script, &[]);
}

#[test]
fn writer_without_locks_beside_one_with_locks_is_told() {
    let script = "c.execute('BEGIN IMMEDIATE')\n\
        python('c = sqlite3.connect(\"file:\" + DB + \"?nolock=1\", uri=True, \
        isolation_level=None); c.execute(\"INSERT INTO t VALUES(1)\")')\nos._exit(0)\n";
    check(&delete(), script, &["different-locking database"]);
}

#[test]
fn lone_writer_without_locks_is_silent() {
    let script = "c.close()\n\
        python('c = sqlite3.connect(\"file:\" + DB + \"?nolock=1\", uri=True, \
        isolation_level=None); c.execute(\"INSERT INTO t VALUES(1)\")')\nos._exit(0)\n";
    check(&delete(), script, &[]);
}

#[track_caller]
fn check_foreign(lab: &Lab, script: &str, role: Role, expected: Stranger) {
    let findings = findings(lab, script);
    let told: Vec<_> = findings.iter().map(|f| (f.breach.clone(), f.role)).collect();
    assert_eq!(told, [(Breach::ForeignWrite { why: expected }, role)]);
}

#[test]
fn write_by_another_program_is_foreign() {
    let script = "put()\n\
        python('f = open(DB, \"r+b\"); f.seek(28); f.write(b\"xxxx\"); f.close()')\n\
        os._exit(0)\n";
    check_foreign(&wal(), script, Role::Database, Stranger::NeverLocked);
    let script = "put()\n\
        python('f = os.open(DB + \"-wal\", os.O_RDWR); os.pwrite(f, b\"x\", 50)')\n\
        os._exit(0)\n";
    check_foreign(&wal(), script, Role::Wal, Stranger::NeverLocked);
}

#[test]
fn late_write_through_a_recycled_descriptor_is_foreign() {
    // What a closed socket's last record does when its number has gone to the database.
    let script = "put()\nfds = [fd for fd in range(3, 50) if os.path.exists(f'/proc/self/fd/{fd}')\
        and os.readlink(f'/proc/self/fd/{fd}') == DB]\n\
        os.write(fds[0], bytes([0x17, 3, 3, 0, 0x13]) + b'x' * 19)\nos._exit(0)\n";
    check_foreign(&wal(), script, Role::Database, Stranger::NoPage);
}

#[test]
fn page_written_through_sqlites_descriptor_without_its_lock_is_foreign() {
    let script = "put()\nfds = [fd for fd in range(3, 50) if os.path.exists(f'/proc/self/fd/{fd}')\
        and os.readlink(f'/proc/self/fd/{fd}') == DB]\n\
        os.pwrite(fds[0], bytes(4096), 8192)\nos._exit(0)\n";
    check_foreign(&wal(), script, Role::Database, Stranger::NoLockHeld);
}

#[test]
fn wal_written_by_the_application_of_its_own_connection_is_foreign() {
    let script = "c.execute('BEGIN IMMEDIATE')\nput()\n\
        f = os.open(DB + '-wal', os.O_RDWR)\nos.pwrite(f, bytes(24), 32)\nos._exit(0)\n";
    check_foreign(&wal(), script, Role::Wal, Stranger::OpenedElsewhere);
}

#[test]
fn copy_made_during_a_transaction_is_told() {
    for copy in [
        "python('shutil.copyfile(DB, DB + \".copy\")')",
        "subprocess.run(['cp', DB, DB + '.copy'], check=True)",
        "subprocess.run(['sh', '-c', 'cat \"$0\" > \"$0.copy\"', DB], check=True)",
    ] {
        let script = format!("c.execute('BEGIN IMMEDIATE')\nput()\n{copy}\nos._exit(0)\n");
        let findings = check(&delete(), &script, &["copy-during-transaction database"]);
        let Breach::CopyDuringTransaction { bytes, .. } = findings[0].breach else { panic!() };
        assert!(bytes >= 16384, "{bytes}");
    }
}

#[test]
fn copy_made_while_nothing_runs_is_silent() {
    let script = "put()\npython('shutil.copyfile(DB, DB + \".copy\")')\n\
        subprocess.run(['cp', DB, DB + '.copy'], check=True)\nput()\n";
    check(&delete(), script, &[]);
}

#[test]
fn look_at_the_header_during_a_transaction_is_no_copy() {
    let script = "c.execute('BEGIN IMMEDIATE')\nput()\npython('open(DB, \"rb\").read(100)')\n\
        os._exit(0)\n";
    check(&delete(), script, &[]);
}

/// A library that makes syncs of the WAL do nothing, from the n-th on.
fn lying_sync(lab: &Lab) -> PathBuf {
    let source = "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <stdio.h>\n\
        #include <stdlib.h>\n\
        #include <string.h>\n#include <unistd.h>\n\
        static int lies(int fd) { static int seen; char link[64], path[4096]; long n;\
          snprintf(link, sizeof link, \"/proc/self/fd/%d\", fd);\
          n = readlink(link, path, sizeof path - 1); if (n < 4) return 0;\
          return !memcmp(path + n - 4, \"-wal\", 4) && ++seen >= atoi(getenv(\"LIE_FROM\")); }\n\
        int fsync(int fd) { int (*f)(int) = dlsym(RTLD_NEXT, \"fsync\");\
          return lies(fd) ? 0 : f(fd); }\n\
        int fdatasync(int fd) { int (*f)(int) = dlsym(RTLD_NEXT, \"fdatasync\");\
          return lies(fd) ? 0 : f(fd); }\n";
    let (from, to) = (lab.path("lie.c"), lab.path("lie.so"));
    std::fs::write(&from, source).unwrap();
    let output = std::process::Command::new("gcc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&to, &from])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    to
}

fn with_lies(lab: &Lab, script: &str, from: u32) -> Command {
    lab.python(&format!("{HEAD}{script}"))
        .env("LD_PRELOAD", lying_sync(lab))
        .env("LIE_FROM", from.to_string())
}

const CHECKPOINT: &str = "c.execute('PRAGMA synchronous=NORMAL')\nput()\n\
    c.execute('PRAGMA wal_checkpoint(TRUNCATE)')\nput()\nos._exit(0)\n";

#[test]
fn checkpoint_of_unsynced_frames_is_told() {
    let lab = wal();
    let findings = watched(&lab, Watcher::new(), &[with_lies(&lab, CHECKPOINT, 1)]);
    assert_eq!(rules(&findings), ["checkpoint-before-sync database"], "{findings:?}");
}

#[test]
fn checkpoint_of_synced_frames_is_silent() {
    check(&wal(), CHECKPOINT, &[]);
    check(&wal(), &CHECKPOINT.replace("NORMAL", "FULL"), &[]);
}

#[test]
fn checkpoint_with_synchronous_off_is_silent() {
    check(&wal(), &CHECKPOINT.replace("NORMAL", "OFF"), &[]);
}

const ACKS: &str = "c.execute('PRAGMA synchronous=FULL')\n\
    for i in range(4):\n put()\n os.write(9, b'acked\\n')\nos._exit(0)\n";

fn acked(lab: &Lab, command: Command, watcher: Watcher) -> Vec<Finding> {
    let (_read, write) = std::io::pipe().unwrap();
    watched(lab, watcher, &[command.fd(9, write.into(), FdUse::Ack)])
}

#[test]
fn acknowledgement_before_the_sync_of_a_full_commit_is_told() {
    // Syncs: of the header, of the first commit, of the second; the third is a lie.
    let lab = wal();
    let findings = acked(&lab, with_lies(&lab, ACKS, 4), Watcher::new());
    assert_eq!(rules(&findings), ["ack-before-sync wal"], "{findings:?}");
    assert_eq!(findings[0].times, 2);
}

#[test]
fn acknowledgement_after_the_sync_is_silent() {
    let lab = wal();
    let honest = lab.python(&format!("{HEAD}{ACKS}"));
    assert_eq!(acked(&lab, honest, Watcher::new()), []);
}

#[test]
fn acknowledgement_with_normal_is_told_only_if_acks_promise_power_safety() {
    let lab = wal();
    let normal = lab.python(&format!("{HEAD}{}", ACKS.replace("FULL", "NORMAL")));
    assert_eq!(acked(&lab, normal.clone(), Watcher::new()), []);
    let findings = acked(&lab, normal, Watcher::new().acks_promise_power_safety());
    assert_eq!(rules(&findings), ["ack-before-sync wal"]);
}

#[test]
fn wal_index_that_says_too_much_is_told() {
    let script = "put()\npython('f = os.open(DB + \"-shm\", os.O_RDWR); \
        os.pwrite(f, (9999).to_bytes(4, sys.byteorder), 96)')\n\
        c.execute('SELECT count(*) FROM t').fetchone()\nos._exit(0)\n";
    let findings = check(&wal(), script, &["backfill-past-end shm"]);
    let Breach::BackfillPastEnd { backfilled, frames } = findings[0].breach else { panic!() };
    assert_eq!(backfilled, 9999);
    assert!((1..100).contains(&frames), "{frames}");
}

#[test]
fn wal_index_of_a_checkpointed_database_is_in_order() {
    let script = "for i in range(20):\n put()\n\
        \x20c.execute('PRAGMA wal_checkpoint(%s)' % ['PASSIVE', 'FULL', 'RESTART', \
         'TRUNCATE'][i % 4])\n\
        \x20c.execute('SELECT count(*) FROM t').fetchone()\n";
    check(&wal(), script, &[]);
}

#[test]
fn busy_processes_that_keep_the_rules_are_silent() {
    for (mode, synchronous) in
        [("WAL", "FULL"), ("WAL", "NORMAL"), ("WAL", "OFF"), ("DELETE", "FULL")]
    {
        let lab = if mode == "WAL" { wal() } else { delete() };
        let script = format!(
            "{HEAD}c.execute('PRAGMA synchronous={synchronous}')\n\
             c.execute('PRAGMA wal_autocheckpoint=7')\n\
             for i in range(25):\n put()\n\
             \x20if i % 8 == 3: c.execute('PRAGMA wal_checkpoint(RESTART)')\n\
             \x20if i % 5 == 0:\n  c.close()\n\
             \x20 c = sqlite3.connect(DB, isolation_level=None, timeout=60)\n\
             \x20 c.execute('PRAGMA synchronous={synchronous}')\n"
        );
        let commands: Vec<_> = (0..4).map(|_| lab.python(&script)).collect();
        let findings = watched(&lab, Watcher::new(), &commands);
        assert_eq!(rules(&findings), [] as [&str; 0], "{mode} {synchronous}: {findings:#?}");
        assert_eq!(lab.recovered(), ("ok".to_owned(), 1 + 100));
    }
}

#[test]
fn threads_of_one_program_that_keep_the_rules_are_silent() {
    // They close when all are done: a close meanwhile may drop another's locks (`close_race`).
    let script = "import threading\nds = []\ndef work():\n\
        \x20d = sqlite3.connect(DB, isolation_level=None, timeout=60, check_same_thread=False)\n\
        \x20ds.append(d)\n\
        \x20for i in range(20): d.execute('INSERT INTO t VALUES(1)')\n\
        ts = [threading.Thread(target=work) for i in range(3)]\n\
        [t.start() for t in ts]\n[t.join() for t in ts]\n[d.close() for d in ds]\nput()\n";
    check(&wal(), script, &[]);
    check(&delete(), script, &[]);
}

#[test]
fn lost_locks_and_the_removal_that_follows_are_both_told() {
    // The story of the failure reports: a header check, then a short-lived worker's last close.
    let script = "put()\nf = open(DB, 'rb'); f.read(100); f.close()\n\
        python('c = sqlite3.connect(DB, isolation_level=None); \
        c.execute(\"INSERT INTO t VALUES(1)\"); c.close()')\nos._exit(0)\n";
    let version = std::process::Command::new(python())
        .args(["-c", "import sqlite3; print(sqlite3.sqlite_version_info < (3, 51))"])
        .output()
        .unwrap();
    // From 3.51.0 on the closing process looks for others first.
    if version.stdout.starts_with(b"True") {
        let expected =
            ["locks-dropped database", "removed-while-open shm", "removed-while-open wal"];
        check(&wal(), script, &expected);
    }
}

#[test]
fn databases_nobody_named_are_watched_too() {
    let lab = wal();
    let script = "put()\nf = open(DB, 'rb'); f.read(100); f.close()\nos._exit(0)\n";
    let mut watcher = Watcher::new();
    let options = Watcher::options(Databases::Detect);
    let command = lab.python(&format!("{HEAD}{script}"));
    let run = run_all(options, &[command], &mut watcher);
    assert_eq!(run.exit_of(0), Some(Exit::Code(0)));
    assert_eq!(rules(watcher.findings()), ["locks-dropped database"]);
}
