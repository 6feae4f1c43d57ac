//! Ids and targets made of numbers, and a row without its revision.

use crate::{
    AgentId, Binding, BuildId, Epoch, Generation, Previous, Revision, SessionId, Target,
    WorkspaceId, store::NewBinding,
};
use std::sync::Arc;
use uuid::Uuid;

pub(super) const fn session(id: u128) -> SessionId {
    SessionId::new(Uuid::from_u128(0x5e55_0000_0000 + id))
}

pub(super) const fn workspace(id: u128) -> WorkspaceId {
    WorkspaceId::new(Uuid::from_u128(0x3032_0000_0000 + id))
}

pub(super) const fn agent(id: u128) -> AgentId {
    AgentId::new(Uuid::from_u128(0xa6e4_0000_0000 + id))
}

pub(super) const fn build(id: u128) -> BuildId {
    BuildId::new(Uuid::from_u128(0xb1d_0000_0000 + id))
}

/// A target of which everything is known, and everything follows from the number.
pub(super) fn full(id: u128) -> Arc<Target> {
    let target = Target::new(agent(id)).with_build(build(id));
    Arc::new(target.with_generation(id as i64).with_address(format!("10.0.0.{id}:9000")))
}

/// A target of which only the agent is known.
pub(super) fn bare(id: u128) -> Arc<Target> {
    Arc::new(Target::new(agent(id)))
}

pub(super) fn at_address(id: u128, address: &str) -> Arc<Target> {
    Arc::new(Target::new(agent(id)).with_address(address))
}

pub(super) fn of_generation(id: u128, generation: i64) -> Arc<Target> {
    Arc::new(Target::new(agent(id)).with_generation(generation))
}

/// The agent of [`full`], as one that was there before.
pub(super) const fn previous(id: u128) -> Option<Previous> {
    Some(Previous::new(agent(id), Some(Generation::new(id as i64))))
}

/// The agent of a target, as one that was there before.
pub(super) fn gone(target: &Target) -> Previous {
    Previous::new(target.agent, target.generation)
}

/// A record in epoch 0.
pub(super) fn new(s: u128, w: u128, target: Option<Arc<Target>>) -> NewBinding {
    NewBinding::new(session(s), workspace(w), target)
}

pub(super) const fn epoch(epoch: i64) -> Epoch {
    Epoch::new(epoch)
}

pub(super) const fn at(revision: i64) -> Revision {
    Revision::new(revision)
}

/// What the contract says of a row's content. Its revision only has to grow, and its epoch is that
/// of its workspace: `Checked` sees to both.
#[derive(Clone, Debug, PartialEq, Eq)]
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

pub(super) fn row(
    s: u128,
    w: u128,
    target: Option<Arc<Target>>,
    previous: Option<Previous>,
) -> Row {
    Row { session: session(s), workspace: workspace(w), target, previous }
}
