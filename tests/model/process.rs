//! One process, and the hints that it receives.

use crate::{
    DIAL_TIMEOUT, VALIDATION_DELAY,
    dialer::Dialer,
    ms,
    resolver::resolver,
    store::Probe,
    truth::{Faults, Knowledge, Truth},
};
use futures_util::{Stream, StreamExt};
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};
use support::wire::Wire;
use tokio::time::{Instant, Sleep, sleep};
use tower::Layer;
use tower_bound_agent::{
    Bindings, BoundAgent, BoundAgentLayer, Event, RepairMode, Resolution,
    hints::{About, Heard, Hint, Hints},
};

pub(crate) struct Process {
    pub(crate) id: usize,
    pub(crate) bindings: Bindings,
    pub(crate) dial: BoundAgent<Dialer>,
}

impl Process {
    pub(crate) fn start(truth: &Truth, repair: RepairMode, wire: Option<&Wire>) -> Self {
        let process = {
            let mut state = truth.state();
            state.faults.push(Faults::default());
            state.knows.push(Knowledge::default());
            state.writes.push(0);
            state.knows.len() - 1
        };
        let watched = truth.clone();
        let mut builder = BoundAgentLayer::builder(
            Probe { process, truth: truth.clone() },
            resolver(truth.clone(), process),
        );
        if let Some(wire) = wire {
            builder =
                builder.hints(HintListener { process, truth: truth.clone(), wire: wire.clone() });
        }
        let layer = builder
            .dial_timeout(DIAL_TIMEOUT)
            .validation_delay(VALIDATION_DELAY)
            .repair(repair)
            .observer(move |event: &Event<'_>| {
                if let Event::ReportedStale { .. } | Event::DroppedInFlight { .. } = event {
                    watched.state().history.doubt(process);
                }
                let Event::Validated { workspace, took, answer, .. } = event else { return };
                let said = answer.cloned().map_err(ToString::to_string);
                watched.state().history.answered(process, *workspace, said);
                if let Ok(Resolution::Running(target)) = answer {
                    watched.answered(process, *workspace, target, Instant::now() - *took);
                }
            })
            .build()
            .unwrap();
        let dialer = Dialer { truth: truth.clone(), process, ready: false };
        Self { id: process, bindings: layer.bindings(), dial: layer.layer(dialer) }
    }
}

/// The end of the hint bus in one process.
pub(crate) struct HintListener {
    pub(crate) process: usize,
    pub(crate) truth: Truth,
    pub(crate) wire: Wire,
}

impl Hints for HintListener {
    fn send(&self, hint: Hint) {
        self.wire.send(hint);
    }

    fn listen(&self) -> impl Stream<Item = Heard> + Send + 'static {
        let (process, truth) = (self.process, self.truth.clone());
        self.wire.listen().inspect(move |heard| {
            truth.state().history.doubt(process);
            if let Heard::Hint(hint) = heard
                && let About::Workspace { workspace, generation: Some(generation), .. } = hint.about
            {
                let mut state = truth.state();
                let landed = state.knows[process].landed.entry(workspace).or_default();
                *landed = generation.get().max(*landed);
            }
        })
    }
}

/// A busy caller, which polls its future only some time after it was woken.
#[pin_project::pin_project]
pub(crate) struct Lagging<F> {
    #[pin]
    pub(crate) future: F,
    #[pin]
    pub(crate) pause: Option<Sleep>,
    pub(crate) lag: u64,
}

impl<F: Future> Future for Lagging<F> {
    type Output = F::Output;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        if *this.lag > 0 {
            if this.pause.is_none() {
                this.pause.set(Some(sleep(ms(*this.lag))));
            }
            if this.pause.as_mut().as_pin_mut().expect("just set").poll(cx).is_pending() {
                return Poll::Pending;
            }
            this.pause.set(None);
        }
        this.future.poll(cx)
    }
}
