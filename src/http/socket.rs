//! TCP sockets that fail once the peer's machine is unreachable.

use socket2::{SockRef, TcpKeepalive};
use std::{io, time::Duration};
use tokio::net::TcpStream;

/// Makes a TCP connection fail within about this time (at least 4 s, in whole seconds) once the
/// peer's machine has disappeared without closing the connection.
///
/// Dialers call `watch_peer(&stream, Duration::from_secs(20))?` after `TcpStream::connect`. Without
/// it, a connection to a vanished machine ends when the operating system gives up: after 15
/// minutes, or never. Idle connections are probed (TCP keep-alive). On Linux and Android, sent data
/// must be acknowledged within the same time (`TCP_USER_TIMEOUT`); other systems watch idle
/// connections only.
///
/// A hanging process on a running machine is not detected, since its operating system acknowledges
/// the data. HTTP/2 pings and
/// [`response_header_timeout`](super::AgentClientBuilder::response_header_timeout) detect that.
///
/// # Errors
///
/// Returns the operating system's error if it rejects one of the socket options.
pub fn watch_peer(stream: &TcpStream, within: Duration) -> io::Result<()> {
    /// Number of unanswered probes after which the connection fails.
    const PROBES: u32 = 3;
    let quarter = Duration::from_secs((within.as_secs() / (u64::from(PROBES) + 1)).max(1));
    let socket = SockRef::from(stream);
    let keep_alive = TcpKeepalive::new().with_time(quarter).with_interval(quarter);
    #[cfg(not(any(target_os = "openbsd", target_os = "haiku", target_os = "vita")))]
    let keep_alive = keep_alive.with_retries(PROBES);
    socket.set_tcp_keepalive(&keep_alive)?;
    #[cfg(any(target_os = "android", target_os = "linux"))]
    socket.set_tcp_user_timeout(Some(quarter * (PROBES + 1)))?;
    Ok(())
}
