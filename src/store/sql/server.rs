//! Parts that the stores in database servers share: errors, and retries of the set-up.

use super::{
    attempts::{Attempts, ErrorClass, Replacements, Stage},
    backoff::LimitedBackoff,
    schema::Found,
};
use crate::store::StoreError;
use sqlx::{Database, error::DatabaseError, pool::PoolConnection};
use std::{fmt, sync::Arc, time::Duration};

/// The database and table, as errors display them.
pub(in crate::store) struct TableLocation {
    /// The database and its server.
    pub(in crate::store) server: String,
    pub(in crate::store) table: String,
}

impl fmt::Display for TableLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, table {}", self.server, self.table)
    }
}

/// Default limit of a statement's wait for locks, below the layer's default `store_timeout` of 5 s.
pub(in crate::store) const LOCK_TIMEOUT: Duration = Duration::from_secs(4);

/// Clamps a lock timeout to what the databases accept.
pub(in crate::store) fn lock_timeout(timeout: Duration) -> Duration {
    timeout.clamp(Duration::from_millis(1), Duration::from_secs(24 * 60 * 60))
}

/// The location and statements of one table.
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

    /// Starts the attempts of one call over a pool with this maximum number of connections.
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

/// Function that classifies a database's errors.
pub(in crate::store) type Classify = fn(&(dyn DatabaseError + 'static)) -> ErrorClass;

/// A call that failed on a connection.
pub(in crate::store) struct FailedAttempt<DB: Database> {
    pub(in crate::store) stage: Stage,
    pub(in crate::store) error: sqlx::Error,
    /// The connection, if its state is known; otherwise it was closed.
    pub(in crate::store) connection: Option<PoolConnection<DB>>,
}

/// The attempts of one call.
pub(in crate::store) struct TableAttempts<'s> {
    location: &'s TableLocation,
    classify: Classify,
    attempts: Attempts<'s>,
}

impl TableAttempts<'_> {
    /// Waits until the call may be repeated, on another connection if this one caused the error.
    ///
    /// # Errors
    ///
    /// Returns the error if it is final.
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

    /// Converts the error of a call.
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
            // Rejected by sqlx, before the server received it.
            sqlx::Error::Encode(_) | sqlx::Error::InvalidArgument(_) => {
                StoreError::Rejected(error.into())
            }
            // The connection was lost, or the error is not listed here: only a read is certain to
            // have written nothing.
            _ => unknown(error),
        }
    }
}

/// Waits and returns `true` if the set-up may be repeated, because another process creates the same
/// tables.
pub(in crate::store) async fn again(
    backoff: &mut LimitedBackoff,
    error: &sqlx::Error,
    contended: fn(&(dyn DatabaseError + 'static)) -> bool,
) -> bool {
    error.as_database_error().is_some_and(contended) && backoff.wait().await
}

/// Converts the result of a check.
pub(in crate::store) fn verdict(location: &TableLocation, found: Found) -> Result<(), StoreError> {
    match found {
        Found::Ready => Ok(()),
        Found::Incomplete(what) => Err(location.schema(what)),
        Found::Wrong(error) => Err(error),
    }
}

/// Checks that the primary key is the session alone, as the upserts need it.
pub(in crate::store) fn key_of(location: &TableLocation, table: &str, key: &[String]) -> Found {
    if key == ["session"] {
        return Found::Ready;
    }
    let key = if key.is_empty() { "missing".to_owned() } else { format!("({})", key.join(", ")) };
    Found::Wrong(
        location.schema(format!("the primary key of table {table} is {key}, not (session)")),
    )
}

/// Returns the type of a column in a database's own name.
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
