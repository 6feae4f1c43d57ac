//! HTTP to agents over real sockets: the connector, the client and its pool.

/// Makes tests of these functions, on a current-thread runtime and on a multi-threaded one. The
/// compiler reports a function that is not listed as unused.
macro_rules! on_both_runtimes {
    ($($test:ident,)*) => {
        mod on_one_thread {
            $(#[tokio::test]
            async fn $test() {
                super::$test().await;
            })*
        }
        mod on_several_threads {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test().await;
            })*
        }
    };
}

mod connector;
mod evidence;
mod failures;
mod hop;
mod http2;
mod in_process;
mod limits;
mod moves;
mod operating;
mod reuse;
mod streams;
mod unanswered_requests;
