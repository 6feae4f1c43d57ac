//! The URLs of the servers that `tests/servers` has started.

use std::{
    env,
    io::Write,
    sync::atomic::{AtomicU32, Ordering},
};

/// Returns the URL in a variable. Without it the test is skipped with a message, or fails in CI.
pub fn url(variable: &str) -> Option<String> {
    if let Some(url) = env::var(variable).ok().filter(|url| !url.is_empty()) {
        return Some(url);
    }
    left_out(&format!("{variable} is not set; run tests/servers cargo test"));
    None
}

/// Prints that this test is skipped, and why. In CI, fails the test.
pub fn left_out(why: &str) {
    assert!(env::var("CI").as_deref() != Ok("true"), "nothing may be left out in CI: {why}");
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    // Not `eprintln`, which the test harness captures; and in one write, since tests run
    // concurrently.
    let left_out = format!("left out: {test}, {why}\n");
    let _ = std::io::stderr().write_all(left_out.as_bytes());
}

/// Returns a unique table name, so that concurrent runs on a user's server do not interfere.
pub fn table() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let run = &uuid::Uuid::new_v4().simple().to_string()[..12];
    format!("tower_bound_agent_{run}_{}", COUNT.fetch_add(1, Ordering::Relaxed))
}
