//! The guide: one page for each subject.
//!
//! # Ten words
//!
//! | word | meaning |
//! |---|---|
//! | session | a chat, notebook or job: what a caller talks through ([`SessionId`](crate::SessionId)) |
//! | workspace | where the agent of a session runs; rebuilt from time to time ([`WorkspaceId`](crate::WorkspaceId)) |
//! | build | one version of a workspace; each has a new agent ([`BuildId`](crate::BuildId)) |
//! | agent | the process in a workspace that responds to sessions ([`AgentId`](crate::AgentId)) |
//! | target | what is dialed: the agent, its generation and its address ([`Target`](crate::Target)) |
//! | generation | the number of the build: of two targets, the greater one is newer ([`Generation`](crate::Generation)) |
//! | binding | the row that maps a session to its workspace and target ([`Binding`](crate::Binding)) |
//! | dialer | the wrapped service: it connects to a target ([`DialAgent`](crate::DialAgent)) |
//! | resolver | the service that says which target serves a workspace now ([`ResolveWorkspace`](crate::ResolveWorkspace)) |
//! | repair | the write that makes a binding name the target that responded ([`Repair`](crate::Repair)) |
//!
//! # Pages
//!
//! * [`resolver`]: which target serves a workspace now
//! * [`dialer`]: how to connect, and how to prove that the agent is there
//! * [`http`]: `AgentClient`, WebSockets, gRPC, gateways
//! * [`axum`]: the stack as the state of an application
//! * [`long_lived`]: terminals and streams that follow their session
//! * [`transactions`]: retarget a session together with a row of the application
//! * [`replicas`]: PostgreSQL, MySQL and MariaDB; hints between processes
//! * [`own_store`]: implement `BindingStore`
//! * [`operations`]: which call for which occasion
//! * [`settings`]: every setting and its default
//! * [`errors`]: every kind of error, and what to do
//! * [`guarantees`]: what holds in each case, and the limits
//! * [`costs`]: statements and questions, measured
//! * [`testing`]: paused time, requests for doubles

#[doc = include_str!("guide/resolver.md")]
pub mod resolver {}
#[doc = include_str!("guide/dialer.md")]
pub mod dialer {}
#[doc = include_str!("guide/http.md")]
pub mod http {}
#[doc = include_str!("guide/axum.md")]
pub mod axum {}
#[doc = include_str!("guide/long_lived.md")]
pub mod long_lived {}
#[doc = include_str!("guide/transactions.md")]
pub mod transactions {}
#[doc = include_str!("guide/replicas.md")]
pub mod replicas {}
#[doc = include_str!("guide/own_store.md")]
pub mod own_store {}
#[doc = include_str!("guide/operations.md")]
pub mod operations {}
#[doc = include_str!("guide/settings.md")]
pub mod settings {}
#[doc = include_str!("guide/errors.md")]
pub mod errors {}
#[doc = include_str!("guide/guarantees.md")]
pub mod guarantees {}
#[doc = include_str!("guide/costs.md")]
pub mod costs {}
#[doc = include_str!("guide/testing.md")]
pub mod testing {}
