//! Counters and histograms of events, on the facade of the crate `metrics`.
//!
//! No label has the id of a session, a workspace or an agent: the number of series is fixed. All
//! handles are made with the layer, so that an event costs no look-up in the recorder.

use crate::{Event, Outcome, Repair, Resolution};
use metrics::{
    Counter, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    histogram,
};
use std::time::Duration;

/// A series: its name, unit and description.
type Series = (&'static str, Unit, &'static str);

const COUNTERS: &[Series] = &[
    (CALLS, Unit::Count, "Calls that returned a connection, by the kind of their outcome"),
    (FAILED_CALLS, Unit::Count, "Calls that failed, by the kind of their error"),
    (DROPPED_CALLS, Unit::Count, "Calls that were dropped while their dial was pending"),
    (DIALS, Unit::Count, "Dials that ended, by result"),
    (VALIDATIONS, Unit::Count, "Questions to the resolver that ended, by its verdict"),
    (SWITCHES, Unit::Count, "Calls that switched to another agent than the bound one"),
    (REPAIRS, Unit::Count, "Attempts of repairs that ended, by scope and result"),
    (FAILED_LOOK_UPS, Unit::Count, "Rows that could not be read for a call"),
    (FAILED_REFRESHES, Unit::Count, "Cached rows that could not be read again"),
    (UNRECORDED_USES, Unit::Count, "Sessions whose use could not be recorded"),
    (STALE_REPORTS, Unit::Count, "Connections that were reported as stale and raised a doubt"),
    (HINT_LOSSES, Unit::Count, "Losses of hints of other processes"),
    (HINTS_SENT, Unit::Count, "Hints that were sent, by their subject"),
    (HINTS_RECEIVED, Unit::Count, "Hints of other processes that were received, by their subject"),
    (HINTS_LAGGED, Unit::Count, "Reports of the bus that hints may have been lost"),
];

const HISTOGRAMS: &[Series] = &[
    (CALL_DURATION, Unit::Seconds, "Time from the start of a call to its connection or its error"),
    (DIAL_DURATION, Unit::Seconds, "Time for which a dial was pending"),
    (VALIDATION_DURATION, Unit::Seconds, "Time from a question to the resolver to its answer"),
    (
        STATEMENT_DURATION,
        Unit::Seconds,
        "Time from a statement of the store to its answer, by verb",
    ),
    (
        SWITCH_DELAY,
        Unit::Seconds,
        "Time in a call from its first doubt to the agent it switched to",
    ),
];

const GAUGES: &[Series] = &[
    (CACHED_ROWS, Unit::Count, "Rows in the cache"),
    (WORKSPACES, Unit::Count, "Workspaces in use"),
    (PENDING_DIALS, Unit::Count, "Dials that are pending"),
    (QUEUED_CALLS, Unit::Count, "Calls that wait in the queue of a target"),
    (PENDING_VALIDATIONS, Unit::Count, "Questions to the resolver that are not answered"),
    (PENDING_READS, Unit::Count, "Reads of a row that are not answered"),
    (OVERDUE_STATEMENTS, Unit::Count, "Statements that have taken longer than the store timeout"),
    (PENDING_REPAIRS, Unit::Count, "Repairs that are not written, by state"),
    (HELD_CONNECTIONS, Unit::Count, "Connections that are held"),
    #[cfg(feature = "http")]
    (POOLED_CONNECTIONS, Unit::Count, "Connections of an HTTP client, by state"),
    #[cfg(feature = "http")]
    (WAITING_REQUESTS, Unit::Count, "Requests that wait for a connection of an HTTP client"),
];

const CALLS: &str = "bound_agent.calls";
const FAILED_CALLS: &str = "bound_agent.calls.failed";
const DROPPED_CALLS: &str = "bound_agent.calls.dropped";
const DIALS: &str = "bound_agent.dials";
const VALIDATIONS: &str = "bound_agent.validations";
const SWITCHES: &str = "bound_agent.switches";
const REPAIRS: &str = "bound_agent.repairs";
const FAILED_LOOK_UPS: &str = "bound_agent.look_ups.failed";
const FAILED_REFRESHES: &str = "bound_agent.refreshes.failed";
const UNRECORDED_USES: &str = "bound_agent.uses.unrecorded";
const STALE_REPORTS: &str = "bound_agent.stale_reports";
const HINT_LOSSES: &str = "bound_agent.hints.lost";
const HINTS_SENT: &str = "bound_agent.hints.sent";
const HINTS_RECEIVED: &str = "bound_agent.hints.received";
const HINTS_LAGGED: &str = "bound_agent.hints.lagged";
const STATEMENT_DURATION: &str = "bound_agent.statement.duration";
const SWITCH_DELAY: &str = "bound_agent.switch.delay";
const CALL_DURATION: &str = "bound_agent.call.duration";
const DIAL_DURATION: &str = "bound_agent.dial.duration";
const VALIDATION_DURATION: &str = "bound_agent.validation.duration";
pub(crate) const CACHED_ROWS: &str = "bound_agent.rows.cached";
pub(crate) const WORKSPACES: &str = "bound_agent.workspaces";
pub(crate) const PENDING_DIALS: &str = "bound_agent.dials.pending";
pub(crate) const QUEUED_CALLS: &str = "bound_agent.calls.queued";
pub(crate) const PENDING_VALIDATIONS: &str = "bound_agent.validations.pending";
pub(crate) const PENDING_READS: &str = "bound_agent.look_ups.pending";
pub(crate) const OVERDUE_STATEMENTS: &str = "bound_agent.statements.overdue";
pub(crate) const PENDING_REPAIRS: &str = "bound_agent.repairs.pending";
pub(crate) const HELD_CONNECTIONS: &str = "bound_agent.connections.held";
#[cfg(feature = "http")]
pub(crate) const POOLED_CONNECTIONS: &str = "bound_agent.http.connections";
#[cfg(feature = "http")]
pub(crate) const WAITING_REQUESTS: &str = "bound_agent.http.requests.waiting";

/// The series of one name, by the word of their label.
#[derive(Debug)]
struct ByWord<M = Counter>(Vec<(&'static str, M)>);

impl<M> ByWord<M> {
    fn new(words: &[&'static str], series: impl Fn(&'static str) -> M) -> Self {
        Self(words.iter().map(|word| (*word, series(word))).collect())
    }

    fn get(&self, word: &str) -> Option<&M> {
        self.0.iter().find(|(of, _)| *of == word).map(|(_, series)| series)
    }
}

impl ByWord {
    fn count(&self, word: &str) {
        if let Some(counter) = self.get(word) {
            counter.increment(1);
        }
    }
}

/// The series of one layer, as the recorder has them that was installed when the layer was built.
#[derive(Debug)]
pub(crate) struct Metrics {
    calls: ByWord,
    failed_calls: ByWord,
    dropped_calls: Counter,
    answered_dials: Counter,
    failed_dials: Counter,
    validations: ByWord,
    switches: Counter,
    repairs: ByWord,
    workspace_repairs: ByWord,
    failed_look_ups: Counter,
    failed_refreshes: Counter,
    unrecorded_uses: Counter,
    stale_reports: Counter,
    hint_losses: Counter,
    hints_sent: ByWord,
    hints_received: ByWord,
    hints_lagged: Counter,
    statement_duration: ByWord<Histogram>,
    switch_delay: Histogram,
    call_duration: Histogram,
    dial_duration: Histogram,
    validation_duration: Histogram,
}

const OUTCOMES: &[&str] = &["reused", "confirmed", "redialed", "switched", "first_bind"];
const ERRORS: &[&str] = &[
    "not_bound",
    "workspace_mismatch",
    "retargeted",
    "starting",
    "stopped",
    "gone",
    "unreachable",
    "wrong_agent",
    "timed_out",
    "dialer",
    "local",
    "resolver",
    "store",
    "closed",
];
const VERDICTS: &[&str] = &["running", "starting", "stopped", "gone", "failed"];
const SUBJECTS: &[&str] = &["workspace", "session", "reset"];
const VERBS: &[&str] = &[
    "load",
    "load_many",
    "create",
    "compare_and_swap",
    "replace_agent",
    "retarget",
    "inherit",
    "unbind",
    "forget",
    "reset_workspace",
    "touch",
    "purge_idle",
    "purge_forgotten",
];
const REPAIR_RESULTS: &[&str] = &["written", "lost", "retrying", "failed"];

impl Metrics {
    pub(crate) fn new() -> Self {
        for (name, unit, what) in COUNTERS {
            describe_counter!(*name, *unit, *what);
        }
        for (name, unit, what) in HISTOGRAMS {
            describe_histogram!(*name, *unit, *what);
        }
        for (name, unit, what) in GAUGES {
            describe_gauge!(*name, *unit, *what);
        }
        let repairs = |scope| {
            ByWord::new(
                REPAIR_RESULTS,
                move |result| counter!(REPAIRS, "scope" => scope, "result" => result),
            )
        };
        Self {
            calls: ByWord::new(OUTCOMES, |kind| counter!(CALLS, "outcome" => kind)),
            failed_calls: ByWord::new(ERRORS, |kind| counter!(FAILED_CALLS, "error" => kind)),
            dropped_calls: counter!(DROPPED_CALLS),
            answered_dials: counter!(DIALS, "result" => "answered"),
            failed_dials: counter!(DIALS, "result" => "failed"),
            validations: ByWord::new(
                VERDICTS,
                |verdict| counter!(VALIDATIONS, "verdict" => verdict),
            ),
            switches: counter!(SWITCHES),
            repairs: repairs("session"),
            workspace_repairs: repairs("workspace"),
            failed_look_ups: counter!(FAILED_LOOK_UPS),
            failed_refreshes: counter!(FAILED_REFRESHES),
            unrecorded_uses: counter!(UNRECORDED_USES),
            stale_reports: counter!(STALE_REPORTS),
            hint_losses: counter!(HINT_LOSSES),
            hints_sent: ByWord::new(SUBJECTS, |about| counter!(HINTS_SENT, "about" => about)),
            hints_received: ByWord::new(
                SUBJECTS,
                |about| counter!(HINTS_RECEIVED, "about" => about),
            ),
            hints_lagged: counter!(HINTS_LAGGED),
            statement_duration: ByWord::new(
                VERBS,
                |verb| histogram!(STATEMENT_DURATION, "verb" => verb),
            ),
            switch_delay: histogram!(SWITCH_DELAY),
            call_duration: histogram!(CALL_DURATION),
            dial_duration: histogram!(DIAL_DURATION),
            validation_duration: histogram!(VALIDATION_DURATION),
        }
    }

    /// Records how long a statement took, with or without an answer.
    pub(crate) fn statement(&self, verb: &str, took: Duration) {
        debug_assert!(self.statement_duration.get(verb).is_some(), "{verb} has no series");
        if let Some(durations) = self.statement_duration.get(verb) {
            durations.record(took.as_secs_f64());
        }
    }

    pub(crate) fn switched_after(&self, delay: Duration) {
        self.switch_delay.record(delay.as_secs_f64());
    }

    pub(crate) fn hint_sent(&self, about: &str) {
        self.hints_sent.count(about);
    }

    pub(crate) fn hint_received(&self, about: &str) {
        self.hints_received.count(about);
    }

    pub(crate) fn hints_lagged(&self) {
        self.hints_lagged.increment(1);
    }

    pub(crate) fn record(&self, event: &Event<'_>) {
        match event {
            Event::Dialed { took, error, .. } => {
                let dials = if error.is_none() { &self.answered_dials } else { &self.failed_dials };
                dials.increment(1);
                self.dial_duration.record(took.as_secs_f64());
            }
            Event::Validated { took, answer, .. } => {
                self.validations.count(answer.map_or("failed", Resolution::as_str));
                self.validation_duration.record(took.as_secs_f64());
            }
            Event::Switched { .. } => self.switches.increment(1),
            Event::Repaired { repair, .. } => self.repairs.count(Repair::as_str(repair)),
            Event::WorkspaceRepaired { repair, .. } => {
                self.workspace_repairs.count(Repair::as_str(repair));
            }
            Event::Used { outcome, .. } => {
                let Outcome { kind, decided_in, dialed_in, .. } = outcome;
                self.calls.count(kind.as_str());
                self.call_duration.record((*decided_in + *dialed_in).as_secs_f64());
            }
            Event::Failed { error, took, .. } => {
                self.failed_calls.count(error.kind().as_str());
                self.call_duration.record(took.as_secs_f64());
            }
            Event::LookUpFailed { .. } => self.failed_look_ups.increment(1),
            Event::HintsLost {} => self.hint_losses.increment(1),
            Event::RefreshFailed { rows, .. } => self.failed_refreshes.increment(*rows),
            Event::UseNotRecorded { sessions, .. } => self.unrecorded_uses.increment(*sessions),
            Event::ReportedStale { .. } => self.stale_reports.increment(1),
            Event::DroppedInFlight { .. } => self.dropped_calls.increment(1),
            Event::InUse { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, OutcomeKind};

    /// A word that no series has would not be counted.
    #[test]
    fn every_word_of_a_label_has_a_series() {
        let target = crate::binding::target("a5");
        let outcomes = [
            OutcomeKind::Reused,
            OutcomeKind::Confirmed,
            OutcomeKind::Redialed,
            OutcomeKind::Switched { from: target.clone() },
            OutcomeKind::FirstBind,
        ];
        assert_eq!(outcomes.map(|kind| kind.as_str()), OUTCOMES);
        let workspace = crate::WorkspaceId::new(uuid::Uuid::from_u128(1));
        let errors = [
            ErrorKind::NotBound,
            ErrorKind::WorkspaceMismatch { bound: workspace, asked: workspace },
            ErrorKind::Retargeted,
            ErrorKind::Starting { retry_after: None },
            ErrorKind::Stopped,
            ErrorKind::Gone,
            ErrorKind::Unreachable { newer: None },
            ErrorKind::WrongAgent,
            ErrorKind::TimedOut { last: crate::LastVerdict::Same },
            ErrorKind::Dialer,
            ErrorKind::Local,
            ErrorKind::Resolver,
            ErrorKind::Store,
            ErrorKind::Closed,
        ];
        assert_eq!(errors.map(|kind| kind.as_str()), ERRORS);
        let repairs = [Repair::Written, Repair::Lost, Repair::Retrying, Repair::Failed];
        assert_eq!(repairs.map(|repair| repair.as_str()), REPAIR_RESULTS);
        let answers = [
            Resolution::Running((*target).clone()),
            Resolution::Starting { retry_after: None },
            Resolution::Stopped,
            Resolution::Gone,
        ];
        assert_eq!(answers.map(|answer| answer.as_str()), VERDICTS[..4]);
    }
}
