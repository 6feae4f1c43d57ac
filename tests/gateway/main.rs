//! The gateway of the examples as a process of its own, with agents that are processes as well, and
//! clients of others in front of it.
#![cfg(target_os = "linux")] // what a process holds is read from /proc

#[path = "../support/servers.rs"]
#[allow(dead_code)] // for its `left_out`
mod servers;

#[path = "../../examples/grpc/answers.rs"]
mod answers;
mod process;
#[path = "../../examples/gateway/refused.rs"]
#[allow(dead_code)] // what only the gateway itself makes
mod refusals;

mod bodies;
mod clients;
mod grpc;
mod hop;
mod passed;
mod rebuilds;
mod refused;
mod statuses;
