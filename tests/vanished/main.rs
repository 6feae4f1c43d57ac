//! Machines that vanish: the agent runs in a network namespace of its own. From one packet to the
//! next, no packet passes in either direction: no end of a connection, no reset, no error. The
//! tests run in real time.
//!
//! Each test runs in a process and a network namespace of its own, so that it does not reach the
//! host's network, and leaves nothing behind even if it fails.
#![cfg(target_os = "linux")]

mod machine;

mod client;
