//! Runs one case of a contract: the runtime, the bound, and what is printed.

use std::{
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::Duration,
};
use tokio::{runtime::Builder, time::timeout};

/// The most time that a case may take: a verb that never answers fails its case, it does not stop
/// the test run.
const LIMIT: Duration = Duration::from_secs(300);

/// How long tasks of the subject that cannot be cancelled are waited for.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// How a function returns what it makes; never a value. In public interfaces, but not of them.
#[derive(Debug)]
pub struct AtOnce;

/// As [`AtOnce`].
#[derive(Debug)]
pub struct InAFuture;

/// Runs `case` on a runtime of its own. `contract` is the module that describes the case.
///
/// Several threads: a case that starts tasks runs them at the same time.
pub(super) fn block_on(contract: &str, name: &str, case: impl Future<Output = ()>) {
    let runtime = Builder::new_multi_thread().worker_threads(4).enable_all().build();
    let runtime = runtime.expect("a runtime for the case");
    let done =
        catch_unwind(AssertUnwindSafe(|| runtime.block_on(async { timeout(LIMIT, case).await })));
    // Not by `Drop`, which waits without a bound for what blocks a thread.
    runtime.shutdown_timeout(SHUTDOWN);
    let failed = match done {
        Ok(Ok(())) => return,
        Ok(Err(_)) => Box::new(format!("{name} has not ended within {LIMIT:?}")),
        Err(panic) => {
            eprintln!("what this case proves: tower_bound_agent::testing::{contract}::{name}");
            resume_unwind(panic);
        }
    };
    panic!("{failed}");
}

/// Says on standard error that a case is left out. Not by `eprintln`, which the test harness keeps
/// to itself, and in one piece, since tests run side by side.
pub(super) fn left_out(name: &str, why: &str) {
    let line = format!("left out: {name}, {why}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}
