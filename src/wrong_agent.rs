//! Dial errors of an agent that is another one than the one that was dialed.

use crate::{BoxError, error::any_source};
use std::{error::Error as StdError, fmt};

/// An error of the dialer that says that another agent answered at the address of the target: the
/// address was reused, and the agent that is there has proved who it is, usually with a
/// certificate.
///
/// As after any failed dial, the resolver is asked, and another target that it names is dialed. But
/// the same agent is not dialed a second time at the same address during the call: if the resolver
/// names no other target, the call ends at once with
/// [`ErrorKind::WrongAgent`](crate::ErrorKind::WrongAgent).
///
/// The layer also recognizes this error as the [`source`](StdError::source) of another error, and
/// inside an [`io::Error`](std::io::Error).
///
/// ```
/// use tower_bound_agent::{BoxError, DialAgent, WrongAgentError};
/// # async fn handshake(_: &DialAgent) -> std::io::Result<(String, String)> { unimplemented!() }
///
/// async fn connect(ask: DialAgent) -> Result<String, BoxError> {
///     let (connection, greeting) = handshake(&ask).await?;
///     if greeting != ask.target.agent.to_string() {
///         return Err(WrongAgentError::new(format!("{greeting} has answered")).into());
///     }
///     Ok(connection)
/// }
/// ```
#[derive(Debug)]
pub struct WrongAgentError(BoxError);

impl WrongAgentError {
    /// Marks an error that says which agent has answered.
    pub fn new(error: impl Into<BoxError>) -> Self {
        Self(error.into())
    }

    /// Returns the marked error.
    #[must_use]
    pub fn into_inner(self) -> BoxError {
        self.0
    }

    /// Returns `true` if the error or one of its sources says that another agent has answered.
    #[must_use]
    pub fn is_in(error: &(dyn StdError + 'static)) -> bool {
        any_source(error, |error| error.is::<Self>())
    }
}

impl fmt::Display for WrongAgentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another agent listens at the address of the dialed one")
    }
}

impl StdError for WrongAgentError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[derive(Debug, thiserror::Error)]
    #[error("wrapped")]
    struct Wrapped(#[source] BoxError);

    #[test]
    fn is_recognized_in_its_wrappers_and_nowhere_else() {
        let mut error: BoxError = WrongAgentError::new("the certificate names agent 2").into();
        assert_eq!(error.source().expect("a source").to_string(), "the certificate names agent 2");
        for _ in 0..3 {
            assert!(WrongAgentError::is_in(&*error), "{error:?}");
            error = io::Error::other(Wrapped(error)).into();
        }
        for error in [io::Error::from(io::ErrorKind::ConnectionRefused), io::Error::other("x")] {
            assert!(!WrongAgentError::is_in(&Wrapped(error.into())));
        }
    }
}
