//! Outcomes as a connection has them.

use crate::{Outcome, OutcomeKind, Repair};

/// Returns an [`Outcome`]: one dial that connected at once, without a validation. The public fields
/// can be set afterwards; the state of the repair stays as it is given here.
///
/// ```
/// use std::time::Duration;
/// use tower_bound_agent::{OutcomeKind, Repair, testing};
///
/// let mut outcome = testing::outcome(OutcomeKind::Confirmed, Repair::NotNeeded);
/// outcome.validations = 1;
/// outcome.dialed_in = Duration::from_millis(300);
/// assert_eq!((outcome.dials, outcome.repair()), (1, Repair::NotNeeded));
/// ```
#[must_use]
pub fn outcome(kind: OutcomeKind, repair: Repair) -> Outcome {
    Outcome::with(kind, repair)
}
