//! Runtimes that exist and are not driven: a waiter on another runtime starts the work again.
//!
//! Each runtime has a paused clock of its own.

use std::future::Future;
use support::*;
use tokio::{
    runtime::{Builder, Runtime},
    time::{Duration, Instant, sleep, timeout},
};
use tower_bound_agent::{BoundAgentLayer, Repair, store::BindingStore};

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

/// Polls the work once, and does not drive the tasks that it has spawned.
fn begin_on<T>(undriven: &Runtime, work: impl Future<Output = T>) {
    undriven.block_on(async {
        tokio::select! {
            biased;
            _ = work => panic!("the work must only begin"),
            () = std::future::ready(()) => {}
        }
    });
}

/// A layer that works on two runtimes in turn.
fn layer(world: &World) -> BoundAgentLayer {
    world
        .builder()
        .store_timeout(secs(5))
        .resolve_timeout(secs(5))
        .refresh_interval(secs(30))
        .build()
        .unwrap()
}

#[test]
fn a_read_on_an_undriven_runtime_is_begun_again() {
    let world = World::new();
    let layer = layer(&world);
    let (ws, target) = world.workspace();
    let (undriven, driven) = (runtime(), runtime());
    let chat = driven.block_on(async { world.bind(&world.layer(), ws).await });
    let dial = world.dial(&layer);
    begin_on(&undriven, call(&dial, chat));
    let before = world.counts();
    driven.block_on(async {
        let begin = Instant::now();
        let bindings = layer.bindings();
        let (got, called) = tokio::join!(bindings.get(chat), call(&dial, chat));
        assert_eq!(got.unwrap().unwrap().target.as_deref(), Some(&target));
        assert_eq!(called.unwrap().agent, target.agent);
        assert!(begin.elapsed() <= secs(6), "{:?}", begin.elapsed());
        assert_eq!(world.counts() - before, counts(1, 0, 1, 0));
    });
}

#[test]
fn a_validation_on_an_undriven_runtime_is_begun_again() {
    let world = World::new();
    let layer = layer(&world);
    let (ws, old) = world.workspace();
    let (undriven, driven) = (runtime(), runtime());
    let dial = world.dial(&layer);
    let chats =
        driven.block_on(async { [world.bind(&layer, ws).await, world.bind(&layer, ws).await] });
    let new = world.rebuild(ws, &old, Does::Hang);
    // Uses an instant of the clock that is ahead.
    driven.block_on(async {
        sleep(ms(1)).await;
        layer.bindings().revalidate_workspace(ws);
    });
    begin_on(&undriven, call(&dial, chats[0]));
    let before = world.counts();
    driven.block_on(async {
        let begin = Instant::now();
        let bound = call(&dial, chats[1]).await.unwrap();
        assert_eq!(bound.agent, new.agent);
        assert!(begin.elapsed() <= secs(6), "{:?}", begin.elapsed());
        let did = world.counts() - before;
        assert_eq!((did.d, did.v), (2, 1));
        // The next call does not wait.
        let begin = Instant::now();
        call(&dial, chats[0]).await.unwrap();
        assert_eq!(begin.elapsed(), ms(0));
    });
    // `current` behaves the same. Uses an instant of the clock that is ahead.
    driven.block_on(async {
        sleep(ms(1)).await;
        layer.bindings().revalidate_workspace(ws);
    });
    begin_on(&undriven, layer.bindings().current(chats[0]));
    driven.block_on(async {
        let begin = Instant::now();
        let current = timeout(secs(10), layer.bindings().current(chats[1])).await.unwrap().unwrap();
        assert_eq!(current.target.as_deref(), Some(&new));
        assert!(begin.elapsed() <= secs(6), "{:?}", begin.elapsed());
    });
}

#[test]
fn a_repair_on_an_undriven_runtime_is_taken_over() {
    for writes in [Writes::Own, Writes::Group] {
        let world = World::new();
        let layer = layer(&world);
        let (ws, old) = world.workspace();
        let (undriven, driven) = (runtime(), runtime());
        let dial = world.dial(&layer);
        let chat = undriven.block_on(async { world.bind(&layer, ws).await });
        let new = writes.replaced(&world, ws, &old, Does::Fail(ms(0)));
        // One repair was polled there and has sent its statement. Its answer is not polled.
        world.store.on_writes(Fault::Held);
        let bound = undriven.block_on(async {
            let bound = call(&dial, chat).await.unwrap();
            tokio::task::yield_now().await;
            bound
        });
        world.store.on_writes(Fault::None);
        driven.block_on(async {
            let begin = Instant::now();
            assert_eq!(timeout(secs(60), layer.bindings().flush()).await.unwrap(), 0);
            assert!(begin.elapsed() <= secs(13), "{:?}", begin.elapsed());
            assert_eq!(
                (bound.outcome().repair(), world.row_agent(chat)),
                (Repair::Written, Some(new.agent))
            );
        });
        // When the runtime is driven again, the repair that was taken over ends and writes nothing.
        world.store.release();
        let before = world.counts();
        undriven.block_on(async { sleep(secs(60)).await });
        assert_eq!(((world.counts() - before).w, world.row_agent(chat)), (0, Some(new.agent)));
        driven.block_on(async { assert_eq!(layer.bindings().close(secs(1)).await, 0) });
    }
}

#[test]
fn close_is_bounded_although_other_runtimes_hang() {
    let world = World::new();
    let layer = layer(&world);
    let (ws, old) = world.workspace();
    let (undriven, driven) = (runtime(), runtime());
    let dial = world.dial(&layer);
    let chat = undriven.block_on(async { world.bind(&layer, ws).await });
    world.rebuild(ws, &old, Does::Fail(ms(0)));
    world.store.on_writes(Fault::Hang);
    let bound = undriven.block_on(async { call(&dial, chat).await.unwrap() });
    driven.block_on(async {
        let begin = Instant::now();
        assert_eq!(layer.bindings().close(secs(3)).await, 1);
        assert!(begin.elapsed() <= secs(4), "{:?}", begin.elapsed());
    });
    drop(undriven);
    assert_eq!(bound.outcome().repair(), Repair::Failed);
}

#[test]
fn a_follower_on_an_undriven_runtime_is_replaced() {
    let world = World::new();
    let layer = layer(&world);
    let (ws, _) = world.workspace();
    let (elsewhere, target) = world.workspace();
    let (undriven, driven) = (runtime(), runtime());
    let dial = world.dial(&layer);
    // The follower runs there from here on.
    let chat = undriven.block_on(async { world.bind(&layer, ws).await });
    driven.block_on(async {
        world.store.elsewhere().retarget(chat, elsewhere).await.unwrap();
        for _ in 0..100 {
            sleep(secs(1)).await;
            call(&dial, chat).await.unwrap();
        }
        assert_eq!(call(&dial, chat).await.unwrap().agent, target.agent, "the row was checked");
    });
    // The first follower ends when its runtime is driven again.
    undriven.block_on(async {
        sleep(secs(1)).await;
        let before = world.store.bulk_reads();
        sleep(secs(300)).await;
        assert_eq!(world.store.bulk_reads() - before, 0);
    });
}

#[test]
fn tasks_run_on_the_runtime_of_the_builder() {
    let world = World::new();
    let background = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let layer = world.builder().runtime(background.handle().clone()).build().unwrap();
    let (ws, old) = world.workspace();
    let once = |future: std::pin::Pin<Box<dyn Future<Output = ()> + '_>>| {
        Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
    };
    let dial = world.dial(&layer);
    let chat = session();
    once(Box::pin(async {
        call(&dial, tower_bound_agent::DialSession::new(chat).in_workspace(ws)).await.unwrap();
    }));
    let new = world.rebuild(ws, &old, Does::Fail(ms(0)));
    once(Box::pin(async {
        call(&dial, chat).await.unwrap();
    }));
    // The runtime of the call has ended, and its repair continues.
    once(Box::pin(async {
        assert_eq!(timeout(secs(20), layer.bindings().flush()).await.unwrap(), 0);
        assert_eq!(world.row_agent(chat), Some(new.agent));
        assert_eq!(layer.bindings().close(secs(1)).await, 0);
    }));
}
