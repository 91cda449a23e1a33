//! The commands of the whole board.

use super::*;

fn json(place: &Place, line: &str) -> Value {
    let told = on(place, &format!("{line} --json"));
    assert_eq!((told.exit, told.err.as_str()), (Exit::Done, ""), "{line}");
    serde_json::from_str(&told.out).unwrap()
}

fn status(place: &Place, task: i64) -> Value {
    json(place, &format!("show {task}"))["task"]["status"].clone()
}

#[test]
fn task_waits_for_another_and_is_shown_with_all_that_belongs_to_it() {
    let place = Place::new();
    on(&place, "init");
    on(&place, "create dig --tenant acme --by ann");
    check(&place, "create plant --after 1 --body deep", "created task 2\n");
    assert_eq!(status(&place, 2), "todo");
    on(&place, "comment 2 slowly --author bob");
    on(&place, "attach 2 plan.md --name plan");
    on(&place, "claim 1 --worker ann");
    on(&place, "complete 1 --token 1 --result dug");
    check(
        &place,
        "show 2",
        "2\tready\tpriority 0\tplant\nbody: deep\nwaits for: 1\ncomment 1 by bob: slowly\n\
         attachment 1 plan: plan.md\nevent 2 created: plant\nevent 3 commented: bob\n\
         event 4 attached: plan\nevent 7 promoted: ready\n",
    );
}

#[test]
fn link_that_would_be_a_cycle_is_refused() {
    let place = Place::new();
    on(&place, "init");
    on(&place, "create a");
    on(&place, "create b --after 1");
    let told = on(&place, "link 2 1");
    check_error(&told, Exit::Refused, "task 1 cannot wait for task 2", "see hardboard show");
    check(&place, "link 1 2 --remove", "unlinked task 2\n");
    assert_eq!(status(&place, 2), "ready");
}

#[test]
fn second_task_of_a_key_is_the_first() {
    let place = Place::new();
    on(&place, "init");
    check(&place, "create dig --idempotency-key k", "created task 1\n");
    check(&place, "create dig --idempotency-key k", "task 1 was there\n");
    assert_eq!(
        json(&place, "create x --idempotency-key k"),
        json!({"task_id": 1, "existed": true})
    );
}

#[test]
fn result_goes_through_review() {
    let place = Place::new();
    on(&place, "init");
    on(&place, "create dig");
    on(&place, "claim 1 --worker ann");
    check(&place, "review submit 1 --token 1 --result so", "submitted task 1\n");
    check(&place, "review send-back 1 --seen 1 --reason deeper", "sent back task 1\n");
    on(&place, "claim 1 --worker ann");
    on(&place, "review submit 1 --token 2 --result deep");
    let told = on(&place, "review approve 1 --seen 1");
    check_error(
        &told,
        Exit::Refused,
        "claim 1 of task 1 is not live",
        "stop the work on this task",
    );
    check(&place, "review approve 1 --seen 2", "approved task 1\n");
    assert_eq!(status(&place, 1), "done");
}

#[test]
fn task_is_blocked_scheduled_promoted_failed_and_archived() {
    let place = Place::new();
    on(&place, "init");
    on(&place, "create dig --triage");
    check(&place, "promote 1", "promoted task 1\n");
    check(&place, "block 1 --reason rain", "blocked task 1\n");
    check(&place, "unblock 1", "unblocked task 1\n");
    check(&place, "schedule 1 99999999999999", "scheduled task 1\n");
    on(&place, "promote 1");
    on(&place, "claim 1 --worker ann");
    check(
        &place,
        "fail 1 --token 1 --error broke",
        "ended the claim of task 1, which is scheduled now\n",
    );
    on(&place, "promote 1");
    on(&place, "claim 1 --worker ann");
    check(&place, "release 1 --token 2 --reason tired", "released task 1\n");
    on(&place, "claim 1 --worker ann");
    check(
        &place,
        "release 1 --token 3 --take-back --reason ill",
        "took back the claim of task 1\n",
    );
    on(&place, "edit 1 --title dug --priority 4");
    check(&place, "archive 1", "archived task 1\n");
    let told = on(&place, "edit 1 --title x");
    check_error(&told, Exit::Refused, "task 1 cannot be edited: it is archived", "hardboard show");
}

#[test]
fn worker_is_told_its_task_and_token_by_the_environment() {
    let place = Place::new();
    on(&place, "init");
    on(&place, "create dig");
    on(&place, "claim 1 --worker ann");
    let as_worker = |line: &str| {
        let database = [OsString::from("--db"), place.path().into_os_string()];
        let arguments = database.into_iter().chain(line.split(' ').map(OsString::from));
        told(arguments, |name| match name {
            "HARDBOARD_TASK" | "HARDBOARD_TOKEN" => Some("1".into()),
            _ => None,
        })
    };
    assert_eq!(as_worker("heartbeat").exit, Exit::Done);
    // The token of one task is not offered for another.
    let told = as_worker("complete 2");
    check_error(&told, Exit::Usage, "a command without --token is not", "see hardboard --help");
    assert_eq!(as_worker("complete --result dug").out, "completed task 1\n");
    let told = on(&place, "heartbeat");
    check_error(&told, Exit::Usage, "a command without a task is not", "see hardboard --help");
}

#[test]
fn events_are_read_by_subscription() {
    let place = Place::new();
    on(&place, "init");
    on(&place, "create dig");
    on(&place, "subscribe add mail --from-oldest");
    on(&place, "subscribe add chat --from-oldest --delivery at-most-once --task 1");
    check(&place, "subscribe next mail", "task 1 event 1 created: dig\n");
    check(&place, "subscribe next mail", "task 1 event 1 created: dig\n");
    check(&place, "subscribe ack mail 1", "acknowledged mail\n");
    check(&place, "subscribe next mail", "");
    check(&place, "subscribe next chat", "task 1 event 1 created: dig\n");
    check(&place, "subscribe next chat", "");
    assert_eq!(json(&place, "subscribe list")[1]["cursor"], 1);
    let told = on(&place, "subscribe next post");
    check_error(&told, Exit::Refused, "there is no subscription", "see hardboard subscribe list");
    check(&place, "events --task 1", "task 1 event 1 created: dig\n");
    check(&place, "prune --days 1", "nothing is that old\n");
    let told = on(&place, "prune --days 0");
    check_error(&told, Exit::Usage, "an age of 0 s is not an hour or more", "hardboard --help");
}

#[test]
fn stats_options_and_completions_are_told() {
    let place = Place::new();
    on(&place, "init");
    on(&place, "create dig");
    assert_eq!(json(&place, "stats")["tasks"]["ready"], 1);
    assert!(on(&place, "stats").out.contains("nobody dispatches"));
    let options = told([OsString::from("options")], |name| {
        (name == "HARDBOARD_MAX_SPAWN").then(|| "9".into())
    });
    assert!(options.out.contains("max-spawn"), "{}", options.err);
    let line = options.out.lines().find(|line| line.contains("max-spawn")).unwrap();
    assert!(line.contains(" 9 ") && line.contains("environment"), "{line}");
    for shell in ["bash", "zsh", "fish"] {
        let script = told(["completions".into(), shell.into()], |_| None);
        assert!(script.out.contains("reconcile"), "{}", script.err);
    }
}

#[test]
fn file_with_settings_that_is_not_understood_is_told_in_one_line() {
    let place = Place::new();
    let file = place.path().with_file_name("hardboard.toml");
    fs::write(&file, "[dispatch]\nmax-spwan = 3\n").unwrap();
    let line = format!("list --config {}", file.display());
    let told = on(&place, &line);
    check_error(&told, Exit::Usage, &file.display().to_string(), "change the file");
}

#[test]
fn round_of_the_dispatcher_starts_a_worker_and_tells_of_its_end() {
    let place = Place::new();
    on(&place, "init");
    on(&place, "create dig");
    let first = json(&place, "dispatch --once --json -- false");
    assert_eq!(first["started"][0]["task_id"], 1, "{first}");
    let pid = i32::try_from(first["started"][0]["pid"].as_i64().unwrap()).unwrap();
    // Its parent is this process, which is not the dispatcher of the next round.
    while crate::board::process::Process::of(pid).is_ok() {}
    let second = json(&place, "dispatch --once --json -- false");
    assert_eq!(second["ended"][0]["outcome"], "crashed", "{second}");
    assert_eq!(status(&place, 1), "scheduled");
    let told = on(&place, "dispatch");
    check_error(&told, Exit::Usage, "the following required arguments were not provided", "--help");
}

#[test]
fn dispatcher_beside_another_says_who_that_is() {
    let place = Place::new();
    on(&place, "init");
    let taken = crate::Dispatcher::take(
        place.board(),
        crate::Session::new(5),
        "the other",
        crate::DispatchOptions::default(),
    );
    let Ok(crate::Taken::Ours(dispatcher)) = taken else { panic!("{taken:?}") };
    let told = on(&place, "dispatch --once");
    check_error(&told, Exit::Busy, "the other (process ", "try again later");
    dispatcher.resign(false).unwrap();
    assert_eq!(on(&place, "dispatch --once").exit, Exit::Done);
}

#[test]
fn plan_is_printed_and_carried_out_from_its_file() {
    let place = Place::new();
    on(&place, "init");
    on(&place, "create dig");
    on(&place, "claim 1 --worker ann");
    on(&place, "complete 1 --token 1 --result dug");
    let spoil = "UPDATE tasks SET status = 'running'";
    place.board().connection().execute_batch(spoil).unwrap();
    let told = on(&place, "reconcile --json");
    let plan = place.path().with_file_name("plan.json");
    fs::write(&plan, &told.out).unwrap();
    let apply = format!("reconcile --apply {}", plan.display());
    check(&place, &apply, "changed 1 tasks\n");
    check(&place, &apply, "this plan was carried out before\n");
    assert_eq!(status(&place, 1), "done");
    fs::write(&plan, "{}").unwrap();
    let told = on(&place, &apply);
    check_error(&told, Exit::Usage, &plan.display().to_string(), "see hardboard --help");
}

#[test]
fn old_board_is_looked_at_first_and_then_brought_here() {
    let place = Place::new();
    let from = place.path().with_file_name("kanban.db");
    let old = rusqlite::Connection::open(&from).unwrap();
    old.execute_batch(include_str!("../../board/import/kanban.sql")).unwrap();
    drop(old);
    let line = format!("import --from {}", from.display());
    let told = on(&place, &line);
    assert!(told.out.contains(" tasks          7      7"), "{}{}", told.out, told.err);
    assert!(!place.path().exists(), "a dry run makes nothing");
    let told = on(&place, &format!("{line} --apply"));
    assert!(told.out.ends_with("imported\n"), "{}{}", told.out, told.err);
    let told = on(&place, &format!("{line} --apply"));
    check_error(&told, Exit::Refused, "cannot import: this board is not empty", "import --help");
    // The level that the old application was told is kept to, and can only be raised.
    let hermes = |name: &str| (name == "HERMES_KANBAN_SYNCHRONOUS_MODE").then(|| "full".into());
    let pragmas = ["pragmas".into(), "--db".into(), place.path().into_os_string()];
    assert!(super::told(pragmas, hermes).out.contains("synchronous = full"));
}
