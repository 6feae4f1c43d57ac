//! Stores in database servers: set-up, errors, transactions, lost connections, many writers.
//!
//! The tests are in `each_database.rs` and are compiled for each database; a module for each has
//! the differences. `tests/servers` starts the servers.
#![cfg(any(feature = "postgres", feature = "mysql"))]

#[cfg(all(unix, feature = "postgres"))]
mod behind_pgbouncer;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
mod traced_statements;
