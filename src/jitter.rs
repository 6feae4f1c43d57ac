//! Random pauses, so that tasks that fail together do not retry together.

use tokio::time::Duration;

/// Returns a random duration, evenly distributed from zero to `most`.
pub(crate) fn up_to(most: Duration) -> Duration {
    Duration::from_nanos(fastrand::u64(..=u64::try_from(most.as_nanos()).unwrap_or(u64::MAX)))
}

/// Returns a random duration from half of `pause` to one and a half of it.
pub(crate) fn around(pause: Duration) -> Duration {
    pause / 2 + up_to(pause)
}
