//! What calls, orders and repairs do while the database server fails: killed, frozen, cut off, out
//! of connections, closed to us. Through the layer, on servers of each test's own, in real time.
//!
//! The tests stand in the files of `cases.rs`, once, and are compiled for each database. What
//! differs is beside it.
#![cfg(all(unix, any(feature = "postgres", feature = "mysql")))]

#[cfg(feature = "mysql")]
mod mysql;
#[path = "../support/own_server.rs"]
#[cfg_attr(not(feature = "postgres"), allow(dead_code))] // only that has a pooler
mod own_server;
#[cfg(feature = "postgres")]
mod pgbouncer;
#[cfg(feature = "postgres")]
mod postgres;
mod proxy;
#[path = "../support/resets.rs"]
mod resets;
mod scene;
#[path = "../support/servers.rs"]
#[allow(dead_code)] // no server is from tests/servers
mod servers;
#[path = "../support/mod.rs"]
mod support;
