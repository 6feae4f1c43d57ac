//! Questions to the resolver that no call asks: for handles that wait, and for sessions that hold a
//! connection.

use crate::{
    answer::Answer,
    state::Shared,
    workspace::{ToAsk, WorkspaceState},
};
use std::{future::pending, sync::Arc};
use tokio::{
    runtime::Handle,
    time::{Instant, sleep_until},
};

/// The questions of one waiting handle. All handles of a workspace share its validations, so N of
/// them ask once.
#[derive(Debug, Default)]
pub(crate) struct Doubts {
    /// Doubts up to this one were answered by a denial.
    answered: Option<Instant>,
    /// How many questions in a row had no answer.
    failed: u32,
    not_before: Option<Instant>,
}

impl Doubts {
    /// Waits until the workspace is in doubt, asks the resolver, and ends with its answer. Pending
    /// while nothing is in doubt; the caller watches the workspace for changes.
    ///
    /// A resolver that fails is asked again at the intervals at which it is asked about a dial that
    /// hangs.
    pub(crate) async fn ask(
        &mut self,
        shared: &Arc<Shared>,
        workspace_state: &Arc<WorkspaceState>,
    ) {
        let to_ask = workspace_state.doubt_to_ask(self.answered, Instant::now());
        let Some(ToAsk { doubt, at }) = to_ask else {
            self.failed = 0;
            return pending().await;
        };
        if Handle::try_current().is_err() {
            // Polled outside of a runtime: the handle can be woken, but no task can be spawned.
            return pending().await;
        }
        sleep_until(self.not_before.map_or(at, |earliest| earliest.max(at))).await;
        if shared.is_closed() {
            return pending().await;
        }
        let validated = shared.validated(workspace_state, doubt).await;
        match validated.map(|validated| (validated.answer, validated.began)) {
            // If the answer is below what a hint has said, the workspace says when to ask again.
            Some((Answer::Running(_), _)) => (self.failed, self.not_before) = (0, None),
            Some((Answer::Denied(_), began)) => self.answered = self.answered.max(Some(began)),
            Some((Answer::Unknown | Answer::Overtaken, _)) | None => {
                let pause = shared.settings.revalidate_every * 2_u32.pow(self.failed.min(10));
                self.failed += 1;
                self.not_before =
                    Some(Instant::now() + pause.min(shared.settings.revalidate_at_most));
            }
        }
    }
}

/// Asks the resolver at once about a doubt that was raised, in the background, if a session here
/// holds a connection into the workspace: no call may come that would ask. Outside of a runtime
/// nothing is asked.
pub(crate) fn ask_for_holders(shared: &Arc<Shared>, workspace_state: &Arc<WorkspaceState>) {
    if shared.is_closed()
        || !shared.usage.is_held(workspace_state.workspace())
        || Handle::try_current().is_err()
    {
        return;
    }
    let Some(asking) = WorkspaceState::begin_to_ask(workspace_state) else { return };
    let shared = Arc::clone(shared);
    // After the layer was closed nothing is asked.
    let _ = shared.clone().tasks.spawn(async move {
        let workspace_state = asking.workspace_state();
        // Twice, since a question that was under way may have begun before the doubt.
        for _ in 0..2 {
            let now = Instant::now();
            let to_ask = workspace_state.doubt_to_ask(None, now);
            let Some(ToAsk { doubt, .. }) = to_ask.filter(|to_ask| to_ask.at <= now) else {
                return;
            };
            shared.validated(workspace_state, doubt).await;
        }
    });
}
