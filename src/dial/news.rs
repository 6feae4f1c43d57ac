//! What a call that waits is woken for, beside its dial.

use crate::{
    cache::CachedRow,
    state::{Shared, Start},
    waiters::Place,
    workspace::Choice,
};
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

/// Waits until what is known of a row or its workspace has changed since `start` was chosen.
/// Counts the call as waiting, from the first poll until this is dropped.
pub(crate) struct News {
    shared: Arc<Shared>,
    entry: Arc<CachedRow>,
    /// The version of the workspace state from which was chosen what to dial.
    version: u32,
    /// The places among those who wait for the session and for the workspace.
    places: Option<(Place, Place)>,
}

impl News {
    pub(crate) fn since(shared: &Arc<Shared>, start: &Start) -> Self {
        Self::new(Arc::clone(shared), Arc::clone(&start.entry), start.version)
    }

    pub(crate) fn new(shared: Arc<Shared>, entry: Arc<CachedRow>, version: u32) -> Self {
        Self { shared, entry, version, places: None }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn entry(&self) -> &Arc<CachedRow> {
        &self.entry
    }

    pub(crate) fn is_unchanged(&self) -> bool {
        self.shared.is_unchanged(&self.entry, self.version)
    }

    /// Returns what the call goes by, chosen before it began to wait.
    pub(crate) fn start(&self, choice: Choice) -> Start {
        Start { entry: Arc::clone(&self.entry), choice, version: self.version, absent: false }
    }

    /// Ends the wait.
    pub(crate) fn end(&mut self) {
        if let Some((in_session, in_workspace)) = self.places.take() {
            self.shared.rows.waiters(self.entry.row.session).leave(in_session);
            self.entry.workspace_state.leave(in_workspace);
        }
    }
}

impl Future for News {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { shared, entry, places, .. } = &mut *self;
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
        if self.is_unchanged() { Poll::Pending } else { Poll::Ready(()) }
    }
}

impl Drop for News {
    fn drop(&mut self) {
        self.end();
    }
}
