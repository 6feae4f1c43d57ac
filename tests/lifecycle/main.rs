//! What works in the background: its end, runtimes that stand still, statements without an answer, and
//! the connections that it takes.

mod background;
mod close;
mod runtimes;
mod unanswered;
