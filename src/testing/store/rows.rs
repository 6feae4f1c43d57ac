//! Ids and targets built from numbers, and a row without its revision.

use crate::{
    AgentId, Binding, BuildId, Epoch, Generation, Previous, Revision, SessionId, Target,
    WorkspaceId, store::NewBinding,
};
use std::{fmt, sync::Arc};
use uuid::Uuid;

const SESSION: u128 = 0x5e55_0000_0000;
const WORKSPACE: u128 = 0x3032_0000_0000;
const AGENT: u128 = 0xa6e4_0000_0000;
const BUILD: u128 = 0xb1d_0000_0000;

pub(super) const fn session(id: u128) -> SessionId {
    SessionId::new(Uuid::from_u128(SESSION + id))
}

pub(super) const fn workspace(id: u128) -> WorkspaceId {
    WorkspaceId::new(Uuid::from_u128(WORKSPACE + id))
}

pub(super) const fn agent(id: u128) -> AgentId {
    AgentId::new(Uuid::from_u128(AGENT + id))
}

pub(super) const fn build(id: u128) -> BuildId {
    BuildId::new(Uuid::from_u128(BUILD + id))
}

/// Returns a target with all fields, which follow from the number.
pub(super) fn full(id: u128) -> Arc<Target> {
    let target = Target::new(agent(id)).with_build(build(id));
    Arc::new(target.with_generation(id as i64).with_address(format!("10.0.0.{id}:9000")))
}

/// Returns a target with an agent only.
pub(super) fn bare(id: u128) -> Arc<Target> {
    Arc::new(Target::new(agent(id)))
}

pub(super) fn at_address(id: u128, address: &str) -> Arc<Target> {
    Arc::new(Target::new(agent(id)).with_address(address))
}

pub(super) fn of_generation(id: u128, generation: i64) -> Arc<Target> {
    Arc::new(Target::new(agent(id)).with_generation(generation))
}

/// Returns the agent of [`full`] as a previous agent.
pub(super) const fn previous(id: u128) -> Option<Previous> {
    Some(Previous::new(agent(id), Some(Generation::new(id as i64))))
}

/// Returns the agent of a target as a previous agent.
pub(super) fn gone(target: &Target) -> Previous {
    Previous::new(target.agent, target.generation)
}

/// Returns a record in epoch 0.
pub(super) fn new(s: u128, w: u128, target: Option<Arc<Target>>) -> NewBinding {
    NewBinding::new(session(s), workspace(w), target)
}

pub(super) const fn epoch(epoch: i64) -> Epoch {
    Epoch::new(epoch)
}

pub(super) const fn at(revision: i64) -> Revision {
    Revision::new(revision)
}

/// The content of a row that the contract determines. `Checked` asserts that its revision grows and
/// that its epoch is that of its workspace.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) session: SessionId,
    pub(super) workspace: WorkspaceId,
    pub(super) target: Option<Arc<Target>>,
    pub(super) previous: Option<Previous>,
}

impl Row {
    pub(super) fn of(binding: &Binding) -> Self {
        Self {
            session: binding.session,
            workspace: binding.workspace,
            target: binding.target.clone(),
            previous: binding.previous,
        }
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (session, workspace) = (show_session(self.session), show_workspace(self.workspace));
        write!(f, "{{ {session}, {workspace}, {}", show_target(self.target.as_deref()))?;
        if let Some(previous) = &self.previous {
            write!(f, ", before: {}", show("agent", previous.agent.into_uuid(), AGENT))?;
            let generation = previous.generation.map(Generation::get);
            generation.map_or(Ok(()), |generation| write!(f, " of generation {generation}"))?;
        }
        f.write_str(" }")
    }
}

pub(super) fn row(
    s: u128,
    w: u128,
    target: Option<Arc<Target>>,
    previous: Option<Previous>,
) -> Row {
    Row { session: session(s), workspace: workspace(w), target, previous }
}

/// A whole row, or none, for messages.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Shown<'a>(pub(super) Option<&'a Binding>);

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("no row"),
            Some(row) => {
                write!(f, "{:?} at revision {} in epoch {}", Row::of(row), row.revision, row.epoch)
            }
        }
    }
}

/// Shows an id that was built from a number as that number.
fn show(kind: &str, id: Uuid, base: u128) -> String {
    match id.as_u128().checked_sub(base) {
        Some(number @ ..1_000_000_000) => format!("{kind} {number}"),
        _ => format!("{kind} {id}"),
    }
}

pub(super) fn show_session(session: SessionId) -> String {
    show("session", session.into_uuid(), SESSION)
}

pub(super) fn show_workspace(workspace: WorkspaceId) -> String {
    show("workspace", workspace.into_uuid(), WORKSPACE)
}

pub(super) fn show_target(target: Option<&Target>) -> String {
    let Some(target) = target else { return "no target".into() };
    let mut known = Vec::new();
    known.extend(target.build.map(|build| show("build", build.into_uuid(), BUILD)));
    known.extend(target.generation.map(|generation| format!("generation {}", generation.get())));
    known.extend(target.address.as_deref().map(|address| format!("at {address:?}")));
    let agent = show("agent", target.agent.into_uuid(), AGENT);
    if known.is_empty() { agent } else { format!("{agent} ({})", known.join(", ")) }
}

pub(super) fn show_new(new: &NewBinding) -> String {
    let (session, workspace) = (show_session(new.session), show_workspace(new.workspace));
    format!("{session}, {workspace}, {}, epoch {}", show_target(new.target.as_deref()), new.epoch)
}
