//! HTTP to agents: a client with a pool of its own, and a connector for the clients of others.
//!
//! [`AgentClient`] is what most applications want: a service that takes a request with a session in
//! its extensions, and sends it over a connection to the agent that the session is bound to *now*.
//! An ordinary turn uses a connection that is there already: no dial, no query.
//!
//! [`Connector`] is for what brings its own client (hyper-util's legacy client, tonic). Such a
//! client cannot know when a session's agent has changed; read [its traps](Connector#traps) first.
//!
//! [`proxy`] has the few things that a gateway must do between its client and the agent, and
//! [`watch_peer`] makes a TCP socket notice that the machine at its other end is gone.

mod body;
mod builder;
mod client;
mod connection;
mod connector;
mod error;
mod http1;
mod http2;
mod outgoing;
mod pool;
pub mod proxy;
mod question;
mod request;
mod socket;

pub use body::AgentBody;
pub use builder::AgentClientBuilder;
pub use client::{AgentClient, AgentFuture};
pub use connector::{Connector, ConnectorFuture, NoSession};
pub use error::{BadRequest, ClientError, Fault, http2_code};
pub use request::Idempotent;
pub use socket::watch_peer;
