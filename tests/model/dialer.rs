//! Agents, and connections to them.

use crate::{
    ms,
    scenario::Does,
    truth::{Dial, State, Truth},
};
use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
};
use tokio::time::{Instant, sleep};
use tower::Service;
use tower_bound_agent::{AgentId, BoxError, DialAgent, WrongAgentError};

/// Marks the dials of one call.
#[derive(Clone, Copy)]
pub(crate) struct CallId(pub(crate) u64);

pub(crate) struct Dialer {
    pub(crate) truth: Truth,
    pub(crate) process: usize,
    pub(crate) ready: bool,
}

impl Clone for Dialer {
    fn clone(&self) -> Self {
        Self { truth: self.truth.clone(), process: self.process, ready: false }
    }
}

impl Service<DialAgent> for Dialer {
    type Response = Conn;
    type Error = BoxError;
    type Future = Dialing;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, ask: DialAgent) -> Dialing {
        assert!(std::mem::take(&mut self.ready), "called without readiness");
        let CallId(id) = *ask.extensions.get().expect("the caller's extensions");
        let mut state = self.truth.state();
        let agent = &state.agents[&ask.target.agent];
        let (does, fits) =
            (agent.does, agent.workspace == ask.workspace && agent.target == *ask.target);
        if !fits {
            state
                .broken
                .push(format!("{id}: dials an agent at an address that it never had: {ask:?}"));
        }
        let call = state.calls.get_mut(&id).expect("a known call");
        let target = (*ask.target).clone();
        let is_wrong = |dial: &Dial| {
            dial.is_wrong
                && (dial.target.agent, &dial.target.address) == (target.agent, &target.address)
                && dial.target.generation >= target.generation
        };
        let again = call.dials.iter().any(is_wrong);
        call.dials.push(Dial {
            workspace: ask.workspace,
            target,
            connected: None,
            is_wrong: false,
            connected_at: None,
            first_bind: false,
        });
        call.live += 1;
        let (started, live) = (call.dials.len(), call.live);
        if again {
            state.broken.push(format!("{id}: dials where another agent has answered: {ask:?}"));
        }
        if started > 3 || live > 1 {
            state.broken.push(format!("{id}: dial {started}, {live} of them pending"));
        }
        let dial = async move {
            match does {
                Does::Answer(0) => Ok(()),
                Does::Answer(after) => {
                    sleep(ms(after)).await;
                    Ok(())
                }
                Does::Fail(0) => Err("connection refused".into()),
                Does::Fail(after) => {
                    sleep(ms(after)).await;
                    Err("connection refused".into())
                }
                Does::Wrong(after) => {
                    if after > 0 {
                        sleep(ms(after)).await;
                    }
                    Err(WrongAgentError::new("another agent").into())
                }
                Does::Hang => std::future::pending().await,
            }
        };
        Dialing {
            dial: Box::pin(dial),
            truth: self.truth.clone(),
            process: self.process,
            id,
            agent: ask.target.agent,
        }
    }
}

pub(crate) struct Dialing {
    pub(crate) dial: Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>,
    pub(crate) truth: Truth,
    pub(crate) process: usize,
    pub(crate) id: u64,
    pub(crate) agent: AgentId,
}

impl Future for Dialing {
    type Output = Result<Conn, BoxError>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let dialed = ready!(self.dial.as_mut().poll(cx));
        let mut state = self.truth.state();
        let State { calls, knows, .. } = &mut *state;
        let call = calls.get_mut(&self.id).expect("a known call");
        let dial = call.dials.last_mut().expect("the dial that began last");
        dial.connected = Some(dialed.is_ok());
        dial.is_wrong = dialed.as_ref().is_err_and(|error| WrongAgentError::is_in(&**error));
        if dialed.is_ok() {
            dial.connected_at = Some(Instant::now());
            dial.first_bind = knows[self.process].is_unbound(call.session);
        }
        Poll::Ready(dialed.map(|()| {
            state.knows[self.process].connected.insert(self.agent);
            state.live_connections += 1;
            Conn { agent: self.agent, truth: Arc::downgrade(&self.truth.state) }
        }))
    }
}

impl Drop for Dialing {
    fn drop(&mut self) {
        self.truth.state().calls.get_mut(&self.id).unwrap().live -= 1;
    }
}

pub(crate) struct Conn {
    pub(crate) agent: AgentId,
    pub(crate) truth: std::sync::Weak<Mutex<State>>,
}

impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Conn({})", self.agent)
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        if let Some(state) = self.truth.upgrade() {
            state.lock().unwrap().live_connections -= 1;
        }
    }
}
