//! The differences between the databases that share their statements.

/// Parts of the statements that differ between the databases.
pub(in crate::store) struct Dialect<'a> {
    /// Condition that locks the rows of a workspace in the order of their keys; empty without row
    /// locks.
    pub(in crate::store) lock_in_key_order: &'a str,
    /// Condition that is always true and sets the lock timeout of its statement.
    pub(in crate::store) set_lock_timeout: &'a str,
    /// Makes a condition that selects rows that meet a condition and are not locked, with an order
    /// and a limit.
    pub(in crate::store) some: &'a dyn Fn(&str, &str) -> String,
    /// Extends a write to return the number of written rows and a lower bound of the skipped rows.
    /// Without row locks, returns the write.
    pub(in crate::store) with_skipped_count: &'a dyn Fn(String, &str) -> String,
    /// Makes a condition that a row's session is in the list parameter with this number.
    pub(in crate::store) listed: fn(usize) -> String,
}
