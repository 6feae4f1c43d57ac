//! The lines at *info* and above that this crate has logged on a test's thread, and its spans.

use std::{
    cell::RefCell,
    fmt::{Debug, Write},
    sync::Once,
};
use tokio::time::Instant;
use tracing::{
    Event, Level, Subscriber, field,
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{Layer, layer::Context, prelude::*, registry::LookupSpan};

thread_local! {
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static SPANS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct Collect;

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl field::Visit for Line {
    fn record_debug(&mut self, field: &field::Field, value: &dyn Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

/// A span that is open: its fields so far, and when it began.
struct Open(Line, Instant);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Collect {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, of: Context<'_, S>) {
        let mut line = Line::default();
        attributes.record(&mut line);
        if let Some(span) = of.span(id) {
            span.extensions_mut().insert(Open(line, Instant::now()));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, of: Context<'_, S>) {
        if let Some(span) = of.span(id)
            && let Some(Open(line, _)) = span.extensions_mut().get_mut()
        {
            values.record(line);
        }
    }

    fn on_close(&self, id: Id, of: Context<'_, S>) {
        let Some(span) = of.span(&id) else { return };
        if !span.metadata().target().starts_with("tower_bound_agent") {
            return;
        }
        let path: Vec<_> = span.scope().from_root().map(|span| span.name()).collect();
        if let Some(Open(line, began)) = span.extensions_mut().get_mut() {
            let took = began.elapsed();
            let line = format!("{}{} took={took:?}", path.join("/"), line.fields);
            SPANS.with_borrow_mut(|spans| spans.push(line));
        }
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        if metadata.target().starts_with("tower_bound_agent") && *metadata.level() <= Level::INFO {
            let mut line = Line::default();
            event.record(&mut line);
            let line = format!("{} {}{}", metadata.level(), line.message, line.fields);
            LINES.with_borrow_mut(|lines| lines.push(line));
        }
    }
}

/// Begins to collect. For all threads: with a subscriber for each, what one thread has found out
/// about a callsite holds for another.
pub fn collect() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing_subscriber::registry().with(Collect).init());
    LINES.take();
    SPANS.take();
}

/// Returns the spans that have ended since the last look, with their parents, their fields and for
/// how long they were open.
#[must_use]
pub fn spans() -> Vec<String> {
    SPANS.take()
}

/// Returns the lines since the last look, and forgets none of them.
#[must_use]
pub fn all() -> Vec<String> {
    LINES.with_borrow(Clone::clone)
}

/// Returns the lines since the last look.
#[must_use]
pub fn lines() -> Vec<String> {
    LINES.take()
}
