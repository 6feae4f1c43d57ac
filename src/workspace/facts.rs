//! All that is known of one epoch of a workspace, and what follows from it. No lock and no clock.

use super::{
    doubts::Doubts,
    known::{Known, Learned, Newer},
    pace::{Intervals, Pace, Verdict},
    repairs::LandedRepairs,
};
use crate::{
    AgentId, DoubtReason, DoubtSnapshot, Generation, SessionId, Target,
    answer::{Answer, Denied},
    binding::Row,
};
use std::sync::{Arc, LazyLock};
use tokio::time::Instant;

/// The target that a session must dial.
#[derive(Clone, Debug)]
pub(crate) enum Choice {
    /// Exactly the row's target, without any doubt. Until the version of the workspace state
    /// changes, the row may be dialed without another choice.
    Settled(Arc<Target>),
    /// This target.
    Dial {
        target: Arc<Target>,
        /// Since when the target may be wrong: the call validates it while it dials.
        doubt: Option<Instant>,
        /// A connection is held back until the target was validated or the delay has passed.
        hold: bool,
        /// The row contradicts the known target, and the resolver was not asked about that yet.
        contradicts: bool,
    },
    /// Nothing, before the resolver has named a target.
    AskFirst {
        doubt: Option<Instant>,
        /// Why there is nothing to dial, if the resolver has just said so.
        denied: Option<Denied>,
    },
    /// Nothing: the epoch of the workspace has ended, or may have, so the row must be read again.
    Reset,
}

impl Choice {
    pub(crate) fn target(&self) -> Option<&Arc<Target>> {
        match self {
            Self::Settled(target) | Self::Dial { target, .. } => Some(target),
            Self::AskFirst { .. } | Self::Reset => None,
        }
    }

    /// Returns since when the session is in doubt.
    pub(crate) fn doubt(&self) -> Option<Instant> {
        match self {
            Self::Dial { doubt, .. } | Self::AskFirst { doubt, .. } => *doubt,
            Self::Settled(_) | Self::Reset => None,
        }
    }

    /// Returns why there is nothing to dial, if the resolver has just said so.
    pub(crate) fn denied(&self) -> Option<Denied> {
        match self {
            Self::AskFirst { denied, .. } => *denied,
            Self::Settled(_) | Self::Dial { .. } | Self::Reset => None,
        }
    }

    pub(crate) fn is_settled(&self) -> bool {
        matches!(self, Self::Settled(_))
    }

    pub(crate) fn is_held(&self) -> bool {
        matches!(self, Self::Dial { hold: true, .. })
    }

    /// Returns `true` if this is the row's target, another one was named by the resolver, and
    /// nothing orders the two.
    pub(crate) fn contradicts(&self) -> bool {
        matches!(self, Self::Dial { contradicts: true, .. })
    }

    pub(crate) fn is_reset(&self) -> bool {
        matches!(self, Self::Reset)
    }
}

/// The facts about one epoch of a workspace.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) known: Known,
    /// Boxed, because most workspaces were neither asked about nor doubted, and need none.
    rest: Option<Box<Rest>>,
}

#[derive(Debug, Default)]
struct Rest {
    /// The epoch has ended, or may have: all other facts are invalid.
    is_reset: bool,
    doubts: Doubts,
    pace: Pace,
    repairs: LandedRepairs,
}

/// The effect of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Judged {
    /// The answer, or [`Answer::Overtaken`] or [`Answer::Unknown`] if it says less than is known.
    pub(super) answer: Answer,
    /// When to ask again if a dial still hangs.
    pub(super) again: Instant,
    /// Another choice may follow for some sessions.
    pub(super) is_news: bool,
}

impl Facts {
    fn rest(&self) -> &Rest {
        static NOTHING: LazyLock<Rest> = LazyLock::new(Rest::default);
        self.rest.as_deref().unwrap_or(&NOTHING)
    }

    fn rest_mut(&mut self) -> &mut Rest {
        self.rest.get_or_insert_default()
    }

    pub(super) fn doubts(&self) -> &Doubts {
        &self.rest().doubts
    }

    pub(super) fn doubts_mut(&mut self) -> &mut Doubts {
        &mut self.rest_mut().doubts
    }

    pub(super) fn pace(&self) -> &Pace {
        &self.rest().pace
    }

    pub(super) fn repairs(&self) -> &LandedRepairs {
        &self.rest().repairs
    }

    pub(super) fn repairs_mut(&mut self) -> &mut LandedRepairs {
        &mut self.rest_mut().repairs
    }

    pub(super) fn is_reset(&self) -> bool {
        self.rest().is_reset
    }

    pub(super) fn reset(&mut self) {
        self.rest_mut().is_reset = true;
    }

    /// Chooses what a session with this row, read at `read`, is to dial: the newer of the row's
    /// target and the known target.
    pub(super) fn choose(&mut self, row: &Row, read: Instant, now: Instant) -> Choice {
        if self.is_reset() {
            return Choice::Reset;
        }
        let newer = self.known.newer(row.target.as_ref(), read);
        self.choice(newer, row, now)
    }

    /// Returns what [`choose`](Self::choose) would choose, and why that may be wrong, and changes
    /// nothing.
    pub(super) fn preview(
        &self,
        row: &Row,
        read: Instant,
        now: Instant,
    ) -> (Choice, Option<DoubtSnapshot>) {
        if self.is_reset() {
            return (Choice::Reset, None);
        }
        let (newer, _) = self.known.compare(row.target.as_ref(), read);
        let doubts = self.doubts();
        let doubt = newer.as_ref().and_then(|newer| {
            let of_agent =
                |doubt: &DoubtSnapshot| doubt.agent.is_none_or(|agent| agent == newer.target.agent);
            let raised = doubts.list(now).into_iter().filter(of_agent);
            let contradicted = newer.contradiction.map(|of| DoubtSnapshot {
                agent: Some(newer.target.agent),
                reason: DoubtReason::Contradicted,
                raised_ago: now.saturating_duration_since(of.since),
                quiet_for: doubts.quiet_for(of.since, now),
            });
            raised.chain(contradicted).min_by_key(|doubt| doubt.raised_ago)
        });
        (self.choice(newer, row, now), doubt)
    }

    fn choice(&self, newer: Option<Newer>, row: &Row, now: Instant) -> Choice {
        let Rest { doubts, pace, .. } = self.rest();
        let Some(Newer { target, contradiction }) = newer else {
            let denied = pace.fresh_denial(doubts.latest(), now);
            return Choice::AskFirst { doubt: None, denied };
        };
        let doubt = doubts.about(target.agent).max(contradiction.map(|of| of.since));
        let is_bound = row.target.as_ref().is_some_and(|bound| Arc::ptr_eq(bound, &target));
        if doubt.is_none() && is_bound {
            return Choice::Settled(target);
        }
        let doubt = doubt.filter(|doubt| !doubts.is_quiet(*doubt, now));
        if row.target.is_none() && doubt.is_some() {
            // Nothing binds the session to the target, so nothing is lost by asking first.
            return Choice::AskFirst { doubt, denied: None };
        }
        let hold = doubt.is_some()
            && (contradiction.is_some_and(|of| of.of_announcement)
                || doubts.is_reported_by(row.session, target.agent));
        let contradicts = doubt.is_some() && contradiction.is_some();
        Choice::Dial { target, doubt, hold, contradicts }
    }

    /// Learns what a row names. Returns `true` if that is newer than what was known.
    pub(super) fn learn_row(&mut self, target: &Arc<Target>, read: Instant) -> bool {
        let is_newer = self.known.learn_row(target, read);
        if is_newer && let Some(rest) = &mut self.rest {
            // The resolver was not asked about this target.
            rest.pace.end_pause();
            rest.doubts.retain(target.agent);
        }
        is_newer
    }

    /// Learns from an answer whose question began at `began`.
    pub(super) fn learn_answer(
        &mut self,
        mut answer: Answer,
        began: Instant,
        now: Instant,
        intervals: Intervals,
    ) -> Judged {
        let mut is_news = false;
        let mut below_floor = None;
        match &mut answer {
            Answer::Running(target) => {
                *target = self.known.intern(target);
                // The generation of a hint ends no call: an answer below it is used, and asked for
                // again.
                below_floor = self.rest_mut().pace.again_below_floor(target);
                let is_known = self.known.target().is_some_and(|known| known.same_endpoint(target));
                let agent = target.agent;
                let learned = self.known.learn_answer(Arc::clone(target), began);
                let doubts = self.doubts_mut();
                match learned {
                    Learned::Overtaken => answer = Answer::Overtaken,
                    Learned::Behind => answer = Answer::Unknown,
                    Learned::Replaced => doubts.retain(agent),
                    Learned::Settled | Learned::Confirmed => {}
                }
                is_news = matches!(learned, Learned::Replaced | Learned::Settled);
                if matches!(answer, Answer::Running(_)) && below_floor.is_none() {
                    doubts.believe(agent, began, is_known.then(|| now + intervals.first));
                }
            }
            Answer::Denied(_) => self.known.learn_denial(began),
            Answer::Unknown | Answer::Overtaken => {}
        }
        let Rest { doubts, pace, .. } = self.rest_mut();
        if below_floor.is_some() || !matches!(answer, Answer::Running(_)) {
            doubts.asked_in_vain(began, now + below_floor.unwrap_or(intervals.first));
        }
        if below_floor.is_none() && matches!(answer, Answer::Running(_) | Answer::Denied(_)) {
            pace.note(Verdict { answer: answer.clone(), began, landed: now });
        }
        Judged { answer, again: pace.pause(is_news, now, intervals), is_news }
    }

    /// Records that another process has reached this generation, or, without one, that the agent
    /// may have changed. The record is a doubt, and a minimum for the answers to it; only the store
    /// knows the written rows. Returns `false` if it is no news.
    pub(super) fn hear(&mut self, generation: Option<Generation>, now: Instant) -> bool {
        if let Some(generation) = generation {
            if self.known.generation() >= Some(generation) {
                return false;
            }
            self.rest_mut().pace.raise_floor(generation);
        }
        self.doubts_mut().raise(DoubtReason::Hint, now);
        true
    }

    /// Returns the last verdict, unless a doubt is younger than its question.
    pub(super) fn verdict(&self) -> Option<&Verdict> {
        self.pace().verdict(self.doubts().latest())
    }

    /// Returns `true` if a repair must not write the target.
    pub(super) fn supersedes(&self, target: &Target) -> bool {
        self.is_reset() || self.known.supersedes(target)
    }

    /// Returns `true` if a connection to this target, made at `made`, is not to be used again: the
    /// target was replaced, or was in doubt since.
    #[cfg(feature = "http")]
    pub(super) fn outdates(&self, target: &Target, made: Instant) -> bool {
        self.supersedes(target) || self.doubts().last_about(target.agent) >= Some(made)
    }

    /// Raises a doubt, because a session has reported its connection to this target as stale.
    /// Returns `false` if that is no news.
    pub(super) fn reported(&mut self, session: SessionId, target: &Target, now: Instant) -> bool {
        !self.is_reset()
            && !self.known.has_replaced(target)
            && self.doubts_mut().reported(session, target.agent, now)
    }

    /// Records that an agent has answered a dial after the resolver was asked about it, or while
    /// other calls wait. `in_herd`: other dials of the workspace hang.
    pub(super) fn answered(&mut self, agent: AgentId, watched_at: Option<Instant>, in_herd: bool) {
        let Rest { doubts, pace, .. } = self.rest_mut();
        if let Some(now) = watched_at {
            doubts.answered(agent, now);
        }
        // The next dial that hangs is asked about as often as the first one. In a herd the present
        // pause holds for the dials that still hang.
        if in_herd { pace.restart_pauses() } else { pace.end_pause() }
    }
}

#[cfg(test)]
mod tests;
