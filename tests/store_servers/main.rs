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
#[cfg(feature = "postgres")]
mod postgres;
mod sent;
