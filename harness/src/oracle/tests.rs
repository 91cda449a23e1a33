//! Each oracle against legal histories, which must pass, and against one hand-made damage each,
//! which only it may catch.

use super::fixture::Board;
use super::*;
use crate::history::{Counters, Op, Timing};
use crate::plan::{Ending, KillPlan, Moment, Plan};
use crate::scenario;
use hardboard::Durability;
use killpoint_worker::ledger::{Activity, Effective, Kind, Loaded, Reason, State};
use killpoint_worker::wire::{EngineName, Exit, Role};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn scenario() -> scenario::Scenario {
    let text = "format = 1\nclaim = 'c'\nexpect = 'pass'\n[writers]\ndispatcher = 2\n\
                [workload]\npayload-bytes = [20, 60]\n\
                [[setting]]\nsynchronous = 'full'\nwal-autocheckpoint = 100\n\
                [cycles]\ncount = 2\nper-database = 2\ngraceful-every = 0\n[kill]\ncommit = 1\n";
    scenario::parse("t", text).unwrap()
}

fn plan() -> Plan {
    Plan::new("t", &scenario(), 1)
}

/// One legal cycle of two sessions: everything of it may be changed before it is judged.
struct Legal {
    plan: CyclePlan,
    lives: Vec<Life>,
    receipts: Vec<Receipt>,
    seen: Observation,
}

impl Legal {
    /// The cycle in which `script` is performed by two sessions in turns.
    fn new(board: &mut Board, cycle: u32, script: &[(bool, Kind, u32)]) -> Self {
        let since = board.seq;
        let generation = plan().generations().next().unwrap();
        let plan = plan().cycle(generation, cycle);
        let mut ops: [Vec<Op>; 2] = [Vec::new(), Vec::new()];
        for (second, kind, rows) in script {
            let slot = usize::from(*second);
            let number = i64::try_from(ops[slot].len()).unwrap() + 1;
            let done = board.perform(plan.lives[slot].session, number, *kind, *rows);
            // What cannot be done is refused, and leaves nothing.
            ops[slot].push(done.unwrap_or(Op {
                kind: *kind,
                state: State::Refused,
                reason: Reason::Nothing,
                rows: 0,
                task: 0,
                token: 0,
                seq: 0,
                total_ns: 1,
                commit_ns: 0,
                durability: Durability::Process,
                started_us: 0,
            }));
        }
        let lives = ops.into_iter().enumerate().map(|(slot, ops)| Life {
            generation: 0,
            cycle,
            slot,
            session: plan.lives[slot].session,
            role: Role::Dispatcher,
            engine: plan.lives[slot].engine,
            loaded: Some(Loaded { sqlite_version: 3_054_001, source_id: "2026".to_owned() }),
            effective: Some(Effective { synchronous: 2, wal_autocheckpoint: 100, wal: true }),
            exit: Exit::Signal(9),
            activity: Activity::Commit,
            hung: false,
            ledger_full: false,
            message: None,
            counters: Counters::default(),
            ops,
        });
        let lives = lives.collect();
        let receipt = |slot, planned, moment| Receipt {
            generation: 0,
            cycle,
            planned,
            slot,
            moment,
            met: true,
            at_us: 5,
            activity: Activity::Commit,
        };
        let receipts = vec![receipt(0, Some(0), Moment::Commit), receipt(1, None, Moment::Ending)];
        Self { plan, lives, receipts, seen: board.observe(since) }
    }

    fn judge(self, judge: &mut Judge) -> CycleJudgement {
        let timing = Timing { generation: 0, cycle: 0, open_us: 1, write_us: 1 };
        let mut lines = vec![Line::Timed(timing)];
        lines.extend(self.lives.into_iter().map(Line::Life));
        lines.extend(self.receipts.into_iter().map(Line::Killed));
        lines.push(Line::Observed(Box::new(self.seen)));
        judge.cycle(&self.plan, &lines)
    }
}

const SCRIPT: [(bool, Kind, u32); 10] = [
    (false, Kind::Create, 0),
    (true, Kind::Create, 0),
    (true, Kind::Claim, 0),
    (false, Kind::Events, 3),
    (true, Kind::Heartbeat, 0),
    (false, Kind::TakeBack, 0),
    (true, Kind::Claim, 0),
    (true, Kind::Events, 2),
    (false, Kind::Create, 0),
    (true, Kind::Complete, 0),
];

/// Judges the script after `damage`: exactly `kinds` must be found.
#[track_caller]
fn check(damage: impl FnOnce(&mut Legal), kinds: &[FindingKind]) {
    let mut cycle = Legal::new(&mut Board::default(), 0, &SCRIPT);
    damage(&mut cycle);
    let judgement = cycle.judge(&mut Judge::default());
    let mut found: Vec<FindingKind> = judgement.findings.iter().map(|f| f.kind).collect();
    found.dedup();
    assert_eq!(found, kinds, "{:#?}", judgement.findings);
}

/// The same board, rebuilt by `damage` before it is observed.
#[track_caller]
fn check_board(damage: impl FnOnce(&mut Board), kinds: &[FindingKind]) {
    check(
        |cycle| {
            let mut board = Board::default();
            drop(Legal::new(&mut board, 0, &SCRIPT));
            damage(&mut board);
            cycle.seen = board.observe(0);
        },
        kinds,
    );
}

#[test]
fn a_legal_cycle_passes() {
    check(|_| {}, &[]);
}

#[test]
fn lost_acked_write_at_the_end_of_the_order_is_found() {
    check_board(
        |board| {
            // As if the last transaction had never been: the completion.
            board.commits.pop();
            board.events.pop();
            board.runs[1].changed_seq = 7;
            (board.runs[1].ended_seq, board.runs[1].outcome) = (None, None);
            let task = &mut board.tasks[0];
            (task.changed_seq, task.status, task.result) = (7, "running".to_owned(), None);
        },
        &[FindingKind::LostAckedWrite],
    );
}

#[test]
fn an_operation_of_unknown_outcome_may_be_there_or_not() {
    check(|cycle| cycle.lives[1].ops[5].state = State::Sent, &[]);
    check(|cycle| cycle.lives[1].ops[5].state = State::Unknown, &[]);
}

#[test]
fn refused_write_that_is_there_is_found() {
    check(
        |cycle| cycle.lives[0].ops[1].state = State::Refused,
        &[FindingKind::RefusedWritePresent],
    );
}

#[test]
fn commit_that_nobody_sent_is_found() {
    check(|cycle| cycle.lives[1].ops.truncate(5), &[FindingKind::AlienWrite]);
}

#[test]
fn half_of_an_operation_is_found() {
    check_board(|board| drop(board.events.remove(2)), &[FindingKind::TornTransaction]);
}

#[test]
fn half_of_a_completion_is_found() {
    check_board(
        |board| {
            (board.tasks[0].status, board.tasks[0].result) = ("running".to_owned(), None);
        },
        &[FindingKind::TornTransaction],
    );
}

#[test]
fn event_too_many_is_found() {
    check_board(
        |board| {
            let event = board.events[2].clone();
            board.events.insert(2, event);
        },
        &[FindingKind::AlienWrite],
    );
}

#[test]
fn other_bytes_than_were_sent_are_found() {
    check_board(|board| board.events[2].3.push('x'), &[FindingKind::AlienWrite]);
}

#[test]
fn acknowledgement_under_another_number_is_found() {
    check(|cycle| cycle.lives[1].ops[0].seq = 7, &[FindingKind::OrderViolation]);
}

#[test]
fn hole_in_the_commit_order_is_found() {
    check(
        |cycle| {
            cycle.lives[0].ops[1].state = State::Unknown;
            cycle.seen.commits.remove(3);
            cycle.seen.events.retain(|group| group.seq != 4);
        },
        &[FindingKind::CommitHole],
    );
}

#[test]
fn second_owner_of_a_live_claim_is_found() {
    check_board(
        |board| {
            // The take-back never happened, the second claim did.
            board.commits[5].kind = "heartbeat".to_owned();
        },
        &[FindingKind::AlienWrite, FindingKind::DoubleOwner, FindingKind::TornTransaction],
    );
}

#[test]
fn write_under_a_token_that_was_taken_back_is_found() {
    let mut board = Board::default();
    let mut cycle = Legal::new(&mut board, 0, &SCRIPT[..7]);
    // Token 1 was taken back and token 2 is live: an event comes in under token 1.
    let session = cycle.plan.lives[0].session;
    let mut late = board.perform(session, 4, Kind::Events, 1).unwrap();
    late.token = 1;
    board.commits.last_mut().unwrap().token = 1;
    board.events.last_mut().unwrap().1 = 1;
    cycle.lives[0].ops.push(late);
    cycle.seen = board.observe(0);
    let judgement = cycle.judge(&mut Judge::default());
    let kinds: Vec<FindingKind> = judgement.findings.iter().map(|f| f.kind).collect();
    assert_eq!(kinds, [FindingKind::StaleWrite], "{:#?}", judgement.findings);
}

#[test]
fn damage_of_the_file_is_found() {
    check(
        |cycle| cycle.seen.integrity.push("row 3 missing from index x".to_owned()),
        &[FindingKind::Corrupt],
    );
    check(
        |cycle| cycle.seen.unreadable = Some("database disk image is malformed".to_owned()),
        &[FindingKind::Corrupt],
    );
}

#[test]
fn what_cannot_be_read_any_more_is_lost() {
    let mut cycle = Legal::new(&mut Board::default(), 0, &SCRIPT);
    cycle.seen.unreadable = Some("database disk image is malformed".to_owned());
    let lost = cycle.seen.commits.split_off(6);
    let judgement = cycle.judge(&mut Judge::default());
    let kinds: BTreeSet<FindingKind> = judgement.findings.iter().map(|f| f.kind).collect();
    assert_eq!(kinds, BTreeSet::from([FindingKind::LostAckedWrite, FindingKind::Corrupt]));
    assert_eq!(judgement.tally.lost_acked_ops, lost.len() as u64);
    assert_eq!(judgement.tally.first_loss_us, Some(lost[0].seq.unsigned_abs()));
}

#[test]
fn orphan_row_is_found() {
    check(
        |cycle| cycle.seen.foreign_keys.push("events row 9".to_owned()),
        &[FindingKind::ForeignKeyViolation],
    );
}

#[test]
fn recoveries_that_differ_are_found() {
    check(|cycle| cycle.seen.second_file = "bb".to_owned(), &[FindingKind::RecoveryDiverged]);
}

#[test]
fn checkpoint_that_changes_something_the_second_time_is_found() {
    check(
        |cycle| cycle.seen.first_file_again = "bb".to_owned(),
        &[FindingKind::CheckpointNotIdempotent],
    );
}

#[test]
fn setting_that_did_not_take_is_found() {
    let wrong: [fn(&mut Effective); 3] = [
        |effective| effective.synchronous = 1,
        |effective| effective.wal_autocheckpoint = 1000,
        |effective| effective.wal = false,
    ];
    for change in wrong {
        check(
            |cycle| change(cycle.lives[0].effective.as_mut().unwrap()),
            &[FindingKind::SettingNotEffective],
        );
    }
}

#[test]
fn another_engine_than_asked_for_is_found() {
    let asked = |cycle: &mut Legal| {
        for life in &mut cycle.plan.lives {
            life.engine = EngineName::V3_50_2;
        }
    };
    let loaded = |cycle: &mut Legal, version| {
        for life in &mut cycle.lives {
            life.loaded.as_mut().unwrap().sqlite_version = version;
        }
    };
    check(asked, &[FindingKind::SettingNotEffective]);
    check(
        |cycle| {
            asked(cycle);
            loaded(cycle, 3_050_002);
            cycle.lives[1].loaded = None;
        },
        &[FindingKind::SettingNotEffective],
    );
    check(
        |cycle| {
            asked(cycle);
            loaded(cycle, 3_050_002);
        },
        &[],
    );
}

#[test]
fn kill_without_a_receipt_is_found() {
    for slot in [0, 1] {
        check(
            |cycle| cycle.receipts.retain(|receipt| receipt.slot != slot),
            &[FindingKind::FaultNotDelivered],
        );
    }
    let never = KillPlan { at_us: 1, moment: Moment::Any, victims: vec![0, 1] };
    check(|cycle| cycle.plan.kills.push(never), &[FindingKind::FaultNotDelivered]);
}

#[test]
fn process_that_died_of_something_else_is_found() {
    check(|cycle| cycle.lives[1].exit = Exit::Signal(7), &[FindingKind::UnexpectedExit]);
    check(|cycle| cycle.lives[1].exit = Exit::Code(21), &[FindingKind::UnexpectedExit]);
}

#[test]
fn process_that_hung_is_found() {
    check(|cycle| cycle.lives[1].hung = true, &[FindingKind::Hung]);
}

#[test]
fn process_of_which_nothing_is_known_is_found() {
    check(
        |cycle| {
            cycle.lives.pop();
            cycle.seen = Board::default().observe(0);
            cycle.lives[0].ops.clear();
        },
        &[FindingKind::LedgerCutShort],
    );
}

#[test]
fn what_was_there_in_an_earlier_cycle_must_stay() {
    let mut board = Board::default();
    let mut judge = Judge::default();
    assert_eq!(Legal::new(&mut board, 0, &SCRIPT).judge(&mut judge).findings, []);
    let before = board.clone();
    let mut second = Legal::new(&mut board, 1, &[(false, Kind::Create, 0)]);
    // The first cycle's last commit is gone, and its number was given to another.
    let mut damaged = before;
    damaged.commits.pop();
    damaged.seq -= 1;
    let session = second.plan.lives[0].session;
    second.lives[0].ops[0] = damaged.perform(session, 1, Kind::Create, 1).unwrap();
    second.seen = damaged.observe(0);
    let judgement = second.judge(&mut judge);
    let kinds: Vec<FindingKind> = judgement.findings.iter().map(|f| f.kind).collect();
    assert!(kinds.contains(&FindingKind::HistoryChanged), "{:#?}", judgement.findings);
    assert!(kinds.contains(&FindingKind::LostAckedWrite), "{:#?}", judgement.findings);
    assert_eq!(judgement.tally.lost_acked_ops, 1);
}

#[test]
fn old_row_that_changed_unreported_is_found_by_its_tables_digest() {
    let mut board = Board::default();
    let mut judge = Judge::default();
    assert_eq!(Legal::new(&mut board, 0, &SCRIPT).judge(&mut judge).findings, []);
    board.tasks[1].priority += 1;
    let judgement = Legal::new(&mut board, 1, &[(true, Kind::Claim, 0)]).judge(&mut judge);
    let kinds: Vec<FindingKind> = judgement.findings.iter().map(|f| f.kind).collect();
    assert!(
        kinds.contains(&FindingKind::HistoryChanged)
            || kinds.contains(&FindingKind::TornTransaction),
        "{:#?}",
        judgement.findings
    );
}

#[test]
fn commit_that_turns_up_a_cycle_late_is_found() {
    let mut board = Board::default();
    let mut judge = Judge::default();
    let mut first = Legal::new(&mut board, 0, &SCRIPT);
    let session = first.plan.lives[0].session;
    let number = i64::try_from(first.lives[0].ops.len()).unwrap() + 1;
    let mut late = board.clone().perform(session, number, Kind::Create, 1).unwrap();
    late.state = State::Sent;
    first.lives[0].ops.push(late);
    assert_eq!(first.judge(&mut judge).findings, []);
    board.perform(session, number, Kind::Create, 1).unwrap();
    let since = board.seq - 1;
    let mut second = Legal::new(&mut board, 1, &[]);
    second.seen = board.observe(since);
    let judgement = second.judge(&mut judge);
    let kinds: Vec<FindingKind> = judgement.findings.iter().map(|f| f.kind).collect();
    assert_eq!(kinds, [FindingKind::AlienWrite], "{:#?}", judgement.findings);
}

#[test]
fn run_without_kills_or_acknowledgements_is_not_a_pass() {
    let findings = judge_whole(&plan(), &Tally::default(), false);
    let kinds: Vec<FindingKind> = findings.iter().map(|f| f.kind).collect();
    assert!(kinds.contains(&FindingKind::FaultNotDelivered));
    assert!(kinds.contains(&FindingKind::NothingAcked));
    assert!(!kinds.contains(&FindingKind::Interrupted));
    assert!(findings.iter().any(|f| f.detail.contains("commit")), "{findings:#?}");
}

#[test]
fn run_that_wants_no_kills_passes_without_one() {
    let mut plan = plan();
    plan.scenario.kill = crate::scenario::Kills { none: true, ..Default::default() };
    let tally = Tally { acked_ops: 1, ..Tally::default() };
    assert_eq!(judge_whole(&plan, &tally, false), []);
}

#[test]
fn kills_that_never_met_their_moment_are_not_a_pass() {
    let mut cycle = Legal::new(&mut Board::default(), 0, &SCRIPT);
    cycle.receipts[0].activity = Activity::Idle;
    let tally = cycle.judge(&mut Judge::default()).tally;
    let findings = judge_whole(&plan(), &tally, false);
    let kinds: Vec<FindingKind> = findings.iter().map(|f| f.kind).collect();
    assert_eq!(kinds, [FindingKind::FaultNotDelivered], "{findings:#?}");
}

#[test]
fn ending_that_is_graceful_wants_clean_exits() {
    let graceful = |cycle: &mut Legal| {
        cycle.plan.ending = Ending::Graceful;
        cycle.receipts.pop();
        cycle.lives[1].exit = Exit::Code(0);
        cycle.lives[1].activity = Activity::Closed;
    };
    check(graceful, &[]);
    check(
        |cycle| {
            graceful(cycle);
            cycle.lives[1].exit = Exit::Code(21);
        },
        &[FindingKind::UnexpectedExit],
    );
}

fn scripts() -> impl Strategy<Value = Vec<(bool, Kind, u32)>> {
    let kind = prop::sample::select(Kind::ALL.to_vec());
    prop::collection::vec((any::<bool>(), kind, 1_u32..5), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn legal_histories_pass(first in scripts(), second in scripts()) {
        let mut board = Board::default();
        let mut judge = Judge::default();
        for (cycle, script) in [first, second].iter().enumerate() {
            let cycle = Legal::new(&mut board, u32::try_from(cycle).unwrap(), script);
            prop_assert_eq!(cycle.judge(&mut judge).findings, vec![]);
        }
    }

    #[test]
    fn losing_any_one_commit_of_a_legal_history_is_found(script in scripts(), pick: usize) {
        let mut board = Board::default();
        let mut cycle = Legal::new(&mut board, 0, &script);
        prop_assume!(!cycle.seen.commits.is_empty());
        let index = pick % cycle.seen.commits.len();
        cycle.seen.commits.remove(index);
        let judgement = cycle.judge(&mut Judge::default());
        let lost = judgement.findings.iter().any(|f| f.kind == FindingKind::LostAckedWrite);
        prop_assert!(lost, "{:#?}", judgement.findings);
        prop_assert_eq!(judgement.verdict(), Verdict::Fail);
    }

    #[test]
    fn changing_any_one_row_of_a_legal_history_is_found(script in scripts(), pick: usize) {
        let mut board = Board::default();
        let mut cycle = Legal::new(&mut board, 0, &script);
        prop_assume!(!board.tasks.is_empty());
        let task = pick % board.tasks.len();
        board.tasks[task].title.push('!');
        cycle.seen = board.observe(0);
        let judgement = cycle.judge(&mut Judge::default());
        prop_assert_eq!(judgement.verdict(), Verdict::Fail);
    }
}
