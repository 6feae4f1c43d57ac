//! `BoundHandle::superseded`.

use crate::settled;
use support::*;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tower_bound_agent::{
    BoundAgentLayer, BoundHandle, DialSession, Resolution, SessionId, WorkspaceId,
};

/// Returns `true` if the binding is superseded.
async fn has_ended(handle: &BoundHandle) -> bool {
    timeout(ms(1), handle.superseded()).await.is_ok()
}

/// Waits until the binding is superseded, and returns the time.
fn watch(handle: &BoundHandle) -> JoinHandle<Instant> {
    let superseded = handle.superseded();
    tokio::spawn(async move {
        superseded.await;
        Instant::now()
    })
}

/// Returns two handles of one session: of the call that bound it, and of a later call.
async fn handles(
    world: &World,
    layer: &BoundAgentLayer,
    ws: WorkspaceId,
) -> (SessionId, [BoundHandle; 2]) {
    let chat = session();
    let dial = world.dial(layer);
    let first = call(&dial, DialSession::new(chat).in_workspace(ws)).await.unwrap();
    assert_eq!(layer.bindings().flush().await, 0);
    let second = call(&dial, chat).await.unwrap();
    (chat, [first.into_parts().1, second.into_parts().1])
}

#[tokio::test(start_paused = true)]
async fn superseded_resolves_after_any_call_learns_of_a_newer_build() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.layer();
    let (_, handles) = handles(&world, &layer, ws).await;
    let other = world.bind(&layer, ws).await;
    let watched = handles.each_ref().map(watch);
    settled().await;
    world.rebuild(ws, &old, Does::Hang);
    let begin = Instant::now();
    call(&world.dial(&layer), other).await.unwrap();
    for watched in watched {
        assert_eq!(watched.await.unwrap(), begin + ms(250));
    }
    for handle in &handles {
        assert!(has_ended(handle).await, "a later wait ends too");
    }
}

#[tokio::test(start_paused = true)]
async fn a_binding_ends_with_a_reset_although_the_row_is_cached_again() {
    for is_read_again in [false, true] {
        let world = World::new();
        let (ws, _) = world.workspace();
        let layer = world.layer();
        let (chat, handles) = handles(&world, &layer, ws).await;
        let watched = handles[0].superseded();
        let mut watched = tokio_test::task::spawn(watched);
        assert!(watched.poll().is_pending());
        assert_eq!(layer.bindings().reset_workspace(ws).await.unwrap(), 1);
        if is_read_again {
            assert_eq!(layer.bindings().get(chat).await.unwrap().unwrap().target, None);
        }
        assert!(watched.poll().is_ready(), "read again: {is_read_again}");
        assert!(has_ended(&handles[1]).await, "read again: {is_read_again}");
    }
}

#[tokio::test(start_paused = true)]
async fn superseded_resolves_after_a_command() {
    for forget in [false, true] {
        let world = World::new();
        let (ws, _) = world.workspace();
        let (other, _) = world.workspace();
        let layer = world.layer();
        let (chat, handles) = handles(&world, &layer, ws).await;
        let watched = handles.each_ref().map(watch);
        sleep(ms(100)).await;
        assert!(watched.iter().all(|watched| !watched.is_finished()));
        let begin = Instant::now();
        if forget {
            layer.bindings().forget(chat).await.unwrap();
        } else {
            layer.bindings().retarget(chat, other).await.unwrap();
        }
        for watched in watched {
            let ended = timeout(ms(10), watched).await.expect("told").unwrap();
            assert_eq!(ended, begin);
        }
        for handle in &handles {
            assert!(has_ended(handle).await, "a later wait ends too");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn superseded_ignores_changes_that_do_not_move_the_session() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let (chat, handles) = handles(&world, &layer, ws).await;
    let neighbours = [world.bind(&layer, ws).await, world.bind(&layer, ws).await];
    let watched = handles.each_ref().map(watch);

    layer.bindings().revalidate_workspace(ws);
    call(&dial, chat).await.unwrap();
    handles[0].report_stale();
    call(&dial, chat).await.unwrap();
    layer.bindings().retarget(chat, ws).await.unwrap();
    layer.bindings().unbind(chat).await.unwrap();
    assert_eq!(call(&dial, chat).await.unwrap().agent, target.agent);
    layer.bindings().flush().await;
    layer.bindings().forget(neighbours[0]).await.unwrap();
    layer.bindings().retarget(neighbours[1], world.workspace().0).await.unwrap();
    world.says(ws, Says::Fails);
    layer.bindings().revalidate_workspace(ws);
    call(&dial, chat).await.unwrap();
    world.says(ws, Says::Is(Resolution::Stopped));
    world.does(&target, Does::Hang);
    call(&dial, chat).await.unwrap_err();
    settled().await;
    assert!(watched.iter().all(|watched| !watched.is_finished()));
    watched.iter().for_each(JoinHandle::abort);
}

/// Makes calls of other sessions until this one's row is no longer cached, when it cannot be read
/// because the store is down. The checks are rare, since each is a use of the row, and the cache
/// keeps rows that are used often.
async fn evict(world: &World, layer: &BoundAgentLayer, crowd: WorkspaceId, chat: SessionId) {
    let dial = world.dial(layer);
    for _ in 0..20 {
        for _ in 0..64 {
            let other = world.bind(layer, crowd).await;
            for _ in 0..20 {
                call(&dial, other).await.unwrap();
            }
        }
        world.store.on_reads(Fault::Unavailable);
        let evicted = layer.bindings().get(chat).await.is_err();
        world.store.on_reads(Fault::None);
        if evicted {
            return;
        }
    }
    panic!("never evicted");
}

#[tokio::test(start_paused = true)]
async fn a_pending_call_follows_a_command_although_its_row_was_evicted() {
    let world = World::new();
    let [(ws, old), (crowd, _), (elsewhere, there)] =
        [world.workspace(), world.workspace(), world.workspace()];
    let layer = world.builder().cache_capacity(8).build().unwrap();
    let chat = world.bind(&layer, ws).await;
    world.does(&old, Does::Hang);
    let dial = world.dial(&layer);
    let called = tokio::spawn(async move { call(&dial, chat).await });
    settled().await;
    assert_eq!(world.live_dials(), 1);
    evict(&world, &layer, crowd, chat).await;
    settled().await;
    assert!(!called.is_finished(), "an eviction does not end the call");
    let now = Instant::now();
    layer.bindings().retarget(chat, elsewhere).await.unwrap();
    let bound = called.await.unwrap().unwrap();
    assert_eq!((bound.target().agent, now.elapsed()), (there.agent, ms(0)));
}

#[tokio::test(start_paused = true)]
async fn superseded_resolves_although_the_row_was_evicted() {
    for change in ["build", "select", "select and evict", "forget"] {
        let world = World::new();
        let (ws, old) = world.workspace();
        let (crowd, _) = world.workspace();
        let (elsewhere, _) = world.workspace();
        let layer = world.builder().cache_capacity(8).build().unwrap();
        let (chat, handles) = handles(&world, &layer, ws).await;
        let watched = handles.each_ref().map(watch);
        let crowded = async || evict(&world, &layer, crowd, chat).await;
        crowded().await;
        if change == "build" {
            // Some of these changes look as if they might concern the evicted session.
            for _ in 0..5_000 {
                assert!(!layer.bindings().forget(session()).await.unwrap());
            }
        }
        settled().await;
        assert!(
            watched.iter().all(|watched| !watched.is_finished()),
            "an eviction does not end the wait"
        );
        match change {
            "build" => {
                let other = world.bind(&layer, ws).await;
                world.rebuild(ws, &old, Does::Hang);
                call(&world.dial(&layer), other).await.unwrap();
            }
            "forget" => assert!(layer.bindings().forget(chat).await.unwrap()),
            _ => {
                layer.bindings().retarget(chat, elsewhere).await.unwrap();
            }
        }
        if change == "select and evict" {
            watched.iter().for_each(JoinHandle::abort);
            crowded().await;
        } else {
            for watched in watched {
                timeout(ms(10), watched)
                    .await
                    .unwrap_or_else(|_| panic!("{change}: not noticed"))
                    .unwrap();
            }
        }
        for handle in &handles {
            assert!(has_ended(handle).await, "{change}: a later wait misses it");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn superseded_notices_a_change_from_before_it_was_called() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let (chat, [_, handle]) = handles(&world, &layer, ws).await;
    assert!(!has_ended(&handle).await);
    world.rebuild(ws, &old, Does::Fail(ms(0)));
    let bound = call(&dial, chat).await.unwrap();
    assert!(has_ended(&handle).await);
    assert!(!has_ended(bound.handle()).await);
    assert_eq!(layer.bindings().flush().await, 0);
    assert!(!has_ended(bound.handle()).await, "the session's own repair does not end the wait");
}

#[tokio::test(start_paused = true)]
async fn superseded_ignores_a_read_from_before_the_record_existed() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let chat = session();
    world.store.on_reads(Fault::SlowAnswer(ms(100)));
    let bindings = layer.bindings();
    let read = tokio::spawn(async move { bindings.get(chat).await.unwrap() });
    settled().await;
    world.store.on_reads(Fault::None);
    layer.bindings().retarget(chat, ws).await.unwrap();
    let dial = world.dial(&layer);
    assert_eq!(call(&dial, chat).await.unwrap().agent, target.agent);
    assert_eq!(layer.bindings().flush().await, 0);
    let bound = call(&dial, chat).await.unwrap();
    let watched = watch(bound.handle());
    // The row was seen since that read began, so another one follows.
    assert_eq!(read.await.unwrap(), world.row(chat));
    settled().await;
    assert!(!watched.is_finished());
    assert!(!has_ended(bound.handle()).await);
    layer.bindings().forget(chat).await.unwrap();
    timeout(ms(10), watched).await.expect("told").unwrap();
}
