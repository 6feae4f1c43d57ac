//! What is said, asked and shown of whole workspaces.

use super::Bindings;
use crate::{
    AgentId, Epoch, Error, ErrorKind, Resolution, SessionId, Target, WorkspaceId,
    answer::{Answer, Denied},
    cache::usage,
    error::Cause,
    hints::About,
    replicas::{follow, holders::ask_for_holders},
};
use std::sync::Arc;
use tokio::time::Instant;

/// A session that is in use, as [`Bindings::in_use`] shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionInUse {
    /// Which session.
    pub session: SessionId,
    /// What it is connected to.
    pub target: Arc<Target>,
    /// How many of its connections, and of other guards, are held.
    pub connections: u32,
    /// Since when the session has been in use. To the second, and perhaps too early by one interval
    /// of [`refresh_interval`](crate::BoundAgentBuilder::refresh_interval) or
    /// [`usage_interval`](crate::BoundAgentBuilder::usage_interval): no call that is answered from
    /// memory reads a clock.
    pub since: Instant,
}

impl Bindings {
    /// A hint that the agent of a workspace may have been replaced: the next call of each of its
    /// sessions validates at once, in parallel with its dial, and so does every call under way. If
    /// a connection into the workspace is held, or [`superseded`](crate::BoundHandle::superseded)
    /// is waited for, the resolver is asked at once. In this process; the others are not told.
    ///
    /// Better, if the new target is known: [`announce`](Self::announce).
    pub fn revalidate_workspace(&self, workspace: WorkspaceId) {
        // A workspace that nobody here uses has nothing to be doubted: its rows are read when they
        // are needed.
        if let Some(place) = self.shared.workspaces.find(workspace) {
            place.doubt(Instant::now());
            ask_for_holders(&self.shared, &place);
        }
    }

    /// Makes known what serves a workspace now, for a control plane that has just built it. The
    /// target is believed as a resolver's answer to a question that began now:
    ///
    /// * calls under way, and handles that wait to be
    ///   [`superseded`](crate::BoundHandle::superseded), move to it at once, and no call of this
    ///   process dials the former agent from here on, whether or not its session was known here;
    /// * bindings are written once the new agent has answered a call, and never before;
    /// * other processes are told by [`hints`](crate::hints), and ask their resolver.
    ///
    /// A target that is older than what is known (by its generation) is ignored; returns `false`
    /// then. Otherwise the resolver should say the same by now: without generations, its next
    /// answer is believed again.
    ///
    /// After a [reset](Self::reset_workspace) that this process learns of later, the target is
    /// forgotten, and the resolver is asked: the numbers of the two may not be comparable. So it is
    /// in a workspace that was reset before, if this process has read no row of it yet.
    ///
    /// This asks nobody and writes nothing. The last 10,000 workspaces that were announced are
    /// remembered even if nobody here uses them.
    ///
    /// ```
    /// # use tower_bound_agent::{AgentId, Bindings, Target, WorkspaceId};
    /// # fn built(bindings: &Bindings, workspace: WorkspaceId, agent: AgentId) {
    /// bindings.announce(workspace, Target::new(agent).with_generation(8).with_address("10.0.0.7:9000"));
    /// # }
    /// ```
    pub fn announce(&self, workspace: WorkspaceId, target: Target) -> bool {
        let (now, generation) = (Instant::now(), target.generation);
        let place = self.shared.workspaces.keep(workspace);
        let believed = place.announced(Arc::new(target), now);
        if believed {
            // Without a row nobody here knows the epoch.
            self.shared.tell(About::Workspace { workspace, generation, epoch: None });
        }
        believed
    }

    /// Asks the resolver what serves a workspace now, in a question that begins now and is shared
    /// with everybody who asks at this moment, acts on the answer as on every other one (a newer
    /// target supersedes the known one), and returns it.
    ///
    /// # Errors
    ///
    /// [`Resolver`](ErrorKind::Resolver) if the resolver failed, did not answer in time, or said
    /// less than what is known (an earlier generation); [`Closed`](ErrorKind::Closed).
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time. The question goes on, and what it brings is known.
    pub async fn validate_workspace(&self, workspace: WorkspaceId) -> Result<Resolution, Error> {
        self.open(None)?;
        follow::ensure(&self.shared);
        let shared = &self.shared;
        let mut cause = None;
        // Twice: the first answer may be overtaken by what others learn meanwhile.
        for _ in 0..2 {
            let place = shared.workspaces.place(workspace, Epoch::default());
            let Some(validated) = shared.validate_since(&place, Instant::now()).await else {
                cause = Some(Cause::TaskEnded.shared());
                break;
            };
            if validated.is_overtaken(&place) {
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

    /// The sessions of a workspace that are in use in this process: those that hold a connection
    /// ([`Bound`](crate::Bound)), or an [`InUse`](crate::InUse) guard. The HTTP client of this
    /// crate holds one for each request until the end of the response's body, or of the tunnel that
    /// it was upgraded to. In no particular order.
    ///
    /// Costs a look at the sessions of the workspace that were used of late.
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

    /// Resolves when no session is in use with this agent of the workspace in this process: its
    /// connections, and the guards of [`in_use`](Self::in_use), are gone. At once if there are
    /// none. Then the agent may be stopped without breaking anything that this process does.
    ///
    /// It keeps nobody from connecting: name another target first ([`announce`](Self::announce), or
    /// the resolver). It waits for as long as it takes; bound it with [`tokio::time::timeout`].
    /// Idle connections of the HTTP client do not count.
    ///
    /// # Cancel safety
    ///
    /// It only waits, and may be dropped at any time.
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
