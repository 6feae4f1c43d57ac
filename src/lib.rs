//! A Tower layer that keeps sessions talking to the right agent of a rebuilt workspace, without a
//! query per turn.
//!
//! A *session* (a chat, a notebook, a job) points at a *workspace*. The workspace is rebuilt from
//! time to time, and every build creates a new *agent*, the process that answers. The *binding* of
//! a session to its agent is persisted in a [`store`] and cached in this process. The layer treats
//! it as an optimistic cache, which is validated only when there is a reason:
//!
//! * The layer dials the bound agent at once. If the agent answers, the call costs no query, and no
//!   question to the resolver.
//! * If the dial is pending longer than the
//!   [`validation_delay`](BoundAgentBuilder::validation_delay), or fails, the layer asks the
//!   *resolver* which agent serves the workspace now. A pending dial continues meanwhile.
//! * If the resolver names another agent, the layer drops the stale dial, dials the new agent, and
//!   *repairs* the binding in the background.
//!
//! <div style="margin: 1em 0">
#![doc = include_str!("../docs/race.svg")]
//! </div>
//!
//! # Guide
//!
//! The [guide] has a [glossary][guide] and a page for each subject.
//!
//! * To begin: the [resolver] and the [dialer], the two services that an application provides.
//! * To build on: [axum], [HTTP, WebSockets, gRPC and gateways][http], [long-lived
//!   connections][long_lived], [transactions], [several processes][replicas], [a store of your
//!   own][own_store], [testing].
//! * To operate: [recipes][operations], [slow turns][slow], [settings], [errors], [guarantees and
//!   limits][guarantees], [what turns cost the database][costs], [performance].
//!
//! # Example
//!
//! ```
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_bound_agent::{AgentId, OutcomeKind, prelude::*, store::MemoryStore};
//! # use std::{future::pending, time::Duration};
//! # use tokio::sync::watch;
//! # use uuid::Uuid;
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), BoxError> {
//! # let (old, new) = (AgentId::new(Uuid::from_u128(1)), AgentId::new(Uuid::from_u128(2)));
//! # let chat = SessionId::new(Uuid::from_u128(3));
//! # let workspace = WorkspaceId::new(Uuid::from_u128(4));
//! // The resolver returns the target that serves the workspace now. Here, a channel holds it.
//! let (build, builds) = watch::channel(Target::new(old).with_generation(1));
//! let resolver = {
//!     let builds = builds.clone();
//!     service_fn(move |_: ResolveWorkspace| {
//!         let builds = builds.clone();
//!         async move { Ok::<_, BoxError>(Resolution::Running(builds.borrow().clone())) }
//!     })
//! };
//! // The dialer connects to a target. Here, an agent that was replaced never answers.
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
//! bindings.flush().await; // waits until the binding is written; an application need not wait
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
//! * [`BoundAgentLayer::builder`] takes a store and a resolver. [`BoundAgentBuilder`] has every
//!   setting.
//! * [`BoundAgent`] is the service. It takes a [`DialSession`] and returns a [`Bound`] connection
//!   or an [`Error`]. The dialer that it wraps takes a [`DialAgent`].
//! * [`Bindings`] is the handle for commands and queries: it reads bindings, retargets sessions,
//!   binds children, announces rebuilds, and shuts the layer down.
//! * [`store::MemoryStore`] is for tests. [`SqliteStore`] keeps bindings in a file of its own or
//!   over the application's pool. [`PostgresStore`] and [`MySqlStore`] work over the application's
//!   pool. [`store::BindingStore`] is the contract of a store.
//! * [`hints`] tell the processes over one store what the others have written.
//! * An [`Observer`] receives every [`Event`], for metrics, activity tracking, and hooks for a
//!   rebind.
//! * An [`AgentClient`] sends HTTP requests to agents and keeps connections to them.
//!
//! # Features
//!
//! * `sqlite` (default): [`SqliteStore`], with SQLite built in; re-exports `sqlx`.
//! * `postgres`: [`PostgresStore`] and [`PostgresHints`]; re-exports `sqlx`.
//! * `mysql`: [`MySqlStore`], also for MariaDB; re-exports `sqlx`.
//! * `http`: [`AgentClient`], a client with a pool; [`Connector`], for hyper-util and tonic;
//!   [`Hop`], the rules of a gateway.
//! * `serde`: [`Settings`] from configuration, ids that serialize as a `Uuid`, and what a page for
//!   debugging shows ([`Stats`], [`WorkspaceSnapshot`], [`SessionSnapshot`]).
//! * `tracing`: a span for each call, an event for each step.
//! * `metrics`: counters, histograms and gauges for the recorder of the application.
//! * `testing`: for `[dev-dependencies]`, the contract of a store as tests.
//! * `full`: all of them.
//!
#![cfg_attr(feature = "full", doc = include_str!("guide/links.md"))]
#![cfg_attr(not(feature = "full"), doc = include_str!("guide/links_online.md"))]
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
mod snapshot;
mod wrong_agent;
// Leaves.
mod backoff;
mod clock;
mod compact_instant;
mod gate;
mod jitter;
#[cfg(feature = "tracing")]
mod log;
#[cfg(feature = "metrics")]
mod metrics;
mod pulse;
mod single_flight;
mod spans;
mod sync;
mod tasks;
mod waiters;
// State: cached rows, workspaces, repairs, and what other processes write.
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
// The public faces.
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
#[cfg(feature = "testing")]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
pub mod testing;

pub use binding::{Binding, Epoch, Generation, Previous, Revision, Target};
pub use bindings::{Bindings, Current, Retargeted, SessionInUse, Stats};
pub use bound::{Bound, BoundHandle, InUse};
pub use builder::BoundAgentBuilder;
pub use error::{BoxError, Error, ErrorKind, LastVerdict};
pub use id::{AgentId, BuildId, SessionId, WorkspaceId};
pub use layer::BoundAgentLayer;
pub use local::LocalError;
pub use observer::{Event, Observer, OwnedEvent};
pub use outcome::{Outcome, OutcomeKind, Repair};
pub use request::{DialAgent, DialSession, ResolveWorkspace};
pub use resolution::{Resolution, Status};
pub use service::{BoundAgent, ResponseFuture};
pub use settings::{BuildError, Redial, RefreshInterval, RepairMode, Settings};
pub use snapshot::{
    DoubtReason, DoubtSnapshot, RepairSnapshot, SessionSnapshot, TargetSource, VerdictSnapshot,
    WorkspaceSnapshot,
};
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
#[cfg_attr(docsrs, doc(cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))))]
pub use sqlx;
pub use wrong_agent::WrongAgentError;

/// The names that most programs use, for `use tower_bound_agent::prelude::*`.
///
/// A glob import of the crate itself would also import its module `http`, and make the name of the
/// crate `http` ambiguous.
pub mod prelude {
    pub use crate::{
        AgentId, Bindings, Bound, BoundAgent, BoundAgentLayer, BoundHandle, BoxError, DialAgent,
        DialSession, Error, ErrorKind, Event, Observer, Resolution, ResolveWorkspace, SessionId,
        Target, WorkspaceId,
    };
}

/// Compiles the examples of the README.
#[cfg(all(doctest, feature = "full"))]
#[doc = include_str!("../README.md")]
struct Readme;
