//! What a call may fail with: each error tells of something that was true between the call's begin
//! and its end.

use crate::{
    DIAL_TIMEOUT, STORE_TIMEOUT,
    chronicle::{Chronicle, Found, HeardOf, Moment, Question, Sight, Statement},
    life::{Does, Fault, How, Op, Status},
    ms,
    plant::{Call, Dial, Knowledge, Plant, State, Workspace},
};
use tower_bound_agent::{Error, ErrorKind, LastVerdict, Resolution, Revision, Target, WorkspaceId};

/// What a call is told that has waited behind another statement about its session.
const QUEUED: &str = "an earlier statement is unanswered, so nothing was sent within 5s";

impl Plant {
    /// A call is polled for the first time.
    pub(crate) fn begins(&self, id: u64) {
        let mut state = self.state();
        let now = state.chronicle.now();
        let Call { process, session, .. } = state.calls[&id];
        let floor = state.knows[process].floors.get(&session).copied().unwrap_or(Revision::new(-1));
        let well = state.is_well(process);
        state.calls.get_mut(&id).expect("a call that was begun").began = Some((now, floor, well));
    }

    /// Whether this may disturb a call, whatever the layers do about it. Doubts, rumours and the
    /// end of other calls and processes may not.
    pub(crate) fn disturbed_by(&self, op: &Op) {
        match op {
            Op::Rebuild { .. }
            | Op::Return { .. }
            | Op::Close { .. }
            | Op::Status { .. }
            | Op::Agent { .. }
            | Op::Resolver { .. }
            | Op::Store { .. }
            | Op::Retarget { .. }
            | Op::Unbind { .. }
            | Op::Forget { .. }
            | Op::Reset { .. }
            | Op::Inherit { .. } => self.state().chronicle.disturb(),
            Op::Call { .. }
            | Op::Drop { .. }
            | Op::Report { .. }
            | Op::Doubt { .. }
            | Op::Look { .. }
            | Op::RumourOfChat { .. }
            | Op::RumourOfWorkspace { .. }
            | Op::Gap
            | Op::Flush { .. }
            | Op::Restart { .. }
            | Op::Yield
            | Op::Advance { .. } => {}
        }
    }

    /// A call has failed, in this very poll.
    pub(crate) fn check_error(&self, id: u64, error: &Error) {
        let mut state = self.state();
        let now = state.chronicle.now();
        let State { chronicle, knows, calls, closing, workspaces, .. } = &*state;
        let call = &calls[&id];
        let (began, floor, well) = call.began.expect("a call that has ended was polled");
        let closing = closing.contains(&call.process);
        let knows = &knows[call.process];
        let case = Case { chronicle, knows, workspaces, call, began, floor, now, closing };
        let calm = well && chronicle.disturbed < began.number;
        let judged = case.judge(error).and_then(|()| match error.kind() {
            ErrorKind::NotBound | ErrorKind::WorkspaceMismatch { .. } | ErrorKind::Closed => Ok(()),
            // The process had not heard that the session was moved, nor of both workspaces' builds.
            ErrorKind::Retargeted => Ok(()),
            kind if case.was_just_denied(kind) => Ok(()),
            _ if calm => Err("all was well from before the call began"),
            _ => Ok(()),
        });
        if let Err(why) = judged {
            state.broken.push(format!("{id}: {error:?}, but {why}"));
        }
    }
}

impl State {
    /// Nothing is broken that a call of this process could notice, not even by an answer that is
    /// under way.
    fn is_well(&self, process: usize) -> bool {
        let since = self.chronicle.disturbed;
        let runs = |ws: &Workspace| {
            if ws.was_renumbered() {
                // A process that has not heard of it takes the new numbers for old ones.
                return false;
            }
            let newest = &ws.builds.last().expect("a first build").agent;
            ws.status == Status::Running && matches!(self.agents[newest].does, Does::Answer(_))
        };
        let sound = |fault: Fault| fault == Fault::None;
        self.workspaces.iter().all(runs)
            && self.faults.iter().all(|faults| sound(faults.reads) && sound(faults.writes))
            && self.answers.iter().all(|(_, answers)| answers.how == How::Right)
            && self.chronicle.overdue == 0
            && self.chronicle.commands == 0
            && self
                .chronicle
                .questions
                .iter()
                .all(|q| q.process != process || q.ended.is_some() || q.began.number > since)
            && self
                .chronicle
                .statements
                .iter()
                .filter(|r| !r.is_swap)
                .all(|r| r.process != process || r.ended.is_some() || r.began.number > since)
    }
}

/// A call that has failed, and what was true of it.
struct Case<'a> {
    chronicle: &'a Chronicle,
    knows: &'a Knowledge,
    workspaces: &'a [Workspace],
    call: &'a Call,
    began: Moment,
    floor: Revision,
    now: Moment,
    /// Its process is being closed, or was.
    closing: bool,
}

type Judged = Result<(), &'static str>;

fn or(justified: bool, why: &'static str) -> Judged {
    if justified { Ok(()) } else { Err(why) }
}

impl<'a> Case<'a> {
    fn judge(&self, error: &Error) -> Judged {
        or(error.session() == Some(self.call.session), "it is about another session")?;
        if *error.kind() == ErrorKind::Closed {
            return or(self.closing, "nobody has closed it");
        }
        self.judge_causes(error)?;
        match error.kind() {
            ErrorKind::NotBound => {
                or(self.call.named.is_none(), "a workspace was named")?;
                or(self.was_absent(), "no read found nothing")?;
                let mut sights = self.sights().filter(|sight| sight.workspace.is_none());
                or(sights.any(|sight| sight.revision >= self.floor), "a later row was known")
            }
            ErrorKind::WorkspaceMismatch { bound, asked } => {
                or(
                    self.call.named == Some(*asked) && bound != asked,
                    "that is not what was named",
                )?;
                or(self.found(|found| matches!(found, Found::Row(_))), "no row was read")?;
                or(self.pointed_at(*bound), "the row did not point there")
            }
            ErrorKind::Retargeted => {
                or(self.call.dials.len() == 3, "there was a dial left")?;
                or(self.was_moved() || self.renumbered(), "the session was not moved")
            }
            ErrorKind::Starting { .. } | ErrorKind::Stopped | ErrorKind::Gone => {
                self.judge_denial(error.kind())
            }
            ErrorKind::Unreachable { newer: None } => self.judge_unreachable(),
            ErrorKind::Unreachable { newer: Some(newer) } => {
                or(self.call.dials.len() == 3, "there was a dial left")?;
                let last = self.call.dials.last().expect("three");
                or(last.target.agent != newer.agent, "that one was dialed")?;
                or(self.knows_of(last.workspace, newer), "nobody has named that one")
            }
            ErrorKind::TimedOut { last } => {
                let took = self.now.at - self.began.at;
                or(took >= DIAL_TIMEOUT, "there was time left")?;
                self.judge_last(*last)
            }
            ErrorKind::Resolver => {
                let less = |q: &Question, target: &Target| {
                    let known = self.chronicle.generation_known(q.process, q.workspace, q.began.at);
                    target.generation.map(|generation| generation.get()) < known
                };
                let failed = self.answers().any(|(question, said)| match said {
                    Err(_) => true,
                    Ok(Resolution::Running(target)) => less(question, target),
                    Ok(_) => false,
                });
                or(failed || self.renumbered(), "the resolver has not failed")
            }
            ErrorKind::Store => {
                let failed = self.found(|found| matches!(found, Found::Error(_)));
                or(failed || self.is_late() || self.queued_in_vain(), "no statement failed")
            }
            _ => Err("that cannot be"),
        }
    }

    /// What is said to have gone wrong did.
    fn judge_causes(&self, error: &Error) -> Judged {
        let dial = error.dial_error().map(ToString::to_string);
        let refused = self.call.dials.iter().any(|dial| dial.connected == Some(false));
        or(dial.is_none() || refused, "no dial failed")?;
        let store = error.store_error().map(ToString::to_string);
        or(
            store.is_some() == (*error.kind() == ErrorKind::Store),
            "the store's error is missing, or not called for",
        )?;
        if let Some(text) = store {
            let told = |found: &Found| match found {
                Found::Error(Some(told)) => *told == text,
                Found::Error(None) => text == "the store did not answer",
                _ => false,
            };
            let late = text == "the store did not answer" && self.is_late();
            let queued = text == QUEUED && self.queued_in_vain();
            or(late || queued || self.found(told), "no statement failed with that")?;
        }
        let validation = error.validation_error().map(ToString::to_string);
        or(
            validation.is_some() || *error.kind() != ErrorKind::Resolver,
            "the resolver's error is missing",
        )?;
        match validation.as_deref() {
            None => Ok(()),
            Some("no answer yet") => {
                let mut questions =
                    self.chronicle.questions.iter().filter(|question| self.is_own(question));
                // A busy caller hears of the answer later.
                let unheard = |at: &Moment| at.at + ms(self.call.lag) >= self.now.at;
                let open =
                    |question: &Question| question.ended.as_ref().is_none_or(|(at, _)| unheard(at));
                or(questions.any(open), "nothing is being asked")
            }
            Some("the answer is older than what is known (a lagging replica?)") => {
                let older = |question: &Question, target: &Target| match target.generation {
                    Some(generation) => {
                        let known = self.chronicle.generation_known(
                            question.process,
                            question.workspace,
                            self.now.at,
                        );
                        known > Some(generation.get())
                    }
                    None => self
                        .knows
                        .newest
                        .get(&question.workspace)
                        .is_some_and(|(agent, _)| *agent != target.agent),
                };
                let mut answers = self.answers();
                let found = answers.any(
                    |(q, said)| matches!(said, Ok(Resolution::Running(target)) if older(q, target)),
                );
                or(found || self.renumbered(), "no answer was older")
            }
            Some(text) => or(
                self.answers().any(|(_, said)| matches!(said, Err(told) if told == text)),
                "no question ended so",
            ),
        }
    }

    /// There was nothing to dial, and the resolver has said why within the last second, perhaps
    /// before the call.
    fn was_just_denied(&self, kind: &ErrorKind) -> bool {
        let mut questions =
            self.chronicle.questions.iter().filter(|question| self.is_own(question));
        let heard = |question: &Question| {
            let Some((at, said)) = &question.ended else { return false };
            as_error(said).as_ref() == Some(kind) && self.now.at - at.at <= ms(1_000)
        };
        self.call.dials.is_empty() && questions.any(heard)
    }

    fn judge_denial(&self, kind: &ErrorKind) -> Judged {
        if self.was_just_denied(kind) {
            return Ok(());
        }
        let denials = || self.answers().filter(|(_, said)| as_error(said).as_ref() == Some(kind));
        or(denials().next().is_some(), "nobody said so")?;
        // Not by an answer that was on its way before anybody had a doubt.
        let fresh = |question: &Question| {
            question.began.at >= self.began.at
                || self.was_doubted_before(question)
                || self.renumbered()
        };
        or(denials().any(|(question, _)| fresh(question)), "that was before the call")?;
        let read_since = denials().filter(|(question, _)| fresh(question)).any(|(question, _)| {
            let said = question.ended.as_ref().expect("only what has ended").0;
            self.readings().any(|reading| {
                let pointed = match &reading.ended {
                    // What is known to be later than what was read is what counts.
                    Some((at, Found::Row(row))) if *at < self.now => self.sights().any(|sight| {
                        sight.revision >= row.revision
                            && sight.workspace == Some(question.workspace)
                    }),
                    // A session without a row is to be created where its caller says.
                    Some((at, Found::Nothing)) => {
                        *at < self.now && self.call.named == Some(question.workspace)
                    }
                    Some((at, Found::Error(_))) => *at < self.now,
                    _ => false,
                };
                reading.began.at >= said.at && pointed
            }) || self.waited_in_vain(said)
        });
        or(read_since, "the row was not read since")
    }

    fn judge_unreachable(&self) -> Judged {
        let dials = &self.call.dials;
        let failed = |dial: &Dial| dial.connected == Some(false);
        let last = dials.last().ok_or("nothing was dialed")?;
        or(failed(last), "the last dial did not fail")?;
        let twice = dials.len() > 1 && dials[dials.len() - 2].target.agent == last.target.agent;
        or(dials.len() == 3 || twice && failed(&dials[dials.len() - 2]), "there was a dial left")?;
        let newest =
            self.chronicle.generation_known(self.call.process, last.workspace, self.now.at);
        let known = last.target.generation.map(|generation| generation.get());
        let latest = known >= newest || self.renumbered();
        or(latest || dials.len() == 3, "a later agent was known")
    }

    /// What is said to have been heard of the resolver was heard.
    fn judge_last(&self, last: LastVerdict) -> Judged {
        let said = |wanted: &dyn Fn(&Resolution) -> bool| {
            let mut answers = self.answers().filter_map(|(_, said)| said.as_ref().ok());
            answers.any(wanted)
        };
        let justified = match last {
            LastVerdict::Unknown => true,
            LastVerdict::Same => said(&|said| matches!(said, Resolution::Running(_))),
            LastVerdict::Superseded => {
                let mut heard = self
                    .chronicle
                    .heard_of
                    .iter()
                    .filter(|heard| heard.process == self.call.process);
                said(&|said| matches!(said, Resolution::Running(_)))
                    || heard.any(|heard| heard.at >= self.began)
            }
            LastVerdict::Starting => said(&|said| matches!(said, Resolution::Starting { .. })),
            LastVerdict::Stopped => said(&|said| *said == Resolution::Stopped),
            LastVerdict::Gone => said(&|said| *said == Resolution::Gone),
            _ => false,
        };
        or(justified, "the resolver has not said that")
    }

    /// Whether builds of any workspace were numbered anew: a number says nothing then.
    fn renumbered(&self) -> bool {
        self.workspaces.iter().any(Workspace::was_renumbered)
    }

    /// Where the session pointed, as this process had seen it when the call began, and since.
    fn sights(&self) -> impl Iterator<Item = &'a Sight> {
        let (process, session) = (self.call.process, self.call.session);
        self.chronicle
            .sights
            .iter()
            .filter(move |sight| (sight.process, sight.session) == (process, session))
    }

    fn pointed_at(&self, workspace: WorkspaceId) -> bool {
        self.sights()
            .any(|sight| sight.workspace == Some(workspace) && sight.revision >= self.floor)
    }

    fn was_moved(&self) -> bool {
        let uncertain = self.knows.unkept.contains_key(&self.call.session);
        let mut places =
            self.sights().filter(|sight| sight.revision >= self.floor).map(|sight| sight.workspace);
        let first = places.next();
        uncertain || places.any(|place| Some(place) != first)
    }

    /// The statements about the session by the call's process.
    fn statements(&self) -> impl Iterator<Item = &'a Statement> {
        let (process, session) = (self.call.process, self.call.session);
        let statements = self.chronicle.statements.iter();
        statements.filter(move |of| (of.process, of.session) == (process, session))
    }

    /// Those that may have been made for this call to find or create the row.
    fn readings(&self) -> impl Iterator<Item = &'a Statement> {
        self.statements().filter(|statement| !statement.is_swap)
    }

    /// Whether a reading has found no row in the call's time, or one that began within the second
    /// before.
    fn was_absent(&self) -> bool {
        let recent = |reading: &Statement| {
            matches!(reading.ended, Some((_, Found::Nothing)))
                && self.began.at - reading.began.at <= ms(1_000)
        };
        self.found(|found| *found == Found::Nothing) || self.readings().any(recent)
    }

    /// Whether a reading has found this in the call's time.
    fn found(&self, wanted: impl Fn(&Found) -> bool) -> bool {
        let mut ended = self.readings().filter_map(|reading| reading.ended.as_ref());
        ended.any(|(at, found)| *at > self.began && wanted(found))
    }

    /// Whether a store timeout has passed since then without an answer to a statement that had been
    /// sent before: such a one is not sent again.
    fn waited_in_vain(&self, since: Moment) -> bool {
        let waited = |reading: &Statement| {
            let until = reading.ended.as_ref().map_or(self.now, |(at, _)| *at);
            until.at.saturating_duration_since(since.at.max(reading.began.at)) >= STORE_TIMEOUT
        };
        self.readings().any(waited)
    }

    /// Whether a statement that the call has waited for had no answer for a store timeout.
    fn is_late(&self) -> bool {
        self.waited_in_vain(self.began) || self.joined_in_vain()
    }

    /// Whether a statement that was under way when the call began had no answer for a store timeout:
    /// who waits for it is told with those who waited before.
    fn joined_in_vain(&self) -> bool {
        let waited = |reading: &Statement| {
            let until = reading.ended.as_ref().map_or(self.now, |(at, _)| *at);
            reading.began < self.began
                && until > self.began
                && until.at.saturating_duration_since(reading.began.at) >= STORE_TIMEOUT
        };
        self.readings().any(waited)
    }

    /// Whether the call has waited for a store timeout, at the end of which another statement about
    /// the session had no answer: its own was not sent.
    fn queued_in_vain(&self) -> bool {
        let deadline = self.now.at.checked_sub(STORE_TIMEOUT).filter(|at| *at >= self.began.at);
        let Some(deadline) = deadline else { return false };
        self.statements().any(|of| of.ended.as_ref().is_none_or(|(at, _)| at.at > deadline))
    }

    fn is_own(&self, question: &Question) -> bool {
        let named = self.call.named == Some(question.workspace) && self.was_absent();
        question.process == self.call.process && (named || self.pointed_at(question.workspace))
    }

    /// The answers that came in the call's time.
    fn answers(&self) -> impl Iterator<Item = (&'a Question, &'a Result<Resolution, String>)> {
        let asked = self.chronicle.questions.iter().filter(|question| self.is_own(question));
        asked.filter_map(|question| {
            let (at, said) = question.ended.as_ref()?;
            (*at > self.began).then_some((question, said))
        })
    }

    fn knows_of(&self, workspace: WorkspaceId, target: &Target) -> bool {
        let mut heard = self.chronicle.heard_of.iter();
        heard.any(|heard| {
            heard.process == self.call.process
                && heard.workspace == workspace
                && heard.target == *target
        })
    }

    /// Whether somebody here had doubted the workspace's agent before this was asked.
    fn was_doubted_before(&self, question: &Question) -> bool {
        let mut doubts =
            self.chronicle.doubts.iter().filter(|(process, _)| *process == question.process);
        let heard = |heard: &&HeardOf| {
            (heard.process, heard.workspace) == (question.process, question.workspace)
        };
        // Without generations a row and an answer that contradict each other are a doubt as well.
        let mut others = self.chronicle.heard_of.iter().filter(heard).skip(1);
        doubts.any(|(_, doubted)| *doubted < question.began)
            || others.any(|heard| heard.target.generation.is_none() && heard.at < question.began)
    }
}

fn as_error(said: &Result<Resolution, String>) -> Option<ErrorKind> {
    match said.as_ref().ok()? {
        Resolution::Starting { retry_after } => {
            Some(ErrorKind::Starting { retry_after: *retry_after })
        }
        Resolution::Stopped => Some(ErrorKind::Stopped),
        Resolution::Gone => Some(ErrorKind::Gone),
        _ => None,
    }
}
