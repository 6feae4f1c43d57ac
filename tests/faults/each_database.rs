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

/// The tolerance between the end of a wait and the next step on a busy machine.
const SLACK: Duration = Duration::from_secs(2);

/// A server with a table, and a world whose agents answer after a millisecond.
pub(super) struct Case {
    pub(super) server: OwnServer,
    _behind: Option<OwnServer>,
    pub(super) world: World,
    /// The test's own store.
    pub(super) reader: Store,
}

impl Case {
    /// Returns `None` if no server is available.
    pub(super) async fn new() -> Option<Self> {
        let (server, behind) = servers()?;
        let reader = store(pool(&options(server.folder())));
        until_true("the server accepts connections", async || {
            reader.pool().acquire().await.is_ok()
        })
        .await;
        reader.set_up().await.unwrap();
        Some(Self { server, _behind: behind, world: World::new(), reader })
    }

    pub(super) fn options(&self) -> Options {
        options(self.server.folder())
    }

    /// Returns a builder over a store with a long validation delay, so that a busy machine is not
    /// mistaken for a slow agent, and without background reads.
    pub(super) fn builder(&self, store: &Tap<Store>) -> BoundAgentBuilder {
        BoundAgentLayer::builder(store.clone(), self.world.resolver())
            .validation_delay(Duration::from_secs(1))
            .refresh_interval(None)
    }

    /// Returns a workspace whose agent answers after a moment, with bound and cached sessions.
    pub(super) async fn workspace(&self, layer: &BoundAgentLayer, sessions: usize) -> Workspace {
        let (id, target) = self.world.workspace();
        self.world.does(&target, Does::Answer(ms(1)));
        let mut all = Vec::new();
        for _ in 0..sessions {
            all.push(self.world.bind(layer, id).await);
        }
        Workspace { id, target, sessions: all }
    }

    /// Returns a session with a row that no layer has read.
    async fn cold_session(&self, workspace: &Workspace) -> SessionId {
        let cold = session();
        let new = NewBinding::new(cold, workspace.id, Some(Arc::new(workspace.target.clone())));
        assert!(matches!(self.reader.create(new).await, Ok(Swap::Applied(_))));
        cold
    }

    /// Gives the workspace another agent, and sets the behaviour of the old one.
    pub(super) fn rebuild(&self, workspace: &Workspace, old_does: Does) -> Target {
        let new =
            self.world.agent(workspace.target.generation.map(|generation| generation.get() + 1));
        self.world.does(&new, Does::Answer(ms(1)));
        // The sequence prevents that a call finds the old agent dead while the resolver still names
        // it.
        self.world.runs(workspace.id, &new);
        self.world.does(&workspace.target, old_does);
        new
    }

    async fn rows(&self, sessions: &[SessionId]) -> BTreeMap<SessionId, Binding> {
        let rows = self.reader.load_many(sessions).await.unwrap();
        rows.into_iter().map(|row| (row.session, row)).collect()
    }

    /// Asserts that each row names the new agent and was written once since.
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

/// A workspace, its agent according to the rows, and its sessions.
pub(super) struct Workspace {
    pub(super) id: WorkspaceId,
    pub(super) target: Target,
    pub(super) sessions: Vec<SessionId>,
}

/// Returns options of a pool with a short acquire timeout.
fn pool_options() -> PoolOptions {
    PoolOptions::new().max_connections(10).acquire_timeout(Duration::from_secs(1))
}

pub(super) fn pool(options: &Options) -> Pool {
    pool_options().connect_lazy_with(options.clone())
}
