//! One connection: what is known of it, its transport, and the right to send a request over it.

use super::{
    body::AgentBody,
    builder::Settings,
    error::{ClientError, is_io, is_unprocessed, is_unreachable},
    http1, http2,
    outgoing::{Outgoing, Progress},
    pool::{Agent, Reserved},
    question::{Over, Watch},
    request::HttpProtocol,
};
use crate::{BoundHandle, BoxError, InUse, LocalError, Target, sync::lock};
use ::http::{Request, Response, StatusCode, Version};
use futures_util::future::BoxFuture;
use http_body::Body;
use hyper::{
    body::Incoming,
    client::conn::TrySendError,
    rt::{Read, ReadBufCursor, Write},
};
use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};
use tokio::{
    select,
    sync::mpsc,
    time::{Duration, Instant, timeout},
};
use tokio_util::sync::CancellationToken;

/// After so long a time in which the agent takes nothing of a body, other requests avoid its
/// connection.
const STALLED: Duration = Duration::from_millis(500);

/// What requests are sent with.
pub(super) enum Sender<B> {
    Http1(hyper::client::conn::http1::SendRequest<Outgoing<B>>),
    Http2(hyper::client::conn::http2::SendRequest<Outgoing<B>>),
}

pub(super) type Sent<B> = Result<Response<Incoming>, TrySendError<Request<Outgoing<B>>>>;

impl<B> Sender<B> {
    pub(super) fn is_ready(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_ready(),
            Self::Http2(sender) => sender.is_ready(),
        }
    }

    /// Returns another one for the same connection, if it carries several requests at once.
    pub(super) fn share(&self) -> Option<Self> {
        match self {
            Self::Http1(_) => None,
            Self::Http2(sender) => Some(Self::Http2(sender.clone())),
        }
    }

    fn send(&mut self, request: Request<Outgoing<B>>) -> BoxFuture<'static, Sent<B>>
    where
        B: Body + Unpin + Send + 'static,
    {
        match self {
            Self::Http1(sender) => Box::pin(sender.try_send_request(request)),
            Self::Http2(sender) => Box::pin(sender.try_send_request(request)),
        }
    }
}

/// What comes back to the task that drives a connection.
pub(super) enum Back<B> {
    /// A sender of HTTP/1 that was used and is not ready yet.
    Sender(http1::Returned<B>),
    /// A stream of HTTP/2 that nobody waits for any more.
    Abandoned(http2::Abandoned<B>),
}

/// What is known of a connection.
pub(super) struct Conn<B> {
    pub(super) handle: BoundHandle,
    agent: Arc<Agent<B>>,
    since: Instant,
    /// Out of circulation for good.
    retired: AtomicBool,
    /// It counts against the limit of connections.
    counted: AtomicBool,
    /// After an upgrade nothing but the transport sees that the connection breaks.
    upgraded: AtomicBool,
    /// The session of a tunnel is in use until the transport is closed.
    tunnel: OnceLock<InUse>,
    /// How many requests it carries at once, as its agent has announced; 0 before that.
    streams: AtomicUsize,
    /// Requests that were sent over it and have no complete answer yet.
    owed: AtomicUsize,
    /// Requests of a shared connection whose bodies are under way.
    uploads: Mutex<Vec<Weak<Progress>>>,
    /// When the last piece of an answer came, in microseconds since the connection was made.
    answered: AtomicU64,
    /// How often something was read from the transport.
    heard: AtomicU64,
    /// HTTP/1: the task that drives it has ended, and nothing is left that takes or answers
    /// requests.
    gone: CancellationToken,
    /// To the task that drives it.
    back: mpsc::UnboundedSender<Back<B>>,
}

impl<B> Conn<B> {
    pub(super) fn agent(&self) -> &Arc<Agent<B>> {
        &self.agent
    }

    pub(super) fn since(&self) -> Instant {
        self.since
    }

    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// Returns `true` if no further request is to use it.
    pub(super) fn is_retired(&self) -> bool {
        self.has_left() || self.handle.is_reported()
    }

    /// Returns `true` if it was taken out of circulation.
    pub(super) fn has_left(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// The connection counts against the limit from here on.
    pub(super) fn count(&self) {
        self.counted.store(true, Ordering::Relaxed);
    }

    /// Returns `true` if the connection counted until now.
    pub(super) fn uncount(&self) -> bool {
        self.counted.swap(false, Ordering::Relaxed)
    }

    /// Returns how many requests the agent allows at once; `None` before it has said so.
    pub(super) fn streams(&self) -> Option<usize> {
        match self.streams.load(Ordering::Relaxed) {
            0 => None,
            streams => Some(streams),
        }
    }

    /// Returns `true` if that is news.
    pub(super) fn set_streams(&self, streams: usize) -> bool {
        // An agent that allows none for now is asked one at a time, and its answer is waited for.
        let streams = streams.max(1);
        self.streams.swap(streams, Ordering::Relaxed) != streams
    }

    /// Returns `true` if a request has no complete answer yet.
    pub(super) fn is_owed(&self) -> bool {
        self.owed.load(Ordering::Relaxed) > 0
    }

    /// A request with a body is about to be sent over a shared connection.
    fn uploads(&self, progress: &Arc<Progress>) {
        let mut uploads = lock(&self.uploads);
        uploads.retain(|upload| upload.upgrade().is_some_and(|progress| !progress.is_sent()));
        uploads.push(Arc::downgrade(progress));
    }

    /// Returns `true` if the agent does not take a body that is under way: it may have filled the
    /// window that all requests of the connection share.
    pub(super) fn is_stalled(&self) -> bool {
        let uploads = lock(&self.uploads);
        uploads.iter().filter_map(Weak::upgrade).any(|progress| progress.is_stalled(STALLED))
    }

    /// A piece of an answer has come.
    pub(super) fn has_answered(&self) {
        let micros = self.since.elapsed().as_micros();
        self.answered.fetch_max(u64::try_from(micros).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn answered_since(&self, since: Instant) -> bool {
        self.since + Duration::from_micros(self.answered.load(Ordering::Relaxed)) > since
    }

    /// Nothing takes or answers requests any more.
    pub(super) fn ends(&self) {
        self.gone.cancel();
    }

    pub(super) fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }
}

impl<B> Drop for Conn<B> {
    fn drop(&mut self) {
        if *self.counted.get_mut() {
            Arc::clone(&self.agent).closed(self);
        }
    }
}

/// The right to send one request over a connection.
pub(super) struct Lease<B> {
    conn: Arc<Conn<B>>,
    /// Until it is given back, or a request was sent over a shared connection.
    sender: Option<Sender<B>>,
    /// A break of the connection takes no other request with it.
    alone: bool,
    /// There was a request before this one.
    reused: bool,
    /// A request was sent, and has no complete answer yet.
    owed: bool,
    /// The response has been read to its end.
    ended: bool,
    /// The request as well.
    complete: bool,
    /// The session of the request, from when it is sent to the end of the response.
    in_use: Option<InUse>,
}

impl<B> Lease<B> {
    pub(super) fn new(conn: Arc<Conn<B>>, sender: Sender<B>, reused: bool) -> Self {
        let alone = matches!(sender, Sender::Http1(_));
        Self {
            conn,
            sender: Some(sender),
            alone,
            reused,
            owed: false,
            ended: false,
            complete: false,
            in_use: None,
        }
    }

    pub(super) fn conn(&self) -> &Arc<Conn<B>> {
        &self.conn
    }

    /// A piece of the answer has come.
    pub(super) fn answered(&self) {
        if !self.alone {
            self.conn.has_answered();
        }
    }

    /// The response has come to its end.
    pub(super) fn ended(mut self, progress: &Progress) {
        self.ended = true;
        self.complete = progress.is_sent();
    }

    /// The request or its response broke off with an error that speaks against the agent. On a
    /// shared connection it does so only if the connection has failed, and not one stream; reported
    /// here already, since the caller may come again before the task that drives the connection has
    /// reported it.
    pub(super) fn broke_off(&self, error: &hyper::Error) {
        if self.alone || error.is_timeout() || is_io(error) {
            self.conn.handle.report_stale();
        }
    }
}

impl<B> Drop for Lease<B> {
    fn drop(&mut self) {
        if self.owed {
            self.conn.owed.fetch_sub(1, Ordering::Relaxed);
        }
        let agent = &self.conn.agent;
        match self.sender.take() {
            Some(Sender::Http1(sender)) if sender.is_ready() => {
                agent.put(&self.conn, Sender::Http1(sender))
            }
            Some(Sender::Http1(sender)) => {
                let soon = self.complete.then(|| agent.returning());
                // If the task has ended, so has the connection.
                let returned = http1::Returned { sender, soon, given_up: !self.ended };
                let _ = self.conn.back.send(Back::Sender(returned));
            }
            Some(Sender::Http2(_)) => agent.done(&self.conn),
            None if !self.alone => agent.done(&self.conn),
            None => {}
        }
    }
}

/// Why a request has no response.
pub(super) enum SendError<B> {
    /// It was not sent, or the agent said that it has not processed it. With the request, if the
    /// connection gave it back, and whether another connection may fare better.
    Unsent {
        back: Option<Box<Request<Outgoing<B>>>>,
        error: hyper::Error,
        again: bool,
    },
    /// Its session would go elsewhere by now.
    Superseded(Option<Arc<Target>>),
    Failed(ClientError),
}

impl<B> Lease<B>
where
    B: Body + Unpin + Send + 'static,
{
    /// Sends the request and waits for the head of the response, for as long as `watch` lets it.
    /// `handle` is that of the call.
    pub(super) async fn send(
        mut self,
        request: Request<Outgoing<B>>,
        progress: &Arc<Progress>,
        handle: BoundHandle,
        watch: Watch<'_>,
    ) -> Result<Response<AgentBody>, SendError<B>> {
        let Some(sender) = &mut self.sender else {
            // Never: it is there until the lease is dropped.
            return Err(SendError::Failed(ClientError::Busy { waited: Duration::ZERO }));
        };
        self.in_use = Some(handle.in_use());
        if !self.alone && !request.body().is_end_stream() {
            self.conn.uploads(progress);
        }
        let sending = sender.send(request);
        if !self.alone {
            // A request that was handed over in the moment in which its connection ended is given
            // back only when the last sender of that connection is gone.
            self.sender = None;
        }
        let conn = Arc::clone(&self.conn);
        conn.owed.fetch_add(1, Ordering::Relaxed);
        self.owed = true;
        let mut waiting = Waiting {
            lease: Some(self),
            sending: Some(sending),
            handle: &handle,
            progress,
            given_up: true,
        };
        let gone = conn.gone.cancelled();
        let mut sent = select! {
            biased;
            sent = waiting.sent() => Ok(sent),
            over = watch.over(&handle, progress, gone) => Err(over),
        };
        if let Err(Over::Gone) = sent {
            sent = waiting.given_back().await;
        }
        let lease = match &sent {
            Err(Over::Superseded(_)) => None,
            _ => waiting.landed(),
        };
        waiting.given_up = false;
        drop(waiting);
        let Some(mut lease) = lease else {
            return Err(SendError::Superseded(if let Err(Over::Superseded(target)) = sent {
                target
            } else {
                None
            }));
        };
        let mut response = match sent {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(lease.failed(error)),
            Err(_) => return Err(SendError::Failed(lease.silent(progress, watch.within))),
        };
        watch.answered(progress);
        lease.answered();
        if response.version() == Version::HTTP_10 {
            // hyper would speak HTTP/1.0 from here on, which has no body of unknown length: it
            // would be lost. The next request gets a new connection.
            lease.conn.agent.retire(&lease.conn);
        }
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            lease.conn.upgraded.store(true, Ordering::Relaxed);
            if let Some(in_use) = lease.in_use.take() {
                // The first and only one: a connection is upgraded once.
                let _ = lease.conn.tunnel.set(in_use);
            }
        }
        response.extensions_mut().insert(handle);
        Ok(response.map(|incoming| AgentBody::new(incoming, lease, Arc::clone(progress))))
    }

    fn failed(self, mut error: TrySendError<Request<Outgoing<B>>>) -> SendError<B> {
        if let Some(request) = error.take_message() {
            if !self.reused {
                self.conn.handle.report_stale();
            }
            let again = self.reused;
            return SendError::Unsent {
                back: Some(Box::new(request)),
                error: error.into_error(),
                again,
            };
        }
        let error = error.into_error();
        if is_unprocessed(&error) {
            return SendError::Unsent { back: None, error, again: true };
        }
        if is_evidence(&error) {
            self.broke_off(&error);
        }
        SendError::Failed(ClientError::Send(error))
    }

    /// Nothing came in time.
    fn silent(self, progress: &Progress, within: Option<Duration>) -> ClientError {
        let within = within.unwrap_or_default();
        let since = progress.silent_since().or_else(|| progress.queued_since());
        // An agent that answers other streams is not silent.
        if self.alone || !since.is_some_and(|since| self.conn.answered_since(since)) {
            self.conn.handle.report_stale();
            // Nobody may ask for it again, so it is not left to who asks next to let it go.
            self.conn.agent.retire(&self.conn);
        }
        ClientError::NoResponse { within }
    }
}

/// A request that waits for its agent. Given up meanwhile, it leaves a doubt as a dropped dial does
/// (HTTP/1), or its stream to the task that drives the connection (HTTP/2).
struct Waiting<'a, B> {
    lease: Option<Lease<B>>,
    sending: Option<BoxFuture<'static, Sent<B>>>,
    handle: &'a BoundHandle,
    progress: &'a Progress,
    /// It is its caller that gives it up.
    given_up: bool,
}

impl<B> Waiting<'_, B> {
    async fn sent(&mut self) -> Sent<B> {
        match &mut self.sending {
            Some(sending) => sending.await,
            // Never: it is there until it has landed.
            None => std::future::pending().await,
        }
    }

    /// The connection has ended. If it had not taken the request before that, the request is given
    /// back when the last sender is gone.
    async fn given_back(&mut self) -> Result<Sent<B>, Over> {
        if let Some(lease) = &mut self.lease {
            lease.sender = None;
        }
        timeout(Duration::from_secs(1), self.sent()).await.map_err(|_| Over::Silent)
    }

    fn landed(&mut self) -> Option<Lease<B>> {
        self.sending = None;
        self.lease.take()
    }
}

impl<B> Drop for Waiting<'_, B> {
    fn drop(&mut self) {
        let (Some(lease), Some(sending)) = (self.lease.take(), self.sending.take()) else { return };
        // On a shared connection pings and other streams tell whether the agent lives.
        if !lease.alone {
            let back = lease.conn.back.clone();
            let _ = back.send(Back::Abandoned(http2::Abandoned { sending, lease }));
            return;
        }
        drop(sending);
        if let Some(since) = self.progress.silent_since()
            && self.given_up
            && !std::thread::panicking()
        {
            // Callers that have less patience than this client would come back to a dead agent for
            // ever.
            self.handle.dropped_waiting_since(since);
        }
    }
}

/// Returns `true` if an error speaks against the agent, and not against the request or this
/// process.
pub(super) fn is_evidence(error: &hyper::Error) -> bool {
    !error.is_user() && !LocalError::is_in(error)
}

/// Begins to speak HTTP on a new connection, and takes a lease of it.
pub(super) async fn open<C, B>(
    io: C,
    handle: BoundHandle,
    reserved: Reserved<B>,
    settings: &Settings,
) -> Result<Lease<B>, hyper::Error>
where
    C: Read + Write + Unpin + Send + 'static,
    B: Body + Unpin + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let agent = Arc::clone(reserved.agent());
    let (back, returned) = mpsc::unbounded_channel();
    let conn = Arc::new(Conn {
        handle,
        agent: Arc::clone(&agent),
        since: Instant::now(),
        retired: AtomicBool::new(false),
        counted: AtomicBool::new(false),
        upgraded: AtomicBool::new(false),
        tunnel: OnceLock::new(),
        streams: AtomicUsize::new(0),
        owed: AtomicUsize::new(0),
        uploads: Mutex::default(),
        answered: AtomicU64::new(0),
        heard: AtomicU64::new(0),
        gone: CancellationToken::new(),
        back,
    });
    let io = Transport { io, conn: Arc::clone(&conn) };
    let idle = settings.idle_timeout;
    let opened = match settings.speaks {
        HttpProtocol::Http1 => http1::open(io, &conn, returned, idle).await,
        HttpProtocol::Http2 => http2::open(io, &conn, returned, settings).await,
    };
    match opened {
        Ok(sender) => {
            if let Some(shared) = sender.share() {
                agent.add(&conn, shared);
            }
            reserved.connected(&conn);
            Ok(Lease::new(conn, sender, false))
        }
        Err(error) => {
            reserved.failed();
            Err(error)
        }
    }
}

/// The transport of a connection. Keeps alive what is known of it, and reports it if the machine at
/// its other end is gone, or if it fails after an upgrade: nobody else here would see that.
pub(super) struct Transport<C, B> {
    io: C,
    conn: Arc<Conn<B>>,
}

impl<C, B> Transport<C, B> {
    fn noted<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &polled
            && (is_unreachable(error) || self.conn.upgraded.load(Ordering::Relaxed))
            && !LocalError::is_in(error)
        {
            self.conn.handle.report_stale();
        }
        polled
    }
}

impl<C: Read + Unpin, B> Read for Transport<C, B> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if read.is_ready() {
            self.conn.heard.fetch_add(1, Ordering::Relaxed);
        }
        self.noted(read)
    }
}

impl<C: Write + Unpin, B> Write for Transport<C, B> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.noted(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.noted(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.noted(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
