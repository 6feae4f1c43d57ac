//! The gateway of the examples as a process of its own, with agents that are processes as well, and
//! clients of others in front of it.
#![cfg(target_os = "linux")] // what a process holds is read from /proc

mod bodies;
mod clients;
mod forwarding;
mod grpc;
mod hop;
mod rebuilds;
mod refused;
mod statuses;
