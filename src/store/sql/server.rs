//! What the stores in database servers have in common: how an error is told, and how set-up is repeated.

use super::{Found, Patience};
use crate::store::StoreError;
use sqlx::error::DatabaseError;
use std::{fmt, sync::Arc};

/// The names that an error mentions.
pub(in crate::store) struct Place {
    /// Which database, on which server.
    pub(in crate::store) server: String,
    pub(in crate::store) table: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, table {}", self.server, self.table)
    }
}

/// What follows from the name of the table.
pub(in crate::store) struct Table<Statements> {
    pub(in crate::store) place: Place,
    pub(in crate::store) statements: Statements,
}

impl<Statements> Table<Statements> {
    pub(in crate::store) fn new(server: String, table: String, statements: fn(&str) -> Statements) -> Arc<Self> {
        Arc::new(Self { statements: statements(&table), place: Place { server, table } })
    }
}

/// What an error of the server means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Meaning {
    /// Undone because of others who were at the same rows: the same statement may be sent again.
    Contended,
    /// Not carried out, for a reason that may pass.
    Unavailable,
    /// The connection ends. Whether before or after the write was made, it does not say.
    Ended,
    /// A login, a password, a privilege.
    Denied,
    /// A table or column that is not there, or is another one.
    Schema,
    /// Not carried out, for a reason in the statement or its values.
    Rejected,
}

/// How far a verb had come when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Stage {
    /// Nothing that could be written was sent, or its transaction was not committed: the server undoes it.
    NothingWritten,
    /// A statement, or a commit, is with the server.
    Sent,
}

impl Place {
    pub(in crate::store) fn schema(&self, what: String) -> StoreError {
        StoreError::Schema { place: self.to_string(), what }
    }

    /// Why a verb failed.
    pub(in crate::store) fn failed(
        &self,
        stage: Stage,
        meaning: fn(&(dyn DatabaseError + 'static)) -> Meaning,
        error: sqlx::Error,
    ) -> StoreError {
        let unknown = |error: sqlx::Error| match stage {
            Stage::NothingWritten => StoreError::Unavailable(error.into()),
            Stage::Sent => StoreError::Unknown(error.into()),
        };
        match error {
            sqlx::Error::Database(ref found) => match meaning(&**found) {
                Meaning::Contended | Meaning::Unavailable => StoreError::Unavailable(error.into()),
                Meaning::Ended => unknown(error),
                Meaning::Denied => StoreError::Denied { place: self.to_string(), source: error.into() },
                Meaning::Schema => self.schema(found.message().to_owned()),
                Meaning::Rejected => StoreError::Rejected(error.into()),
            },
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::BeginFailed => {
                StoreError::Unavailable(error.into())
            }
            sqlx::Error::Configuration(_) | sqlx::Error::Tls(_) => StoreError::Unavailable(error.into()),
            sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::Decode(_)
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::ColumnIndexOutOfBounds { .. }
            | sqlx::Error::TypeNotFound { .. } => StoreError::Corrupt(error.into()),
            // Refused on this side, before the server saw it.
            sqlx::Error::Encode(_) | sqlx::Error::InvalidArgument(_) => StoreError::Rejected(error.into()),
            // The connection was lost, or something that this list does not know: claim no more than is certain.
            _ => unknown(error),
        }
    }
}

/// Whether another look may find something else, since somebody creates the same tables at this moment.
pub(in crate::store) async fn again(
    patience: &mut Patience,
    error: &sqlx::Error,
    contended: fn(&(dyn DatabaseError + 'static)) -> bool,
) -> bool {
    error.as_database_error().is_some_and(contended) && patience.wait().await
}

/// What a check makes of what was found.
pub(in crate::store) fn verdict(place: &Place, found: Found) -> Result<(), StoreError> {
    match found {
        Found::Ready => Ok(()),
        Found::Incomplete(what) => Err(place.schema(what)),
        Found::Wrong(error) => Err(error),
    }
}

/// The primary key must be the session alone: the upserts conflict on it.
pub(in crate::store) fn key_of(place: &Place, table: &str, key: &[String]) -> Found {
    if key == ["session"] {
        return Found::Ready;
    }
    let key = if key.is_empty() { "missing".to_owned() } else { format!("({})", key.join(", ")) };
    Found::Wrong(place.schema(format!("the primary key of table {table} is {key}, not (session)")))
}

/// The types of the columns, in a database's own words.
pub(in crate::store) fn kind(column: &str, [uuid, bigint, text, integer]: [&'static str; 4]) -> Option<&'static str> {
    Some(match column {
        "session" | "workspace" | "agent" | "build" | "previous_agent" => uuid,
        "generation" | "previous_generation" | "revision" | "deleted_at" | "last_used" => bigint,
        "schema_version" | "revision_floor" | "floor_raised_at" => bigint,
        "use_recorded_since" | "use_recorded_until" | "use_recorded_gap" => bigint,
        "address" => text,
        "id" => integer,
        _ => return None,
    })
}
