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
        level_filters::LevelFilter,
    };

    pub(crate) type InSpan<F> = tracing::instrument::Instrumented<F>;

    /// The span of a call; none if no subscriber is interested in it. Boxed, because a call without
    /// a span moves and drops it too.
    #[derive(Debug)]
    pub(crate) struct CallSpan(Option<Box<Span>>);

    impl CallSpan {
        #[inline]
        pub(crate) fn new(session: SessionId) -> Self {
            Self(if may_be_enabled() { call_span(session) } else { None })
        }

        #[inline]
        pub(crate) fn in_scope<T>(&self, f: impl FnOnce() -> T) -> T {
            in_scope(self.0.as_deref(), f)
        }

        #[inline]
        pub(crate) fn enabled(&self) -> Option<&Span> {
            self.0.as_deref()
        }
    }

    // Not inlined, so that what surrounds it on the hot path is.
    #[cold]
    #[inline(never)]
    fn call_span(session: SessionId) -> Option<Box<Span>> {
        enabled(debug_span!(
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

    #[cold]
    #[inline(never)]
    fn dial_span(agent: AgentId) -> Option<Box<Span>> {
        enabled(debug_span!("dial", %agent, error = Empty))
    }

    fn enabled(span: Span) -> Option<Box<Span>> {
        (!span.is_disabled()).then(|| Box::new(span))
    }

    /// Returns `false` if no subscriber is interested in spans of this level.
    #[inline]
    fn may_be_enabled() -> bool {
        LevelFilter::current() >= LevelFilter::DEBUG
    }

    /// Calls `f` in the span, and costs two comparisons if there is none.
    #[inline]
    fn in_scope<T>(span: Option<&Span>, f: impl FnOnce() -> T) -> T {
        let _entered = span.map(Span::enter);
        f()
    }

    /// The span of a dial, from its start to its end; none before and after, and if no subscriber
    /// is interested in it.
    #[derive(Debug)]
    pub(crate) struct DialSpan(Option<Box<Span>>);

    impl DialSpan {
        #[inline]
        pub(crate) fn none() -> Self {
            Self(None)
        }

        #[inline]
        pub(crate) fn begin(&mut self, agent: AgentId) {
            if may_be_enabled() {
                self.0 = dial_span(agent);
            }
        }

        /// Ends the span after `f`, which runs in it.
        #[inline]
        pub(crate) fn end(&mut self, f: impl FnOnce()) {
            match self.0.take() {
                Some(span) => span.in_scope(f),
                None => f(),
            }
        }

        #[inline]
        pub(crate) fn in_scope<T>(&self, f: impl FnOnce() -> T) -> T {
            in_scope(self.0.as_deref(), f)
        }

        pub(crate) fn failed(&self, error: &BoxError) {
            if let Some(span) = &self.0 {
                span.record("error", display(WithSources(&**error)));
            }
        }
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
    use crate::{AgentId, BoxError, SessionId};

    #[derive(Debug)]
    pub(crate) struct CallSpan;

    impl CallSpan {
        #[inline]
        pub(crate) fn new(_: SessionId) -> Self {
            Self
        }

        #[inline]
        pub(crate) fn in_scope<T>(&self, f: impl FnOnce() -> T) -> T {
            f()
        }
    }

    #[derive(Debug)]
    pub(crate) struct DialSpan;

    impl DialSpan {
        #[inline]
        pub(crate) fn none() -> Self {
            Self
        }

        #[inline]
        pub(crate) fn begin(&mut self, _: AgentId) {}

        #[inline]
        pub(crate) fn end(&mut self, f: impl FnOnce()) {
            f();
        }

        #[inline]
        pub(crate) fn in_scope<T>(&self, f: impl FnOnce() -> T) -> T {
            f()
        }

        #[inline]
        pub(crate) fn failed(&self, _: &BoxError) {}
    }

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
