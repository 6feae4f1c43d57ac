//! The gateway as a process: real sockets, a real SQLite file, real TLS, real signals.
#![cfg(unix)]

mod authorization;
mod configuration;
mod faults;
mod limits;
mod readiness;
mod routing;
mod scene;
mod shutdown;
mod story;
mod tls;
