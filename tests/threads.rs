//! Many threads on the real clock: a result that one thread has received holds for every call that
//! any thread begins afterwards.
//!
//! The tests are bounded by counts, and do not depend on the speed of the machine.

use std::sync::{
    Arc, Barrier,
    atomic::{AtomicBool, AtomicI64, Ordering::SeqCst},
};
use support::*;
use tokio::task::JoinSet;
use tower_bound_agent::{DialSession, ErrorKind, SessionId, Target, WorkspaceId};

const WORKSPACES: usize = 4;
const CHATS: usize = 32;
const ROUNDS: usize = 150;

/// A workspace that is rebuilt continuously. The agents of former builds still answer.
struct Site {
    id: WorkspaceId,
    /// The greatest generation of a returned connection.
    seen: AtomicI64,
}

fn sites(world: &World) -> Vec<(Arc<Site>, Target)> {
    let site = |_| {
        let (id, target) = world.workspace();
        (Arc::new(Site { id, seen: AtomicI64::new(0) }), target)
    };
    (0..WORKSPACES).map(site).collect()
}

/// Rebuilds workspaces until it is stopped, and revalidates each of them.
fn rebuild(
    world: &World,
    sites: &[(Arc<Site>, Target)],
    bindings: &tower_bound_agent::Bindings,
) -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let (world, stopped, bindings) = (world.clone(), Arc::clone(&stop), bindings.clone());
    let mut sites: Vec<_> = sites.iter().map(|(site, target)| (site.id, target.clone())).collect();
    tokio::spawn(async move {
        while !stopped.load(SeqCst) {
            for (id, target) in &mut sites {
                *target = world.rebuild(*id, target, Does::Answer(ms(0)));
                bindings.revalidate_workspace(*id);
                tokio::task::yield_now().await;
            }
        }
    });
    stop
}

/// Makes one call, and checks that its target is not older than any target that was returned before
/// the call began.
async fn turn(dial: &Dial, chat: SessionId, site: &Site) {
    let floor = site.seen.load(SeqCst);
    let bound = call(dial, chat).await.unwrap();
    assert_eq!(bound.workspace(), site.id);
    let generation = bound.target().generation.unwrap().get();
    assert!(generation >= floor, "generation {generation} after {floor}");
    site.seen.fetch_max(generation, SeqCst);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_call_returns_an_older_target_than_an_earlier_call_of_another_session() {
    let world = World::new();
    let layer = world.layer();
    let sites = sites(&world);
    let stop = rebuild(&world, &sites, &layer.bindings());
    let mut chats = JoinSet::new();
    for n in 0..CHATS {
        let (site, dial) = (Arc::clone(&sites[n % WORKSPACES].0), world.dial(&layer));
        chats.spawn(async move {
            let chat = session();
            call(&dial, DialSession::new(chat).in_workspace(site.id)).await.unwrap();
            // The threads run until each workspace was seen in several builds, however they are
            // scheduled.
            let mut round = 0;
            while round < ROUNDS || site.seen.load(SeqCst) < 20 {
                turn(&dial, chat, &site).await;
                tokio::task::yield_now().await;
                round += 1;
            }
        });
    }
    while let Some(chat) = chats.join_next().await {
        chat.unwrap();
    }
    stop.store(true, SeqCst);
    assert_eq!(layer.bindings().close(ms(5_000)).await, 0);
}

/// Commands retarget each session, while other sessions evict it from a cache that is too small.
async fn commands(capacity: u64) {
    let world = World::new();
    let layer = world.builder().cache_capacity(capacity).build().unwrap();
    let sites = sites(&world);
    let stop = rebuild(&world, &sites, &layer.bindings());
    let mut chats = JoinSet::new();
    for n in 0..CHATS {
        let (dial, bindings) = (world.dial(&layer), layer.bindings());
        let ids: Vec<_> = sites.iter().map(|(site, _)| site.id).collect();
        chats.spawn(async move {
            let chat = session();
            for round in 0..ROUNDS {
                let id = ids[(n + round) % WORKSPACES];
                bindings.retarget(chat, id).await.unwrap();
                // Other calls of the same session, begun before and after the command.
                let late = tokio::spawn({
                    let dial = dial.clone();
                    async move { call(&dial, chat).await }
                });
                for _ in 0..3 {
                    assert_eq!(call(&dial, chat).await.unwrap().workspace(), id);
                }
                assert_eq!(late.await.unwrap().unwrap().workspace(), id);
                if round % 10 == 9 {
                    assert!(bindings.forget(chat).await.unwrap());
                    let error = call(&dial, chat).await.unwrap_err();
                    assert_eq!(error.kind(), &ErrorKind::NotBound);
                }
            }
        });
    }
    while let Some(chat) = chats.join_next().await {
        chat.unwrap();
    }
    stop.store(true, SeqCst);
    assert_eq!(layer.bindings().close(ms(5_000)).await, 0);
    assert_eq!(world.live_dials(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_command_holds_for_every_later_call() {
    commands(100_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_command_holds_although_the_cache_is_tiny() {
    commands(4).await;
}

/// Two calls of a session, each on a thread of its own, as close to each other as may be.
async fn at_once(dial: &Dial, chat: SessionId) {
    let gate = Arc::new(Barrier::new(2));
    let calls = [(), ()].map(|()| {
        let (dial, gate) = (dial.clone(), Arc::clone(&gate));
        tokio::spawn(async move {
            gate.wait();
            call(&dial, chat).await.map(drop)
        })
    });
    for call in calls {
        call.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_doubt_is_one_question_whichever_threads_see_it() {
    let world = World::new();
    let layer = world.layer();
    let (dial, bindings) = (world.dial(&layer), layer.bindings());
    let (id, _) = world.workspace();
    let chat = world.bind(&layer, id).await;
    // A session that holds a connection asks as well.
    let held = call(&dial, chat).await.unwrap();
    let before = world.counts();
    for round in 1..=3_000 {
        bindings.revalidate_workspace(id);
        at_once(&dial, chat).await;
        while bindings.inspect(id).is_some_and(|snapshot| !snapshot.doubts.is_empty()) {
            tokio::task::yield_now().await;
        }
        assert_eq!((world.counts() - before).v, round, "questions about {round} doubts");
    }
    assert_eq!(bindings.close(ms(5_000)).await, 0);
    assert_eq!(world.counts() - before, counts(6_000, 3_000, 0, 0));
    drop(held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cold_session_is_read_once_whichever_threads_call() {
    let world = World::new();
    let (layer, other) = (world.layer(), world.layer());
    let dial = world.dial(&layer);
    let (id, _) = world.workspace();
    for round in 0..3_000 {
        let chat = world.bind(&other, id).await;
        let before = world.counts();
        at_once(&dial, chat).await;
        assert_eq!(world.counts() - before, counts(2, 0, 1, 0), "round {round}");
    }
}
