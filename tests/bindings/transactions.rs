//! Commands inside the caller's own transaction take effect when it ends.

use crate::{at, start};
use support::*;
use tokio::time::Instant;
use tower_bound_agent::{
    BoundAgentLayer, ErrorKind, OutcomeKind, Retargeted, SessionId, Target, WorkspaceId,
};

/// A session that is bound in one workspace and about to be retargeted to another one.
pub(crate) struct Case {
    pub(crate) world: World,
    pub(crate) layer: BoundAgentLayer,
    pub(crate) dial: Dial,
    pub(crate) chat: SessionId,
    pub(crate) old: Target,
    pub(crate) other: WorkspaceId,
    pub(crate) new: Target,
}

impl Case {
    async fn new() -> Self {
        let world = World::new();
        let layer = world.layer();
        Self::over(world, layer).await
    }

    pub(crate) async fn over(world: World, layer: BoundAgentLayer) -> Self {
        let (ws, old) = world.workspace();
        let (other, new) = world.workspace();
        let chat = world.bind(&layer, ws).await;
        Self { dial: world.dial(&layer), world, layer, chat, old, other, new }
    }

    async fn command(&self, transaction: &mut Staged) -> Retargeted {
        let Self { world, layer, chat, other, .. } = self;
        layer.bindings().retarget_in(&world.store, transaction, *chat, *other).await.unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_retarget_in_a_transaction_takes_effect_after_the_commit_only() {
    let case = Case::new().await;
    let (mut transaction, before) = (Staged::default(), case.world.counts());
    let guard = case.command(&mut transaction).await;
    assert_eq!((guard.binding().session, guard.binding().workspace), (case.chat, case.other));
    assert_eq!(case.world.counts() - before, counts(0, 0, 0, 1));

    let bound = call(&case.dial, case.chat).await.unwrap();
    assert_eq!((bound.agent, bound.outcome().kind.clone()), (case.old.agent, OutcomeKind::Reused));
    assert_eq!(case.world.counts() - before, counts(1, 0, 0, 1));

    transaction.commit(&case.world.store).await;
    let row = guard.committed();
    assert_eq!(Some(row), case.world.row(case.chat));
    assert_eq!(call(&case.dial, case.chat).await.unwrap().agent, case.new.agent);
    assert_eq!(case.layer.bindings().flush().await, 0);
    assert_eq!(case.world.counts() - before, counts(2, 1, 0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_pending_call_moves_at_the_instant_of_the_commit() {
    let case = Case::new().await;
    case.world.does(&case.old, Does::Hang);
    let mut transaction = Staged::default();
    let guard = case.command(&mut transaction).await;
    let begin = Instant::now();
    let under_way = start(&case.dial, case.chat);
    at(begin, ms(100)).await;
    transaction.commit(&case.world.store).await;
    assert!(!under_way.is_finished());
    guard.committed();
    assert_eq!(under_way.await.unwrap().unwrap().agent, case.new.agent);
    assert_eq!(begin.elapsed(), ms(100));
}

#[tokio::test(start_paused = true)]
async fn a_rollback_changes_nothing() {
    let case = Case::new().await;
    case.world.does(&case.old, Does::Answer(ms(200)));
    let mut transaction = Staged::default();
    let guard = case.command(&mut transaction).await;
    let (before, begin) = (case.world.counts(), Instant::now());
    let under_way = start(&case.dial, case.chat);
    at(begin, ms(100)).await;
    drop(transaction);
    guard.rolled_back();
    assert_eq!(under_way.await.unwrap().unwrap().agent, case.old.agent);
    assert_eq!(begin.elapsed(), ms(200));
    assert_eq!(call(&case.dial, case.chat).await.unwrap().agent, case.old.agent);
    assert_eq!(case.world.counts() - before, counts(2, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn after_a_guard_was_dropped_the_row_is_read_at_each_call_for_a_minute() {
    let case = Case::new().await;
    let begin = Instant::now();
    drop(case.command(&mut Staged::default()).await);
    let before = case.world.counts();
    for (n, (after, reads)) in
        [(0, 1), (1, 2), (30_000, 3), (59_999, 4), (60_000, 5), (60_001, 5), (120_000, 5)]
            .into_iter()
            .enumerate()
    {
        at(begin, ms(after)).await;
        assert_eq!(call(&case.dial, case.chat).await.unwrap().agent, case.old.agent);
        assert_eq!(
            case.world.counts() - before,
            counts(n as u64 + 1, 0, reads, 0),
            "after {after} ms"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_guard_was_dropped_the_row_is_read_until_it_shows_the_command() {
    let case = Case::new().await;
    let mut transaction = Staged::default();
    drop(case.command(&mut transaction).await);
    let before = case.world.counts();
    for n in 1..=3 {
        assert_eq!(call(&case.dial, case.chat).await.unwrap().agent, case.old.agent);
        assert_eq!(case.world.counts() - before, counts(n, 0, n, 0));
    }
    transaction.commit(&case.world.store).await;
    for (n, reads) in [(4, 4), (5, 4), (6, 4)] {
        assert_eq!(call(&case.dial, case.chat).await.unwrap().agent, case.new.agent);
        assert_eq!(case.layer.bindings().flush().await, 0);
        assert_eq!(case.world.counts() - before, counts(n, 1, reads, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_guard_makes_pending_calls_and_queries_read_the_row() {
    let case = Case::new().await;
    case.world.does(&case.old, Does::Hang);
    let mut transaction = Staged::default();
    let guard = case.command(&mut transaction).await;
    let (before, begin) = (case.world.counts(), Instant::now());
    let under_way = start(&case.dial, case.chat);
    at(begin, ms(100)).await;
    transaction.commit(&case.world.store).await;
    drop(guard);
    assert_eq!(under_way.await.unwrap().unwrap().agent, case.new.agent);
    assert_eq!(begin.elapsed(), ms(100));
    assert_eq!(case.layer.bindings().flush().await, 0);
    assert_eq!(case.world.counts() - before, counts(2, 1, 1, 1));
    assert_eq!(case.layer.bindings().get(case.chat).await.unwrap().unwrap().workspace, case.other);
}

#[tokio::test(start_paused = true)]
async fn sixteen_calls_after_a_guard_was_dropped_share_their_reads() {
    let case = Case::new().await;
    drop(case.command(&mut Staged::default()).await);
    let before = case.world.counts();
    case.world.store.on_reads(Fault::Slow(ms(10)));
    let calls: Vec<_> = (0..16).map(|_| start(&case.dial, case.chat)).collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().agent, case.old.agent);
    }
    assert_eq!(case.world.counts() - before, counts(16, 0, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn after_a_guard_was_dropped_a_call_is_not_served_by_a_read_that_began_before_it() {
    let case = Case::new().await;
    let mut transaction = Staged::default();
    drop(case.command(&mut transaction).await);
    let (before, begin) = (case.world.counts(), Instant::now());
    case.world.store.on_reads(Fault::SlowAnswer(ms(100)));
    let early = start(&case.dial, case.chat);
    at(begin, ms(50)).await;
    transaction.commit(&case.world.store).await;
    at(begin, ms(60)).await;
    let late = start(&case.dial, case.chat);
    assert_eq!(early.await.unwrap().unwrap().agent, case.old.agent);
    assert_eq!(begin.elapsed(), ms(100));
    assert_eq!(late.await.unwrap().unwrap().agent, case.new.agent);
    assert_eq!((case.world.counts() - before).r, 2);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_guard_makes_calls_fail_while_the_store_is_down() {
    let case = Case::new().await;
    drop(case.command(&mut Staged::default()).await);
    case.world.store.on_reads(Fault::Unavailable);
    assert_eq!(call(&case.dial, case.chat).await.unwrap_err().kind(), &ErrorKind::Store);
    case.world.store.on_reads(Fault::None);
    assert_eq!(call(&case.dial, case.chat).await.unwrap().agent, case.old.agent);
}

#[tokio::test(start_paused = true)]
async fn a_late_committed_does_not_undo_a_later_command() {
    let case = Case::new().await;
    let (third, target) = case.world.workspace();
    let mut transaction = Staged::default();
    let guard = case.command(&mut transaction).await;
    transaction.commit(&case.world.store).await;
    case.layer.bindings().retarget(case.chat, third).await.unwrap();
    guard.committed();
    let before = case.world.counts();
    assert_eq!(call(&case.dial, case.chat).await.unwrap().agent, target.agent);
    assert_eq!((case.world.counts() - before).r, 0);
}

#[tokio::test(start_paused = true)]
async fn a_command_in_a_failed_transaction_is_a_store_error() {
    let case = Case::new().await;
    case.world.store.on_writes(Fault::Unavailable);
    let mut transaction = Staged::default();
    let bindings = case.layer.bindings();
    let command =
        bindings.retarget_in(&case.world.store, &mut transaction, case.chat, case.other).await;
    let error = command.unwrap_err();
    assert_eq!((error.kind(), error.session()), (&ErrorKind::Store, Some(case.chat)));
    let before = case.world.counts();
    assert_eq!(call(&case.dial, case.chat).await.unwrap().agent, case.old.agent);
    assert_eq!(case.world.counts() - before, counts(1, 0, 0, 0));
}
