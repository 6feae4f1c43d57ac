//! One call, from the request to the connection.
//!
//! [`call`] finds the row and dials it; [`race`] drives an [`attempt`], the pure decision core,
//! while the dial is in question; [`dialer`] is the one place where the wrapped service is asked
//! for readiness and called.

pub(crate) mod attempt;
pub(crate) mod call;
pub(crate) mod dialer;
pub(crate) mod race;
