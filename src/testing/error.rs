//! Errors as a call returns them.

use crate::{BoxError, Error, ErrorKind, SessionId};
use std::sync::Arc;

/// Makes an [`Error`] of any kind, with any causes.
///
/// ```
/// use std::error::Error as _;
/// use tower_bound_agent::{Error, ErrorKind, testing::ErrorBuilder};
///
/// /// Returns the status with which the application responds.
/// fn status(error: &Error) -> u16 {
///     match error.kind() {
///         ErrorKind::Starting { .. } => 503,
///         ErrorKind::Unreachable { .. } => 502,
///         _ => 500,
///     }
/// }
///
/// let error = ErrorBuilder::new(ErrorKind::Unreachable { newer: None }).dial_error("refused").build();
/// assert_eq!(status(&error), 502);
/// assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("refused"));
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct ErrorBuilder(Error);

impl ErrorBuilder {
    /// Starts with an error of this kind that has neither a session nor a cause.
    pub fn new(kind: ErrorKind) -> Self {
        Self(Error::new(kind))
    }

    /// Sets the session whose call failed. Default: none, as in an error of `poll_ready`.
    pub fn session(self, session: SessionId) -> Self {
        Self(self.0.of(session))
    }

    /// Sets the last error of the dialer. Default: none.
    pub fn dial_error(self, error: impl Into<BoxError>) -> Self {
        Self(self.0.with_dial(Some(error.into())))
    }

    /// Sets the error of the question to the resolver. Default: none.
    pub fn validation_error(self, error: impl Into<BoxError>) -> Self {
        Self(self.0.with_validation(Some(Arc::from(error.into()))))
    }

    /// Sets the error of the store. Default: none.
    pub fn store_error(self, error: impl Into<BoxError>) -> Self {
        Self(self.0.with_store(Some(Arc::from(error.into()))))
    }

    /// Returns the error.
    #[must_use]
    pub fn build(self) -> Error {
        self.0
    }
}
