//! What an application can watch.

use crate::{Outcome, OutcomeKind, Repair, Resolution, SessionId, Target, WorkspaceId};
use std::{error::Error as StdError, time::Duration};
use tokio::time::Instant;

/// Something that wants to know what happens: metrics, keep-alive, activity tracking, hooks for a
/// rebind.
///
/// One method, called where the event happens: in the call, in a background task, or in the `Drop`
/// of a call's future. So it must return at once, must not block, and must not panic; hand work
/// over to a channel, as an [`OwnedEvent`](crate::OwnedEvent).
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
/// Then every event is also one of `tracing`, under `tower_bound_agent`; what happens in a call in
/// its span `bound_agent`. A switch is *info*; a validation that failed, a repair that could not be
/// written, rows that could not be read again and use that could not be recorded are *warn*; every
/// dial and every use is *trace*; the rest is *debug*. So `tower_bound_agent=info` is quiet until
/// something is replaced or breaks.
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
    /// A session got a connection to another agent than the bound one. Sent after that agent was
    /// dialed, so hooks for a rebind may talk to it.
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
    /// A group repair has ended, or has failed and will be tried again: all bindings of a workspace
    /// that were behind.
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
    /// A session is in use: it has held a connection at an interval of
    /// [`usage_interval`](crate::BoundAgentBuilder::usage_interval). Once an interval and session.
    #[non_exhaustive]
    InUse {
        /// Whose connection.
        session: SessionId,
        /// In which workspace.
        workspace: WorkspaceId,
        /// To what.
        target: &'a Target,
        /// Since when the session has been in use, as
        /// [`SessionInUse::since`](crate::SessionInUse::since).
        since: Instant,
    },
    /// Cached rows could not be read again in the background. They are read first at the next
    /// [`refresh_interval`](crate::BoundAgentBuilder::refresh_interval); until then an order of
    /// another process may go unnoticed.
    #[non_exhaustive]
    RefreshFailed {
        /// How many rows.
        rows: u64,
        /// Why not. Of several statements of one check that failed, the first one's error.
        error: &'a (dyn StdError + Send + Sync + 'static),
    },
    /// The use of sessions could not be recorded. It is recorded at the next interval.
    #[non_exhaustive]
    UseNotRecorded {
        /// How many sessions.
        sessions: u64,
        /// Why not.
        error: &'a (dyn StdError + Send + Sync + 'static),
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

impl Event<'_> {
    /// Returns the kind of event as a word in snake case, for logs and the labels of metrics. The
    /// words of 0.1 do not change.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Dialed { .. } => "dialed",
            Self::Validated { .. } => "validated",
            Self::Switched { .. } => "switched",
            Self::Repaired { .. } => "repaired",
            Self::WorkspaceRepaired { .. } => "workspace_repaired",
            Self::Used { .. } => "used",
            Self::InUse { .. } => "in_use",
            Self::RefreshFailed { .. } => "refresh_failed",
            Self::UseNotRecorded { .. } => "use_not_recorded",
            Self::ReportedStale { .. } => "reported_stale",
            Self::DroppedInFlight { .. } => "dropped_in_flight",
        }
    }
}

impl Event<'_> {
    /// Returns the event as a value of its own, which can be kept, compared and sent through a
    /// channel.
    ///
    /// ```
    /// use tokio::sync::mpsc;
    /// use tower_bound_agent::{Event, OwnedEvent};
    ///
    /// let (events, mut seen) = mpsc::channel(1_000);
    /// // For the builder's `observer`. An event that finds the channel full is lost.
    /// let observer = move |event: &Event<'_>| drop(events.try_send(event.to_owned()));
    /// # drop(observer);
    /// // For a task that watches.
    /// let watch = async move {
    ///     while let Some(event) = seen.recv().await {
    ///         if let OwnedEvent::Switched { session, to, .. } = event {
    ///             println!("{session} now talks to {}", to.agent);
    ///         }
    ///     }
    /// };
    /// # drop(watch);
    /// ```
    #[must_use]
    pub fn to_owned(&self) -> OwnedEvent {
        OwnedEvent::from(self)
    }
}

/// An [`Event`] that borrows nothing. Errors are kept as text: the error, then its sources,
/// separated by `: `.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OwnedEvent {
    /// See [`Event::Dialed`].
    #[non_exhaustive]
    Dialed {
        /// Whose dial.
        session: SessionId,
        /// In which workspace.
        workspace: WorkspaceId,
        /// What was dialed.
        target: Target,
        /// How long it was pending.
        took: Duration,
        /// What the dialer said, if it failed.
        error: Option<String>,
    },
    /// See [`Event::Validated`].
    #[non_exhaustive]
    Validated {
        /// Of which workspace.
        workspace: WorkspaceId,
        /// How long it took.
        took: Duration,
        /// The answer, or why there is none.
        answer: Result<Resolution, String>,
    },
    /// See [`Event::Switched`].
    #[non_exhaustive]
    Switched {
        /// Whose connection.
        session: SessionId,
        /// In which workspace.
        workspace: WorkspaceId,
        /// What was bound.
        from: Target,
        /// What answered.
        to: Target,
    },
    /// See [`Event::Repaired`].
    #[non_exhaustive]
    Repaired {
        /// Of whose binding.
        session: SessionId,
        /// In which workspace.
        workspace: WorkspaceId,
        /// What was to be written.
        target: Target,
        /// What became of it.
        repair: Repair,
    },
    /// See [`Event::WorkspaceRepaired`].
    #[non_exhaustive]
    WorkspaceRepaired {
        /// Which workspace.
        workspace: WorkspaceId,
        /// What was to be written.
        target: Target,
        /// What became of it.
        repair: Repair,
    },
    /// See [`Event::Used`].
    #[non_exhaustive]
    Used {
        /// Whose connection.
        session: SessionId,
        /// In which workspace.
        workspace: WorkspaceId,
        /// To what.
        target: Target,
        /// Which way the call took.
        kind: OutcomeKind,
        /// Dials started.
        dials: u8,
        /// Validations that the call asked for or joined.
        validations: u8,
        /// From the start of the call to the start of the dial that answered.
        decided_in: Duration,
        /// From the start of the dial that answered until it did.
        dialed_in: Duration,
        /// What had become of the repair by then.
        repair: Repair,
    },
    /// See [`Event::InUse`].
    #[non_exhaustive]
    InUse {
        /// Whose connection.
        session: SessionId,
        /// In which workspace.
        workspace: WorkspaceId,
        /// To what.
        target: Target,
        /// Since when the session has been in use.
        since: Instant,
    },
    /// See [`Event::RefreshFailed`].
    #[non_exhaustive]
    RefreshFailed {
        /// How many rows.
        rows: u64,
        /// Why not, with its causes.
        error: String,
    },
    /// See [`Event::UseNotRecorded`].
    #[non_exhaustive]
    UseNotRecorded {
        /// How many sessions.
        sessions: u64,
        /// Why not, with its causes.
        error: String,
    },
    /// See [`Event::ReportedStale`].
    #[non_exhaustive]
    ReportedStale {
        /// Whose connection.
        session: SessionId,
        /// In which workspace.
        workspace: WorkspaceId,
        /// To what.
        target: Target,
    },
    /// See [`Event::DroppedInFlight`].
    #[non_exhaustive]
    DroppedInFlight {
        /// Whose call.
        session: SessionId,
        /// In which workspace.
        workspace: WorkspaceId,
        /// What was being dialed.
        target: Target,
        /// How long it had been pending.
        pending: Duration,
    },
}

impl From<&Event<'_>> for OwnedEvent {
    fn from(event: &Event<'_>) -> Self {
        match *event {
            Event::Dialed { session, workspace, target, took, error } => Self::Dialed {
                session,
                workspace,
                target: target.clone(),
                took,
                error: error.map(text),
            },
            Event::Validated { workspace, took, answer } => {
                Self::Validated { workspace, took, answer: answer.cloned().map_err(text) }
            }
            Event::Switched { session, workspace, from, to } => {
                Self::Switched { session, workspace, from: from.clone(), to: to.clone() }
            }
            Event::Repaired { session, workspace, target, repair } => {
                Self::Repaired { session, workspace, target: target.clone(), repair }
            }
            Event::WorkspaceRepaired { workspace, target, repair } => {
                Self::WorkspaceRepaired { workspace, target: target.clone(), repair }
            }
            Event::Used { session, workspace, target, outcome } => Self::Used {
                session,
                workspace,
                target: target.clone(),
                kind: outcome.kind.clone(),
                dials: outcome.dials,
                validations: outcome.validations,
                decided_in: outcome.decided_in,
                dialed_in: outcome.dialed_in,
                repair: outcome.repair(),
            },
            Event::InUse { session, workspace, target, since } => {
                Self::InUse { session, workspace, target: target.clone(), since }
            }
            Event::RefreshFailed { rows, error } => {
                Self::RefreshFailed { rows, error: text(error) }
            }
            Event::UseNotRecorded { sessions, error } => {
                Self::UseNotRecorded { sessions, error: text(error) }
            }
            Event::ReportedStale { session, workspace, target } => {
                Self::ReportedStale { session, workspace, target: target.clone() }
            }
            Event::DroppedInFlight { session, workspace, target, pending } => {
                Self::DroppedInFlight { session, workspace, target: target.clone(), pending }
            }
        }
    }
}

/// The error and its sources.
fn text(error: &(dyn StdError + Send + Sync + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
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
        Event::Validated { workspace, took, answer: Ok(answer) } => {
            debug!(%workspace, ?took, ?answer, "validated")
        }
        Event::Validated { workspace, took, answer: Err(error) } => {
            warn!(%workspace, ?took, %error, "validation failed");
        }
        Event::Switched { session, workspace, from, to } => {
            info!(%session, %workspace, from = %from.agent, to = %to.agent, "switched to another agent");
        }
        Event::Repaired {
            session,
            workspace,
            target,
            repair: repair @ (Repair::Retrying | Repair::Failed),
        } => {
            warn!(%session, %workspace, agent = %target.agent, ?repair, "repair not written");
        }
        Event::Repaired { session, workspace, target, repair } => {
            debug!(%session, %workspace, agent = %target.agent, ?repair, "repair");
        }
        Event::WorkspaceRepaired {
            workspace,
            target,
            repair: repair @ (Repair::Retrying | Repair::Failed),
        } => {
            warn!(%workspace, agent = %target.agent, ?repair, "workspace not repaired");
        }
        Event::WorkspaceRepaired { workspace, target, repair } => {
            debug!(%workspace, agent = %target.agent, ?repair, "workspace repaired");
        }
        Event::Used { session, workspace, target, outcome } => {
            trace!(%session, %workspace, agent = %target.agent, kind = ?outcome.kind, "connected");
        }
        Event::InUse { session, workspace, target, since: _ } => {
            trace!(%session, %workspace, agent = %target.agent, "in use");
        }
        Event::RefreshFailed { rows, error } => {
            warn!(rows, error = %text(*error), "cached rows not read again");
        }
        Event::UseNotRecorded { sessions, error } => {
            warn!(sessions, error = %text(*error), "use not recorded");
        }
        Event::ReportedStale { session, workspace, target } => {
            debug!(%session, %workspace, agent = %target.agent, "reported stale");
        }
        Event::DroppedInFlight { session, workspace, target, pending } => {
            debug!(%session, %workspace, agent = %target.agent, ?pending, "dropped in flight");
        }
    }
}
