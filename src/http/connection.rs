//! State of one connection.

use super::{
    outgoing::Progress,
    pool::types::{Agent, Conn, ToDriver},
};
use crate::{BoundHandle, sync::lock};
use std::sync::{
    Arc, Mutex, OnceLock, Weak,
    atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
};
use tokio::{
    sync::mpsc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// How long an agent may stop reading a body before other requests avoid the connection.
const STALLED: Duration = Duration::from_millis(500);

impl<B> Conn<B> {
    pub(super) fn new(
        handle: BoundHandle,
        agent: Arc<Agent<B>>,
        to_driver: mpsc::UnboundedSender<ToDriver<B>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            handle,
            agent,
            since: Instant::now(),
            retired: AtomicBool::new(false),
            current_in: AtomicU32::new(0),
            counted: AtomicBool::new(false),
            upgraded: AtomicBool::new(false),
            tunnel: OnceLock::new(),
            streams: AtomicUsize::new(0),
            unanswered: AtomicUsize::new(0),
            uploads: Mutex::default(),
            answered: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            gone: CancellationToken::new(),
            to_driver,
        })
    }

    pub(super) fn agent(&self) -> &Arc<Agent<B>> {
        &self.agent
    }

    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// Returns `true` if no further request may use the connection.
    pub(super) fn is_retired(&self) -> bool {
        self.has_left() || self.handle.is_reported() || self.is_outdated()
    }

    /// Returns `true` if the agent was replaced, or was in doubt since the connection was made. The
    /// driver retires the connection then; this closes the time until it does.
    fn is_outdated(&self) -> bool {
        // Read before the look, so that a later change leads to another look.
        let version = self.handle.version();
        if self.current_in.load(Ordering::Relaxed) == version {
            return false;
        }
        let is_outdated = self.handle.is_outdated(self.since);
        if !is_outdated {
            self.current_in.store(version, Ordering::Relaxed);
        }
        is_outdated
    }

    /// Waits until the connection is outdated.
    pub(super) fn outdated(&self) -> impl Future<Output = ()> + Send + 'static {
        self.handle.outdated(self.since)
    }

    /// Returns `true` if the connection was retired.
    pub(super) fn has_left(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Counts the connection against the limit from now on.
    pub(super) fn count(&self) {
        self.counted.store(true, Ordering::Relaxed);
    }

    /// Stops counting the connection. Returns `true` if it counted until now.
    pub(super) fn uncount(&self) -> bool {
        self.counted.swap(false, Ordering::Relaxed)
    }

    /// Returns how many concurrent requests the agent allows, once it has announced that.
    pub(super) fn streams(&self) -> Option<usize> {
        match self.streams.load(Ordering::Relaxed) {
            0 => None,
            streams => Some(streams),
        }
    }

    /// Sets how many concurrent requests the agent allows. Returns `true` if the number changed.
    pub(super) fn set_streams(&self, streams: usize) -> bool {
        // An agent that allows none at present gets one request, which waits in hyper.
        let streams = streams.max(1);
        self.streams.swap(streams, Ordering::Relaxed) != streams
    }

    /// Returns `true` if a request has no complete response yet.
    pub(super) fn has_unanswered(&self) -> bool {
        self.unanswered.load(Ordering::Relaxed) > 0
    }

    /// Tracks the body of a request that is about to be sent over a shared connection.
    pub(super) fn uploads(&self, progress: &Arc<Progress>) {
        let mut uploads = lock(&self.uploads);
        uploads.retain(|upload| upload.upgrade().is_some_and(|progress| !progress.is_sent()));
        uploads.push(Arc::downgrade(progress));
    }

    /// Returns `true` if the agent has stopped reading a body, which may have filled the window
    /// that all requests of the connection share.
    pub(super) fn is_stalled(&self) -> bool {
        let uploads = lock(&self.uploads);
        uploads.iter().filter_map(Weak::upgrade).any(|progress| progress.is_stalled(STALLED))
    }

    /// Records the time of a frame of a response.
    pub(super) fn has_answered(&self) {
        let micros = self.since.elapsed().as_micros();
        self.answered.fetch_max(u64::try_from(micros).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn answered_since(&self, since: Instant) -> bool {
        self.since + Duration::from_micros(self.answered.load(Ordering::Relaxed)) > since
    }

    /// Signals that the driver has ended.
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
