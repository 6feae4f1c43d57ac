//! Doubles and scenes that the tests share. Nothing here is published.
//!
//! * [`World`]: scripted workspaces and agents, the strict dialer, and [`Tap`], a store that counts
//!   statements and injects faults. Its names are those of this crate's root.
//! * [`wire`]: a hint bus that loses, delays, doubles and reorders hints.
//! * [`rows`], [`verbs`]: rows built from numbers, and each verb of a store that writes.
//! * `transactions`: commands in the caller's transaction, over any database.
//! * [`child`]: processes that work on one database at once, or are killed.
//! * [`resets`]: two processes of which one does not know of the other's reset.
//! * [`servers`], [`own_server`], `pgbouncer`: database servers, shared and exclusive to one test.
//! * `log`: the lines that the crate has logged on a test's thread.
//! * `net`, `gateway`, `refused`: agents on real sockets, a gateway as a process, and the statuses
//!   of that gateway.

pub mod child;
#[cfg(all(target_os = "linux", feature = "http"))]
pub mod gateway;
#[cfg(feature = "tracing")]
pub mod log;
#[cfg(feature = "http")]
pub mod net;
#[cfg(unix)]
pub mod own_server;
#[cfg(all(unix, feature = "postgres"))]
pub mod pgbouncer;
#[cfg(feature = "http")]
pub mod refused;
pub mod resets;
pub mod rows;
pub mod servers;
#[cfg(feature = "sqlx")]
pub mod transactions;
pub mod verbs;
pub mod wire;
mod world;

pub use world::*;
