//! Keeps sessions talking to the right agent of a rebuilt workspace, without a query per turn.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

// 1 words
mod binding;
mod error;
mod id;
mod observer;
mod outcome;
mod request;
mod resolution;
// 2 decision
mod attempt;
mod settings;
// 3 state
mod directory;
mod flight;
mod resolver;
mod rows;
mod shared;
pub mod store;
mod tasks;
// 4 action
mod call;
mod dialer;
mod race;
mod repair;
// 5 face
mod bindings;
mod bound;
mod builder;
mod layer;
mod service;

pub use binding::{Binding, Generation, Previous, Revision, Target};
pub use bindings::{Bindings, Current, Retargeted, Status};
pub use bound::{Bound, BoundHandle};
pub use builder::BoundAgentBuilder;
pub use error::{BoxError, Error, ErrorKind, LastVerdict};
pub use id::{AgentId, BuildId, SessionId, WorkspaceId};
pub use layer::BoundAgentLayer;
pub use observer::{Event, Observer};
pub use outcome::{Outcome, Path, Repair};
pub use request::{DialAgent, DialSession, ResolveWorkspace};
pub use resolution::Resolution;
pub use service::{BoundAgent, ResponseFuture};
pub use settings::{BuildError, Redial, RepairMode};
#[cfg(feature = "sqlite")]
#[cfg_attr(docsrs, doc(cfg(feature = "sqlite")))]
pub use sqlx;
