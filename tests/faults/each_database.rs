//! The tests, compiled for each database.

use super::engine::*;
use crate::scene::*;
use futures_util::future::join_all;
use std::{collections::BTreeMap, sync::Arc};
use support::{own_server::OwnServer, *};
use tokio::time::Duration;
use tower_bound_agent::{
    Binding, BoundAgentBuilder, BoundAgentLayer, SessionId, Target, WorkspaceId,
    store::{BindingStore, NewBinding, Swap},
};

mod access_denied;
mod connection_lost;
mod frozen;
mod killed;
mod locked_rows;
mod pool_exhausted;
mod resets;

/// Between a wait that is due and what follows it, on a busy machine.
const SLACK: Duration = Duration::from_secs(2);

/// A server with a table, and a world whose agents answer after a millisecond.
pub(super) struct Case {
    pub(super) server: OwnServer,
    _behind: Option<OwnServer>,
    pub(super) world: World,
    /// Of the test itself.
    pub(super) reader: Store,
}

impl Case {
    /// `None` where there is no server.
    pub(super) async fn new() -> Option<Self> {
        let (server, behind) = servers()?;
        let reader = store(pool(&options(server.folder())));
        until_true("the server takes connections", async || reader.pool().acquire().await.is_ok())
            .await;
        reader.set_up().await.unwrap();
        Some(Self { server, _behind: behind, world: World::new(), reader })
    }

    pub(super) fn options(&self) -> Options {
        options(self.server.folder())
    }

    /// A layer over a store, with a long delay, so that a busy machine is not taken for a slow
    /// agent, and without reads that no call asks for.
    pub(super) fn builder(&self, store: &Tap<Store>) -> BoundAgentBuilder {
        BoundAgentLayer::builder(store.clone(), self.world.resolver())
            .validation_delay(Duration::from_secs(1))
            .refresh_interval(None)
    }

    /// A workspace whose agent takes a moment, with bound and cached sessions.
    pub(super) async fn workspace(&self, layer: &BoundAgentLayer, sessions: usize) -> Workspace {
        let (id, target) = self.world.workspace();
        self.world.does(&target, Does::Answer(ms(1)));
        let mut all = Vec::new();
        for _ in 0..sessions {
            all.push(self.world.bind(layer, id).await);
        }
        Workspace { id, target, sessions: all }
    }

    /// It has a row, which no layer has read.
    async fn cold_session(&self, workspace: &Workspace) -> SessionId {
        let cold = session();
        let new = NewBinding::new(cold, workspace.id, Some(Arc::new(workspace.target.clone())));
        assert!(matches!(self.reader.create(new).await, Ok(Swap::Applied(_))));
        cold
    }

    /// The workspace has another agent by now, and the old one does as told from now on.
    pub(super) fn rebuild(&self, workspace: &Workspace, old_does: Does) -> Target {
        let new =
            self.world.agent(workspace.target.generation.map(|generation| generation.get() + 1));
        self.world.does(&new, Does::Answer(ms(1)));
        // In this sequence, so that no call finds the old agent dead while the resolver still names
        // it.
        self.world.runs(workspace.id, &new);
        self.world.does(&workspace.target, old_does);
        new
    }

    async fn rows(&self, sessions: &[SessionId]) -> BTreeMap<SessionId, Binding> {
        let rows = self.reader.load_many(sessions).await.unwrap();
        rows.into_iter().map(|row| (row.session, row)).collect()
    }

    /// Each of these rows names the new agent, and was written once since then.
    async fn each_was_written_once(
        &self,
        before: &BTreeMap<SessionId, Binding>,
        workspace: &Workspace,
        new: &Target,
    ) {
        let after = self.rows(&workspace.sessions).await;
        for session in &workspace.sessions {
            let (before, after) = (&before[session], &after[session]);
            assert_eq!((after.workspace, after.target.as_deref()), (workspace.id, Some(new)));
            assert_eq!(after.revision.get(), before.revision.get() + 1);
            assert_eq!(after.previous.map(|previous| previous.agent), Some(workspace.target.agent));
        }
    }
}

/// A workspace, its agent as the rows have it, and its sessions.
pub(super) struct Workspace {
    pub(super) id: WorkspaceId,
    pub(super) target: Target,
    pub(super) sessions: Vec<SessionId>,
}

/// That does not wait for long.
fn pool_options() -> PoolOptions {
    PoolOptions::new().max_connections(10).acquire_timeout(Duration::from_secs(1))
}

pub(super) fn pool(options: &Options) -> Pool {
    pool_options().connect_lazy_with(options.clone())
}
