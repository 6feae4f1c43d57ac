//! Parts that the stores in SQL databases have in common.
//!
//! The statements of SQLite and PostgreSQL are in [`statements`]; those of MySQL are its own.

pub(super) mod attempts;
pub(super) mod backoff;
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(super) mod close_on_drop;
pub(super) mod decode;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod housekeeping;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(super) mod run_statement;
pub(super) mod schema;
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(super) mod server;
#[cfg(test)]
pub(super) mod snapshot;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(super) mod statements;
pub(super) mod text;
pub(super) mod values;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(super) mod verbs;

#[cfg(feature = "postgres")]
pub(crate) use schema::is_plain;
