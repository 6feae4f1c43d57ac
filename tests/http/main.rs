//! HTTP to agents over real sockets: the connector, the client and its pool.

/// Makes tests of these functions, on a runtime of one thread and on one of several. One that is
/// not listed is not used, which the compiler says.
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
mod reuse;
mod streams;
mod unanswered_requests;
