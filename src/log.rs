//! Events as lines of a log: the level of each, its fields, and the limit of a flood.

use crate::{ErrorKind, Event, Outcome, OutcomeKind, Repair, observer::WithSources, sync::lock};
use std::sync::Mutex;
use tokio::time::{Duration, Instant};
use tracing::level_filters::LevelFilter;

/// At *info* and *warn*, there is at most one line of a kind in this time.
const BETWEEN_LINES: Duration = Duration::from_secs(1);

/// The kinds of lines at *info* and *warn*.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Switched,
    Slow,
    Failed,
    LookUpFailed,
    ValidationFailed,
    Unwritten,
    HintsLost,
    RefreshFailed,
    UseNotRecorded,
}

/// The number of [`Kind`]s.
const KINDS: usize = Kind::UseNotRecorded as usize + 1;

/// When the last line of a kind was written, and how many were left out since.
#[derive(Clone, Copy, Debug, Default)]
struct Flood {
    last: Option<Instant>,
    left_out: u64,
}

/// Returns `false` if there is no subscriber that is interested in any event.
#[inline]
pub(crate) fn is_on() -> bool {
    LevelFilter::current() != LevelFilter::OFF
}

#[inline]
fn is_slow(outcome: &Outcome, slow: Duration) -> bool {
    outcome.decided_in + outcome.dialed_in > slow
}

/// The log of one layer.
#[derive(Debug, Default)]
pub(crate) struct Log(Mutex<[Flood; KINDS]>);

impl Log {
    /// Returns how many lines of this kind were left out before the one that may be written now;
    /// `None` if that one is left out too.
    fn may_write(&self, kind: Kind, now: Instant) -> Option<u64> {
        let mut floods = lock(&self.0);
        let flood = &mut floods[kind as usize];
        if flood.last.is_some_and(|last| now < last + BETWEEN_LINES) {
            flood.left_out += 1;
            return None;
        }
        flood.last = Some(now);
        Some(std::mem::take(&mut flood.left_out))
    }

    /// Writes the line of an event. `slow`: calls that took longer are slow.
    #[inline]
    pub(crate) fn write(&self, event: &Event<'_>, slow: Duration) {
        // On the hot path, only a subscriber that is interested in each call costs something.
        let is_usual = match event {
            Event::Dialed { error: None, .. } => true,
            Event::Used { outcome, .. } => {
                matches!(outcome.kind, OutcomeKind::Reused) && !is_slow(outcome, slow)
            }
            _ => false,
        };
        if !is_usual || LevelFilter::current() >= LevelFilter::TRACE {
            self.write_line(event, slow);
        }
    }

    fn write_line(&self, event: &Event<'_>, slow: Duration) {
        /// A line at *info* or *warn*, unless it is one of a flood.
        macro_rules! line {
            ($level:ident, $kind:ident, $($line:tt)+) => {
                if tracing::enabled!(tracing::Level::$level)
                    && let Some(left_out) = self.may_write(Kind::$kind, Instant::now())
                {
                    let left_out = (left_out > 0).then_some(left_out);
                    tracing::event!(tracing::Level::$level, left_out, $($line)+);
                }
            };
        }
        use tracing::{debug, field::display, trace};
        // Displayed by a subscriber that is interested, and by no other.
        let written = |error| display(WithSources(error));
        match event {
            Event::Dialed { session, workspace, target, took, error: None } => {
                trace!(%session, %workspace, agent = %target.agent, ?took, "dialed");
            }
            Event::Dialed { session, workspace, target, took, error: Some(error) } => {
                let error = written(*error);
                debug!(%session, %workspace, agent = %target.agent, ?took, error, "dial failed");
            }
            Event::Validated { workspace, took, answer: Ok(answer) } => {
                debug!(%workspace, ?took, %answer, "validated");
            }
            Event::Validated { workspace, took, answer: Err(error) } => {
                let error = written(*error);
                line!(WARN, ValidationFailed, %workspace, ?took, error, "validation failed");
            }
            Event::Switched { session, workspace, from, to } => {
                debug!(%session, %workspace, from = %from.agent, to = %to.agent, "switching");
            }
            Event::Repaired { session, workspace, target, repair, error } => {
                let (agent, state, error) = (target.agent, repair.as_str(), error.map(written));
                match repair {
                    Repair::Retrying | Repair::Failed => {
                        line!(
                            WARN, Unwritten, %session, %workspace, %agent, state, error,
                            "repair could not be written"
                        );
                    }
                    _ => debug!(%session, %workspace, %agent, state, "repair"),
                }
            }
            Event::WorkspaceRepaired { workspace, target, repair, error } => {
                let (agent, state, error) = (target.agent, repair.as_str(), error.map(written));
                match repair {
                    Repair::Retrying | Repair::Failed => {
                        line!(
                            WARN, Unwritten, %workspace, %agent, state, error,
                            "group repair could not be written"
                        );
                    }
                    _ => debug!(%workspace, %agent, state, "group repair"),
                }
            }
            Event::Used { session, workspace, target, outcome } => {
                let agent = target.agent;
                let (kind, repair) = (outcome.kind.as_str(), outcome.repair().as_str());
                let (dials, validations) = (outcome.dials, outcome.validations);
                let (decided_in, dialed_in) = (outcome.decided_in, outcome.dialed_in);
                match &outcome.kind {
                    OutcomeKind::Switched { from } => line!(
                        INFO, Switched, %session, %workspace, from = %from.agent, to = %agent,
                        dials, validations, ?decided_in, ?dialed_in, repair,
                        "switched to another agent"
                    ),
                    _ if is_slow(outcome, slow) => line!(
                        INFO, Slow, %session, %workspace, %agent, kind, dials, validations,
                        ?decided_in, ?dialed_in, repair, "slow call"
                    ),
                    _ => trace!(%session, %workspace, %agent, kind, "connected"),
                }
            }
            Event::Failed { session, workspace, error, took } => {
                let (kind, workspace) = (error.kind().as_str(), workspace.map(display));
                let is_to_act_on = matches!(
                    error.kind(),
                    ErrorKind::Store
                        | ErrorKind::Resolver
                        | ErrorKind::Dialer
                        | ErrorKind::Local
                        | ErrorKind::Unreachable { .. }
                        | ErrorKind::WrongAgent
                        | ErrorKind::TimedOut { .. }
                );
                let error = written(*error);
                if is_to_act_on {
                    line!(WARN, Failed, %session, workspace, kind, ?took, error, "call failed");
                } else {
                    debug!(%session, workspace, kind, ?took, error, "call failed");
                }
            }
            Event::LookUpFailed { session, error } => {
                let error = written(*error);
                line!(WARN, LookUpFailed, %session, error, "row could not be read");
            }
            Event::HintsLost {} => {
                line!(INFO, HintsLost, "hints of other processes may have been lost");
            }
            Event::InUse { session, workspace, target, since: _ } => {
                trace!(%session, %workspace, agent = %target.agent, "in use");
            }
            Event::RefreshFailed { rows, error } => {
                let error = written(*error);
                line!(WARN, RefreshFailed, rows, error, "cached rows could not be read again");
            }
            Event::UseNotRecorded { sessions, error } => {
                let error = written(*error);
                line!(
                    WARN,
                    UseNotRecorded,
                    sessions,
                    error,
                    "use of sessions could not be recorded"
                );
            }
            Event::ReportedStale { session, workspace, target } => {
                debug!(%session, %workspace, agent = %target.agent, "connection reported as stale");
            }
            Event::DroppedInFlight { session, workspace, target, pending } => {
                debug!(
                    %session, %workspace, agent = %target.agent, ?pending,
                    "call dropped while its dial was pending"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_kind_has_a_line_a_second_that_counts_those_left_out() {
        let (log, now) = (Log::default(), Instant::now());
        let at = |ms| now + Duration::from_millis(ms);
        assert_eq!(log.may_write(Kind::Switched, at(0)), Some(0));
        assert_eq!(log.may_write(Kind::Switched, at(1)), None);
        assert_eq!(log.may_write(Kind::Failed, at(1)), Some(0), "another kind");
        assert_eq!(log.may_write(Kind::Switched, at(999)), None);
        assert_eq!(log.may_write(Kind::Switched, at(1_000)), Some(2));
        assert_eq!(log.may_write(Kind::Switched, at(2_000)), Some(0));
        assert_eq!(log.may_write(Kind::UseNotRecorded, at(2_000)), Some(0), "the last kind");
    }
}
