//! For tests of your own: the contracts of stores and hint buses as tests, and constructors for
//! what callers receive. Feature `testing`; meant for `[dev-dependencies]`.
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
//!   observer receives.

mod bound;
mod error;
pub mod event;
pub mod hints;
mod outcome;
mod run;
pub mod store;

pub use bound::{BoundBuilder, BoundControl};
pub use error::ErrorBuilder;
pub use outcome::outcome;
