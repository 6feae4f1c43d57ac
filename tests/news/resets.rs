//! Two processes over one store, without hints: one resets a workspace while the other knows
//! greater generations.

use support::*;
use tower_bound_agent::{
    BoundAgentLayer, DialSession, Repair, SessionId, Target, WorkspaceId,
    store::{BindingStore, MemoryStore},
};

/// A process: a layer over its own connection to the store.
struct Process {
    store: Tap<MemoryStore>,
    layer: BoundAgentLayer,
    dial: Dial,
}

impl Process {
    fn new(world: &World) -> Self {
        let store = Tap::over(world.store.elsewhere().clone());
        let layer = BoundAgentLayer::builder(store.clone(), world.resolver())
            .refresh_interval(None)
            .build()
            .unwrap();
        let dial = world.dial(&layer);
        Self { store, layer, dial }
    }

    async fn call(&self, ask: impl Into<DialSession>) -> tower_bound_agent::Bound<Conn> {
        call(&self.dial, ask).await.unwrap()
    }

    async fn bind(&self, ws: WorkspaceId) -> SessionId {
        let chat = session();
        self.call(DialSession::new(chat).in_workspace(ws)).await;
        self.written().await;
        chat
    }

    async fn written(&self) {
        assert_eq!(self.layer.bindings().flush().await, 0);
    }
}

/// A workspace at a generation, both processes, and a session that both have in their caches.
async fn scene(world: &World, generation: i64) -> (WorkspaceId, Target, [Process; 2], SessionId) {
    let ws = workspace();
    let old = world.agent(Some(generation));
    world.runs(ws, &old);
    let processes = [Process::new(world), Process::new(world)];
    let chat = processes[0].bind(ws).await;
    processes[1].call(chat).await;
    (ws, old, processes, chat)
}

/// Restarts the resolver's generations. The old agent still answers.
fn restart(world: &World, ws: WorkspaceId) -> Target {
    let restarted = world.agent(Some(1));
    world.runs(ws, &restarted);
    restarted
}

/// Asserts that all sessions reach the agent, in both processes and in a new one.
async fn all_reach(world: &World, processes: &[Process; 2], chats: &[SessionId], agent: &Target) {
    let fresh = Process::new(world);
    for chat in chats {
        for process in [&processes[0], &processes[1], &fresh] {
            assert_eq!(process.call(*chat).await.agent, agent.agent);
            process.written().await;
            assert_eq!(world.row(*chat).unwrap().target.as_deref(), Some(agent));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_knows_greater_generations_does_not_undo_a_reset() {
    let world = World::new();
    let (ws, _, [a, b], chat) = scene(&world, 100).await;
    let restarted = restart(&world, ws);
    assert_eq!(b.layer.bindings().reset_workspace(ws).await.unwrap(), 1);
    let other = b.bind(ws).await;
    // The first row that the process reads reveals the reset.
    assert_eq!(a.call(other).await.agent, restarted.agent);
    all_reach(&world, &[a, b], &[chat, other], &restarted).await;
}

#[tokio::test(start_paused = true)]
async fn a_group_repair_that_is_carried_out_after_the_reset_writes_nothing() {
    let world = World::new();
    let (ws, old, [a, b], chat) = scene(&world, 99).await;
    world.rebuild(ws, &old, Does::Fail(ms(0)));
    a.store.on_writes(Fault::Slow(ms(100)));
    let bound = a.call(chat).await;
    assert_eq!(bound.outcome().repair(), Repair::Pending);
    let restarted = restart(&world, ws);
    assert_eq!(b.layer.bindings().reset_workspace(ws).await.unwrap(), 1);
    b.call(chat).await;
    b.written().await;
    assert_eq!(world.row(chat).unwrap().target.as_deref(), Some(&restarted));

    a.written().await;
    a.store.on_writes(Fault::None);
    assert_eq!(world.row(chat).unwrap().target.as_deref(), Some(&restarted));
    let other = b.bind(ws).await;
    all_reach(&world, &[a, b], &[other, chat], &restarted).await;
}

#[tokio::test(start_paused = true)]
async fn a_first_bind_that_races_with_the_reset_loses_and_the_next_call_asks_again() {
    let world = World::new();
    let (ws, old, [a, b], chat) = scene(&world, 100).await;
    let first = session();
    b.layer.bindings().retarget(first, ws).await.unwrap();
    world.does(&old, Does::Answer(ms(100)));
    let dial = a.dial.clone();
    let under_way = tokio::spawn(async move { call(&dial, first).await.unwrap() });
    tokio::time::sleep(ms(50)).await;
    let restarted = restart(&world, ws);
    assert_eq!(b.layer.bindings().reset_workspace(ws).await.unwrap(), 2);
    let bound = under_way.await.unwrap();
    a.written().await;
    assert_eq!((bound.agent, bound.outcome().repair()), (old.agent, Repair::Lost));
    assert_eq!(a.call(first).await.agent, restarted.agent);
    all_reach(&world, &[a, b], &[first, chat], &restarted).await;
}

#[tokio::test(start_paused = true)]
async fn a_reset_of_a_workspace_without_rows_holds_for_later_rows() {
    let world = World::new();
    let (ws, _, [a, b], chat) = scene(&world, 100).await;
    world.store.elsewhere().forget(chat, None).await.unwrap();
    let restarted = restart(&world, ws);
    assert_eq!(b.layer.bindings().reset_workspace(ws).await.unwrap(), 0);
    let other = b.bind(ws).await;
    assert_eq!(a.call(other).await.agent, restarted.agent);
    all_reach(&world, &[a, b], &[other], &restarted).await;
}

#[tokio::test(start_paused = true)]
async fn a_first_bind_in_a_workspace_that_was_reset_before_asks_again_once_it_knows_the_epoch() {
    let world = World::new();
    let (ws, _, [_, b], _) = scene(&world, 100).await;
    let restarted = restart(&world, ws);
    b.layer.bindings().reset_workspace(ws).await.unwrap();
    // A process that has read no row of the workspace cannot know whether an answer is older than
    // the reset.
    let fresh = Process::new(&world);
    let before = world.counts();
    let chat = session();
    let bound = fresh.call(DialSession::new(chat).in_workspace(ws)).await;
    fresh.written().await;
    assert_eq!((bound.agent, world.row_agent(chat)), (restarted.agent, Some(restarted.agent)));
    let did = world.counts() - before;
    assert_eq!((did.d, did.v, fresh.store.writes()), (2, 2, 2));
    // From here on it knows the epoch.
    let other = session();
    fresh.call(DialSession::new(other).in_workspace(ws)).await;
    fresh.written().await;
    assert_eq!((world.row_agent(other), fresh.store.writes()), (Some(restarted.agent), 3));
}

/// The same over a file, with a store of its own for each process.
#[cfg(feature = "sqlite")]
#[tokio::test]
async fn over_a_file_a_process_that_knows_greater_generations_does_not_undo_a_reset() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bindings.db");
    let mut stores = Vec::new();
    for _ in 0..8 {
        stores.push(tower_bound_agent::store::SqliteStore::open(&path).await.unwrap());
    }
    let next = std::sync::atomic::AtomicUsize::new(0);
    let store =
        || stores[next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % stores.len()].clone();
    support::resets::greater_generations_are_not_written_back(store).await;
}
