//! Tasks that outlive the call that began them, and their end.

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

/// Every task of a layer, so that closing it can wait for them and leave none behind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    end: CancellationToken,
    /// Closing has ended: no task begins any more.
    ended: Arc<AtomicBool>,
    /// Where they run. `None`: on the runtime of whoever begins them.
    runtime: Option<Handle>,
}

impl Tasks {
    pub(crate) fn on(runtime: Option<Handle>) -> Self {
        Self { runtime, ..Self::default() }
    }

    /// Runs to its end, whoever stops waiting for it; its result is `None` if the layer was closed
    /// before. Returns `None` and drops the task if closing has ended.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Option<JoinHandle<Option<T>>> {
        // It counts before the look: `close` either waits for it, or is seen to have ended.
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

    /// Waits for the tasks for so long, then drops those that are left and refuses new ones.
    pub(crate) async fn close(&self, within: Duration) {
        let deadline = Instant::now() + within;
        self.tracker.close();
        let _ = timeout_at(deadline, self.tracker.wait()).await;
        self.ended.store(true, Ordering::SeqCst);
        // Those that began between the two have their time as well.
        if timeout_at(deadline, self.tracker.wait()).await.is_err() {
            self.end.cancel();
            // They end when they are polled next; a task that blocks its thread must not block this
            // one.
            let _ = timeout(Duration::from_secs(1), self.tracker.wait()).await;
        }
    }
}
