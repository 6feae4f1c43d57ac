//! Classification of errors of SQLite and sqlx.

use crate::{
    BoxError,
    store::{StoreError, sql::attempts::ErrorClass},
};
use sqlx::error::DatabaseError;
use std::{fmt, path::PathBuf};

/// The database and table, as errors display them.
#[derive(Clone)]
pub(super) struct TableLocation {
    /// The file name of the connect options; for an in-memory database, the name that sqlx or
    /// SQLite chose.
    pub(super) file: PathBuf,
    pub(super) table: String,
}

impl fmt::Display for TableLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, table {}", self.file.display(), self.table)
    }
}

impl TableLocation {
    pub(super) fn schema(&self, problem: String) -> StoreError {
        StoreError::Schema { location: self.to_string(), problem }
    }

    /// Converts the error of a method.
    ///
    /// SQLite rolls a failed statement back, so outside of a transaction nothing was written. The
    /// outcome is unknown after a disk error and if no answer arrived.
    pub(super) fn failed(&self, error: sqlx::Error) -> StoreError {
        match error {
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => {
                StoreError::Unavailable(error.into())
            }
            sqlx::Error::Configuration(_) => StoreError::Unavailable(error.into()),
            sqlx::Error::Database(ref found) => match primary_code(&**found) {
                // Locked by another connection, possibly at the commit of a rollback journal:
                // SQLite has rolled back.
                code::BUSY | code::LOCKED | code::PROTOCOL => StoreError::Unavailable(error.into()),
                // Not started or rolled back for a temporary reason: out of file handles, memory or
                // disk; interrupted.
                code::CANTOPEN | code::NOMEM | code::FULL | code::INTERRUPT => {
                    StoreError::Unavailable(error.into())
                }
                code::IOERR => StoreError::Unknown(error.into()),
                code::NOTADB => {
                    StoreError::NotADatabase { path: self.file.clone(), source: error.into() }
                }
                code::ERROR if is_missing_schema(found.message()) => {
                    self.schema(found.message().to_owned())
                }
                _ => StoreError::Rejected(error.into()),
            },
            sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::Decode(_)
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::ColumnIndexOutOfBounds { .. }
            | sqlx::Error::TypeNotFound { .. } => StoreError::Corrupt(error.into()),
            // Rejected by sqlx, before SQLite received it.
            sqlx::Error::Encode(_) | sqlx::Error::Protocol(_) | sqlx::Error::InvalidArgument(_) => {
                StoreError::Rejected(error.into())
            }
            // The worker thread died, or the error is not listed here.
            _ => StoreError::Unknown(error.into()),
        }
    }

    /// Classifies an error with regard to its connection.
    ///
    /// A connection accepts no writes if it is set to read-only, if the file was read-only when it
    /// was opened, or if the file was replaced. An in-memory database exists only in its
    /// connection, which is never replaced.
    pub(super) fn classify(&self, error: &sqlx::Error) -> ErrorClass {
        let class = match error {
            sqlx::Error::WorkerCrashed => ErrorClass::Lost,
            sqlx::Error::Database(found) => match primary_code(&**found) {
                code::READONLY if result_code(&**found) == code::READONLY_DBMOVED => {
                    ErrorClass::StaleConnection
                }
                code::READONLY => ErrorClass::Denied,
                code::IOERR => ErrorClass::Lost,
                _ => ErrorClass::Rejected,
            },
            _ => ErrorClass::Rejected,
        };
        // The file system is checked only if the connection may have to be closed.
        if class == ErrorClass::Rejected || self.file.is_file() {
            class
        } else {
            ErrorClass::Rejected
        }
    }

    /// Converts an error of opening, setting up or checking, where a file that cannot be opened or
    /// written is [`StoreError::Open`].
    pub(super) fn not_opened(&self, error: sqlx::Error) -> StoreError {
        let about_the_file = match &error {
            sqlx::Error::Database(found) => {
                matches!(
                    primary_code(&**found),
                    code::CANTOPEN | code::READONLY | code::PERM | code::AUTH
                )
            }
            sqlx::Error::Io(_) | sqlx::Error::Configuration(_) => true,
            _ => false,
        };
        if !about_the_file {
            return self.failed(error);
        }
        let source = self.file_system_reason().map_or_else(|| error.into(), BoxError::from);
        StoreError::Open { path: self.file.clone(), source }
    }
}

impl TableLocation {
    /// Returns a more precise reason than SQLite's "unable to open", for the usual cases.
    fn file_system_reason(&self) -> Option<String> {
        if !self.file.is_absolute() {
            return None; // no file at all, or one whose directory depends on when one looks
        }
        if self.file.is_dir() {
            return Some("the path is a directory".to_owned());
        }
        match std::fs::metadata(self.file.parent()?) {
            Ok(parent) if parent.is_dir() => None,
            Ok(_) => Some("the parent of the path is a file".to_owned()),
            Err(error) => Some(format!("the parent directory: {error}")),
        }
    }
}

/// Returns `true` if another connection held a conflicting lock, so that a retry may succeed.
pub(super) fn contended(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    matches!(primary_code(&**error), code::BUSY | code::LOCKED | code::PROTOCOL)
}

/// The [result code](https://www.sqlite.org/rescode.html) without its extension.
fn primary_code(error: &(dyn DatabaseError + 'static)) -> i32 {
    result_code(error) & 0xff
}

fn result_code(error: &(dyn DatabaseError + 'static)) -> i32 {
    error.code().and_then(|code| code.parse().ok()).unwrap_or(0)
}

/// SQLite has one code for every statement that it cannot compile. These are its messages for
/// missing tables and columns.
fn is_missing_schema(message: &str) -> bool {
    ["no such table", "no such column", "has no column named"]
        .iter()
        .any(|words| message.contains(words))
}

/// SQLite's result codes.
mod code {
    pub(super) const ERROR: i32 = 1;
    pub(super) const PERM: i32 = 3;
    pub(super) const BUSY: i32 = 5;
    pub(super) const LOCKED: i32 = 6;
    pub(super) const NOMEM: i32 = 7;
    pub(super) const READONLY: i32 = 8;
    pub(super) const READONLY_DBMOVED: i32 = READONLY | 4 << 8;
    pub(super) const INTERRUPT: i32 = 9;
    pub(super) const IOERR: i32 = 10;
    pub(super) const FULL: i32 = 13;
    pub(super) const CANTOPEN: i32 = 14;
    pub(super) const PROTOCOL: i32 = 15;
    pub(super) const AUTH: i32 = 23;
    pub(super) const NOTADB: i32 = 26;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{borrow::Cow, error::Error};

    #[derive(Debug)]
    struct Code(i32, &'static str);

    impl fmt::Display for Code {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.1)
        }
    }
    impl Error for Code {}
    impl DatabaseError for Code {
        fn message(&self) -> &str {
            self.1
        }
        fn code(&self) -> Option<Cow<'_, str>> {
            Some(self.0.to_string().into())
        }
        fn as_error(&self) -> &(dyn Error + Send + Sync + 'static) {
            self
        }
        fn as_error_mut(&mut self) -> &mut (dyn Error + Send + Sync + 'static) {
            self
        }
        fn into_error(self: Box<Self>) -> Box<dyn Error + Send + Sync + 'static> {
            self
        }
        fn kind(&self) -> sqlx::error::ErrorKind {
            sqlx::error::ErrorKind::Other
        }
    }

    fn database(code: i32, message: &'static str) -> sqlx::Error {
        sqlx::Error::Database(Box::new(Code(code, message)))
    }

    fn kind(error: &StoreError) -> &'static str {
        match error {
            StoreError::Unavailable(_) => "unavailable",
            StoreError::Unknown(_) => "unknown",
            StoreError::Rejected(_) => "rejected",
            StoreError::Corrupt(_) => "corrupt",
            StoreError::Open { .. } => "open",
            StoreError::NotADatabase { .. } => "not a database",
            StoreError::Schema { .. } => "schema",
            _ => "another",
        }
    }

    #[test]
    fn errors_tell_whether_a_write_may_have_happened() {
        let location = TableLocation { file: "/somewhere.db".into(), table: "t".into() };
        let table = [
            // error, of a verb, of opening
            (sqlx::Error::PoolTimedOut, "unavailable"),
            (sqlx::Error::PoolClosed, "unavailable"),
            (sqlx::Error::WorkerCrashed, "unknown"),
            (sqlx::Error::Io(std::io::ErrorKind::Other.into()), "unknown"),
            (sqlx::Error::Decode("odd".into()), "corrupt"),
            (sqlx::Error::ColumnNotFound("agent".into()), "corrupt"),
            (sqlx::Error::Encode("odd".into()), "rejected"),
            (sqlx::Error::RowNotFound, "unknown"),
            (database(5, "database is locked"), "unavailable"),
            (database(5 | 2 << 8, "database is locked"), "unavailable"), // SQLITE_BUSY_SNAPSHOT
            (database(6 | 1 << 8, "database table is locked"), "unavailable"), // SQLITE_LOCKED_SHAREDCACHE
            (database(13, "database or disk is full"), "unavailable"),
            (database(14, "unable to open database file"), "unavailable"),
            (database(10 | 4 << 8, "disk I/O error"), "unknown"), // SQLITE_IOERR_FSYNC
            (database(26, "file is not a database"), "not a database"),
            (database(1, "no such table: t"), "schema"),
            (database(1, "table t has no column named agent"), "schema"),
            (database(1, "near \"x\": syntax error"), "rejected"),
            (database(8, "attempt to write a readonly database"), "rejected"),
            (database(11, "database disk image is malformed"), "rejected"),
            (database(19 | 1 << 8, "CHECK constraint failed"), "rejected"),
        ];
        for (error, expected) in table {
            let text = format!("{error:?}");
            assert_eq!(kind(&location.failed(error)), expected, "{text}");
        }
    }

    #[test]
    fn only_connections_to_files_are_replaced() {
        let there = tempfile::NamedTempFile::new().unwrap();
        let location =
            |file: &std::path::Path| TableLocation { file: file.to_owned(), table: "t".into() };
        for (error, expected) in [
            (database(8, "attempt to write a readonly database"), ErrorClass::Denied),
            (
                database(8 | 4 << 8, "attempt to write a readonly database"),
                ErrorClass::StaleConnection,
            ),
            (database(10, "disk I/O error"), ErrorClass::Lost),
            (sqlx::Error::WorkerCrashed, ErrorClass::Lost),
            (database(5, "database is locked"), ErrorClass::Rejected),
            (database(19, "CHECK constraint failed"), ErrorClass::Rejected),
            (sqlx::Error::PoolTimedOut, ErrorClass::Rejected),
        ] {
            assert_eq!(location(there.path()).classify(&error), expected, "{error:?}");
            for nowhere in
                [":memory:", "file:sqlx-in-memory-1?mode=memory&cache=shared", "/no/such/file"]
            {
                assert_eq!(
                    location(nowhere.as_ref()).classify(&error),
                    ErrorClass::Rejected,
                    "{error:?}"
                );
            }
        }
    }

    #[test]
    fn errors_while_opening_name_the_file() {
        let location = TableLocation { file: "/somewhere.db".into(), table: "t".into() };
        for (error, expected) in [
            (database(14, "unable to open database file"), "open"),
            (database(8, "attempt to write a readonly database"), "open"),
            (sqlx::Error::Io(std::io::ErrorKind::InvalidData.into()), "open"),
            (database(26, "file is not a database"), "not a database"),
            (database(5, "database is locked"), "unavailable"),
        ] {
            let text = format!("{error:?}");
            assert_eq!(kind(&location.not_opened(error)), expected, "{text}");
        }
    }
}
