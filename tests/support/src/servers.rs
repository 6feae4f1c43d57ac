//! Where the servers are that `tests/servers` has started.

use std::{
    env,
    io::Write,
    sync::atomic::{AtomicU32, Ordering},
};

/// The URL in a variable. Without it the test is left out, which is said, and which CI does not
/// allow.
pub fn url(variable: &str) -> Option<String> {
    if let Some(url) = env::var(variable).ok().filter(|url| !url.is_empty()) {
        return Some(url);
    }
    left_out(&format!("{variable} is not set; run tests/servers cargo test"));
    None
}

/// Says that this test is left out, and why. CI does not allow it.
pub fn left_out(why: &str) {
    assert!(env::var("CI").as_deref() != Ok("true"), "nothing may be left out in CI: {why}");
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    // Not `eprintln`, which the test harness keeps to itself; and in one piece, since tests run
    // side by side.
    let left_out = format!("left out: {test}, {why}\n");
    let _ = std::io::stderr().write_all(left_out.as_bytes());
}

/// A name for a table of one test: on a server of the user's, runs must not meet either.
pub fn table() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let run = &uuid::Uuid::new_v4().simple().to_string()[..12];
    format!("tower_bound_agent_{run}_{}", COUNT.fetch_add(1, Ordering::Relaxed))
}
