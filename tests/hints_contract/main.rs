//! The contract of hint buses (`tower_bound_agent::testing::hints`), held against the buses of this
//! crate and against that of the example; and tested: each planted fault is found by its case.

mod faulty;

use faulty::FaultyBus;
use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
};
use tower_bound_agent::testing::hints::{CASES, cases};

mod local {
    tower_bound_agent::hints_contract_tests!(tower_bound_agent::hints::LocalHints::new);
}

mod without_a_fault {
    tower_bound_agent::hints_contract_tests!(|| super::FaultyBus::new(None));
}

mod that_sends_in_its_stream {
    tower_bound_agent::hints_contract_tests!(super::FaultyBus::that_sends_in_its_stream);
}

mod own_bus;
#[cfg(feature = "postgres")]
mod postgres;

/// The faults, each with a case that must find it.
macro_rules! faults {
    ($($case:ident: $($fault:ident)+;)+) => {
        #[derive(Clone, Copy, Debug, PartialEq)]
        enum Fault { $($($fault),+),+ }

        type Run = fn(FaultyBus) -> Result<(), String>;

        const FAULTS: &[(Fault, &str, Run)] = &[
            $($((Fault::$fault, stringify!($case), |bus| run(Fault::$fault != Fault::SendingWaits, cases::$case(bus)))),+),+
        ];
    };
}

faults! {
    a_hint_reaches_every_listener: NothingIsCarried OnlyTheFirstStreamOfAnEndHears;
    every_part_of_a_hint_survives: OriginsAreLost GenerationsAreLost EpochsAreLost RevisionsAreLost;
    a_hint_is_received_as_it_was_sent: HintsAreInvented;
    listening_begins_when_listen_returns: ListeningBeginsWithTheFirstPoll;
    a_listener_that_falls_behind_hears_that_something_was_lost: LostHintsAreNotTold;
    a_connection_that_is_lost_is_heard_as_lagged:
        ALostConnectionIsNotTold ALostConnectionEndsTheStream NothingIsHeardAfterALostConnection;
    unreadable_input_is_heard_as_lagged:
        UnreadableInputIsNotTold UnreadableInputEndsTheStream;
    sending_does_not_wait: SendingWaits;
    dropping_a_stream_ends_what_worked_for_it: ATaskOutlivesItsStream;
    dropping_a_stream_ends_no_other: ADroppedStreamEndsTheOthers;
}

/// Runs a case. On a paused clock, waiting for a hint that does not arrive takes no time, unless a
/// thread is blocked.
fn run(is_paused: bool, case: impl Future<Output = ()>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(is_paused)
        .build()
        .unwrap();
    let result = catch_unwind(AssertUnwindSafe(|| runtime.block_on(case)));
    runtime.shutdown_background();
    result.map_err(|panic| panic.downcast_ref::<String>().cloned().unwrap_or_default())
}

#[test]
fn every_fault_is_found_by_its_case() {
    let mut missed = Vec::new();
    for (fault, case, run) in FAULTS {
        match run(FaultyBus::new(Some(*fault))) {
            Ok(()) => missed.push(format!("{case} does not find {fault:?}")),
            Err(said) => println!("{fault:?}, {case}: {said}"),
        }
    }
    assert!(missed.is_empty(), "of {} faults: {missed:#?}", FAULTS.len());
}

#[test]
fn every_case_finds_a_fault() {
    let named: BTreeSet<_> = FAULTS.iter().map(|(_, case, _)| *case).collect();
    assert!(CASES.iter().all(|case| named.contains(case)), "{named:?}");
}
