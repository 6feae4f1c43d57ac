//! One function for each promise. Each begins with an empty store, panics if the promise is broken,
//! and quotes it.

mod children;
mod commands;
mod concurrent;
mod dropped;
mod epochs;
mod forgetting;
mod group_repair;
mod housekeeping;
mod reading;
mod swaps;

pub use self::{
    children::*, commands::*, concurrent::*, dropped::*, epochs::*, forgetting::*, group_repair::*,
    housekeeping::*, reading::*, swaps::*,
};
pub use super::random::random_commands_give_the_answers_of_the_memory_store;
