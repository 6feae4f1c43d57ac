//! Checks the errors of calls: each error must report a condition that held between the beginning
//! and the end of the call.

use crate::{
    DIAL_TIMEOUT, STORE_TIMEOUT, VALIDATION_DELAY,
    history::{Found, History, Kind, KnownAgent, Moment, Observation, Question, Statement, chain},
    ms,
    scenario::{Does, Fault, How, Op, Status},
    truth::{Call, Dial, Knowledge, State, Truth, Workspace},
};
use std::collections::BTreeMap;
use tokio::time::Instant;
use tower_bound_agent::{Error, ErrorKind, LastVerdict, Resolution, Revision, Target, WorkspaceId};

/// The error of a call whose statement has no answer.
const LATE: &str = "the store did not answer: no answer within 5s";
/// The same of a statement whose connection counts as dead.
const DEAD: &str = "the store did not answer: no answer within 120s";
/// The error of a call that has waited behind another statement about its session.
const QUEUED: &str = "the store is unavailable: \
                      an earlier statement is unanswered, so nothing was sent within 5s";

impl Truth {
    /// Records the first poll of a call.
    pub(crate) fn begins(&self, id: u64) {
        let mut state = self.state();
        let now = state.history.now();
        let Call { process, session, .. } = state.calls[&id];
        let floor = state.knows[process].floors.get(&session).copied().unwrap_or(Revision::new(-1));
        let well = state.is_well(process);
        state.calls.get_mut(&id).expect("a known call").began = Some((now, floor, well));
    }

    /// Returns `true` if this operation may disturb a call, whatever the layers do. Doubts,
    /// invented hints, and the end of other calls and processes must not.
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
            | Op::Inherit { .. } => self.state().history.disturb(),
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

    /// Checks the error of a call that has just failed.
    pub(crate) fn check_error(&self, id: u64, error: &Error) {
        let mut state = self.state();
        let now = state.history.now();
        let State { history, knows, calls, closing, workspaces, .. } = &*state;
        let call = &calls[&id];
        let (began, floor, well) = call.began.expect("a call that has ended was polled");
        let closing = closing.contains(&call.process);
        let knows = &knows[call.process];
        let case = Case { history, knows, workspaces, calls, call, began, floor, now, closing };
        let calm = well && history.disturbed < began.number;
        let judged = case.judge(error).and_then(|()| match error.kind() {
            ErrorKind::NotBound | ErrorKind::WorkspaceMismatch { .. } | ErrorKind::Closed => Ok(()),
            // The process knew neither of the session's retarget nor of the builds of both
            // workspaces.
            ErrorKind::Retargeted => Ok(()),
            // Both dials of a target failed before the answer that names the newer one.
            ErrorKind::Unreachable { newer: Some(_) } if case.was_answered_late() => Ok(()),
            kind if case.was_just_denied(kind) => Ok(()),
            _ if calm => Err("no fault was active since before the call began"),
            _ => Ok(()),
        });
        if let Err(why) = judged {
            state.broken.push(format!("{id}: {error:?}, but {why}"));
        }
    }
}

impl State {
    /// Returns `true` if no fault is active that a call of this process could notice, not even
    /// through an answer that is under way.
    fn is_well(&self, process: usize) -> bool {
        let since = self.history.disturbed;
        let runs = |ws: &Workspace| {
            if ws.was_renumbered() {
                // A process that does not know of the new numbering considers its generations old.
                return false;
            }
            let newest = &ws.builds.last().expect("a first build").agent;
            ws.status == Status::Running && matches!(self.agents[newest].does, Does::Answer(_))
        };
        let sound = |fault: Fault| fault == Fault::None;
        self.workspaces.iter().all(runs)
            && self.faults.iter().all(|faults| sound(faults.reads) && sound(faults.writes))
            && self.answers.iter().all(|(_, answers)| answers.how == How::Right)
            && self.history.overdue == 0
            && self.history.commands == 0
            && self
                .history
                .questions
                .iter()
                .all(|q| q.process != process || q.ended.is_some() || q.began.number > since)
            && self
                .history
                .statements
                .iter()
                .filter(|r| r.kind != Kind::Swap)
                .all(|r| r.process != process || r.ended.is_some() || r.began.number > since)
    }
}

/// A failed call, and the conditions that held during it.
struct Case<'a> {
    history: &'a History,
    knows: &'a Knowledge,
    workspaces: &'a [Workspace],
    calls: &'a BTreeMap<u64, Call>,
    call: &'a Call,
    began: Moment,
    floor: Revision,
    now: Moment,
    /// The layer of its process is being closed, or is closed.
    closing: bool,
}

type Judged = Result<(), &'static str>;

fn or(justified: bool, why: &'static str) -> Judged {
    if justified { Ok(()) } else { Err(why) }
}

impl<'a> Case<'a> {
    fn judge(&self, error: &Error) -> Judged {
        or(error.session() == Some(self.call.session), "the error names another session")?;
        if *error.kind() == ErrorKind::Closed {
            return or(self.closing, "the layer was not closed");
        }
        self.judge_causes(error)?;
        match error.kind() {
            ErrorKind::NotBound => {
                or(self.call.named.is_none(), "a workspace was named")?;
                or(self.was_absent(), "every read found a row")?;
                let mut observations =
                    self.observations().filter(|sight| sight.workspace.is_none());
                or(observations.any(|sight| sight.revision >= self.floor), "a later row was known")
            }
            ErrorKind::WorkspaceMismatch { bound, asked } => {
                or(
                    self.call.named == Some(*asked) && bound != asked,
                    "the caller named another workspace",
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
                or(last.target.agent != newer.agent, "that target was dialed")?;
                or(self.knows_of(last.workspace, newer), "that target was not named")
            }
            ErrorKind::WrongAgent => {
                or(self.call.dials.iter().any(|dial| dial.is_wrong), "no other agent has answered")
            }
            ErrorKind::TimedOut { last } => {
                let took = self.now.at - self.began.at;
                or(took >= DIAL_TIMEOUT, "the deadline had not passed")?;
                self.judge_last(*last)
            }
            ErrorKind::Resolver => {
                let less = |q: &Question, target: &Target| {
                    let known = self.history.generation_known(q.process, q.workspace, q.began.at);
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
                or(failed || self.is_late() || self.queued_without_sending(), "no statement failed")
            }
            _ => Err("this error is not possible here"),
        }
    }

    /// Checks that the causes of the error have happened.
    fn judge_causes(&self, error: &Error) -> Judged {
        let dial = error.dial_error().map(ToString::to_string);
        let refused = self.call.dials.iter().any(|dial| dial.connected == Some(false));
        or(dial.is_none() || refused, "no dial failed")?;
        let store = error.store_error().map(|error| chain(error));
        or(
            store.is_some() == (*error.kind() == ErrorKind::Store),
            "the store's error is missing or superfluous",
        )?;
        if let Some(text) = store {
            let told = |found: &Found| match found {
                Found::Error(Some(told)) => *told == text,
                Found::Error(None) => text == LATE || text == DEAD,
                _ => false,
            };
            let late = text == LATE && self.is_late();
            let queued = text == QUEUED && self.queued_without_sending();
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
                    self.history.questions.iter().filter(|question| self.is_own(question));
                // A busy caller receives the answer later.
                let unheard = |at: &Moment| at.at + ms(self.call.lag) >= self.now.at;
                let open =
                    |question: &Question| question.ended.as_ref().is_none_or(|(at, _)| unheard(at));
                or(questions.any(open), "nothing is being asked")
            }
            Some("the answer is older than what is known (a lagging replica?)") => {
                let older = |question: &Question, target: &Target| match target.generation {
                    Some(generation) => {
                        let known = self.history.generation_known(
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
                "no question ended with that result",
            ),
        }
    }

    /// Returns `true` if no target was known and the resolver's denial is at most a second old,
    /// even if it was given before the call.
    fn was_just_denied(&self, kind: &ErrorKind) -> bool {
        let mut questions = self.history.questions.iter().filter(|question| self.is_own(question));
        let heard = |question: &Question| {
            let Some((at, said)) = &question.ended else { return false };
            as_error(said).as_ref() == Some(kind) && self.now.at - at.at <= ms(1_000)
        };
        self.call.dials.is_empty() && questions.any(heard)
    }

    /// Returns `true` if an answer has taken longer than a call waits for it before it dials again.
    fn was_answered_late(&self) -> bool {
        self.answers().any(|(question, _)| {
            let said = question.ended.as_ref().expect("an answer").0;
            said.at - question.began.at >= VALIDATION_DELAY
        })
    }

    fn judge_denial(&self, kind: &ErrorKind) -> Judged {
        if self.was_just_denied(kind) {
            return Ok(());
        }
        let denials = || self.answers().filter(|(_, said)| as_error(said).as_ref() == Some(kind));
        or(denials().next().is_some(), "the resolver has not denied it")?;
        // An answer that was under way before the doubt does not count.
        let fresh = |question: &Question| {
            question.began.at >= self.began.at
                || self.was_doubted_before(question)
                || self.renumbered()
        };
        or(denials().any(|(question, _)| fresh(question)), "that was before the call")?;
        let read_since = denials().filter(|(question, _)| fresh(question)).any(|(question, _)| {
            let said = question.ended.as_ref().expect("only an ended numbering was denied").0;
            self.readings().any(|reading| {
                let pointed = match &reading.ended {
                    // A row that is known to be later than the read row counts instead.
                    Some((at, Found::Row(row))) if *at < self.now => {
                        self.observations().any(|sight| {
                            sight.revision >= row.revision
                                && sight.workspace == Some(question.workspace)
                        })
                    }
                    // A session without a row is created in the workspace that its caller names.
                    Some((at, Found::Nothing)) => {
                        *at < self.now && self.call.named == Some(question.workspace)
                    }
                    Some((at, Found::Error(_))) => *at < self.now,
                    _ => false,
                };
                reading.began.at >= said.at && pointed
            }) || self.waited_without_answer(said)
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
        let newest = self.history.generation_known(self.call.process, last.workspace, self.now.at);
        let known = last.target.generation.map(|generation| generation.get());
        let latest = known >= newest || self.renumbered();
        or(latest || dials.len() == 3, "a later agent was known")
    }

    /// Checks that the resolver has given the reported verdict.
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
                    .history
                    .known_agents
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
        or(justified, "the resolver has not given that verdict")
    }

    /// Returns `true` if the generations of any workspace have started again. Generations are no
    /// evidence then.
    fn renumbered(&self) -> bool {
        self.workspaces.iter().any(Workspace::was_renumbered)
    }

    /// Returns the observations of the session's row by this process: the last one before the call,
    /// and all since.
    fn observations(&self) -> impl Iterator<Item = &'a Observation> {
        let (process, session) = (self.call.process, self.call.session);
        self.history
            .observations
            .iter()
            .filter(move |sight| (sight.process, sight.session) == (process, session))
    }

    fn pointed_at(&self, workspace: WorkspaceId) -> bool {
        self.observations()
            .any(|sight| sight.workspace == Some(workspace) && sight.revision >= self.floor)
    }

    fn was_moved(&self) -> bool {
        let uncertain = self.knows.unkept.contains_key(&self.call.session);
        let mut places = self
            .observations()
            .filter(|sight| sight.revision >= self.floor)
            .map(|sight| sight.workspace);
        let first = places.next();
        uncertain || places.any(|place| Some(place) != first)
    }

    /// Returns the statements about the session by the call's process.
    fn statements(&self) -> impl Iterator<Item = &'a Statement> {
        let (process, session) = (self.call.process, self.call.session);
        let statements = self.history.statements.iter();
        statements.filter(move |of| (of.process, of.session) == (process, session))
    }

    /// Returns the statements that may have read or created the row for this call.
    fn readings(&self) -> impl Iterator<Item = &'a Statement> {
        self.statements().filter(|statement| statement.kind != Kind::Swap)
    }

    /// Returns `true` if a read found no row during the call, or began within the second before and
    /// found none.
    fn was_absent(&self) -> bool {
        let recent = |reading: &Statement| {
            matches!(reading.ended, Some((_, Found::Nothing)))
                && self.began.at - reading.began.at <= ms(1_000)
        };
        self.found(|found| *found == Found::Nothing) || self.readings().any(recent)
    }

    /// Returns `true` if a read has returned a matching result during the call.
    fn found(&self, wanted: impl Fn(&Found) -> bool) -> bool {
        let mut ended = self.readings().filter_map(|reading| reading.ended.as_ref());
        ended.any(|(at, found)| *at > self.began && wanted(found))
    }

    /// Returns `true` if a store timeout has passed since then without an answer to an earlier
    /// statement, which is not sent again.
    fn waited_without_answer(&self, since: Moment) -> bool {
        let waited = |reading: &Statement| {
            let until = reading.ended.as_ref().map_or(self.now, |(at, _)| *at);
            until.at.saturating_duration_since(since.at.max(reading.began.at)) >= STORE_TIMEOUT
        };
        self.readings().any(waited)
    }

    /// Returns `true` if a statement that the call waited for had no answer for a store timeout.
    fn is_late(&self) -> bool {
        self.waited_without_answer(self.began) || self.joined_without_answer()
    }

    /// Returns `true` if a statement that was under way when the call began had no answer for a
    /// store timeout. Later waiters fail together with earlier ones.
    fn joined_without_answer(&self) -> bool {
        let waited = |reading: &Statement| {
            let until = reading.ended.as_ref().map_or(self.now, |(at, _)| *at);
            reading.began < self.began
                && until > self.began
                && until.at.saturating_duration_since(reading.began.at) >= STORE_TIMEOUT
        };
        self.readings().any(waited)
    }

    /// Returns `true` if the row was not created because other writes of the row had no answer for
    /// a store timeout. It counts from the connection of the first call that waits for the
    /// creation: later ones fail together with it.
    fn queued_without_sending(&self) -> bool {
        let lag = ms(self.call.lag);
        let Some(until) = self.now.at.checked_sub(lag) else { return false };
        let Some(from) = until.checked_sub(STORE_TIMEOUT) else { return false };
        let of_session = self
            .calls
            .values()
            .filter(|call| (call.process, call.session) == (self.call.process, self.call.session));
        let mut connected =
            of_session.flat_map(|call| &call.dials).filter_map(|dial| dial.connected_at);
        connected.any(|at| at <= from + lag && self.is_unanswered(at.max(from), until))
    }

    /// Returns `true` if a write of the row was under way at each moment of this time.
    fn is_unanswered(&self, from: Instant, until: Instant) -> bool {
        let writes = self.statements().filter(|statement| statement.kind != Kind::Load);
        let mut covered = from;
        for write in writes.filter(|write| write.began.at <= until) {
            let ended = write.ended.as_ref().map_or(self.now.at, |(at, _)| at.at);
            if write.began.at <= covered {
                covered = covered.max(ended);
            }
        }
        covered >= until
    }

    fn is_own(&self, question: &Question) -> bool {
        let named = self.call.named == Some(question.workspace) && self.was_absent();
        question.process == self.call.process && (named || self.pointed_at(question.workspace))
    }

    /// Returns the answers that arrived during the call.
    fn answers(&self) -> impl Iterator<Item = (&'a Question, &'a Result<Resolution, String>)> {
        let asked = self.history.questions.iter().filter(|question| self.is_own(question));
        asked.filter_map(|question| {
            let (at, said) = question.ended.as_ref()?;
            (*at > self.began).then_some((question, said))
        })
    }

    fn knows_of(&self, workspace: WorkspaceId, target: &Target) -> bool {
        let mut heard = self.history.known_agents.iter();
        heard.any(|heard| {
            heard.process == self.call.process
                && heard.workspace == workspace
                && heard.target == *target
        })
    }

    /// Returns `true` if this process had a doubt about the workspace's agent before the question
    /// began.
    fn was_doubted_before(&self, question: &Question) -> bool {
        let mut doubts =
            self.history.doubts.iter().filter(|(process, _)| *process == question.process);
        let heard = |heard: &&KnownAgent| {
            (heard.process, heard.workspace) == (question.process, question.workspace)
        };
        // Without generations a row and an answer that contradict each other are a doubt as well.
        let mut others = self.history.known_agents.iter().filter(heard).skip(1);
        // A layer knows of both when they began. At one instant, the question counts.
        let before = |at: &Moment| at.at <= question.began.at;
        doubts.any(|(_, doubted)| before(doubted))
            || others.any(|heard| heard.target.generation.is_none() && before(&heard.at))
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
