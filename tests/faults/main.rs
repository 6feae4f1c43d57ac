//! What calls, orders and repairs do while the database server fails: killed, frozen, cut off, out
//! of connections, closed to us. Through the layer, on servers of each test's own, in real time.
//!
//! The tests stand in the files of `cases.rs`, once, and are compiled for each database. What
//! differs is beside it.
#![cfg(all(unix, any(feature = "postgres", feature = "mysql")))]

#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod pgbouncer;
#[cfg(feature = "postgres")]
mod postgres;
mod proxy;
mod scene;
