//! Driver of an HTTP/2 connection.
//!
//! hyper splits such a connection into two futures: one moves frames, the other accepts requests.
//! One task drives both. So no frame arrives between the two steps in which a request opens its
//! stream, and a `GOAWAY` that fails a request proves that its stream is above the last one that
//! the agent will process. With two tasks, a request could fail although its stream had just been
//! opened and the agent processes it.

use super::{
    error::{is_enhance_your_calm, is_evidence, is_io},
    outgoing::Outgoing,
    pool::types::{Abandoned, Conn, ToDriver},
    sender::Sender,
    settings::{Settings, TOLERATED_PING},
    transport::Transport,
};
use crate::{BoxError, sync::lock};
use futures_util::future::BoxFuture;
use http_body::Body;
use hyper::{
    client::conn::http2,
    rt::{Executor, Read, Write},
};
use hyper_util::rt::TokioTimer;
use std::{
    cell::Cell,
    collections::VecDeque,
    future::poll_fn,
    pin::pin,
    sync::{Arc, Mutex},
    task::Poll,
};
use tokio::{
    select,
    sync::mpsc,
    time::{Duration, Instant, sleep_until},
};

/// Largest window of a stream: how much an agent may send ahead of a caller that does not read.
const LARGEST_WINDOW: u32 = 512 * 1024;
/// HTTP/2's default window, and the smallest one used.
const SMALLEST_WINDOW: u32 = 65_535;
/// The largest window that HTTP/2 allows.
const WINDOWS_AT_MOST: u32 = (1 << 31) - 1;

/// Maximum number of streams that are reset before the agent has sent anything after that. Servers
/// close a connection on which many streams are reset before they were accepted (hyper's limit:
/// 20).
const RESETS_AT_ONCE: usize = 8;
/// After this silence of the agent, the next streams are reset anyway.
const RESETS_AGAIN: Duration = Duration::from_secs(2);

type Frames = BoxFuture<'static, ()>;

/// Executor that spawns hyper's futures, except the first one, which it keeps: the handshake's,
/// which moves the frames.
#[derive(Clone)]
struct KeepFirst {
    first: Arc<Mutex<First>>,
    conn: Arc<dyn Tunnels>,
}

/// A connection without the type of its request bodies.
trait Tunnels: Send + Sync {
    fn opens(&self);
    fn closes(&self);
}

/// A stream that outlives its response. It counts as a request until it is closed.
struct Tunnel(Arc<dyn Tunnels>);

impl Tunnel {
    fn new(conn: Arc<dyn Tunnels>) -> Self {
        conn.opens();
        Self(conn)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.0.closes();
    }
}

thread_local! {
    static IS_DRIVING: Cell<bool> = const { Cell::new(false) };
}

/// Marks that this thread polls the connection's futures. Futures that hyper spawns in this scope
/// belong to requests; those that it spawns elsewhere move the bytes of a tunnel.
struct DriverScope;

impl DriverScope {
    fn new() -> Self {
        IS_DRIVING.set(true);
        Self
    }
}

impl Drop for DriverScope {
    fn drop(&mut self) {
        IS_DRIVING.set(false);
    }
}

#[derive(Default)]
enum First {
    #[default]
    Expected,
    Here(Frames),
    Checkout,
}

impl KeepFirst {
    fn new(conn: Arc<dyn Tunnels>) -> Self {
        Self { first: Arc::default(), conn }
    }

    fn take(&self) -> Option<Frames> {
        let mut first = lock(&self.first);
        match std::mem::replace(&mut *first, First::Checkout) {
            First::Here(frames) => Some(frames),
            First::Expected | First::Checkout => None,
        }
    }
}

impl<F> Executor<F> for KeepFirst
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        // Before the scope is looked at: a request body that opens a connection of its own does so
        // in the scope of another connection's driver.
        let mut first = lock(&self.first);
        if let First::Expected = &*first {
            *first = First::Here(Box::pin(async move { drop(future.await) }));
            return;
        }
        drop(first);
        if IS_DRIVING.get() {
            // There is one for each request. In a wrapper it would be copied twice.
            tokio::spawn(future);
        } else {
            let tunnel = Tunnel::new(Arc::clone(&self.conn));
            tokio::spawn(async move {
                drop(future.await);
                drop(tunnel);
            });
        }
    }
}

struct ConnTunnels<B>(Arc<Conn<B>>);

impl<B: Send> Tunnels for ConnTunnels<B> {
    fn opens(&self) {
        self.0.agent().tunnel(&self.0);
    }

    fn closes(&self) {
        self.0.agent().done(&self.0);
    }
}

pub(super) async fn open<C, B>(
    io: Transport<C, B>,
    conn: &Arc<Conn<B>>,
    messages: mpsc::UnboundedReceiver<ToDriver<B>>,
    settings: &Settings,
) -> Result<Sender<B>, hyper::Error>
where
    C: Read + Write + Unpin + Send + 'static,
    B: Body + Unpin + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let executor = KeepFirst::new(Arc::new(ConnTunnels(Arc::clone(conn))));
    let mut builder = http2::Builder::new(executor.clone());
    builder.timer(TokioTimer::new()).keep_alive_timeout(settings.ping_timeout);
    let calm = if conn.agent().are_pings_limited() { TOLERATED_PING } else { Duration::ZERO };
    builder.keep_alive_interval(settings.ping_interval.map(|interval| interval.max(calm)));
    let (stream, all) = windows(settings.requests);
    builder.initial_stream_window_size(stream).initial_connection_window_size(all);
    // One request may start before the agent announces its limit. The value is one higher, since
    // hyper holds back the last allowed request until its stream is open.
    builder.initial_max_send_streams(2);
    let (sender, connection) = builder.handshake(io).await?;
    tokio::spawn(drive(
        connection,
        executor.take(),
        Arc::clone(conn),
        messages,
        settings.idle_timeout,
    ));
    Ok(Sender::Http2(sender))
}

/// Returns the windows of a stream and of a connection with that many streams: if no caller reads,
/// there is still room for one more stream.
fn windows(requests: usize) -> (u32, u32) {
    let streams = u32::try_from(requests).unwrap_or(u32::MAX).saturating_add(1);
    let stream = (WINDOWS_AT_MOST / streams).clamp(SMALLEST_WINDOW, LARGEST_WINDOW);
    (stream, stream.saturating_mul(streams).min(WINDOWS_AT_MOST))
}

/// Abandoned streams that are reset a few at a time.
struct Resets<B> {
    abandoned: VecDeque<Abandoned<B>>,
    left: usize,
    /// Number of reads from the transport at the last reset.
    heard: u64,
    again: Instant,
}

impl<B> Resets<B> {
    fn new() -> Self {
        Self { abandoned: VecDeque::new(), left: RESETS_AT_ONCE, heard: 0, again: Instant::now() }
    }

    /// Resets as many streams as the limit allows, or all of them if the client was dropped.
    fn go_on(&mut self, conn: &Conn<B>) {
        if conn.heard() != self.heard {
            self.left = RESETS_AT_ONCE;
        }
        if self.abandoned.is_empty() {
            return;
        }
        if conn.agent().is_closed() {
            self.abandoned.clear();
        }
        let now = Instant::now();
        if self.left == 0 && self.again <= now {
            self.left = RESETS_AT_ONCE;
        }
        let some = self.left.min(self.abandoned.len());
        self.abandoned.drain(..some);
        self.left -= some;
        if some > 0 {
            (self.heard, self.again) = (conn.heard(), now + RESETS_AGAIN);
        }
    }
}

/// Drives a connection until it closes.
async fn drive<C, B>(
    connection: http2::Connection<Transport<C, B>, Outgoing<B>, KeepFirst>,
    mut frames: Option<Frames>,
    conn: Arc<Conn<B>>,
    mut messages: mpsc::UnboundedReceiver<ToDriver<B>>,
    idle: Duration,
) where
    C: Read + Write + Unpin + Send + 'static,
    B: Body + Unpin + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let mut requests = Some(connection);
    let mut outdated = pin!(conn.outdated());
    let mut expiry = pin!(sleep_until(Instant::now() + idle));
    let mut resets = Resets::new();
    loop {
        let (again, are_left) = (resets.again, !resets.abandoned.is_empty());
        let ended = poll_fn(|cx| {
            let _drives = DriverScope::new();
            resets.go_on(&conn);
            // Read before polling, which may fail the requests first.
            let has_unanswered = conn.has_unanswered();
            if let Some(moves) = &mut frames
                && moves.as_mut().poll(cx).is_ready()
            {
                frames = None;
            }
            let Some(takes) = &mut requests else {
                return if frames.is_none() { Poll::Ready(None) } else { Poll::Pending };
            };
            let ended = std::pin::Pin::new(&mut *takes).poll(cx);
            let allowed = takes.current_max_send_streams();
            if conn.heard() > 0 && conn.set_streams(allowed) {
                conn.agent().announced();
            }
            resets.go_on(&conn);
            ended.map(|end| Some((end, has_unanswered)))
        });
        select! {
            biased;
            ended = ended => match ended {
                Some((end, has_unanswered)) => {
                    // The connection accepts no more requests; those on it continue.
                    requests = None;
                    conn.agent().retire(&conn);
                    judge(&conn, end, has_unanswered);
                    if frames.is_none() {
                        break;
                    }
                }
                None => break,
            },
            Some(returned) = messages.recv() => {
                if let ToDriver::Abandoned(abandoned) = returned {
                    resets.abandoned.push_back(abandoned);
                }
            }
            // Requests on the connection continue.
            () = outdated.as_mut(), if !conn.has_left() => conn.agent().retire(&conn),
            () = sleep_until(again), if are_left => {}
            () = expiry.as_mut() => {
                let next = conn.agent().expire(&conn, idle);
                expiry.as_mut().reset(next);
            }
        }
    }
    conn.agent().retire(&conn);
}

/// Reports the agent as stale if the connection failed while a request had no complete response. A
/// graceful close, or a close without pending requests, is no evidence: servers may close
/// connections at any time.
fn judge<B>(conn: &Conn<B>, end: hyper::Result<()>, has_unanswered: bool) {
    let Err(error) = end else { return };
    if is_enhance_your_calm(&error) {
        conn.agent().limit_pings();
    }
    if is_evidence(&error) && (error.is_timeout() || is_io(&error)) && has_unanswered {
        conn.handle.report_stale();
    }
}

#[cfg(test)]
mod tests {
    use super::windows;

    #[test]
    fn the_windows_of_all_streams_fit_into_the_connections_window() {
        for requests in [1, 4, 100, 1_000, 10_000, 32_000] {
            let (stream, all) = windows(requests);
            assert!(
                u64::from(stream) * (requests as u64 + 1) <= u64::from(all),
                "{requests}: {stream} of {all}"
            );
        }
        assert_eq!(windows(100), (512 * 1024, 101 * 512 * 1024));
        assert_eq!(windows(usize::MAX), (65_535, (1 << 31) - 1));
    }
}
