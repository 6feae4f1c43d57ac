use super::*;
use crate::{AgentId, WorkspaceId, directory::Directory, settings::Settings};
use uuid::Uuid;

/// A letter for its agent, a number for its generation: `a5`, or `a` without one; `a@x` has an address.
fn target(text: &str) -> Arc<Target> {
    let (place, address) = text.split_once('@').map_or((text, None), |(place, address)| (place, Some(address)));
    let (agent, generation) = place.split_at(1);
    let mut target = Target::new(AgentId::new(Uuid::from_u128(agent.as_bytes()[0].into())));
    if !generation.is_empty() {
        target = target.with_generation(generation.parse().expect("a generation"));
    }
    if let Some(address) = address {
        target = target.with_address(address);
    }
    Arc::new(target)
}

fn row(workspace: u128, target: Option<Arc<Target>>, revision: i64) -> Binding {
    let (session, workspace) = (SessionId::new(Uuid::from_u128(1)), WorkspaceId::new(Uuid::from_u128(workspace)));
    Binding::new(session, workspace, target, Revision::new(revision))
}

/// The row that a call went by, at revision 3, in workspace 1.
fn entry(stored: bool) -> Arc<Entry> {
    let row = row(1, Some(target("z1")), 3);
    let place = Directory::new(&Settings::default()).place(row.workspace);
    Entry::new(row, place, stored, Instant::now())
}

#[test]
fn a_row_is_written_if_it_does_not_name_what_answered() {
    #[rustfmt::skip]
    let table = [
        // the row   what answered  written
        (None,           "a5",      true),
        (Some("a5"),     "a5",      false),
        (Some("a"),      "a",       false),
        (Some("a@x"),    "a@x",     false),
        // The same place of a later build: the row follows.
        (Some("a5"),     "a6",      true),
        (Some("a"),      "a5",      true),
        // Another place.
        (Some("a5"),     "b6",      true),
        (Some("a"),      "b",       true),
        (Some("a5"),     "b5",      true),
        (Some("a@x"),    "a@y",     true),
        (Some("a"),      "a@y",     true),
    ];
    for (row, answered, needed) in table {
        assert_eq!(is_needed(row.map(target).as_ref(), &target(answered)), needed, "{row:?} and {answered}");
    }
    let bound = target("a5");
    assert!(!is_needed(Some(&bound), &bound), "the row's own");
    // The build is only said to people.
    let built = Arc::new((*bound).clone().with_build(crate::BuildId::new(Uuid::from_u128(9))));
    assert!(!is_needed(Some(&bound), &built));
}

#[test]
fn what_a_lost_compare_and_swap_means() {
    use Lost::{Again, Done, Doubt, Drop};
    let again = Again(Revision::new(7));
    #[rustfmt::skip]
    let table = [
        // the winner: workspace, target    what answered  means
        // Same workspace and target = success.
        (Some((1, Some("a5"))),             "a5",          Done),
        (Some((1, Some("a"))),              "a",           Done),
        (Some((1, Some("a@x"))),            "a@x",         Done),
        // Also if one of the two has no number: the row names what answered.
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
    // All else is as for the others.
    for winner in
        [None, Some(row(2, None, 7)), Some(row(2, Some(target("a5")), 7)), Some(row(1, Some(target("b6")), 7))]
    {
        assert_eq!(lost(&entry(false), &target("a5"), winner.as_ref()), Lost::Drop, "{winner:?}");
    }
}
