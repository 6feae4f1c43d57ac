//! News for held connections and waiting handles: the background refresh, doubts, announcements,
//! and sessions in use.

mod announced;
mod check;
mod follow;
mod follower;
mod hints;
mod in_use;
mod resets;
mod scripted_bus;
mod waiting;

use std::sync::{Arc, Mutex};
use support::*;
use tokio::{
    task::{JoinHandle, yield_now},
    time::{Duration, Instant, sleep},
};
use tower_bound_agent::{
    BoundAgentBuilder, BoundAgentLayer, BoundHandle, DialSession, SessionId, Target, WorkspaceId,
    store::{BindingStore, NewBinding},
};

/// A process: a layer of its own over the world's store.
struct Process {
    layer: BoundAgentLayer,
    dial: Dial,
}

impl Process {
    fn new(world: &World, set: impl FnOnce(BoundAgentBuilder) -> BoundAgentBuilder) -> Self {
        let layer = set(world.builder().refresh_interval(None)).build().unwrap();
        let dial = world.dial(&layer);
        Self { layer, dial }
    }

    /// Returns a process that refreshes its rows every 30 s.
    fn checking(world: &World) -> Self {
        Self::new(world, |builder| builder.refresh_interval(Duration::from_secs(30)))
    }

    async fn call(&self, ask: impl Into<DialSession>) -> tower_bound_agent::Bound<Conn> {
        call(&self.dial, ask).await.unwrap()
    }

    fn bindings(&self) -> tower_bound_agent::Bindings {
        self.layer.bindings()
    }
}

/// Runs all tasks as far as they can run without the clock.
async fn settle() {
    for _ in 0..50 {
        yield_now().await;
    }
}

/// Returns sessions that are bound and that the process has used.
async fn used(
    world: &World,
    process: &Process,
    workspace: WorkspaceId,
    target: &Target,
    n: usize,
) -> Vec<SessionId> {
    let mut chats = Vec::new();
    for _ in 0..n {
        let chat = session();
        let new = NewBinding::new(chat, workspace, Some(Arc::new(target.clone())));
        let _ = world.store.elsewhere().create(new).await.unwrap();
        process.call(chat).await;
        chats.push(chat);
    }
    chats
}

/// Waits until a binding is superseded, and returns the time.
fn watch(handle: &BoundHandle) -> JoinHandle<Instant> {
    let superseded = handle.superseded();
    tokio::spawn(async move {
        superseded.await;
        Instant::now()
    })
}
