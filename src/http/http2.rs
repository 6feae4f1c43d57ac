//! A connection of HTTP/2, driven to its end by a task of its own.
//!
//! hyper divides such a connection in two: what moves the frames, and what takes requests. Both are
//! driven by one task here. So no frame comes in between the two steps by which a request begins
//! its stream, and a GOAWAY that fails a request proves that its stream is above the last one that
//! the agent will process: were they two tasks, the request could fail although its stream had been
//! opened in that moment and is carried out.

use super::{
    builder::Settings,
    connection::{Back, Conn, Lease, Sender, Sent, Transport, is_evidence},
    error::{is_io, wants_calm},
    outgoing::Outgoing,
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

/// No window of a stream is larger: what an agent may send ahead of a caller that does not read.
const LARGEST_WINDOW: u32 = 512 * 1024;
/// HTTP/2's own default, and the least that is of use.
const SMALLEST_WINDOW: u32 = 65_535;
/// The largest window that HTTP/2 knows.
const WINDOWS_AT_MOST: u32 = (1 << 31) - 1;

/// Streams that are reset before the agent has said anything after that. Servers end a connection
/// on which more than a few streams are reset before they were looked at: 20 in the case of
/// hyper's.
const RESETS_AT_ONCE: usize = 8;
/// After so long a silence some more are reset all the same.
const RESETS_AGAIN: Duration = Duration::from_secs(2);

/// Servers of gRPC end a connection that is pinged more often than every five minutes while nothing
/// is sent.
pub(super) const TOLERATED_PING: Duration = Duration::from_secs(310);

/// A stream that nobody waits for any more. Dropped, it is reset.
pub(super) struct Abandoned<B> {
    #[allow(dead_code)] // held
    pub(super) sending: BoxFuture<'static, Sent<B>>,
    #[allow(dead_code)] // held: the stream counts until it is reset
    pub(super) lease: Lease<B>,
}

type Frames = BoxFuture<'static, ()>;

/// Spawns what hyper begins, but keeps the first: what moves the frames, which is begun by the
/// handshake.
#[derive(Clone)]
struct KeepFirst {
    first: Arc<Mutex<First>>,
    conn: Arc<dyn Tunnels>,
}

/// A connection, whatever the bodies of its requests are.
trait Tunnels: Send + Sync {
    fn opens(&self);
    fn closes(&self);
}

/// A tunnel is a stream that outlives its response: it counts as a request until it is closed.
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
    static DRIVES: Cell<bool> = const { Cell::new(false) };
}

/// While it exists, this thread polls what takes requests and moves frames. All that hyper begins
/// then is about requests; what it begins elsewhere moves the bytes of a tunnel.
struct Drives;

impl Drives {
    fn new() -> Self {
        DRIVES.set(true);
        Self
    }
}

impl Drop for Drives {
    fn drop(&mut self) {
        DRIVES.set(false);
    }
}

#[derive(Default)]
enum First {
    #[default]
    Expected,
    Here(Frames),
    Taken,
}

impl KeepFirst {
    fn new(conn: Arc<dyn Tunnels>) -> Self {
        Self { first: Arc::default(), conn }
    }

    fn take(&self) -> Option<Frames> {
        let mut first = lock(&self.first);
        match std::mem::replace(&mut *first, First::Taken) {
            First::Here(frames) => Some(frames),
            First::Expected | First::Taken => None,
        }
    }
}

impl<F> Executor<F> for KeepFirst
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        let mut first = lock(&self.first);
        if let First::Expected = &*first {
            *first = First::Here(Box::pin(async move { drop(future.await) }));
        } else {
            drop(first);
            let tunnel = (!DRIVES.get()).then(|| Tunnel::new(Arc::clone(&self.conn)));
            tokio::spawn(async move {
                drop(future.await);
                drop(tunnel);
            });
        }
    }
}

struct OfConn<B>(Arc<Conn<B>>);

impl<B: Send> Tunnels for OfConn<B> {
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
    back: mpsc::UnboundedReceiver<Back<B>>,
    settings: &Settings,
) -> Result<Sender<B>, hyper::Error>
where
    C: Read + Write + Unpin + Send + 'static,
    B: Body + Unpin + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let executor = KeepFirst::new(Arc::new(OfConn(Arc::clone(conn))));
    let mut builder = http2::Builder::new(executor.clone());
    builder.timer(TokioTimer::new()).keep_alive_timeout(settings.ping_timeout);
    let calm = if conn.agent().is_calm() { TOLERATED_PING } else { Duration::ZERO };
    builder.keep_alive_interval(settings.ping_interval.map(|interval| interval.max(calm)));
    let (stream, all) = windows(settings.requests);
    builder.initial_stream_window_size(stream).initial_connection_window_size(all);
    // One request begins before the agent has said how many it allows. One more than that, since
    // hyper holds the last one that is allowed back until its stream is open.
    builder.initial_max_send_streams(2);
    let (sender, connection) = builder.handshake(io).await?;
    tokio::spawn(drive(connection, executor.take(), Arc::clone(conn), back, settings.idle_timeout));
    Ok(Sender::Http2(sender))
}

/// The windows of a stream and of a connection that carries so many of them: all streams that
/// nobody reads together leave room for one more.
fn windows(requests: usize) -> (u32, u32) {
    let streams = u32::try_from(requests).unwrap_or(u32::MAX).saturating_add(1);
    let stream = (WINDOWS_AT_MOST / streams).clamp(SMALLEST_WINDOW, LARGEST_WINDOW);
    (stream, stream.saturating_mul(streams).min(WINDOWS_AT_MOST))
}

/// Streams that are to be reset, a few at a time.
struct Resets<B> {
    abandoned: VecDeque<Abandoned<B>>,
    left: usize,
    /// What had been heard of the agent when the last one was reset.
    heard: u64,
    again: Instant,
}

impl<B> Resets<B> {
    fn new() -> Self {
        Self { abandoned: VecDeque::new(), left: RESETS_AT_ONCE, heard: 0, again: Instant::now() }
    }

    /// Resets as many as is polite, or all of them if nobody uses the connection any more.
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

/// Drives a connection to its end. Ends with it, and holds nothing else up.
async fn drive<C, B>(
    connection: http2::Connection<Transport<C, B>, Outgoing<B>, KeepFirst>,
    mut frames: Option<Frames>,
    conn: Arc<Conn<B>>,
    mut back: mpsc::UnboundedReceiver<Back<B>>,
    idle: Duration,
) where
    C: Read + Write + Unpin + Send + 'static,
    B: Body + Unpin + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let mut requests = Some(connection);
    let mut left_behind = pin!(conn.handle.left_behind());
    let mut expiry = pin!(sleep_until(Instant::now() + idle));
    let mut resets = Resets::new();
    loop {
        let (again, are_left) = (resets.again, !resets.abandoned.is_empty());
        let ended = poll_fn(|cx| {
            let _drives = Drives::new();
            resets.go_on(&conn);
            // Before that: who is told first may be the request.
            let is_owed = conn.is_owed();
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
            ended.map(|end| Some((end, is_owed)))
        });
        select! {
            biased;
            ended = ended => match ended {
                Some((end, is_owed)) => {
                    // It takes no more requests; those that it has go on.
                    requests = None;
                    conn.agent().retire(&conn);
                    judge(&conn, end, is_owed);
                    if frames.is_none() {
                        break;
                    }
                }
                None => break,
            },
            Some(returned) = back.recv() => {
                if let Back::Abandoned(abandoned) = returned {
                    resets.abandoned.push_back(abandoned);
                }
            }
            // What uses it still, goes on.
            () = left_behind.as_mut(), if !conn.has_left() => conn.agent().retire(&conn),
            () = sleep_until(again), if are_left => {}
            () = expiry.as_mut() => {
                let next = conn.agent().expire(&conn, idle);
                expiry.as_mut().reset(next);
            }
        }
    }
    conn.agent().retire(&conn);
}

/// What the end of a connection says about its agent. An orderly end says nothing: servers close
/// connections as they like. Nor does an end after which no request is left without its answer.
fn judge<B>(conn: &Conn<B>, end: hyper::Result<()>, is_owed: bool) {
    let Err(error) = end else { return };
    if wants_calm(&error) {
        conn.agent().calm_down();
    }
    if is_evidence(&error) && (error.is_timeout() || is_io(&error)) && is_owed {
        conn.handle.report_stale();
    }
}

#[cfg(test)]
mod tests {
    use super::windows;

    #[test]
    fn the_windows_of_all_streams_fit_into_that_of_their_connection() {
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
