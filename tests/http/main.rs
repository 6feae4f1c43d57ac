//! HTTP to agents over real sockets: the connector, the client and its pool.

#[path = "../support/mod.rs"]
mod support;

mod net;

mod connector;
mod evidence;
mod failures;
mod front;
mod hop;
mod http2;
mod limits;
mod moves;
mod questions;
mod reuse;
mod streams;
