//! The connection that a call returns, and a handle that outlives it.

use crate::{
    Event, Outcome, SessionId, Target, WorkspaceId,
    cache::{CachedRow, usage::Hold},
    replicas::holders::Doubts,
    state::{Shared, standing::Superseded},
};
use pin_project::pin_project;
use std::{
    fmt, io,
    ops::{Deref, DerefMut},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    select,
    time::Instant,
};
use tower_service::Service;

/// A connection to the agent of a session, with the facts of the call that returned it.
///
/// While it exists, its session is [in use](InUse).
///
/// It dereferences to the connection, and forwards the traits of the connection: Tokio's
/// [`AsyncRead`] and [`AsyncWrite`], hyper's `Read` and `Write` (feature `http`), and any
/// [`Service`].
///
/// ```
/// use tower::ServiceExt;
/// use tower_bound_agent::{Bound, BoundAgent, BoxError, DialAgent, DialSession};
/// # use tower::Service;
///
/// /// Dials the session's agent and prints the target and the outcome.
/// async fn connect<S>(dial: BoundAgent<S>, ask: DialSession) -> Result<Bound<S::Response>, BoxError>
/// where
///     S: Service<DialAgent, Error = std::io::Error> + Clone + Send + 'static,
///     S::Response: Send,
///     S::Future: Send,
/// {
///     let bound = dial.oneshot(ask).await?;
///     println!("{}: {} ({})", bound.session(), bound.target(), bound.outcome().kind.as_str());
///     Ok(bound)
/// }
/// ```
#[pin_project]
pub struct Bound<C> {
    #[pin]
    connection: C,
    handle: BoundHandle,
}

impl<C> Bound<C> {
    /// Creates a value whose session is in use from `now` on. `None`: the caller has not read the
    /// clock, as on the fast path.
    #[inline]
    pub(crate) fn new(connection: C, mut handle: BoundHandle, now: Option<Instant>) -> Self {
        handle.hold(now);
        Self { connection, handle }
    }

    /// Returns a reference to the connection.
    pub fn get_ref(&self) -> &C {
        &self.connection
    }

    /// Returns a mutable reference to the connection.
    pub fn get_mut(&mut self) -> &mut C {
        &mut self.connection
    }

    /// Returns the connection alone. It no longer counts as in use.
    pub fn into_inner(self) -> C {
        self.connection
    }

    /// Splits the value into the connection and its handle.
    ///
    /// The connection no longer counts as in use. Hold [`BoundHandle::in_use`] for as long as it
    /// lives.
    pub fn into_parts(mut self) -> (C, BoundHandle) {
        self.handle.release();
        (self.connection, self.handle)
    }

    /// Converts the connection (to TLS, to a client) and keeps the handle.
    pub fn map<D>(self, f: impl FnOnce(C) -> D) -> Bound<D> {
        Bound { connection: f(self.connection), handle: self.handle }
    }

    /// Returns the handle. A clone of it is cheap and outlives the connection.
    pub fn handle(&self) -> &BoundHandle {
        &self.handle
    }

    /// Returns the session that the connection was dialed for.
    pub fn session(&self) -> SessionId {
        self.handle.session()
    }

    /// Returns the workspace of the session when the connection was dialed.
    pub fn workspace(&self) -> WorkspaceId {
        self.handle.workspace()
    }

    /// Returns the target that was dialed.
    pub fn target(&self) -> &Target {
        self.handle.target()
    }

    /// Returns the outcome of the call.
    pub fn outcome(&self) -> &Outcome {
        self.handle.outcome()
    }

    /// Reports that the connection is stale; see [`BoundHandle::report_stale`].
    pub fn report_stale(&self) {
        self.handle.report_stale();
    }
}

/// The facts of a [`Bound`] without its connection. A clone is cheap.
pub struct BoundHandle {
    shared: Arc<Shared>,
    entry: Arc<CachedRow>,
    target: Arc<Target>,
    outcome: Outcome,
    /// Shared by all clones. Created when it is needed, because every call returns a handle and few
    /// connections are reported.
    reported: OnceLock<Arc<AtomicBool>>,
    /// The hold that marks the session as in use. A clone has none.
    hold: Hold,
}

impl Clone for BoundHandle {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            entry: Arc::clone(&self.entry),
            target: Arc::clone(&self.target),
            outcome: self.outcome.clone(),
            reported: OnceLock::from(Arc::clone(self.reported.get_or_init(Arc::default))),
            hold: Hold::Nothing,
        }
    }
}

impl Drop for BoundHandle {
    #[inline]
    fn drop(&mut self) {
        self.release();
    }
}

impl BoundHandle {
    #[inline]
    pub(crate) fn new(
        shared: Arc<Shared>,
        entry: Arc<CachedRow>,
        target: Arc<Target>,
        outcome: Outcome,
    ) -> Self {
        Self { shared, entry, target, outcome, reported: OnceLock::new(), hold: Hold::Nothing }
    }

    #[inline]
    fn hold(&mut self, now: Option<Instant>) {
        self.hold = self.shared.usage.hold(&self.entry, &self.target, now);
    }

    #[inline]
    fn release(&mut self) {
        if self.hold != Hold::Nothing {
            self.shared.usage.release(&self.entry, std::mem::take(&mut self.hold));
        }
    }

    /// Returns the session that the connection was dialed for.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.entry.row.session
    }

    /// Returns the workspace of the session when the connection was dialed.
    #[must_use]
    pub fn workspace(&self) -> WorkspaceId {
        self.entry.workspace()
    }

    /// Returns the target that was dialed.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Returns the outcome of the call.
    #[must_use]
    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// Marks the session as in use until the guard is dropped. Use it for a connection that was
    /// taken out of its [`Bound`].
    ///
    /// ```
    /// # use tower_bound_agent::Bound;
    /// # async fn example(bound: Bound<tokio::net::TcpStream>, mut client: tokio::net::TcpStream) -> std::io::Result<()> {
    /// let (mut agent, handle) = bound.into_parts();
    /// let in_use = handle.in_use();
    /// tokio::io::copy_bidirectional(&mut client, &mut agent).await?;
    /// drop(in_use);
    /// # Ok(())
    /// # }
    /// ```
    pub fn in_use(&self) -> InUse {
        let mut handle = self.clone();
        handle.hold(Some(Instant::now()));
        InUse(handle)
    }

    /// Reports that the connection leads to the wrong agent or to a dead one.
    ///
    /// The report raises a *doubt*: the next call of this session validates at once. If that call's
    /// dial is ready before the verdict, the call holds the connection back until the verdict, for
    /// at most the validation delay.
    ///
    /// A report counts once for a connection and its handles, and for each agent at most once a
    /// second. While the resolver keeps naming the same agent, that pause doubles, up to a minute.
    /// A report is ignored if another target is already known.
    pub fn report_stale(&self) {
        if self.reported.get_or_init(Arc::default).swap(true, Ordering::Relaxed) {
            return;
        }
        let (session, workspace) = (self.session(), self.workspace());
        if self.entry.workspace_state.doubt_reported(session, &self.target, Instant::now()) {
            self.shared.emit(&Event::ReportedStale { session, workspace, target: &self.target });
        }
    }

    /// Waits until this process learns that the session's binding no longer names this target.
    ///
    /// The future resolves after a newer build of the workspace, and after a command that retargets
    /// or forgets the session. It also resolves if the session's record may have been changed by a
    /// transaction whose end was not reported ([`Retargeted`](crate::Retargeted)). Then a
    /// long-lived connection should be drained and dialed again.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped at any time. A new one resolves at once if the target was
    /// superseded in between.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_bound_agent::Bound;
    /// # async fn example(bound: Bound<tokio::net::TcpStream>, mut terminal: tokio::net::TcpStream) -> std::io::Result<()> {
    /// let superseded = bound.handle().superseded();
    /// let mut agent = bound;
    /// tokio::select! {
    ///     copied = tokio::io::copy_bidirectional(&mut terminal, &mut agent) => drop(copied?),
    ///     () = superseded => println!("the session has moved: reconnect the terminal"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn superseded(&self) -> impl Future<Output = ()> + Send + 'static {
        let (shared, mut entry, target) =
            (Arc::clone(&self.shared), Arc::clone(&self.entry), Arc::clone(&self.target));
        let session = entry.row.session;
        async move {
            let mut _waiting = shared.usage.wait(&entry);
            let mut doubts = Doubts::default();
            loop {
                let seen = Arc::clone(&entry);
                // Created before the comparison, so that a change in between wakes this task.
                let (row_changed, workspace_changed) =
                    (shared.rows.changed(session), seen.workspace_state.changed());
                match shared.superseded(&entry, &target).await {
                    Superseded::Yes => return,
                    Superseded::No => {}
                    Superseded::Reread(row) => {
                        entry = row;
                        _waiting = shared.usage.wait(&entry);
                        continue;
                    }
                }
                select! {
                    () = row_changed => {}
                    () = workspace_changed => {}
                    // A doubt needs a question to the resolver, and no call may come that asks it.
                    () = doubts.ask(&shared, &seen.workspace_state) => {}
                }
            }
        }
    }
}

/// A guard that marks a session as in use, as a [`Bound`] does.
///
/// Until the guard is dropped,
///
/// * [`Bindings::in_use`](crate::Bindings::in_use) lists the session, and
///   [`Bindings::drained`](crate::Bindings::drained) waits for it;
/// * with a [`usage_interval`](crate::BoundAgentBuilder::usage_interval), the session's last use
///   advances at every interval, so that it is not purged as idle, and an observer receives
///   [`Event::InUse`].
///
/// [`BoundHandle::in_use`] creates it.
#[must_use = "the session is in use until this is dropped"]
#[derive(Debug)]
pub struct InUse(BoundHandle);

impl InUse {
    /// Returns the handle of the connection.
    #[must_use]
    pub fn handle(&self) -> &BoundHandle {
        &self.0
    }
}

#[cfg(feature = "http")]
impl BoundHandle {
    /// Returns the handle of another call that uses the connection of `dialed`. A report counts
    /// once for both.
    pub(crate) fn of_connection(self, dialed: &Self) -> Self {
        let mut handle = self;
        handle.reported = OnceLock::from(Arc::clone(dialed.reported.get_or_init(Arc::default)));
        handle
    }

    /// Returns the state that a request watches while it waits for its response.
    pub(crate) fn watched(&self) -> (Arc<Shared>, Arc<CachedRow>, Arc<Target>) {
        (Arc::clone(&self.shared), Arc::clone(&self.entry), Arc::clone(&self.target))
    }

    /// Returns the shared target.
    pub(crate) fn shared_target(&self) -> &Arc<Target> {
        &self.target
    }

    /// Returns `true` if the connection was reported as stale.
    pub(crate) fn is_reported(&self) -> bool {
        self.reported.get().is_some_and(|reported| reported.load(Ordering::Relaxed))
    }

    /// Records that a request was dropped that had waited for the agent since `began`. It is the
    /// same evidence as a dropped dial.
    pub(crate) fn dropped_waiting_since(&self, began: Instant) {
        let now = Instant::now();
        if now.saturating_duration_since(began) >= self.shared.settings.validation_delay {
            self.entry.workspace_state.doubt_dropped(self.target.agent, began, now);
        }
    }

    /// Returns a number that changes with all that [`is_outdated`](Self::is_outdated) depends on.
    pub(crate) fn version(&self) -> u32 {
        self.entry.workspace_state.version()
    }

    /// Returns `true` if a connection that was made at `made` is not to be used again: the target
    /// no longer serves the workspace, or was in doubt since, whatever was answered then.
    pub(crate) fn is_outdated(&self, made: Instant) -> bool {
        self.entry.workspace_state.outdates(&self.target, made)
    }

    /// Waits until a connection that was made at `made` [is outdated](Self::is_outdated). Unlike
    /// [`superseded`](Self::superseded), it ignores the binding of the session that the connection
    /// was dialed for.
    pub(crate) fn outdated(&self, made: Instant) -> impl Future<Output = ()> + Send + 'static {
        let (workspace_state, target) =
            (Arc::clone(&self.entry.workspace_state), Arc::clone(&self.target));
        async move {
            loop {
                // Created before the comparison, so that a change in between wakes this task.
                let changed = workspace_state.changed();
                if workspace_state.outdates(&target, made) {
                    return;
                }
                changed.await;
            }
        }
    }
}

impl fmt::Debug for BoundHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundHandle")
            .field("session", &self.session())
            .field("workspace", &self.workspace())
            .field("target", &self.target)
            .field("outcome", &self.outcome)
            .finish_non_exhaustive()
    }
}

impl<C: fmt::Debug> fmt::Debug for Bound<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bound")
            .field("connection", &self.connection)
            .field("handle", &self.handle)
            .finish()
    }
}

impl<C> Deref for Bound<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.connection
    }
}

impl<C> DerefMut for Bound<C> {
    fn deref_mut(&mut self) -> &mut C {
        &mut self.connection
    }
}

impl<C: AsyncRead> AsyncRead for Bound<C> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.project().connection.poll_read(cx, buf)
    }
}

impl<C: AsyncWrite> AsyncWrite for Bound<C> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.project().connection.poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().connection.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().connection.poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().connection.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }
}

impl<C: Service<Request>, Request> Service<Request> for Bound<C> {
    type Response = C::Response;
    type Error = C::Error;
    type Future = C::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), C::Error>> {
        self.connection.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> C::Future {
        self.connection.call(request)
    }
}

#[cfg(feature = "http")]
mod hyper_io {
    use super::{Bound, Context, Pin, Poll, io};
    use hyper::rt::{Read, ReadBufCursor, Write};
    use hyper_util::client::legacy::connect::{Connected, Connection};

    /// Adds the [`BoundHandle`](crate::BoundHandle) to the extensions of every response.
    impl<C: Connection> Connection for Bound<C> {
        fn connected(&self) -> Connected {
            self.connection.connected().extra(self.handle.clone())
        }
    }

    impl<C: Read> Read for Bound<C> {
        fn poll_read(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: ReadBufCursor<'_>,
        ) -> Poll<io::Result<()>> {
            self.project().connection.poll_read(cx, buf)
        }
    }

    impl<C: Write> Write for Bound<C> {
        fn poll_write(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.project().connection.poll_write(cx, buf)
        }

        fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.project().connection.poll_flush(cx)
        }

        fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.project().connection.poll_shutdown(cx)
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bufs: &[io::IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.project().connection.poll_write_vectored(cx, bufs)
        }

        fn is_write_vectored(&self) -> bool {
            self.connection.is_write_vectored()
        }
    }
}
