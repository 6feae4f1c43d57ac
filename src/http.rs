//! HTTP to agents: a client with its own connection pool, and a connector for other clients.
//!
//! Most applications want [`AgentClient`]: a service that takes a request with a session in its
//! extensions and sends it over a connection to the agent that the session is bound to *now*. An
//! ordinary turn uses an existing connection: no dial, no query.
//!
//! [`Connector`] is for libraries that bring their own client (hyper-util's legacy client, tonic).
//! Such a client cannot know when a session's agent has changed; read [its traps](Connector#traps)
//! first.
//!
//! [`proxy`] has the rules that a gateway applies between its client and the agent. [`watch_peer`]
//! makes a TCP socket fail once the peer's machine is unreachable.

mod body;
mod builder;
mod client;
mod connection;
mod connector;
mod error;
mod http1;
mod http2;
mod lease;
mod open;
mod outgoing;
mod pool;
pub mod proxy;
mod question;
mod request;
mod send;
mod sender;
mod settings;
mod socket;
mod stats;
mod transport;

pub use body::AgentBody;
pub use builder::AgentClientBuilder;
pub use client::{AgentClient, AgentFuture};
pub use connector::{Connector, ConnectorFuture, NoSession};
pub use error::{BadRequest, ClientError, Fault, http2_code};
pub use request::Idempotent;
pub use socket::watch_peer;
pub use stats::ClientStats;
