//! A TCP socket that notices a machine that is gone.

use socket2::{SockRef, TcpKeepalive};
use std::{io, time::Duration};
use tokio::net::TcpStream;

/// Makes a TCP connection fail within about this time (at least 4 s, in whole seconds) once the
/// machine at its other end is gone without a word.
///
/// For dialers: `watch_peer(&stream, Duration::from_secs(20))?` after `TcpStream::connect`. Without
/// it a connection on which nothing comes back ends when the system gives up, after 15 minutes or
/// never. An idle connection is probed (TCP keep-alive); on Linux and Android what was sent must be
/// acknowledged in time as well (`TCP_USER_TIMEOUT`), and elsewhere only an idle connection is
/// watched.
///
/// A process that hangs on a machine that lives is not noticed by this: its system acknowledges for
/// it. For that there are HTTP/2 pings and
/// [`response_header_timeout`](super::AgentClientBuilder::response_header_timeout).
///
/// # Errors
///
/// That of the system, if it refuses one of the options.
pub fn watch_peer(stream: &TcpStream, within: Duration) -> io::Result<()> {
    /// Probes after the first that may stay unanswered.
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
