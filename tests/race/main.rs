//! The race, case by case: dials, questions, reads and writes, their times, and the result of the
//! call.
//!
//! Each module has one subject. The numbers in the names are the rows of "What must hold" in
//! ARCHITECTURE.md.

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
