//! Looks at what is known of a workspace or a session, for a page for debugging.

use super::Bindings;
use crate::{SessionId, SessionSnapshot, WorkspaceId, WorkspaceSnapshot};
use tokio::time::Instant;

impl Bindings {
    /// Returns what this process knows of a workspace, for a page for debugging. `None` if it knows
    /// nothing: no cached row, call, repair or handle refers to the workspace.
    ///
    /// It sends no statement, asks no question, dials nothing, and counts as no use of a session.
    /// The parts are read one after the other, so they may differ from each other by what happens
    /// meanwhile.
    ///
    /// It visits every cached row and every session in use, which takes some ten milliseconds with
    /// 100,000 rows. It is meant for a page that a person looks at.
    ///
    /// ```
    /// # use tower_bound_agent::{Bindings, WorkspaceId};
    /// # fn explain(bindings: &Bindings, workspace: WorkspaceId) {
    /// if let Some(known) = bindings.inspect(workspace) {
    ///     for doubt in &known.doubts {
    ///         println!("in doubt for {:?}: {}", doubt.raised_ago, doubt.reason.as_str());
    ///     }
    ///     for repair in &known.repairs {
    ///         println!("{:?} for {:?}: {:?}", repair.state, repair.began_ago, repair.error);
    ///     }
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn inspect(&self, workspace: WorkspaceId) -> Option<WorkspaceSnapshot> {
        let (shared, now) = (&self.shared, Instant::now());
        let mut snapshot = shared.workspaces.find(workspace)?.inspect(now);
        let asked = shared.validations.running(workspace);
        snapshot.validating_for = asked.map(|asked| now.saturating_duration_since(asked.began()));
        snapshot.repairs = shared.repairs.inspect(Some(workspace), None, now);
        let rows = shared.rows.iter().filter(|entry| entry.workspace() == workspace);
        snapshot.cached_rows = rows.count() as u64;
        snapshot.held_connections = shared.usage.connections(|_, of| of == workspace);
        Some(snapshot)
    }

    /// Returns what this process knows of a session, for a page for debugging. Of a session that
    /// this process does not know, all fields are empty.
    ///
    /// As [`inspect`](Self::inspect) it changes nothing, and visits every cached row and every
    /// session in use.
    ///
    /// ```
    /// # use tower_bound_agent::{Bindings, SessionId};
    /// # fn explain(bindings: &Bindings, chat: SessionId) {
    /// let known = bindings.inspect_session(chat);
    /// println!("the next call dials {:?}, in doubt: {:?}", known.target, known.doubt);
    /// # }
    /// ```
    #[must_use]
    pub fn inspect_session(&self, session: SessionId) -> SessionSnapshot {
        let (shared, now) = (&self.shared, Instant::now());
        let since = |began: Instant| now.saturating_duration_since(began);
        let entry = shared.rows.peek(session);
        let (choice, doubt) = entry.as_ref().map_or((None, None), |entry| {
            let (choice, doubt) = entry.workspace_state.preview(&entry.row, entry.read(), now);
            (Some(choice), doubt)
        });
        SessionSnapshot {
            session,
            binding: entry.as_ref().map(|entry| entry.binding()),
            read_ago: entry.as_ref().map(|entry| since(entry.read())),
            target: choice.and_then(|choice| choice.target().cloned()),
            doubt,
            reading_for: shared.loads.running(session).map(|read| since(read.began())),
            is_uncertain: shared.rows.must_read(session),
            is_absent: shared.rows.is_absent(session, now),
            repairs: shared.repairs.inspect(None, Some(session), now),
            held_connections: shared.usage.connections(|of, _| of == session),
        }
    }
}
