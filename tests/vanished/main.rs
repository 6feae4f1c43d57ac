//! Machines that vanish: the agent runs in a network namespace of its own, and from one packet to
//! the next nothing goes there any more and nothing comes from there. No end of a connection, no
//! reset, no error: only silence, of the whole machine. Time is real here.
//!
//! Each test runs in a process and a network namespace of its own, so that nothing of it reaches a
//! network of the machine that it runs on, and nothing remains of it however it ends.
#![cfg(target_os = "linux")]

mod machine;

mod client;
