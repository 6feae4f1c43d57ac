//! The gateway as a process: real sockets, real databases, real TLS, real signals.
#![cfg(unix)]

mod authorization;
mod configuration;
mod databases;
mod faults;
mod limits;
mod readiness;
mod routing;
mod scene;
mod shutdown;
mod story;
mod tls;
