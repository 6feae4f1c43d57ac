//! Checks the connections that calls return.

use crate::{
    DIAL_TIMEOUT,
    dialer::Conn,
    ms,
    truth::{State, Truth},
};
use tokio::time::{Duration, Instant};
use tower_bound_agent::{Bound, Error, SessionId};

pub(crate) struct Ended<'a> {
    pub(crate) process: usize,
    pub(crate) session: SessionId,
    pub(crate) id: u64,
    pub(crate) took: Duration,
    pub(crate) lag: u64,
    pub(crate) result: &'a Result<Bound<Conn>, Error>,
}

impl Truth {
    /// Checks the result of a call that has just ended.
    pub(crate) fn returned(&self, call: Ended<'_>) {
        let mut state = self.state();
        let Ended { process, session, id, took, lag, result } = call;
        if let Ok(bound) = result {
            state.judge_numbering(process, id, Instant::now() - took, bound);
        }
        let renumbered =
            result.as_ref().is_ok_and(|bound| state.workspace(bound.workspace()).was_renumbered());
        let State { knows, calls, broken, agents, .. } = &mut *state;
        let knows = &knows[process];
        let call = &calls[&id];
        // A lagging caller is late twice: at its first poll and at its last.
        if took > DIAL_TIMEOUT + ms(2 * lag + 1) {
            broken.push(format!("{id}: a call that took {took:?}"));
        }
        if call.live > 0 {
            broken.push(format!("{id}: a dial outlives its call"));
        }
        let bound = match result {
            Ok(bound) => bound,
            Err(error) => {
                drop(state);
                return self.check_error(id, error);
            }
        };
        if usize::from(bound.outcome().dials) != call.dials.len() {
            broken.push(format!(
                "{id}: outcome {:?}, {} dials started",
                bound.outcome(),
                call.dials.len()
            ));
        }
        if bound.agent != bound.target().agent
            || agents[&bound.agent].workspace != bound.workspace()
        {
            broken.push(format!("{id}: an agent at an address that it never had: {bound:?}"));
            return;
        }
        // While no row is cached, each call uses the row that it has read itself, and does not
        // learn of the rows of others.
        let began = Instant::now() - took;
        let kept = knows.unkept.get(&session).is_none_or(|until| *until < began);
        match knows.rows.get(&session) {
            Some(Ok((revision, workspace, since)))
                if bound.workspace() != *workspace && (kept || *since < began) =>
            {
                broken.push(format!(
                    "{id}: known to point at {workspace} by {revision}, served {bound:?}"
                ));
            }
            Some(Err(since)) if kept || *since < began => {
                let since = since.elapsed();
                broken.push(format!("{id}: known to be deleted since {since:?}, served {bound:?}"));
            }
            Some(_) => {}
            None => broken.push(format!("{id}: no row was read, served {bound:?}")),
        }
        if renumbered {
            return;
        }
        if let Some(generation) = bound.target().generation
            && knows
                .generations
                .get(&bound.workspace())
                .is_some_and(|known| generation.get() < *known)
        {
            broken.push(format!(
                "{id}: generation {:?} is known, served {bound:?}",
                knows.generations
            ));
        }
        if knows
            .replaced
            .get(&bound.workspace())
            .is_some_and(|replaced| replaced.contains(&bound.agent))
        {
            broken.push(format!("{id}: known to be replaced, served {bound:?}"));
        }
    }
}

impl State {
    /// Checks that a process that knows a numbering when a call begins does not return an agent of
    /// an earlier one.
    fn judge_numbering(&mut self, process: usize, id: u64, began: Instant, bound: &Bound<Conn>) {
        let known = self.knows[process].epochs.get(&bound.workspace()).copied();
        let workspace = self.workspace(bound.workspace());
        let Some((epoch, since)) = known else { return };
        if since < began
            && epoch.get() == workspace.resets as i64
            && workspace.is_of_ended_numbering(bound.agent)
        {
            self.broken
                .push(format!("{id}: of an ended numbering, known since {since:?}: {bound:?}"));
        }
    }
}
