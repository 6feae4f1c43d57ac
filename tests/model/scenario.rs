//! One scenario, and the strategy that generates it.

use crate::{CHATS, PROCESSES, WORKSPACES};
use proptest::prelude::*;
use support::wire::Fate;

/// An operation, as plain data, so that a failure shrinks to a readable sequence.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Rebuild {
        ws: usize,
        old: Does,
    },
    /// The previous agent serves again, as the other one of a standby pair does. In a workspace
    /// with generations: a rebuild.
    Return {
        ws: usize,
        old: Does,
    },
    Status {
        ws: usize,
        status: Status,
    },
    Agent {
        ws: usize,
        does: Does,
    },
    Resolver {
        process: usize,
        ws: usize,
        answers: Answers,
    },
    Store {
        process: usize,
        reads: Fault,
        writes: Fault,
    },
    Call {
        process: usize,
        chat: usize,
        named: Option<usize>,
        lag: u64,
    },
    Drop {
        nth: usize,
    },
    Report {
        nth: usize,
    },
    Doubt {
        process: usize,
        ws: usize,
    },
    Retarget {
        by: By,
        chat: usize,
        ws: usize,
    },
    Unbind {
        by: By,
        chat: usize,
    },
    Forget {
        by: By,
        chat: usize,
    },
    Inherit {
        by: By,
        child: usize,
        parent: usize,
    },
    /// The generations of the workspace start again with a new build. The reset goes through one
    /// process, or past both.
    Reset {
        by: By,
        ws: usize,
        old: Does,
    },
    Look {
        process: usize,
        chat: usize,
        current: bool,
    },
    /// An invented hint.
    RumourOfChat {
        chat: usize,
        revision: Option<i64>,
    },
    RumourOfWorkspace {
        ws: usize,
        generation: Option<i64>,
    },
    Gap,
    Flush {
        process: usize,
    },
    /// A process ends at any time, and another one replaces it. Its background work continues.
    Restart {
        process: usize,
    },
    /// The layer of a process is closed at any time, and another process replaces it.
    Close {
        process: usize,
    },
    Yield,
    Advance {
        ms: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Does {
    Answer(u64),
    Fail(u64),
    /// Another agent answers at its address.
    Wrong(u64),
    Hang,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Status {
    Running,
    Starting,
    Stopped,
    Gone,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Answers {
    pub(crate) how: How,
    pub(crate) after: u64,
    /// The answer reflects the state at the beginning of the question, not at its end.
    pub(crate) early: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum How {
    Right,
    Fails,
    Hangs,
    /// The number of builds by which the resolver lags.
    Lags(usize),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    None,
    Unavailable,
    LostAnswer,
    LostRequest,
    Hang,
    /// The statement is executed after this time.
    Slow(u64),
    /// The statement is executed at once and answered after this time.
    Late(u64),
    /// The statement is executed after this time, even if its caller is gone, and not answered.
    Overdue(u64),
    /// A group repair skips the rows of these chats, a bit for each, as if they were locked.
    Skips(u8),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum By {
    Process(usize),
    Elsewhere,
}

pub(crate) fn does() -> impl Strategy<Value = Does> {
    let after = prop_oneof![Just(0u64), Just(5), Just(40), Just(400), Just(3_000)];
    prop_oneof![
        2 => after.clone().prop_map(Does::Answer),
        2 => after.clone().prop_map(Does::Fail),
        1 => after.prop_map(Does::Wrong),
        2 => Just(Does::Hang),
    ]
}

pub(crate) fn answers() -> impl Strategy<Value = Answers> {
    let how = prop_oneof![
        4 => Just(How::Right),
        1 => Just(How::Fails),
        1 => Just(How::Hangs),
        2 => (1usize..3).prop_map(How::Lags),
    ];
    let after = prop_oneof![Just(0u64), Just(5), Just(300), Just(4_000)];
    (how, after, any::<bool>()).prop_map(|(how, after, early)| Answers { how, after, early })
}

pub(crate) fn fault() -> impl Strategy<Value = Fault> {
    let after = prop_oneof![Just(3u64), Just(40), Just(400), Just(4_900), Just(8_000)];
    prop_oneof![
        4 => Just(Fault::None),
        1 => Just(Fault::Unavailable),
        1 => Just(Fault::LostAnswer),
        1 => Just(Fault::LostRequest),
        1 => Just(Fault::Hang),
        2 => after.clone().prop_map(Fault::Slow),
        4 => after.clone().prop_map(Fault::Late),
        1 => after.prop_map(Fault::Overdue),
        2 => (1u8..1 << CHATS).prop_map(Fault::Skips),
    ]
}

pub(crate) fn fate() -> impl Strategy<Value = Fate> {
    let after = || prop_oneof![3 => Just(0u64), 1 => Just(5), 1 => Just(60), 1 => Just(400), 1 => Just(4_000)];
    prop_oneof![
        2 => Just(Fate::Lost),
        6 => after().prop_map(Fate::After),
        2 => (after(), after()).prop_map(|(one, other)| Fate::Twice(one, other)),
        1 => after().prop_map(Fate::Gap),
    ]
}

pub(crate) fn by() -> impl Strategy<Value = By> {
    prop_oneof![(0..PROCESSES).prop_map(By::Process), Just(By::Elsewhere)]
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    let status = prop_oneof![3 => Just(Status::Running), 1 => Just(Status::Starting), 1 => Just(Status::Stopped), 1 => Just(Status::Gone)];
    let named = prop_oneof![2 => Just(None), 1 => (0..WORKSPACES).prop_map(Some)];
    let lag = prop_oneof![3 => Just(0u64), 1 => Just(7)];
    let advance = prop_oneof![
        3 => Just(1u64), 3 => Just(6), 3 => Just(60), 4 => Just(260), 2 => Just(2_500), 1 => Just(11_000), 1 => Just(31_000)
    ];
    prop_oneof![
        4 => (0..WORKSPACES, does()).prop_map(|(ws, old)| Op::Rebuild { ws, old }),
        3 => (0..WORKSPACES, does()).prop_map(|(ws, old)| Op::Return { ws, old }),
        2 => (0..WORKSPACES, status).prop_map(|(ws, status)| Op::Status { ws, status }),
        2 => (0..WORKSPACES, does()).prop_map(|(ws, does)| Op::Agent { ws, does }),
        3 => (0..PROCESSES, 0..WORKSPACES, answers()).prop_map(|(process, ws, answers)| Op::Resolver { process, ws, answers }),
        3 => (0..PROCESSES, fault(), fault()).prop_map(|(process, reads, writes)| Op::Store { process, reads, writes }),
        // The process's connections lead to a server that refuses writes.
        1 => (0..PROCESSES)
            .prop_map(|process| Op::Store { process, reads: Fault::None, writes: Fault::Unavailable }),
        12 => (0..PROCESSES, 0..CHATS, named, lag)
            .prop_map(|(process, chat, named, lag)| Op::Call { process, chat, named, lag }),
        2 => (0usize..8).prop_map(|nth| Op::Drop { nth }),
        2 => (0usize..8).prop_map(|nth| Op::Report { nth }),
        1 => (0..PROCESSES, 0..WORKSPACES).prop_map(|(process, ws)| Op::Doubt { process, ws }),
        4 => (by(), 0..CHATS, 0..WORKSPACES).prop_map(|(by, chat, ws)| Op::Retarget { by, chat, ws }),
        1 => (by(), 0..CHATS).prop_map(|(by, chat)| Op::Unbind { by, chat }),
        1 => (by(), 0..CHATS).prop_map(|(by, chat)| Op::Forget { by, chat }),
        1 => (by(), 0..CHATS, 0..CHATS).prop_map(|(by, child, parent)| Op::Inherit { by, child, parent }),
        1 => (by(), 0..WORKSPACES, does()).prop_map(|(by, ws, old)| Op::Reset { by, ws, old }),
        2 => (0..PROCESSES, 0..CHATS, any::<bool>())
            .prop_map(|(process, chat, current)| Op::Look { process, chat, current }),
        1 => (0..CHATS, prop::option::of(0..12i64)).prop_map(|(chat, revision)| Op::RumourOfChat { chat, revision }),
        1 => (0..WORKSPACES, prop::option::of(0..6i64))
            .prop_map(|(ws, generation)| Op::RumourOfWorkspace { ws, generation }),
        1 => Just(Op::Gap),
        1 => (0..PROCESSES).prop_map(|process| Op::Flush { process }),
        2 => (0..PROCESSES).prop_map(|process| Op::Restart { process }),
        1 => (0..PROCESSES).prop_map(|process| Op::Close { process }),
        3 => Just(Op::Yield),
        10 => advance.prop_map(|ms| Op::Advance { ms }),
    ]
}

/// One scenario: whether each workspace has generations, whether calls wait for their repairs, the
/// fate of hints if there are any, and the operations.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) numbered: [bool; WORKSPACES],
    pub(crate) before_return: bool,
    pub(crate) hints: Option<Vec<Fate>>,
    pub(crate) ops: Vec<Op>,
}

impl Op {
    /// Returns the operation with other sessions and workspaces.
    pub(crate) fn renamed(
        mut self,
        chats: impl Fn(&mut usize),
        workspaces: impl Fn(&mut usize),
    ) -> Self {
        match &mut self {
            Self::Rebuild { ws, .. }
            | Self::Return { ws, .. }
            | Self::Status { ws, .. }
            | Self::Agent { ws, .. }
            | Self::Resolver { ws, .. }
            | Self::RumourOfWorkspace { ws, .. }
            | Self::Reset { ws, .. }
            | Self::Doubt { ws, .. } => workspaces(ws),
            Self::Call { chat, named, .. } => {
                chats(chat);
                named.iter_mut().for_each(workspaces);
            }
            Self::Retarget { chat, ws, .. } => {
                chats(chat);
                workspaces(ws);
            }
            Self::Unbind { chat, .. }
            | Self::Forget { chat, .. }
            | Self::Look { chat, .. }
            | Self::RumourOfChat { chat, .. } => chats(chat),
            Self::Inherit { child, parent, .. } => {
                chats(child);
                chats(parent);
            }
            Self::Store { .. }
            | Self::Drop { .. }
            | Self::Report { .. }
            | Self::Gap
            | Self::Flush { .. }
            | Self::Restart { .. }
            | Self::Close { .. }
            | Self::Yield
            | Self::Advance { .. } => {}
        }
        self
    }
}

pub(crate) fn scenario() -> impl Strategy<Value = Scenario> {
    let ops = prop::collection::vec(op(), 1..70);
    // With few sessions, more operations concern the same ones. With few faults, more state
    // accumulates that a fault can break.
    let world =
        (0..CHATS, 1..=CHATS, 1..=WORKSPACES, prop::bool::weighted(0.4), prop::bool::weighted(0.4));
    let hints = prop::option::weighted(0.6, prop::collection::vec(fate(), 0..12));
    let scenarios = (any::<[bool; WORKSPACES]>(), prop::bool::weighted(0.2), hints, world, ops);
    scenarios.prop_map(
        |(
            numbered,
            before_return,
            hints,
            (first, chats, workspaces, calm_store, calm_resolver),
            ops,
        )| {
            let ops = ops.into_iter().filter(|op| match op {
                Op::Store { .. } => !calm_store,
                Op::Resolver { .. } => !calm_resolver,
                _ => true,
            });
            let ops = ops
                .map(|op| op.renamed(|n| *n = (first + *n % chats) % CHATS, |n| *n %= workspaces));
            Scenario { numbered, before_return, hints, ops: ops.collect() }
        },
    )
}
