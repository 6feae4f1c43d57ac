//! The tasks of a layer, which outlive the calls that begin them, and their end.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tokio::{
    runtime::Handle,
    task::JoinHandle,
    time::{Duration, Instant, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The tasks of a layer. Closing waits for them and leaves none behind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    end: CancellationToken,
    /// Set when closing has ended. No task begins afterwards.
    ended: Arc<AtomicBool>,
    /// The runtime of the tasks. `None`: the runtime of the caller that begins the task.
    runtime: Option<Handle>,
}

impl Tasks {
    pub(crate) fn on(runtime: Option<Handle>) -> Self {
        Self { runtime, ..Self::default() }
    }

    /// Spawns a task that runs to its end even if no caller waits for it. Its result is `None` if
    /// the layer was closed before its end. Returns `None` and drops the task if closing has ended.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Option<JoinHandle<Option<T>>> {
        // Counted before the check, so that `close` either waits for the task, or has ended before
        // the check.
        let counted = self.tracker.token();
        if self.ended.load(Ordering::SeqCst) {
            return None;
        }
        let end = self.end.clone();
        let task = async move {
            let _counted = counted;
            end.run_until_cancelled(task).await
        };
        Some(match &self.runtime {
            Some(runtime) => runtime.spawn(task),
            None => tokio::spawn(task),
        })
    }

    /// Waits for the tasks for up to `within`, then drops the remaining ones and refuses new ones.
    pub(crate) async fn close(&self, within: Duration) {
        let deadline = Instant::now() + within;
        self.tracker.close();
        let _ = timeout_at(deadline, self.tracker.wait()).await;
        self.ended.store(true, Ordering::SeqCst);
        // Tasks that began before `ended` was set may run until the deadline too.
        if timeout_at(deadline, self.tracker.wait()).await.is_err() {
            self.end.cancel();
            // A cancelled task ends at its next poll. A task that blocks its thread must not block
            // this one.
            let _ = timeout(Duration::from_secs(1), self.tracker.wait()).await;
        }
    }
}
