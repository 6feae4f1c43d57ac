//! What a process knows of a workspace or a session at one moment, as plain values.

use crate::{AgentId, Binding, Epoch, Repair, SessionId, Status, Target, WorkspaceId};
use std::{sync::Arc, time::Duration};

/// What a process knows of a workspace, as [`Bindings::inspect`](crate::Bindings::inspect) returns
/// it.
///
/// With the feature `serde`, durations are text, to the millisecond.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct WorkspaceSnapshot {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The epoch to which all generations here belong.
    pub epoch: Epoch,
    /// The newest known target.
    pub target: Option<Arc<Target>>,
    /// Where the newest known target is known from.
    pub source: TargetSource,
    /// The targets that were replaced, newest last. Only the last ones are remembered.
    pub superseded: Vec<Arc<Target>>,
    /// Since when which targets may be wrong. The next call of a session that would dial one of
    /// them asks the resolver at once.
    pub doubts: Vec<DoubtSnapshot>,
    /// The last verdict of the resolver, unless there is a doubt that is younger than its question.
    pub verdict: Option<VerdictSnapshot>,
    /// For how long the resolver has been asked, if it has not answered.
    #[cfg_attr(feature = "serde", serde(serialize_with = "elapsed::optional"))]
    pub validating_for: Option<Duration>,
    /// The time until a call whose dial hangs asks the resolver again.
    #[cfg_attr(feature = "serde", serde(serialize_with = "elapsed::optional"))]
    pub asks_again_in: Option<Duration>,
    /// The repairs of the workspace and of its sessions that are not written.
    pub repairs: Vec<RepairSnapshot>,
    /// The number of its sessions whose rows are cached.
    pub cached_rows: u64,
    /// The number of connections that are held: each [`Bound`](crate::Bound) and each
    /// [`InUse`](crate::InUse) guard.
    pub held_connections: u64,
    /// The number of dials that were pending after their first poll.
    pub pending_dials: u64,
    /// The number of calls that wait in the queue of a target.
    pub queued_calls: u64,
}

/// What a process knows of a session, as
/// [`Bindings::inspect_session`](crate::Bindings::inspect_session) returns it.
///
/// With the feature `serde`, durations are text, to the millisecond.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SessionSnapshot {
    /// The session.
    pub session: SessionId,
    /// The record, if it is cached.
    pub binding: Option<Binding>,
    /// How long ago the statement began that brought the cached record.
    #[cfg_attr(feature = "serde", serde(serialize_with = "elapsed::optional"))]
    pub read_ago: Option<Duration>,
    /// The target that the next call would dial at once. `None`: the record is not cached, or the
    /// resolver is asked first.
    pub target: Option<Arc<Target>>,
    /// Why that target may be wrong, if there is a reason.
    pub doubt: Option<DoubtSnapshot>,
    /// For how long a read of the record has been under way.
    #[cfg_attr(feature = "serde", serde(serialize_with = "elapsed::optional"))]
    pub reading_for: Option<Duration>,
    /// Each call reads the record, because a command or a transaction may have changed it.
    pub is_uncertain: bool,
    /// A read has found no record a moment ago, and calls use that result.
    pub is_absent: bool,
    /// The repairs of the session and of its workspace that are not written.
    pub repairs: Vec<RepairSnapshot>,
    /// The number of connections that the session holds.
    pub held_connections: u64,
}

/// The origin of the newest known target of a workspace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum TargetSource {
    /// The record of a session, which may be behind. Also if no target is known.
    #[default]
    Row,
    /// The resolver.
    Resolver,
    /// The control plane, with [`Bindings::announce`](crate::Bindings::announce).
    Announcement,
}

/// A reason to ask the resolver, in a [`WorkspaceSnapshot`] or a [`SessionSnapshot`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DoubtSnapshot {
    /// The agent that is in doubt; `None` if all targets of the workspace are.
    pub agent: Option<AgentId>,
    /// Why.
    pub reason: DoubtReason,
    /// How long ago the doubt was raised, or raised again.
    #[cfg_attr(feature = "serde", serde(serialize_with = "elapsed::serialize"))]
    pub raised_ago: Duration,
    /// The resolver was asked about the doubt, and its answer did not remove it. No call asks
    /// because of this doubt before that time has passed.
    #[cfg_attr(feature = "serde", serde(serialize_with = "elapsed::optional"))]
    pub quiet_for: Option<Duration>,
}

/// The reason why a target may be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum DoubtReason {
    /// [`Bindings::revalidate_workspace`](crate::Bindings::revalidate_workspace) was called.
    Requested,
    /// Another process has sent a hint.
    Hint,
    /// Hints of other processes were lost.
    HintsLost,
    /// The workspace was reset.
    Reset,
    /// A command has removed the agent from a record.
    Unbound,
    /// A repair has lost to a record that names the agent, and nothing orders the two.
    RepairLost,
    /// A call was dropped while its dial was pending, or while its request had no answer.
    CallDropped,
    /// A caller has reported its connection as stale.
    ReportedStale,
    /// The record names another target than the resolver did, and nothing orders the two.
    Contradicted,
}

impl DoubtReason {
    /// Returns the reason as a word in snake case, for logs and pages. The words do not change
    /// within 0.1.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Hint => "hint",
            Self::HintsLost => "hints_lost",
            Self::Reset => "reset",
            Self::Unbound => "unbound",
            Self::RepairLost => "repair_lost",
            Self::CallDropped => "call_dropped",
            Self::ReportedStale => "reported_stale",
            Self::Contradicted => "contradicted",
        }
    }
}

/// The last verdict of the resolver, in a [`WorkspaceSnapshot`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct VerdictSnapshot {
    /// The verdict.
    pub status: Status,
    /// How long ago the resolver has answered.
    #[cfg_attr(feature = "serde", serde(serialize_with = "elapsed::serialize"))]
    pub answered_ago: Duration,
}

/// A repair that is not written, in a [`WorkspaceSnapshot`] or a [`SessionSnapshot`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RepairSnapshot {
    /// The session whose record is written; `None` for a group repair, which writes all records of
    /// the workspace that are behind.
    pub session: Option<SessionId>,
    /// The target that is written.
    pub target: Arc<Target>,
    /// The state: pending or retrying.
    pub state: Repair,
    /// How long ago the repair began.
    #[cfg_attr(feature = "serde", serde(serialize_with = "elapsed::serialize"))]
    pub began_ago: Duration,
    /// The error of the last attempt and its sources, if it failed.
    pub error: Option<String>,
}

#[cfg(feature = "serde")]
mod elapsed {
    use crate::settings::text;
    use serde::Serializer;
    use std::time::Duration;

    pub(super) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        let millis = u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
        text::duration::serialize(&Duration::from_millis(millis), to)
    }

    pub(super) fn optional<S: Serializer>(
        value: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serialize(value, to),
            None => to.serialize_none(),
        }
    }
}
