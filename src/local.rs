//! Dial errors whose cause is in this process.

use crate::{BoxError, error::any_source};
use std::{error::Error as StdError, fmt, io};
use tokio::task::JoinError;
use tower::load_shed::error::Overloaded;

/// An error of the dialer that is *local*: its cause is in this process, so it is no evidence about
/// the agent.
///
/// A call whose dial fails with a local error ends at once with
/// [`ErrorKind::Local`](crate::ErrorKind::Local): the layer does not ask the resolver, does not
/// dial the agent again, and does not doubt the binding. Otherwise, an overload of this process
/// would become an overload of the resolver.
///
/// The layer also recognizes these errors without this type, and as the
/// [`source`](StdError::source) of another error:
///
/// * `Overloaded` of tower's `LoadShed`,
/// * [`io::Error`]s that report exhausted descriptors (`EMFILE`, `ENFILE`), ports
///   (`EADDRNOTAVAIL`), buffers (`ENOBUFS`) or memory (`ENOMEM`),
/// * the [`JoinError`] of a cancelled task.
///
/// A timeout is not local: an agent that does not answer in time is evidence about the agent.
///
/// ```
/// use tower_bound_agent::{BoxError, DialAgent, LocalError};
/// # struct Credentials;
/// # fn credentials() -> Result<Credentials, std::io::Error> { Ok(Credentials) }
///
/// async fn connect(ask: DialAgent) -> Result<String, BoxError> {
///     let _credentials = credentials().map_err(LocalError::new)?;
///     Ok(format!("a connection to {}", ask.target.agent))
/// }
/// ```
#[derive(Debug)]
pub struct LocalError(BoxError);

impl LocalError {
    /// Marks an error as local.
    pub fn new(error: impl Into<BoxError>) -> Self {
        Self(error.into())
    }

    /// Returns the marked error.
    #[must_use]
    pub fn into_inner(self) -> BoxError {
        self.0
    }

    /// Returns `true` if the error or one of its sources is local.
    #[must_use]
    pub fn is_in(error: &(dyn StdError + 'static)) -> bool {
        any_source(error, is_local)
    }
}

impl fmt::Display for LocalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the dial failed for a reason in this process, not in the agent")
    }
}

impl StdError for LocalError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.0)
    }
}

fn is_local(error: &(dyn StdError + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        return is_exhausted(error);
    }
    error.is::<LocalError>()
        || error.is::<Overloaded>()
        || error.downcast_ref::<JoinError>().is_some_and(JoinError::is_cancelled)
}

fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::OutOfMemory)
        || error.raw_os_error().is_some_and(|code| EXHAUSTED.contains(&code))
}

/// `EMFILE`, `ENFILE` and `ENOBUFS`, which [`io::ErrorKind`] does not name.
#[cfg(any(target_os = "linux", target_os = "android"))]
const EXHAUSTED: [i32; 3] = [24, 23, 105];
#[cfg(all(unix, not(any(target_os = "linux", target_os = "android"))))]
const EXHAUSTED: [i32; 3] = [24, 23, 55];
/// `WSAEMFILE`, `WSAENOBUFS` and `ERROR_TOO_MANY_OPEN_FILES`.
#[cfg(windows)]
const EXHAUSTED: [i32; 3] = [10024, 10055, 4];
#[cfg(not(any(unix, windows)))]
const EXHAUSTED: [i32; 0] = [];

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("wrapped")]
    struct Wrapped(#[source] BoxError);

    fn wrapped(error: impl Into<BoxError>) -> Wrapped {
        Wrapped(Box::new(Wrapped(error.into())))
    }

    #[test]
    fn recognizes_local_errors_and_their_wrappers() {
        let mut local: Vec<BoxError> = vec![
            LocalError::new("no credentials").into(),
            Overloaded::new().into(),
            io::Error::from(io::ErrorKind::AddrNotAvailable).into(),
            io::Error::other(Overloaded::new()).into(),
            io::Error::other(wrapped(LocalError::new("no credentials"))).into(),
        ];
        #[cfg(target_os = "linux")]
        local.extend([24, 23, 99, 105, 12].map(|code| io::Error::from_raw_os_error(code).into()));
        for error in local {
            assert!(LocalError::is_in(&*error), "{error:?}");
            assert!(LocalError::is_in(&wrapped(error)));
        }
    }

    #[test]
    fn recognizes_no_other_error() {
        use io::ErrorKind::{
            ConnectionRefused, ConnectionReset, HostUnreachable, PermissionDenied, TimedOut,
        };
        for kind in
            [ConnectionRefused, ConnectionReset, HostUnreachable, PermissionDenied, TimedOut]
        {
            assert!(!LocalError::is_in(&wrapped(io::Error::from(kind))), "{kind:?}");
        }
        assert!(!LocalError::is_in(&*BoxError::from("refused")));
    }

    #[tokio::test]
    async fn a_cancelled_task_is_local_and_a_panicked_task_is_not() {
        let task = tokio::spawn(std::future::pending::<()>());
        task.abort();
        assert!(LocalError::is_in(&task.await.unwrap_err()));
        let task = tokio::spawn(async { panic!("on purpose") });
        assert!(!LocalError::is_in(&task.await.unwrap_err()));
    }
}
