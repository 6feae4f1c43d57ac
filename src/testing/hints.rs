//! The contract of [`Hints`] as tests.
//!
//! [`hints_contract_tests!`](crate::hints_contract_tests) makes one `#[test]` of each function in
//! [`cases`]. It takes a function, async or not, that returns a fresh [`TestBus`]. Every bus that
//! can be cloned is one:
//!
//! ```
//! use tower_bound_agent::hints::LocalHints;
//!
//! # fn main() {}
//! mod contract {
//!     use super::*;
//!     tower_bound_agent::hints_contract_tests!(LocalHints::new);
//! }
//! ```
//!
//! As for [stores](super::store), the function may return something to keep beside the bus, and an
//! `Option` of either. A bus between processes has a connection that can break, and input that it
//! cannot read; a type of your own that implements [`TestBus`] says how to provoke both.

use super::run;
use crate::hints::Hints;
use std::future::ready;

pub mod cases;

/// A bus under test.
///
/// A type of your own implements it for a bus between processes. Its methods are `async`; it must
/// not implement [`Hints`] itself.
///
/// ```
/// use tower_bound_agent::testing::hints::TestBus;
/// # use tower_bound_agent::hints::LocalHints as BrokerHints;
/// # use std::io;
/// # struct Broker(BrokerHints);
/// # impl Broker {
/// #     async fn start() -> io::Result<Self> { Ok(Self(BrokerHints::new())) }
/// #     fn publish(&self, _: &str) {}
/// # }
///
/// /// A broker of one test.
/// struct Bus(Broker);
///
/// impl TestBus for Bus {
///     type Hints = BrokerHints;
///
///     async fn end(&self) -> BrokerHints {
///         // … connects one more client to `self.0` …
/// #       self.0.0.clone()
///     }
///
///     async fn send_unreadable(&self) -> bool {
///         self.0.publish("no hint");
///         true
///     }
/// }
///
/// mod contract {
///     tower_bound_agent::hints_contract_tests!(async || super::Bus(super::Broker::start().await.unwrap()));
/// }
/// # fn main() {}
/// ```
pub trait TestBus: Send + Sync + 'static {
    /// The bus as one process has it.
    type Hints: Hints;

    /// Returns the bus as one more process has it. All ends receive each other's hints.
    fn end(&self) -> impl Future<Output = Self::Hints> + Send;

    /// Breaks the connections over which all ends listen, so that hints may be lost. The ends may
    /// connect again at once. Returns `false` if there is no connection that could break, which
    /// leaves the case out.
    fn disconnect(&self) -> impl Future<Output = bool> + Send {
        ready(false)
    }

    /// Sends all ends an input that is no hint. Returns `false` if the bus can carry nothing but
    /// hints; the case is left out then.
    fn send_unreadable(&self) -> impl Future<Output = bool> + Send {
        ready(false)
    }
}

/// A bus within one process: its clones are its ends.
impl<H: Hints + Clone> TestBus for H {
    type Hints = H;

    fn end(&self) -> impl Future<Output = H> + Send {
        ready(self.clone())
    }
}

/// Hands the names of all cases to another macro, after the tokens `$with`.
#[doc(hidden)]
#[macro_export]
macro_rules! __hints_contract_cases {
    ($($then:ident)::+ ! { $($with:tt)* }) => {
        $($then)::+! { $($with)*
            a_hint_reaches_every_listener
            every_part_of_a_hint_survives
            a_hint_is_received_as_it_was_sent
            listening_begins_when_listen_returns
            a_listener_that_falls_behind_hears_that_something_was_lost
            a_connection_that_is_lost_is_heard_as_lagged
            unreadable_input_is_heard_as_lagged
            sending_does_not_wait
            dropping_a_stream_ends_what_worked_for_it
            dropping_a_stream_ends_no_other
        }
    };
}

/// Makes a `#[test]` of every promise of [`Hints`](crate::hints::Hints), each with a fresh bus from
/// the given function.
///
/// The tests are functions in the module in which the macro stands, named as in
/// [`testing::hints::cases`](crate::testing::hints::cases); give them a module of their own.
/// [`testing::hints`](crate::testing::hints) says what the function may return.
///
/// ```
/// # fn main() {}
/// #[cfg(test)]
/// mod contract {
///     tower_bound_agent::hints_contract_tests!(tower_bound_agent::hints::LocalHints::new);
/// }
/// ```
#[macro_export]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
macro_rules! hints_contract_tests {
    ($make:expr $(,)?) => {
        $crate::__hints_contract_cases! { $crate::__hints_contract_test! { ($make) } }
    };
}

/// One `#[test]` for each name.
#[doc(hidden)]
#[macro_export]
macro_rules! __hints_contract_test {
    (($make:expr) $($case:ident)+) => { $(
        #[test]
        fn $case() {
            $crate::testing::hints::__run(
                ::core::stringify!($case),
                $make,
                |bus| $crate::testing::hints::cases::$case(bus),
            );
        }
    )+ };
}

macro_rules! names {
    ($($case:ident)+) => {
        /// The names of all [`cases`].
        pub const CASES: &[&str] = &[$(stringify!($case)),+];
    };
}
__hints_contract_cases! { names! {} }

/// A value that a function may return to [`hints_contract_tests!`](crate::hints_contract_tests).
pub trait MadeBus {
    /// The bus.
    type Bus: TestBus;
    /// A value that is kept until the case has ended.
    type Kept;

    /// Returns the two; `None` leaves the case out.
    fn made(self) -> Option<(Self::Bus, Self::Kept)>;
}

impl<B: TestBus> MadeBus for B {
    type Bus = B;
    type Kept = ();

    fn made(self) -> Option<(B, ())> {
        Some((self, ()))
    }
}

impl<B: TestBus, Kept> MadeBus for (B, Kept) {
    type Bus = B;
    type Kept = Kept;

    fn made(self) -> Option<Self> {
        Some(self)
    }
}

impl<Made: MadeBus> MadeBus for Option<Made> {
    type Bus = Made::Bus;
    type Kept = Made::Kept;

    fn made(self) -> Option<(Made::Bus, Made::Kept)> {
        self.and_then(Made::made)
    }
}

/// A function that returns a bus, at once or in a future. `How` tells the two apart.
#[doc(hidden)]
pub trait MakeBus<How> {
    type Made: MadeBus;

    fn make(self) -> impl Future<Output = Self::Made>;
}

impl<F: FnOnce() -> Made, Made: MadeBus> MakeBus<run::AtOnce> for F {
    type Made = Made;

    async fn make(self) -> Made {
        self()
    }
}

impl<F: FnOnce() -> Fut, Fut: Future<Output: MadeBus>> MakeBus<run::InAFuture> for F {
    type Made = Fut::Output;

    async fn make(self) -> Fut::Output {
        self().await
    }
}

#[doc(hidden)]
pub fn __run<How, M, Case>(
    name: &str,
    make: M,
    case: impl FnOnce(<M::Made as MadeBus>::Bus) -> Case,
) where
    M: MakeBus<How>,
    Case: Future<Output = ()>,
{
    run::block_on(
        "hints::cases",
        name,
        Box::pin(async {
            match make.make().await.made() {
                Some((bus, _kept)) => case(bus).await,
                None => run::left_out(name, "there is no bus to test"),
            }
        }),
    );
}
