//! What the stores in database servers have in common: how an error is told, and how set-up is
//! repeated.

use super::{
    attempts::{Attempts, ErrorClass, Replacements, Stage},
    backoff::Backoff,
    schema::Found,
};
use crate::store::StoreError;
use sqlx::{Database, error::DatabaseError, pool::PoolConnection};
use std::{fmt, sync::Arc, time::Duration};

/// The names that an error mentions.
pub(in crate::store) struct TableLocation {
    /// Which database, on which server.
    pub(in crate::store) server: String,
    pub(in crate::store) table: String,
}

impl fmt::Display for TableLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, table {}", self.server, self.table)
    }
}

/// How long a statement waits by default for what others have locked: the layer's default for one
/// statement is 5 s.
pub(in crate::store) const LOCK_TIMEOUT: Duration = Duration::from_secs(4);

/// What a database takes for such a timeout.
pub(in crate::store) fn lock_timeout(timeout: Duration) -> Duration {
    timeout.clamp(Duration::from_millis(1), Duration::from_secs(24 * 60 * 60))
}

/// What follows from the name of the table.
pub(in crate::store) struct Table<Statements> {
    pub(in crate::store) location: TableLocation,
    pub(in crate::store) statements: Statements,
    replacements: Replacements,
}

impl<Statements> Table<Statements> {
    pub(in crate::store) fn new(
        server: String,
        table: String,
        statements: impl FnOnce(&str) -> Statements,
    ) -> Arc<Self> {
        let replacements = Replacements::default();
        Arc::new(Self {
            statements: statements(&table),
            location: TableLocation { server, table },
            replacements,
        })
    }

    /// The attempts of one verb over a pool of so many connections.
    pub(in crate::store) fn attempts(
        &self,
        connections: u32,
        classify: Classify,
    ) -> TableAttempts<'_> {
        TableAttempts {
            location: &self.location,
            classify,
            attempts: Attempts::new(&self.replacements, connections),
        }
    }
}

/// What a database says with an error.
pub(in crate::store) type Classify = fn(&(dyn DatabaseError + 'static)) -> ErrorClass;

/// A verb that failed on a connection.
pub(in crate::store) struct FailedAttempt<DB: Database> {
    pub(in crate::store) stage: Stage,
    pub(in crate::store) error: sqlx::Error,
    /// If its state is known; otherwise it is closed already.
    pub(in crate::store) connection: Option<PoolConnection<DB>>,
}

/// The attempts of one verb.
pub(in crate::store) struct TableAttempts<'s> {
    location: &'s TableLocation,
    classify: Classify,
    attempts: Attempts<'s>,
}

impl TableAttempts<'_> {
    /// Waits until the verb may be tried again, on another connection if this one is at fault.
    ///
    /// # Errors
    ///
    /// Why the verb failed, if that is final.
    pub(in crate::store) async fn again<DB: Database>(
        &mut self,
        failed: FailedAttempt<DB>,
    ) -> Result<(), StoreError> {
        let FailedAttempt { stage, error, connection } = failed;
        let class = match &error {
            sqlx::Error::Database(error) => (self.classify)(&**error),
            sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => ErrorClass::Lost,
            _ => ErrorClass::Rejected,
        };
        match self.attempts.again(stage, class, connection).await {
            true => Ok(()),
            false => Err(self.location.failed(stage, self.classify, error)),
        }
    }
}

impl TableLocation {
    pub(in crate::store) fn schema(&self, problem: String) -> StoreError {
        StoreError::Schema { location: self.to_string(), problem }
    }

    /// Why a verb failed.
    pub(in crate::store) fn failed(
        &self,
        stage: Stage,
        classify: Classify,
        error: sqlx::Error,
    ) -> StoreError {
        let unknown = |error: sqlx::Error| match stage {
            Stage::Reads | Stage::NothingWritten => StoreError::Unavailable(error.into()),
            Stage::Sent => StoreError::Unknown(error.into()),
        };
        match error {
            sqlx::Error::Database(ref found) => match classify(&**found) {
                ErrorClass::Contended | ErrorClass::Unavailable | ErrorClass::StaleConnection => {
                    StoreError::Unavailable(error.into())
                }
                ErrorClass::Ended | ErrorClass::Lost => unknown(error),
                ErrorClass::Denied => {
                    StoreError::Denied { location: self.to_string(), source: error.into() }
                }
                ErrorClass::Schema => self.schema(found.message().to_owned()),
                ErrorClass::Rejected => StoreError::Rejected(error.into()),
            },
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::BeginFailed => {
                StoreError::Unavailable(error.into())
            }
            sqlx::Error::Configuration(_) | sqlx::Error::Tls(_) => {
                StoreError::Unavailable(error.into())
            }
            sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::Decode(_)
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::ColumnIndexOutOfBounds { .. }
            | sqlx::Error::TypeNotFound { .. } => StoreError::Corrupt(error.into()),
            // Refused on this side, before the server saw it.
            sqlx::Error::Encode(_) | sqlx::Error::InvalidArgument(_) => {
                StoreError::Rejected(error.into())
            }
            // The connection was lost, or something that this list does not know: claim no more
            // than is certain.
            _ => unknown(error),
        }
    }
}

/// Whether another look may find something else, since somebody creates the same tables at this
/// moment.
pub(in crate::store) async fn again(
    backoff: &mut Backoff,
    error: &sqlx::Error,
    contended: fn(&(dyn DatabaseError + 'static)) -> bool,
) -> bool {
    error.as_database_error().is_some_and(contended) && backoff.wait().await
}

/// What a check makes of what was found.
pub(in crate::store) fn verdict(location: &TableLocation, found: Found) -> Result<(), StoreError> {
    match found {
        Found::Ready => Ok(()),
        Found::Incomplete(what) => Err(location.schema(what)),
        Found::Wrong(error) => Err(error),
    }
}

/// The primary key must be the session alone: the upserts conflict on it.
pub(in crate::store) fn key_of(location: &TableLocation, table: &str, key: &[String]) -> Found {
    if key == ["session"] {
        return Found::Ready;
    }
    let key = if key.is_empty() { "missing".to_owned() } else { format!("({})", key.join(", ")) };
    Found::Wrong(
        location.schema(format!("the primary key of table {table} is {key}, not (session)")),
    )
}

/// The types of the columns, in a database's own words.
pub(in crate::store) fn kind(
    column: &str,
    [uuid, bigint, text, integer]: [&'static str; 4],
) -> Option<&'static str> {
    Some(match column {
        "session" | "workspace" | "agent" | "build" | "previous_agent" => uuid,
        "generation" | "previous_generation" | "epoch" | "revision" => bigint,
        "deleted_at" | "created_at" | "last_used" => bigint,
        "schema_version" | "revision_floor" | "floor_raised_at" => bigint,
        "use_recorded_since" | "use_recorded_until" | "use_recorded_gap" => bigint,
        "address" => text,
        "id" => integer,
        _ => return None,
    })
}
