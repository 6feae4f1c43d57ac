//! Signs of life: whether somebody drives the runtime that a task runs on.
//!
//! A runtime may live without being driven: `block_on` has returned, and the runtime was kept. A
//! task on it waits for ever, and so does everybody who waits for the task. So a shared task shows
//! a sign of life at each interval, and whoever finds none begins the work anew.

use std::pin::pin;
use tokio::time::{Duration, Instant, timeout};

/// How much later than due a sign of life may be, on a busy machine.
const GRACE: Duration = Duration::from_secs(1);

/// Runs `work` to its end, and calls `sign` at each interval until then.
pub(crate) async fn with_signs<T>(
    every: Duration,
    work: impl Future<Output = T>,
    mut sign: impl FnMut(),
) -> T {
    let mut work = pin!(work);
    loop {
        match timeout(every, work.as_mut()).await {
            Ok(done) => return done,
            Err(_) => sign(),
        }
    }
}

/// How long to wait for the next sign.
pub(crate) fn patience(every: Duration) -> Duration {
    every + GRACE
}

/// Whether nobody drives the task's runtime, if its last sign was at `seen`.
pub(crate) fn has_stopped(seen: Instant, every: Duration, now: Instant) -> bool {
    now >= seen + patience(every)
}
