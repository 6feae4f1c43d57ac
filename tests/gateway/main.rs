//! The gateway of the examples as a process, with agents that are processes as well, and foreign
//! clients in front of it.
#![cfg(target_os = "linux")] // the tests read the tasks and files of a process from /proc

mod bodies;
mod clients;
mod forwarding;
mod grpc;
mod hop;
mod rebuilds;
mod refused;
mod statuses;
