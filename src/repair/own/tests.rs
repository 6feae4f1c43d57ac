use super::*;
use crate::{
    binding::target,
    repair::tests::{entry, row},
};

#[test]
fn the_meaning_of_a_lost_compare_and_swap() {
    use Lost::{Again, Done, Doubt, Drop};
    let again = Again(Revision::new(7));
    #[rustfmt::skip]
    let table = [
        // the winner: workspace, target    what answered  means
        // Same workspace and target = success.
        (Some((1, Some("a5"))),             "a5",          Done),
        (Some((1, Some("a"))),              "a",           Done),
        (Some((1, Some("a@x"))),            "a@x",         Done),
        // Even if one of the two has no generation: the row names the target that answered.
        (Some((1, Some("a5"))),             "a",           Done),
        (Some((1, Some("a"))),              "a5",          Done),
        // No row, unbound, other workspace = dropped.
        (None,                              "a5",          Drop),
        (Some((1, None)),                   "a5",          Drop),
        (Some((2, Some("a5"))),             "a5",          Drop),
        (Some((2, Some("b4"))),             "a5",          Drop),
        (Some((2, None)),                   "a5",          Drop),
        // Greater or equal generation = the winner is adopted.
        (Some((1, Some("b6"))),             "a5",          Drop),
        (Some((1, Some("a6"))),             "a5",          Drop),
        (Some((1, Some("b5"))),             "a5",          Drop),
        (Some((1, Some("a5@y"))),           "a5@x",        Drop),
        // Known smaller = tried again on the new revision.
        (Some((1, Some("b4"))),             "a5",          again),
        (Some((1, Some("a4"))),             "a5",          again),
        // No generations and another agent = winner adopted, in doubt.
        (Some((1, Some("b"))),              "a",           Doubt),
        (Some((1, Some("a@y"))),            "a@x",         Doubt),
        (Some((1, Some("b5"))),             "a",           Doubt),
        (Some((1, Some("b"))),              "a5",          Doubt),
    ];
    for (winner, answered, means) in table {
        let winner = winner.map(|(workspace, named)| row(workspace, named.map(target), 7));
        let said = lost(&entry(true), &target(answered), winner.as_ref());
        assert_eq!(said, means, "{winner:?} and {answered}");
    }
}

#[test]
fn a_call_that_was_served_without_its_row_may_bind_an_unbound_one() {
    let unbound = row(1, None, 7);
    assert_eq!(lost(&entry(false), &target("a5"), Some(&unbound)), Lost::Again(Revision::new(7)));
    // Everything else is as for other calls.
    for winner in [
        None,
        Some(row(2, None, 7)),
        Some(row(2, Some(target("a5")), 7)),
        Some(row(1, Some(target("b6")), 7)),
    ] {
        assert_eq!(lost(&entry(false), &target("a5"), winner.as_ref()), Lost::Drop, "{winner:?}");
    }
}

#[test]
fn the_row_that_a_group_repair_has_written_only_has_another_revision() {
    let again = Lost::Again(Revision::new(7));
    #[rustfmt::skip]
    let table = [
        // the winner: workspace, target    what answered  means
        // As the cached row says. Its revision was not known.
        (Some((1, Some("b6"))),             "c6",          again),
        (Some((1, Some("b6"))),             "b6@y",        again),
        // Everything else is as for other rows: the target that answered, a command, a later build,
        // another agent of the same build, an earlier build.
        (Some((1, Some("c6"))),             "c6",          Lost::Done),
        (Some((1, None)),                   "c6",          Lost::Drop),
        (Some((2, Some("b6"))),             "c6",          Lost::Drop),
        (None,                              "c6",          Lost::Drop),
        (Some((1, Some("d7"))),             "c6",          Lost::Drop),
        (Some((1, Some("d6"))),             "c6",          Lost::Drop),
        (Some((1, Some("b6@z"))),           "c6",          Lost::Drop),
        (Some((1, Some("z1"))),             "c6",          again),
        (Some((1, Some("b"))),              "c6",          Lost::Doubt),
    ];
    for (winner, answered, means) in table {
        let winner = winner.map(|(workspace, named)| row(workspace, named.map(target), 7));
        let ahead = entry(true).after_group_repair(&target("b6"), 1);
        let said = lost(&ahead, &target(answered), winner.as_ref());
        assert_eq!(said, means, "{winner:?} and {answered}");
    }
    // A call that has read its row knows the revision, so another write has come since.
    let winner = row(1, Some(target("z1")), 7);
    let said = lost(&entry(true), &target("c1"), Some(&winner));
    assert_eq!(said, Lost::Drop);
}
