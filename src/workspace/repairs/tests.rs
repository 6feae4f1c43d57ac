use super::*;
use crate::{Generation, binding::target, workspace::tests::agent};

fn up_to(generation: i64) -> Behind {
    Behind::Generation(Generation::new(generation))
}

fn from(letter: &str) -> Behind {
    Behind::Agent(agent(letter))
}

/// A repair whose last statement ran from tick 20 to 30.
fn landed(behind: Behind, target: Arc<Target>) -> LandedRepairs {
    let mut repairs = LandedRepairs::default();
    repairs.land(GroupRepair { behind, target, began: 20, landed: 30 });
    repairs
}

#[test]
fn a_row_from_before_the_statement_is_written_and_a_later_one_was_missed() {
    let table = [
        (Stamp::read(1), Repaired::Already(30)),
        (Stamp::read(19), Repaired::Already(30)),
        // The read began while the statement ran, so it may have brought what was there before.
        (Stamp::read(20), Repaired::Already(30)),
        (Stamp::read(29), Repaired::Already(30)),
        (Stamp::read(31), Repaired::Missed),
        (Stamp::written(1, 19), Repaired::Already(30)),
        // Written while the statement ran, which may have been too late for it.
        (Stamp::written(1, 21), Repaired::Missed),
        (Stamp::written(1, 29), Repaired::Missed),
        (Stamp::written(1, 31), Repaired::Missed),
    ];
    for (stamp, repaired) in table {
        let repairs = landed(up_to(6), target("b6"));
        assert_eq!(repairs.of_row(stamp, up_to(6), &target("b6")), repaired, "{stamp:?}");
        let repairs = landed(from("a"), target("b"));
        assert_eq!(repairs.of_row(stamp, from("a"), &target("b")), repaired, "{stamp:?}");
    }
}

#[test]
fn only_a_repair_that_reached_as_far_counts() {
    #[rustfmt::skip]
    let table = [
        // what has landed    what is needed        whether the first includes the second
        (up_to(6), "b6",      up_to(6), "b6",       true),
        (up_to(6), "b6",      up_to(5), "c5",       true),
        (up_to(6), "b6",      up_to(7), "b7",       false),
        (up_to(6), "b6",      from("a"), "b6",      false),
        (from("a"), "b",      from("a"), "b",       true),
        (from("a"), "b",      from("a"), "c",       false),
        (from("a"), "b",      from("c"), "b",       false),
        (from("a"), "b@x",    from("a"), "b@x",     true),
        (from("a"), "b@x",    from("a"), "b@y",     false),
        // A generation that has become known in the meantime does not make it another target.
        (from("a"), "b",      from("a"), "b5",      true),
        (from("a"), "b6",     up_to(6), "b6",       false),
    ];
    for (behind, written, wanted, answered, includes) in table {
        let repairs = landed(behind, target(written));
        let expected = if includes { Repaired::Already(30) } else { Repaired::NotYet };
        let found = repairs.of_row(Stamp::read(1), wanted, &target(answered));
        assert_eq!(found, expected, "{behind:?} to {written:?}, {wanted:?} to {answered}");
    }
    let nothing = LandedRepairs::default();
    assert_eq!(nothing.of_row(Stamp::read(1), up_to(6), &target("b6")), Repaired::NotYet);
}

#[test]
fn the_last_of_equal_repairs_counts() {
    let mut repairs = landed(up_to(6), target("b6"));
    repairs.land(GroupRepair { behind: up_to(6), target: target("b6"), began: 50, landed: 60 });
    let found = |stamp| repairs.of_row(stamp, up_to(6), &target("b6"));
    assert_eq!(found(Stamp::read(40)), Repaired::Already(60));
    assert_eq!(found(Stamp::written(1, 40)), Repaired::Already(60));
    assert_eq!(found(Stamp::read(61)), Repaired::Missed);
}

#[test]
fn a_repair_ends_what_was_remembered_of_earlier_ones() {
    #[rustfmt::skip]
    let table = [
        // what landed first  what landed then      whether the first is still remembered
        (up_to(6), "b6",      up_to(6), "b6",       false),
        (up_to(6), "b6",      up_to(7), "c7",       false),
        (up_to(6), "b6",      up_to(5), "a5",       true),
        // The rows that it has written name another target.
        (from("a"), "b",      from("b"), "c",       false),
        // Rows name again what it has replaced.
        (from("a"), "b",      from("c"), "a",       false),
        (from("a"), "b",      from("b"), "a",       false),
        (from("a"), "b",      from("c"), "d",       true),
        (from("a"), "b",      from("c"), "b",       true),
        (from("a"), "b",      up_to(6), "b6",       true),
    ];
    for (first, written, second, then, is_remembered) in table {
        let mut repairs = landed(first, target(written));
        repairs.land(GroupRepair { behind: second, target: target(then), began: 40, landed: 50 });
        let is_first = |repair: &GroupRepair| repair.landed == 30;
        assert_eq!(repairs.0.iter().any(is_first), is_remembered, "{first:?}, then {second:?}");
    }
}

#[test]
fn the_last_eight_repairs_are_remembered() {
    let mut repairs = landed(from("a"), target("b"));
    let later = "cdefghij".chars().map(String::from);
    for (n, letter) in later.enumerate() {
        let remembered = n < REMEMBERED;
        let expected = if remembered { Repaired::Already(30) } else { Repaired::NotYet };
        let found = repairs.of_row(Stamp::read(1), from("a"), &target("b"));
        assert_eq!(found, expected, "{n} others");
        let behind = from(&letter);
        repairs.land(GroupRepair { behind, target: target("b"), began: 40, landed: 50 });
    }
    let found = |behind| repairs.of_row(Stamp::read(1), behind, &target("b"));
    assert_eq!(found(from("a")), Repaired::NotYet);
    assert_eq!(found(from("j")), Repaired::Already(50));
}
