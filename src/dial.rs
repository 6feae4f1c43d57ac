//! One call, from the request to the connection.
//!
//! [`future`] dials the cached row; [`call`] goes on if that is in question. [`race`] drives an
//! [`attempt`], the pure decision core; [`dialer`] is the one place where the wrapped service is
//! asked for readiness and called. [`news`] and [`timer`] are what a call waits for beside its
//! dial.

pub(crate) mod attempt;
pub(crate) mod call;
pub(crate) mod dialer;
pub(crate) mod future;
pub(crate) mod news;
pub(crate) mod race;
pub(crate) mod timer;
