//! Backoff with jitter: the pauses between attempts of the same thing.

use crate::jitter;
use tokio::time::Duration;

/// Pauses that double from the first to the longest. Each one varies at random, so that tasks that
/// fail together do not retry together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    pause: Duration,
    longest: Duration,
    jitter: Jitter,
}

/// How a pause varies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Jitter {
    /// From a half of the pause to one and a half of it.
    #[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
    Around,
    /// From the pause to one and a quarter of it.
    Above,
}

impl Backoff {
    pub(crate) const fn new(first: Duration, longest: Duration, jitter: Jitter) -> Self {
        Self { pause: first, longest, jitter }
    }

    /// Returns the next pause.
    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(self.longest);
        match self.jitter {
            #[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
            Jitter::Around => jitter::around(pause),
            Jitter::Above => pause + jitter::up_to(pause / 4),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_vary_within_their_bounds() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_millis(500));
        let bounds = [
            #[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
            (Jitter::Around, 50, 150),
            (Jitter::Above, 100, 125),
        ];
        for (jitter, least, most) in bounds {
            for _ in 0..1_000 {
                let mut backoff = Backoff::new(first, longest, jitter);
                for hundreds in [1, 2, 4, 5, 5] {
                    let pause = backoff.next().as_millis();
                    let bounds = hundreds * least..=hundreds * most;
                    assert!(bounds.contains(&pause), "{jitter:?}: {pause} of {bounds:?}");
                }
            }
        }
    }
}
