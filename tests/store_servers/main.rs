//! What is particular to the stores in database servers: set-up, errors, transactions, lost
//! connections, many writers.
//!
//! The tests stand in `cases.rs`, once, and are compiled for each database. What differs is beside
//! it. The servers are those of `tests/servers`.
#![cfg(any(feature = "postgres", feature = "mysql"))]

#[cfg(all(unix, feature = "postgres"))]
mod behind_pgbouncer;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(all(unix, feature = "postgres"))]
#[path = "../support/own_server.rs"]
#[allow(dead_code)] // what kills
mod own_server;
#[cfg(all(unix, feature = "postgres"))]
#[path = "../support/pgbouncer.rs"]
#[allow(dead_code)] // the other database
mod pgbouncer;
#[cfg(feature = "postgres")]
mod postgres;
#[path = "../support/rows.rs"]
mod rows;
mod sent;
#[path = "../support/servers.rs"]
mod servers;
#[path = "../support/verbs.rs"]
mod verbs;
