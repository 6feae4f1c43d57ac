//! A store in SQLite.
/// x
#[derive(Debug)]
pub struct SqliteStore;
