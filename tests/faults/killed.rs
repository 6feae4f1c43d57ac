//! The server's process is killed and restarted.

use super::*;
use tokio::runtime::Handle;
use tower_bound_agent::Repair;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_continue_while_the_server_is_killed_and_each_row_is_repaired_once() {
    let Some(mut case) = Case::new().await else { return };
    let store = Tap::over(store(pool(&case.options())));
    store.elsewhere().check().await.unwrap();
    let tasks = Handle::current().metrics().num_alive_tasks();
    let layer = case.builder(&store).build().unwrap();
    let mut workspaces = Vec::new();
    for _ in 0..5 {
        workspaces.push(case.workspace(&layer, 40).await);
    }
    let groups: Vec<_> = workspaces.iter().map(|workspace| workspace.sessions.clone()).collect();
    let sessions = groups.concat();
    let rows = case.rows(&sessions).await;
    assert_eq!(rows.len(), 200);

    let before = case.world.counts();
    let load = Load::start(&case.world, &layer, &groups);
    load.go_on(&sessions, 2).await;
    // One workspace is rebuilt just before, so that its rows are being written when the server is
    // killed.
    let mut new = vec![case.rebuild(&workspaces[0], Does::Fail(ms(1)))];
    load.talks_to(&workspaces[0].sessions[..3], new[0].agent).await;
    case.server.kill();
    for (workspace, old_does) in
        workspaces[1..].iter().zip([Does::Fail(ms(1)), Does::Hang, Does::Hang, Does::Fail(ms(1))])
    {
        new.push(case.rebuild(workspace, old_does));
    }
    for (workspace, new) in workspaces.iter().zip(&new) {
        load.talks_to(&workspace.sessions, new.agent).await;
    }
    for workspace in &workspaces[1..] {
        load.is_retrying(&workspace.sessions).await;
    }
    load.go_on(&sessions, 20).await;
    for session in groups[1..].concat() {
        let (_, repair) = load.turns(session).last.unwrap();
        assert!(matches!(repair, Repair::Pending | Repair::Retrying), "{repair:?}");
    }
    assert!(layer.bindings().flush().await > 0);

    case.server.restart();
    until_true("all repairs are written", async || layer.bindings().flush().await == 0).await;
    for (workspace, new) in workspaces.iter().zip(&new) {
        case.each_was_written_once(&rows, workspace, new).await;
    }
    let writes = store.writes();
    load.go_on(&sessions, 2).await;
    let (turns, longest) = load.end().await;
    let counts = case.world.counts() - before;
    // The first session of a workspace dials the old agent and asks. The others use the known
    // target.
    assert_eq!(
        (counts.d, counts.v, store.writes()),
        (turns + 5, 5, writes),
        "the longest took {longest:?}"
    );
    assert_eq!(layer.bindings().close(Duration::from_secs(5)).await, 0);
    no_task_is_left(tasks).await;
    println!("{KIND}: {turns} turns, the longest took {longest:?}");
}
