//! Instants in eight bytes, for what is kept of each cached row.

use std::sync::LazyLock;
use tokio::time::{Duration, Instant};

/// An instant, to the nanosecond, as its distance from the first one that was converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CompactInstant(i64);

static ZERO: LazyLock<Instant> = LazyLock::new(Instant::now);

impl From<Instant> for CompactInstant {
    fn from(at: Instant) -> Self {
        // Nearly 300 years fit.
        let nanos = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        match at.checked_duration_since(*ZERO) {
            Some(after) => Self(nanos(after)),
            None => Self(-nanos(ZERO.duration_since(at))),
        }
    }
}

impl From<CompactInstant> for Instant {
    fn from(compact: CompactInstant) -> Self {
        let nanos = Duration::from_nanos(compact.0.unsigned_abs());
        if compact.0 < 0 { *ZERO - nanos } else { *ZERO + nanos }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_converted_exactly_and_keeps_its_order() {
        let zero = *ZERO;
        let hour = Duration::from_secs(3_600);
        let instants = [
            zero - hour,
            zero - Duration::from_nanos(1),
            zero,
            zero + Duration::from_nanos(1),
            zero + hour,
        ];
        let compact = instants.map(CompactInstant::from);
        assert_eq!(compact.map(Instant::from), instants);
        assert!(compact.is_sorted_by(|a, b| a < b));
    }
}
