//! A store in memory.
use super::*;
/// x
#[derive(Debug)]
pub struct MemoryStore;
