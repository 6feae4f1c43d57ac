//! The log: lines on standard error, as text or as JSON.

use crate::config::{Log, LogFormat};
use std::io;
use tracing_subscriber::{Layer, filter::Targets, fmt, prelude::*};

/// Parses a list of levels; `None` if it is none.
pub(crate) fn filter(text: &str) -> Option<Targets> {
    text.parse().ok()
}

/// Installs the subscriber of this process. A second call does nothing.
pub fn install(log: &Log) {
    let filter = filter(&log.filter).unwrap_or_default();
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(false);
    let lines = match log.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // An error means that the program has a subscriber of its own.
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
}

/// Formats an error and its sources on one line.
pub fn with_sources(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}
