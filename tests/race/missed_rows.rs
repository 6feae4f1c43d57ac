//! Rows that a group repair missed, and cached rows after a group repair.

use crate::scene::*;
use support::*;
use tokio::time::{Duration, Instant, sleep};
use tower_bound_agent::{
    DialSession, ErrorKind, OutcomeKind, Previous, Repair, SessionId, Target, store::BindingStore,
};

fn repairs(s: &Scene) -> Vec<Seen> {
    s.log
        .seen()
        .into_iter()
        .filter(|seen| matches!(seen, Seen::Repaired(_) | Seen::Group(_)))
        .collect()
}

/// Rebuilds the workspace, lets one call find the new agent, and waits for the group repair.
async fn repaired(s: &mut Scene) -> Target {
    let new = s.rebuild();
    s.call().await.1.unwrap();
    assert_eq!(
        (s.did().await, repairs(s)),
        (counts(2, 1, 0, 1), vec![Seen::Group(Repair::Written)])
    );
    new
}

/// Makes a call that finds its row behind and writes it with one own repair.
async fn writes_its_own(s: &mut Scene, chat: SessionId, new: &Target, reads: u64) {
    let before = s.world.row(chat).unwrap();
    let (took, bound) = timed(call(&s.dial(), chat)).await;
    let bound = bound.unwrap();
    assert_eq!((took, bound.agent), (ms(0), new.agent));
    assert!(matches!(bound.outcome().kind, OutcomeKind::Switched { .. }));
    assert_eq!(s.did().await, counts(1, 0, reads, 1));
    assert_eq!(
        (bound.outcome().repair(), repairs(s)),
        (Repair::Written, vec![Seen::Repaired(Repair::Written)])
    );
    let row = s.world.row(chat).unwrap();
    assert_eq!((row.target.as_deref(), row.revision.get()), (Some(new), before.revision.get() + 1));
    is_reused(s, chat, new).await;
}

async fn is_reused(s: &mut Scene, chat: SessionId, new: &Target) {
    let bound = call(&s.dial(), chat).await.unwrap();
    assert_eq!((bound.agent, &bound.outcome().kind), (new.agent, &OutcomeKind::Reused));
    assert_eq!((bound.outcome().repair(), s.did().await), (Repair::NotNeeded, counts(1, 0, 0, 0)));
}

#[tokio::test(start_paused = true)]
async fn a_row_that_another_process_writes_behind_later_gets_an_own_repair() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let new = repaired(&mut s).await;
        // One session whose row this process has not read, and one whose row is cached.
        let cold = session();
        s.row_written_elsewhere(cold, &s.old).await;
        writes_its_own(&mut s, cold, &new, 1).await;

        let chat = s.chat;
        s.written_elsewhere(&s.old).await;
        assert_eq!(s.layer.bindings().get(chat).await.unwrap(), s.world.row(chat));
        assert_eq!(s.did().await, counts(0, 0, 1, 0));
        writes_its_own(&mut s, chat, &new, 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_row_two_builds_behind_that_appears_later_gets_an_own_repair() {
    let mut s = Scene::new(Some(5)).await;
    let new = repaired(&mut s).await;
    let cold = session();
    s.row_written_elsewhere(cold, &s.world.agent(Some(4))).await;
    writes_its_own(&mut s, cold, &new, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_locked_row_gets_an_own_repair_after_it_is_read_again() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let chat = s.chat;
        let before = s.row();
        s.world.store.on_writes(Fault::Locked);
        let new = repaired(&mut s).await;
        s.world.store.on_writes(Fault::None);
        assert_eq!(s.row(), before);
        // The row counts as written.
        is_reused(&mut s, chat, &new).await;
        // A read shows the same revision and the old agent.
        assert_eq!(s.layer.bindings().get(chat).await.unwrap(), Some(before));
        assert_eq!(s.did().await, counts(0, 0, 1, 0));
        writes_its_own(&mut s, chat, &new, 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_locked_row_read_again_before_the_repair_counts_as_written_gets_an_own_repair() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let chats = s.sessions(2).await;
        s.world.store.on_writes(Fault::Locked);
        let new = repaired(&mut s).await;
        s.world.store.on_writes(Fault::None);
        // The caller names another workspace than the cached row, so the row is read once more; it
        // is unchanged.
        let (other, _) = new_workspace(&s.world, generation);
        let ask = DialSession::new(chats[1]).in_workspace(other);
        let error = call(&s.dial(), ask).await.unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::WorkspaceMismatch { bound: s.ws, asked: other });
        assert_eq!(s.did().await, counts(0, 0, 1, 0));
        writes_its_own(&mut s, chats[1], &new, 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_locked_row_that_the_refresh_reads_gets_an_own_repair() {
    for generation in BOTH {
        for called in [true, false] {
            let mut s = Scene::with(generation, |builder| {
                builder.refresh_interval(Duration::from_secs(30))
            })
            .await;
            let chats = s.sessions(2).await;
            s.world.store.on_writes(Fault::Locked);
            let new = repaired(&mut s).await;
            s.world.store.on_writes(Fault::None);
            if called {
                let bound = call(&s.dial(), chats[1]).await.unwrap();
                assert_eq!(
                    (bound.outcome().repair(), s.did().await),
                    (Repair::NotNeeded, counts(1, 0, 0, 0))
                );
            }
            sleep(Duration::from_secs(30)).await;
            // One statement for both rows.
            assert_eq!(s.did().await, counts(0, 0, 1, 0));
            writes_its_own(&mut s, chats[1], &new, 0).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_row_written_behind_while_the_statement_runs_gets_an_own_repair() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let (chat, child) = (s.chat, session());
        let new = s.rebuild();
        s.world.store.on_writes(Fault::SlowAnswer(ms(100)));
        s.call().await.1.unwrap();
        settled().await;
        s.world.store.on_writes(Fault::None);
        // The statement has been executed and is not answered yet. Another process writes the old
        // agent back, and in this process a child inherits it.
        s.written_elsewhere(&s.old).await;
        let row = s.layer.bindings().inherit(child, chat).await.unwrap();
        assert_eq!(row.target.as_deref(), Some(&s.old));
        assert_eq!(s.did().await, counts(2, 1, 0, 2));
        // A concurrent call waits for the statement, and then finds that its row was missed.
        let bound = call(&s.dial(), child).await.unwrap();
        assert_eq!((bound.agent, bound.outcome().repair()), (new.agent, Repair::Pending));
        assert_eq!((s.layer.bindings().flush().await, s.did().await), (0, counts(1, 0, 0, 1)));
        assert_eq!((s.world.row_agent(child), repairs(&s).len()), (Some(new.agent), 2));
        is_reused(&mut s, child, &new).await;
    }
}

#[tokio::test(start_paused = true)]
async fn flush_waits_for_rows_that_the_statement_missed() {
    let s = Scene::new(Some(5)).await;
    let (chat, child) = (s.chat, session());
    let new = s.rebuild();
    s.world.store.on_writes(Fault::SlowAnswer(ms(100)));
    s.call().await.1.unwrap();
    settled().await;
    s.world.store.on_writes(Fault::None);
    s.written_elsewhere(&s.old).await;
    s.layer.bindings().inherit(child, chat).await.unwrap();
    call(&s.dial(), child).await.unwrap();
    s.world.store.on_writes(Fault::Slow(ms(700)));
    let begin = Instant::now();
    assert_eq!((s.layer.bindings().flush().await, begin.elapsed()), (0, ms(800)));
    assert_eq!(s.world.row_agent(child), Some(new.agent));
}

#[tokio::test(start_paused = true)]
async fn the_cached_row_equals_the_written_row() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let chats = s.sessions(2).await;
        let new = repaired(&mut s).await;
        call(&s.dial(), chats[1]).await.unwrap();
        s.did().await;
        for chat in chats {
            let row = s.layer.bindings().get(chat).await.unwrap().unwrap();
            assert_eq!(row.target.as_deref(), Some(&new));
            assert_eq!(row.previous, Some(Previous::new(s.old.agent, s.old.generation)));
            assert_eq!(Some(row), s.world.row(chat), "the cached row has the written revision");
            assert_eq!(s.did().await, counts(0, 0, 1, 0));
            // The cached row then counts as a read row.
            assert_eq!(s.layer.bindings().get(chat).await.unwrap(), s.world.row(chat));
            assert_eq!(s.did().await, counts(0, 0, 0, 0));
            is_reused(&mut s, chat, &new).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_own_repair_of_a_written_row_conflicts_on_the_revision_and_lands_once() {
    let mut s = Scene::new(Some(5)).await;
    let new = repaired(&mut s).await;
    let revision = s.row().revision.get();
    let moved = s.world.replace(s.ws, &new, Does::Hang);
    let (took, bound) = s.call().await;
    let bound = bound.unwrap();
    assert_eq!((took, bound.agent), (ms(250), moved.agent));
    // The first statement shows the revision, the second one writes.
    assert_eq!(s.did().await, counts(2, 1, 0, 2));
    assert_eq!(
        (bound.outcome().repair(), repairs(&s)),
        (Repair::Written, vec![Seen::Repaired(Repair::Written)])
    );
    assert_eq!((s.row_agent(), s.row().revision.get()), (Some(moved.agent), revision + 1));
    assert_eq!(s.row().previous, Some(Previous::new(new.agent, new.generation)));
    let chat = s.chat;
    is_reused(&mut s, chat, &moved).await;
    // The cached row now equals the written row.
    assert_eq!(s.layer.bindings().get(chat).await.unwrap(), s.world.row(chat));
    assert_eq!(s.did().await, counts(0, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_own_repair_of_a_written_row_still_loses_to_a_command_and_to_a_later_build() {
    let mut s = Scene::new(Some(5)).await;
    let new = repaired(&mut s).await;
    let (other, _) = new_workspace(&s.world, Some(5));
    let commanded = s.world.store.elsewhere().retarget(s.chat, other).await.unwrap();
    s.world.replace(s.ws, &new, Does::Hang);
    let bound = s.call().await.1.unwrap();
    settled().await;
    assert_eq!((bound.outcome().repair(), s.row()), (Repair::Lost, commanded));
    assert_eq!(s.did().await, counts(2, 1, 0, 1));

    let mut s = Scene::new(Some(5)).await;
    let new = repaired(&mut s).await;
    let newest = s.world.agent(Some(7));
    s.written_elsewhere(&newest).await;
    s.world.replace(s.ws, &new, Does::Hang);
    let bound = s.call().await.1.unwrap();
    settled().await;
    assert_eq!((bound.outcome().repair(), s.row_agent()), (Repair::Lost, Some(newest.agent)));
    assert_eq!(s.did().await, counts(2, 1, 0, 1));
    let chat = s.chat;
    is_reused(&mut s, chat, &newest).await;
}

#[tokio::test(start_paused = true)]
async fn a_command_after_a_group_repair_writes_the_true_row() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let new = repaired(&mut s).await;
        let (revision, bindings) = (s.row().revision.get(), s.layer.bindings());
        let kept = bindings.retarget(s.chat, s.ws).await.unwrap();
        assert_eq!((kept.target.as_deref(), kept.revision.get()), (Some(&new), revision + 1));
        assert_eq!(s.did().await, counts(0, 0, 0, 1));
        let chat = s.chat;
        is_reused(&mut s, chat, &new).await;
        assert_eq!(bindings.get(chat).await.unwrap(), Some(kept));
        assert_eq!(s.did().await, counts(0, 0, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_repair_that_never_ends_is_retried_and_delays_no_call() {
    let mut s = Scene::new(Some(5)).await;
    let new = s.rebuild();
    s.world.store.on_writes(Fault::Endless);
    let before = s.world.counts();
    let bound = call(&s.dial(), s.chat).await.unwrap();
    assert_eq!(bound.agent, new.agent);
    let bindings = s.layer.bindings();
    let flushed = tokio::time::timeout(Duration::from_secs(60), bindings.flush()).await;
    assert_eq!((flushed, bound.outcome().repair()), (Ok(1), Repair::Retrying));
    assert_eq!((s.world.counts() - before).w, 1_000);
    s.world.store.on_writes(Fault::None);
    sleep(ms(126)).await;
    assert_eq!((bindings.flush().await, bound.outcome().repair()), (0, Repair::Written));
    assert_eq!(s.did().await, counts(2, 1, 0, 1_001));
    is_reused(&mut s, bound.session(), &new).await;
}
