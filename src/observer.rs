//! What an application can watch.

use crate::{Outcome, Repair, Resolution, SessionId, Target, WorkspaceId};
use std::{error::Error as StdError, time::Duration};

/// Something that wants to know what happens: metrics, keep-alive, activity tracking, hooks for a rebind.
///
/// One method, called where the event happens: in the call, in a background task, or in the `Drop` of a call's future.
/// So it must return at once, must not block, and must not panic; hand work over to a channel.
///
/// Every `Fn(&Event)` is an observer:
///
/// ```
/// use tower_bound_agent::{Event, Observer};
/// fn accepts(_: impl Observer) {}
/// accepts(|event: &Event<'_>| {
///     if let Event::Switched { session, to, .. } = event {
///         println!("{session} now talks to {}", to.agent);
///     }
/// });
/// ```
///
/// # Feature `tracing`
///
/// Then every event is also one of `tracing`, under `tower_bound_agent`; what happens in a call in its span `bound_agent`. A
/// switch is *info*; a validation that failed and a repair that could not be written are *warn*; every dial and every use is
/// *trace*; the rest is *debug*. So `tower_bound_agent=info` is quiet until something is replaced or breaks.
pub trait Observer: Send + Sync + 'static {
    /// Is told of one event.
    fn observe(&self, event: &Event<'_>);
}

impl<F: Fn(&Event<'_>) + Send + Sync + 'static> Observer for F {
    fn observe(&self, event: &Event<'_>) {
        self(event);
    }
}

/// What has happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A dial has ended.
    #[non_exhaustive]
    Dialed {
        /// Whose dial.
        session: SessionId,
        /// In which workspace.
        workspace: WorkspaceId,
        /// What was dialed.
        target: &'a Target,
        /// How long it was pending.
        took: Duration,
        /// What the dialer said, if it failed.
        error: Option<&'a (dyn StdError + Send + Sync + 'static)>,
    },
    /// The resolver has answered, or failed to.
    #[non_exhaustive]
    Validated {
        /// Of which workspace.
        workspace: WorkspaceId,
        /// How long it took.
        took: Duration,
        /// The answer, or why there is none.
        answer: Result<&'a Resolution, &'a (dyn StdError + Send + Sync + 'static)>,
    },
    /// A session got a connection to another agent than the bound one. Sent after that agent was dialed, so hooks for a
    /// rebind may talk to it.
    #[non_exhaustive]
    Switched {
        /// Whose connection.
        session: SessionId,
        /// In which workspace.
        workspace: WorkspaceId,
        /// What was bound.
        from: &'a Target,
        /// What answered.
        to: &'a Target,
    },
    /// A session's own repair has ended, or has failed and will be tried again.
    #[non_exhaustive]
    Repaired {
        /// Of whose binding.
        session: SessionId,
        /// In which workspace.
        workspace: WorkspaceId,
        /// What was to be written.
        target: &'a Target,
        /// What became of it: written, lost, retrying or failed.
        repair: Repair,
    },
    /// A group repair has ended, or has failed and will be tried again: all bindings of a workspace that were behind.
    #[non_exhaustive]
    WorkspaceRepaired {
        /// Which workspace.
        workspace: WorkspaceId,
        /// What was to be written.
        target: &'a Target,
        /// What became of it: written, lost, retrying or failed.
        repair: Repair,
    },
    /// A connection is returned to its caller.
    #[non_exhaustive]
    Used {
        /// Whose connection.
        session: SessionId,
        /// In which workspace.
        workspace: WorkspaceId,
        /// To what.
        target: &'a Target,
        /// How it was obtained.
        outcome: &'a Outcome,
    },
    /// A caller has reported its connection as stale, and that raised a doubt.
    #[non_exhaustive]
    ReportedStale {
        /// Whose connection.
        session: SessionId,
        /// In which workspace.
        workspace: WorkspaceId,
        /// To what.
        target: &'a Target,
    },
    /// A call was dropped while its dial was pending.
    #[non_exhaustive]
    DroppedInFlight {
        /// Whose call.
        session: SessionId,
        /// In which workspace.
        workspace: WorkspaceId,
        /// What was being dialed.
        target: &'a Target,
        /// How long it had been pending.
        pending: Duration,
    },
}

#[cfg(feature = "tracing")]
pub(crate) fn trace(event: &Event<'_>) {
    use tracing::{debug, info, trace, warn};
    match event {
        Event::Dialed { session, workspace, target, took, error: None } => {
            trace!(%session, %workspace, agent = %target.agent, ?took, "dialed");
        }
        Event::Dialed { session, workspace, target, took, error: Some(error) } => {
            debug!(%session, %workspace, agent = %target.agent, ?took, %error, "dial failed");
        }
        Event::Validated { workspace, took, answer: Ok(answer) } => debug!(%workspace, ?took, ?answer, "validated"),
        Event::Validated { workspace, took, answer: Err(error) } => {
            warn!(%workspace, ?took, %error, "validation failed");
        }
        Event::Switched { session, workspace, from, to } => {
            info!(%session, %workspace, from = %from.agent, to = %to.agent, "switched to another agent");
        }
        Event::Repaired { session, workspace, target, repair: repair @ (Repair::Retrying | Repair::Failed) } => {
            warn!(%session, %workspace, agent = %target.agent, ?repair, "repair not written");
        }
        Event::Repaired { session, workspace, target, repair } => {
            debug!(%session, %workspace, agent = %target.agent, ?repair, "repair");
        }
        Event::WorkspaceRepaired { workspace, target, repair: repair @ (Repair::Retrying | Repair::Failed) } => {
            warn!(%workspace, agent = %target.agent, ?repair, "workspace not repaired");
        }
        Event::WorkspaceRepaired { workspace, target, repair } => {
            debug!(%workspace, agent = %target.agent, ?repair, "workspace repaired");
        }
        Event::Used { session, workspace, target, outcome } => {
            trace!(%session, %workspace, agent = %target.agent, path = ?outcome.path, "connected");
        }
        Event::ReportedStale { session, workspace, target } => {
            debug!(%session, %workspace, agent = %target.agent, "reported stale");
        }
        Event::DroppedInFlight { session, workspace, target, pending } => {
            debug!(%session, %workspace, agent = %target.agent, ?pending, "dropped in flight");
        }
    }
}
