//! One connection: made, driven to its end by a task of its own, and lent to one request after the other.

use super::{
    body::AgentBody,
    builder::Settings,
    error::ClientError,
    outgoing::{Outgoing, Progress},
    pool::{Agent, Returning},
    request::Speaks,
};
use crate::{BoundHandle, BoxError};
use ::http::{Request, Response, StatusCode, Version};
use http_body::Body;
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
    rt::{Read, ReadBufCursor, Write},
};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::{
    error::Error as StdError,
    io,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};
use tokio::{
    select,
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Duration, Instant, sleep_until},
};

/// What requests are sent with.
pub(super) enum Sender<B> {
    Http1(http1::SendRequest<Outgoing<B>>),
    Http2(http2::SendRequest<Outgoing<B>>),
}

type Sent<B> = Result<Response<Incoming>, TrySendError<Request<Outgoing<B>>>>;

impl<B> Sender<B> {
    pub(super) fn is_ready(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_ready(),
            Self::Http2(sender) => sender.is_ready(),
        }
    }

    /// Another one for the same connection, if it carries several requests at once.
    pub(super) fn share(&self) -> Option<Self> {
        match self {
            Self::Http1(_) => None,
            Self::Http2(sender) => Some(Self::Http2(sender.clone())),
        }
    }

    async fn send(&mut self, request: Request<Outgoing<B>>) -> Sent<B>
    where
        B: Body + Send + 'static,
        B::Data: Send,
    {
        match self {
            Self::Http1(sender) => sender.try_send_request(request).await,
            Self::Http2(sender) => sender.try_send_request(request).await,
        }
    }
}

/// A sender on its way back.
struct Returned<B> {
    sender: http1::SendRequest<Outgoing<B>>,
    /// Of the request that was sent with it.
    permit: Option<OwnedSemaphorePermit>,
    /// If it is about to be ready.
    #[allow(dead_code)] // held
    soon: Option<Returning<B>>,
    /// Its user has not seen the response to its end.
    given_up: bool,
}

/// How long a connection that was given up may take to end in order. What the agent does not take would hold it for ever.
const FAREWELL: Duration = Duration::from_secs(1);

/// What is known of a connection.
pub(super) struct Conn<B> {
    handle: BoundHandle,
    since: Instant,
    /// Out of circulation for good.
    retired: AtomicBool,
    /// To the task that drives it: a sender that was used may not be ready yet.
    returned: mpsc::UnboundedSender<Returned<B>>,
    /// After an upgrade the connection itself holds its permit, and what that counts for, until it is closed.
    kept: Mutex<Option<(OwnedSemaphorePermit, Arc<Agent<B>>)>>,
}

impl<B> Conn<B> {
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// Whether nobody is to use it who does not already.
    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire) || self.handle.is_reported()
    }
}

/// The right to send one request over a connection.
pub(super) struct Lease<B> {
    agent: Arc<Agent<B>>,
    conn: Arc<Conn<B>>,
    /// Until it is given back.
    sender: Option<Sender<B>>,
    permit: Option<OwnedSemaphorePermit>,
    /// There was a request before this one.
    reused: bool,
    /// The response has been read to its end.
    ended: bool,
    /// The request as well.
    complete: bool,
}

impl<B> Lease<B> {
    pub(super) fn new(
        agent: Arc<Agent<B>>,
        conn: Arc<Conn<B>>,
        sender: Sender<B>,
        permit: Option<OwnedSemaphorePermit>,
        reused: bool,
    ) -> Self {
        Self { agent, conn, sender: Some(sender), permit, reused, ended: false, complete: false }
    }

    pub(super) fn handle(&self) -> &BoundHandle {
        &self.conn.handle
    }

    pub(super) fn is_reused(&self) -> bool {
        self.reused
    }

    /// A break of this connection takes its requests with it, and none but its own.
    fn is_alone(&self) -> bool {
        matches!(self.sender, Some(Sender::Http1(_)))
    }

    /// The response has come to its end.
    pub(super) fn ended(mut self, progress: &Progress) {
        self.ended = true;
        self.complete = progress.is_sent();
    }

    /// What was sent came to no good end. Of a shared connection its own end tells whether that was the connection's
    /// fault, or that of one stream.
    pub(super) fn broke_off(&self) {
        if self.is_alone() {
            self.conn.handle.report_stale();
        }
    }
}

impl<B> Drop for Lease<B> {
    fn drop(&mut self) {
        match self.sender.take() {
            Some(Sender::Http1(sender)) if sender.is_ready() => {
                self.agent.put(&self.conn, Sender::Http1(sender), self.permit.is_some());
            }
            Some(Sender::Http1(sender)) => {
                let soon = self.complete.then(|| self.agent.returning());
                // If the task has ended, so has the connection.
                let returned = Returned { sender, permit: self.permit.take(), soon, given_up: !self.ended };
                let _ = self.conn.returned.send(returned);
            }
            Some(Sender::Http2(_)) => self.agent.done(&self.conn),
            None => {}
        }
    }
}

/// Why a request has no response.
pub(super) enum Unanswered<B> {
    /// The connection had ended before the request was sent.
    Unsent(Box<Request<Outgoing<B>>>, hyper::Error),
    Failed(ClientError),
}

impl<B> Lease<B>
where
    B: Body + Send + 'static,
    B::Data: Send,
{
    /// Sends the request and waits for the head of the response. `handle` is that of the call.
    pub(super) async fn send(
        mut self,
        request: Request<Outgoing<B>>,
        progress: &Arc<Progress>,
        handle: BoundHandle,
        within: Option<Duration>,
    ) -> Result<Response<AgentBody>, Unanswered<B>> {
        let Some(sender) = &mut self.sender else {
            // Never: it is there until the lease is dropped.
            return Err(Unanswered::Failed(ClientError::Busy { waited: Duration::ZERO }));
        };
        let sent = {
            // On a shared connection pings tell whether the agent lives.
            let evidence = matches!(sender, Sender::Http1(_));
            let mut waiting = Waiting { handle: &handle, progress, evidence };
            let sent = select! {
                biased;
                sent = sender.send(request) => Some(sent),
                () = silence(progress, within) => None,
            };
            waiting.evidence = false;
            sent
        };
        let mut response = match sent {
            Some(Ok(response)) => response,
            Some(Err(mut error)) => {
                if let Some(request) = error.take_message() {
                    if !self.reused {
                        self.conn.handle.report_stale();
                    }
                    return Err(Unanswered::Unsent(Box::new(request), error.into_error()));
                }
                let error = error.into_error();
                if is_evidence(&error) {
                    self.broke_off();
                }
                return Err(Unanswered::Failed(ClientError::Send(error)));
            }
            None => {
                self.conn.handle.report_stale();
                // Nobody may ask for it again, so it is not left to who asks next to let it go.
                self.agent.retire(&self.conn);
                return Err(Unanswered::Failed(ClientError::NoResponse { within: within.unwrap_or_default() }));
            }
        };
        if response.version() == Version::HTTP_10 {
            // hyper would speak HTTP/1.0 from here on, which has no body of unknown length: it would be lost. The next
            // request gets a new connection.
            self.agent.retire(&self.conn);
        }
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let kept = self.permit.take().map(|permit| (permit, Arc::clone(&self.agent)));
            *self.conn.kept.lock().unwrap_or_else(PoisonError::into_inner) = kept;
        }
        response.extensions_mut().insert(handle);
        Ok(response.map(|incoming| AgentBody::new(incoming, self, Arc::clone(progress))))
    }
}

/// Ends when the agent was silent for so long in its turn.
async fn silence(progress: &Progress, within: Option<Duration>) {
    let Some(within) = within else { return std::future::pending().await };
    loop {
        let now = Instant::now();
        // Not before then, if it is the caller's turn.
        let at = progress.silent_since().unwrap_or(now) + within;
        if at <= now {
            return;
        }
        sleep_until(at).await;
    }
}

/// A request that waits for its agent. Dropped meanwhile, it leaves a doubt as a dial does: callers that have less
/// patience than this client would come back to a dead agent for ever.
struct Waiting<'a> {
    handle: &'a BoundHandle,
    progress: &'a Progress,
    evidence: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(since) = self.progress.silent_since()
            && self.evidence
            && !std::thread::panicking()
        {
            self.handle.dropped_waiting_since(since);
        }
    }
}

/// Whether an error speaks against the agent, and not against the request.
pub(super) fn is_evidence(error: &hyper::Error) -> bool {
    !error.is_user()
}

/// Begins to speak HTTP on a new connection, and takes a lease of it.
pub(super) async fn open<C, B>(
    io: C,
    handle: BoundHandle,
    agent: Arc<Agent<B>>,
    permit: Option<OwnedSemaphorePermit>,
    settings: &Settings,
) -> Result<Lease<B>, hyper::Error>
where
    C: Read + Write + Unpin + Send + 'static,
    B: Body + Unpin + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let (returned, back) = mpsc::unbounded_channel();
    let conn = Arc::new(Conn {
        handle,
        since: Instant::now(),
        retired: AtomicBool::new(false),
        returned,
        kept: Mutex::new(None),
    });
    let io = Kept { io, conn: Arc::clone(&conn) };
    let idle = settings.idle_timeout;
    let sender = match settings.speaks {
        Speaks::Http1 => {
            let (sender, connection) = http1::handshake(io).await?;
            tokio::spawn(drive(connection.with_upgrades(), Arc::clone(&conn), Arc::clone(&agent), back, idle));
            Sender::Http1(sender)
        }
        Speaks::Http2 => {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder.timer(TokioTimer::new()).keep_alive_timeout(settings.ping_timeout);
            builder.keep_alive_interval(settings.ping_interval);
            let (sender, connection) = builder.handshake(io).await?;
            tokio::spawn(drive(connection, Arc::clone(&conn), Arc::clone(&agent), back, idle));
            let sender = Sender::Http2(sender);
            if let Some(shared) = sender.share() {
                agent.add(&conn, shared);
            }
            sender
        }
    };
    Ok(Lease::new(agent, conn, sender, permit, false))
}

/// Drives a connection to its end. Ends with it, and holds nothing else up.
async fn drive<B>(
    connection: impl Future<Output = hyper::Result<()>>,
    conn: Arc<Conn<B>>,
    agent: Arc<Agent<B>>,
    mut back: mpsc::UnboundedReceiver<Returned<B>>,
    idle: Duration,
) {
    let mut connection = pin!(connection);
    let mut left_behind = pin!(conn.handle.left_behind());
    let mut expiry = pin!(sleep_until(Instant::now() + idle));
    let mut returning: Option<Returned<B>> = None;
    let end = loop {
        select! {
            biased;
            end = connection.as_mut() => break end,
            Some(returned) = back.recv(), if returning.is_none() => {
                if returned.given_up {
                    expiry.as_mut().reset(Instant::now() + FAREWELL);
                }
                returning = Some(returned);
            }
            ready = ready(&mut returning) => {
                if let Some(Returned { sender, permit, soon, .. }) = returning.take() {
                    if ready {
                        agent.put(&conn, Sender::Http1(sender), permit.is_some());
                    }
                    // Who waits for these finds the connection in its place.
                    drop((soon, permit));
                }
            }
            // Who is using it still, goes on.
            () = left_behind.as_mut(), if !conn.retired.load(Ordering::Acquire) => agent.retire(&conn),
            () = expiry.as_mut() => {
                if returning.as_ref().is_some_and(|returned| returned.given_up) {
                    break Ok(());
                }
                let next = agent.expire(&conn, idle);
                expiry.as_mut().reset(next);
            }
        }
    };
    agent.retire(&conn);
    // An orderly end is none of anybody's business: servers close idle connections as they like.
    if let Err(error) = end
        && is_evidence(&error)
        && (error.is_timeout() || is_io(&error))
    {
        conn.handle.report_stale();
    }
}

/// Whether the connection is ready for the next request; pending for ever while it was not given back.
async fn ready<B>(returning: &mut Option<Returned<B>>) -> bool {
    match returning {
        Some(returned) => returned.sender.ready().await.is_ok(),
        None => std::future::pending().await,
    }
}

/// Whether the transport has failed.
fn is_io(error: &hyper::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if error.is::<io::Error>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The transport of a connection. Keeps alive what is known of it, and reports it if it fails: after an upgrade there is
/// nobody else here who would see that.
struct Kept<C, B> {
    io: C,
    conn: Arc<Conn<B>>,
}

impl<C, B> Kept<C, B> {
    fn noted<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if matches!(polled, Poll::Ready(Err(_))) {
            self.conn.handle.report_stale();
        }
        polled
    }
}

impl<C: Read + Unpin, B> Read for Kept<C, B> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        self.noted(read)
    }
}

impl<C: Write + Unpin, B> Write for Kept<C, B> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
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
