//! Commands whose store does not answer: their results and the reads that follow. No command is
//! sent twice.

use crate::at;
use std::sync::Arc;
use support::*;
use tokio::time::{Duration, Instant, sleep};
use tower_bound_agent::{
    Error, ErrorKind,
    store::{BindingStore, NewBinding, StoreError, Swap},
};

fn is_unknown(error: &Error) -> bool {
    let cause = error.store_error().and_then(|cause| cause.downcast_ref::<StoreError>());
    *error.kind() == ErrorKind::OutcomeUnknown && matches!(cause, Some(StoreError::Unknown(_)))
}

#[tokio::test(start_paused = true)]
async fn a_command_whose_future_is_dropped_is_carried_out() {
    let world = World::new();
    let (ws, _) = world.workspace();
    let (other, target) = world.workspace();
    let layer = world.layer();
    let chat = world.bind(&layer, ws).await;
    world.store.on_writes(Fault::Slow(ms(50)));
    let bindings = layer.bindings();
    let dropped = tokio::time::timeout(ms(10), bindings.retarget(chat, other)).await;
    assert!(dropped.is_err());
    sleep(ms(50)).await;
    assert_eq!(world.row(chat).unwrap().workspace, other);
    let before = world.counts();
    assert_eq!(call(&world.dial(&layer), chat).await.unwrap().agent, target.agent);
    assert_eq!((world.counts() - before).r, 0);
}

#[tokio::test(start_paused = true)]
async fn a_command_whose_answer_was_lost_succeeds_if_the_row_shows_it() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let (other, _) = world.workspace();
    let layer = world.layer();
    let bindings = layer.bindings();
    let chat = world.bind(&layer, ws).await;
    let (child, parent) = (session(), world.bind(&layer, ws).await);
    world.store.on_writes(Fault::LostAnswer);

    let before = world.counts();
    let row = bindings.retarget(chat, other).await.unwrap();
    assert_eq!((row.workspace, Some(row)), (other, world.row(chat)));
    assert_eq!(
        world.counts() - before,
        counts(0, 0, 1, 1),
        "the command is sent once and the row is read once"
    );
    assert_eq!(bindings.get(chat).await.unwrap().unwrap().workspace, other);
    assert_eq!(world.counts() - before, counts(0, 0, 1, 1), "the row is cached");

    let before = world.counts();
    let row = bindings.unbind(parent).await.unwrap().unwrap();
    assert_eq!((row.workspace, row.target), (ws, None));
    assert_eq!(world.counts() - before, counts(0, 0, 1, 1));

    world.store.elsewhere().forget(chat, None).await.unwrap();
    let row = world.store.elsewhere().load(parent).await.unwrap().unwrap();
    let bound = NewBinding::new(parent, ws, Some(Arc::new(target.clone())));
    let Swap::Applied(_) =
        world.store.elsewhere().compare_and_swap(row.revision, bound).await.unwrap()
    else {
        panic!("the row has changed")
    };
    let before = world.counts();
    let row = bindings.inherit(child, parent).await.unwrap();
    assert_eq!((row.workspace, row.target.as_deref()), (ws, Some(&target)));
    // The child's row shows the result; it is compared with the parent's row.
    assert_eq!(world.counts() - before, counts(0, 0, 2, 1));

    let before = world.counts();
    assert!(bindings.forget(child).await.unwrap());
    assert_eq!((world.row(child), world.counts() - before), (None, counts(0, 0, 1, 1)));
}

#[tokio::test(start_paused = true)]
async fn a_lost_command_has_an_unknown_outcome_and_each_call_reads_the_row() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let (other, target) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, ws).await;
    world.store.on_writes(Fault::LostRequest);
    let before = world.counts();
    let error = layer.bindings().retarget(chat, other).await.unwrap_err();
    assert!(is_unknown(&error), "{error:?}");
    assert_eq!(error.session(), Some(chat));
    assert_eq!(world.counts() - before, counts(0, 0, 1, 1), "the command is not sent again");
    world.store.on_writes(Fault::None);

    let before = world.counts();
    for n in 1..=5 {
        assert_eq!(call(&dial, chat).await.unwrap().agent, old.agent);
        assert_eq!(world.counts() - before, counts(n, 0, n, 0));
        sleep(Duration::from_secs(10)).await;
    }
    // The statement arrives late.
    world.store.elsewhere().retarget(chat, other).await.unwrap();
    let before = world.counts();
    assert_eq!(call(&dial, chat).await.unwrap().agent, target.agent);
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(1, 1, 1, 1));
    assert_eq!(call(&dial, chat).await.unwrap().agent, target.agent);
    assert_eq!(world.counts() - before, counts(2, 1, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_command_that_never_arrives_is_expected_for_a_minute() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let (other, _) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, ws).await;
    world.store.on_writes(Fault::LostRequest);
    let begin = Instant::now();
    assert!(is_unknown(&layer.bindings().retarget(chat, other).await.unwrap_err()));
    world.store.on_writes(Fault::None);
    let before = world.counts();
    for (after, reads) in [(0, 1), (30_000, 2), (59_999, 3), (60_000, 4), (60_001, 4), (90_000, 4)]
    {
        at(begin, ms(after)).await;
        assert_eq!(call(&dial, chat).await.unwrap().agent, old.agent);
        assert_eq!((world.counts() - before).r, reads, "after {after} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn a_command_without_an_answer_ends_after_the_store_timeout() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let (other, _) = world.workspace();
    let layer = world.layer();
    for (reads, after) in
        [(Fault::None, Duration::from_secs(5)), (Fault::Hang, Duration::from_secs(10))]
    {
        let chat = world.bind(&layer, ws).await;
        world.store.on_writes(Fault::Hang);
        world.store.on_reads(reads);
        let (before, begin) = (world.counts(), Instant::now());
        let error = layer.bindings().retarget(chat, other).await.unwrap_err();
        assert!(is_unknown(&error), "{error:?}");
        assert_eq!((begin.elapsed(), world.counts() - before), (after, counts(0, 0, 1, 1)));
        world.store.on_all(Fault::None);
        if reads == Fault::Hang {
            // No statement is sent again before the layer considers the connection dead.
            sleep(Duration::from_secs(120)).await;
        }
        let before = world.counts();
        assert_eq!(call(&world.dial(&layer), chat).await.unwrap().agent, old.agent);
        assert_eq!(world.counts() - before, counts(1, 0, 1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_that_is_under_way_does_not_lengthen_a_command() {
    let world = World::new();
    let (ws, _) = world.workspace();
    let (other, layer) = (world.layer(), world.layer());
    let bindings = layer.bindings();
    let (child, parent) = (world.bind(&other, ws).await, world.bind(&other, ws).await);
    world.store.on_writes(Fault::Hang);
    world.store.on_reads(Fault::Slow(ms(4_900)));
    let (before, begin) = (world.counts(), Instant::now());
    let inherited = tokio::spawn({
        let bindings = bindings.clone();
        async move { bindings.inherit(child, parent).await }
    });
    at(begin, ms(4_900)).await;
    let read = |session| {
        let bindings = bindings.clone();
        tokio::spawn(async move { bindings.get(session).await.unwrap() })
    };
    let (childs, parents) = (read(child), read(parent));
    // These reads began before the command had failed, so they do not show its outcome.
    let error = inherited.await.unwrap().unwrap_err();
    assert!(is_unknown(&error), "{error:?}");
    assert_eq!(begin.elapsed(), Duration::from_secs(10));
    assert_eq!(
        (childs.await.unwrap(), parents.await.unwrap()),
        (world.row(child), world.row(parent))
    );
    assert_eq!(world.counts() - before, counts(0, 0, 4, 1));
}

#[tokio::test(start_paused = true)]
async fn a_child_that_inherits_waits_for_at_most_three_store_timeouts() {
    let world = World::new();
    let (ws, _) = world.workspace();
    let layer = world.layer();
    let (child, parent) = (world.bind(&layer, ws).await, world.bind(&layer, ws).await);
    world.store.on_all(Fault::Slow(ms(4_900)));
    let (before, begin) = (world.counts(), Instant::now());
    // For an earlier command, for the answer, and for the rows of both.
    let bindings = layer.bindings();
    let earlier = tokio::spawn(async move { bindings.unbind(child).await.unwrap() });
    sleep(ms(1)).await;
    world.store.on_writes(Fault::Hang);
    let row = layer.bindings().inherit(child, parent).await.unwrap();
    assert_eq!((Some(row), begin.elapsed()), (world.row(child), ms(14_800)));
    assert_eq!((world.counts() - before, earlier.await.is_ok()), (counts(0, 0, 2, 2), true));
}

#[tokio::test(start_paused = true)]
async fn every_lost_command_has_an_unknown_outcome_and_is_sent_once() {
    let world = World::new();
    let (ws, _) = world.workspace();
    let layer = world.layer();
    let bindings = layer.bindings();
    let (a, b, parent) =
        (world.bind(&layer, ws).await, world.bind(&layer, ws).await, world.bind(&layer, ws).await);
    world.store.on_writes(Fault::LostRequest);

    let before = world.counts();
    assert!(is_unknown(&bindings.unbind(a).await.unwrap_err()));
    assert_eq!(world.counts() - before, counts(0, 0, 1, 1));
    assert!(is_unknown(&bindings.forget(b).await.unwrap_err()));
    assert_eq!(world.counts() - before, counts(0, 0, 2, 2));
    assert!(is_unknown(&bindings.inherit(session(), parent).await.unwrap_err()));
    assert_eq!(world.counts() - before, counts(0, 0, 4, 3), "the parent's row is read as well");
    assert!(is_unknown(&bindings.reset_workspace(ws).await.unwrap_err()));
    assert_eq!(world.counts() - before, counts(0, 0, 4, 4));

    // Late arrivals are seen by the next call.
    world.store.on_writes(Fault::None);
    world.store.elsewhere().forget(b, None).await.unwrap();
    assert_eq!(call(&world.dial(&layer), b).await.unwrap_err().kind(), &ErrorKind::NotBound);
}

#[tokio::test(start_paused = true)]
async fn a_command_to_a_store_that_is_down_changes_nothing() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let (other, _) = world.workspace();
    let layer = world.layer();
    let bindings = layer.bindings();
    let chat = world.bind(&layer, ws).await;
    world.store.on_all(Fault::Unavailable);

    let before = world.counts();
    let errors = [
        bindings.retarget(chat, other).await.unwrap_err(),
        bindings.unbind(chat).await.unwrap_err(),
        bindings.forget(chat).await.unwrap_err(),
        bindings.inherit(session(), chat).await.unwrap_err(),
        bindings.reset_workspace(ws).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), &ErrorKind::Store);
        let cause = error.store_error().unwrap().downcast_ref::<StoreError>();
        assert!(matches!(cause, Some(StoreError::Unavailable(_))), "{cause:?}");
    }
    assert_eq!(world.counts() - before, counts(0, 0, 0, 5));
    assert_eq!(call(&world.dial(&layer), chat).await.unwrap().agent, old.agent);
    assert_eq!(world.counts() - before, counts(1, 0, 0, 5));
}
