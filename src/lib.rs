//! A Tower layer that keeps sessions talking to the right agent of a rebuilt workspace, without a
//! query per turn.
//!
//! A *session* (a chat, a notebook, a job) points at a *workspace*. The workspace is rebuilt from
//! time to time, and every build brings a new *agent*, the process that answers. The *binding* of a
//! session to its agent is kept in a [`store`], cached here, and treated as a guess that is usually
//! right:
//!
//! * The bound agent is dialed at once. If it answers, nobody was asked: no query, no question.
//! * If the dial hesitates longer than the
//!   [`validation_delay`](BoundAgentBuilder::validation_delay), or fails, the *resolver* is asked
//!   which agent serves the workspace now. A dial that hesitates goes on meanwhile.
//! * If the answer is another agent, the stale dial is dropped, the new agent is dialed, and the
//!   binding is *repaired* in the background.
//!
//! The [`guide`](https://docs.rs/tower-bound-agent/latest/tower_bound_agent/guide/index.html) has a
//! page for each subject: the resolver, the dialer, HTTP, transactions, replicas, settings, errors,
//! guarantees, operations.
//!
//! ```
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_bound_agent::{
//!     AgentId, BoundAgentLayer, BoxError, DialAgent, DialSession, OutcomeKind, Resolution, ResolveWorkspace, SessionId, Target,
//!     WorkspaceId, store::MemoryStore,
//! };
//! # use std::{future::pending, time::Duration};
//! # use tokio::sync::watch;
//! # use uuid::Uuid;
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), BoxError> {
//! # let (old, new) = (AgentId::new(Uuid::from_u128(1)), AgentId::new(Uuid::from_u128(2)));
//! # let (chat, workspace) = (SessionId::new(Uuid::from_u128(3)), WorkspaceId::new(Uuid::from_u128(4)));
//! // Who serves the workspace now? Here: whoever was put into a channel, with the number of the build.
//! let (build, builds) = watch::channel(Target::new(old).with_generation(1));
//! let resolver = {
//!     let builds = builds.clone();
//!     service_fn(move |_: ResolveWorkspace| {
//!         let builds = builds.clone();
//!         async move { Ok::<_, BoxError>(Resolution::Running(builds.borrow().clone())) }
//!     })
//! };
//! // Connects to a given target. Here: agents that were replaced accept, and never answer.
//! let dialer = service_fn(move |ask: DialAgent| {
//!     let builds = builds.clone();
//!     async move {
//!         if builds.borrow().agent != ask.target.agent {
//!             pending::<()>().await;
//!         }
//!         Ok::<_, BoxError>(format!("a connection to agent {}", ask.target.agent))
//!     }
//! });
//!
//! let layer = BoundAgentLayer::builder(MemoryStore::new(), resolver).build()?;
//! let bindings = layer.bindings();
//! let dial = ServiceBuilder::new().layer(layer).service(dialer);
//!
//! let bound = dial.clone().oneshot(DialSession::new(chat).in_workspace(workspace)).await?;
//! assert_eq!(bound.outcome().kind, OutcomeKind::FirstBind);
//! bindings.flush().await; // nobody need wait until the binding is written; here it is to be sure what comes next
//! let bound = dial.clone().oneshot(chat.into()).await?;
//! assert_eq!(bound.outcome().kind, OutcomeKind::Reused);
//!
//! build.send_replace(Target::new(new).with_generation(2));
//! let bound = dial.oneshot(chat.into()).await?; // after 250 ms
//! assert!(matches!(&bound.outcome().kind, OutcomeKind::Switched { from } if from.agent == old));
//! assert_eq!(bound.target().agent, new);
//! # Ok(())
//! # }
//! ```
//!
//! # Where to begin
//!
//! * [`BoundAgentLayer::builder`] takes a store and a resolver; [`BoundAgentBuilder`] has every
//!   setting.
//! * [`BoundAgent`] is the service. It takes a [`DialSession`] and returns a [`Bound`] connection
//!   or an [`Error`]; the dialer that it wraps gets a [`DialAgent`].
//! * [`Bindings`] is the handle for what is no dial: looking at bindings, pointing a session at
//!   another workspace, children, hints, the end.
//! * [`store::MemoryStore`] is for tests; `store::SqliteStore` keeps bindings in a file, alone or
//!   over the application's pool; `store::PostgresStore` and `store::MySqlStore` work over the
//!   application's pool; [`store::BindingStore`] is the contract for others.
//! * [`hints`] let the processes that work over one store tell each other what they have written.
//! * [`Observer`] and [`Event`] are for metrics, activity tracking, and hooks for a rebind.
//!
//! # Tests of your own
//!
//! All waits are Tokio's, so on a paused clock a rebuild takes no time. Here `tower_test` plays the
//! agents; a dialer of yours is tested by itself, with [`DialAgent::new`], and a resolver with
//! [`ResolveWorkspace::new`].
//!
//! ```
//! use tower::{Layer, ServiceExt, service_fn};
//! use tower_bound_agent::{
//!     AgentId, BoundAgentLayer, BoxError, DialAgent, DialSession, OutcomeKind, Resolution, ResolveWorkspace, SessionId, Target,
//!     WorkspaceId, store::MemoryStore,
//! };
//! use uuid::Uuid;
//!
//! # fn main() -> Result<(), BoxError> {
//! # tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()?
//! #     .block_on(an_agent_that_refuses_is_dialed_once_more())
//! # }
//! # /*
//! #[tokio::test(start_paused = true)]
//! # */
//! async fn an_agent_that_refuses_is_dialed_once_more() -> Result<(), BoxError> {
//!     let target = Target::new(AgentId::new(Uuid::from_u128(1))).with_generation(7);
//!     let (chat, workspace) = (SessionId::new(Uuid::from_u128(2)), WorkspaceId::new(Uuid::from_u128(3)));
//!     let running = Resolution::Running(target.clone());
//!     let resolver = service_fn(move |_: ResolveWorkspace| std::future::ready(Ok::<_, BoxError>(running.clone())));
//!     let (dialer, mut agents) = tower_test::mock::pair::<DialAgent, &str>();
//!     let dial = BoundAgentLayer::builder(MemoryStore::new(), resolver).build()?.layer(dialer);
//!
//!     let turn = tokio::spawn(dial.oneshot(DialSession::new(chat).in_workspace(workspace)));
//!     let (asked, answer) = agents.next_request().await.ok_or("no dial")?;
//!     assert_eq!(*asked.target, target);
//!     answer.send_error("refused");
//!     let (_, answer) = agents.next_request().await.ok_or("no second dial")?;
//!     answer.send_response("a connection");
//!
//!     let bound = turn.await??;
//!     assert_eq!((*bound.get_ref(), bound.outcome().dials), ("a connection", 2));
//!     assert_eq!(bound.outcome().kind, OutcomeKind::FirstBind);
//!     Ok(())
//! }
//! ```
//!
//! # Features
//!
//! | feature | default | what it brings |
//! |---|---|---|
//! | `sqlite` | yes | `store::SqliteStore`, with SQLite built in; `sqlx` is re-exported |
//! | `postgres` | | `store::PostgresStore`, `hints::PostgresHints`; `sqlx` is re-exported |
//! | `mysql` | | `store::MySqlStore`, also for MariaDB; `sqlx` is re-exported |
//! | `http` | | the module `http`: a connector for hyper and tonic, and a client with a pool; hyper's `Read` and `Write` passed through [`Bound`] |
//! | `serde` | | the ids as serde sees a `Uuid` |
//! | `tracing` | | a span for each call, an event for each step |
//! | `full` | | all of them |
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

// Vocabulary.
mod answer;
mod binding;
mod error;
mod id;
mod local;
mod observer;
mod outcome;
mod request;
mod resolution;
mod settings;
// Leaves.
mod clock;
mod gate;
mod jitter;
mod pulse;
mod single_flight;
mod sync;
mod tasks;
mod tick;
// What is known: of a session's row, of a workspace; what is written; what other processes write.
mod cache;
pub mod hints;
mod repair;
mod replicas;
mod resolver;
mod state;
pub mod store;
mod workspace;
// One call.
mod dial;
// The faces.
mod bindings;
mod bound;
mod builder;
#[cfg(feature = "full")]
pub mod guide;
#[cfg(feature = "http")]
#[cfg_attr(docsrs, doc(cfg(feature = "http")))]
pub mod http;
mod layer;
mod service;

pub use binding::{Binding, Epoch, Generation, Previous, Revision, Target};
pub use bindings::{Bindings, Current, Retargeted, SessionInUse, Status};
pub use bound::{Bound, BoundHandle, InUse};
pub use builder::BoundAgentBuilder;
pub use error::{BoxError, Error, ErrorKind, LastVerdict};
pub use id::{AgentId, BuildId, SessionId, WorkspaceId};
pub use layer::BoundAgentLayer;
pub use local::LocalError;
pub use observer::{Event, Observer, OwnedEvent};
pub use outcome::{Outcome, OutcomeKind, Repair};
pub use request::{DialAgent, DialSession, ResolveWorkspace};
pub use resolution::Resolution;
pub use service::{BoundAgent, ResponseFuture};
pub use settings::{BuildError, Redial, RepairMode};
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
#[cfg_attr(docsrs, doc(cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))))]
pub use sqlx;

/// What most programs use, for `use tower_bound_agent::prelude::*`.
///
/// A glob import of the crate itself would bring the module `http` as well, and make the name of
/// the crate `http` ambiguous.
pub mod prelude {
    pub use crate::{
        AgentId, Bindings, Bound, BoundAgent, BoundAgentLayer, BoundHandle, BoxError, DialAgent,
        DialSession, Error, ErrorKind, Event, Observer, Resolution, ResolveWorkspace, SessionId,
        Target, WorkspaceId,
    };
}

/// The code in the README compiles.
#[cfg(all(doctest, feature = "full"))]
#[doc = include_str!("../README.md")]
struct Readme;
