//! The differences between the databases that share their statements.

/// What differs between the databases.
pub(in crate::store) struct Dialect<'a> {
    /// What locks the rows of a workspace in the order of their keys, if there are locks.
    pub(in crate::store) in_order: &'a str,
    /// A condition that always holds, for what may wait for rows that others have locked: it bounds
    /// the wait.
    pub(in crate::store) patiently: &'a str,
    /// Says of some rows that they meet a condition, and that nobody else is writing them; which
    /// ones, if not all.
    pub(in crate::store) some: &'a dyn Fn(&str, &str) -> String,
    /// A write to some rows of a condition, made a statement that returns how many were written,
    /// and how many others were left out, at least. If nothing is ever left out: the write.
    pub(in crate::store) left_out: &'a dyn Fn(String, &str) -> String,
    /// Says that a row is one of the sessions that are the parameter of a number.
    pub(in crate::store) listed: fn(usize) -> String,
}
