//! The spans of a call: of the call itself, and of what it waits for. Without the feature `tracing`
//! there are none, and a future is wrapped in nothing.
//!
//! A span that no subscriber is interested in costs a comparison, and formats nothing.

#[cfg(feature = "tracing")]
mod on {
    use crate::{AgentId, BoxError, Error, Outcome, SessionId, WorkspaceId, observer::WithSources};
    use tokio::time::Duration;
    use tracing::{
        Instrument, Span, debug_span,
        field::{Empty, debug, display},
    };

    pub(crate) type InSpan<F> = tracing::instrument::Instrumented<F>;

    /// Wraps a call in its span.
    pub(crate) fn call<F>(session: SessionId, call: F) -> InSpan<F> {
        call.instrument(debug_span!(
            "bound_agent",
            %session,
            workspace = Empty,
            agent = Empty,
            outcome = Empty,
            dials = Empty,
            validations = Empty,
            waited = Empty,
            error = Empty,
        ))
    }

    /// Records how a call has ended with a connection.
    pub(crate) fn connected(
        span: &Span,
        workspace: WorkspaceId,
        agent: AgentId,
        outcome: &Outcome,
    ) {
        let Outcome { kind, dials, validations, decided_in, dialed_in, .. } = outcome;
        span.record("workspace", display(workspace));
        span.record("agent", display(agent));
        span.record("outcome", kind.as_str());
        spent(span, *dials, *validations, *decided_in + *dialed_in);
    }

    /// Records how a call has failed.
    pub(crate) fn failed(
        span: &Span,
        workspace: Option<WorkspaceId>,
        error: &Error,
        (dials, validations, waited): (u8, u8, Duration),
    ) {
        if let Some(workspace) = workspace {
            span.record("workspace", display(workspace));
        }
        span.record("error", error.kind().as_str());
        spent(span, dials, validations, waited);
    }

    fn spent(span: &Span, dials: u8, validations: u8, waited: Duration) {
        span.record("dials", dials);
        span.record("validations", validations);
        span.record("waited", debug(waited));
    }

    /// Begins a dial in its span.
    #[inline]
    pub(crate) fn dial<F>(agent: AgentId, begin: impl FnOnce() -> F) -> InSpan<F> {
        let span = debug_span!("dial", %agent, error = Empty);
        let dial = span.in_scope(begin);
        dial.instrument(span)
    }

    pub(crate) fn dial_failed<F>(dial: &InSpan<F>, error: &BoxError) {
        dial.span().record("error", display(WithSources(&**error)));
    }

    /// Wraps the wait for a validation.
    pub(crate) fn validate<F: Future>(wait: F) -> InSpan<F> {
        wait.instrument(debug_span!("validate"))
    }

    /// Wraps the wait for a statement.
    pub(crate) fn store<F: Future>(verb: &'static str, wait: F) -> InSpan<F> {
        wait.instrument(debug_span!("store", verb))
    }
}

#[cfg(not(feature = "tracing"))]
mod off {
    use crate::{AgentId, BoxError};

    pub(crate) type InSpan<F> = F;

    #[inline]
    pub(crate) fn dial<F>(_: AgentId, begin: impl FnOnce() -> F) -> F {
        begin()
    }

    #[inline]
    pub(crate) fn dial_failed<F>(_: &F, _: &BoxError) {}

    #[inline]
    pub(crate) fn validate<F: Future>(wait: F) -> F {
        wait
    }

    #[inline]
    pub(crate) fn store<F: Future>(_: &'static str, wait: F) -> F {
        wait
    }
}

#[cfg(not(feature = "tracing"))]
pub(crate) use off::*;
#[cfg(feature = "tracing")]
pub(crate) use on::*;
