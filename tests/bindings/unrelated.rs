//! A change of one session does not wake other sessions, costs them no read and ends none of their
//! calls, however small the cache is.

use crate::settled;
use std::{
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};
use support::*;
use tokio::{task::JoinHandle, time::sleep};
use tower_bound_agent::{BoundAgentLayer, BoundHandle, DialSession, SessionId, WorkspaceId};

/// Counts how often a future is polled.
struct Polled<F> {
    future: Pin<Box<F>>,
    polls: Arc<AtomicUsize>,
}

impl<F: Future> Future for Polled<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.polls.fetch_add(1, Relaxed);
        self.future.as_mut().poll(cx)
    }
}

/// Waits until each binding is superseded, and counts the polls of all waits.
fn watch(handles: &[BoundHandle]) -> (Vec<JoinHandle<()>>, Arc<AtomicUsize>) {
    let polls = Arc::<AtomicUsize>::default();
    let watch = |handle: &BoundHandle| {
        tokio::spawn(Polled { future: Box::pin(handle.superseded()), polls: Arc::clone(&polls) })
    };
    (handles.iter().map(watch).collect(), polls)
}

/// Returns connections of `n` sessions, each of which called once more after it was bound.
async fn handles(
    world: &World,
    layer: &BoundAgentLayer,
    ws: WorkspaceId,
    n: usize,
) -> Vec<(SessionId, BoundHandle)> {
    let dial = world.dial(layer);
    let mut handles = Vec::new();
    for _ in 0..n {
        let chat = world.bind(layer, ws).await;
        handles.push((chat, call(&dial, chat).await.unwrap().into_parts().1));
    }
    handles
}

#[tokio::test(start_paused = true)]
async fn handles_are_woken_for_their_own_session_only() {
    let world = World::new();
    let [(ws, _), (crowd, _), (elsewhere, _)] =
        [world.workspace(), world.workspace(), world.workspace()];
    let layer = world.layer();
    let (chats, handles): (Vec<_>, Vec<_>) =
        handles(&world, &layer, ws, 2_000).await.into_iter().unzip();
    let (watched, polls) = watch(&handles);
    settled().await;
    assert_eq!(polls.swap(0, Relaxed), 2_000);

    for _ in 0..200 {
        let other = world.bind(&layer, crowd).await;
        layer.bindings().retarget(other, elsewhere).await.unwrap();
        layer.bindings().forget(other).await.unwrap();
    }
    settled().await;
    assert_eq!(polls.load(Relaxed), 0, "a handle was woken for another session");

    layer.bindings().retarget(chats[7], elsewhere).await.unwrap();
    layer.bindings().forget(chats[8]).await.unwrap();
    settled().await;
    assert_eq!(polls.load(Relaxed), 2);
    let ended: Vec<usize> = (0..2_000).filter(|n| watched[*n].is_finished()).collect();
    assert_eq!(ended, [7, 8]);
    watched.iter().for_each(JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn handles_whose_rows_were_evicted_read_nothing_for_others() {
    for capacity in [1, 4, 16] {
        let world = World::new();
        let [(ws, _), (crowd, _), (elsewhere, _)] =
            [world.workspace(), world.workspace(), world.workspace()];
        let layer = world.builder().cache_capacity(capacity).build().unwrap();
        let (chats, handles): (Vec<_>, Vec<_>) =
            handles(&world, &layer, ws, 200).await.into_iter().unzip();
        let (watched, polls) = watch(&handles);
        settled().await;
        let others: Vec<_> = (0..500).map(|_| session()).collect();
        let before = world.counts();
        polls.store(0, Relaxed);
        for other in &others {
            layer.bindings().retarget(*other, crowd).await.unwrap();
            layer.bindings().retarget(*other, elsewhere).await.unwrap();
        }
        settled().await;
        // A row that is evicted, or comes back, is no news.
        assert_eq!(
            (world.counts() - before, polls.load(Relaxed)),
            (counts(0, 0, 0, 1_000), 0),
            "{capacity}"
        );

        // A session's own change is noticed, even by a wait that begins later and after the row has
        // left the cache again.
        layer.bindings().retarget(chats[7], elsewhere).await.unwrap();
        layer.bindings().forget(chats[8]).await.unwrap();
        for other in &others {
            layer.bindings().retarget(*other, crowd).await.unwrap();
        }
        settled().await;
        let ended: Vec<usize> = (0..200).filter(|n| watched[*n].is_finished()).collect();
        assert_eq!(ended, [7, 8], "{capacity}");
        for (n, handle) in handles.iter().enumerate() {
            let ended = tokio::time::timeout(ms(1), handle.superseded()).await.is_ok();
            assert_eq!(ended, n == 7 || n == 8, "{capacity}: {n}");
        }
        watched.iter().for_each(JoinHandle::abort);
    }
}

#[tokio::test(start_paused = true)]
async fn calls_are_not_moved_by_commands_for_others() {
    for capacity in [1, 4, 16] {
        let world = World::new();
        let [(ws, target), (crowd, _), (elsewhere, _)] =
            [world.workspace(), world.workspace(), world.workspace()];
        let layer = world.builder().cache_capacity(capacity).build().unwrap();
        let dial = world.dial(&layer);
        let mut chats = Vec::new();
        for _ in 0..200 {
            chats.push(world.bind(&layer, ws).await);
        }
        world.does(&target, Does::Answer(ms(200)));
        let before = world.counts();
        let calls: Vec<_> = chats
            .iter()
            .map(|chat| {
                let (dial, ask) = (dial.clone(), DialSession::new(*chat));
                tokio::spawn(async move { call(&dial, ask).await })
            })
            .collect();
        let commands = async {
            let others: Vec<_> = (0..20).map(|_| session()).collect();
            for turn in 0.. {
                for other in &others {
                    let to = if turn % 2 == 0 { crowd } else { elsewhere };
                    layer.bindings().retarget(*other, to).await.unwrap();
                    layer.bindings().forget(session()).await.unwrap();
                }
                sleep(ms(4)).await;
            }
        };
        let mut commands = pin!(commands);
        for call in calls {
            let called = tokio::select! {
                called = call => called.unwrap(),
                () = &mut commands => unreachable!(),
            };
            assert_eq!(called.unwrap().agent, target.agent);
        }
        let did = world.counts() - before;
        assert_eq!((did.d, did.v), (200, 0), "{capacity}");
        assert!(did.r <= 200, "{capacity}: {} reads of 200 sessions", did.r);
    }
}
