//! Errors of hyper, which has no constructor for them.

use futures_util::FutureExt;
use hyper::rt::{Read, ReadBufCursor, Write};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

/// Makes the error of an HTTP connection that failed with this cause, for the variants
/// [`Unsent`](crate::http::ClientError::Unsent) and [`Send`](crate::http::ClientError::Send) of a
/// [`ClientError`](crate::http::ClientError).
///
/// No runtime is needed.
///
/// ```
/// use std::io::ErrorKind::{ConnectionReset, HostUnreachable};
/// use tower_bound_agent::{http::{ClientError, Fault}, testing::hyper_error};
///
/// /// Whether the application sends a `GET` again.
/// fn repeats(error: &ClientError) -> bool {
///     error.is_unsent() || error.fault() == Fault::Network
/// }
///
/// assert!(repeats(&ClientError::Unsent(hyper_error(ConnectionReset.into()))));
/// assert!(!repeats(&ClientError::Send(hyper_error(ConnectionReset.into()))));
/// assert!(repeats(&ClientError::Send(hyper_error(HostUnreachable.into()))));
/// ```
#[must_use]
pub fn hyper_error(cause: io::Error) -> hyper::Error {
    let connect = hyper::client::conn::http1::handshake::<_, String>(Broken(Some(cause)));
    // A handshake of HTTP/1 exchanges nothing, and `Broken` never waits.
    let connected = connect.now_or_never().and_then(Result::ok);
    let (_sender, connection) = connected.expect("a handshake of HTTP/1 is done at once");
    connection
        .now_or_never()
        .and_then(Result::err)
        .expect("a connection that cannot be read has failed")
}

/// A transport whose first read fails.
struct Broken(Option<io::Error>);

impl Read for Broken {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.take().map_or(Ok(()), Err))
    }
}

impl Write for Broken {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(0))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
