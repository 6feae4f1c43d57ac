//! The contract of a store, tested: each of these faults is found, each case finds at least one,
//! and the same store without a fault passes all cases.

mod store;

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
};
use store::FaultyStore;
use tower_bound_agent::testing::store::{CASES, cases};

mod without_a_fault {
    tower_bound_agent::store_contract_tests!(|| super::FaultyStore::new(None));
}

/// The faults, each with a case that must find it.
macro_rules! faults {
    ($($case:ident: $($fault:ident)+;)+) => {
        #[derive(Clone, Copy, Debug, PartialEq)]
        enum Fault { $($($fault),+),+ }

        type Run = fn(FaultyStore) -> Result<(), String>;

        const FAULTS: &[(Fault, &str, Run)] = &[
            $($((Fault::$fault, stringify!($case), |store| run(cases::$case(store)))),+),+
        ];
    };
}

faults! {
    a_missing_row_is_none_everywhere: NothingIsForgottenAsWell ASwapCreates AnUnbindCreates;
    a_created_row_is_loaded:
        ACreationIsNotKept AnUnboundCreationIsNotKept BuildsAreLost AWriteReturnsAnotherRevision;
    every_value_survives:
        GenerationsHaveThirtyTwoBits AnEmptyAddressIsNone AddressesAreAscii AddressesAreCut;
    a_second_creation_gets_the_first_row:
        ACreationOverwrites ACreationOverwritesItsWorkspace ACreationHidesTheRowInTheWay;
    a_swap_at_the_read_revision_replaces_workspace_and_target:
        ASwapKeepsTheWorkspace ASwapNeverUnbinds ASwapReturnsTheRowBefore;
    a_swap_at_any_other_revision_writes_nothing:
        ASwapIgnoresTheRevision ASwapTakesOlderRevisions ASwapTakesNewerRevisions
        ASwapHidesTheRowInTheWay AConflictIsWritten;
    a_swap_sent_twice_leaves_the_row_as_after_once: ASwapThatIsThereIsNoConflict;
    a_write_that_changes_nothing_raises_the_revision:
        ASwapThatChangesNothingIsNotWritten ARetargetThatChangesNothingIsNotWritten
        AnUnbindLowersTheRevision AResetLeavesUnboundRows;
    a_removed_agent_becomes_the_previous_one:
        ASwapLeavesNoPrevious ARetargetLeavesNoPrevious AnUnbindLeavesNoPrevious
        AResetLeavesNoPrevious AGroupRepairLeavesNoPrevious AnAgentIsItsOwnPrevious
        PreviousHasNoGeneration PreviousKeepsAnEarlierGeneration PreviousIsClearedByTheNextWrite;
    a_verb_on_one_row_leaves_all_others_alone: AnUnbindUnbindsTheWholeWorkspace;
    a_retarget_creates_keeps_or_clears:
        ARetargetDoesNotCreate ARetargetKeepsTheTarget ARetargetDropsTheTarget;
    an_unbind_keeps_the_workspace: AnUnbindDeletes AnUnbindReturnsNoRow;
    a_command_makes_earlier_reads_too_late: AnUnbindThatChangesNothingIsNotWritten;
    a_forget_compares_only_if_asked_to:
        AForgetIgnoresTheRevision AForgetTakesOlderRevisions AForgetAlwaysCompares
        ARowIsForgottenTwice ALoadFindsDeletedRows;
    a_late_write_does_not_bring_a_forgotten_row_back:
        AForgottenRowIsUnbound ASwapRevivesADeletedRow AResetCountsDeletedRows
        AGroupRepairWritesDeletedRows;
    revisions_go_on_after_a_row_was_forgotten:
        AForgottenRowLeavesNoRevision ARetargetStartsAgain AChildStartsAgain;
    the_agent_of_a_forgotten_row_is_the_next_ones_previous: AForgottenRowLeavesNoPrevious;
    a_child_begins_with_what_the_row_of_its_parent_has:
        AChildInheritsThePrevious AChildIsUnbound AChildTakesTheTargetAway;
    a_child_that_exists_is_left_alone: AChildIsOverwritten AChildWithoutAParentIsHidden;
    a_child_without_a_parent_is_not_created:
        AChildWithoutAParentIsCreated AChildInheritsFromADeletedRow;
    a_child_of_a_target_of_an_ended_epoch_is_unbound: AChildForgetsTheEpoch;
    a_reset_drops_the_targets_of_one_workspace:
        AResetWritesNoRows AResetCountsBoundRowsOnly AResetDropsTheTargetsOfAllWorkspaces;
    a_reset_begins_the_next_epoch_also_of_a_workspace_without_rows:
        AResetOfNoRowsBeginsNoEpoch AResetBeginsNoEpoch;
    every_row_has_the_epoch_of_its_workspace:
        RowsSayTheEpochOfTheirTarget OneEpochForAllWorkspaces;
    a_target_of_another_epoch_does_not_count:
        TargetsOfEarlierEpochsCount TargetsOfLaterEpochsCount ASwapForgetsItsEpoch
        ManyIncludeTargetsOfOtherEpochs;
    a_group_repair_writes_rows_of_its_own_epoch: AGroupRepairIgnoresTheEpoch;
    a_group_repair_writes_rows_of_earlier_generations:
        AGroupRepairIgnoresTheWorkspace AGroupRepairGoesByAgentsOnly AGroupRepairKeepsOtherAgents
        AGroupRepairWritesEqualNumbers AGroupRepairWritesRowsAhead
        AGroupRepairWritesRowsWithoutANumber AGroupRepairBindsUnboundRows
        AGroupRepairKeepsTheRevision;
    a_group_repair_without_generations_writes_rows_of_the_stale_agent:
        AGroupRepairByAgentWritesNumberedRows AGroupRepairWritesAllAgents;
    a_group_repair_from_no_generation_to_one: AGroupRepairComparesTheFirstNumber;
    a_group_repair_from_a_generation_to_none: AGroupRepairToNoNumberUnlearnsNumbers;
    a_group_repair_to_another_address_of_the_same_agent: AGroupRepairIgnoresAddresses;
    a_group_repair_to_no_address_of_the_same_agent:
        AGroupRepairComparesBuilds AGroupRepairTakesAnEmptyAddressForNone;
    a_group_repair_writes_no_more_than_its_limit:
        AGroupRepairIgnoresItsLimit ALimitOfZeroIsNone ALimitCountsRowsThatAreNotBehind
        AGroupRepairBeginsWithTheLastRow AGroupRepairSaysHowManyAreBehind;
    a_limit_above_the_batch_means_the_batch:
        ALimitAboveTheBatchIsRefused ALimitAboveTheBatchIsTaken;
    many_are_loaded_at_once:
        ManyAreLoadedAsOftenAsNamed NoSessionsMeansAll ManyIncludeDeletedRows;
    a_batch_is_loaded_at_once: AThousandAreLoadedAtMost;
    a_dropped_verb_leaves_the_old_or_the_new_row: ASwapIsWrittenInTwoSteps;
    a_command_survives_concurrent_repairs: ARetargetLooksBeforeItWrites;
    exactly_one_swap_at_a_revision_is_applied: ASwapLooksBeforeItWrites;
    exactly_one_concurrent_creation_is_applied: ACreationLooksBeforeItWrites;
    no_write_to_one_row_is_lost: AWriteIsLostNowAndThen;
    no_write_to_many_rows_is_lost: AConflictIsAppliedNowAndThen;
    a_load_sees_every_write_that_ended_before_it: ALoadLagsBehind;
    a_concurrent_group_repair_undoes_no_command: AGroupRepairLooksBeforeItWrites;
    no_target_outlives_a_concurrent_reset: ACreationForgetsItsEpoch;
    random_commands_give_the_answers_of_the_memory_store: AGroupRepairLeavesChildrenOut;
    a_missing_verb_of_housekeeping_is_reported: AVerbThatIsLackingNamesAnother;
    the_rows_used_last_come_first:
        RecentBeginsWithTheOldest RecentBeginsWithTheUnused RecentIgnoresItsLimit
        RecentIncludesDeletedRows;
    a_recorded_use_leaves_the_row_as_it_was: AUseIsAWrite AUseCreates;
    nothing_is_purged_as_idle_without_a_record_of_use: IdleRowsArePurgedWithoutARecord;
    an_idle_row_is_purged_as_if_it_were_forgotten:
        APurgeIgnoresItsLimit APurgeKeepsUnusedRows APurgedRowLeavesNoPrevious
        APurgedRowLeavesNoRevision;
    a_row_that_was_just_forgotten_is_not_purged:
        ForgottenRowsArePurgedAtOnce ForgottenRowsArePurgedInSilence;
}

/// Runs a case. The error is the message of its panic.
fn run(case: impl Future<Output = ()>) -> Result<(), String> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    catch_unwind(AssertUnwindSafe(|| runtime.block_on(case))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default()
    })
}

#[test]
fn every_fault_is_found_by_its_case() {
    let mut missed = Vec::new();
    for (fault, case, run) in FAULTS {
        match run(FaultyStore::new(Some(*fault))) {
            Ok(()) => missed.push(format!("{case} does not find {fault:?}")),
            Err(said) => println!("{fault:?}, {case}:\n    {}\n", said.replace('\n', "\n    ")),
        }
    }
    assert!(missed.is_empty(), "of {} faults: {missed:#?}", FAULTS.len());
}

#[test]
fn every_case_finds_a_fault() {
    let named: BTreeSet<_> = FAULTS.iter().map(|(_, case, _)| *case).collect();
    let all: BTreeSet<_> = CASES.iter().copied().collect();
    assert_eq!(all.difference(&named).collect::<Vec<_>>(), Vec::<&&str>::new());
    assert!(FAULTS.len() >= 100, "{} faults", FAULTS.len());
}
