//! The connection ends in the middle of a statement or a commit.

use super::*;
use crate::proxy::{Cut, Proxy};
use tower_bound_agent::{Bindings, Error, ErrorKind, OutcomeKind, Repair, store::StoreError};

/// A case, and a store whose connections go through a proxy.
async fn behind_a_proxy() -> Option<(Case, Proxy<Wire>, Tap<Store>)> {
    let case = Case::new().await?;
    let proxy = Proxy::start(case.server.folder(), socket);
    let store = Tap::over(store(pool(&options(proxy.folder()))));
    Some((case, proxy, store))
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Command {
    Retarget,
    Unbind,
    Forget,
}

impl Command {
    const ALL: [Self; 3] = [Self::Retarget, Self::Unbind, Self::Forget];

    async fn give(
        self,
        bindings: &Bindings,
        session: SessionId,
        other: &Workspace,
    ) -> Result<(), Error> {
        match self {
            Self::Retarget => bindings.retarget(session, other.id).await.map(drop),
            Self::Unbind => bindings.unbind(session).await.map(drop),
            Self::Forget => bindings.forget(session).await.map(drop),
        }
    }

    /// Returns `true` if the row shows that the command was executed once.
    fn is_done(self, before: &Binding, after: Option<&Binding>, other: &Workspace) -> bool {
        let Some(after) = after else { return self == Self::Forget };
        let workspace = if self == Self::Retarget { other.id } else { before.workspace };
        (after.workspace, after.target.as_ref(), after.revision.get())
            == (workspace, None, before.revision.get() + 1)
    }

    /// The statement that makes the command take effect.
    fn last_statement(self) -> &'static str {
        let [upsert, update, alone, _] = LAST_STATEMENT;
        match self {
            Self::Retarget => upsert,
            Self::Unbind => update,
            Self::Forget => alone,
        }
    }
}

#[tokio::test]
async fn a_command_whose_answer_was_cut_off_succeeds_because_the_row_shows_it() {
    let Some((case, proxy, store)) = behind_a_proxy().await else { return };
    let layer = case.builder(&store).build().unwrap();
    let (workspace, other) = (case.workspace(&layer, 3).await, case.workspace(&layer, 0).await);
    for (command, session) in Command::ALL.into_iter().zip(workspace.sessions.iter().copied()) {
        let rows = case.rows(&[session]).await;
        proxy.cut(Cut::Answer, command.last_statement());
        let before = (store.reads(), store.writes());
        command
            .give(&layer.bindings(), session, &other)
            .await
            .unwrap_or_else(|error| panic!("{command:?}: {error:?}"));
        assert!(proxy.has_cut(), "{command:?}");
        assert_eq!(
            (store.reads(), store.writes()),
            (before.0 + 1, before.1 + 1),
            "{command:?}: sent once, read once"
        );
        let row = case.rows(&[session]).await.remove(&session);
        assert!(command.is_done(&rows[&session], row.as_ref(), &other), "{command:?}: {row:?}");
        assert_eq!(layer.bindings().get(session).await.unwrap(), row, "{command:?}");
    }
}

#[tokio::test]
async fn a_command_cut_off_before_the_server_received_it_has_an_unknown_outcome() {
    let Some((case, proxy, store)) = behind_a_proxy().await else { return };
    let layer = case.builder(&store).build().unwrap();
    let (workspace, other) = (case.workspace(&layer, 3).await, case.workspace(&layer, 0).await);
    let rows = case.rows(&workspace.sessions).await;
    for (command, session) in Command::ALL.into_iter().zip(workspace.sessions.iter().copied()) {
        proxy.cut(Cut::Statement, command.last_statement());
        let before = (store.reads(), store.writes());
        let error = command.give(&layer.bindings(), session, &other).await.unwrap_err();
        assert!(proxy.has_cut(), "{command:?}");
        assert_eq!(error.kind(), &ErrorKind::OutcomeUnknown, "{command:?}: {error:?}");
        assert!(matches!(store_error(&error), StoreError::Unknown(_)), "{command:?}: {error:?}");
        assert_eq!(
            (store.reads(), store.writes()),
            (before.0 + 1, before.1 + 1),
            "{command:?}: not sent again"
        );
        let bound = call(&case.world.dial(&layer), session).await.unwrap();
        assert_eq!(bound.agent, workspace.target.agent, "{command:?}");
        assert_eq!(
            (store.reads(), store.writes()),
            (before.0 + 2, before.1 + 1),
            "{command:?}: the row was read"
        );
    }
    assert_eq!(case.rows(&workspace.sessions).await, rows);
}

#[tokio::test]
async fn a_command_cut_off_before_its_commit_changes_nothing_and_says_so() {
    let Some((case, proxy, store)) = behind_a_proxy().await else { return };
    let layer = case.builder(&store).build().unwrap();
    let (workspace, other) = (case.workspace(&layer, 2).await, case.workspace(&layer, 0).await);
    let rows = case.rows(&workspace.sessions).await;
    let Some(statements) = BEFORE_THE_COMMIT else { return };
    for (command, statement) in
        [(Command::Retarget, statements[0]), (Command::Unbind, statements[1])]
    {
        for cut in [Cut::Statement, Cut::Answer] {
            proxy.cut(cut, statement);
            let before = (store.reads(), store.writes());
            let error =
                command.give(&layer.bindings(), workspace.sessions[0], &other).await.unwrap_err();
            assert!(proxy.has_cut(), "{command:?}");
            assert_eq!(error.kind(), &ErrorKind::Store, "{command:?}: {error:?}");
            assert!(
                matches!(store_error(&error), StoreError::Unavailable(_)),
                "{command:?}: {error:?}"
            );
            assert_eq!((store.reads(), store.writes()), (before.0, before.1 + 1), "{command:?}");
            assert_eq!(case.rows(&workspace.sessions).await, rows, "{command:?}");
        }
    }
}

#[tokio::test]
async fn a_repair_whose_connection_was_cut_is_written_once() {
    let Some((case, proxy, store)) = behind_a_proxy().await else { return };
    let layer = case.builder(&store).build().unwrap();
    for cut in [Cut::Statement, Cut::Answer] {
        let workspace = case.workspace(&layer, 3).await;
        let rows = case.rows(&workspace.sessions).await;
        let new = case.rebuild(&workspace, Does::Fail(ms(1)));
        let [.., repair] = LAST_STATEMENT;
        proxy.cut(cut, repair);
        let mut all = Vec::new();
        for session in &workspace.sessions {
            let bound = call(&case.world.dial(&layer), *session).await.unwrap();
            assert_eq!(bound.agent, new.agent);
            assert!(matches!(bound.outcome().kind, OutcomeKind::Switched { .. }));
            all.push(bound);
        }
        until_true("it is written", async || layer.bindings().flush().await == 0).await;
        assert!(proxy.has_cut(), "{cut:?}");
        for bound in all {
            assert!(
                matches!(bound.outcome().repair(), Repair::Written | Repair::NotNeeded),
                "{cut:?}"
            );
        }
        case.each_was_written_once(&rows, &workspace, &new).await;
        let before = case.world.counts();
        for session in &workspace.sessions {
            assert_eq!(call(&case.world.dial(&layer), *session).await.unwrap().agent, new.agent);
        }
        assert_eq!((case.world.counts() - before).v, 0, "{cut:?}");
    }
}
