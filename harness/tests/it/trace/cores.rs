//! One core for a victim of one thread and its supervisor, and while it is no more than that.

use killpoint::run::trace::{CallSet, LookOn};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use crate::trace::support::{Lab, run};

fn mine() -> usize {
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap();
    (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).count()
}

/// The program writes how many cores it may use, before and after `more`.
fn cores(more: &str) -> Vec<usize> {
    let lab = Lab::new();
    let victim = lab.python(&format!(
        "out = open('cores', 'w')\n\
         tell = lambda: print(len(os.sched_getaffinity(0)), file=out, flush=True)\n\
         tell()\n{more}\ntell()"
    ));
    let run = run(lab.options(CallSet::WATCH).one_core(), &victim, &mut LookOn);
    let told = std::fs::read_to_string(lab.path("cores")).unwrap();
    assert!(run.one_core);
    told.lines().map(|line| line.parse().unwrap()).collect()
}

#[test]
fn a_program_of_one_thread_shares_one_core_with_its_supervisor() {
    let before = mine();
    assert_eq!(cores(""), [1, 1]);
    assert_eq!(mine(), before, "the supervisor's thread has its own back");
}

#[test]
fn a_second_thread_or_process_frees_all_of_them() {
    let all = mine();
    let thread = "import threading; t = threading.Thread(target=tell); t.start(); t.join()";
    assert_eq!(cores(thread)[..2], [1, all]);
    let child = "p = os.fork()\nif p == 0: tell(); os._exit(0)\nos.waitpid(p, 0)";
    // And once it is gone the first is alone again.
    assert_eq!(cores(child), [1, all, 1]);
}
