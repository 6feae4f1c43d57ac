//! Runs one case of a contract: its runtime, its time limit, and its output.

use std::{
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    time::Duration,
};
use tokio::{runtime::Builder, time::timeout};

/// The time limit of a case, so that a verb that never answers fails its case and does not stop the
/// test run.
const LIMIT: Duration = Duration::from_secs(300);

/// How long the runtime waits for tasks of the subject that cannot be cancelled.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// How a function returns what it makes; never a value. In public interfaces, but not of them.
#[derive(Debug)]
pub struct AtOnce;

/// As [`AtOnce`].
#[derive(Debug)]
pub struct InAFuture;

/// Runs `case` on a runtime of its own. `contract` is the module that describes the case.
///
/// The runtime has several threads, so that the tasks of a case run in parallel.
/// In a box, so that the runtime is compiled once and not for each case and store.
pub(super) fn block_on(contract: &str, name: &str, case: Pin<Box<dyn Future<Output = ()> + '_>>) {
    let runtime = Builder::new_multi_thread().worker_threads(4).enable_all().build();
    let runtime = runtime.expect("a runtime for the case");
    let done =
        catch_unwind(AssertUnwindSafe(|| runtime.block_on(async { timeout(LIMIT, case).await })));
    // Not dropped, because `Drop` waits without a limit for blocked threads.
    runtime.shutdown_timeout(SHUTDOWN);
    let failed = match done {
        Ok(Ok(())) => return,
        Ok(Err(_)) => Box::new(format!("{name} has not ended within {LIMIT:?}")),
        Err(panic) => {
            eprintln!("documentation of this case: tower_bound_agent::testing::{contract}::{name}");
            resume_unwind(panic);
        }
    };
    panic!("{failed}");
}

/// Prints to standard error that a case is skipped. Not with `eprintln`, which the test harness
/// captures, and in one write, since tests run concurrently.
pub(super) fn left_out(name: &str, why: &str) {
    let line = format!("left out: {name}, {why}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}
