//! The race, case by case: what is dialed, asked, read and written, and what the caller gets.

mod support;

use support::*;
use tokio::time::Instant;
use tower_bound_agent::{DialSession, ErrorKind, Path, Repair, Resolution};

#[tokio::test(start_paused = true)]
async fn a_cached_binding_is_dialed_without_asking_anybody() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chat = session();
    let bound = call(&dial, DialSession::new(chat).in_workspace(ws)).await.unwrap();
    assert_eq!((bound.outcome().path.clone(), bound.agent), (Path::FirstBind, target.agent));
    layer.bindings().flush().await;
    // Cold: one read, one unbound row, one question, one dial, one first bind.
    assert_eq!(world.counts(), counts(1, 1, 1, 2));
    assert_eq!(bound.outcome().repair(), Repair::Written);

    let before = world.counts();
    for _ in 0..10 {
        let bound = call(&dial, chat).await.unwrap();
        assert_eq!((bound.outcome().path.clone(), bound.outcome().repair()), (Path::Reused, Repair::NotNeeded));
    }
    assert_eq!(world.counts() - before, counts(10, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_slow_dial_to_a_replaced_agent_is_switched_after_the_delay() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, ws).await;
    let new = world.rebuild(ws, &old, Does::Hang);

    let (before, begin) = (world.counts(), Instant::now());
    let bound = call(&dial, chat).await.unwrap();
    assert_eq!((begin.elapsed(), bound.agent), (ms(250), new.agent));
    assert!(matches!(&bound.outcome().path, Path::Switched { from } if from.agent == old.agent));
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(2, 1, 0, 1));
    assert_eq!(world.row_agent(chat), Some(new.agent));
    assert_eq!((world.live_dials(), world.live_connections()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_stopped_workspace_is_an_error_after_the_row_was_read_again() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, ws).await;
    world.does(&old, Does::Hang);
    world.says(ws, Says::Is(Resolution::Stopped));

    let before = world.counts();
    let error = call(&dial, chat).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Stopped);
    assert_eq!(world.counts() - before, counts(1, 1, 1, 0));
    assert_eq!(world.live_dials(), 0);
}
