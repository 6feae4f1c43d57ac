//! What has happened so far, as far as an error must be justified by it.

use crate::plant::Plant;
use tokio::time::Instant;
use tower_bound_agent::{
    Binding, Resolution, Revision, SessionId, Target, WorkspaceId, store::StoreError,
};

/// Of two that fall into one instant, one is earlier.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(crate) struct Moment {
    pub(crate) number: u64,
    pub(crate) at: Instant,
}

#[derive(Default)]
pub(crate) struct Chronicle {
    moments: u64,
    /// All questions of all processes, in the order in which they began.
    pub(crate) questions: Vec<Question>,
    /// The statements about one row each.
    pub(crate) statements: Vec<Statement>,
    /// What each process has been told of rows, by whatever statement.
    pub(crate) sights: Vec<Sight>,
    /// The agents that each process has heard of, and when first.
    pub(crate) heard_of: Vec<HeardOf>,
    /// When something made a process doubt what it knew: a hint, a report, a call that was dropped.
    pub(crate) doubts: Vec<(usize, Moment)>,
    /// When the world changed last otherwise than by the layers' own doing.
    pub(crate) disturbed: u64,
    /// Statements that were given up, and will be carried out.
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
    /// It writes over the row. The others find a row, or create the one that they do not find.
    pub(crate) is_swap: bool,
    pub(crate) process: usize,
    pub(crate) session: SessionId,
    pub(crate) began: Moment,
    pub(crate) ended: Option<(Moment, Found)>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Found {
    Row(Binding),
    Nothing,
    /// What the statement failed with; `None` if it was given up.
    Error(Option<String>),
}

pub(crate) struct Sight {
    pub(crate) process: usize,
    pub(crate) session: SessionId,
    pub(crate) revision: Revision,
    /// `None` if there was no row.
    pub(crate) workspace: Option<WorkspaceId>,
}

pub(crate) struct HeardOf {
    pub(crate) process: usize,
    pub(crate) workspace: WorkspaceId,
    pub(crate) at: Moment,
    pub(crate) target: Target,
}

impl Chronicle {
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

    /// The question of this process about the workspace has ended. There is one at a time.
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
        asked.expect("what is answered was asked").ended = Some((now, said));
    }

    pub(crate) fn sees(&mut self, process: usize, row: &Binding) {
        let Binding { session, workspace, revision, .. } = *row;
        self.sights.push(Sight { process, session, revision, workspace: Some(workspace) });
        if let Some(target) = &row.target {
            self.hears_of(process, row.workspace, target);
        }
    }

    pub(crate) fn misses(&mut self, process: usize, session: SessionId, revision: Revision) {
        self.sights.push(Sight { process, session, revision, workspace: None });
    }

    pub(crate) fn hears_of(&mut self, process: usize, workspace: WorkspaceId, target: &Target) {
        let known =
            self.heard_of.iter().any(|known| known.process == process && known.target == *target);
        if !known {
            let at = self.now();
            self.heard_of.push(HeardOf { process, workspace, at, target: target.clone() });
        }
    }

    /// The latest generation of a workspace that the process had heard of by then.
    pub(crate) fn generation_known(
        &self,
        process: usize,
        workspace: WorkspaceId,
        by: Instant,
    ) -> Option<i64> {
        let heard = self
            .heard_of
            .iter()
            .filter(|heard| heard.process == process && heard.workspace == workspace);
        heard
            .filter(|heard| heard.at.at <= by)
            .filter_map(|heard| Some(heard.target.generation?.get()))
            .max()
    }
}

/// A statement under way. Dropped without an end, it is counted as given up.
pub(crate) struct UnderWay {
    plant: Plant,
    number: usize,
}

impl UnderWay {
    pub(crate) fn begin(plant: &Plant, process: usize, session: SessionId) -> Self {
        Self::begin_any(plant, process, session, false)
    }

    pub(crate) fn begin_swap(plant: &Plant, process: usize, session: SessionId) -> Self {
        Self::begin_any(plant, process, session, true)
    }

    fn begin_any(plant: &Plant, process: usize, session: SessionId, is_swap: bool) -> Self {
        let chronicle = &mut plant.state().chronicle;
        let began = chronicle.now();
        chronicle.statements.push(Statement { is_swap, process, session, began, ended: None });
        Self { plant: plant.clone(), number: chronicle.statements.len() - 1 }
    }

    pub(crate) fn ended(&self, found: Result<Option<&Binding>, &StoreError>) {
        self.end(match found {
            Ok(Some(row)) => Found::Row(row.clone()),
            Ok(None) => Found::Nothing,
            Err(error) => Found::Error(Some(error.to_string())),
        });
    }

    fn end(&self, found: Found) {
        let chronicle = &mut self.plant.state().chronicle;
        let now = chronicle.now();
        chronicle.statements[self.number].ended.get_or_insert((now, found));
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.end(Found::Error(None));
    }
}
