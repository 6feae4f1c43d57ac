//! The race, case by case: what is dialed, asked, read and written, when, and what the caller gets.
//!
//! One module a subject; the numbers in the names are the rows of the table of what must hold.

mod alternating;
mod asking;
mod bounds;
mod cases;
mod comparing;
mod crowd;
mod deadline;
mod denied;
mod dropping;
mod groups;
mod herd;
mod local;
mod scene;
mod stragglers;

mod crashes;
mod exact;
mod repairs;
