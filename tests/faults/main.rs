//! Calls, commands and repairs while the database server fails: killed, frozen, cut off, out of
//! connections, access denied. Through the layer, with a server for each test, in real time.
//!
//! The tests are in the files that `each_database.rs` names, and are compiled for each database;
//! the differences are in a module for each.
#![cfg(all(unix, any(feature = "postgres", feature = "mysql")))]

#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod pgbouncer;
#[cfg(feature = "postgres")]
mod postgres;
mod proxy;
mod scene;
