//! The record of a session, the target in it, and the one comparison of two targets.

use crate::{AgentId, BuildId, SessionId, WorkspaceId};
use std::{fmt, sync::Arc};

/// A number that grows with every build of a workspace, such as a build number.
///
/// Generations are optional, because not every resolver has them. A resolver's answers that have a
/// generation are ordered by it; answers without one are ordered by the time at which the question
/// began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
// Alignment would make each cached target seven bytes larger.
#[repr(Rust, packed)]
pub struct Generation(i64);

impl Generation {
    /// Creates a value from a number.
    #[must_use]
    pub const fn new(generation: i64) -> Self {
        Self(generation)
    }

    /// Returns the number.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0
    }
}

// Not derived, because a field of a packed struct cannot be borrowed.
#[cfg(feature = "serde")]
impl serde::Serialize for Generation {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_i64(self.get())
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// The number of a numbering: generations of a workspace are compared only within one epoch.
///
/// A workspace begins in epoch 0. [`Bindings::reset_workspace`](crate::Bindings::reset_workspace),
/// the command for a resolver whose generations start again, begins the next epoch. Only a store
/// assigns epochs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(transparent))]
pub struct Epoch(i64);

impl Epoch {
    /// Creates a value from a number.
    #[must_use]
    pub const fn new(epoch: i64) -> Self {
        Self(epoch)
    }

    /// Returns the number.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The compare-and-swap number of a session's record.
///
/// Every write of the record raises it. It is never reused for a session, not even after the
/// session was forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(transparent))]
pub struct Revision(i64);

impl Revision {
    /// Creates a value from a number.
    #[must_use]
    pub const fn new(revision: i64) -> Self {
        Self(revision)
    }

    /// Returns the number.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The destination of a dial: an agent and, as far as they are known, its build, its generation and
/// its address.
///
/// ```
/// use tower_bound_agent::{AgentId, Target};
/// # let agent = AgentId::new(uuid::Uuid::from_u128(7));
/// let target = Target::new(agent).with_generation(3).with_address("10.0.0.7:9000");
/// assert_eq!(target.address.as_deref(), Some("10.0.0.7:9000"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Target {
    /// The agent to dial.
    pub agent: AgentId,
    /// The build that created the agent, if it is known.
    pub build: Option<BuildId>,
    /// The number of that build within its workspace, if the resolver has one.
    pub generation: Option<Generation>,
    /// An opaque address for the dialer, which is stored with the binding and spares the dialer a
    /// look-up.
    pub address: Option<Arc<str>>,
}

/// Formats the target on one line: the agent, followed in parentheses by the build, the generation
/// and the address that are known.
///
/// ```
/// # use tower_bound_agent::{AgentId, Target};
/// # use uuid::Uuid;
/// let target = Target::new(AgentId::new(Uuid::nil()));
/// assert_eq!(target.to_string(), "00000000-0000-0000-0000-000000000000");
/// let target = target.with_generation(6).with_address("10.0.0.7:9000");
/// assert_eq!(
///     target.to_string(),
///     "00000000-0000-0000-0000-000000000000 (generation 6, 10.0.0.7:9000)"
/// );
/// ```
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.agent)?;
        let build = self.build.map(|build| format!("build {build}"));
        let generation =
            self.generation.map(|generation| format!("generation {}", generation.get()));
        let known: Vec<&str> = [build.as_deref(), generation.as_deref(), self.address.as_deref()]
            .into_iter()
            .flatten()
            .collect();
        if known.is_empty() { Ok(()) } else { write!(f, " ({})", known.join(", ")) }
    }
}

impl Target {
    /// Creates a target of which only the agent is known.
    #[must_use]
    pub const fn new(agent: AgentId) -> Self {
        Self { agent, build: None, generation: None, address: None }
    }

    /// Sets the build.
    #[must_use]
    pub fn with_build(mut self, build: BuildId) -> Self {
        self.build = Some(build);
        self
    }

    /// Sets the generation.
    #[must_use]
    pub fn with_generation(mut self, generation: i64) -> Self {
        self.generation = Some(Generation(generation));
        self
    }

    /// Sets the address for the dialer.
    #[must_use]
    pub fn with_address(mut self, address: impl Into<Arc<str>>) -> Self {
        self.address = Some(address.into());
        self
    }

    /// Returns `true` if a dial to one is a dial to the other: the agent and the address are equal.
    pub(crate) fn same_endpoint(&self, other: &Self) -> bool {
        self.agent == other.agent && self.address == other.address
    }

    /// Returns `true` if a row that names one needs no write to name the other.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.same_endpoint(other) && self.generation == other.generation
    }

    /// Returns the relation of `other`, a target of the same workspace, to this one.
    pub(crate) fn compare(&self, other: &Self) -> Relation {
        match (self.generation, other.generation) {
            (Some(mine), Some(theirs)) if theirs > mine => Relation::Newer,
            (Some(mine), Some(theirs)) if theirs < mine => Relation::Older,
            // An answer without a generation is older than a known generation.
            (Some(_), None) => Relation::Older,
            _ if self.same_endpoint(other) => Relation::Same,
            _ => Relation::Other,
        }
    }
}

/// The relation of one target of a workspace to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    /// Its generation is greater, whenever the question began.
    Newer,
    /// Its generation is smaller, or missing where one is known. A lagging replica may have
    /// answered, so this is no evidence.
    Older,
    /// A dial to one is a dial to the other.
    Same,
    /// Another agent or address, and generations do not order the two: the answer to the later
    /// question is right.
    Other,
}

/// The rows of a workspace that are behind a target that replaced another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Behind {
    /// All rows of a smaller generation, however many builds ago they were written.
    Generation(Generation),
    /// The rows that name the replaced agent. Without generations, no other row is known to be
    /// behind.
    Agent(AgentId),
}

impl Behind {
    pub(crate) fn of(stale: &Target, current: &Target) -> Self {
        match (stale.generation, current.generation) {
            (Some(_), Some(generation)) => Self::Generation(generation),
            _ => Self::Agent(stale.agent),
        }
    }

    /// Returns `true` if a row that names `row` must be repaired to name `current`.
    pub(crate) fn includes(self, row: &Target, current: &Target) -> bool {
        match self {
            Self::Generation(generation) => row.generation.is_some_and(|row| row < generation),
            Self::Agent(agent) => {
                row.agent == agent && row.generation.is_none() && !row.same_endpoint(current)
            }
        }
    }
}

/// The agent that a record named before its present one.
///
/// An application can key derived state (a tool list, a file index) by it, and so notices a switch
/// even if it missed the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Previous {
    /// The agent.
    pub agent: AgentId,
    /// The generation of its target, if it had one.
    pub generation: Option<Generation>,
}

impl Previous {
    /// Creates a value, for implementations of stores.
    #[must_use]
    pub const fn new(agent: AgentId, generation: Option<Generation>) -> Self {
        Self { agent, generation }
    }
}

/// The persisted record of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Binding {
    /// The session.
    pub session: SessionId,
    /// The workspace that the session points at.
    pub workspace: WorkspaceId,
    /// The bound target. `None`: the record is *unbound*, its workspace is known and its agent is
    /// not yet.
    pub target: Option<Arc<Target>>,
    /// The agent that the record named before, if there was one.
    pub previous: Option<Previous>,
    /// The compare-and-swap number of the record.
    pub revision: Revision,
    /// The epoch of the workspace when the record was read. The generation of the target belongs to
    /// this epoch.
    pub epoch: Epoch,
}

impl Binding {
    /// Creates a record in epoch 0 without a previous agent, for implementations of stores.
    #[must_use]
    pub const fn new(
        session: SessionId,
        workspace: WorkspaceId,
        target: Option<Arc<Target>>,
        revision: Revision,
    ) -> Self {
        Self { session, workspace, target, previous: None, revision, epoch: Epoch::new(0) }
    }

    /// Sets the agent that the record named before. Default: `None`.
    #[must_use]
    pub const fn with_previous(mut self, previous: Option<Previous>) -> Self {
        self.previous = previous;
        self
    }

    /// Sets the epoch of the workspace. Default: 0.
    #[must_use]
    pub const fn with_epoch(mut self, epoch: Epoch) -> Self {
        self.epoch = epoch;
        self
    }

    /// Moves the record into the epoch of its workspace. A target of another epoch does not count,
    /// so the record becomes unbound.
    pub(crate) fn in_epoch(mut self, epoch: Epoch) -> Self {
        if self.epoch != epoch {
            self.target = None;
            self.epoch = epoch;
        }
        self
    }
}

/// The part of a session's record that is cached for each row. The workspace and the epoch are in
/// the workspace state, and few rows have a previous agent.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) session: SessionId,
    pub(crate) target: Option<Arc<Target>>,
    pub(crate) revision: Revision,
}

#[cfg(test)]
/// Parses a target for tests: a letter for its agent, then a number for its generation (`a5`, or
/// `a` without one), then `@` and an address (`a@x`).
pub(crate) fn target(text: &str) -> Arc<Target> {
    let (place, address) =
        text.split_once('@').map_or((text, None), |(place, address)| (place, Some(address)));
    let (agent, generation) = place.split_at(1);
    let mut target = Target::new(AgentId::new(uuid::Uuid::from_u128(agent.as_bytes()[0].into())));
    if !generation.is_empty() {
        target = target.with_generation(generation.parse().expect("a generation"));
    }
    if let Some(address) = address {
        target = target.with_address(address);
    }
    Arc::new(target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn target(agent: u128, generation: Option<i64>, address: Option<&str>) -> Target {
        let mut target = Target::new(AgentId::new(Uuid::from_u128(agent)));
        target.generation = generation.map(Generation);
        target.address = address.map(Into::into);
        target
    }

    #[test]
    fn targets_are_compared_by_generation_then_by_agent_and_address() {
        use Relation::{Newer, Older, Other, Same};
        let table = [
            // known, answered, relation
            ((1, Some(5), None), (2, Some(6), None), Newer),
            ((1, Some(5), None), (1, Some(6), None), Newer),
            ((1, Some(5), None), (2, Some(4), None), Older),
            ((1, Some(5), None), (2, None, None), Older),
            ((1, Some(5), None), (1, None, None), Older),
            ((1, Some(5), None), (1, Some(5), None), Same),
            ((1, Some(5), None), (2, Some(5), None), Other),
            ((1, Some(5), Some("a")), (1, Some(5), Some("b")), Other),
            ((1, None, None), (1, None, None), Same),
            ((1, None, None), (2, None, None), Other),
            ((1, None, Some("a")), (1, None, None), Other),
            ((1, None, None), (1, Some(5), None), Same),
            ((1, None, None), (2, Some(5), None), Other),
        ];
        for (known, answered, relation) in table {
            let (a, b) =
                (target(known.0, known.1, known.2), target(answered.0, answered.1, answered.2));
            assert_eq!(a.compare(&b), relation, "{known:?}, then {answered:?}");
        }
    }

    #[test]
    fn rows_are_behind_by_generation_or_by_agent() {
        type Named = (u128, Option<i64>, Option<&'static str>);
        type Case<'a> = (Named, Named, Behind, &'a [Named], &'a [Named]);
        let of = |(agent, generation, address): Named| target(agent, generation, address);
        #[rustfmt::skip]
        let table: [Case<'_>; 5] = [
            // stale, current, condition, rows that are behind, rows that are not
            ((1, Some(5), None), (2, Some(7), None), Behind::Generation(Generation(7)),
                &[(1, Some(5), None), (1, Some(6), None), (3, Some(1), Some("a")), (2, Some(6), None)],
                &[(2, Some(7), None), (3, Some(7), None), (3, Some(8), None), (1, None, None), (3, None, None)]),
            // The same agent and address in a later build.
            ((1, Some(5), None), (1, Some(6), None), Behind::Generation(Generation(6)),
                &[(1, Some(5), None), (1, Some(4), Some("a"))],
                &[(1, Some(6), None), (1, None, None)]),
            ((1, None, None), (2, None, None), Behind::Agent(AgentId::new(Uuid::from_u128(1))),
                &[(1, None, None), (1, None, Some("a"))],
                &[(2, None, None), (3, None, None), (1, Some(1), None)]),
            // The first generation of a workspace.
            ((1, None, None), (2, Some(5), None), Behind::Agent(AgentId::new(Uuid::from_u128(1))),
                &[(1, None, None)],
                &[(2, Some(5), None), (2, None, None), (1, Some(4), None)]),
            // The same agent at another address.
            ((1, None, Some("a")), (1, None, Some("b")), Behind::Agent(AgentId::new(Uuid::from_u128(1))),
                &[(1, None, Some("a")), (1, None, None), (1, None, Some("c"))],
                &[(1, None, Some("b")), (1, Some(5), Some("a"))]),
        ];
        for (stale, current, expected, are, are_not) in table {
            let (stale, current) = (of(stale), of(current));
            let behind = Behind::of(&stale, &current);
            assert_eq!(behind, expected);
            for row in are {
                assert!(behind.includes(&of(*row), &current), "{row:?} and {current:?}");
            }
            for row in are_not {
                assert!(!behind.includes(&of(*row), &current), "{row:?} and {current:?}");
            }
        }
    }
}
