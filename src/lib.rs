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
mod settings;
// 3 state
pub mod store;

pub use binding::{Binding, Generation, Previous, Revision, Target};
pub use error::{BoxError, Error, ErrorKind, LastVerdict};
pub use id::{AgentId, BuildId, SessionId, WorkspaceId};
pub use observer::{Event, Observer};
pub use outcome::{Outcome, Path, Repair};
pub use request::{DialAgent, DialSession, ResolveWorkspace};
pub use resolution::Resolution;
pub use settings::{BuildError, Redial, RepairMode};
