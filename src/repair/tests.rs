//! Which repair a row needs; rows for these tests and those of own repairs.

use super::*;
use crate::{
    AgentId, Binding, Epoch, Revision, WorkspaceId, binding::target, settings::Settings,
    workspace::Workspaces,
};
use Needed::{Group, Nothing, Own};
use uuid::Uuid;

pub(super) fn row(workspace: u128, target: Option<Arc<Target>>, revision: i64) -> Binding {
    let (session, workspace) =
        (SessionId::new(Uuid::from_u128(1)), WorkspaceId::new(Uuid::from_u128(workspace)));
    Binding::new(session, workspace, target, Revision::new(revision))
}

/// The cached row of a call, at revision 3, in workspace 1.
pub(super) fn entry(stored: bool) -> Arc<CachedRow> {
    let row = row(1, Some(target("z1")), 3);
    let workspace_state =
        Workspaces::new(&Settings::default()).state(row.workspace, Epoch::default());
    CachedRow::new(row, workspace_state, stored, Instant::now())
}

#[test]
fn a_row_is_written_if_it_does_not_name_the_target_that_answered() {
    let later = Group(Behind::Generation(crate::Generation::new(6)));
    let agent = |letter: u8| Group(Behind::Agent(AgentId::new(Uuid::from_u128(letter.into()))));
    #[rustfmt::skip]
    let table = [
        // the row   what answered  written
        (None,           "a5",      Own),
        (Some("a5"),     "a5",      Nothing),
        (Some("a"),      "a",       Nothing),
        (Some("a@x"),    "a@x",     Nothing),
        // The same agent in a later build: all rows of earlier builds are behind.
        (Some("a5"),     "a6",      later),
        // The first generation of an agent: other rows need no write to be dialed.
        (Some("a"),      "a5",      Own),
        // Another agent or address.
        (Some("a5"),     "b6",      later),
        (Some("a1"),     "b6",      later),
        (Some("a"),      "b",       agent(b'a')),
        (Some("a"),      "b5",      agent(b'a')),
        (Some("a@x"),    "a@y",     agent(b'a')),
        (Some("a"),      "a@y",     agent(b'a')),
        // Of the same build: other rows are not known to be behind.
        (Some("a5"),     "b5",      Own),
        (Some("a5@x"),   "a5@y",    Own),
    ];
    for (row, answered, expected) in table {
        let row = row.map(target);
        assert_eq!(
            needed(row.as_ref(), true, &target(answered)),
            expected,
            "{row:?} and {answered}"
        );
        // A row that the store did not return gets its own repair, whatever it names.
        assert_eq!(needed(row.as_ref(), false, &target(answered)), Own, "{row:?} and {answered}");
    }
    let bound = target("a5");
    assert_eq!(needed(Some(&bound), true, &bound), Nothing, "the row's own");
    // The build is only information for people.
    let built = Arc::new((*bound).clone().with_build(crate::BuildId::new(Uuid::from_u128(9))));
    assert_eq!(needed(Some(&bound), true, &built), Nothing);
}
