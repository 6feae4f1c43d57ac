//! Commands and queries about whole workspaces.

use super::Bindings;
use crate::{
    AgentId, DoubtReason, Epoch, Error, ErrorKind, Resolution, SessionId, Target, WorkspaceId,
    answer::{Answer, Denied},
    cache::usage,
    error::Cause,
    hints::About,
    replicas::{follow, holders::ask_for_holders},
};
use std::sync::Arc;
use tokio::time::Instant;

/// A session that is in use, as [`Bindings::in_use`] returns it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionInUse {
    /// The session.
    pub session: SessionId,
    /// The target of its connections.
    pub target: Arc<Target>,
    /// The number of its connections and [`InUse`](crate::InUse) guards.
    pub connections: u32,
    /// The start of the session's present use, to the second.
    ///
    /// It may be too early by one [`refresh_interval`](crate::BoundAgentBuilder::refresh_interval)
    /// or [`usage_interval`](crate::BoundAgentBuilder::usage_interval), because a call on the fast
    /// path does not read a clock.
    pub since: Instant,
}

impl Bindings {
    /// Raises a doubt about the agent of a workspace, which may have been replaced.
    ///
    /// The next call of each of its sessions, and every call under way, asks the resolver at once
    /// while it dials. If a connection into the workspace is held, or a handle waits in
    /// [`superseded`](crate::BoundHandle::superseded), the resolver is asked at once.
    ///
    /// The doubt stays in this process, and no hint is sent. If the new target is known, use
    /// [`announce`](Self::announce) instead.
    pub fn revalidate_workspace(&self, workspace: WorkspaceId) {
        // A workspace without a state here has no cached rows: its rows are read when they are
        // needed.
        if let Some(workspace_state) = self.shared.workspaces.find(workspace) {
            workspace_state.doubt(DoubtReason::Requested, Instant::now());
            ask_for_holders(&self.shared, &workspace_state);
        }
    }

    /// Announces the target that serves a workspace now. Returns `false` if the target is older
    /// than the known one by its generation, and is ignored.
    ///
    /// This is for a control plane that has just built the workspace. The target counts as the
    /// resolver's answer to a question that begins now:
    ///
    /// * Calls under way, and handles that wait in [`superseded`](crate::BoundHandle::superseded),
    ///   move to it at once. From then on, no call of this process dials the former agent, even for
    ///   a session that this process did not know before.
    /// * Bindings are written after the new agent has answered a call, and never before.
    /// * Other processes are told by [`hints`](crate::hints), and ask their resolver.
    ///
    /// The resolver should know the target by then: without generations, its next answer replaces
    /// the announced target.
    ///
    /// If this process learns later of a [reset](Self::reset_workspace) of the workspace, it drops
    /// the target and asks the resolver, because generations of two epochs cannot be compared. The
    /// same happens in a workspace that was reset before, if this process has read none of its rows
    /// yet.
    ///
    /// An announcement asks and writes nothing. The last 10,000 announced workspaces are remembered
    /// even if this process does not use them.
    ///
    /// ```
    /// # use tower_bound_agent::{AgentId, Bindings, Target, WorkspaceId};
    /// # fn built(bindings: &Bindings, workspace: WorkspaceId, agent: AgentId) {
    /// bindings.announce(workspace, Target::new(agent).with_generation(8).with_address("10.0.0.7:9000"));
    /// # }
    /// ```
    pub fn announce(&self, workspace: WorkspaceId, target: Target) -> bool {
        let (now, generation) = (Instant::now(), target.generation);
        let workspace_state = self.shared.workspaces.remember_announced(workspace);
        let believed = workspace_state.announced(Arc::new(target), now);
        if believed {
            // The epoch is unknown without a row of the workspace.
            self.shared.tell(About::Workspace { workspace, generation, epoch: None });
        }
        believed
    }

    /// Asks the resolver which target serves a workspace now, and returns its answer.
    ///
    /// The question begins now and is shared with all calls that ask at this moment. The answer has
    /// the same effect as any other validation: a newer target supersedes the known one.
    ///
    /// # Errors
    ///
    /// * [`Resolver`](ErrorKind::Resolver): the resolver failed, did not answer in time, or
    ///   returned an earlier generation than the known one.
    /// * [`Closed`](ErrorKind::Closed): the layer was closed.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped at any time. The question continues, and its answer takes effect.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_bound_agent::{Bindings, Error, Resolution, WorkspaceId};
    /// # async fn example(bindings: Bindings, workspace: WorkspaceId) -> Result<(), Error> {
    /// match bindings.validate_workspace(workspace).await? {
    ///     Resolution::Running(target) => println!("served by {target}"),
    ///     other => println!("{other}"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn validate_workspace(&self, workspace: WorkspaceId) -> Result<Resolution, Error> {
        self.open(None)?;
        follow::ensure(&self.shared);
        let shared = &self.shared;
        let mut cause = None;
        // Twice, because another answer may overtake the first one.
        for _ in 0..2 {
            let workspace_state = shared.workspaces.state(workspace, Epoch::default());
            let Some(validated) = shared.validate_since(&workspace_state, Instant::now()).await
            else {
                cause = Some(Cause::TaskEnded.shared());
                break;
            };
            if validated.is_overtaken(&workspace_state) {
                cause = validated.cause;
                continue;
            }
            return match validated.answer {
                Answer::Running(target) => Ok(Resolution::Running((*target).clone())),
                Answer::Denied(Denied::Starting { retry_after }) => {
                    Ok(Resolution::Starting { retry_after })
                }
                Answer::Denied(Denied::Stopped) => Ok(Resolution::Stopped),
                Answer::Denied(Denied::Gone) => Ok(Resolution::Gone),
                Answer::Unknown | Answer::Overtaken => {
                    cause = validated.cause;
                    break;
                }
            };
        }
        self.open(None)?;
        Err(Error::new(ErrorKind::Resolver).about(workspace).with_validation(cause))
    }

    /// Returns the sessions of a workspace that are in use in this process, in no particular order.
    ///
    /// A session is in use while it holds a connection ([`Bound`](crate::Bound)) or an
    /// [`InUse`](crate::InUse) guard. The HTTP client of this crate holds a guard for each request
    /// until the end of the response's body, or of the tunnel after an upgrade.
    ///
    /// The cost grows with the number of sessions of the workspace that were used recently.
    #[must_use]
    pub fn in_use(&self, workspace: WorkspaceId) -> Vec<SessionInUse> {
        let held = self.shared.usage.held_in(workspace).into_iter();
        held.map(|held| SessionInUse {
            session: held.session,
            target: held.target,
            connections: held.connections,
            since: held.since,
        })
        .collect()
    }

    /// Waits until no session in this process uses this agent of the workspace.
    ///
    /// The future resolves when all connections to the agent, and all [`InUse`](crate::InUse)
    /// guards of them, are gone; at once if there are none. Then the agent can be stopped without
    /// an effect on this process.
    ///
    /// The future does not keep sessions from connecting: first name another target, with
    /// [`announce`](Self::announce) or in the resolver. The wait has no time limit; set one with
    /// [`tokio::time::timeout`]. Idle connections of the HTTP client do not count.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped at any time.
    ///
    /// # Example
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tokio::time::timeout;
    /// # use tower_bound_agent::{AgentId, Bindings, Target, WorkspaceId};
    /// # async fn example(bindings: Bindings, workspace: WorkspaceId, old: AgentId, new: Target) {
    /// bindings.announce(workspace, new);
    /// if timeout(Duration::from_secs(60), bindings.drained(workspace, old)).await.is_err() {
    ///     println!("agent {old} is still in use");
    /// }
    /// # }
    /// ```
    pub fn drained(
        &self,
        workspace: WorkspaceId,
        agent: AgentId,
    ) -> impl Future<Output = ()> + Send + 'static {
        let shared = Arc::clone(&self.shared);
        async move {
            usage::drained(&shared.usage, workspace, agent).await;
        }
    }
}
