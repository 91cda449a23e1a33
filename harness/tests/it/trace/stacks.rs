//! Stacks of real programs.

use killpoint::run::trace::{CallKind, CallSet, Command, Decision, Driver, Scene, Stack, Stop};

use super::support::{Lab, run};

/// Keeps the stack of the first stop with a phase.
struct StackAt {
    phase: &'static str,
    stack: Option<Stack>,
}

impl Driver for StackAt {
    fn at_stop(&mut self, stop: &Stop, scene: &Scene<'_>) -> Decision {
        if self.stack.is_none() && stop.phase.to_string() == self.phase {
            self.stack = Some(scene.stack(stop.thread));
        }
        Decision::Continue
    }
}

#[track_caller]
fn stack_of(lab: &Lab, command: &Command, phase: &'static str) -> Stack {
    let mut driver = StackAt { phase, stack: None };
    let calls = CallSet::WRITES_AND_SYNCS.with(CallKind::Lock);
    let run = run(lab.options(calls), command, &mut driver);
    driver.stack.unwrap_or_else(|| panic!("no {phase}: {run}"))
}

const COMMIT: &str = "c = sqlite3.connect(DB, isolation_level=None)\n\
    c.execute('CREATE TABLE t(x)')\nos._exit(0)\n";

#[test]
fn stack_of_pythons_sqlite_leads_from_the_c_library_to_the_interpreter() {
    let lab = Lab::new();
    let stack = stack_of(&lab, &lab.python(COMMIT), "db-page-write");
    let modules: Vec<_> = stack.frames.iter().filter_map(|frame| frame.module_name()).collect();
    assert!(modules[0].starts_with("libc.so"), "{stack}");
    assert!(modules[1].starts_with("libsqlite3.so"), "{stack}");
    assert!(modules.iter().any(|module| module.starts_with("_sqlite3")), "{stack}");
    assert!(stack.origin().unwrap().contains("libsqlite3.so"), "{stack}");
    let last = stack.frames.iter().rev().find_map(|frame| frame.symbol.as_ref());
    assert!(last.is_some_and(|(name, _)| name == "_start"), "{stack}");
    let step = |frame: &killpoint::run::trace::Frame| {
        frame.symbol.as_ref().is_some_and(|(name, _)| name == "sqlite3_step")
    };
    assert!(stack.frames.iter().any(step), "{stack}");
}

#[test]
fn functions_of_a_program_are_named() {
    let lab = Lab::new();
    std::fs::write(&lab.db, "").unwrap();
    let program = lab.compile(
        "named",
        "#include <fcntl.h>\n#include <unistd.h>\n\
         __attribute__((noinline)) int innermost(int fd) { int n = pwrite(fd, \"x\", 1, 0);\
         __asm__ volatile(\"\"); return n + 1; }\n\
         __attribute__((noinline)) int middle(int fd) { return innermost(fd) * 2; }\n\
         int main(int c, char **v) { return middle(open(v[1], O_RDWR)) - 4; }\n",
    );
    let stack = stack_of(&lab, &Command::new(program).arg(&lab.db), "db-page-write");
    let names: Vec<_> = stack
        .frames
        .iter()
        .filter_map(|frame| frame.symbol.as_ref().map(|(name, _)| name.as_str()))
        .filter(|name| ["innermost", "middle", "main"].contains(name))
        .collect();
    assert_eq!(names, ["innermost", "middle", "main"], "{stack}");
    assert!(stack.origin().unwrap().ends_with("/named"));
}
