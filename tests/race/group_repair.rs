//! Group repairs: which rows they write, in how many statements, and what they save.

use crate::scene::*;
use support::*;
use tokio::{
    task::JoinSet,
    time::{Duration, Instant, sleep},
};
use tower_bound_agent::{
    Binding, Bound, BoundAgentBuilder, OutcomeKind, Previous, Repair, RepairMode, SessionId,
    Target,
    store::{BindingStore, NewBinding, Swap},
};

fn rows(s: &Scene, chats: &[SessionId]) -> Vec<Binding> {
    chats.iter().map(|chat| s.world.row(*chat).expect("a row")).collect()
}

/// Asserts that each row names the new target and was written exactly once since.
fn written_once(s: &Scene, before: &[Binding], new: &Target) {
    for before in before {
        let row = s.world.row(before.session).expect("a row");
        let left = before.target.as_ref().map(|left| Previous::new(left.agent, left.generation));
        assert_eq!((row.target.as_deref(), row.previous), (Some(new), left), "{before:?}");
        assert_eq!(
            (row.revision.get(), row.workspace),
            (before.revision.get() + 1, before.workspace),
            "{before:?}"
        );
    }
}

/// Calls all sessions at once, and returns their connections.
async fn all_call(s: &Scene, chats: &[SessionId]) -> Vec<Bound<Conn>> {
    let mut calls = JoinSet::new();
    for chat in chats.iter().copied() {
        let dial = s.world.dial(&s.layer);
        calls.spawn(async move { call(&dial, chat).await.unwrap() });
    }
    calls.join_all().await
}

fn repairs(s: &Scene) -> Vec<Seen> {
    s.log
        .seen()
        .into_iter()
        .filter(|seen| matches!(seen, Seen::Repaired(_) | Seen::Group(_)))
        .collect()
}

/// Makes a call that must connect at once, and returns its outcome.
async fn at_once(s: &Scene, chat: SessionId, new: &Target) -> (OutcomeKind, Repair) {
    let (took, bound) = timed(call(&s.dial(), chat)).await;
    let bound = bound.unwrap();
    assert_eq!((took, bound.agent), (ms(0), new.agent));
    (bound.outcome().kind.clone(), bound.outcome().repair())
}

#[tokio::test(start_paused = true)]
async fn one_statement_writes_the_rows_of_all_calling_sessions() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let chats = s.sessions(5).await;
        let (new, before) = (s.rebuild(), rows(&s, &chats));
        let bound = all_call(&s, &chats).await;
        assert_eq!(s.did().await, counts(10, 1, 0, 1));
        written_once(&s, &before, &new);
        assert!(bound.iter().all(|bound| bound.outcome().repair() == Repair::Written));
        assert_eq!(repairs(&s), [Seen::Group(Repair::Written)]);

        for chat in &chats {
            assert_eq!(at_once(&s, *chat, &new).await, (OutcomeKind::Reused, Repair::NotNeeded));
            assert_eq!(s.did().await, counts(1, 0, 0, 0));
        }
        assert_eq!(repairs(&s), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_later_call_finds_its_row_written() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let chats = s.sessions(5).await;
        let (new, before) = (s.rebuild(), rows(&s, &chats));
        s.call().await.1.unwrap();
        assert_eq!(s.did().await, counts(2, 1, 0, 1));
        written_once(&s, &before, &new);
        for chat in &chats[1..] {
            let from = s.old.clone().into();
            assert_eq!(
                at_once(&s, *chat, &new).await,
                (OutcomeKind::Switched { from }, Repair::NotNeeded)
            );
            assert_eq!(at_once(&s, *chat, &new).await, (OutcomeKind::Reused, Repair::NotNeeded));
            assert_eq!(s.did().await, counts(2, 0, 0, 0));
        }
        written_once(&s, &before, &new);
    }
}

#[tokio::test(start_paused = true)]
async fn a_row_that_is_loaded_later_needs_no_repair() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let cold = s.rows_elsewhere(2).await;
        let (new, before) = (s.rebuild(), rows(&s, &cold));
        s.call().await.1.unwrap();
        assert_eq!(s.did().await, counts(2, 1, 0, 1));
        written_once(&s, &before, &new);
        for chat in cold {
            assert_eq!(at_once(&s, chat, &new).await, (OutcomeKind::Reused, Repair::NotNeeded));
            assert_eq!(s.did().await, counts(1, 0, 1, 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_statement_writes_at_most_2_000_rows() {
    for generation in BOTH {
        for (n, statements) in [(1, 1), (1_999, 1), (2_000, 2), (2_001, 2), (4_000, 3), (4_500, 3)]
        {
            let mut s = Scene::new(generation).await;
            let mut chats = s.rows_elsewhere(n - 1).await;
            chats.push(s.chat);
            let (new, before) = (s.rebuild(), rows(&s, &chats));
            let (took, bound) = s.call().await;
            assert_eq!((took, s.did().await), (ms(250), counts(2, 1, 0, statements)), "{n} rows");
            assert_eq!(bound.unwrap().outcome().repair(), Repair::Written);
            written_once(&s, &before, &new);
            assert_eq!(repairs(&s), [Seen::Group(Repair::Written)]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn only_rows_that_are_behind_are_written() {
    // The generation of each row, whether it names the replaced agent, and whether it is behind.
    // The replaced agent has generation 5 and its successor 6, or neither has one.
    let table = [
        (Some(5), (Some(5), true), true),
        (Some(5), (Some(5), false), true),
        (Some(5), (Some(4), false), true),
        (Some(5), (Some(1), false), true),
        (Some(5), (Some(6), false), false),
        (Some(5), (Some(7), false), false),
        (Some(5), (None, false), false),
        (Some(5), (None, true), false),
        (None, (None, true), true),
        (None, (None, false), false),
        (None, (Some(1), false), false),
        (None, (Some(1), true), false),
    ];
    for (generation, (of_row, stale), is_behind) in table {
        let mut s = Scene::new(generation).await;
        let mut target = s.world.agent(of_row);
        if stale {
            target.agent = s.old.agent;
        }
        let chat = session();
        s.row_written_elsewhere(chat, &target).await;
        let (new, before) = (s.rebuild(), rows(&s, &[chat]));
        s.call().await.1.unwrap();
        assert_eq!(s.did().await, counts(2, 1, 0, 1));
        if is_behind {
            written_once(&s, &before, &new);
        } else {
            assert_eq!(rows(&s, &[chat]), before, "{generation:?}, {of_row:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn unbound_deleted_and_foreign_rows_are_not_written() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let store = s.world.store.elsewhere().clone();
        let [unbound, never_bound, deleted, elsewhere] =
            s.rows_elsewhere(4).await.try_into().unwrap();
        let (other, _) = new_workspace(&s.world, generation);
        store.unbind(unbound).await.unwrap();
        store.forget(never_bound, None).await.unwrap();
        store.retarget(never_bound, s.ws).await.unwrap();
        store.forget(deleted, None).await.unwrap();
        // The same agent in a row of another workspace. Agents are not shared between workspaces,
        // but the statement must still respect the row's workspace.
        let new = NewBinding::new(elsewhere, other, Some(s.old.clone().into()));
        let revision = s.world.row(elsewhere).unwrap().revision;
        assert!(matches!(store.compare_and_swap(revision, new).await.unwrap(), Swap::Applied(_)));
        let all = [unbound, never_bound, deleted, elsewhere];
        let before = all.map(|chat| s.world.row(chat));
        s.rebuild();
        s.call().await.1.unwrap();
        assert_eq!(s.did().await, counts(2, 1, 0, 1));
        assert_eq!(all.map(|chat| s.world.row(chat)), before);
    }
}

#[derive(Clone, Copy, Debug)]
enum Command {
    Retarget,
    Unbind,
    Forget,
}

const COMMANDS: [Command; 3] = [Command::Retarget, Command::Unbind, Command::Forget];

/// Carries out a command in another process, and returns the row that it wrote.
async fn command_elsewhere(s: &Scene, chat: SessionId, command: Command) -> Option<Binding> {
    let store = s.world.store.elsewhere();
    match command {
        Command::Retarget => {
            let (other, _) =
                new_workspace(&s.world, s.old.generation.map(|generation| generation.get()));
            drop(store.retarget(chat, other).await.unwrap());
        }
        Command::Unbind => drop(store.unbind(chat).await.unwrap()),
        Command::Forget => assert!(store.forget(chat, None).await.unwrap()),
    }
    s.world.row(chat)
}

#[tokio::test(start_paused = true)]
async fn a_command_of_another_process_survives_and_costs_nothing() {
    for generation in BOTH {
        for command in COMMANDS {
            let mut s = Scene::new(generation).await;
            let chats = s.sessions(3).await;
            let commanded = command_elsewhere(&s, chats[1], command).await;
            let (new, before) = (s.rebuild(), rows(&s, &[chats[0], chats[2]]));
            s.call().await.1.unwrap();
            assert_eq!(s.did().await, counts(2, 1, 0, 1));
            // This process does not know of the command yet.
            let from = s.old.clone().into();
            assert_eq!(
                at_once(&s, chats[1], &new).await,
                (OutcomeKind::Switched { from }, Repair::NotNeeded)
            );
            assert_eq!(at_once(&s, chats[1], &new).await, (OutcomeKind::Reused, Repair::NotNeeded));
            assert_eq!(s.did().await, counts(2, 0, 0, 0));
            assert_eq!(s.world.row(chats[1]), commanded, "{command:?}");
            written_once(&s, &before, &new);
            // A read of the row shows the command.
            assert_eq!(s.layer.bindings().get(chats[1]).await.unwrap(), commanded, "{command:?}");
            assert_eq!(s.did().await, counts(0, 0, 1, 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_command_of_another_process_between_the_discovery_and_the_statement_survives() {
    for generation in BOTH {
        for command in COMMANDS {
            let mut s = Scene::new(generation).await;
            let chats = s.sessions(3).await;
            let (new, before) = (s.rebuild(), rows(&s, &chats[..1]));
            s.world.store.on_writes(Fault::Slow(ms(100)));
            s.call().await.1.unwrap();
            let commanded = [1, 2].map(|n| command_elsewhere(&s, chats[n], command));
            let commanded = futures_util::future::join_all(commanded).await;
            assert_eq!(s.layer.bindings().flush().await, 0);
            assert_eq!(s.did().await, counts(2, 1, 0, 1));
            written_once(&s, &before, &new);
            assert_eq!([1, 2].map(|n| s.world.row(chats[n])).to_vec(), commanded, "{command:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_command_of_this_process_between_the_discovery_and_the_statement_survives() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let chats = s.sessions(2).await;
        let (other, there) = new_workspace(&s.world, generation);
        let new = s.rebuild();
        s.world.store.on_writes(Fault::Slow(ms(100)));
        s.call().await.1.unwrap();
        s.world.store.on_writes(Fault::None);
        let commanded = s.layer.bindings().retarget(chats[0], other).await.unwrap();
        let unbound = s.layer.bindings().unbind(chats[1]).await.unwrap();
        assert_eq!(s.layer.bindings().flush().await, 0);
        assert_eq!((s.did().await, s.world.row(chats[0])), (counts(2, 1, 0, 3), Some(commanded)));
        assert_eq!(s.world.row(chats[1]), unbound);
        // This process keeps the command's row as well.
        assert_eq!(at_once(&s, chats[0], &there).await.0, OutcomeKind::FirstBind);
        assert_eq!(at_once(&s, chats[1], &new).await.0, OutcomeKind::FirstBind);
        // Each call asks the resolver: no target of the other workspace is known, and the agent
        // whose dial was dropped is in doubt.
        assert_eq!(s.did().await, counts(2, 2, 0, 2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_later_build_of_the_same_agent_is_written_into_all_rows_without_a_switch() {
    let mut s = Scene::new(Some(5)).await;
    let chats = s.sessions(5).await;
    let before = rows(&s, &chats);
    s.old_does(Does::Answer(ms(400)));
    let same = s.old.clone().with_generation(6);
    s.world.runs(s.ws, &same);
    for bound in all_call(&s, &chats).await {
        assert_eq!(bound.outcome().kind, OutcomeKind::Confirmed);
    }
    assert_eq!(s.did().await, counts(5, 1, 0, 1));
    assert_eq!(repairs(&s), [Seen::Group(Repair::Written)]);
    for (row, before) in rows(&s, &chats).iter().zip(&before) {
        assert_eq!(
            (row.target.as_deref(), row.revision.get()),
            (Some(&same), before.revision.get() + 1)
        );
        assert_eq!(row.previous, None, "the agent is the same");
    }
    s.old_does(Does::Answer(ms(0)));
    for chat in &chats {
        assert_eq!(at_once(&s, *chat, &same).await, (OutcomeKind::Reused, Repair::NotNeeded));
    }
    assert_eq!(s.did().await, counts(5, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn each_of_two_rebuilds_in_a_row_takes_one_statement() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let chats = s.sessions(4).await;
        let second = s.rebuild();
        all_call(&s, &chats[..2]).await;
        assert_eq!(s.did().await, counts(4, 1, 0, 1));
        let before = rows(&s, &chats);
        let third = s.world.rebuild(s.ws, &second, Does::Hang);
        all_call(&s, &chats[..2]).await;
        assert_eq!(s.did().await, counts(4, 1, 0, 1));
        written_once(&s, &before, &third);
        for chat in &chats[..2] {
            assert_eq!(at_once(&s, *chat, &third).await, (OutcomeKind::Reused, Repair::NotNeeded));
        }
        assert_eq!(s.did().await, counts(2, 0, 0, 0));

        // Idle sessions hold cached rows that are two builds behind. Without generations, nothing
        // shows that the two repairs have reached these rows: one more statement runs for both, and
        // writes nothing.
        let tried = u64::from(generation.is_none());
        for (chat, writes) in [(chats[2], tried), (chats[3], 0)] {
            let from = s.old.clone().into();
            assert_eq!(at_once(&s, chat, &third).await.0, OutcomeKind::Switched { from });
            assert_eq!(s.did().await, counts(1, 0, 0, writes));
            assert_eq!(at_once(&s, chat, &third).await, (OutcomeKind::Reused, Repair::NotNeeded));
            assert_eq!(s.did().await, counts(1, 0, 0, 0));
        }
        written_once(&s, &before, &third);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_switches_while_the_statement_runs_joins_it() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let chats = s.sessions(4).await;
        let (new, before) = (s.rebuild(), rows(&s, &chats));
        s.world.store.on_writes(Fault::SlowAnswer(ms(1_000)));
        let first = s.call().await.1.unwrap();
        // Each session calls twice, and all calls join that statement.
        let mut bound = vec![first];
        for chat in chats.iter().chain(&chats) {
            let (took, connected) = timed(call(&s.dial(), *chat)).await;
            bound.push(connected.unwrap());
            assert_eq!(took, ms(0));
        }
        assert!(bound.iter().all(|bound| bound.outcome().repair() == Repair::Pending));
        assert_eq!((s.layer.bindings().flush().await, s.did().await), (0, counts(10, 1, 0, 1)));
        assert!(bound.iter().all(|bound| bound.outcome().repair() == Repair::Written));
        written_once(&s, &before, &new);
        for chat in chats {
            assert_eq!(at_once(&s, chat, &new).await, (OutcomeKind::Reused, Repair::NotNeeded));
        }
        assert_eq!(s.did().await, counts(4, 0, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_row_that_is_read_while_the_statement_runs_is_written_by_it() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let [before, during] = s.rows_elsewhere(2).await.try_into().unwrap();
        let new = s.rebuild();
        s.world.store.on_writes(Fault::Slow(ms(100)));
        s.call().await.1.unwrap();
        let old = rows(&s, &[s.chat, before, during]);
        sleep(ms(50)).await;
        // Both reads return the earlier row; only one of them has ended by then.
        assert!(matches!(
            at_once(&s, before, &new).await,
            (OutcomeKind::Switched { .. }, Repair::Pending)
        ));
        s.world.store.on_reads(Fault::SlowAnswer(ms(100)));
        let (took, bound) = timed(call(&s.dial(), during)).await;
        let bound = bound.unwrap();
        assert_eq!(
            (took, bound.agent, bound.outcome().repair()),
            (ms(100), new.agent, Repair::NotNeeded)
        );
        assert_eq!(s.did().await, counts(4, 1, 2, 1));
        written_once(&s, &old, &new);
        for chat in [before, during] {
            assert_eq!(at_once(&s, chat, &new).await, (OutcomeKind::Reused, Repair::NotNeeded));
        }
        assert_eq!(
            (s.did().await, repairs(&s)),
            (counts(2, 0, 0, 0), vec![Seen::Group(Repair::Written)])
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_later_build_ends_the_repair_between_two_statements() {
    let mut s = Scene::new(Some(5)).await;
    let mut chats = s.rows_elsewhere(4_499).await;
    chats.push(s.chat);
    let (second, third, before) = (s.rebuild(), s.world.agent(Some(7)), rows(&s, &chats));
    s.world.store.on_writes(Fault::Slow(ms(100)));
    let one = s.call().await.1.unwrap();
    sleep(ms(150)).await;
    // The first statement has ended and the second one is under way.
    let written =
        chats.iter().filter(|chat| s.world.row_agent(**chat) == Some(second.agent)).count();
    assert_eq!((written, s.did().await), (2_000, counts(2, 1, 0, 2)));
    s.world.does(&second, Does::Hang);
    s.world.runs(s.ws, &third);
    s.layer.bindings().revalidate_workspace(s.ws);
    let two = s.call().await.1.unwrap();
    assert_eq!(two.agent, third.agent);
    sleep(Duration::from_secs(60)).await;
    assert_eq!((one.outcome().repair(), two.outcome().repair()), (Repair::Lost, Repair::Written));
    // The third statement of the first one was not sent; the later one needs three.
    assert_eq!(s.did().await, counts(2, 1, 0, 3));
    assert_eq!(repairs(&s), [Seen::Group(Repair::Lost), Seen::Group(Repair::Written)]);
    let mut twice = 0;
    for (row, before) in rows(&s, &chats).iter().zip(&before) {
        assert_eq!(row.target.as_deref(), Some(&third));
        twice += row.revision.get() - before.revision.get() - 1;
    }
    assert_eq!(twice, 4_000);
}

#[tokio::test(start_paused = true)]
async fn a_statement_that_fails_between_two_others_is_repeated() {
    let mut s = Scene::new(Some(5)).await;
    let mut chats = s.rows_elsewhere(4_499).await;
    chats.push(s.chat);
    let (new, before) = (s.rebuild(), rows(&s, &chats));
    s.world.store.on_writes(Fault::Slow(ms(100)));
    let begin = Instant::now();
    let bound = s.call().await.1.unwrap();
    sleep(ms(50)).await;
    s.world.store.on_writes(Fault::Unavailable);
    sleep(ms(100)).await;
    assert_eq!((bound.outcome().repair(), s.did().await), (Repair::Retrying, counts(2, 1, 0, 2)));
    s.world.store.on_writes(Fault::LostAnswer);
    sleep(ms(100)).await;
    assert_eq!((bound.outcome().repair(), s.did().await), (Repair::Retrying, counts(0, 0, 0, 1)));
    s.world.store.on_writes(Fault::None);
    assert_eq!((begin.elapsed(), s.layer.bindings().flush().await), (ms(500), 1));
    sleep(Duration::from_secs(60)).await;
    // The repeated statement does not select the rows that were written before.
    assert_eq!((bound.outcome().repair(), s.did().await), (Repair::Written, counts(0, 0, 0, 1)));
    written_once(&s, &before, &new);
}

#[tokio::test(start_paused = true)]
async fn before_return_all_calls_wait_for_one_statement_and_at_most_its_time_limit() {
    for generation in BOTH {
        for (fault, took, repair) in [
            (Fault::Slow(ms(1_000)), 1_250, Repair::Written),
            (Fault::Hang, 5_250, Repair::Retrying),
            (Fault::Unavailable, 250, Repair::Retrying),
        ] {
            let before_return =
                |builder: BoundAgentBuilder| builder.repair(RepairMode::BeforeReturn);
            let mut s = Scene::with(generation, before_return).await;
            let chats = s.sessions(5).await;
            let (new, begin) = (s.rebuild(), Instant::now());
            s.world.store.on_writes(fault);
            let bound = all_call(&s, &chats).await;
            assert_eq!(begin.elapsed(), ms(took), "{fault:?}");
            assert!(
                bound
                    .iter()
                    .all(|bound| bound.outcome().repair() == repair && bound.agent == new.agent)
            );
            assert_eq!(s.did().await, counts(10, 1, 0, 1));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_repair_continues_after_every_caller_was_dropped() {
    for generation in BOTH {
        let before_return = |builder: BoundAgentBuilder| builder.repair(RepairMode::BeforeReturn);
        let mut s = Scene::with(generation, before_return).await;
        let chats = s.sessions(5).await;
        let (new, before) = (s.rebuild(), rows(&s, &chats));
        s.world.store.on_writes(Fault::Slow(ms(1_000)));
        let mut calls = JoinSet::new();
        for chat in chats.iter().copied() {
            let dial = s.world.dial(&s.layer);
            calls.spawn(async move { call(&dial, chat).await.map(drop) });
        }
        sleep(ms(500)).await;
        calls.abort_all();
        while let Some(ended) = calls.join_next().await {
            assert!(ended.unwrap_err().is_cancelled());
        }
        s.nothing_is_left();
        assert_eq!(rows(&s, &chats), before);
        assert_eq!((s.layer.bindings().flush().await, s.did().await), (0, counts(10, 1, 0, 1)));
        written_once(&s, &before, &new);
        for chat in chats {
            assert_eq!(at_once(&s, chat, &new).await, (OutcomeKind::Reused, Repair::NotNeeded));
        }
        assert_eq!(s.did().await, counts(5, 0, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_panics_fails_the_repair_and_the_next_call_begins_another() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let chats = s.sessions(5).await;
        let (new, before) = (s.rebuild(), rows(&s, &chats));
        s.world.store.on_writes(Fault::Panic);
        let bound = all_call(&s, &chats).await;
        assert_eq!((s.layer.bindings().flush().await, s.did().await), (0, counts(10, 1, 0, 1)));
        assert!(bound.iter().all(|bound| bound.outcome().repair() == Repair::Failed && bound.agent == new.agent));
        assert_eq!(rows(&s, &chats), before);
        s.world.store.on_writes(Fault::None);
        for (chat, writes) in [(chats[3], 1), (chats[0], 0)] {
            assert!(matches!(at_once(&s, chat, &new).await.0, OutcomeKind::Switched { .. }));
            assert_eq!(s.did().await, counts(1, 0, 0, writes));
        }
        written_once(&s, &before, &new);
    }
}

#[tokio::test(start_paused = true)]
async fn the_later_of_two_processes_sends_one_statement_and_writes_nothing() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let chats = s.sessions(5).await;
        let layer = s.world.layer();
        let dial = s.world.dial(&layer);
        for chat in &chats {
            call(&dial, *chat).await.unwrap();
        }
        assert_eq!(s.did().await, counts(5, 0, 5, 0));
        let (new, before) = (s.rebuild(), rows(&s, &chats));
        all_call(&s, &chats).await;
        assert_eq!(s.did().await, counts(10, 1, 0, 1));
        written_once(&s, &before, &new);

        let (took, bound) = timed(call(&dial, chats[0])).await;
        assert_eq!((took, bound.unwrap().agent), (ms(250), new.agent));
        assert_eq!((layer.bindings().flush().await, s.did().await), (0, counts(2, 1, 0, 1)));
        for chat in &chats {
            let (took, bound) = timed(call(&dial, *chat)).await;
            assert_eq!((took, bound.unwrap().agent), (ms(0), new.agent));
        }
        assert_eq!((layer.bindings().flush().await, s.did().await), (0, counts(5, 0, 0, 0)));
        written_once(&s, &before, &new);
    }
}
