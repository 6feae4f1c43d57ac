//! What a process holds and does at one moment, as numbers.

use super::Bindings;
use crate::Repair;
use std::sync::atomic::Ordering;

/// What a layer holds and does at one moment, as [`Bindings::stats`] counts it.
///
/// The numbers are of this process. They are read one after the other, so they may differ from each
/// other by what happens meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Stats {
    /// Rows in the cache.
    pub cached_rows: u64,
    /// Workspaces in use: by cached rows, calls, repairs, or handles.
    pub workspaces: u64,
    /// Dials that were pending after their first poll.
    pub pending_dials: u64,
    /// Calls that wait in the queue of a target, since it has
    /// [`max_pending_dials`](crate::BoundAgentBuilder::max_pending_dials) already.
    pub queued_calls: u64,
    /// Questions to the resolver that are not answered.
    pub validations: u64,
    /// Reads of a row that are not answered. Calls of one session share a read.
    pub reads: u64,
    /// Statements whose answer has taken longer than the
    /// [`store_timeout`](crate::BoundAgentBuilder::store_timeout).
    pub overdue_statements: u64,
    /// Repairs of a session or a workspace that wait for the answer to their first attempt.
    pub repairs_pending: u64,
    /// Repairs that have failed and will be tried again.
    pub repairs_retrying: u64,
    /// Connections that are held: each [`Bound`](crate::Bound) and each [`InUse`](crate::InUse)
    /// guard.
    pub held_connections: u64,
}

impl Bindings {
    /// Counts what this process holds and does now, for gauges and a page for debugging. Sends no
    /// statement and asks no question.
    ///
    /// It visits every workspace in use and every session in use, under one lock at a time: call it
    /// every few seconds, not with every request.
    ///
    /// ```
    /// # use tower_bound_agent::Bindings;
    /// # fn watch(bindings: &Bindings) {
    /// let stats = bindings.stats();
    /// println!("{} dials are pending, {} calls wait", stats.pending_dials, stats.queued_calls);
    /// # }
    /// ```
    #[must_use]
    pub fn stats(&self) -> Stats {
        let shared = &self.shared;
        let mut stats = Stats {
            cached_rows: shared.rows.count(),
            validations: shared.validations.len() as u64,
            reads: shared.loads.len() as u64,
            overdue_statements: shared.overdue.load(Ordering::Relaxed) as u64,
            held_connections: shared.usage.connections(|_, _| true),
            ..Stats::default()
        };
        shared.workspaces.visit(|state| {
            let dials = state.pending_dials();
            stats.workspaces += 1;
            stats.pending_dials += dials.pending;
            stats.queued_calls += dials.queued;
        });
        for repair in shared.repairs.states() {
            match repair {
                Repair::Pending => stats.repairs_pending += 1,
                Repair::Retrying => stats.repairs_retrying += 1,
                _ => {}
            }
        }
        stats
    }
}

#[cfg(feature = "metrics")]
impl Stats {
    /// Sets the gauges of the feature `metrics` to these numbers. Call it at an interval, or before
    /// the recorder is scraped.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_bound_agent::Bindings;
    /// # async fn watch(bindings: Bindings) {
    /// let mut every = tokio::time::interval(Duration::from_secs(5));
    /// loop {
    ///     every.tick().await;
    ///     bindings.stats().record();
    /// }
    /// # }
    /// ```
    pub fn record(&self) {
        use crate::metrics::{
            CACHED_ROWS, HELD_CONNECTIONS, OVERDUE_STATEMENTS, PENDING_DIALS, PENDING_READS,
            PENDING_REPAIRS, PENDING_VALIDATIONS, QUEUED_CALLS, WORKSPACES,
        };
        let set = |name: &'static str, value: u64| metrics::gauge!(name).set(value as f64);
        set(CACHED_ROWS, self.cached_rows);
        set(WORKSPACES, self.workspaces);
        set(PENDING_DIALS, self.pending_dials);
        set(QUEUED_CALLS, self.queued_calls);
        set(PENDING_VALIDATIONS, self.validations);
        set(PENDING_READS, self.reads);
        set(OVERDUE_STATEMENTS, self.overdue_statements);
        set(HELD_CONNECTIONS, self.held_connections);
        let repairs = [("pending", self.repairs_pending), ("retrying", self.repairs_retrying)];
        for (state, value) in repairs {
            metrics::gauge!(PENDING_REPAIRS, "state" => state).set(value as f64);
        }
    }
}
