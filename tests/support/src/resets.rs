//! Two processes without hints over one store in a database, and a workspace that one of them
//! resets.

use crate::*;
use tokio::time::Duration;
use tower_bound_agent::{
    Bound, BoundAgentLayer, DialSession, SessionId, Target, WorkspaceId, store::BindingStore,
};

/// A process: a layer over its own connection to the store.
pub struct Process {
    pub layer: BoundAgentLayer,
    dial: Dial,
}

impl Process {
    pub fn new<St: BindingStore>(world: &World, store: St) -> Self {
        let builder = BoundAgentLayer::builder(store, world.resolver()).refresh_interval(None);
        // The delay is long, so that a busy machine is not mistaken for a slow agent.
        let layer = builder.validation_delay(Duration::from_secs(2)).build().unwrap();
        let dial = world.dial(&layer);
        Self { layer, dial }
    }

    pub async fn call(&self, ask: impl Into<DialSession>) -> Bound<Conn> {
        call(&self.dial, ask).await.unwrap()
    }

    pub async fn bind(&self, ws: WorkspaceId) -> SessionId {
        let chat = session();
        self.call(DialSession::new(chat).in_workspace(ws)).await;
        self.written().await;
        chat
    }

    pub async fn written(&self) {
        assert_eq!(self.layer.bindings().flush().await, 0);
    }
}

/// Makes the workspace run an agent of this generation.
pub fn runs(world: &World, ws: WorkspaceId, generation: i64) -> Target {
    let target = world.agent(Some(generation));
    world.runs(ws, &target);
    target
}

/// Asserts that all sessions reach the agent, in both processes and in a new one, and that their
/// rows name it.
pub async fn all_reach<St: BindingStore>(
    world: &World,
    store: impl Fn() -> St,
    processes: [&Process; 2],
    chats: &[SessionId],
    agent: &Target,
) {
    let fresh = Process::new(world, store());
    for chat in chats {
        for process in [processes[0], processes[1], &fresh] {
            assert_eq!(process.call(*chat).await.agent, agent.agent);
            process.written().await;
            assert_eq!(store().load(*chat).await.unwrap().unwrap().target.as_deref(), Some(agent));
        }
    }
}

/// Asserts that a process which knows generation 100 does not undo a reset: the other process
/// resets and binds generation 1. The agent of generation 100 still answers, and the first process
/// receives no hint.
pub async fn greater_generations_are_not_written_back<St: BindingStore>(store: impl Fn() -> St) {
    let world = World::new();
    let (a, b) = (Process::new(&world, store()), Process::new(&world, store()));
    let ws = workspace();
    let old = runs(&world, ws, 100);
    let (chat, idle) = (a.bind(ws).await, a.bind(ws).await);
    b.call(chat).await;
    let restarted = runs(&world, ws, 1);
    assert_eq!(b.layer.bindings().reset_workspace(ws).await.unwrap(), 2);
    assert_eq!(b.call(chat).await.agent, restarted.agent);
    b.written().await;
    // The process still serves its cached row, and writes nothing.
    assert_eq!(a.call(chat).await.agent, old.agent);
    a.written().await;
    assert_eq!(store().load(chat).await.unwrap().unwrap().target.as_deref(), Some(&restarted));
    // A row that it creates from its known target is not bound to that target, so it asks again.
    let first = session();
    assert_eq!(a.call(DialSession::new(first).in_workspace(ws)).await.agent, restarted.agent);
    a.written().await;
    all_reach(&world, store, [&a, &b], &[chat, idle, first], &restarted).await;
}
