//! For tests of your own: the contracts of stores and hint buses as tests, and constructors for the
//! values that callers receive. Feature `testing`; meant for `[dev-dependencies]`.
//!
//! ```toml
//! [dev-dependencies]
//! tower-bound-agent = { version = "0.1", default-features = false, features = ["testing"] }
//! ```
//!
//! * [`store_contract_tests!`](crate::store_contract_tests) runs the contract of
//!   [`BindingStore`](crate::store::BindingStore) over a store of yours, a `#[test]` for each
//!   promise: see [`store`].
//! * [`hints_contract_tests!`](crate::hints_contract_tests) does the same for
//!   [`Hints`](crate::hints::Hints): see [`hints`].
//! * [`BoundBuilder`], [`outcome`] and [`ErrorBuilder`] make what a call returns, [`event`] what an
//!   observer receives, [`current`], [`session_in_use`] and [`retargeted`] what
//!   [`Bindings`](crate::Bindings) returns.
#![cfg_attr(
    feature = "http",
    doc = "* [`hyper_error`] makes the cause of an error of the HTTP client."
)]

mod bindings;
mod bound;
mod error;
pub mod event;
pub mod hints;
#[cfg(feature = "http")]
mod hyper_error;
mod outcome;
mod run;
pub mod store;

pub use bindings::{RetargetedControl, current, retargeted, session_in_use};
pub use bound::{BoundBuilder, BoundControl};
pub use error::ErrorBuilder;
#[cfg(feature = "http")]
#[cfg_attr(docsrs, doc(cfg(feature = "http")))]
pub use hyper_error::hyper_error;
pub use outcome::outcome;
