//! How much of the application's pool the statements take that no call waits for.

mod support;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};
use support::*;
use tokio::time::{Duration, Instant, sleep};
use tower_bound_agent::{Event, Repair};

const WORKSPACES: usize = 2_000;

/// Every workspace has one cached session, and all are rebuilt at once.
#[tokio::test(start_paused = true)]
async fn the_repairs_of_many_workspaces_share_two_connections() {
    let world = World::new();
    let retrying = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&retrying);
    let layer = world.builder().observer(move |event: &Event<'_>| {
        if let Event::WorkspaceRepaired { repair: Repair::Retrying, .. } = event {
            told.fetch_add(1, SeqCst);
        }
    });
    let layer = layer.build().unwrap();
    let dial = world.dial(&layer);
    let mut sessions = Vec::new();
    for _ in 0..WORKSPACES {
        let (ws, target) = world.workspace();
        sessions.push((world.bind(&layer, ws).await, ws, target));
    }
    let cold = world.bind(&world.layer(), sessions[0].1).await;
    world.store.on_writes(Fault::Slow(ms(1)));
    let before = world.store.most_writes();
    assert_eq!(before, 1);
    let agents: Vec<_> =
        sessions.iter().map(|(_, ws, target)| world.rebuild(*ws, target, Does::Fail(ms(0))).agent).collect();
    let begin = Instant::now();
    for ((session, ..), agent) in sessions.iter().zip(&agents) {
        assert_eq!(call(&dial, *session).await.unwrap().agent, *agent);
    }
    // A cold session is read at once, and a session that has no row gets one at once.
    let reading = Instant::now();
    call(&dial, cold).await.unwrap();
    assert_eq!(reading.elapsed(), ms(0));
    let (ws, _) = world.workspace();
    call(&dial, tower_bound_agent::DialSession::new(session()).in_workspace(ws)).await.unwrap();
    assert!(reading.elapsed() <= ms(1), "{:?}", reading.elapsed());
    // Those that wait are not in vain.
    while layer.bindings().flush().await > 0 {}
    assert!(begin.elapsed() <= Duration::from_secs(1 + 1), "{:?}", begin.elapsed());
    assert_eq!((world.store.most_writes(), retrying.load(SeqCst)), (3, 0), "two, and the row that a call waits for");
    for ((session, ..), agent) in sessions.iter().zip(agents) {
        assert_eq!(world.row_agent(*session), Some(agent));
    }
    assert_eq!(layer.bindings().close(Duration::from_secs(1)).await, 0);
}

#[tokio::test(start_paused = true)]
async fn while_two_statements_have_no_answer_no_other_one_is_sent_in_the_background() {
    let world = World::new();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let mut sessions = Vec::new();
    for _ in 0..10 {
        let (ws, target) = world.workspace();
        sessions.push((world.bind(&layer, ws).await, ws, target));
    }
    world.store.on_writes(Fault::Held);
    let before = world.counts();
    for (session, ws, target) in &sessions {
        world.rebuild(*ws, target, Does::Fail(ms(0)));
        call(&dial, *session).await.unwrap();
    }
    sleep(Duration::from_secs(60)).await;
    assert_eq!(((world.counts() - before).w, world.store.running_writes()), (2, 2));
    let begin = Instant::now();
    assert_eq!(layer.bindings().flush().await, 10);
    assert!(begin.elapsed() <= Duration::from_secs(20), "{:?}", begin.elapsed());
    world.store.on_writes(Fault::None);
    world.store.release();
    sleep(Duration::from_secs(1)).await;
    assert_eq!((layer.bindings().flush().await, (world.counts() - before).w), (0, 10));
}
