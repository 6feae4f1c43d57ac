//! For how long a store retries what failed because of other processes.

use crate::backoff::{Backoff, Jitter};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// A [`Backoff`] with a time limit.
pub(in crate::store) struct LimitedBackoff {
    until: Instant,
    backoff: Backoff,
}

impl LimitedBackoff {
    /// For a set-up while other processes set up the same tables.
    pub(in crate::store) fn for_set_up() -> Self {
        Self::new(Duration::from_secs(10), Duration::from_millis(100))
    }

    /// For a statement that the database aborted. The limit is below the layer's default timeout of
    /// 5 s, but allows for several deadlocks, each of which PostgreSQL detects after 1 s.
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    pub(in crate::store) fn for_contention() -> Self {
        Self::new(Duration::from_secs(4), Duration::from_millis(50))
    }

    /// For a statement whose connection leads to the wrong server. Each retry costs the server a
    /// login.
    pub(in crate::store) fn for_stale_connection() -> Self {
        Self::new(Duration::from_secs(4), Duration::from_millis(500))
    }

    fn new(within: Duration, longest: Duration) -> Self {
        let backoff = Backoff::new(Duration::from_millis(2), longest, Jitter::Around);
        Self { until: Instant::now() + within, backoff }
    }

    /// Waits before a retry. Returns `false` if the time limit has passed.
    pub(in crate::store) async fn wait(&mut self) -> bool {
        if Instant::now() >= self.until {
            return false;
        }
        sleep(self.backoff.next()).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn backoff_ends() {
        let began = Instant::now();
        let mut backoff = LimitedBackoff::for_set_up();
        let mut times = 0;
        while backoff.wait().await {
            times += 1;
        }
        assert!((50..300).contains(&times), "{times}");
        assert!((10_000..10_200).contains(&began.elapsed().as_millis()));
    }
}
