//! Spreads pauses at random, so that many that failed together do not come back together.

use tokio::time::Duration;

/// Returns a random share of `most`, evenly from nothing to all of it.
pub(crate) fn up_to(most: Duration) -> Duration {
    Duration::from_nanos(fastrand::u64(..=u64::try_from(most.as_nanos()).unwrap_or(u64::MAX)))
}

/// Returns `pause`, shorter or longer by up to a half.
pub(crate) fn around(pause: Duration) -> Duration {
    pause / 2 + up_to(pause)
}
