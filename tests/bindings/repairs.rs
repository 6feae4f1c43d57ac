//! Repairs that lose the compare-and-swap, case by case.

use crate::{at, settled};
use std::sync::Arc;
use support::*;
use tokio::time::{Instant, timeout};
use tower_bound_agent::{
    Binding, Bound, BoundAgentLayer, DialSession, ErrorKind, OutcomeKind, Previous, Repair,
    RepairMode, SessionId, Target, WorkspaceId,
    store::{BindingStore, NewBinding, Swap},
};

/// A call has switched to another agent of the same build or, without generations, bound its
/// session for the first time; its own repair is on its way to the store for another 100 ms.
struct Losing {
    world: World,
    layer: BoundAgentLayer,
    ws: WorkspaceId,
    chat: SessionId,
    new: Target,
    bound: Bound<Conn>,
    before: Counts,
    /// The instant at which the repair began.
    begin: Instant,
}

impl Losing {
    async fn new(generation: Option<i64>) -> Self {
        let world = World::new();
        let ws = workspace();
        let old = world.agent(generation);
        world.runs(ws, &old);
        let layer = world.layer();
        let chat = world.bind(&layer, ws).await;
        if generation.is_none() {
            layer.bindings().unbind(chat).await.unwrap();
        }
        let new = world.replace(ws, &old, Does::Hang);
        world.store.on_writes(Fault::Slow(ms(100)));
        let before = world.counts();
        let bound = call(&world.dial(&layer), chat).await.unwrap();
        assert_eq!((bound.agent, bound.outcome().repair()), (new.agent, Repair::Pending));
        Self { world, layer, ws, chat, new, bound, before, begin: Instant::now() }
    }

    /// Writes a target into the row as another process.
    async fn other_writes(&self, target: &Target) -> Binding {
        let store = self.world.store.elsewhere();
        let row = store.load(self.chat).await.unwrap().unwrap();
        let new = NewBinding::new(self.chat, self.ws, Some(Arc::new(target.clone())));
        match store.compare_and_swap(row.revision, new).await.unwrap() {
            Swap::Applied(row) => row,
            Swap::Conflict(row) => panic!("the row has changed: {row:?}"),
        }
    }

    /// Asserts the result of the repair and the number of its writes.
    async fn ended(&self, repair: Repair, writes: u64) {
        assert_eq!(self.layer.bindings().flush().await, 0);
        assert_eq!(self.bound.outcome().repair(), repair);
        // Without generations the row was unbound, so the resolver was asked before anything was
        // dialed.
        let dials = if self.new.generation.is_some() { 2 } else { 1 };
        assert_eq!(self.world.counts() - self.before, counts(dials, 1, 0, writes));
        // The clock advances, so that a question that begins after the read of the row is later
        // than the row.
        settled().await;
        self.world.store.on_writes(Fault::None);
    }

    /// Makes the next call of the session, and returns its counts and its result.
    async fn next(&self) -> (Counts, Result<Bound<Conn>, ErrorKind>) {
        let before = self.world.counts();
        let bound = call(&self.world.dial(&self.layer), self.chat)
            .await
            .map_err(|error| error.kind().clone());
        settled().await;
        (self.world.counts() - before, bound)
    }

    async fn superseded(&self) -> bool {
        timeout(ms(1), self.bound.handle().superseded()).await.is_ok()
    }
}

#[tokio::test(start_paused = true)]
async fn a_row_that_names_the_target_already_is_a_success() {
    let case = Losing::new(Some(3)).await;
    let row = case.other_writes(&case.new).await;
    case.ended(Repair::Written, 1).await;
    assert_eq!(case.world.row(case.chat), Some(row));
    let (cost, bound) = case.next().await;
    let bound = bound.unwrap();
    assert_eq!((cost, bound.outcome().kind.clone()), (counts(1, 0, 0, 0), OutcomeKind::Reused));
    assert!(!case.superseded().await);
}

#[tokio::test(start_paused = true)]
async fn a_repair_of_a_row_that_is_gone_is_dropped() {
    let case = Losing::new(Some(3)).await;
    assert!(case.world.store.elsewhere().forget(case.chat, None).await.unwrap());
    case.ended(Repair::Lost, 1).await;
    assert_eq!(case.world.row(case.chat), None);
    assert!(case.superseded().await);
    let (cost, bound) = case.next().await;
    assert_eq!((cost, bound.unwrap_err()), (counts(0, 0, 1, 0), ErrorKind::NotBound));
}

#[tokio::test(start_paused = true)]
async fn a_repair_of_a_row_that_was_unbound_is_dropped() {
    let case = Losing::new(Some(3)).await;
    let row = case.world.store.elsewhere().unbind(case.chat).await.unwrap();
    case.ended(Repair::Lost, 1).await;
    assert_eq!(case.world.row(case.chat), row);
    // The known target is right, and the next call binds the session to it.
    let (cost, bound) = case.next().await;
    let bound = bound.unwrap();
    assert_eq!((cost, bound.agent), (counts(1, 0, 0, 1), case.new.agent));
    assert_eq!(
        (bound.outcome().kind.clone(), bound.outcome().repair()),
        (OutcomeKind::FirstBind, Repair::Written)
    );
}

#[tokio::test(start_paused = true)]
async fn a_repair_of_a_row_that_points_elsewhere_is_dropped() {
    let case = Losing::new(Some(3)).await;
    let (other, target) = case.world.workspace();
    let row = case.world.store.elsewhere().retarget(case.chat, other).await.unwrap();
    case.ended(Repair::Lost, 1).await;
    assert_eq!(case.world.row(case.chat), Some(row));
    assert!(case.superseded().await);
    let (cost, bound) = case.next().await;
    assert_eq!((cost, bound.unwrap().agent), (counts(1, 1, 0, 1), target.agent));
}

#[tokio::test(start_paused = true)]
async fn a_winner_of_a_greater_generation_is_adopted() {
    let case = Losing::new(Some(3)).await;
    let newer = case.world.agent(Some(4));
    let row = case.other_writes(&newer).await;
    assert!(!case.superseded().await, "this process has not read the row yet");
    case.ended(Repair::Lost, 1).await;
    assert_eq!(case.world.row(case.chat), Some(row));
    // The connection stays the caller's, and `superseded` resolves.
    assert_eq!(case.bound.agent, case.new.agent);
    assert!(case.superseded().await);
    let (cost, bound) = case.next().await;
    let bound = bound.unwrap();
    assert_eq!(
        (cost, bound.agent, bound.outcome().kind.clone()),
        (counts(1, 0, 0, 0), newer.agent, OutcomeKind::Reused)
    );
}

#[tokio::test(start_paused = true)]
async fn a_winner_of_the_same_generation_is_adopted() {
    let case = Losing::new(Some(3)).await;
    let other = case.world.agent(case.new.generation.map(|generation| generation.get()));
    let row = case.other_writes(&other).await;
    case.ended(Repair::Lost, 1).await;
    assert_eq!(case.world.row(case.chat), Some(row));
    // The target is dialed at once. The resolver had named another target of that generation, so it
    // is asked.
    let (cost, bound) = case.next().await;
    assert_eq!((cost, bound.unwrap().agent), (counts(1, 1, 0, 0), other.agent));
}

#[tokio::test(start_paused = true)]
async fn a_winner_of_a_smaller_generation_is_written_over() {
    let case = Losing::new(Some(3)).await;
    let between = case.world.agent(Some(2));
    case.other_writes(&between).await;
    case.ended(Repair::Written, 2).await;
    let row = case.world.row(case.chat).unwrap();
    assert_eq!(row.target.as_deref(), Some(&case.new));
    assert_eq!(row.previous, Some(Previous::new(between.agent, between.generation)));
    let (cost, bound) = case.next().await;
    assert_eq!(
        (cost, bound.unwrap().outcome().kind.clone()),
        (counts(1, 0, 0, 0), OutcomeKind::Reused)
    );
}

#[tokio::test(start_paused = true)]
async fn a_row_that_is_behind_is_written_over_three_times_at_most() {
    for rounds in [3, 4] {
        let case = Losing::new(Some(3)).await;
        for round in 0..rounds {
            at(case.begin, ms(50 + 100 * round)).await;
            case.other_writes(&case.world.agent(Some(2))).await;
        }
        let last = case.world.row(case.chat).unwrap();
        if rounds == 3 {
            case.ended(Repair::Written, 4).await;
            assert_eq!(case.world.row_agent(case.chat), Some(case.new.agent));
        } else {
            case.ended(Repair::Lost, 4).await;
            assert_eq!(case.world.row(case.chat), Some(last));
            // The row is known to be behind: the next call dials the newer target and repairs the
            // row.
            let (cost, bound) = case.next().await;
            assert_eq!((cost, bound.unwrap().agent), (counts(1, 0, 0, 1), case.new.agent));
            assert_eq!(case.world.row_agent(case.chat), Some(case.new.agent));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_winner_without_a_generation_is_adopted_with_a_doubt() {
    let case = Losing::new(None).await;
    let other = case.world.agent(None);
    let row = case.other_writes(&other).await;
    case.ended(Repair::Lost, 1).await;
    assert_eq!(case.world.row(case.chat), Some(row));
    // The target is dialed and validated at once.
    let (cost, bound) = case.next().await;
    assert_eq!((cost, bound.unwrap().agent), (counts(1, 1, 0, 0), other.agent));
    // The resolver's answer is later than the row, so it is written into the row.
    let (cost, bound) = case.next().await;
    assert_eq!((cost, bound.unwrap().agent), (counts(1, 0, 0, 1), case.new.agent));
    assert_eq!(case.world.row_agent(case.chat), Some(case.new.agent));
}

#[tokio::test(start_paused = true)]
async fn a_winner_without_a_generation_that_the_resolver_confirms_stays() {
    let case = Losing::new(None).await;
    let other = case.world.agent(None);
    case.other_writes(&other).await;
    case.world.runs(case.ws, &other);
    case.ended(Repair::Lost, 1).await;
    let (cost, bound) = case.next().await;
    assert_eq!((cost, bound.unwrap().agent), (counts(1, 1, 0, 0), other.agent));
    for _ in 0..3 {
        let (cost, bound) = case.next().await;
        assert_eq!(
            (cost, bound.unwrap().outcome().kind.clone()),
            (counts(1, 0, 0, 0), OutcomeKind::Reused)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_winner_without_a_generation_is_in_doubt_even_without_an_earlier_question() {
    let world = World::new();
    let ws = workspace();
    let (named, other) = (world.agent(None), world.agent(None));
    world.runs(ws, &other);
    let store = world.store.elsewhere();
    // The known target comes from the row of one session; another session is unbound.
    let (bound, chat) = (session(), session());
    let row = NewBinding::new(bound, ws, Some(Arc::new(named.clone())));
    assert!(matches!(store.create(row).await.unwrap(), Swap::Applied(_)));
    let unbound = store.retarget(chat, ws).await.unwrap();
    let layer = world.layer();
    let dial = world.dial(&layer);
    call(&dial, bound).await.unwrap();
    world.store.on_writes(Fault::Slow(ms(100)));
    let before = world.counts();
    let first = call(&dial, chat).await.unwrap();
    assert_eq!(first.agent, named.agent);
    let winner = NewBinding::new(chat, ws, Some(Arc::new(other.clone())));
    assert!(matches!(
        store.compare_and_swap(unbound.revision, winner).await.unwrap(),
        Swap::Applied(_)
    ));
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(
        (first.outcome().repair(), world.counts() - before),
        (Repair::Lost, counts(1, 0, 1, 1))
    );
    settled().await;

    let before = world.counts();
    assert_eq!(call(&dial, chat).await.unwrap().agent, other.agent);
    settled().await;
    assert_eq!(world.counts() - before, counts(1, 1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_repair_whose_answer_was_lost_leaves_the_row_as_after_once() {
    let case = Losing::new(Some(3)).await;
    // The first attempt is slow and still under way.
    at(case.begin, ms(50)).await;
    case.world.store.on_writes(Fault::LostAnswer);
    case.ended(Repair::Written, 1).await;

    let mut old = case.new;
    for writes in [Writes::Own, Writes::Group] {
        let newer = writes.replaced(&case.world, case.ws, &old, Does::Hang);
        case.world.store.on_writes(Fault::LostAnswer);
        let before = case.world.counts();
        let bound = call(&case.world.dial(&case.layer), case.chat).await.unwrap();
        assert_eq!(case.layer.bindings().flush().await, 1);
        let row = case.world.row(case.chat).unwrap();
        assert_eq!(
            (row.target.as_deref(), bound.outcome().repair()),
            (Some(&newer), Repair::Retrying)
        );
        // The repeated statement finds the target in the row.
        case.world.store.on_writes(Fault::None);
        tokio::time::sleep(ms(150)).await;
        assert_eq!(
            (case.world.row(case.chat), bound.outcome().repair()),
            (Some(row), Repair::Written)
        );
        assert_eq!(case.world.counts() - before, counts(2, 1, 0, 2));
        old = newer;
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_waits_for_its_repair_follows_a_winner_of_a_greater_generation() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.builder().repair(RepairMode::BeforeReturn).build().unwrap();
    let chat = world.bind(&layer, ws).await;
    world.replace(ws, &old, Does::Hang);
    let newest = world.agent(Some(2));
    world.store.on_writes(Fault::Slow(ms(100)));

    let (before, begin) = (world.counts(), Instant::now());
    let under_way = crate::start(&world.dial(&layer), chat);
    at(begin, ms(300)).await;
    let row = world.row(chat).unwrap();
    let new = NewBinding::new(chat, ws, Some(Arc::new(newest.clone())));
    let Swap::Applied(row) =
        world.store.elsewhere().compare_and_swap(row.revision, new).await.unwrap()
    else {
        panic!("the row has changed")
    };
    let bound = under_way.await.unwrap().unwrap();
    assert_eq!((begin.elapsed(), bound.agent), (ms(350), newest.agent));
    assert_eq!((world.counts() - before, world.row(chat)), (counts(3, 1, 0, 1), Some(row)));
    assert_eq!((world.live_dials(), world.live_connections()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_waits_for_its_repair_follows_a_command() {
    for writes in [Writes::Own, Writes::Group] {
        let world = World::new();
        let (ws, old) = world.workspace();
        let (other, target) = world.workspace();
        let layer = world.builder().repair(RepairMode::BeforeReturn).build().unwrap();
        let chat = world.bind(&layer, ws).await;
        writes.replaced(&world, ws, &old, Does::Hang);
        world.store.on_writes(Fault::Slow(ms(100)));

        let begin = Instant::now();
        let under_way = crate::start(&world.dial(&layer), chat);
        at(begin, ms(300)).await;
        world.store.on_writes(Fault::None);
        layer.bindings().retarget(chat, other).await.unwrap();
        let bound = under_way.await.unwrap().unwrap();
        assert_eq!(
            (begin.elapsed(), bound.agent, bound.workspace()),
            (ms(350), target.agent, other),
            "{writes:?}"
        );
        assert_eq!((world.live_dials(), world.live_connections()), (0, 1));
        // The row holds the target of the command.
        let row = world.row(chat).unwrap();
        assert_eq!((row.workspace, row.target.as_deref()), (other, Some(&target)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_waits_only_for_the_first_attempt_of_its_repair() {
    for writes in [Writes::Own, Writes::Group] {
        for (fault, after, repair) in [
            (Fault::Slow(ms(100)), ms(100), Repair::Written),
            (Fault::Unavailable, ms(0), Repair::Retrying),
            (Fault::Hang, ms(5_000), Repair::Retrying),
        ] {
            let world = World::new();
            let (ws, old) = world.workspace();
            let layer = world.builder().repair(RepairMode::BeforeReturn).build().unwrap();
            let chat = world.bind(&layer, ws).await;
            writes.replaced(&world, ws, &old, Does::Fail(ms(0)));
            world.store.on_writes(fault);
            let begin = Instant::now();
            let bound = call(&world.dial(&layer), DialSession::new(chat)).await.unwrap();
            assert_eq!((begin.elapsed(), bound.outcome().repair()), (after, repair), "{writes:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_from_before_a_command_does_not_count_as_the_repair_of_its_row() {
    // The write was executed, and its answer is under way.
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.layer();
    let chat = world.bind(&layer, ws).await;
    let new = world.replace(ws, &old, Does::Hang);
    world.store.on_writes(Fault::SlowAnswer(ms(100)));
    let first = call(&world.dial(&layer), chat).await.unwrap();
    settled().await;
    assert_eq!(world.row_agent(chat), Some(new.agent));
    world.store.on_writes(Fault::None);
    layer.bindings().unbind(chat).await.unwrap();
    let before = world.counts();
    let second = call(&world.dial(&layer), chat).await.unwrap();
    assert_eq!((second.agent, &second.outcome().kind), (new.agent, &OutcomeKind::FirstBind));
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!([first, second].map(|bound| bound.outcome().repair()), [Repair::Written; 2]);
    assert_eq!(world.row_agent(chat), Some(new.agent), "bound again");
    assert_eq!(world.counts() - before, counts(1, 1, 0, 1));
}
