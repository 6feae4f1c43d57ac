//! Errors of stores.

use crate::BoxError;
use std::{path::PathBuf, time::SystemTime};

/// Why a store did not do what it was asked.
///
/// The first three differ in what is known about a write: [`Unavailable`](Self::Unavailable) and
/// [`Rejected`](Self::Rejected) mean that nothing was written, [`Unknown`](Self::Unknown) that
/// nobody can tell.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The database could not be asked (no connection, pool exhausted, locked for too long).
    /// Nothing was written; worth another try.
    #[error("the store is unavailable")]
    Unavailable(#[source] BoxError),
    /// The statement was sent and no answer came. If it was a write, it may or may not have been
    /// carried out.
    #[error("the store did not answer")]
    Unknown(#[source] BoxError),
    /// The database answered with an error. Nothing was written.
    #[error("the store refused the statement")]
    Rejected(#[source] BoxError),
    /// A row holds what no store of this crate writes.
    #[error("the row cannot be read")]
    Corrupt(#[source] BoxError),
    /// The database does not let the application in, or not do this. Nothing was written, and
    /// trying again will not help.
    #[error("{location} denies access")]
    Denied {
        /// The database, and the table.
        location: String,
        /// What the database said.
        source: BoxError,
    },
    /// A chunk of a group repair has left out rows that somebody else has locked, and has written
    /// all others that were behind. To be repeated later.
    #[error("rows that are locked were left out, after {written} were written")]
    LeftOut {
        /// How many rows were written.
        written: u64,
    },
    /// The file cannot be opened or created.
    #[error("cannot open {}", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: BoxError,
    },
    /// The file exists and is no database.
    #[error("{} is not a SQLite database", path.display())]
    NotADatabase {
        /// Which file.
        path: PathBuf,
        /// What the database said.
        source: BoxError,
    },
    /// The table does not exist, or lacks what this version needs.
    #[error("{location}: {problem}")]
    Schema {
        /// The file or database, and the table.
        location: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The table was set up by a newer version of this crate.
    #[error("{location} has schema version {found}, this version of the crate knows {supported}")]
    SchemaTooNew {
        /// The file or database, and the table.
        location: String,
        /// The version that was found.
        found: i64,
        /// The version that this crate can work with.
        supported: i64,
    },
    /// The store has no such verb.
    #[error("the store has no {verb}")]
    Unsupported {
        /// Which one.
        verb: &'static str,
    },
    /// Nobody can tell which rows are idle: use has not been recorded for so long, or not without a
    /// gap, or not up to now. Nothing was written.
    #[error("the use of sessions has not been recorded for that long")]
    UseNotRecorded {
        /// Since when it has been; `None` if it is not recorded now.
        since: Option<SystemTime>,
    },
    /// Not a table name that this crate puts into a statement.
    #[error(
        "{name:?} is not a table name of letters, digits and underscores that begins with a letter or underscore"
    )]
    TableName {
        /// What was given.
        name: String,
    },
}

impl StoreError {
    /// Returns the kind of error as a word in snake case, for logs and the labels of metrics. The
    /// words of 0.1 do not change.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Unavailable(..) => "unavailable",
            Self::Unknown(..) => "unknown",
            Self::Rejected(..) => "rejected",
            Self::Corrupt(..) => "corrupt",
            Self::Denied { .. } => "denied",
            Self::LeftOut { .. } => "left_out",
            Self::Open { .. } => "open",
            Self::NotADatabase { .. } => "not_a_database",
            Self::Schema { .. } => "schema",
            Self::SchemaTooNew { .. } => "schema_too_new",
            Self::Unsupported { .. } => "unsupported",
            Self::UseNotRecorded { .. } => "use_not_recorded",
            Self::TableName { .. } => "table_name",
        }
    }
}
