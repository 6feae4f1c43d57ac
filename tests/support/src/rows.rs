//! Rows of a store, built from numbers, and the text of an error.

use std::{error::Error, sync::Arc};
use tower_bound_agent::{
    AgentId, Binding, BuildId, Epoch, Generation, Previous, Revision, SessionId, Target,
    WorkspaceId, store::NewBinding,
};
use uuid::Uuid;

pub fn session(id: u128) -> SessionId {
    SessionId::new(Uuid::from_u128(0x5e55_0000 + id))
}

pub fn workspace(id: u128) -> WorkspaceId {
    WorkspaceId::new(Uuid::from_u128(0x3032_0000 + id))
}

/// Returns the target of a generation. A target that mixes two generations equals none of these.
pub fn target(generation: i64) -> Arc<Target> {
    let id = generation as u128;
    let target = Target::new(AgentId::new(Uuid::from_u128(0xa6e4_0000 + id)));
    let target = target.with_build(BuildId::new(Uuid::from_u128(0xb1d_0000 + id)));
    Arc::new(target.with_generation(generation).with_address(format!("agent-{generation}:9000")))
}

pub fn previous(generation: i64) -> Option<Previous> {
    Some(Previous::new(target(generation).agent, Some(Generation::new(generation))))
}

pub fn new(s: u128, w: u128, target: Option<Arc<Target>>) -> NewBinding {
    NewBinding::new(session(s), workspace(w), target)
}

pub fn row(
    s: u128,
    w: u128,
    target: Option<Arc<Target>>,
    revision: i64,
    previous: Option<Previous>,
) -> Binding {
    Binding::new(session(s), workspace(w), target, at(revision)).with_previous(previous)
}

pub const fn epoch(epoch: i64) -> Epoch {
    Epoch::new(epoch)
}

pub const fn at(revision: i64) -> Revision {
    Revision::new(revision)
}

/// Returns the messages of an error and of all its causes.
pub fn words(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    words
}
