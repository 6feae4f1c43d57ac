//! The resolver as one process sees it.

use crate::{
    ms,
    scenario::{Answers, How, Status},
    truth::{State, Truth, Workspace},
};
use tokio::time::{Instant, sleep};
use tower::{Service, service_fn};
use tower_bound_agent::{BoxError, Resolution, ResolveWorkspace, WorkspaceId};

/// Questions of a process about a workspace at one instant: far more than calls can need.
const MOST_QUESTIONS_AT_ONCE: usize = 100;

pub(crate) fn resolver(
    truth: Truth,
    process: usize,
) -> impl Service<ResolveWorkspace, Response = Resolution, Error = BoxError, Future: Send> + Clone + Send
{
    service_fn(move |ask: ResolveWorkspace| {
        let truth = truth.clone();
        async move {
            let _asking = Asking::begin(&truth, process, ask.workspace);
            if truth.state().is_asked_without_end(process, ask.workspace) {
                // Else the clock would stand still, and the scenario would not end.
                return std::future::pending().await;
            }
            let answers = truth.state().answers.get(&(process, ask.workspace)).copied();
            let answers = answers.unwrap_or(Answers { how: How::Right, after: 0, early: true });
            let says = || {
                let mut state = truth.state();
                let Workspace { builds, status, first, .. } = &*state.workspace(ask.workspace);
                match (answers.how, status) {
                    (How::Lags(behind), _) => {
                        // A generation of an ended numbering would never be reached again.
                        let behind = builds.len().saturating_sub(1 + behind).max(*first);
                        Resolution::Running(builds[behind].clone())
                    }
                    (_, Status::Running) => Resolution::Running(builds.last().unwrap().clone()),
                    (_, Status::Starting) => {
                        let retry_after = Some(ms(builds.len() as u64));
                        Resolution::Starting { retry_after }
                    }
                    (_, Status::Stopped) => Resolution::Stopped,
                    (_, Status::Gone) => Resolution::Gone,
                }
            };
            let early = says();
            if answers.after > 0 {
                sleep(ms(answers.after)).await;
            }
            match answers.how {
                How::Fails => Err("the resolver is broken".into()),
                How::Hangs => std::future::pending().await,
                How::Right | How::Lags(_) => Ok(if answers.early { early } else { says() }),
            }
        }
    })
}

impl State {
    /// Checks that a process does not ask about a workspace again and again at one instant.
    fn is_asked_without_end(&mut self, process: usize, workspace: WorkspaceId) -> bool {
        let now = Instant::now();
        let questions = self.history.questions.iter().rev();
        let of_now = questions
            .take_while(|question| question.began.at == now)
            .filter(|question| (question.process, question.workspace) == (process, workspace));
        let is_endless = of_now.count() > MOST_QUESTIONS_AT_ONCE;
        if is_endless {
            self.broken.push(format!("{process}: {workspace} is asked about without end"));
        }
        is_endless
    }
}

/// Counts the questions that run.
pub(crate) struct Asking(pub(crate) Truth, (usize, WorkspaceId));

impl Asking {
    pub(crate) fn begin(truth: &Truth, process: usize, workspace: WorkspaceId) -> Self {
        let mut state = truth.state();
        let running = state.validating.entry((process, workspace)).or_default();
        *running += 1;
        if *running > 1 {
            state.broken.push("two validations of one workspace at once".into());
        }
        state.not_after_closing(process, "a question");
        state.history.asks(process, workspace);
        Self(truth.clone(), (process, workspace))
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        *self.0.state().validating.get_mut(&self.1).unwrap() -= 1;
    }
}
