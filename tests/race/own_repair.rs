//! Rows 18 and 19: a repair that cannot be written, and one that loses the compare-and-swap.

use crate::scene::*;
use std::sync::Arc;
use support::*;
use tokio::time::{Duration, Instant, sleep};
use tokio_test::task;
use tower::Layer;
use tower_bound_agent::{
    Binding, BoundAgentBuilder, BoundAgentLayer, Epoch, ErrorKind, Generation, OutcomeKind, Repair,
    RepairMode, Revision, SessionId, Target, WorkspaceId,
    store::{BindingStore, MemoryStore, NewBinding, Reset, StoreError, Swap},
};

const OWN: [(Writes, Option<i64>); 2] = [(Writes::Own, Some(5)), (Writes::Own, None)];
const ALL: [(Writes, Option<i64>); 4] =
    [OWN[0], OWN[1], (Writes::Group, Some(5)), (Writes::Group, None)];

/// Returns the repair events of one kind with their time after `begin`. There must be none of the
/// other kind.
fn repairs(s: &Scene, writes: Writes, begin: Instant) -> Vec<(Duration, Repair)> {
    let repaired = |(at, seen)| match seen {
        Seen::Repaired(repair) => Some((at - begin, Writes::Own, repair)),
        Seen::Group(repair) => Some((at - begin, Writes::Group, repair)),
        _ => None,
    };
    let told = |(at, kind, repair)| {
        assert_eq!(kind, writes);
        (at, repair)
    };
    s.log.take().into_iter().filter_map(repaired).map(told).collect()
}

/// Asserts the pauses before the ends of these attempts, each of which jitter may extend by up to a
/// quarter.
fn came_after(seen: &[(Duration, Repair)], wanted: &[(Duration, Repair)]) {
    assert_eq!(seen.len(), wanted.len(), "{seen:?}");
    let mut before = Duration::ZERO;
    for ((at, repair), (pause, expected)) in seen.iter().zip(wanted) {
        assert_eq!(repair, expected, "{seen:?}");
        let longest = if before.is_zero() { *pause } else { *pause + *pause / 4 };
        assert!((*pause..=longest).contains(&(*at - before)), "{pause:?} before: {seen:?}");
        before = *at;
    }
}

#[tokio::test(start_paused = true)]
async fn row_18_a_store_that_is_down_delays_no_connection_and_is_written_later_once() {
    for (writes, generation) in ALL {
        let mut s = Scene::writing(writes, generation, |builder| builder).await;
        let (new, before) = (s.replaced(writes), s.row());
        s.world.store.on_writes(Fault::Unavailable);
        let begin = Instant::now();
        let (took, bound) = s.call().await;
        let bound = bound.unwrap();
        assert_eq!((took, bound.agent), (ms(250), new.agent));
        assert_eq!(s.did().await, counts(2, 1, 0, 1));
        assert_eq!(
            (bound.outcome().repair(), s.layer.bindings().flush().await),
            (Repair::Retrying, 1)
        );
        assert_eq!(s.row(), before);

        // The next call needs no question and joins the repair that is under way.
        sleep(ms(50)).await;
        let (took, again) = s.call().await;
        let again = again.unwrap();
        assert_eq!(
            (took, again.agent, again.outcome().repair()),
            (ms(0), new.agent, Repair::Retrying)
        );
        assert_eq!(s.did().await, counts(1, 0, 0, 0));

        sleep(ms(450)).await;
        s.world.store.on_writes(Fault::None);
        sleep(Duration::from_secs(60)).await;
        // The attempt began at 250 and is repeated after 100, 200 and 400.
        let wanted = [
            (ms(250), Repair::Retrying),
            (ms(100), Repair::Retrying),
            (ms(200), Repair::Retrying),
            (ms(400), Repair::Written),
        ];
        came_after(&repairs(&s, writes, begin), &wanted);
        assert_eq!(s.did().await, counts(0, 0, 0, 3));
        assert_eq!(
            (bound.outcome().repair(), again.outcome().repair()),
            (Repair::Written, Repair::Written)
        );
        assert_eq!(
            (s.row_agent(), s.row().revision.get()),
            (Some(new.agent), before.revision.get() + 1)
        );
        let (_, bound) = s.call().await;
        let bound = bound.unwrap();
        assert_eq!(
            (&bound.outcome().kind, bound.outcome().repair()),
            (&OutcomeKind::Reused, Repair::NotNeeded)
        );
        assert_eq!(s.did().await, counts(1, 0, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn row_18_a_lost_answer_is_recognized_by_the_next_attempt() {
    for (writes, generation) in ALL {
        for fault in [Fault::LostAnswer, Fault::LostRequest] {
            let mut s = Scene::writing(writes, generation, |builder| builder).await;
            let (new, revision) = (s.replaced(writes), s.row().revision.get());
            s.world.store.on_writes(fault);
            let begin = Instant::now();
            let (took, bound) = s.call().await;
            let bound = bound.unwrap();
            assert_eq!(took, ms(250));
            settled().await;
            assert_eq!(bound.outcome().repair(), Repair::Retrying);
            s.world.store.on_writes(Fault::None);
            sleep(Duration::from_secs(60)).await;
            came_after(
                &repairs(&s, writes, begin),
                &[(ms(250), Repair::Retrying), (ms(100), Repair::Written)],
            );
            assert_eq!(s.did().await, counts(2, 1, 0, 2));
            // The row is as after one write.
            assert_eq!(
                (s.row_agent(), s.row().revision.get()),
                (Some(new.agent), revision + 1),
                "{fault:?}"
            );
            assert_eq!(s.row().previous.map(|previous| previous.agent), Some(s.old.agent));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn row_18_a_slow_store_delays_no_connection() {
    for (writes, generation) in ALL {
        let mut s = Scene::writing(writes, generation, |builder| builder).await;
        let new = s.replaced(writes);
        s.world.store.on_writes(Fault::Slow(ms(3_000)));
        let begin = Instant::now();
        let (took, bound) = s.call().await;
        let bound = bound.unwrap();
        settled().await;
        assert_eq!((took, bound.outcome().repair()), (ms(250), Repair::Pending));
        assert_eq!(s.layer.bindings().flush().await, 0);
        assert_eq!((begin.elapsed(), bound.outcome().repair()), (ms(3_250), Repair::Written));
        assert_eq!((s.did().await, s.row_agent()), (counts(2, 1, 0, 1), Some(new.agent)));
    }
}

#[tokio::test(start_paused = true)]
async fn row_18_an_unanswered_write_is_not_repeated_and_its_late_answer_counts() {
    for (writes, generation) in ALL {
        let mut s = Scene::writing(writes, generation, |builder| builder).await;
        let (new, revision) = (s.replaced(writes), s.row().revision.get());
        s.world.store.on_writes(Fault::Slow(ms(40_000)));
        let begin = Instant::now();
        let (took, bound) = s.call().await;
        let bound = bound.unwrap();
        assert_eq!((took, bound.agent), (ms(250), new.agent));
        sleep(ms(1_000)).await;
        assert_eq!(bound.outcome().repair(), Repair::Pending);
        s.world.store.on_writes(Fault::None);
        sleep(Duration::from_secs(60)).await;
        assert_eq!(
            repairs(&s, writes, begin),
            [(ms(5_250), Repair::Retrying), (ms(40_250), Repair::Written)]
        );
        assert_eq!((s.did().await, s.row_agent()), (counts(2, 1, 0, 1), Some(new.agent)));
        assert_eq!(s.row().revision.get(), revision + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn row_18_repair_before_return_waits_for_one_attempt() {
    for (writes, generation) in ALL {
        for (fault, took, repair) in [
            (Fault::None, 250, Repair::Written),
            (Fault::Slow(ms(1_000)), 1_250, Repair::Written),
            (Fault::Unavailable, 250, Repair::Retrying),
            (Fault::Hang, 5_250, Repair::Retrying),
        ] {
            let before_return =
                |builder: BoundAgentBuilder| builder.repair(RepairMode::BeforeReturn);
            let mut s = Scene::writing(writes, generation, before_return).await;
            let (new, before) = (s.replaced(writes), s.row());
            s.world.store.on_writes(fault);
            let (elapsed, bound) = s.call().await;
            assert_eq!(
                (elapsed, bound.unwrap().outcome().repair()),
                (ms(took), repair),
                "{writes:?}, {fault:?}"
            );
            assert_eq!(s.did().await, counts(2, 1, 0, 1));
            match repair {
                Repair::Written => assert_eq!(s.row_agent(), Some(new.agent)),
                _ => assert_eq!(s.row(), before),
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_later_repair_replaces_one_that_waits_for_the_store() {
    for writes in [Writes::Own, Writes::Group] {
        let mut s = Scene::new(Some(5)).await;
        let (second, third) = (s.replaced(writes), s.world.agent(Some(7)));
        s.world.store.on_writes(Fault::Unavailable);
        let (_, one) = s.call().await;
        let one = one.unwrap();
        assert_eq!(one.agent, second.agent);
        s.did().await;
        // A rebuild while the first repair is retried.
        s.world.does(&second, Does::Hang);
        s.world.runs(s.ws, &third);
        s.layer.bindings().revalidate_workspace(s.ws);
        let (_, two) = s.call().await;
        let two = two.unwrap();
        assert_eq!(two.agent, third.agent);
        settled().await;
        s.world.store.on_writes(Fault::None);
        sleep(Duration::from_secs(60)).await;
        assert_eq!(
            (one.outcome().repair(), two.outcome().repair()),
            (Repair::Lost, Repair::Written)
        );
        assert_eq!(s.row_agent(), Some(third.agent));
        // The later repair was attempted while the store was down and again afterwards; the earlier
        // one was not attempted again.
        assert_eq!(s.did().await, counts(2, 1, 0, 2));
    }
}

/// Returns a call's connection whose repair is still to be written, after another process has
/// changed the row. The cached row is behind.
async fn lost_to(s: &mut Scene) -> (tower_bound_agent::Bound<Conn>, Target) {
    let new = s.replaced(Writes::Own);
    let (took, bound) = s.call().await;
    let bound = bound.unwrap();
    assert_eq!(
        (took, bound.agent),
        (ms(250), new.agent),
        "the connection is served whatever happened to the row"
    );
    settled().await;
    (bound, new)
}

/// Asserts that the caller keeps its connection, and that the observer receives an event.
async fn kept(s: &Scene, bound: &tower_bound_agent::Bound<Conn>, repair: Repair) {
    sleep(Duration::from_secs(60)).await;
    assert_eq!((bound.outcome().repair(), s.world.live_connections()), (repair, 1));
    let told =
        s.log.seen().into_iter().filter(|seen| matches!(seen, Seen::Repaired(_) | Seen::Group(_)));
    let told: Vec<_> = told.collect();
    assert_eq!(told, [Seen::Repaired(repair)]);
}

fn is_superseded(bound: &tower_bound_agent::Bound<Conn>) -> bool {
    task::spawn(bound.handle().superseded()).poll().is_ready()
}

#[tokio::test(start_paused = true)]
async fn row_19_the_same_target_written_elsewhere_is_success() {
    for (writes, generation) in OWN {
        let mut s = Scene::writing(writes, generation, |builder| builder).await;
        let new = s.replaced(writes);
        s.written_elsewhere(&new).await;
        let revision = s.row().revision;
        let (took, bound) = s.call().await;
        let bound = bound.unwrap();
        assert_eq!((took, bound.agent), (ms(250), new.agent));
        assert_eq!(s.did().await, counts(2, 1, 0, 1));
        assert_eq!((s.row().revision, is_superseded(&bound)), (revision, false));
        kept(&s, &bound, Repair::Written).await;
        assert_eq!(s.call().await.1.unwrap().outcome().kind, OutcomeKind::Reused);
        assert_eq!(s.did().await, counts(1, 0, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn row_19_a_row_that_was_deleted_stays_deleted() {
    for (writes, generation) in OWN {
        let mut s = Scene::writing(writes, generation, |builder| builder).await;
        assert!(s.world.store.elsewhere().forget(s.chat, None).await.unwrap());
        let (bound, _) = lost_to(&mut s).await;
        assert_eq!(s.did().await, counts(2, 1, 0, 1));
        assert_eq!((s.world.row(s.chat), is_superseded(&bound)), (None, true));
        kept(&s, &bound, Repair::Lost).await;
        assert_eq!(s.call().await.1.unwrap_err().kind(), &ErrorKind::NotBound);
        assert_eq!(s.did().await, counts(0, 0, 1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn row_19_a_row_that_was_unbound_stays_unbound_until_the_next_call() {
    for (writes, generation) in OWN {
        let mut s = Scene::writing(writes, generation, |builder| builder).await;
        s.world.store.elsewhere().unbind(s.chat).await.unwrap().unwrap();
        let (bound, new) = lost_to(&mut s).await;
        assert_eq!(s.did().await, counts(2, 1, 0, 1));
        assert_eq!(s.row().target, None);
        kept(&s, &bound, Repair::Lost).await;
        drop(bound);
        // The known target is dialed as if the row named it, and the write is a first bind.
        let (took, bound) = s.call().await;
        let bound = bound.unwrap();
        assert_eq!(
            (took, bound.agent, &bound.outcome().kind),
            (ms(0), new.agent, &OutcomeKind::FirstBind)
        );
        assert_eq!((s.did().await, s.row_agent()), (counts(1, 0, 0, 1), Some(new.agent)));
    }
}

#[tokio::test(start_paused = true)]
async fn row_19_a_retargeted_row_is_not_overwritten() {
    for (writes, generation) in OWN {
        let mut s = Scene::writing(writes, generation, |builder| builder).await;
        let (other, there) = new_workspace(&s.world, generation);
        s.world.store.elsewhere().retarget(s.chat, other).await.unwrap();
        let (bound, _) = lost_to(&mut s).await;
        assert_eq!(s.did().await, counts(2, 1, 0, 1));
        assert_eq!((s.row().workspace, s.row().target, is_superseded(&bound)), (other, None, true));
        kept(&s, &bound, Repair::Lost).await;
        let (took, next) = s.call().await;
        assert_eq!((took, next.unwrap().agent), (ms(0), there.agent));
        assert_eq!(s.did().await, counts(1, 1, 0, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn row_19_a_greater_generation_is_adopted() {
    let mut s = Scene::new(Some(5)).await;
    let newest = s.world.agent(Some(6));
    s.written_elsewhere(&newest).await;
    let revision = s.row().revision;
    let (bound, _) = lost_to(&mut s).await;
    assert_eq!(s.did().await, counts(2, 1, 0, 1));
    assert_eq!(
        (s.row_agent(), s.row().revision, is_superseded(&bound)),
        (Some(newest.agent), revision, true)
    );
    kept(&s, &bound, Repair::Lost).await;
    let (took, next) = s.call().await;
    let next = next.unwrap();
    assert_eq!(
        (took, next.agent, &next.outcome().kind),
        (ms(0), newest.agent, &OutcomeKind::Reused)
    );
    assert_eq!(s.did().await, counts(1, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn row_19_an_equal_generation_is_adopted() {
    let mut s = Scene::new(Some(5)).await;
    let rival = s.world.agent(Some(5));
    s.written_elsewhere(&rival).await;
    let (bound, _) = lost_to(&mut s).await;
    assert_eq!((s.did().await, s.row_agent()), (counts(2, 1, 0, 1), Some(rival.agent)));
    kept(&s, &bound, Repair::Lost).await;
    // The next call dials it.
    let (took, next) = s.call().await;
    assert_eq!((took, next.unwrap().agent), (ms(0), rival.agent));
    // The resolver had named another target of that generation, so it is asked.
    assert_eq!((s.did().await, s.row_agent()), (counts(1, 1, 0, 0), Some(rival.agent)));
}

#[tokio::test(start_paused = true)]
async fn row_19_without_generations_another_agent_is_adopted_with_a_doubt() {
    let mut s = Scene::writing(Writes::Own, None, |builder| builder).await;
    let rival = s.world.agent(None);
    s.written_elsewhere(&rival).await;
    let (bound, _) = lost_to(&mut s).await;
    assert_eq!((s.did().await, s.row_agent()), (counts(2, 1, 0, 1), Some(rival.agent)));
    kept(&s, &bound, Repair::Lost).await;
    let (took, next) = s.call().await;
    assert_eq!((took, next.unwrap().agent), (ms(0), rival.agent));
    assert_eq!(s.did().await, counts(1, 1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn row_19_a_smaller_generation_is_written_over() {
    let mut s = Scene::new(Some(5)).await;
    let older = s.world.agent(Some(4));
    s.written_elsewhere(&older).await;
    let revision = s.row().revision.get();
    let (bound, new) = lost_to(&mut s).await;
    assert_eq!(s.did().await, counts(2, 1, 0, 2));
    assert_eq!((s.row_agent(), s.row().revision.get()), (Some(new.agent), revision + 1));
    kept(&s, &bound, Repair::Written).await;
}

/// Another process writes an older target right before each compare-and-swap.
#[derive(Clone)]
struct Rival {
    store: Tap<MemoryStore>,
    older: Arc<Target>,
}

impl BindingStore for Rival {
    async fn load(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
        self.store.load(session).await
    }
    async fn create(&self, new: NewBinding) -> Result<Swap, StoreError> {
        self.store.create(new).await
    }
    async fn compare_and_swap(
        &self,
        expected: Revision,
        new: NewBinding,
    ) -> Result<Swap, StoreError> {
        let older = NewBinding::new(new.session, new.workspace, Some(Arc::clone(&self.older)));
        let revision = self.store.peek(new.session).unwrap().revision;
        let rival = self.store.elsewhere().compare_and_swap(revision, older).await.unwrap();
        assert!(matches!(rival, Swap::Applied(_)));
        self.store.compare_and_swap(expected, new).await
    }
    async fn retarget(
        &self,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> Result<Binding, StoreError> {
        self.store.retarget(session, workspace).await
    }
    async fn unbind(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
        self.store.unbind(session).await
    }
    async fn forget(
        &self,
        session: SessionId,
        expected: Option<Revision>,
    ) -> Result<bool, StoreError> {
        self.store.forget(session, expected).await
    }
    async fn inherit(&self, child: SessionId, parent: SessionId) -> Result<Swap, StoreError> {
        self.store.inherit(child, parent).await
    }
    async fn reset_workspace(&self, workspace: WorkspaceId) -> Result<Reset, StoreError> {
        self.store.reset_workspace(workspace).await
    }
    async fn replace_agent(
        &self,
        workspace: WorkspaceId,
        epoch: Epoch,
        stale: &Target,
        current: &Arc<Target>,
        limit: u64,
    ) -> Result<u64, StoreError> {
        self.store.replace_agent(workspace, epoch, stale, current, limit).await
    }
    async fn load_many(&self, sessions: &[SessionId]) -> Result<Vec<Binding>, StoreError> {
        self.store.load_many(sessions).await
    }
    fn shared(&self) -> bool {
        self.store.shared()
    }
}

#[tokio::test(start_paused = true)]
async fn row_19_a_repair_is_tried_again_three_times_on_a_new_revision() {
    let s = Scene::new(Some(5)).await;
    let new = s.replaced(Writes::Own);
    let older = Arc::new(s.world.agent(Some(4)));
    let rival = Rival { store: s.world.store.clone(), older: Arc::clone(&older) };
    let layer = BoundAgentLayer::builder(rival, s.world.resolver()).build().unwrap();
    let before = s.world.counts();
    let bound = call(&layer.layer(s.world.dialer()), s.chat).await.unwrap();
    assert_eq!(bound.agent, new.agent);
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!((bound.outcome().repair(), s.row_agent()), (Repair::Lost, Some(older.agent)));
    assert_eq!(s.world.counts() - before, counts(2, 1, 1, 4));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(s.world.counts() - before, counts(2, 1, 1, 4));
}

#[tokio::test(start_paused = true)]
async fn a_repair_that_loses_without_generations_before_the_return_keeps_its_connection() {
    let before_return = |builder: BoundAgentBuilder| builder.repair(RepairMode::BeforeReturn);
    let mut s = Scene::writing(Writes::Own, None, before_return).await;
    let rival = s.world.agent(None);
    s.written_elsewhere(&rival).await;
    let new = s.replaced(Writes::Own);
    let (took, bound) = s.call().await;
    let bound = bound.unwrap();
    assert_eq!((took, bound.agent, bound.outcome().repair()), (ms(250), new.agent, Repair::Lost));
    assert_eq!((s.did().await, s.row_agent()), (counts(2, 1, 0, 1), Some(rival.agent)));
}

#[tokio::test(start_paused = true)]
async fn a_repair_that_loses_to_a_greater_generation_before_the_return_switches() {
    let mut s = Scene::with(Some(5), |builder| builder.repair(RepairMode::BeforeReturn)).await;
    let newest = s.world.agent(Some(7));
    s.written_elsewhere(&newest).await;
    s.replaced(Writes::Own);
    let (took, bound) = s.call().await;
    let bound = bound.unwrap();
    assert_eq!((took, bound.agent), (ms(250), newest.agent));
    assert_eq!(bound.target().generation, Some(Generation::new(7)));
    assert_eq!(s.did().await, counts(3, 1, 0, 1));
    assert_eq!((s.world.live_dials(), s.world.live_connections()), (0, 1));
}
