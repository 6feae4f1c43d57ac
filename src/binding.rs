//! What is bound, and the one place where two targets are compared.

use crate::{AgentId, BuildId, SessionId, WorkspaceId};
use std::{fmt, sync::Arc};

/// A number that grows with every build of one workspace (a build number).
///
/// Optional: not every resolver has one. With it, what a resolver says can be ordered without
/// asking when it was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
// Else each cached target has seven bytes more for a flag that says whether there is one.
#[repr(Rust, packed)]
pub struct Generation(i64);

impl Generation {
    /// Wraps a number.
    #[must_use]
    pub const fn new(generation: i64) -> Self {
        Self(generation)
    }

    /// The number inside.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// The number of a numbering: generations of one workspace are compared only within the same epoch.
///
/// A workspace begins in epoch 0. [`reset_workspace`](crate::Bindings::reset_workspace), the order
/// for a resolver whose generations start again, begins the next one. Only a store assigns epochs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(i64);

impl Epoch {
    /// Wraps a number.
    #[must_use]
    pub const fn new(epoch: i64) -> Self {
        Self(epoch)
    }

    /// The number inside.
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

/// The compare-and-swap number of a session's row. Never reused for a session, also not after it
/// was forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(i64);

impl Revision {
    /// Wraps a number.
    #[must_use]
    pub const fn new(revision: i64) -> Self {
        Self(revision)
    }

    /// The number inside.
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

/// *Where to dial*: an agent and, as far as they are known, its build, its generation and its
/// address.
///
/// ```
/// use tower_bound_agent::{AgentId, Target};
/// # let agent = AgentId::new(uuid::Uuid::from_u128(7));
/// let target = Target::new(agent).with_generation(3).with_address("10.0.0.7:9000");
/// assert_eq!(target.address.as_deref(), Some("10.0.0.7:9000"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Target {
    /// The agent to dial.
    pub agent: AgentId,
    /// The build that brought it.
    pub build: Option<BuildId>,
    /// The build's number within its workspace.
    pub generation: Option<Generation>,
    /// Opaque text for dialers that need one, so that no look-up is needed between binding and
    /// dial.
    pub address: Option<Arc<str>>,
}

/// One line: the agent, and in parentheses what else is known of the target.
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
    /// A target of which only the agent is known.
    #[must_use]
    pub const fn new(agent: AgentId) -> Self {
        Self { agent, build: None, generation: None, address: None }
    }

    /// Names the build.
    #[must_use]
    pub fn with_build(mut self, build: BuildId) -> Self {
        self.build = Some(build);
        self
    }

    /// Names the generation.
    #[must_use]
    pub fn with_generation(mut self, generation: i64) -> Self {
        self.generation = Some(Generation(generation));
        self
    }

    /// Adds the address that the dialer needs.
    #[must_use]
    pub fn with_address(mut self, address: impl Into<Arc<str>>) -> Self {
        self.address = Some(address.into());
        self
    }

    /// Whether a dial to one is a dial to the other.
    pub(crate) fn same_place(&self, other: &Self) -> bool {
        self.agent == other.agent && self.address == other.address
    }

    /// Whether a row that names one needs no write to name the other.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.same_place(other) && self.generation == other.generation
    }

    /// How `other`, said of the same workspace, relates to this one.
    pub(crate) fn compare(&self, other: &Self) -> Relation {
        match (self.generation, other.generation) {
            (Some(mine), Some(theirs)) if theirs > mine => Relation::Newer,
            (Some(mine), Some(theirs)) if theirs < mine => Relation::Older,
            // A number that was known cannot be unlearned: such an answer says less than what is
            // known.
            (Some(_), None) => Relation::Older,
            _ if self.same_place(other) => Relation::Same,
            _ => Relation::Other,
        }
    }
}

/// How one target of a workspace relates to another one: by generation if both have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    /// Of a later generation, whatever its age.
    Newer,
    /// Of an earlier generation, or of none where one is known: a lagging replica, no evidence.
    Older,
    /// A dial to one is a dial to the other.
    Same,
    /// Another place, and the numbers do not order them: what was asked later is right.
    Other,
}

/// Which rows of a workspace are behind a target that has replaced another one there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Behind {
    /// All of a smaller generation, however many builds ago they were written.
    Generation(Generation),
    /// Without numbers only the rows that name the agent that was replaced are known to be behind.
    Agent(AgentId),
}

impl Behind {
    pub(crate) fn of(stale: &Target, current: &Target) -> Self {
        match (stale.generation, current.generation) {
            (Some(_), Some(generation)) => Self::Generation(generation),
            _ => Self::Agent(stale.agent),
        }
    }

    /// Whether a row that names this is to name `current`.
    pub(crate) fn includes(self, row: &Target, current: &Target) -> bool {
        match self {
            Self::Generation(generation) => row.generation.is_some_and(|row| row < generation),
            Self::Agent(agent) => {
                row.agent == agent && row.generation.is_none() && !row.same_place(current)
            }
        }
    }
}

/// The agent that a row held before its present one.
///
/// Derived state (a tool list, a file index) can be keyed by it even if an event was missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Previous {
    /// The agent.
    pub agent: AgentId,
    /// Its generation, if it had one.
    pub generation: Option<Generation>,
}

impl Previous {
    /// For implementors of stores.
    #[must_use]
    pub const fn new(agent: AgentId, generation: Option<Generation>) -> Self {
        Self { agent, generation }
    }
}

/// The persisted record of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Binding {
    /// Whose record it is.
    pub session: SessionId,
    /// Where the session points.
    pub workspace: WorkspaceId,
    /// The bound target; without one the record is *unbound*: the workspace is known, the agent is
    /// not yet.
    pub target: Option<Arc<Target>>,
    /// The agent before this one.
    pub previous: Option<Previous>,
    /// The compare-and-swap number of the row.
    pub revision: Revision,
    /// The epoch of the workspace when the row was read; the generation of the target is of this
    /// epoch.
    pub epoch: Epoch,
}

impl Binding {
    /// For implementors of stores.
    #[must_use]
    pub const fn new(
        session: SessionId,
        workspace: WorkspaceId,
        target: Option<Arc<Target>>,
        revision: Revision,
    ) -> Self {
        Self { session, workspace, target, previous: None, revision, epoch: Epoch::new(0) }
    }

    /// Adds the agent that the row held before.
    #[must_use]
    pub const fn with_previous(mut self, previous: Option<Previous>) -> Self {
        self.previous = previous;
        self
    }

    /// Sets the epoch of the workspace, which is 0 otherwise.
    #[must_use]
    pub const fn with_epoch(mut self, epoch: Epoch) -> Self {
        self.epoch = epoch;
        self
    }

    /// Moves the row into the epoch of its workspace. A target of another epoch does not count: the
    /// row becomes unbound.
    pub(crate) fn in_epoch(mut self, epoch: Epoch) -> Self {
        if self.epoch != epoch {
            self.target = None;
            self.epoch = epoch;
        }
        self
    }
}

/// What a session's row says, but for what is known of all rows of its workspace and what few rows
/// have.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) session: SessionId,
    pub(crate) target: Option<Arc<Target>>,
    pub(crate) revision: Revision,
}

#[cfg(test)]
/// Returns a target to test with. A letter for its agent, a number for its generation: `a5`, or `a` without one; `a@x` has an
/// address.
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
    fn targets_are_compared_by_generation_then_by_place() {
        use Relation::{Newer, Older, Other, Same};
        let table = [
            // known, said, relation
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
        for (known, said, relation) in table {
            let (a, b) = (target(known.0, known.1, known.2), target(said.0, said.1, said.2));
            assert_eq!(a.compare(&b), relation, "{known:?} and then {said:?}");
        }
    }

    #[test]
    fn what_is_behind_is_said_by_the_generation_or_by_the_agent() {
        type Named = (u128, Option<i64>, Option<&'static str>);
        type Case<'a> = (Named, Named, Behind, &'a [Named], &'a [Named]);
        let of = |(agent, generation, address): Named| target(agent, generation, address);
        #[rustfmt::skip]
        let table: [Case<'_>; 5] = [
            // stale, current, what is behind: these are, those are not
            ((1, Some(5), None), (2, Some(7), None), Behind::Generation(Generation(7)),
                &[(1, Some(5), None), (1, Some(6), None), (3, Some(1), Some("a")), (2, Some(6), None)],
                &[(2, Some(7), None), (3, Some(7), None), (3, Some(8), None), (1, None, None), (3, None, None)]),
            // The same place of a later build.
            ((1, Some(5), None), (1, Some(6), None), Behind::Generation(Generation(6)),
                &[(1, Some(5), None), (1, Some(4), Some("a"))],
                &[(1, Some(6), None), (1, None, None)]),
            ((1, None, None), (2, None, None), Behind::Agent(AgentId::new(Uuid::from_u128(1))),
                &[(1, None, None), (1, None, Some("a"))],
                &[(2, None, None), (3, None, None), (1, Some(1), None)]),
            // The first number of a workspace.
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
