//! What a call that waits is woken for, beside its dial.

use crate::{
    cache::CachedRow,
    state::{Shared, Start},
    waiters::Place,
};
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

/// Waits until what is known of a row or its workspace has changed since it was chosen what to
/// dial. Counts the call as waiting, from the first poll until this is dropped.
pub(crate) struct News(Wait);

/// What [`News`] consists of. The future of a call ends the wait by itself, since it needs the parts
/// afterwards.
pub(crate) struct Wait {
    pub(crate) shared: Arc<Shared>,
    pub(crate) entry: Arc<CachedRow>,
    /// The version of the workspace state from which was chosen what to dial.
    pub(crate) version: u32,
    /// The places among those who wait for the session and for the workspace.
    places: Option<(Place, Place)>,
}

impl Wait {
    #[inline]
    pub(crate) fn new(shared: Arc<Shared>, entry: Arc<CachedRow>, version: u32) -> Self {
        Self { shared, entry, version, places: None }
    }

    /// Returns whether there is news; wakes the task when there is.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { shared, entry, places, .. } = self;
        let CachedRow { row, workspace_state, .. } = &**entry;
        let (of_session, waker) = (shared.rows.waiters(row.session), cx.waker());
        // In the lists before the look, so that a change between the two is not missed.
        match places {
            Some((in_session, in_workspace)) => {
                of_session.stay(in_session, waker);
                workspace_state.stay(in_workspace, waker);
            }
            None => {
                let in_session = of_session.join(row.session, waker);
                *places = Some((in_session, workspace_state.join(waker)));
            }
        }
        if self.is_over() { Poll::Ready(()) } else { Poll::Pending }
    }

    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        !self.shared.is_unchanged(&self.entry, self.version)
    }

    /// Ends the wait. Must be called before this is dropped.
    pub(crate) fn end(&mut self) {
        if let Some((in_session, in_workspace)) = self.places.take() {
            self.shared.rows.waiters(self.entry.row.session).leave(in_session);
            self.entry.workspace_state.leave(in_workspace);
        }
    }
}

impl News {
    pub(crate) fn since(shared: &Arc<Shared>, start: &Start) -> Self {
        Self(Wait::new(Arc::clone(shared), Arc::clone(&start.entry), start.version))
    }
}

impl Future for News {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll(cx)
    }
}

impl Drop for News {
    fn drop(&mut self) {
        self.0.end();
    }
}
