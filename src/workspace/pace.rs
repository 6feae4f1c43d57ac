//! The pace of questions to the resolver: its last answer, when a call that hangs asks again, and
//! which questions are repeated because their answers are behind a hint.

use crate::{
    Generation, Target,
    answer::{Answer, Denied},
    compact_instant::CompactInstant,
};
use tokio::time::{Duration, Instant};

/// An answer that is behind a hint is asked for again after these pauses, then it is believed.
pub(crate) const AGAIN_AFTER: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(200), Duration::from_millis(1_000)];
/// A denial of at most this age answers a call that has nothing to dial.
pub(super) const FRESH_DENIAL: Duration = Duration::from_secs(1);

/// The bounds of the pause between two questions about a workspace whose dials hang.
#[derive(Clone, Copy, Debug)]
pub(super) struct Intervals {
    pub(super) first: Duration,
    pub(super) longest: Duration,
}

/// The last answers of the resolver about a workspace, and when to ask again.
#[derive(Debug, Default)]
pub(super) struct Pace {
    verdict: Option<Verdict>,
    pause: Option<Pause>,
    floor: Option<Floor>,
}

/// The last answer that says whether the workspace runs.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    pub(crate) answer: Answer,
    /// When its question began.
    pub(crate) began: Instant,
    pub(crate) landed: Instant,
}

/// The pause after the last answer.
#[derive(Clone, Copy, Debug)]
struct Pause {
    length: Duration,
    ends: CompactInstant,
}

impl Pause {
    fn ends(self) -> Instant {
        self.ends.into()
    }
}

/// A generation that another process has reached.
#[derive(Clone, Copy, Debug)]
struct Floor {
    generation: Generation,
    /// The answers since then that were below it.
    misses: u8,
}

impl Pace {
    /// Returns the last verdict, unless a doubt is younger than its question.
    pub(super) fn verdict(&self, latest_doubt: Option<Instant>) -> Option<&Verdict> {
        self.verdict.as_ref().filter(|verdict| latest_doubt <= Some(verdict.began))
    }

    /// Returns why the workspace has no agent, if the resolver has said so within
    /// [`FRESH_DENIAL`].
    pub(super) fn fresh_denial(
        &self,
        latest_doubt: Option<Instant>,
        now: Instant,
    ) -> Option<Denied> {
        let verdict = self.verdict(latest_doubt)?;
        match verdict.answer {
            Answer::Denied(denied) if now <= verdict.landed + FRESH_DENIAL => Some(denied),
            _ => None,
        }
    }

    pub(super) fn note(&mut self, verdict: Verdict) {
        self.verdict = Some(verdict);
    }

    /// Returns until when a call whose dial hangs does not need to ask.
    pub(super) fn paused_until(&self, now: Instant) -> Option<Instant> {
        self.pause.map(Pause::ends).filter(|ends| *ends > now)
    }

    /// Begins the pause after an answer. Returns when it ends. `has_changed`: the answer is news.
    pub(super) fn pause(
        &mut self,
        has_changed: bool,
        now: Instant,
        intervals: Intervals,
    ) -> Instant {
        let Intervals { first, longest } = intervals;
        let length = match self.pause.filter(|_| !has_changed) {
            // A call with a doubt of its own has asked during the pause, for all that hang as well.
            Some(pause) if now < pause.ends() => pause.length,
            // A call that hangs asks when the pause ends. Long after that, another one has begun
            // to hang, and the pauses begin anew.
            Some(pause) if now <= pause.ends() + longest => (pause.length * 2).min(longest),
            _ => first,
        };
        let length = length.max(first);
        let ends = now + length;
        self.pause = Some(Pause { length, ends: ends.into() });
        ends
    }

    /// Lets the next call that hangs ask at once, and the pauses begin anew.
    pub(super) fn end_pause(&mut self) {
        self.pause = None;
    }

    /// Lets the pauses begin anew after the present one.
    pub(super) fn restart_pauses(&mut self) {
        if let Some(pause) = &mut self.pause {
            pause.length = Duration::ZERO;
        }
    }

    /// Records that another process has reached this generation.
    pub(super) fn raise_floor(&mut self, generation: Generation) {
        if self.floor.is_none_or(|floor| floor.generation < generation) {
            self.floor = Some(Floor { generation, misses: 0 });
        }
    }

    /// Returns after how long to ask again if an answer names less than another process has
    /// reached. A resolver that never gets there is believed in the end.
    pub(super) fn again_below_floor(&mut self, target: &Target) -> Option<Duration> {
        let floor =
            self.floor.as_mut().filter(|floor| target.generation < Some(floor.generation))?;
        let again = AGAIN_AFTER.get(usize::from(floor.misses)).copied();
        floor.misses += 1;
        if again.is_none() {
            self.floor = None;
        }
        again
    }
}

#[cfg(test)]
mod tests;
