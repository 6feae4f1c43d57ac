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

/// What [`News`] consists of. The future of a call ends the wait by itself, since it needs the
/// parts afterwards.
pub(crate) struct Wait {
    pub(crate) shared: Arc<Shared>,
    pub(crate) entry: Arc<CachedRow>,
    /// The version of the workspace state from which was chosen what to dial.
    pub(crate) version: u32,
    /// The place among those who wait for the workspace.
    in_workspace: Option<Place>,
    /// The place among those who wait for the session. A call whose row is in its slot needs none:
    /// it is woken for the workspace if the row leaves its slot.
    in_session: Option<Place>,
}

impl Wait {
    #[inline]
    pub(crate) fn new(shared: Arc<Shared>, entry: Arc<CachedRow>, version: u32) -> Self {
        Self { shared, entry, version, in_workspace: None, in_session: None }
    }

    /// Returns whether there is news; wakes the task when there is.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { shared, entry, in_workspace, in_session, .. } = self;
        let CachedRow { row, workspace_state, .. } = &**entry;
        let waker = cx.waker();
        // In the lists before the looks, so that a change between the two is not missed.
        match in_workspace {
            Some(place) => workspace_state.stay(place, waker),
            None => *in_workspace = Some(workspace_state.join(row.session, waker)),
        }
        if !entry.is_current() {
            let waiters = shared.rows.waiters(row.session);
            match in_session {
                Some(place) => drop(waiters.stay(place, waker)),
                None => *in_session = Some(waiters.join(row.session, waker)),
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
        if let Some(place) = self.in_workspace.take() {
            self.entry.workspace_state.leave(place);
        }
        if let Some(place) = self.in_session.take() {
            self.shared.rows.waiters(self.entry.row.session).leave(place);
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
