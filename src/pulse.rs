//! Signs of life, which show that the runtime of a task is driven.
//!
//! A runtime may exist without being driven, such as after `block_on` has returned. A task on it
//! never ends, and neither does a wait for the task. Therefore, a shared task gives a sign of life
//! at each interval, and a waiter that finds none begins the work again.

use std::pin::pin;
use tokio::time::{Duration, Instant, timeout};

/// The tolerated delay of a sign of life on a busy machine.
const GRACE: Duration = Duration::from_secs(1);

/// Runs `work` to its end and calls `sign` at each interval until then.
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

/// Returns how long to wait for the next sign of life.
pub(crate) fn patience(every: Duration) -> Duration {
    every + GRACE
}

/// Returns `true` if the runtime of a task whose last sign was at `seen` is not driven.
pub(crate) fn has_stopped(seen: Instant, every: Duration, now: Instant) -> bool {
    now >= seen + patience(every)
}
