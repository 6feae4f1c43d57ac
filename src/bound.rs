//! What a caller gets: the connection, and a handle that outlives it.

use crate::{
    Event, Outcome, SessionId, Target, WorkspaceId,
    cache::{CachedRow, usage::Hold},
    replicas::holders::Doubts,
    state::Shared,
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

/// A connection to the agent of a session, and how it was obtained.
///
/// While it is there, its session is [in use](InUse).
///
/// Dereferences to the connection and passes through what the connection can do: Tokio's
/// [`AsyncRead`] and [`AsyncWrite`], hyper's `Read` and `Write` (feature `http`), and any
/// [`Service`].
#[pin_project]
pub struct Bound<C> {
    #[pin]
    connection: C,
    handle: BoundHandle,
}

impl<C> Bound<C> {
    /// The connection is in use from `now` on, if that is known.
    pub(crate) fn new(connection: C, mut handle: BoundHandle, now: Option<Instant>) -> Self {
        handle.hold(now);
        Self { connection, handle }
    }

    /// The connection.
    pub fn get_ref(&self) -> &C {
        &self.connection
    }

    /// The connection.
    pub fn get_mut(&mut self) -> &mut C {
        &mut self.connection
    }

    /// The bare connection. It does not count as in use any more.
    pub fn into_inner(self) -> C {
        self.connection
    }

    /// The bare connection, and the handle that remains useful after the connection was handed on.
    ///
    /// Nothing here knows how long the connection lives from then on: keep [`BoundHandle::in_use`]
    /// beside it.
    pub fn into_parts(mut self) -> (C, BoundHandle) {
        self.handle.release();
        (self.connection, self.handle)
    }

    /// Wraps the connection in something else (TLS, a client) without losing how it was obtained.
    pub fn map<D>(self, f: impl FnOnce(C) -> D) -> Bound<D> {
        Bound { connection: f(self.connection), handle: self.handle }
    }

    /// The handle; cheap to clone.
    pub fn handle(&self) -> &BoundHandle {
        &self.handle
    }

    /// Whose connection it is.
    pub fn session(&self) -> SessionId {
        self.handle.session()
    }

    /// The workspace that the session pointed at.
    pub fn workspace(&self) -> WorkspaceId {
        self.handle.workspace()
    }

    /// What was dialed.
    pub fn target(&self) -> &Target {
        self.handle.target()
    }

    /// How the connection was obtained.
    pub fn outcome(&self) -> &Outcome {
        self.handle.outcome()
    }

    /// See [`BoundHandle::report_stale`].
    pub fn report_stale(&self) {
        self.handle.report_stale();
    }
}

/// The facts of a [`Bound`] without its connection. Cheap to clone.
pub struct BoundHandle {
    shared: Arc<Shared>,
    entry: Arc<CachedRow>,
    target: Arc<Target>,
    outcome: Outcome,
    /// Shared by the clones; made when it is needed, since most connections are never reported and
    /// every call has one.
    reported: OnceLock<Arc<AtomicBool>>,
    /// That the connection is in use; not of the clones.
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
    fn drop(&mut self) {
        self.release();
    }
}

impl BoundHandle {
    pub(crate) fn new(
        shared: Arc<Shared>,
        entry: Arc<CachedRow>,
        target: Arc<Target>,
        outcome: Outcome,
    ) -> Self {
        Self { shared, entry, target, outcome, reported: OnceLock::new(), hold: Hold::Nothing }
    }

    fn hold(&mut self, now: Option<Instant>) {
        self.hold = self.shared.usage.hold(&self.entry, &self.target, now);
    }

    fn release(&mut self) {
        if self.hold != Hold::Nothing {
            self.shared.usage.release(&self.entry, std::mem::take(&mut self.hold));
        }
    }

    /// Whose connection it is.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.entry.row.session
    }

    /// The workspace that the session pointed at.
    #[must_use]
    pub fn workspace(&self) -> WorkspaceId {
        self.entry.workspace()
    }

    /// What was dialed.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// How the connection was obtained.
    #[must_use]
    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// Marks the session as in use until the guard is dropped: for a connection that was taken out
    /// of its [`Bound`] and handed on.
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

    /// Says that the connection talks to the wrong agent or to a dead one: that raises a *doubt*,
    /// so that the next call of this session validates at once and holds a ready dial until the
    /// verdict, for at most the validation delay.
    ///
    /// Counts once for a connection and its handles, not at all once another target is known, and
    /// for each agent at most once a second; while the resolver keeps naming the same agent that
    /// pause doubles, up to a minute.
    pub fn report_stale(&self) {
        if self.reported.get_or_init(Arc::default).swap(true, Ordering::Relaxed) {
            return;
        }
        let (session, workspace) = (self.session(), self.workspace());
        if self.entry.place.doubt_reported(session, &self.target, Instant::now()) {
            self.shared.emit(&Event::ReportedStale { session, workspace, target: &self.target });
        }
    }

    /// Resolves when this process learns that the session's binding names another target: by a
    /// newer build of its workspace, or because the session was pointed elsewhere or forgotten.
    /// Then it is time to move a long-lived connection in order. Also resolves when the session's
    /// row may have been changed by a transaction whose end nobody reported
    /// ([`Retargeted`](crate::Retargeted)).
    ///
    /// # Cancel safety
    ///
    /// May be dropped and called again; what happened in between is noticed at once.
    pub fn superseded(&self) -> impl Future<Output = ()> + Send + 'static {
        let (shared, mut entry, target) =
            (Arc::clone(&self.shared), Arc::clone(&self.entry), Arc::clone(&self.target));
        let session = entry.row.session;
        async move {
            let mut _waiting = shared.usage.wait(&entry);
            let mut doubts = Doubts::default();
            loop {
                let seen = Arc::clone(&entry);
                // Made before the look, so that nothing is missed between the two.
                let (row_changed, place_changed) =
                    (shared.rows.changed(session), seen.place.changed());
                match shared.names_another(&entry, &target) {
                    Some(true) => return,
                    Some(false) => {}
                    // The cache did not keep the row, and there was an order since, perhaps another
                    // session's.
                    None => match shared.read_since(session, Instant::now()).await {
                        Ok(Some(read)) if read.workspace() == entry.workspace() => {
                            entry = read;
                            _waiting = shared.usage.wait(&entry);
                            continue;
                        }
                        Ok(_) => return,
                        // No evidence; the next change is a reason to read again.
                        Err(_) => {}
                    },
                }
                select! {
                    () = row_changed => {}
                    () = place_changed => {}
                    // No call may come that would ask.
                    () = doubts.ask(&shared, &seen.place) => {}
                }
            }
        }
    }
}

/// Marks a session as in use, as a [`Bound`] does: until it is dropped,
///
/// * [`Bindings::in_use`](crate::Bindings::in_use) lists the session, and
///   [`Bindings::drained`](crate::Bindings::drained) waits for it;
/// * where use is [recorded](crate::BoundAgentBuilder::usage_interval), the session's last use
///   moves on at every interval, so that it is not purged as idle, and an observer receives
///   [`Event::InUse`].
#[must_use = "the session is in use until this is dropped"]
#[derive(Debug)]
pub struct InUse(BoundHandle);

impl InUse {
    /// The handle of the connection.
    #[must_use]
    pub fn handle(&self) -> &BoundHandle {
        &self.0
    }
}

#[cfg(feature = "http")]
impl BoundHandle {
    /// Of the same connection, for another call that uses it: it is reported for both or for
    /// neither.
    pub(crate) fn of_connection(self, dialed: &Self) -> Self {
        let mut handle = self;
        handle.reported = OnceLock::from(Arc::clone(dialed.reported.get_or_init(Arc::default)));
        handle
    }

    /// What the call goes by, for a request that waits for its answer.
    pub(crate) fn watched(&self) -> (Arc<Shared>, Arc<CachedRow>, Arc<Target>) {
        (Arc::clone(&self.shared), Arc::clone(&self.entry), Arc::clone(&self.target))
    }

    /// What was dialed, to be kept.
    pub(crate) fn shared_target(&self) -> &Arc<Target> {
        &self.target
    }

    /// Whether somebody has said that the connection is stale.
    pub(crate) fn is_reported(&self) -> bool {
        self.reported.get().is_some_and(|reported| reported.load(Ordering::Relaxed))
    }

    /// The call was dropped while it waited for the agent since then: the same evidence as a
    /// dropped dial.
    pub(crate) fn dropped_waiting_since(&self, began: Instant) {
        let now = Instant::now();
        if now.saturating_duration_since(began) >= self.shared.settings.validation_delay {
            self.entry.place.doubt_dropped(self.target.agent, began, now);
        }
    }

    /// Resolves when this process learns that no session of the workspace is to be connected to
    /// this any more. Unlike [`superseded`](Self::superseded) it does not ask where the one session
    /// points that the connection was made for.
    pub(crate) fn left_behind(&self) -> impl Future<Output = ()> + Send + 'static {
        let (place, target) = (Arc::clone(&self.entry.place), Arc::clone(&self.target));
        async move {
            loop {
                // Made before the look, so that nothing is missed between the two.
                let changed = place.changed();
                if place.supersedes(&target) {
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
