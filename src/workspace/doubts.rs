//! Doubts about the targets of a workspace: since when they may be wrong, and when that is no
//! reason to ask the resolver.

use crate::{AgentId, DoubtReason, DoubtSnapshot, SessionId, compact_instant::CompactInstant};
use tokio::time::{Duration, Instant};

/// A dial that was dropped after less than this says nothing about its agent.
const TOO_SHORT_TO_DOUBT: Duration = Duration::from_millis(10);
/// The pause between two reports about one agent that raise a doubt. It doubles while the resolver
/// goes on to name that agent.
const REPORT_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_REPORT_PAUSE: Duration = Duration::from_secs(60);
/// The reporting sessions that are remembered per agent. Each answer empties the list.
const MOST_REPORTERS: usize = 64;

/// The doubts about one workspace. A doubt is the instant since when a target may be wrong; only an
/// answer whose question began at that instant or later removes it.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    /// The doubt about every target of the workspace.
    workspace: Doubt,
    quiet: Option<Quiet>,
    agents: Agents,
}

/// The latest doubt about one thing.
#[derive(Clone, Copy, Debug, Default)]
enum Doubt {
    #[default]
    None,
    Raised(CompactInstant, DoubtReason),
    /// An answer has removed it. It is remembered, because an answer does not say that connections
    /// from before the doubt still work.
    Removed(CompactInstant),
}

/// The pause after an answer of the resolver that removed no doubt.
#[derive(Clone, Copy, Debug)]
struct Quiet {
    /// Doubts up to this instant are quiet…
    asked: CompactInstant,
    /// …and are asked about again from this instant on.
    until: Instant,
}

/// Agents about which there is something to say. Nearly always there is one; there are a few while
/// they replace each other.
#[derive(Debug, Default)]
struct Agents(Vec<(AgentId, AgentDoubts)>);

#[derive(Debug, Default)]
struct AgentDoubts {
    doubt: Doubt,
    /// Dropped dials raise no doubt before this instant, because the resolver has just confirmed
    /// the agent.
    trusted_until: Option<Instant>,
    /// When the agent last answered a dial while other calls were waiting.
    answered: Option<Instant>,
    /// Boxed, because reports are rare.
    reports: Option<Box<Reports>>,
}

/// The reports about one agent.
#[derive(Debug)]
struct Reports {
    /// The sessions that have reported the agent since the last answer.
    sessions: Vec<SessionId>,
    last: Instant,
    /// After the last report, none raises a doubt before this has passed.
    pause: Duration,
}

impl Doubt {
    fn raise(&mut self, reason: DoubtReason, now: Instant) {
        let at = self.raised().map_or(now, |raised| raised.max(now));
        *self = Self::Raised(at.into(), reason);
    }

    /// Removes a doubt that was raised until `began`.
    fn remove(&mut self, began: Instant) {
        if let Self::Raised(at, _) = *self
            && Instant::from(at) <= began
        {
            *self = Self::Removed(at);
        }
    }

    /// Returns when it was raised, even if an answer has removed it.
    fn raised(self) -> Option<Instant> {
        match self {
            Self::None => None,
            Self::Raised(at, _) | Self::Removed(at) => Some(at.into()),
        }
    }

    /// Returns since when there is a doubt, if there is one.
    fn since(self) -> Option<Instant> {
        self.since_and_why().map(|(since, _)| since)
    }

    fn since_and_why(self) -> Option<(Instant, DoubtReason)> {
        match self {
            Self::Raised(at, reason) => Some((at.into(), reason)),
            Self::None | Self::Removed(_) => None,
        }
    }
}

/// A doubt that the resolver is to be asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ToAsk {
    /// When it was raised.
    pub(crate) doubt: Instant,
    /// When to ask.
    pub(crate) at: Instant,
}

impl Quiet {
    fn includes(self, doubt: Instant) -> bool {
        doubt <= self.asked.into()
    }
}

impl Agents {
    fn get(&self, agent: AgentId) -> Option<&AgentDoubts> {
        self.0.iter().find(|(of, _)| *of == agent).map(|(_, doubts)| doubts)
    }

    fn get_or_insert(&mut self, agent: AgentId) -> &mut AgentDoubts {
        let index = self.0.iter().position(|(of, _)| *of == agent).unwrap_or_else(|| {
            self.0.reserve_exact(1);
            self.0.push((agent, AgentDoubts::default()));
            self.0.len() - 1
        });
        &mut self.0[index].1
    }
}

impl Reports {
    fn begin(now: Instant) -> Box<Self> {
        Box::new(Self { sessions: Vec::new(), last: now, pause: REPORT_PAUSE })
    }
}

impl Doubts {
    /// Returns the latest doubt about a target with this agent.
    pub(super) fn about(&self, agent: AgentId) -> Option<Instant> {
        let agent = self.agents.get(agent).and_then(|agent| agent.doubt.since());
        self.workspace.since().max(agent)
    }

    /// Returns the latest doubt about a target with this agent, even if an answer has removed it.
    #[cfg(feature = "http")]
    pub(super) fn last_about(&self, agent: AgentId) -> Option<Instant> {
        let agent = self.agents.get(agent).and_then(|agent| agent.doubt.raised());
        self.workspace.raised().max(agent)
    }

    /// Returns the latest of all doubts.
    pub(super) fn latest(&self) -> Option<Instant> {
        let agents = self.agents.0.iter().filter_map(|(_, agent)| agent.doubt.since());
        agents.chain(self.workspace.since()).max()
    }

    /// Describes the doubts, for a page for debugging.
    pub(super) fn list(&self, now: Instant) -> Vec<DoubtSnapshot> {
        let agents = self.agents.0.iter().map(|(agent, doubts)| (Some(*agent), doubts.doubt));
        let all = [(None, self.workspace)].into_iter().chain(agents);
        all.filter_map(|(agent, doubt)| {
            let (since, reason) = doubt.since_and_why()?;
            let raised_ago = now.saturating_duration_since(since);
            let quiet_for = self.quiet_for(since, now);
            Some(DoubtSnapshot { agent, reason, raised_ago, quiet_for })
        })
        .collect()
    }

    /// Returns for how long a doubt is no reason to ask the resolver.
    pub(super) fn quiet_for(&self, doubt: Instant, now: Instant) -> Option<Duration> {
        let quiet = self.quiet.filter(|quiet| quiet.includes(doubt) && now < quiet.until)?;
        Some(quiet.until.saturating_duration_since(now))
    }

    /// Returns `true` if the resolver was asked about the doubt, its answer did not remove it, and
    /// the pause after that answer is not over.
    pub(super) fn is_quiet(&self, doubt: Instant, now: Instant) -> bool {
        self.quiet_for(doubt, now).is_some()
    }

    /// Returns the doubt about the workspace that was raised after `answered`, and when to ask the
    /// resolver about it. `None` if there is none.
    pub(super) fn to_ask(&self, answered: Option<Instant>, now: Instant) -> Option<ToAsk> {
        let is_new = |doubt: &Instant| answered.is_none_or(|answered| *doubt > answered);
        let doubt = self.workspace.since().filter(is_new)?;
        let quiet = self.quiet.filter(|quiet| quiet.includes(doubt));
        Some(ToAsk { doubt, at: quiet.map_or(now, |quiet| quiet.until.max(now)) })
    }

    /// Raises a doubt about every target of the workspace.
    pub(super) fn raise(&mut self, reason: DoubtReason, now: Instant) {
        self.workspace.raise(reason, now);
    }

    /// Raises a doubt about one agent.
    pub(super) fn raise_about(&mut self, agent: AgentId, reason: DoubtReason, now: Instant) {
        self.agents.get_or_insert(agent).doubt.raise(reason, now);
    }

    /// Raises a doubt about an agent, because a call was dropped while its dial, begun at `began`,
    /// was pending. Returns `false` if that says nothing.
    pub(super) fn dropped(&mut self, agent: AgentId, began: Instant, now: Instant) -> bool {
        if now.duration_since(began) < TOO_SHORT_TO_DOUBT {
            return false;
        }
        let agent = self.agents.get_or_insert(agent);
        let has_answered = agent.answered.is_some_and(|answered| answered >= began);
        let is_trusted = agent.trusted_until.is_some_and(|until| now < until);
        if has_answered || is_trusted || agent.doubt.since().is_some() {
            return false;
        }
        agent.doubt.raise(DoubtReason::CallDropped, now);
        true
    }

    /// Raises a doubt about an agent, because a session has reported its connection as stale.
    /// Returns `false` if the agent was reported a moment ago.
    pub(super) fn reported(&mut self, session: SessionId, agent: AgentId, now: Instant) -> bool {
        let agent = self.agents.get_or_insert(agent);
        if agent.reports.as_ref().is_some_and(|reports| now < reports.last + reports.pause) {
            return false;
        }
        agent.doubt.raise(DoubtReason::ReportedStale, now);
        let reports = agent.reports.get_or_insert_with(|| Reports::begin(now));
        reports.last = now;
        if reports.sessions.len() < MOST_REPORTERS && !reports.sessions.contains(&session) {
            reports.sessions.push(session);
        }
        true
    }

    /// Returns `true` if the session has reported the agent since the last answer.
    pub(super) fn is_reported_by(&self, session: SessionId, agent: AgentId) -> bool {
        let reports = self.agents.get(agent).and_then(|agent| agent.reports.as_ref());
        reports.is_some_and(|reports| reports.sessions.contains(&session))
    }

    /// Records that an agent has answered a dial.
    pub(super) fn answered(&mut self, agent: AgentId, now: Instant) {
        self.agents.get_or_insert(agent).answered = Some(now);
    }

    /// Removes the doubts that were raised until `began`, when the question began in whose answer
    /// the resolver names this agent. Until `trusted_until`, dropped dials raise no new ones.
    pub(super) fn believe(
        &mut self,
        agent: AgentId,
        began: Instant,
        trusted_until: Option<Instant>,
    ) {
        self.workspace.remove(began);
        let agent = self.agents.get_or_insert(agent);
        agent.doubt.remove(began);
        if agent.doubt.since().is_some() {
            return;
        }
        agent.trusted_until = trusted_until;
        if let Some(reports) = agent.reports.as_mut().filter(|reports| !reports.sessions.is_empty())
        {
            reports.sessions.clear();
            reports.pause = (reports.pause * 2).min(LONGEST_REPORT_PAUSE);
        }
    }

    /// Keeps the doubts that were raised until `asked` quiet until then: the resolver was asked at
    /// that instant, and its answer removes none of them.
    pub(super) fn asked_in_vain(&mut self, asked: Instant, until: Instant) {
        self.quiet = Some(Quiet { asked: asked.into(), until });
    }

    /// Forgets all agents but this one, which has replaced them.
    pub(super) fn retain(&mut self, agent: AgentId) {
        self.agents.0.retain(|(of, _)| *of == agent);
    }
}

#[cfg(test)]
mod tests;
