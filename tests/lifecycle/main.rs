//! Background work: its end, runtimes that are not driven, statements without an answer, and the
//! connections that it takes.

mod background;
mod close;
mod runtimes;
mod unanswered;
