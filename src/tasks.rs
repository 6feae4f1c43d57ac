//! Tasks that outlive the call that began them, and their end.

use tokio::{task::JoinHandle, time::Duration};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Every task of a layer, so that closing it can wait for them and leave none behind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    end: CancellationToken,
}

impl Tasks {
    /// Runs to its end, whoever stops waiting for it; `None` if the layer was closed before.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<Option<T>> {
        let end = self.end.clone();
        self.tracker.spawn(async move { end.run_until_cancelled(task).await })
    }

    /// Waits for the tasks for so long, then drops those that are left.
    pub(crate) async fn close(&self, within: Duration) {
        self.tracker.close();
        if tokio::time::timeout(within, self.tracker.wait()).await.is_err() {
            self.end.cancel();
            // They end when they are polled next; a task that blocks its thread must not block this one.
            let _ = tokio::time::timeout(Duration::from_secs(1), self.tracker.wait()).await;
        }
    }
}
