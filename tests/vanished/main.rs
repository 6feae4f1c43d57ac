//! Machines that vanish: the agent runs in a network namespace of its own, and from one packet to
//! the next nothing goes there any more and nothing comes from there. No end of a connection, no
//! reset, no error: only silence, of the whole machine. Time is real here.
//!
//! Each test runs in a process and a network namespace of its own, so that nothing of it reaches a
//! network of the machine that it runs on, and nothing remains of it however it ends.
#![cfg(target_os = "linux")]

#[path = "../http/net.rs"]
#[allow(dead_code)] // its agents live on this machine
mod net;
#[path = "../gateway/process.rs"]
#[allow(dead_code)]
mod process;
#[path = "../support/servers.rs"]
#[allow(dead_code)] // for its `left_out`
mod servers;
#[path = "../support/mod.rs"]
mod support;

mod machine;

mod client;
