//! Scenarios that once broke a rule.

use crate::{
    WORKSPACES,
    run::play,
    scenario::{Answers, By, Does, Fault, How, Op, Scenario},
};
use support::wire::Fate;

/// Each scenario once broke a rule: in this crate, or in a copy that was changed on purpose to test
/// the model.
#[test]
pub(crate) fn scenarios_that_once_broke_a_rule_keep_the_rules() {
    use By::{Elsewhere, Process};
    let none = Fault::None;
    let call = |process, chat| Op::Call { process, chat, named: None, lag: 0 };
    let look = |process, chat| Op::Look { process, chat, current: false };
    let store = |process, reads, writes| Op::Store { process, reads, writes };
    let scenarios = [
        (
            "a session without a known target asks again if its answer was overtaken",
            vec![
                Op::Retarget { by: Process(0), chat: 0, ws: 0 },
                Op::Retarget { by: Elsewhere, chat: 0, ws: 1 },
                Op::Rebuild { ws: 0, old: Does::Answer(3_000) },
                Op::Retarget { by: Elsewhere, chat: 0, ws: 0 },
                Op::Resolver {
                    process: 0,
                    ws: 0,
                    answers: Answers { how: How::Lags(1), after: 4_000, early: false },
                },
                call(1, 0),
                call(0, 0),
                Op::Advance { ms: 260 },
                Op::Gap,
            ],
        ),
        (
            "repeated rebuilds of its workspace do not count as a retarget of the session",
            vec![
                Op::Rebuild { ws: 0, old: Does::Answer(400) },
                call(1, 0),
                Op::Agent { ws: 0, does: Does::Answer(400) },
                store(1, none, Fault::Hang),
                Op::Advance { ms: 260 },
                call(0, 0),
                Op::Rebuild { ws: 0, old: Does::Answer(400) },
                Op::Advance { ms: 260 },
                Op::Rebuild { ws: 0, old: Does::Answer(0) },
                call(1, 0),
                Op::Advance { ms: 260 },
            ],
        ),
        (
            "a session that is forgotten during a dial counts as moved, even if it is bound to the same agent again",
            vec![
                Op::Forget { by: Process(0), chat: 0 },
                Op::Rebuild { ws: 0, old: Does::Answer(400) },
                Op::Call { process: 0, chat: 0, named: Some(0), lag: 0 },
                Op::Agent { ws: 0, does: Does::Hang },
                Op::Advance { ms: 260 },
                Op::Forget { by: Process(0), chat: 0 },
            ],
        ),
        (
            "a denial that is older than the dialed target ends no call",
            vec![
                Op::Rebuild { ws: 0, old: Does::Fail(0) },
                Op::Resolver {
                    process: 0,
                    ws: 0,
                    answers: Answers { how: How::Right, after: 4_000, early: false },
                },
                call(1, 0),
                call(0, 0),
                Op::Restart { process: 1 },
                Op::Call { process: 0, chat: 0, named: None, lag: 7 },
            ],
        ),
        (
            "a call that receives an answer late does not return to an agent that is known to be replaced",
            vec![
                call(0, 2),
                Op::Agent { ws: 0, does: Does::Answer(400) },
                Op::Call { process: 1, chat: 0, named: None, lag: 7 },
                Op::Advance { ms: 260 },
                Op::Advance { ms: 6 },
                Op::Report { nth: 1 },
                Op::Rebuild { ws: 0, old: Does::Answer(0) },
                Op::Agent { ws: 0, does: Does::Answer(5) },
                Op::Call { process: 1, chat: 3, named: Some(0), lag: 0 },
                Op::Advance { ms: 6 },
            ],
        ),
        (
            "a call whose row is found unbound does not end with an agent that is known to be replaced",
            vec![
                Op::Report { nth: 2 },
                Op::Rebuild { ws: 0, old: Does::Answer(5) },
                Op::Rebuild { ws: 0, old: Does::Answer(0) },
                Op::Call { process: 1, chat: 0, named: None, lag: 7 },
                Op::Agent { ws: 0, does: Does::Fail(5) },
                Op::Unbind { by: Elsewhere, chat: 0 },
                Op::Advance { ms: 6 },
                Op::Advance { ms: 1 },
                call(1, 0),
                Op::Restart { process: 0 },
            ],
        ),
        (
            "a row that is read after a command of unknown outcome reveals a later build, though it is not cached",
            vec![
                Op::Rebuild { ws: 0, old: Does::Answer(400) },
                store(0, Fault::Slow(3), Fault::Hang),
                call(0, 0),
                Op::Advance { ms: 260 },
                call(1, 0),
                Op::Rebuild { ws: 0, old: Does::Answer(0) },
                Op::Unbind { by: Process(0), chat: 0 },
                call(0, 0),
                Op::Advance { ms: 260 },
            ],
        ),
        (
            "a row that is not cached is known only to the call that has read it",
            vec![
                store(1, none, Fault::Late(8_000)),
                Op::Retarget { by: Process(0), chat: 2, ws: 0 },
                call(0, 2),
                Op::Forget { by: Process(0), chat: 2 },
                store(0, none, Fault::Slow(3)),
                Op::Retarget { by: Process(1), chat: 2, ws: 0 },
                Op::Advance { ms: 11_000 },
                Op::Rebuild { ws: 0, old: Does::Answer(5) },
                call(1, 2),
                Op::Retarget { by: Elsewhere, chat: 2, ws: 0 },
                Op::Yield,
                call(1, 2),
                Op::Retarget { by: Elsewhere, chat: 2, ws: 1 },
            ],
        ),
        (
            "a repair that lands does not undo a command that its process has given meanwhile",
            vec![
                store(0, none, Fault::Slow(400)),
                Op::Rebuild { ws: 0, old: Does::Fail(0) },
                call(0, 0),
                call(0, 1),
                Op::Advance { ms: 6 },
                store(0, none, none),
                Op::Retarget { by: Process(0), chat: 0, ws: 1 },
                Op::Unbind { by: Process(0), chat: 1 },
                Op::Advance { ms: 2_500 },
                look(0, 0),
                look(0, 1),
                call(0, 0),
                call(0, 1),
                Op::Advance { ms: 6 },
            ],
        ),
        (
            "a command of another process between a discovery and the repair survives",
            vec![
                store(0, none, Fault::Slow(400)),
                Op::Rebuild { ws: 0, old: Does::Fail(0) },
                call(0, 0),
                Op::Advance { ms: 6 },
                Op::Retarget { by: Process(1), chat: 0, ws: 1 },
                Op::Unbind { by: Process(1), chat: 1 },
                Op::Advance { ms: 2_500 },
                call(0, 0),
                call(0, 1),
                Op::Advance { ms: 6 },
                look(0, 0),
                look(0, 1),
                Op::Advance { ms: 6 },
            ],
        ),
        (
            "rows that are two builds behind are repaired with the others, whichever process is first",
            vec![
                Op::Rebuild { ws: 0, old: Does::Fail(0) },
                call(0, 0),
                Op::Advance { ms: 6 },
                Op::Rebuild { ws: 0, old: Does::Fail(0) },
                // The process knows neither build.
                call(1, 1),
                Op::Advance { ms: 6 },
                Op::Rebuild { ws: 0, old: Does::Fail(0) },
                Op::Rebuild { ws: 0, old: Does::Fail(0) },
                store(1, none, Fault::Skips(1)),
                call(1, 1),
                Op::Advance { ms: 6 },
                call(1, 0),
                call(0, 0),
                call(0, 1),
                Op::Advance { ms: 6 },
            ],
        ),
        (
            "a row that another process binds to an old build after the group repair gets an own repair",
            vec![
                Op::Rebuild { ws: 0, old: Does::Answer(0) },
                Op::Doubt { process: 0, ws: 0 },
                call(0, 0),
                Op::Advance { ms: 6 },
                Op::Unbind { by: Process(1), chat: 1 },
                Op::Advance { ms: 6 },
                call(1, 1),
                Op::Advance { ms: 6 },
                call(0, 1),
                // The rows in use have been read again by then.
                Op::Advance { ms: 31_000 },
                call(0, 1),
                Op::Advance { ms: 6 },
            ],
        ),
        (
            "a row that was skipped and read again later does not count as repaired",
            vec![
                store(0, none, Fault::Skips(3)),
                Op::Rebuild { ws: 0, old: Does::Fail(0) },
                call(0, 1),
                Op::Yield,
            ],
        ),
        (
            "a generation that is known only from a hint costs no call its connection",
            vec![
                Op::RumourOfWorkspace { ws: 2, generation: Some(2) },
                Op::Retarget { by: Process(0), chat: 0, ws: 2 },
                Op::Advance { ms: 1 },
            ],
        ),
        (
            "the parent's row is known once it was read to inherit from",
            vec![
                Op::Retarget { by: Elsewhere, chat: 0, ws: 1 },
                Op::Inherit { by: Process(0), child: 1, parent: 0 },
                Op::Yield,
                call(0, 0),
                Op::Yield,
            ],
        ),
        (
            "a row that was read before a command of unknown outcome is not served after it",
            vec![
                Op::Retarget { by: Process(0), chat: 3, ws: 0 },
                store(1, Fault::Late(40), none),
                call(1, 3),
                Op::Yield,
                Op::Retarget { by: Process(0), chat: 3, ws: 1 },
                store(1, none, Fault::LostRequest),
                Op::Retarget { by: Process(1), chat: 3, ws: 0 },
                Op::Advance { ms: 60 },
            ],
        ),
        (
            "the parent is known to be deleted once its row was read to inherit from",
            vec![
                Op::Forget { by: Elsewhere, chat: 0 },
                Op::Inherit { by: Process(0), child: 1, parent: 0 },
                Op::Inherit { by: Process(1), child: 3, parent: 0 },
                Op::Advance { ms: 1 },
                call(0, 0),
                call(1, 0),
                look(0, 0),
                look(1, 0),
                Op::Advance { ms: 1 },
            ],
        ),
        (
            "a deleted row is no longer cached after a command whose answer was lost",
            vec![
                Op::Forget { by: Elsewhere, chat: 0 },
                store(0, none, Fault::LostAnswer),
                Op::Unbind { by: Process(0), chat: 0 },
                Op::Advance { ms: 1 },
                call(0, 0),
                look(0, 0),
                Op::Advance { ms: 1 },
            ],
        ),
        (
            "a query after a deletion does not return a row that was read before it",
            vec![
                Op::Restart { process: 0 },
                store(0, Fault::Late(400), none),
                look(0, 0),
                Op::Advance { ms: 6 },
                Op::Forget { by: Process(0), chat: 0 },
                Op::Advance { ms: 6 },
                look(0, 0),
                call(0, 0),
                Op::Advance { ms: 2_500 },
            ],
        ),
        (
            "a late read does not restore an agent that is known to be replaced",
            vec![
                Op::Restart { process: 0 },
                Op::Rebuild { ws: 0, old: Does::Answer(0) },
                Op::Doubt { process: 0, ws: 0 },
                Op::Doubt { process: 1, ws: 0 },
                call(0, 0),
                call(1, 1),
                Op::Advance { ms: 60 },
                // The other process binds its session to the newest build.
                call(1, 1),
                Op::Advance { ms: 60 },
                Op::Rebuild { ws: 0, old: Does::Answer(0) },
                Op::Doubt { process: 0, ws: 0 },
                call(0, 0),
                Op::Advance { ms: 60 },
                // This process, which knows a later build by now, reads that row.
                call(0, 1),
                Op::Advance { ms: 60 },
            ],
        ),
        (
            "a call that uses an uncached row ends with it",
            vec![
                store(0, none, Fault::LostRequest),
                Op::Retarget { by: Process(0), chat: 0, ws: 2 },
                Op::Advance { ms: 6 },
                store(0, none, none),
                Op::Agent { ws: 0, does: Does::Answer(400) },
                call(0, 0),
                Op::Advance { ms: 60 },
                Op::Forget { by: Process(0), chat: 0 },
                Op::Advance { ms: 2_500 },
            ],
        ),
        (
            "a query after a command does not return a row that was read before it",
            vec![
                Op::Restart { process: 0 },
                store(0, Fault::Late(400), none),
                look(0, 0),
                Op::Advance { ms: 6 },
                Op::Retarget { by: Process(0), chat: 0, ws: 2 },
                Op::Advance { ms: 6 },
                look(0, 0),
                call(0, 0),
                // That read has ended by then.
                Op::Advance { ms: 2_500 },
                look(0, 0),
                call(0, 0),
                Op::Advance { ms: 2_500 },
            ],
        ),
        (
            "a session that another process has created elsewhere is not served in its caller's workspace, \
             though hints have emptied its slot",
            vec![
                Op::Forget { by: Process(0), chat: 0 },
                Op::Yield,
                Op::Rebuild { ws: 0, old: Does::Answer(0) },
                store(1, none, Fault::Slow(40)),
                Op::Call { process: 1, chat: 0, named: Some(1), lag: 0 },
                Op::Yield,
                Op::RumourOfChat { chat: 0, revision: None },
                Op::Retarget { by: Elsewhere, chat: 0, ws: 0 },
                Op::RumourOfChat { chat: 0, revision: None },
            ],
        ),
        (
            "a row whose creation was overtaken by a command does not count as created",
            vec![
                call(1, 3),
                store(1, none, Fault::Unavailable),
                Op::Yield,
                Op::Forget { by: Process(1), chat: 3 },
                Op::Call { process: 1, chat: 3, named: Some(0), lag: 0 },
                Op::Restart { process: 0 },
            ],
        ),
        (
            "a pending dial of an ended epoch writes nothing into the next one",
            vec![
                Op::Resolver {
                    process: 0,
                    ws: 0,
                    answers: Answers { how: How::Right, after: 4000, early: false },
                },
                Op::Rebuild { ws: 0, old: Does::Answer(400) },
                Op::Rebuild { ws: 0, old: Does::Answer(0) },
                Op::Call { process: 0, chat: 0, named: None, lag: 0 },
                Op::Look { process: 0, chat: 0, current: false },
                Op::Close { process: 1 },
                Op::Reset { by: Process(1), ws: 0, old: Does::Answer(0) },
                Op::Call { process: 0, chat: 1, named: None, lag: 0 },
                Op::Call { process: 0, chat: 0, named: None, lag: 7 },
                Op::Advance { ms: 2_500 },
            ],
        ),
        (
            "a call whose workspace is reset after its third dial reports the reset",
            vec![
                Op::Rebuild { ws: 0, old: Does::Fail(0) },
                Op::Reset { by: Process(1), ws: 0, old: Does::Answer(0) },
                Op::Agent { ws: 0, does: Does::Hang },
                Op::Call { process: 0, chat: 0, named: None, lag: 0 },
                Op::Restart { process: 1 },
                Op::Resolver {
                    process: 0,
                    ws: 0,
                    answers: Answers { how: How::Lags(1), after: 4000, early: false },
                },
                Op::Agent { ws: 0, does: Does::Answer(0) },
                store(0, none, Fault::Unavailable),
                Op::Call { process: 1, chat: 0, named: None, lag: 0 },
                Op::Rebuild { ws: 0, old: Does::Answer(0) },
                Op::Inherit { by: Process(0), child: 0, parent: 0 },
                Op::Advance { ms: 2_500 },
                Op::Rebuild { ws: 0, old: Does::Answer(0) },
            ],
        ),
        (
            "a call that waits for another call's creation fails when the creation has no answer",
            vec![
                Op::Call { process: 1, chat: 3, named: Some(0), lag: 0 },
                store(1, none, Fault::Overdue(3)),
                Op::Advance { ms: 1 },
                Op::Call { process: 1, chat: 3, named: Some(0), lag: 0 },
                Op::Flush { process: 1 },
            ],
        ),
        (
            "a row that a creation has found counts, though its next write fails",
            vec![
                Op::Forget { by: Process(0), chat: 1 },
                Op::Restart { process: 0 },
                Op::Call { process: 0, chat: 1, named: Some(0), lag: 0 },
                store(0, Fault::Skips(1), Fault::Late(400)),
                Op::Retarget { by: Process(0), chat: 1, ws: 0 },
                call(0, 0),
                Op::Yield,
                store(0, none, Fault::Unavailable),
                Op::Reset { by: Process(1), ws: 0, old: Does::Answer(0) },
                Op::Advance { ms: 2_500 },
            ],
        ),
        (
            "a call that has its target from the row of another session does not report that the resolver named it",
            vec![
                Op::Call { process: 0, chat: 0, named: Some(1), lag: 0 },
                Op::Call { process: 1, chat: 0, named: Some(1), lag: 0 },
                Op::Resolver {
                    process: 0,
                    ws: 1,
                    answers: Answers { how: How::Fails, after: 300, early: false },
                },
                Op::Reset { by: Elsewhere, ws: 1, old: Does::Answer(0) },
                Op::Retarget { by: Elsewhere, chat: 0, ws: 1 },
                Op::Restart { process: 1 },
                Op::Rebuild { ws: 1, old: Does::Hang },
                Op::Call { process: 0, chat: 0, named: Some(0), lag: 0 },
                Op::Advance { ms: 31_000 },
            ],
        ),
        (
            "a group repair of an ended epoch leaves a late target that does not count",
            vec![
                Op::Rebuild { ws: 0, old: Does::Answer(0) },
                Op::Return { ws: 0, old: Does::Answer(0) },
                store(1, none, Fault::Slow(400)),
                Op::Return { ws: 0, old: Does::Fail(5) },
                Op::Call { process: 1, chat: 3, named: Some(0), lag: 0 },
                Op::Restart { process: 0 },
                Op::Return { ws: 0, old: Does::Answer(0) },
                Op::Resolver {
                    process: 1,
                    ws: 0,
                    answers: Answers { how: How::Right, after: 300, early: false },
                },
                Op::Advance { ms: 60 },
                Op::Return { ws: 0, old: Does::Answer(0) },
                Op::Reset { by: Process(0), ws: 0, old: Does::Answer(0) },
                Op::Advance { ms: 260 },
                Op::Call { process: 1, chat: 1, named: None, lag: 0 },
                Op::Flush { process: 1 },
            ],
        ),
        (
            "a command does not wait for the rest of a read that began before it has failed",
            vec![
                store(1, Fault::Late(4_900), Fault::Hang),
                Op::Call { process: 0, chat: 3, named: Some(0), lag: 0 },
                Op::Inherit { by: Process(1), child: 3, parent: 2 },
                Op::Advance { ms: 2_500 },
                call(1, 3),
                Op::Advance { ms: 11_000 },
            ],
        ),
        (
            "a command reads the rows of a child and its parent at once",
            vec![
                store(1, Fault::Slow(4_900), Fault::Hang),
                Op::Inherit { by: Process(1), child: 1, parent: 0 },
                Op::Advance { ms: 260 },
                Op::Forget { by: Process(1), chat: 0 },
                Op::Advance { ms: 11_000 },
            ],
        ),
        (
            "a call is not told of a creation that failed before it began",
            vec![
                call(1, 3),
                store(1, none, Fault::Unavailable),
                Op::Call { process: 1, chat: 3, named: Some(0), lag: 7 },
                Op::Advance { ms: 1 },
                Op::Call { process: 1, chat: 3, named: Some(0), lag: 7 },
                Op::Advance { ms: 60 },
            ],
        ),
        (
            "a call that waits for another call's creation fails with it when nothing was sent",
            vec![
                Op::Retarget { by: Elsewhere, chat: 3, ws: 0 },
                store(0, none, Fault::Hang),
                call(0, 3),
                Op::Yield,
                Op::Forget { by: Elsewhere, chat: 3 },
                Op::Call { process: 0, chat: 3, named: Some(1), lag: 0 },
                Op::Advance { ms: 1 },
                Op::Call { process: 0, chat: 3, named: Some(1), lag: 0 },
                Op::Yield,
            ],
        ),
        (
            "a denial counts although its question began at the instant of the doubt",
            vec![
                Op::Resolver {
                    process: 1,
                    ws: 0,
                    answers: Answers { how: How::Right, after: 300, early: false },
                },
                Op::Look { process: 1, chat: 0, current: true },
                Op::Yield,
                Op::Call { process: 1, chat: 0, named: None, lag: 7 },
                Op::Report { nth: 5 },
            ],
        ),
        (
            "the repair of a call that knew its row as unbound waits for an earlier one and is tried again",
            vec![
                Op::Retarget { by: Elsewhere, chat: 3, ws: 0 },
                store(1, none, Fault::Slow(40)),
                call(1, 3),
                Op::Yield,
                Op::Rebuild { ws: 0, old: Does::Fail(0) },
                store(1, none, Fault::Unavailable),
                call(1, 3),
                Op::Advance { ms: 260 },
            ],
        ),
        (
            "a call does not go by a read that has found no row before a command made one",
            vec![
                store(0, Fault::Late(3), none),
                call(0, 3),
                Op::Yield,
                Op::Forget { by: Process(0), chat: 3 },
                Op::Retarget { by: Process(0), chat: 3, ws: 0 },
                Op::Yield,
                call(0, 3),
            ],
        ),
        (
            "the same if the workspace was reset, so that the row is read anew",
            vec![
                Op::Forget { by: Process(0), chat: 0 },
                Op::Close { process: 1 },
                Op::Retarget { by: Process(1), chat: 0, ws: 0 },
                Op::Reset { by: Process(1), ws: 0, old: Does::Answer(0) },
                call(1, 0),
                store(1, Fault::Late(3), none),
                Op::Yield,
                call(1, 0),
            ],
        ),
    ];
    for (what, ops) in scenarios {
        for numbered in [[false; WORKSPACES], [true; WORKSPACES]] {
            for before_return in [false, true] {
                for hints in [
                    None,
                    Some(vec![]),
                    Some(vec![Fate::Twice(400, 0), Fate::After(60), Fate::Lost]),
                    Some(vec![Fate::After(5), Fate::Lost, Fate::Lost, Fate::Lost, Fate::Lost]),
                    Some(vec![Fate::After(60)]),
                ] {
                    let scenario = Scenario {
                        numbered,
                        before_return,
                        hints: hints.clone(),
                        ops: ops.clone(),
                    };
                    if let Err(broken) = play(scenario) {
                        panic!("{what}, hints {hints:?}: {broken}");
                    }
                }
            }
        }
    }
}
