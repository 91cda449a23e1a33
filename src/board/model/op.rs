//! What a random sequence is made of.

use proptest::prelude::*;

/// One write, with numbers that may or may not be those of something that is there.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Create { priority: i64, parent: Option<i64>, idempotency: Option<u8> },
    Link { parent: i64, child: i64 },
    Unlink { parent: i64, child: i64 },
    ClaimNext { expired: bool },
    Claim { task: i64, expired: bool },
    Heartbeat { task: i64, token: i64, expired: bool },
    Events { task: i64, token: Option<i64>, count: usize },
    Comment { task: i64, token: Option<i64> },
    End { task: i64, token: i64, how: End },
    TakeBack,
    Block { task: i64 },
    Unblock { task: i64 },
    Approve { task: i64, token: i64 },
    SendBack { task: i64, token: i64 },
    Archive { task: i64 },
    Repeat,
    Reopen,
}

/// How a worker ends its claim.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    Complete,
    Submit,
    Release,
    Block,
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    let (task, token) = (1..6_i64, 1..4_i64);
    let pair = (task.clone(), task.clone());
    let claim = (task.clone(), token.clone());
    let maybe = (task.clone(), proptest::option::of(token.clone()));
    let end = prop_oneof![
        3 => Just(End::Complete), 1 => Just(End::Submit), 1 => Just(End::Release),
        1 => Just(End::Block),
    ];
    let parent = proptest::option::weighted(0.3, task.clone());
    let idempotency = proptest::option::weighted(0.2, 0..3_u8);
    prop_oneof![
        4 => (-2..3_i64, parent, idempotency).prop_map(|(priority, parent, idempotency)| {
            Op::Create { priority, parent, idempotency }
        }),
        2 => pair.clone().prop_map(|(parent, child)| Op::Link { parent, child }),
        1 => pair.prop_map(|(parent, child)| Op::Unlink { parent, child }),
        5 => any::<bool>().prop_map(|expired| Op::ClaimNext { expired }),
        2 => (task.clone(), any::<bool>()).prop_map(|(task, expired)| Op::Claim { task, expired }),
        2 => (claim.clone(), any::<bool>()).prop_map(|((task, token), expired)| {
            Op::Heartbeat { task, token, expired }
        }),
        2 => (maybe.clone(), 0..4_usize)
            .prop_map(|((task, token), count)| Op::Events { task, token, count }),
        1 => maybe.prop_map(|(task, token)| Op::Comment { task, token }),
        4 => (claim.clone(), end).prop_map(|((task, token), how)| Op::End { task, token, how }),
        3 => Just(Op::TakeBack),
        1 => task.clone().prop_map(|task| Op::Block { task }),
        1 => task.clone().prop_map(|task| Op::Unblock { task }),
        1 => claim.clone().prop_map(|(task, token)| Op::Approve { task, token }),
        1 => claim.prop_map(|(task, token)| Op::SendBack { task, token }),
        1 => task.prop_map(|task| Op::Archive { task }),
        1 => Just(Op::Repeat),
        1 => Just(Op::Reopen),
    ]
}
