//! The lines at *info* and above that this crate has logged on a test's thread.

use std::{
    cell::RefCell,
    fmt::{Debug, Write},
    sync::Once,
};
use tracing::{Event, Level, Subscriber, field};
use tracing_subscriber::{Layer, layer::Context, prelude::*};

thread_local! {
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
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

impl<S: Subscriber> Layer<S> for Collect {
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
