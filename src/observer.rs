//! Events, and the observer that receives them.

use crate::{
    Error, ErrorKind, Outcome, OutcomeKind, Repair, Resolution, SessionId, Target, WorkspaceId,
};
use std::{error::Error as StdError, fmt, time::Duration};
use tokio::time::Instant;

/// A receiver of events, for metrics, keep-alive, activity tracking, and hooks for a rebind.
///
/// The layer calls the only method where the event happens: in the call, in a background task, or
/// in the `Drop` of a call's future. Therefore, an observer must return at once, must not block,
/// and must not panic. To do more work, send an [`OwnedEvent`](crate::OwnedEvent) through a
/// channel.
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
/// With this feature, every event is also a `tracing` event with the target `tower_bound_agent`.
/// Events of a call are in its span `bound_agent`, at the level *debug*. Its fields are `session`
/// and, when the call ends, `workspace`, `agent`, `outcome` or `error` (the words of
/// [`OutcomeKind`] and [`ErrorKind`]), `dials`, `validations` and `waited`. Its children show what
/// a slow call waited for: `dial` (`agent`, `error`), from the start of a dial to its end,
/// `validate`, while the call is interested in the answer of the resolver, and `store` (`verb`),
/// while it waits for a statement. Work that calls share is in no span. The levels of events are:
///
/// * *warn*: what an operator must act on, always with its cause: a call that failed because of the
///   store, the resolver, the dial service, this process or an agent that does not answer; a failed
///   validation; a row that could not be read; a repair that could not be written; rows that could
///   not be read again; use that could not be recorded,
/// * *info*: a switch, a call that took longer than the
///   [`validation_delay`](crate::BoundAgentBuilder::validation_delay), and hints that were lost,
/// * *debug*: all other events, and calls that failed for a reason of the caller's or because the
///   workspace does not run,
/// * *trace*: every dial that was answered and every other use.
///
/// With `tower_bound_agent=info`, the log is quiet until an agent is replaced, something breaks or
/// a call is slow. Of each kind of line at these two levels, there is at most one a second in each
/// layer: the next line of the kind has the number of lines that were left out before it, in the
/// field `left_out`.
pub trait Observer: Send + Sync + 'static {
    /// Receives one event.
    fn observe(&self, event: &Event<'_>);
}

impl<F: Fn(&Event<'_>) + Send + Sync + 'static> Observer for F {
    fn observe(&self, event: &Event<'_>) {
        self(event);
    }
}

/// An event of a call or of a background task.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A dial has ended.
    #[non_exhaustive]
    Dialed {
        /// The session.
        session: SessionId,
        /// Its workspace.
        workspace: WorkspaceId,
        /// The dialed target.
        target: &'a Target,
        /// The time for which the dial was pending.
        took: Duration,
        /// The error of the dialer, if the dial failed.
        error: Option<&'a (dyn StdError + Send + Sync + 'static)>,
    },
    /// A validation has ended: the resolver answered, failed, or did not answer in time.
    #[non_exhaustive]
    Validated {
        /// The workspace.
        workspace: WorkspaceId,
        /// The time that the validation took.
        took: Duration,
        /// The answer, or the error if there is none.
        answer: Result<&'a Resolution, &'a (dyn StdError + Send + Sync + 'static)>,
    },
    /// A call of a session switched to another agent than the bound one. The event is sent after
    /// that agent answered a dial, so hooks for a rebind can connect to it.
    #[non_exhaustive]
    Switched {
        /// The session.
        session: SessionId,
        /// Its workspace.
        workspace: WorkspaceId,
        /// The target that was bound before.
        from: &'a Target,
        /// The target that answered.
        to: &'a Target,
    },
    /// An attempt of a session's own repair has ended. After [`Repair::Retrying`], another attempt
    /// follows.
    #[non_exhaustive]
    Repaired {
        /// The session.
        session: SessionId,
        /// Its workspace.
        workspace: WorkspaceId,
        /// The target of the repair.
        target: &'a Target,
        /// The state of the repair: written, lost, retrying or failed.
        repair: Repair,
        /// The error of the store, if the attempt failed.
        error: Option<&'a (dyn StdError + Send + Sync + 'static)>,
    },
    /// An attempt of a group repair has ended. A group repair writes all bindings of a workspace
    /// that are behind. After [`Repair::Retrying`], another attempt follows.
    #[non_exhaustive]
    WorkspaceRepaired {
        /// The workspace.
        workspace: WorkspaceId,
        /// The target of the repair.
        target: &'a Target,
        /// The state of the repair: written, lost, retrying or failed.
        repair: Repair,
        /// The error of the store, if the attempt failed.
        error: Option<&'a (dyn StdError + Send + Sync + 'static)>,
    },
    /// A call returns a connection to its caller.
    #[non_exhaustive]
    Used {
        /// The session.
        session: SessionId,
        /// Its workspace.
        workspace: WorkspaceId,
        /// The target of the connection.
        target: &'a Target,
        /// The outcome of the call.
        outcome: &'a Outcome,
    },
    /// A call ends with an error. A call that is dropped ends without this event; see
    /// [`DroppedInFlight`](Self::DroppedInFlight).
    #[non_exhaustive]
    Failed {
        /// The session.
        session: SessionId,
        /// The workspace that the caller named, or that of the session's row; `None` if neither is
        /// known.
        workspace: Option<WorkspaceId>,
        /// The error that the caller receives.
        error: &'a Error,
        /// The time since the call began to wait; zero if it did not.
        took: Duration,
    },
    /// The row of a session could not be read. Calls that wait for it fail with
    /// [`ErrorKind::Store`](crate::ErrorKind::Store), or are served without a row if the layer may
    /// do that.
    #[non_exhaustive]
    LookUpFailed {
        /// The session.
        session: SessionId,
        /// The error of the store.
        error: &'a (dyn StdError + Send + Sync + 'static),
    },
    /// Hints of other processes were lost. The workspaces in use come into doubt, and the cached
    /// rows are read again. Losses that follow each other within a second are one event.
    #[non_exhaustive]
    HintsLost {},
    /// A session holds a connection. The event is sent once for each session and
    /// [`usage_interval`](crate::BoundAgentBuilder::usage_interval).
    #[non_exhaustive]
    InUse {
        /// The session.
        session: SessionId,
        /// Its workspace.
        workspace: WorkspaceId,
        /// The target of the connection.
        target: &'a Target,
        /// The start of the session's present use, as in
        /// [`SessionInUse::since`](crate::SessionInUse::since).
        since: Instant,
    },
    /// A background refresh could not read cached rows. The next
    /// [`refresh_interval`](crate::BoundAgentBuilder::refresh_interval) reads them first. Until
    /// then, a command of another process may go unnoticed.
    #[non_exhaustive]
    RefreshFailed {
        /// The number of rows.
        rows: u64,
        /// The error of the first statement that failed.
        error: &'a (dyn StdError + Send + Sync + 'static),
    },
    /// The use of sessions could not be recorded. The next
    /// [`usage_interval`](crate::BoundAgentBuilder::usage_interval) records it.
    #[non_exhaustive]
    UseNotRecorded {
        /// The number of sessions.
        sessions: u64,
        /// The error of the store.
        error: &'a (dyn StdError + Send + Sync + 'static),
    },
    /// A caller reported its connection as stale, and the report raised a doubt. See
    /// [`BoundHandle::report_stale`](crate::BoundHandle::report_stale).
    #[non_exhaustive]
    ReportedStale {
        /// The session.
        session: SessionId,
        /// Its workspace.
        workspace: WorkspaceId,
        /// The target of the connection.
        target: &'a Target,
    },
    /// A call was dropped while its dial was pending.
    #[non_exhaustive]
    DroppedInFlight {
        /// The session.
        session: SessionId,
        /// Its workspace.
        workspace: WorkspaceId,
        /// The target that was being dialed.
        target: &'a Target,
        /// The time for which the dial was pending.
        pending: Duration,
    },
}

/// The words of the kinds, once for both forms of an event.
macro_rules! words {
    ($($kind:ident => $word:literal,)+) => {
        impl Event<'_> {
            /// Returns the kind of event as a word in snake case, for logs and the labels of
            /// metrics. The words do not change within 0.1.
            #[must_use]
            pub const fn as_str(&self) -> &'static str {
                match self { $(Self::$kind { .. } => $word,)+ }
            }
        }

        impl OwnedEvent {
            /// Returns the kind of event as a word, as [`Event::as_str`] does.
            #[must_use]
            pub const fn as_str(&self) -> &'static str {
                match self { $(Self::$kind { .. } => $word,)+ }
            }
        }
    };
}

words! {
    Dialed => "dialed",
    Validated => "validated",
    Switched => "switched",
    Repaired => "repaired",
    WorkspaceRepaired => "workspace_repaired",
    Used => "used",
    Failed => "failed",
    LookUpFailed => "look_up_failed",
    HintsLost => "hints_lost",
    InUse => "in_use",
    RefreshFailed => "refresh_failed",
    UseNotRecorded => "use_not_recorded",
    ReportedStale => "reported_stale",
    DroppedInFlight => "dropped_in_flight",
}

impl Event<'_> {
    /// Returns an owned copy of the event, which can be stored, compared and sent through a
    /// channel.
    ///
    /// ```
    /// use tokio::sync::mpsc;
    /// use tower_bound_agent::{Event, OwnedEvent};
    ///
    /// let (events, mut seen) = mpsc::channel(1_000);
    /// // The observer for the builder. If the channel is full, the event is lost.
    /// let observer = move |event: &Event<'_>| drop(events.try_send(event.to_owned()));
    /// # drop(observer);
    /// // The task that receives the events.
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

/// An owned [`Event`]. It holds errors as text: the error, then its sources, separated by `: `.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OwnedEvent {
    /// See [`Event::Dialed`].
    #[non_exhaustive]
    Dialed {
        /// The session.
        session: SessionId,
        /// Its workspace.
        workspace: WorkspaceId,
        /// The dialed target.
        target: Target,
        /// The time for which the dial was pending.
        took: Duration,
        /// The error of the dialer, if the dial failed.
        error: Option<String>,
    },
    /// See [`Event::Validated`].
    #[non_exhaustive]
    Validated {
        /// The workspace.
        workspace: WorkspaceId,
        /// The time that the validation took.
        took: Duration,
        /// The answer, or the error if there is none.
        answer: Result<Resolution, String>,
    },
    /// See [`Event::Switched`].
    #[non_exhaustive]
    Switched {
        /// The session.
        session: SessionId,
        /// Its workspace.
        workspace: WorkspaceId,
        /// The target that was bound before.
        from: Target,
        /// The target that answered.
        to: Target,
    },
    /// See [`Event::Repaired`].
    #[non_exhaustive]
    Repaired {
        /// The session.
        session: SessionId,
        /// Its workspace.
        workspace: WorkspaceId,
        /// The target of the repair.
        target: Target,
        /// The state of the repair.
        repair: Repair,
        /// The error and its sources, if the attempt failed.
        error: Option<String>,
    },
    /// See [`Event::WorkspaceRepaired`].
    #[non_exhaustive]
    WorkspaceRepaired {
        /// The workspace.
        workspace: WorkspaceId,
        /// The target of the repair.
        target: Target,
        /// The state of the repair.
        repair: Repair,
        /// The error and its sources, if the attempt failed.
        error: Option<String>,
    },
    /// See [`Event::Used`].
    #[non_exhaustive]
    Used {
        /// The session.
        session: SessionId,
        /// Its workspace.
        workspace: WorkspaceId,
        /// The target of the connection.
        target: Target,
        /// The kind of outcome.
        kind: OutcomeKind,
        /// The number of dials that the call started.
        dials: u8,
        /// The number of validations that the call started or joined.
        validations: u8,
        /// The time from the start of the call to the start of the dial that answered.
        decided_in: Duration,
        /// The time from the start of the dial that answered until it answered.
        dialed_in: Duration,
        /// The state of the repair when the connection was returned.
        repair: Repair,
    },
    /// See [`Event::Failed`].
    #[non_exhaustive]
    Failed {
        /// The session.
        session: SessionId,
        /// The workspace that the caller named, or that of the session's row.
        workspace: Option<WorkspaceId>,
        /// The kind of error.
        kind: ErrorKind,
        /// The error and its sources.
        error: String,
        /// The time since the call began to wait; zero if it did not.
        took: Duration,
    },
    /// See [`Event::LookUpFailed`].
    #[non_exhaustive]
    LookUpFailed {
        /// The session.
        session: SessionId,
        /// The error and its sources.
        error: String,
    },
    /// See [`Event::HintsLost`].
    #[non_exhaustive]
    HintsLost {},
    /// See [`Event::InUse`].
    #[non_exhaustive]
    InUse {
        /// The session.
        session: SessionId,
        /// Its workspace.
        workspace: WorkspaceId,
        /// The target of the connection.
        target: Target,
        /// The start of the session's present use.
        since: Instant,
    },
    /// See [`Event::RefreshFailed`].
    #[non_exhaustive]
    RefreshFailed {
        /// The number of rows.
        rows: u64,
        /// The error and its sources.
        error: String,
    },
    /// See [`Event::UseNotRecorded`].
    #[non_exhaustive]
    UseNotRecorded {
        /// The number of sessions.
        sessions: u64,
        /// The error and its sources.
        error: String,
    },
    /// See [`Event::ReportedStale`].
    #[non_exhaustive]
    ReportedStale {
        /// The session.
        session: SessionId,
        /// Its workspace.
        workspace: WorkspaceId,
        /// The target of the connection.
        target: Target,
    },
    /// See [`Event::DroppedInFlight`].
    #[non_exhaustive]
    DroppedInFlight {
        /// The session.
        session: SessionId,
        /// Its workspace.
        workspace: WorkspaceId,
        /// The target that was being dialed.
        target: Target,
        /// The time for which the dial was pending.
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
            Event::Repaired { session, workspace, target, repair, error } => Self::Repaired {
                session,
                workspace,
                target: target.clone(),
                repair,
                error: error.map(text),
            },
            Event::WorkspaceRepaired { workspace, target, repair, error } => {
                Self::WorkspaceRepaired {
                    workspace,
                    target: target.clone(),
                    repair,
                    error: error.map(text),
                }
            }
            Event::Failed { session, workspace, error, took } => Self::Failed {
                session,
                workspace,
                kind: error.kind().clone(),
                error: text(error),
                took,
            },
            Event::LookUpFailed { session, error } => {
                Self::LookUpFailed { session, error: text(error) }
            }
            Event::HintsLost {} => Self::HintsLost {},
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

/// Displays an error and its sources, separated by `: `.
pub(crate) struct WithSources<'a>(pub(crate) &'a (dyn StdError + Send + Sync + 'static));

impl fmt::Display for WithSources<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

fn text(error: &(dyn StdError + Send + Sync + 'static)) -> String {
    WithSources(error).to_string()
}
