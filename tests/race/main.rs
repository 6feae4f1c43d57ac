//! The race, case by case: dials, questions, reads and writes, their times, and the result of the
//! call.
//!
//! Each module has one subject. The numbers in the names are the rows of "What must hold" in
//! ARCHITECTURE.md.

mod alternating_targets;
mod comparing;
mod denied;
mod dial_limit;
mod dial_timeout;
mod dropped_calls;
mod fast_path;
mod group_repair;
mod local_errors;
mod many_sessions;
mod missed_rows;
mod one_call;
mod pending_dials;
mod revalidation;
mod scene;
mod wrong_agent;

mod interleavings;
mod own_repair;
mod panics;
