//! The contract of [`BindingStore`] as tests.
//!
//! [`store_contract_tests!`](crate::store_contract_tests) makes one `#[test]` of each function in
//! [`cases`]. It takes a function, async or not, that returns a *fresh* store: one that has no rows
//! yet and shares none with the store of another test, since tests run side by side.
//!
//! ```
//! use tower_bound_agent::store::MemoryStore;
//!
//! # fn main() {}
//! mod contract {
//!     use super::*;
//!     tower_bound_agent::store_contract_tests!(make_store);
//! }
//!
//! async fn make_store() -> MemoryStore {
//!     MemoryStore::new()
//! }
//! ```
//!
//! The function returns one of
//!
//! * the store,
//! * the store and something that is kept until the case has ended, such as a temporary folder,
//! * an `Option` of either. `None` skips the case with a message on standard error, for example
//!   without a server.
//!
//! The runtime is Tokio's, with several threads, and is built for each case; a case ends after five
//! minutes at the latest. Errors of the store fail the case, so the store must reach its database.
//!
//! # What is tested
//!
//! The promises in the documentation of [`BindingStore`], and no more. Revisions must grow, by any
//! amount; epochs as well. The verbs of housekeeping are tested if the store has them. Not tested,
//! because no test of a store in general can provoke it: which [`StoreError`] an outage gives, and
//! that `replace_agent` leaves locked rows out.
//!
//! A case that fails names the verb and its row. The documentation of the case, here in [`cases`],
//! quotes the promise. One case can be run by itself:
//!
//! ```
//! use tower_bound_agent::{store::MemoryStore, testing::store::cases};
//!
//! # #[tokio::main(flavor = "multi_thread", worker_threads = 2)]
//! # async fn main() {
//! cases::exactly_one_concurrent_creation_is_applied(MemoryStore::new()).await;
//! # }
//! ```

use super::run;
use crate::store::BindingStore;

#[cfg(doc)]
use crate::store::StoreError;

pub mod cases;
mod checked;
mod random;
mod rows;

/// Hands the names of all cases to another macro, after the tokens `$with`.
#[doc(hidden)]
#[macro_export]
macro_rules! __store_contract_cases {
    ($($then:ident)::+ ! { $($with:tt)* }) => {
        $($then)::+! { $($with)*
            a_missing_row_is_none_everywhere
            a_created_row_is_loaded
            every_value_survives
            a_second_creation_gets_the_first_row
            a_swap_at_the_read_revision_replaces_workspace_and_target
            a_swap_at_any_other_revision_writes_nothing
            a_swap_sent_twice_leaves_the_row_as_after_once
            a_write_that_changes_nothing_raises_the_revision
            a_removed_agent_becomes_the_previous_one
            a_verb_on_one_row_leaves_all_others_alone
            a_retarget_creates_keeps_or_clears
            an_unbind_keeps_the_workspace
            a_command_makes_earlier_reads_too_late
            a_forget_compares_only_if_asked_to
            a_late_write_does_not_bring_a_forgotten_row_back
            revisions_go_on_after_a_row_was_forgotten
            the_agent_of_a_forgotten_row_is_the_next_ones_previous
            a_child_begins_with_what_the_row_of_its_parent_has
            a_child_that_exists_is_left_alone
            a_child_without_a_parent_is_not_created
            a_child_of_a_target_of_an_ended_epoch_is_unbound
            a_reset_drops_the_targets_of_one_workspace
            a_reset_begins_the_next_epoch_also_of_a_workspace_without_rows
            every_row_has_the_epoch_of_its_workspace
            a_target_of_another_epoch_does_not_count
            a_group_repair_writes_rows_of_its_own_epoch
            a_group_repair_writes_rows_of_earlier_generations
            a_group_repair_without_generations_writes_rows_of_the_stale_agent
            a_group_repair_from_no_generation_to_one
            a_group_repair_from_a_generation_to_none
            a_group_repair_to_another_address_of_the_same_agent
            a_group_repair_to_no_address_of_the_same_agent
            a_group_repair_writes_no_more_than_its_limit
            a_limit_above_the_batch_means_the_batch
            many_are_loaded_at_once
            a_batch_is_loaded_at_once
            a_dropped_verb_leaves_the_old_or_the_new_row
            a_command_survives_concurrent_repairs
            exactly_one_swap_at_a_revision_is_applied
            exactly_one_concurrent_creation_is_applied
            no_write_to_one_row_is_lost
            no_write_to_many_rows_is_lost
            a_load_sees_every_write_that_ended_before_it
            a_concurrent_group_repair_undoes_no_command
            no_target_outlives_a_concurrent_reset
            random_commands_give_the_answers_of_the_memory_store
            a_missing_verb_of_housekeeping_is_reported
            the_rows_used_last_come_first
            a_recorded_use_leaves_the_row_as_it_was
            nothing_is_purged_as_idle_without_a_record_of_use
            an_idle_row_is_purged_as_if_it_were_forgotten
            a_row_that_was_just_forgotten_is_not_purged
        }
    };
}

/// Makes a `#[test]` of every promise of [`BindingStore`](crate::store::BindingStore), each with a
/// fresh store from the given function.
///
/// The tests are functions in the module in which the macro stands, named as in
/// [`testing::store::cases`](crate::testing::store::cases); give them a module of their own. What
/// the function may return, and what is tested: [`testing::store`](crate::testing::store).
///
/// ```
/// # fn main() {}
/// #[cfg(test)]
/// mod contract {
///     use tower_bound_agent::store::MemoryStore;
///
///     tower_bound_agent::store_contract_tests!(async || MemoryStore::new());
/// }
/// ```
#[macro_export]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
macro_rules! store_contract_tests {
    ($make:expr $(,)?) => {
        $crate::__store_contract_cases! { $crate::__store_contract_test! { ($make) } }
    };
}

/// One `#[test]` for each name.
#[doc(hidden)]
#[macro_export]
macro_rules! __store_contract_test {
    (($make:expr) $($case:ident)+) => { $(
        #[test]
        fn $case() {
            $crate::testing::store::__run(
                ::core::stringify!($case),
                $make,
                |store| $crate::testing::store::cases::$case(store),
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
__store_contract_cases! { names! {} }

/// The return value of a function for [`store_contract_tests!`](crate::store_contract_tests).
pub trait MadeStore {
    /// The store.
    type Store: BindingStore;
    /// A value that is kept until the case has ended.
    type Kept;

    /// Returns the two; `None` leaves the case out.
    fn made(self) -> Option<(Self::Store, Self::Kept)>;
}

impl<St: BindingStore> MadeStore for St {
    type Store = St;
    type Kept = ();

    fn made(self) -> Option<(St, ())> {
        Some((self, ()))
    }
}

impl<St: BindingStore, Kept> MadeStore for (St, Kept) {
    type Store = St;
    type Kept = Kept;

    fn made(self) -> Option<Self> {
        Some(self)
    }
}

impl<Made: MadeStore> MadeStore for Option<Made> {
    type Store = Made::Store;
    type Kept = Made::Kept;

    fn made(self) -> Option<(Made::Store, Made::Kept)> {
        self.and_then(Made::made)
    }
}

/// A function that returns a store, at once or in a future. `How` tells the two apart.
#[doc(hidden)]
pub trait MakeStore<How> {
    type Made: MadeStore;

    fn make(self) -> impl Future<Output = Self::Made>;
}

impl<F: FnOnce() -> Made, Made: MadeStore> MakeStore<run::AtOnce> for F {
    type Made = Made;

    async fn make(self) -> Made {
        self()
    }
}

impl<F: FnOnce() -> Fut, Fut: Future<Output: MadeStore>> MakeStore<run::InAFuture> for F {
    type Made = Fut::Output;

    async fn make(self) -> Fut::Output {
        self().await
    }
}

#[doc(hidden)]
pub fn __run<How, M, Case>(
    name: &str,
    make: M,
    case: impl FnOnce(<M::Made as MadeStore>::Store) -> Case,
) where
    M: MakeStore<How>,
    Case: Future<Output = ()>,
{
    run::block_on(
        "store::cases",
        name,
        Box::pin(async {
            match make.make().await.made() {
                Some((store, _kept)) => case(store).await,
                None => run::left_out(name, "there is no store to test"),
            }
        }),
    );
}
