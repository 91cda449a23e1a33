#!/usr/bin/env python3
"""Dispatchers and workers as processes, for killpoint to kill.

    export HARDBOARD=$PWD/target/release/hardboard
    killpoint exec --db board.db --copies 3 --cycles 10 --per-database 10 --dir /dev/shm \
        --setup 'python3 '$PWD'/scenarios/exec/dispatch/dispatch.py setup' \
        --check 'python3 '$PWD'/scenarios/exec/dispatch/dispatch.py check' \
        -- python3 scenarios/exec/dispatch/dispatch.py run

Each copy keeps one `hardboard dispatch --daemon` running, as an init system would: one that is
killed is started anew. Of all of them one works. Its workers complete their tasks, fail, or hang
until they are stopped. What must never be is looked for by two who do not trust the board:

* each worker, when it starts, looks whether another process that was started for the same task is
  alive still (by pid and start time): `double`;
* the check, when all processes are gone: every start is of a run that the board has, no run was
  started twice, what a worker was told is done is done with its own result, what was refused to it
  is not, no task is missing, the board is sound - and then a dispatcher that nobody kills finishes
  every task.

`DISPATCH_FLAW=no-claim` has each copy start workers by itself, without a dispatcher: the check must
find it.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

HARDBOARD = os.environ.get("HARDBOARD", "hardboard").split()
STARTS = "starts"
UNDISTURBED = "undisturbed"
TASKS = 6
RUN_SECONDS = 4
LEASE_SECONDS = 3
HANG_SECONDS = 6
SETTINGS = {
    "HARDBOARD_DISPATCH_INTERVAL_SECONDS": "0.2",
    "HARDBOARD_CLAIM_LEASE_SECONDS": str(LEASE_SECONDS),
    "HARDBOARD_STOP_GRACE_SECONDS": "0.1",
    "HARDBOARD_COOL_DOWN_SECONDS": "0",
    "HARDBOARD_FAILURE_LIMIT": "1000",
    "HARDBOARD_INTERRUPTION_LIMIT": "1000",
    "HARDBOARD_VERIFY_EVERY_SECONDS": "0.5",
}


def board(*arguments):
    """Runs the command on the board: exit code, stdout, stderr."""
    command = [*HARDBOARD, "--db", "board.db", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def must(*arguments):
    code, out, err = board(*arguments)
    if code != 0:
        sys.exit(f"hardboard {' '.join(arguments)}: {code}: {err.strip()}")
    return out


def start_time(pid):
    """When a process began, in ticks since the machine did; None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def note(words):
    """One line, whole: who is killed in the midst of it leaves none."""
    line = " ".join(str(word) for word in words) + "\n"
    descriptor = os.open(STARTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def notes():
    try:
        with open(STARTS) as lines:
            return [line.split() for line in lines if line.endswith("\n")]
    except FileNotFoundError:
        return []


def setup():
    must("init")
    # The first cycle breaks nothing: there all must go well.
    open(UNDISTURBED, "w").close()
    add_tasks()


def add_tasks():
    for _ in range(TASKS):
        must("create", "dig")


def tell(word, token):
    os.write(int(os.environ["KILLPOINT_ACK_FD"]), f"{word} {token}\n".encode())


def work():
    task, token = os.environ["HARDBOARD_TASK"], os.environ["HARDBOARD_TOKEN"]
    me = os.getpid()
    earlier = notes()
    note(["start", task, token, me, start_time(me)])
    for line in earlier:
        if line[0] == "start" and line[1] == task and start_time(line[3]) == line[4]:
            note(["double", task, token, line[2], line[3]])
    began = time.monotonic()
    calm = "DISPATCH_CALM" in os.environ or os.path.exists(UNDISTURBED)
    dice = 1.0 if calm else random.random()
    if dice < 0.15:
        sys.exit(1)
    if dice < 0.3:
        # Until the lease ends and it is stopped, with what it has started.
        subprocess.run(["sleep", str(HANG_SECONDS)])
        sys.exit(1)
    time.sleep(0.0 if calm else random.uniform(0.0, 0.3))
    if time.monotonic() - began > LEASE_SECONDS / 3:
        # Of a machine that stands still one asks to be tried again.
        sys.exit(75)
    result = f"{task}:{token}:{me}"
    code, _, err = board("complete", task, "--token", token, "--result", result)
    if "KILLPOINT_ACK_FD" in os.environ:
        if code == 0:
            tell("ack", result)
        elif code == 1:
            tell("refused", result)
    sys.exit(0 if code == 0 else 1)


def daemon(environment):
    worker = [sys.executable, os.path.abspath(__file__), "work"]
    ack = environment.get("KILLPOINT_ACK_FD")
    return subprocess.Popen(
        [*HARDBOARD, "--db", "board.db", "dispatch", "--daemon", "--", *worker],
        env={**environment, **SETTINGS},
        pass_fds=[int(ack)] if ack else [],
        stdout=subprocess.DEVNULL,
    )


def run():
    end = time.monotonic() + RUN_SECONDS
    if os.environ.get("DISPATCH_FLAW") == "no-claim":
        return run_without_claims(end)
    child = daemon(os.environ)
    while time.monotonic() < end:
        time.sleep(0.02)
        if child.poll() is not None:
            child = daemon(os.environ)
    child.send_signal(signal.SIGTERM)
    code = child.wait()
    sys.exit(0 if code in (0, -signal.SIGKILL) else code)


def run_without_claims(end):
    """What a dispatcher without a lease does: it takes what is ready, and so do the others."""
    for task in json.loads(must("list", "--json")):
        if task["status"] == "ready" and time.monotonic() < end:
            environment = {**os.environ, "HARDBOARD_TASK": str(task["id"]), "HARDBOARD_TOKEN": "1"}
            subprocess.Popen([sys.executable, os.path.abspath(__file__), "work"], env=environment,
                             pass_fds=[int(os.environ["KILLPOINT_ACK_FD"])])
            time.sleep(0.05)


def check():
    wrong = []
    seen = {}
    for line in notes():
        if line[0] == "double":
            wrong.append(f"task {line[1]}: run {line[2]} began while run {line[3]} worked on it")
        elif (line[1], line[2]) in seen:
            wrong.append(f"task {line[1]}, run {line[2]} was started twice")
        else:
            seen[line[1], line[2]] = line[3]
    code, _, err = board("verify")
    if code != 0:
        wrong.append(f"hardboard verify: {code}: {err.strip()}")
    told = {}
    for task in json.loads(must("list", "--limit", "1000", "--json")):
        told[str(task["id"])] = json.loads(must("show", str(task["id"]), "--json"))
    made = len(told)
    if [int(task) for task in sorted(told, key=int)] != list(range(1, made + 1)) or made % TASKS:
        wrong.append(f"tasks are missing: {sorted(told, key=int)}")
    runs = {(task, str(run["token"])): run for task in told for run in told[task]["runs"]}
    wrong += [f"task {task}, run {token} was started and is not on the board"
              for task, token in seen if (task, token) not in runs]
    for name, must_be in (("KILLPOINT_ACKS", True), ("KILLPOINT_REFUSED", False)):
        with open(os.environ[name]) as lines:
            for result in lines.read().split():
                task, token, _ = result.split(":")
                run = runs.get((task, token), {})
                done = run.get("outcome") == "completed" and told[task]["task"]["result"] == result
                if done != must_be:
                    wrong.append(f"{result}: acknowledged is {must_be}, on the board is {done}")
    if not wrong:
        wrong = finish()
    if wrong:
        sys.exit("\n".join(wrong[:20]))
    if os.path.exists(UNDISTURBED):
        os.remove(UNDISTURBED)
    add_tasks()


def finish():
    """A dispatcher that nobody kills brings every task to its end."""
    child = daemon({**os.environ, "DISPATCH_CALM": "1"})
    patience = time.monotonic() + 60
    try:
        while time.monotonic() < patience:
            left = [task for task in json.loads(must("list", "--limit", "1000", "--json"))
                    if task["status"] not in ("done", "archived")]
            if not left:
                return []
            time.sleep(0.1)
        return [f"task {task['id']} is {task['status']} and goes on no more" for task in left]
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait()


if __name__ == "__main__":
    {"setup": setup, "run": run, "work": work, "check": check}[sys.argv[1]]()
