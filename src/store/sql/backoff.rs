//! Backoff with jitter.

use crate::jitter;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Exponential backoff with jitter and a time limit.
pub(in crate::store) struct Backoff {
    until: Instant,
    pause: Duration,
    longest: Duration,
}

impl Backoff {
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
        Self { until: Instant::now() + within, pause: Duration::from_millis(2), longest }
    }

    /// Waits before a retry. Returns `false` if the time limit has passed.
    pub(in crate::store) async fn wait(&mut self) -> bool {
        if Instant::now() >= self.until {
            return false;
        }
        sleep(jitter::around(self.pause)).await;
        self.pause = (self.pause * 2).min(self.longest);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn backoff_ends() {
        let began = Instant::now();
        let mut backoff = Backoff::for_set_up();
        let mut times = 0;
        while backoff.wait().await {
            times += 1;
        }
        assert!((50..300).contains(&times), "{times}");
        assert!((10_000..10_200).contains(&began.elapsed().as_millis()));
    }
}
