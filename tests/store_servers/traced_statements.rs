//! The statements that sqlx logs.

use std::{cell::RefCell, sync::Once};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context, prelude::*};

thread_local! {
    /// The statements that sqlx has run on this thread, if the thread records them.
    static SENT: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Shared by all tests, because the events that a thread-local subscriber misses depend on the
/// other threads.
struct Listener;

#[derive(Default)]
struct Text {
    summary: String,
    statement: String,
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "summary" => value.clone_into(&mut self.summary),
            "db.statement" => value.trim().clone_into(&mut self.statement),
            _ => {}
        }
    }
    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

impl<S: Subscriber> Layer<S> for Listener {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "sqlx::query" {
            let mut text = Text::default();
            event.record(&mut text);
            let text = if text.statement.is_empty() { text.summary } else { text.statement };
            // Removes the statement's own setting, which precedes it in a comment.
            let text =
                text.split_once("*/ ").map_or(text.clone(), |(_, statement)| statement.to_owned());
            SENT.with_borrow_mut(|sent| sent.iter_mut().for_each(|sent| sent.push(text.clone())));
        }
    }
}

/// Begins to record the statements of this thread.
pub(crate) fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing_subscriber::registry().with(Listener).init());
    SENT.set(Some(Vec::new()));
}

/// Returns the statements since the last call.
pub(crate) fn sent() -> Vec<String> {
    SENT.replace(Some(Vec::new())).unwrap()
}

/// Returns the first words of the statements since the last call.
pub(crate) fn words() -> Vec<String> {
    sent()
        .iter()
        .map(|text| text.split_whitespace().next().unwrap_or_default().to_owned())
        .collect()
}
