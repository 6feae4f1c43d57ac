//! The earlier events that may justify an error.

use crate::truth::Truth;
use std::error::Error;
use tokio::time::Instant;
use tower_bound_agent::{
    Binding, Resolution, Revision, SessionId, Target, WorkspaceId, store::StoreError,
};

/// A point in time. Of two events at the same instant, one has the smaller number.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(crate) struct Moment {
    pub(crate) number: u64,
    pub(crate) at: Instant,
}

#[derive(Default)]
pub(crate) struct History {
    moments: u64,
    /// All questions of all processes, in the order in which they began.
    pub(crate) questions: Vec<Question>,
    /// The statements that concern one row each.
    pub(crate) statements: Vec<Statement>,
    /// The rows that each process has received, from any statement.
    pub(crate) observations: Vec<Observation>,
    /// The agents that each process knows, and since when.
    pub(crate) known_agents: Vec<KnownAgent>,
    /// The times at which a process began to doubt its known targets: a hint, a report, a dropped
    /// call.
    pub(crate) doubts: Vec<(usize, Moment)>,
    /// The last change that was not made by the layers.
    pub(crate) disturbed: u64,
    /// Statements that their callers have abandoned and that will still be executed.
    pub(crate) overdue: usize,
    /// Commands under way.
    pub(crate) commands: usize,
}

/// A question to the resolver.
pub(crate) struct Question {
    pub(crate) process: usize,
    pub(crate) workspace: WorkspaceId,
    pub(crate) began: Moment,
    pub(crate) ended: Option<(Moment, Result<Resolution, String>)>,
}

pub(crate) struct Statement {
    pub(crate) kind: Kind,
    pub(crate) process: usize,
    pub(crate) session: SessionId,
    pub(crate) began: Moment,
    pub(crate) ended: Option<(Moment, Found)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Load,
    /// Creates a missing row, or returns the existing one.
    Create,
    /// Overwrites the row.
    Swap,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Found {
    Row(Binding),
    Nothing,
    /// The statement's error; `None` if its caller has abandoned it.
    Error(Option<String>),
}

pub(crate) struct Observation {
    pub(crate) process: usize,
    pub(crate) session: SessionId,
    pub(crate) revision: Revision,
    /// `None` if there was no row.
    pub(crate) workspace: Option<WorkspaceId>,
}

pub(crate) struct KnownAgent {
    pub(crate) process: usize,
    pub(crate) workspace: WorkspaceId,
    pub(crate) at: Moment,
    /// When the question or the statement began that has named the target first: an answer to a
    /// later question is expected to know of it.
    pub(crate) began: Instant,
    pub(crate) target: Target,
}

impl History {
    pub(crate) fn now(&mut self) -> Moment {
        self.moments += 1;
        Moment { number: self.moments, at: Instant::now() }
    }

    pub(crate) fn doubt(&mut self, process: usize) {
        let now = self.now();
        self.doubts.push((process, now));
    }

    pub(crate) fn disturb(&mut self) {
        self.disturbed = self.now().number;
    }

    pub(crate) fn asks(&mut self, process: usize, workspace: WorkspaceId) {
        let began = self.now();
        self.questions.push(Question { process, workspace, began, ended: None });
    }

    /// Records the end of this process's question about the workspace. At most one runs at a time.
    pub(crate) fn answered(
        &mut self,
        process: usize,
        workspace: WorkspaceId,
        said: Result<Resolution, String>,
    ) {
        let now = self.now();
        let mut open = self.questions.iter_mut().rev().filter(|question| question.ended.is_none());
        let asked =
            open.find(|question| (question.process, question.workspace) == (process, workspace));
        asked.expect("an answer belongs to a question").ended = Some((now, said));
    }

    pub(crate) fn sees(&mut self, process: usize, row: &Binding, began: Instant) {
        let Binding { session, workspace, revision, .. } = *row;
        self.observations.push(Observation {
            process,
            session,
            revision,
            workspace: Some(workspace),
        });
        if let Some(target) = &row.target {
            self.hears_of(process, row.workspace, target, began);
        }
    }

    pub(crate) fn misses(&mut self, process: usize, session: SessionId, revision: Revision) {
        self.observations.push(Observation { process, session, revision, workspace: None });
    }

    pub(crate) fn hears_of(
        &mut self,
        process: usize,
        workspace: WorkspaceId,
        target: &Target,
        began: Instant,
    ) {
        let known = self
            .known_agents
            .iter()
            .any(|known| known.process == process && known.target == *target);
        if !known {
            let at = self.now();
            let target = target.clone();
            self.known_agents.push(KnownAgent { process, workspace, at, began, target });
        }
    }

    /// Returns the latest generation of a workspace that the process knows from a question or a
    /// statement that had begun by then.
    pub(crate) fn generation_known(
        &self,
        process: usize,
        workspace: WorkspaceId,
        by: Instant,
    ) -> Option<i64> {
        let heard = self
            .known_agents
            .iter()
            .filter(|heard| heard.process == process && heard.workspace == workspace);
        heard
            .filter(|heard| heard.began <= by)
            .filter_map(|heard| Some(heard.target.generation?.get()))
            .max()
    }
}

/// Returns the error and its causes in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let cause = error.source().map_or_else(String::new, |cause| format!(": {}", chain(cause)));
    error.to_string() + &cause
}

/// A statement under way. If the value is dropped before its end, the statement counts as
/// abandoned.
pub(crate) struct UnderWay {
    truth: Truth,
    number: usize,
}

impl UnderWay {
    pub(crate) fn begin(truth: &Truth, process: usize, session: SessionId, kind: Kind) -> Self {
        let history = &mut truth.state().history;
        let began = history.now();
        history.statements.push(Statement { kind, process, session, began, ended: None });
        Self { truth: truth.clone(), number: history.statements.len() - 1 }
    }

    pub(crate) fn ended(&self, found: Result<Option<&Binding>, &StoreError>) {
        self.end(match found {
            Ok(Some(row)) => Found::Row(row.clone()),
            Ok(None) => Found::Nothing,
            Err(error) => Found::Error(Some(chain(error))),
        });
    }

    fn end(&self, found: Found) {
        let history = &mut self.truth.state().history;
        let now = history.now();
        history.statements[self.number].ended.get_or_insert((now, found));
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.end(Found::Error(None));
    }
}
