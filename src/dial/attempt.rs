//! The decision core: what one call does next. No I/O, no runtime, no clock reads.
//!
//! A pull machine: feed it with what has happened (`on_*`), then call [`Attempt::next`] and carry
//! out what it says until it says [`Command::Wait`]. Every rule of the race is in this file.

use crate::{
    OutcomeKind, Redial, Target,
    answer::{Answer, Denied},
    binding::Relation,
    error::{ErrorKind, LastVerdict},
    workspace::pending::Answers,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Dials that one call may start, restarts included.
pub(crate) const MOST_DIALS: u8 = 3;

/// A dial that is pending for less is never taken for lost, however short the validation delay is.
pub(crate) const SHORTEST_LOSS: Duration = Duration::from_millis(50);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Drop whatever is being dialed or held, then dial this.
    Dial(Arc<Target>),
    /// Join or start the workspace's validation, and report its answer.
    Validate,
    /// The same if nobody else has asked meanwhile: say [`Attempt::on_asking`] or
    /// [`Attempt::on_paused`].
    Revalidate,
    /// Start the dial over if no other call has done that lately: say [`Attempt::on_probe`],
    /// [`Attempt::on_paused`] or [`Attempt::on_probed_in_vain`].
    Probe,
    /// Read the row from the store, in a read that begins now, and report what it says.
    Reread,
    /// Sleep until something happens, at the latest until then.
    Wait(Instant),
    /// Return the connection that is there.
    Serve,
    Fail(ErrorKind),
}

/// Where the one dial stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dial {
    /// There is nothing to dial yet.
    Idle,
    /// To be started.
    Queued,
    Pending,
    /// Connected, but reported stale: held back until the verdict or the delay.
    Held {
        until: Instant,
    },
    /// Connected, to be returned.
    Ready,
    Failed,
}

/// When to ask the resolver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    At(Instant),
    /// It has answered; then it is time to ask again, unless somebody else does.
    Again(Instant),
    /// It is being asked.
    Asked,
}

/// What a call begins with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inputs<'a> {
    /// What the row names.
    pub(crate) bound: Option<&'a Arc<Target>>,
    /// What to dial: the newer of the row's target and what is known of the workspace.
    pub(crate) target: Option<Arc<Target>>,
    /// Since when that is in doubt.
    pub(crate) doubt: Option<Instant>,
    /// The session itself reported its last connection as stale.
    pub(crate) hold: bool,
    /// There is no target, and the resolver has just said why.
    pub(crate) denied: Option<Denied>,
    /// The target is being dialed already.
    pub(crate) dialing: bool,
}

/// The bounds of one call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) delay: Duration,
    pub(crate) deadline: Instant,
    pub(crate) redial: Redial,
    /// Added to the delay before a lost dial is started over, so that the calls of a herd do not do
    /// so at one instant.
    pub(crate) jitter: Duration,
}

/// What the one who dials knows of its dials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Dials that were really started, in all races of the call.
    pub(crate) started: u8,
    /// The dial of the last command still waits in the target's queue or for the dial service to
    /// become ready.
    pub(crate) waiting: bool,
    /// What the target has answered since the pending dial began.
    pub(crate) answers: Answers,
    /// Other calls wait in the target's queue.
    pub(crate) awaited: bool,
}

#[derive(Debug)]
pub(crate) struct Attempt {
    limits: Limits,
    /// The row names nothing.
    unbound: bool,
    /// What the row names, once something else is dialed.
    from: Option<Arc<Target>>,
    target: Option<Arc<Target>>,
    dial: Dial,
    /// When the present dial began.
    began: Instant,
    /// It was not started over when that was due; the next time is after the next answer.
    probed: bool,
    /// "Same" and denials count only if their read began after this.
    doubt: Option<Instant>,
    /// What was doubt before there was anything to dial.
    hint: Option<Instant>,
    ask: Ask,
    /// A failed dial is repeated then, if no verdict came first.
    redial_at: Option<Instant>,
    /// The present target had its second dial.
    redialed: bool,
    /// A ready connection is held back until then.
    hold: Option<Instant>,
    /// The resolver knows nothing to dial; the row is read before that ends the call.
    denied: Option<Denied>,
    reread: bool,
    confirmed: bool,
    last: LastVerdict,
    validations: u8,
    failure: Option<ErrorKind>,
}

impl Attempt {
    pub(crate) fn new(limits: Limits, inputs: Inputs<'_>, now: Instant) -> Self {
        let Inputs { bound, target, doubt, hold, denied, dialing } = inputs;
        let hint = doubt.filter(|_| target.is_none());
        // Without a target the resolver must be asked before anything can be dialed: the doubt
        // begins with the call.
        let doubt = if target.is_none() { Some(now) } else { doubt };
        let other = |bound: &&Arc<Target>| {
            target.as_ref().is_some_and(|target| !Arc::ptr_eq(bound, target))
        };
        Self {
            limits,
            unbound: bound.is_none(),
            from: bound.filter(other).cloned(),
            dial: match target {
                Some(_) if dialing => Dial::Pending,
                Some(_) => Dial::Queued,
                None => Dial::Idle,
            },
            target,
            began: now,
            probed: false,
            ask: Ask::At(if doubt.is_some() { now } else { now + limits.delay }),
            doubt,
            hint,
            redial_at: None,
            redialed: false,
            // There is a connection at the deadline, so that is no failure.
            hold: hold.then(|| (now + limits.delay).min(limits.deadline)),
            denied: None,
            reread: false,
            confirmed: false,
            last: LastVerdict::Unknown,
            validations: 0,
            failure: denied.map(Denied::kind),
        }
    }

    pub(crate) fn next(&mut self, now: Instant, progress: Progress) -> Command {
        if self.dial == Dial::Ready {
            return Command::Serve;
        }
        if let Some(kind) = &self.failure {
            return Command::Fail(kind.clone());
        }
        if let Dial::Held { until } = self.dial
            && until <= now
        {
            self.dial = Dial::Ready;
            return Command::Serve;
        }
        if now >= self.limits.deadline {
            return Command::Fail(ErrorKind::TimedOut { last: self.last });
        }
        if std::mem::take(&mut self.reread) {
            return Command::Reread;
        }
        if self.redial_at.is_some_and(|at| at <= now) {
            self.redial();
        }
        let lost_at = self.lost_at(progress);
        if lost_at.is_some_and(|at| at <= now) {
            self.start_over(now);
        }
        if let (Dial::Queued, Some(target)) = (self.dial, &self.target) {
            if progress.started >= MOST_DIALS {
                let newer = (!self.redialed).then(|| Arc::clone(target));
                return self.fail(ErrorKind::Unreachable { newer });
            }
            self.dial = Dial::Pending;
            self.began = now;
            return Command::Dial(Arc::clone(target));
        }
        // A dial that waits for the dial service says nothing about the agent: the delay begins
        // when it is started.
        let readying = self.dial == Dial::Pending && progress.waiting && self.doubt.is_none();
        // While the row is read after a denial, that decides; another answer would only get in its
        // way. A dial that is known to be lost is no reason to ask.
        let lost = lost_at.is_some() && self.doubt.is_none();
        let silent = readying || lost || self.denied.is_some();
        let answers_others =
            self.dial == Dial::Pending && self.doubt.is_none() && progress.answers != Answers::None;
        let mut until = lost_at.unwrap_or(self.limits.deadline).min(self.limits.deadline);
        match self.ask {
            // An agent that answers others is asked about as often as one that was just confirmed.
            Ask::At(at) if at <= now && !silent && answers_others => return Command::Revalidate,
            Ask::At(at) if at <= now && !silent => {
                self.on_asking(now);
                return Command::Validate;
            }
            Ask::Again(at) if at <= now && !silent => {
                return if self.may_probe(progress) { Command::Probe } else { Command::Revalidate };
            }
            Ask::At(at) | Ask::Again(at) if !silent => until = until.min(at),
            Ask::At(_) | Ask::Again(_) | Ask::Asked => {}
        }
        if let Some(at) = self.redial_at {
            until = until.min(at);
        }
        if let Dial::Held { until: held } = self.dial {
            until = until.min(held);
        }
        Command::Wait(until)
    }

    fn fail(&mut self, kind: ErrorKind) -> Command {
        self.failure = Some(kind.clone());
        Command::Fail(kind)
    }

    /// The resolver is being asked.
    pub(crate) fn on_asking(&mut self, now: Instant) {
        self.doubt.get_or_insert(now);
        self.probed = false;
        self.ask = Ask::Asked;
        self.validations = self.validations.saturating_add(1);
    }

    /// It has answered somebody else since it answered this call, and is not to be asked again
    /// before then.
    pub(crate) fn on_paused(&mut self, until: Instant) {
        self.ask = Ask::Again(until);
    }

    /// When a dial is to be started over because it is lost: its target answers dials that began
    /// later. The agent is not to blame, so that raises no doubt.
    fn lost_at(&self, progress: Progress) -> Option<Instant> {
        let is_lost =
            self.dial == Dial::Pending && !progress.waiting && progress.answers == Answers::Later;
        // With no dial left, the pending one may still be answered.
        let lost = is_lost && progress.started < MOST_DIALS;
        lost.then(|| self.began + self.limits.delay.max(SHORTEST_LOSS) + self.limits.jitter)
    }

    /// Whether the dial may be started over to find out whether it is lost: the last calls of a
    /// herd, and calls that hold all slots of a target, see no dial that begins later. Only if the
    /// resolver has named the target.
    fn may_probe(&self, progress: Progress) -> bool {
        let named = matches!(self.last, LastVerdict::Same | LastVerdict::Superseded);
        let hangs = self.dial == Dial::Pending && !progress.waiting;
        let suspicious = progress.answers != Answers::None || progress.awaited;
        named && hangs && !self.probed && suspicious && progress.started < MOST_DIALS
    }

    /// The dial is started over.
    pub(crate) fn on_probe(&mut self, now: Instant) {
        self.start_over(now);
    }

    /// It is not, and the resolver is to be asked.
    pub(crate) fn on_probed_in_vain(&mut self) {
        self.probed = true;
    }

    fn start_over(&mut self, now: Instant) {
        self.dial = Dial::Queued;
        // To look then whether this one is lost as well; the resolver is not asked any sooner for
        // that.
        if self.ask != Ask::Asked && self.doubt.is_none() {
            self.ask = Ask::Again(now + self.limits.delay);
        }
    }

    /// The dial was queued, or the dial service became ready only now, so the dial began only now.
    pub(crate) fn on_dial_started(&mut self, now: Instant) {
        self.began = now;
        if self.doubt.is_none()
            // A fresh verdict is not asked for again any sooner for that.
            && let Ask::At(at) | Ask::Again(at) = &mut self.ask
        {
            *at = (*at).max(now + self.limits.delay);
        }
    }

    pub(crate) fn on_connected(&mut self) {
        self.dial = match self.hold {
            Some(until) => Dial::Held { until },
            None => Dial::Ready,
        };
    }

    pub(crate) fn on_dial_failed(&mut self, now: Instant) {
        self.dial = Dial::Failed;
        if self.denied.is_some() {
            // The row is being read, and that decides.
        } else if self.redialed {
            // Its second failure. Only an answer that is under way may still name another agent.
            if self.ask != Ask::Asked {
                self.failure = Some(ErrorKind::Unreachable { newer: None });
            }
        } else {
            // The rebuild may have happened after the last answer, so only a read that begins now
            // counts.
            self.doubt = Some(now);
            self.redial_at = (self.limits.redial == Redial::Once).then(|| now + self.limits.delay);
            if self.ask != Ask::Asked {
                self.ask = Ask::At(now);
            }
        }
    }

    /// The dial failed for a reason in this process: that says nothing about the agent, and another
    /// dial would fail too.
    pub(crate) fn on_dial_failed_locally(&mut self) {
        self.dial = Dial::Failed;
        if self.denied.is_none() {
            self.failure = Some(ErrorKind::Local);
        }
    }

    /// Whether "same" or a denial is an answer, if the read behind it began then.
    pub(crate) fn counts(&self, began: Instant) -> bool {
        self.doubt.is_none_or(|doubt| began >= doubt)
    }

    /// `began` is when the read behind the answer began, `again` when the workspace is to be asked
    /// again.
    pub(crate) fn on_answer(
        &mut self,
        answer: Answer,
        began: Instant,
        again: Instant,
        now: Instant,
    ) {
        self.ask = Ask::Again(again);
        let counts = self.counts(began);
        match answer {
            Answer::Running(said) => {
                let relation = match &self.target {
                    Some(target) => target.compare(&said),
                    // Better than nothing at any age, unless a hint says that it may be wrong by
                    // now.
                    None if self.hint.is_none_or(|hint| began >= hint) => Relation::Newer,
                    None => Relation::Other,
                };
                match relation {
                    Relation::Newer if self.is_dialing(&said) => self.confirm(said),
                    Relation::Newer => self.switch(said, Ask::Again(again)),
                    // After the second failure no answer brings back the dial, so none is asked for
                    // again.
                    Relation::Same if counts || (self.redialed && self.dial == Dial::Failed) => {
                        self.confirm(said)
                    }
                    Relation::Other if counts => self.switch(said, Ask::Again(again)),
                    Relation::Same | Relation::Other => self.ask = Ask::At(now),
                    Relation::Older => self.inconclusive(),
                }
            }
            // Without a doubt about what is dialed it was asked about what was dialed before.
            Answer::Denied(denied) if counts && self.doubt.is_some() => {
                self.deny(denied);
            }
            Answer::Denied(_) => self.ask = Ask::At(now),
            // The resolver is not to blame: a question that begins now is not behind.
            Answer::Overtaken if self.dial == Dial::Idle => self.ask = Ask::At(now),
            Answer::Unknown | Answer::Overtaken => self.inconclusive(),
        }
    }

    /// The dial leaves the queue, and meanwhile the resolver has said that there is nothing to
    /// dial.
    pub(crate) fn on_denied_in_queue(&mut self, denied: Denied) {
        if self.dial == Dial::Pending && self.denied.is_none() {
            self.deny(denied);
        }
    }

    fn deny(&mut self, denied: Denied) {
        self.last = denied.verdict();
        self.denied = Some(denied);
        self.reread = true;
        self.redial_at = None;
    }

    /// What this session would dial now, as another call, an order or the row's reading has it, and
    /// since when that is in doubt. Says whether that is another place than the one that is being
    /// dialed.
    pub(crate) fn on_known(
        &mut self,
        target: &Arc<Target>,
        doubt: Option<Instant>,
        now: Instant,
    ) -> bool {
        let elsewhere = !self.is_dialing(target);
        if elsewhere {
            self.switch(Arc::clone(target), Ask::Again(now + self.limits.delay));
        } else {
            self.target = Some(Arc::clone(target));
        }
        // After the switch, which has left the doubts about the old target behind.
        if let Some(since) = doubt {
            self.on_doubt(since, now);
        }
        elsewhere
    }

    /// Somebody has raised a doubt about what is being dialed.
    pub(crate) fn on_doubt(&mut self, since: Instant, now: Instant) {
        if self.doubt.is_none_or(|doubt| doubt < since) {
            self.doubt = Some(since);
            self.hint = self.doubt.filter(|_| self.target.is_none());
            if self.ask != Ask::Asked {
                self.ask = Ask::At(now);
            }
        }
    }

    /// The row was read after a denial and names nothing else.
    pub(crate) fn on_row_unchanged(&mut self) {
        if let Some(denied) = self.denied.take() {
            self.failure = Some(denied.kind());
        }
    }

    /// The row could not be read after a denial, so nobody knows whether the session points
    /// elsewhere by now: a dial that may still succeed goes on.
    pub(crate) fn on_row_unreadable(&mut self) {
        let Some(denied) = self.denied.take() else { return };
        match self.dial {
            Dial::Pending | Dial::Queued => {}
            Dial::Held { .. } | Dial::Ready => self.dial = Dial::Ready,
            Dial::Idle | Dial::Failed => self.failure = Some(denied.kind()),
        }
    }

    fn is_dialing(&self, target: &Target) -> bool {
        self.target.as_ref().is_some_and(|dialed| dialed.same_place(target))
    }

    /// The resolver named what is being dialed.
    fn confirm(&mut self, said: Arc<Target>) {
        // If the news of a switch came first, its answer names what is being dialed by now.
        let switched = self.from.as_ref().is_some_and(|from| !from.same_place(&said));
        self.last = if switched { LastVerdict::Superseded } else { LastVerdict::Same };
        self.confirmed = true;
        self.doubt = None;
        if self.target.as_ref().is_some_and(|target| target.generation != said.generation) {
            self.target = Some(said);
        }
        self.settle();
    }

    /// The resolver said nothing that counts: whatever would have been done without asking is done.
    fn inconclusive(&mut self) {
        if self.dial == Dial::Idle {
            self.failure = Some(ErrorKind::Resolver);
        } else {
            self.settle();
        }
    }

    /// No other agent is known: a failed dial gets its second one or ends the call, a held
    /// connection is good.
    fn settle(&mut self) {
        self.hold = None;
        match self.dial {
            Dial::Failed if self.redialed || self.limits.redial == Redial::Never => {
                self.failure = Some(ErrorKind::Unreachable { newer: None });
            }
            Dial::Failed => self.redial(),
            Dial::Held { .. } => self.dial = Dial::Ready,
            Dial::Idle | Dial::Queued | Dial::Pending | Dial::Ready => {}
        }
    }

    fn redial(&mut self) {
        self.redial_at = None;
        if self.dial == Dial::Failed {
            self.redialed = true;
            self.dial = Dial::Queued;
        }
    }

    fn switch(&mut self, target: Arc<Target>, ask: Ask) {
        self.last = if self.target.is_some() { LastVerdict::Superseded } else { LastVerdict::Same };
        let left = self.target.replace(target);
        if !self.unbound && self.from.is_none() {
            self.from = left;
        }
        self.dial = Dial::Queued;
        self.doubt = None;
        // An answer that is under way is waited for all the same; it may know even more.
        if self.ask != Ask::Asked {
            self.ask = ask;
        }
        self.redial_at = None;
        self.redialed = false;
        self.hold = None;
        self.denied = None;
        self.reread = false;
        self.confirmed = false;
    }

    /// What is being dialed, or was dialed last.
    pub(crate) fn target(&self) -> Option<&Arc<Target>> {
        self.target.as_ref()
    }

    /// The same, for good: nothing is decided after that.
    pub(crate) fn take_target(&mut self) -> Option<Arc<Target>> {
        self.target.take()
    }

    pub(crate) fn validations(&self) -> u8 {
        self.validations
    }

    /// Which way the call took, once it has a connection.
    pub(crate) fn outcome_kind(&self) -> OutcomeKind {
        match (&self.from, &self.target) {
            _ if self.unbound => OutcomeKind::FirstBind,
            (Some(from), Some(to)) if !from.same_place(to) => {
                OutcomeKind::Switched { from: Arc::clone(from) }
            }
            _ if self.redialed => OutcomeKind::Redialed,
            _ if self.confirmed => OutcomeKind::Confirmed,
            _ => OutcomeKind::Reused,
        }
    }
}

#[cfg(test)]
mod tests;
