//! HTTP to agents over real sockets: the connector, the client and its pool.

#[path = "../support/mod.rs"]
mod support;

mod net;

mod connector;
mod failures;
mod front;
mod hop;
mod limits;
mod moves;
mod reuse;
mod streams;
