//! The decision core of one call: what to dial, when to ask the resolver, when to stop. No I/O, no
//! runtime, no clock reads.
//!
//! A pull machine: the driver reports what has happened (`on_*`), then calls [`Attempt::next`] and
//! carries out its commands until the command is [`Command::Wait`]. Every rule of the race is in
//! this file.
//!
//! Its state is that of the one dial, [`Dial`]:
//!
//! ```text
//!   no target             a target             being dialed
//!       │                     │                     │
//!       ▼       switch        ▼      next: Dial     ▼     connected
//!     Idle ───────────────▶ Queued ─────────────▶ Pending ─────────────▶ Ready ──▶ next: Serve
//!                           ▲  ▲ ▲                │ │  │                 │  ▲
//!                           │  │ └─ lost, probe ──┘ │  │    contradicted │  │ answer, row,
//!                           │  │                    │  │ connected,      ▼  │ or its end
//!                           │  │ redial      failed │  └───────────────▶ Held
//!                           │  └──────── Failed ◀───┘    in question
//!                           │
//!                        switch, from every state but Over
//!
//!     any state but Ready ──▶ Over ──▶ next: Fail
//! ```
//!
//! A *switch* replaces the [`Candidate`]: the target, and all that was said about it. The dial of
//! the former candidate ends with the command that follows. A target at whose address another agent
//! has answered is not dialed again: instead of `Pending` it becomes `Failed` or `Over`. Beside the
//! dial runs the question to the resolver, [`Next`]: `Due => Asked => Again => Asked …`. The comment
//! of a handler begins with the states of the dial that it takes and those to which it leads; in
//! every other state it leaves the dial alone.

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

/// A dial that has been pending for less is never taken for lost, however short the validation
/// delay is.
pub(crate) const SHORTEST_LOSS: Duration = Duration::from_millis(50);

/// The next command for the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Drop the dial or the connection, then dial this target.
    Dial(Arc<Target>),
    /// Drop the dial or the connection: it goes to a target that is no longer the candidate.
    Stop,
    /// Join or start the workspace's validation, and report its answer.
    Validate,
    /// The same unless another call has asked meanwhile: report [`Attempt::on_asking`] or
    /// [`Attempt::on_paused`].
    Revalidate,
    /// Start the dial over unless another call has done so lately: report [`Attempt::on_probe`],
    /// [`Attempt::on_paused`] or [`Attempt::on_probed_in_vain`].
    Probe,
    /// Read the row from the store, in a read that begins now, and report what it says.
    Reread,
    /// Sleep until something happens, at the latest until then.
    Wait(Instant),
    /// Return the connection.
    Serve,
    /// Return this error.
    Fail(ErrorKind),
}

/// The state of the one dial.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Dial {
    /// There is no target. An answer that names one counts if its read began after `hint`.
    Idle { hint: Option<Instant> },
    /// To be dialed.
    Queued,
    /// Dialed, since `began`.
    Pending { began: Instant },
    /// Connected, but the session has reported its last connection as stale, or its row contradicts
    /// the target: held back until the answer of the resolver, at the latest until then.
    Held { until: Instant },
    /// Connected, and to be returned.
    Ready,
    /// The dial has failed. It is repeated then, if no answer comes first.
    Failed { redial_at: Option<Instant> },
    /// The call has failed.
    Over(ErrorKind),
}

/// The target that the call tries to reach, and the facts about it. A switch begins with a new
/// candidate.
#[derive(Debug)]
struct Candidate {
    /// `None` in [`Dial::Idle`] only.
    target: Option<Arc<Target>>,
    /// Since when the target is in doubt: "same" and denials count only if their read began after
    /// that.
    doubt: Option<Instant>,
    /// A connection is held back until then.
    hold_until: Option<Instant>,
    /// The resolver has named it after it had become the candidate.
    confirmed: bool,
    /// It had its second dial.
    redialed: bool,
}

/// The target in the session's row.
#[derive(Debug)]
enum Named {
    /// No target: the session is bound for the first time.
    Nothing,
    /// The candidate.
    Candidate,
    /// A target that the call has left, or never dialed.
    Other(Arc<Target>),
}

/// The questions to the resolver.
#[derive(Debug)]
struct Questions {
    next: Next,
    /// How many this call has asked.
    asked: u8,
    /// A probe was refused for good since the last question: this time the resolver is asked.
    probed: bool,
}

/// When to ask the resolver next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// At this instant.
    Due(Instant),
    /// It has answered. At this instant, unless another call has asked meanwhile.
    Again(Instant),
    /// It is being asked.
    Asked,
}

impl Questions {
    /// Moves the next question. A question that is under way is waited for all the same: its answer
    /// may know even more.
    fn reschedule(&mut self, next: Next) {
        if self.next != Next::Asked {
            self.next = next;
        }
    }
}

/// A denial does not end the call before the row was read: the session may point elsewhere by now.
#[derive(Debug)]
struct Denial {
    denied: Denied,
    reading: bool,
}

/// The inputs of a call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inputs<'a> {
    /// The target in the row.
    pub(crate) bound: Option<&'a Arc<Target>>,
    /// The target to dial: the newer of the row's target and the known target of the workspace.
    pub(crate) target: Option<Arc<Target>>,
    /// Since when that is in doubt.
    pub(crate) doubt: Option<Instant>,
    /// The session itself has reported its last connection as stale.
    pub(crate) hold: bool,
    /// There is no target, and the resolver has just said why.
    pub(crate) denied: Option<Denied>,
    /// The target is being dialed already.
    pub(crate) dialing: bool,
    /// The targets at whose address another agent has answered an earlier race of the call.
    pub(crate) wrong: Vec<Arc<Target>>,
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

/// The dialer's information about the call's dials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Dials that were really started, in all races of the call.
    pub(crate) started: u8,
    /// The dial of the last command still waits in the target's queue or for the dial service to
    /// become ready.
    pub(crate) waiting: bool,
    /// The target's answers to other dials since the pending dial began.
    pub(crate) answers: Answers,
    /// Other calls wait in the target's queue.
    pub(crate) awaited: bool,
}

/// One race: its state, and the rules by which it changes.
#[derive(Debug)]
pub(crate) struct Attempt {
    limits: Limits,
    dial: Dial,
    candidate: Candidate,
    /// The targets at whose address another agent has answered: none is dialed again.
    wrong: Vec<Arc<Target>>,
    row: Named,
    questions: Questions,
    denial: Option<Denial>,
    /// The resolver's last answer, for the error of a call that has timed out.
    last: LastVerdict,
    /// Dials that were started, in all races of the call.
    started: u8,
}

impl Attempt {
    /// `=> Idle | Queued | Pending | Failed | Over`
    pub(crate) fn new(limits: Limits, inputs: Inputs<'_>, now: Instant) -> Self {
        let Inputs { bound, target, doubt, hold, denied, dialing, wrong } = inputs;
        // As if it had just been dialed again: the resolver is asked.
        let is_wrong = target.as_deref().is_some_and(|target| is_wrong(&wrong, target));
        let dial = match (&target, denied) {
            (_, Some(denied)) => Dial::Over(denied.kind()),
            (None, None) => Dial::Idle { hint: doubt },
            (Some(_), None) if is_wrong => Dial::Failed { redial_at: None },
            (Some(_), None) if dialing => Dial::Pending { began: now },
            (Some(_), None) => Dial::Queued,
        };
        let row = match (bound, &target) {
            (None, _) => Named::Nothing,
            (Some(bound), Some(target)) if !Arc::ptr_eq(bound, target) => {
                Named::Other(Arc::clone(bound))
            }
            (Some(_), _) => Named::Candidate,
        };
        // Without a target the resolver must be asked before anything can be dialed: the doubt
        // begins with the call.
        let doubt = if target.is_none() || is_wrong { Some(now) } else { doubt };
        let ask_at = if doubt.is_some() { now } else { now + limits.delay };
        // A connection that is there at the deadline is returned: that is no failure.
        let hold_until = hold.then(|| (now + limits.delay).min(limits.deadline));
        Self {
            limits,
            dial,
            candidate: Candidate { target, doubt, hold_until, confirmed: false, redialed: false },
            wrong,
            row,
            questions: Questions { next: Next::Due(ask_at), asked: 0, probed: false },
            denial: None,
            last: LastVerdict::Unknown,
            started: 0,
        }
    }

    /// Returns what to do now. The commands that end the call are returned again and again.
    ///
    /// `Queued => Pending | Failed | Over`, `Pending => Queued` if it is lost, `Held => Ready` and
    /// `Failed => Queued` when it is time.
    pub(crate) fn next(&mut self, now: Instant, progress: Progress) -> Command {
        self.started = progress.started;
        match &self.dial {
            Dial::Ready => return Command::Serve,
            Dial::Over(kind) => return Command::Fail(kind.clone()),
            Dial::Held { until } if *until <= now => {
                self.dial = Dial::Ready;
                return Command::Serve;
            }
            _ if now >= self.limits.deadline => {
                return Command::Fail(ErrorKind::TimedOut { last: self.last });
            }
            _ => {}
        }
        if let Some(denial) = &mut self.denial
            && !std::mem::replace(&mut denial.reading, true)
        {
            return Command::Reread;
        }
        let lost_at = self.lost_at(progress);
        match self.dial {
            Dial::Pending { .. } if lost_at.is_some_and(|at| at <= now) => self.start_over(now),
            Dial::Failed { redial_at: Some(at) } if at <= now => self.redial(),
            _ => {}
        }
        if self.dial == Dial::Queued && self.target().is_some_and(|target| self.is_wrong(target)) {
            // The call was led back to a target that it has left.
            self.dial = Dial::Failed { redial_at: None };
            return match self.questions.next {
                Next::Asked => Command::Stop,
                _ => self.fail(ErrorKind::WrongAgent),
            };
        }
        if let (Dial::Queued, Some(target)) = (&self.dial, &self.candidate.target) {
            let target = Arc::clone(target);
            if progress.started >= MOST_DIALS {
                let newer = (!self.candidate.redialed).then_some(target);
                return self.fail(ErrorKind::Unreachable { newer });
            }
            self.dial = Dial::Pending { began: now };
            return Command::Dial(target);
        }
        let mut until = self.limits.deadline;
        match self.questions.next {
            Next::Asked => {}
            _ if self.is_silent(progress, lost_at) => {}
            Next::Due(at) | Next::Again(at) if at > now => until = until.min(at),
            Next::Due(_) if self.answers_others(progress) => return Command::Revalidate,
            Next::Due(_) => {
                self.on_asking(now);
                return Command::Validate;
            }
            Next::Again(_) if self.may_probe(progress) => return Command::Probe,
            Next::Again(_) => return Command::Revalidate,
        }
        let dial_acts_at = match self.dial {
            Dial::Held { until } => Some(until),
            Dial::Failed { redial_at } => redial_at,
            _ => lost_at,
        };
        Command::Wait(dial_acts_at.map_or(until, |at| until.min(at)))
    }

    /// Whether the resolver is not asked, though it may be time to.
    fn is_silent(&self, progress: Progress, lost_at: Option<Instant>) -> bool {
        let no_doubt = self.candidate.doubt.is_none();
        // A dial that waits for the dial service says nothing about the agent: the delay begins
        // when it is started.
        let waits = matches!(self.dial, Dial::Pending { .. }) && progress.waiting;
        // A dial that is known to be lost is no reason to ask either. And while the row is read
        // after a denial, the row decides; another answer would only get in its way.
        no_doubt && (waits || lost_at.is_some()) || self.denial.is_some()
    }

    /// Whether the target answers other dials: it is asked about as often as one that was just
    /// confirmed.
    fn answers_others(&self, progress: Progress) -> bool {
        matches!(self.dial, Dial::Pending { .. })
            && self.candidate.doubt.is_none()
            && progress.answers != Answers::None
    }

    /// `* => Over`
    fn fail(&mut self, kind: ErrorKind) -> Command {
        self.dial = Dial::Over(kind.clone());
        Command::Fail(kind)
    }

    /// The resolver is being asked. Whatever the answer, it counts only if it is about the target
    /// as of now: the target is in doubt from here on.
    pub(crate) fn on_asking(&mut self, now: Instant) {
        self.candidate.doubt.get_or_insert(now);
        let asked = self.questions.asked.saturating_add(1);
        self.questions = Questions { next: Next::Asked, asked, probed: false };
    }

    /// The resolver has answered another call since it answered this one, or the dial waits for
    /// another call's probe: nothing is asked before then.
    pub(crate) fn on_paused(&mut self, until: Instant) {
        self.questions.next = Next::Again(until);
    }

    /// Returns when the dial is to be started over because it is lost: its target answers dials
    /// that began later. The agent is not to blame, so that raises no doubt.
    fn lost_at(&self, progress: Progress) -> Option<Instant> {
        let Dial::Pending { began } = self.dial else { return None };
        // With no dial left, the pending one may still be answered.
        let is_lost = !progress.waiting
            && progress.answers == Answers::Later
            && progress.started < MOST_DIALS;
        is_lost.then(|| began + self.limits.delay.max(SHORTEST_LOSS) + self.limits.jitter)
    }

    /// Whether the dial may be started over to find out whether it is lost: the last calls of a
    /// herd, and calls that hold all slots of a target, see no dial that begins later. Only if the
    /// resolver has named the target.
    fn may_probe(&self, progress: Progress) -> bool {
        let named = matches!(self.last, LastVerdict::Same | LastVerdict::Superseded);
        let hangs = matches!(self.dial, Dial::Pending { .. }) && !progress.waiting;
        let suspicious = progress.answers != Answers::None || progress.awaited;
        named && hangs && !self.questions.probed && suspicious && progress.started < MOST_DIALS
    }

    /// `Pending => Queued`: a probe was granted.
    pub(crate) fn on_probe(&mut self, now: Instant) {
        self.start_over(now);
    }

    /// A probe was refused, and no other one is under way: the resolver is asked.
    pub(crate) fn on_probed_in_vain(&mut self) {
        self.questions.probed = true;
    }

    /// `Pending => Queued`. After a delay it is looked whether this dial is lost as well; the
    /// resolver is not asked any sooner for that.
    fn start_over(&mut self, now: Instant) {
        self.dial = Dial::Queued;
        if self.candidate.doubt.is_none() {
            self.questions.reschedule(Next::Again(now + self.limits.delay));
        }
    }

    /// `Pending => Pending`: the dial was queued, or the dial service became ready only now, so the
    /// dial and its delay begin now.
    pub(crate) fn on_dial_started(&mut self, now: Instant) {
        if let Dial::Pending { began } = &mut self.dial {
            *began = now;
        }
        if self.candidate.doubt.is_none()
            // A fresh verdict is not asked for again any sooner for that.
            && let Next::Due(at) | Next::Again(at) = &mut self.questions.next
        {
            *at = (*at).max(now + self.limits.delay);
        }
    }

    /// `Pending => Held | Ready`: held if the session has reported its last connection as stale, or
    /// its row contradicts the candidate, and the resolver has not answered since.
    pub(crate) fn on_connected(&mut self) {
        self.dial = match self.candidate.hold_until {
            Some(until) => Dial::Held { until },
            None => Dial::Ready,
        };
    }

    /// `Pending => Failed | Over`: over after the second failure, unless an answer that is under
    /// way may still name another agent. While the row is read after a denial, the row decides.
    ///
    /// After the first failure the resolver is asked, and only a read that begins now counts: the
    /// rebuild may have happened after the last answer.
    pub(crate) fn on_dial_failed(&mut self, now: Instant) {
        self.dial = Dial::Failed { redial_at: None };
        if self.denial.is_some() {
            return;
        }
        if self.candidate.redialed {
            if self.questions.next != Next::Asked {
                self.dial = Dial::Over(self.no_better());
            }
            return;
        }
        if self.may_redial() {
            self.dial = Dial::Failed { redial_at: Some(now + self.limits.delay) };
        }
        self.candidate.doubt = Some(now);
        self.questions.reschedule(Next::Due(now));
    }

    /// As for any failed dial, but the candidate gets no second one: another agent listens at its
    /// address, and only an answer that names another target, or a newer build, helps.
    pub(crate) fn on_wrong_agent(&mut self, now: Instant) {
        self.wrong.extend(self.candidate.target.clone());
        self.on_dial_failed(now);
    }

    /// Whether another agent is known to listen there.
    fn is_wrong(&self, target: &Target) -> bool {
        is_wrong(&self.wrong, target)
    }

    /// Whether the candidate may have its second dial.
    fn may_redial(&self) -> bool {
        let is_wrong = self.target().is_some_and(|target| self.is_wrong(target));
        self.limits.redial == Redial::Once && !self.candidate.redialed && !is_wrong
    }

    /// Returns why the candidate's failed dial ends the call.
    fn no_better(&self) -> ErrorKind {
        match self.target() {
            Some(target) if self.is_wrong(target) => ErrorKind::WrongAgent,
            _ => ErrorKind::Unreachable { newer: None },
        }
    }

    /// `Pending => Failed | Over`: the dial failed for a reason in this process. That says nothing
    /// about the agent, and another dial would fail too. While the row is read after a denial, the
    /// row decides.
    pub(crate) fn on_dial_failed_locally(&mut self) {
        self.dial = match self.denial {
            None => Dial::Over(ErrorKind::Local),
            Some(_) => Dial::Failed { redial_at: None },
        };
    }

    /// Returns since when the target is in doubt.
    pub(crate) fn doubt(&self) -> Option<Instant> {
        self.candidate.doubt
    }

    /// Whether "same" or a denial counts, if the read behind it began then.
    pub(crate) fn counts(&self, began: Instant) -> bool {
        self.candidate.doubt.is_none_or(|doubt| began >= doubt)
    }

    /// The resolver has answered: `began` is when the read behind the answer began, `again` when
    /// the workspace is to be asked again.
    ///
    /// * Another target, newer or read after the doubt: a switch, `* => Queued`.
    /// * The same target: `Failed => Queued | Over`, `Held => Ready`.
    /// * A denial: the row is read next.
    /// * Nothing that counts: as for the same target, but `Idle => Over`.
    pub(crate) fn on_answer(
        &mut self,
        answer: Answer,
        began: Instant,
        again: Instant,
        now: Instant,
    ) {
        self.questions.next = Next::Again(again);
        let counts = self.counts(began);
        match answer {
            Answer::Running(said) => {
                let relation = match (&self.candidate.target, &self.dial) {
                    (Some(target), _) => target.compare(&said),
                    // A hint says that an earlier answer may be wrong by now.
                    (None, Dial::Idle { hint: Some(hint) }) if began < *hint => Relation::Other,
                    // Without a hint, an answer of any age is better than nothing.
                    (None, _) => Relation::Newer,
                };
                // After the second failure no answer brings back the dial, so none is asked for
                // again.
                let is_last = self.candidate.redialed && matches!(self.dial, Dial::Failed { .. });
                match relation {
                    Relation::Newer if self.is_dialing(&said) => self.confirm(said),
                    Relation::Newer => self.follow(said, again),
                    Relation::Same if counts || is_last => self.confirm(said),
                    Relation::Other if counts => self.follow(said, again),
                    Relation::Same | Relation::Other => self.questions.next = Next::Due(now),
                    Relation::Older => self.inconclusive(),
                }
            }
            // Without a doubt about the candidate, the question was about the one before.
            Answer::Denied(denied) if counts && self.candidate.doubt.is_some() => {
                self.deny(denied);
            }
            Answer::Denied(_) => self.questions.next = Next::Due(now),
            // The resolver is not to blame: a question that begins now is not behind.
            Answer::Overtaken if matches!(self.dial, Dial::Idle { .. }) => {
                self.questions.next = Next::Due(now);
            }
            Answer::Unknown | Answer::Overtaken => self.inconclusive(),
        }
    }

    /// The dial leaves the target's queue, and the resolver has denied the workspace meanwhile: the
    /// row is read next.
    pub(crate) fn on_denied_in_queue(&mut self, denied: Denied) {
        if matches!(self.dial, Dial::Pending { .. }) && self.denial.is_none() {
            self.deny(denied);
        }
    }

    /// `Failed => Failed`: the row is read next, and decides whether there is another dial.
    fn deny(&mut self, denied: Denied) {
        self.last = denied.verdict();
        self.denial = Some(Denial { denied, reading: false });
        if let Dial::Failed { redial_at } = &mut self.dial {
            *redial_at = None;
        }
    }

    /// Another call, a command or a read of the row says what this session would dial now, and
    /// since when that is in doubt. `* => Queued` if it is another place than the candidate's.
    /// Returns whether it is.
    pub(crate) fn on_known(
        &mut self,
        target: &Arc<Target>,
        doubt: Option<Instant>,
        now: Instant,
    ) -> bool {
        let elsewhere = !self.is_dialing(target);
        if elsewhere {
            self.switch(Arc::clone(target), now + self.limits.delay);
        } else {
            self.candidate.target = Some(Arc::clone(target));
        }
        // After the switch, which has left the doubts about the old target behind.
        if let Some(since) = doubt {
            self.on_doubt(since, now);
        }
        elsewhere
    }

    /// Whether a row that contradicts the resolver is not followed. Nothing orders the two, so
    /// either target may be the one that was replaced, and the call follows the row while it can
    /// afford to. It may not spend its last dial on that, nor give up a target for which there is
    /// no other dial.
    pub(crate) fn keeps_its_dial(&self) -> bool {
        let can_connect =
            matches!(self.dial, Dial::Pending { .. } | Dial::Held { .. } | Dial::Ready);
        can_connect && self.denial.is_none() && self.started >= MOST_DIALS - 1
    }

    /// `Ready | Held => Held`, `Pending => Pending`: the resolver has named the candidate, the row
    /// names another target since, and [the dial is kept](Self::keeps_its_dial). The resolver is
    /// asked first, while the dial goes on.
    pub(crate) fn on_contradicted(&mut self, since: Instant, now: Instant) {
        // Each answer has a bound of its own.
        let until = self.limits.deadline;
        self.candidate.hold_until = Some(until);
        if let Dial::Held { .. } | Dial::Ready = self.dial {
            self.dial = Dial::Held { until };
        }
        self.on_doubt(since, now);
    }

    /// A doubt about the candidate was raised: the resolver is asked, and answers that were read
    /// before it do not count.
    pub(crate) fn on_doubt(&mut self, since: Instant, now: Instant) {
        if self.candidate.doubt.is_some_and(|doubt| doubt >= since) {
            return;
        }
        self.candidate.doubt = Some(since);
        if let Dial::Idle { hint } = &mut self.dial {
            *hint = Some(since);
        }
        self.questions.reschedule(Next::Due(now));
    }

    /// `* => Over`: the row was read after a denial and names nothing else.
    pub(crate) fn on_row_unchanged(&mut self) {
        if let Some(Denial { denied, .. }) = self.denial.take() {
            self.dial = Dial::Over(denied.kind());
        }
    }

    /// `Idle | Failed => Over`, `Held => Ready`: the row could not be read after a denial, so it is
    /// not known whether the session points elsewhere by now. A dial that may still succeed goes
    /// on.
    pub(crate) fn on_row_unreadable(&mut self) {
        let Some(Denial { denied, .. }) = self.denial.take() else { return };
        match self.dial {
            Dial::Idle { .. } | Dial::Failed { .. } => self.dial = Dial::Over(denied.kind()),
            Dial::Held { .. } => self.dial = Dial::Ready,
            Dial::Pending { .. } | Dial::Queued | Dial::Ready | Dial::Over(_) => {}
        }
    }

    fn is_dialing(&self, target: &Target) -> bool {
        self.candidate.target.as_ref().is_some_and(|dialed| dialed.same_endpoint(target))
    }

    /// The resolver has named the candidate. Leads where [`settle`](Self::settle) does.
    fn confirm(&mut self, said: Arc<Target>) {
        // If the news of a switch came before its answer, the answer names the candidate of now.
        let switched = matches!(&self.row, Named::Other(from) if !from.same_endpoint(&said));
        self.last = if switched { LastVerdict::Superseded } else { LastVerdict::Same };
        self.candidate.confirmed = true;
        self.candidate.doubt = None;
        if self.candidate.target.as_ref().is_some_and(|to| to.generation != said.generation) {
            self.candidate.target = Some(said);
        }
        self.settle();
    }

    /// `Idle => Over`, else where [`settle`](Self::settle) leads: the resolver said nothing that
    /// counts, so the call goes on as if it had not asked.
    fn inconclusive(&mut self) {
        if matches!(self.dial, Dial::Idle { .. }) {
            self.dial = Dial::Over(ErrorKind::Resolver);
        } else {
            self.settle();
        }
    }

    /// `Failed => Queued | Over`, `Held => Ready`: no other agent is known, so a failed dial gets
    /// its second one or ends the call, and a held connection is good.
    fn settle(&mut self) {
        self.candidate.hold_until = None;
        match self.dial {
            Dial::Failed { .. } if self.may_redial() => self.redial(),
            Dial::Failed { .. } => self.dial = Dial::Over(self.no_better()),
            Dial::Held { .. } => self.dial = Dial::Ready,
            Dial::Idle { .. }
            | Dial::Queued
            | Dial::Pending { .. }
            | Dial::Ready
            | Dial::Over(_) => {}
        }
    }

    /// `Failed => Queued`: the candidate gets its second dial.
    fn redial(&mut self) {
        self.candidate.redialed = true;
        self.dial = Dial::Queued;
    }

    /// `* => Queued`: the resolver has named another target, or the first one.
    fn follow(&mut self, said: Arc<Target>, ask_again: Instant) {
        if self.candidate.target.is_none() {
            self.last = LastVerdict::Same;
        }
        self.switch(said, ask_again);
    }

    /// `* => Queued`: this is the candidate from here on. What was said about the one before is
    /// void, and so is a denial. It is asked about then, if nothing is being asked.
    fn switch(&mut self, target: Arc<Target>, ask_again: Instant) {
        let candidate = Candidate {
            target: Some(target),
            doubt: None,
            hold_until: None,
            confirmed: false,
            redialed: false,
        };
        let left = std::mem::replace(&mut self.candidate, candidate).target;
        if left.is_some() {
            self.last = LastVerdict::Superseded;
        }
        if let (Named::Candidate, Some(left)) = (&self.row, left) {
            self.row = Named::Other(left);
        }
        self.dial = Dial::Queued;
        self.denial = None;
        self.questions.reschedule(Next::Again(ask_again));
    }

    /// Returns the target that is being dialed, or was dialed last.
    pub(crate) fn target(&self) -> Option<&Arc<Target>> {
        self.candidate.target.as_ref()
    }

    /// The same, moved out: nothing is decided after that.
    pub(crate) fn take_target(&mut self) -> Option<Arc<Target>> {
        self.candidate.target.take()
    }

    /// Returns the resolver's last answer about the candidate.
    pub(crate) fn last_verdict(&self) -> LastVerdict {
        self.last
    }

    /// Moves out the targets at whose address another agent has answered.
    pub(crate) fn take_wrong(&mut self) -> Vec<Arc<Target>> {
        std::mem::take(&mut self.wrong)
    }

    /// How many questions this call has asked.
    pub(crate) fn validations(&self) -> u8 {
        self.questions.asked
    }

    /// How the call came to its connection, once it has one.
    pub(crate) fn outcome_kind(&self) -> OutcomeKind {
        match (&self.row, &self.candidate.target) {
            (Named::Nothing, _) => OutcomeKind::FirstBind,
            (Named::Other(from), Some(to)) if !from.same_endpoint(to) => {
                OutcomeKind::Switched { from: Arc::clone(from) }
            }
            _ if self.candidate.redialed => OutcomeKind::Redialed,
            _ if self.candidate.confirmed => OutcomeKind::Confirmed,
            _ => OutcomeKind::Reused,
        }
    }
}

/// Whether the target is one of these. A newer build at the same place is another target.
fn is_wrong(wrong: &[Arc<Target>], target: &Target) -> bool {
    wrong.iter().any(|wrong| wrong.same_endpoint(target) && target.generation <= wrong.generation)
}

#[cfg(test)]
mod tests;
