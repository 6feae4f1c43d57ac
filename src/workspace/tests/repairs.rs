//! What a group repair that has landed means for a row that is behind.

use super::*;
use crate::Generation;

fn up_to(generation: i64) -> Behind {
    Behind::Generation(Generation::new(generation))
}

fn from(letter: &str) -> Behind {
    Behind::Agent(agent(letter))
}

/// A repair whose last statement ran from 20 to 30.
fn landed(behind: Behind, target: Arc<Target>) -> WorkspaceState {
    let place = Arc::into_inner(
        Workspaces::new(&Settings::default()).place(workspace(1), Epoch::default()),
    )
    .expect("nobody else has it");
    place.repaired(GroupRepair { behind, target, began: 20, landed: 30 });
    place
}

#[test]
fn a_row_that_was_seen_before_it_is_written_and_one_that_was_seen_later_was_missed() {
    let table = [
        (Stamp::read(1), Repaired::Already(30)),
        (Stamp::read(19), Repaired::Already(30)),
        // By a read that began while the statement ran: it may have brought what was there before.
        (Stamp::read(20), Repaired::Already(30)),
        (Stamp::read(29), Repaired::Already(30)),
        (Stamp::read(31), Repaired::Missed),
        (Stamp::written(1, 19), Repaired::Already(30)),
        // While the statement ran: it may have come too late for that.
        (Stamp::written(1, 21), Repaired::Missed),
        (Stamp::written(1, 29), Repaired::Missed),
        (Stamp::written(1, 31), Repaired::Missed),
    ];
    for (stamp, repaired) in table {
        let place = landed(up_to(6), target("b6"));
        assert_eq!(place.repair_of(stamp, up_to(6), &target("b6")), repaired, "{stamp:?}");
        let place = landed(from("a"), target("b"));
        assert_eq!(place.repair_of(stamp, from("a"), &target("b")), repaired, "{stamp:?}");
    }
}

#[test]
fn only_one_that_reached_as_far_counts() {
    #[rustfmt::skip]
    let table = [
        // what has landed          what is needed        whether that is the same
        (up_to(6), "b6",      up_to(6), "b6",       true),
        (up_to(6), "b6",      up_to(5), "c5",       true),
        (up_to(6), "b6",      up_to(7), "b7",       false),
        (up_to(6), "b6",      from("a"), "b6",      false),
        (from("a"), "b",      from("a"), "b",       true),
        (from("a"), "b",      from("a"), "c",       false),
        (from("a"), "b",      from("c"), "b",       false),
        (from("a"), "b@x",    from("a"), "b@x",     true),
        (from("a"), "b@x",    from("a"), "b@y",     false),
        // The number that has become known in the meantime is no other place.
        (from("a"), "b",      from("a"), "b5",      true),
        (from("a"), "b6",     up_to(6), "b6",       false),
    ];
    for (behind, written, wanted, answered, same) in table {
        let place = landed(behind, target(written));
        let expected = if same { Repaired::Already(30) } else { Repaired::NotYet };
        let found = place.repair_of(Stamp::read(1), wanted, &target(answered));
        assert_eq!(found, expected, "{behind:?} to {written:?}, {wanted:?} to {answered}");
    }
    let place = Workspaces::new(&Settings::default()).place(workspace(1), Epoch::default());
    assert_eq!(place.repair_of(Stamp::read(1), up_to(6), &target("b6")), Repaired::NotYet);
}

#[test]
fn the_last_one_counts() {
    let place = landed(up_to(6), target("b6"));
    place.repaired(GroupRepair { behind: up_to(6), target: target("b6"), began: 50, landed: 60 });
    assert_eq!(place.repair_of(Stamp::read(40), up_to(6), &target("b6")), Repaired::Already(60));
    assert_eq!(
        place.repair_of(Stamp::written(1, 40), up_to(6), &target("b6")),
        Repaired::Already(60)
    );
    assert_eq!(place.repair_of(Stamp::read(61), up_to(6), &target("b6")), Repaired::Missed);
}

#[test]
fn a_few_are_remembered() {
    let place = landed(from("a"), target("b"));
    let later = "cdefghij".chars().map(String::from);
    for (n, letter) in later.enumerate() {
        let remembered = n < REMEMBERED;
        let expected = if remembered { Repaired::Already(30) } else { Repaired::NotYet };
        assert_eq!(
            place.repair_of(Stamp::read(1), from("a"), &target("b")),
            expected,
            "{n} others"
        );
        place.repaired(GroupRepair {
            behind: from(&letter),
            target: target("b"),
            began: 40,
            landed: 50,
        });
    }
    assert_eq!(place.repair_of(Stamp::read(1), from("a"), &target("b")), Repaired::NotYet);
    assert_eq!(place.repair_of(Stamp::read(1), from("j"), &target("b")), Repaired::Already(50));
}
