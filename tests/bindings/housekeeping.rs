//! Purges through the handle: batches, temporary errors, and lasting ones.

use crate::at;
use std::{
    thread,
    time::{SystemTime, UNIX_EPOCH},
};
use support::*;
use tokio::{
    task::JoinHandle,
    time::{Duration, Instant},
};
use tower_bound_agent::{
    Binding, Bindings, BoundAgentLayer, Error, ErrorKind, SessionId,
    store::{BATCH, BindingStore, NewBinding, Purged, StoreError},
};

/// Rows that were used just now, which makes them idle for a limit of zero. Every other row was
/// only created and never used.
async fn used(world: &World, rows: usize) -> (BoundAgentLayer, Vec<SessionId>) {
    let (ws, _) = world.workspace();
    let store = world.store.elsewhere();
    let sessions: Vec<_> = (0..rows).map(|_| session()).collect();
    for session in &sessions {
        let _ = store.create(NewBinding::new(*session, ws, None)).await.unwrap();
    }
    let used: Vec<_> = sessions.iter().copied().step_by(2).collect();
    store.touch(&[], Duration::from_secs(60)).await.unwrap();
    for batch in used.chunks(BATCH) {
        store.touch(batch, Duration::from_secs(60)).await.unwrap();
    }
    // Housekeeping is the one thing that reads the wall clock.
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let began = now();
    while now() <= began {
        thread::sleep(ms(1));
    }
    (world.layer(), sessions)
}

/// Returns how many of the sessions still have a row.
async fn left(world: &World, sessions: &[SessionId]) -> usize {
    let mut rows: Vec<Binding> = Vec::new();
    for batch in sessions.chunks(BATCH) {
        rows.extend(world.store.elsewhere().load_many(batch).await.unwrap());
    }
    rows.len()
}

fn start(bindings: &Bindings) -> JoinHandle<Result<u64, Error>> {
    let bindings = bindings.clone();
    tokio::spawn(async move { bindings.purge_idle(Duration::ZERO).await })
}

fn said(error: &Error) -> (&ErrorKind, &StoreError) {
    (error.kind(), error.store_error().unwrap().downcast_ref().unwrap())
}

#[tokio::test(start_paused = true)]
async fn idle_sessions_are_forgotten_batch_by_batch() {
    for (rows, batches) in [(0, 1), (1, 1), (BATCH - 1, 1), (BATCH, 2), (2 * BATCH + 500, 3)] {
        let world = World::new();
        let (layer, sessions) = used(&world, rows).await;
        let before = world.counts();
        assert_eq!(layer.bindings().purge_idle(Duration::ZERO).await.unwrap(), rows as u64);
        assert_eq!(world.counts() - before, counts(0, 0, 0, batches), "{rows} rows");
        assert_eq!(left(&world, &sessions).await, 0);
        // The removed rows have not been forgotten for seven days.
        let before = world.counts();
        assert_eq!(layer.bindings().purge_forgotten().await.unwrap(), Purged::new(0, 0));
        assert_eq!(world.counts() - before, counts(0, 0, 0, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_purge_is_a_typed_error_and_is_not_repeated() {
    let world = World::new();
    let (layer, sessions) = used(&world, 1).await;
    let before = (Instant::now(), world.counts());
    let error = layer.bindings().purge_idle(Duration::from_secs(3600)).await.unwrap_err();
    assert!(
        matches!(said(&error), (ErrorKind::Store, StoreError::UseNotRecorded { since: Some(_) })),
        "{error:?}"
    );
    assert_eq!((before.0.elapsed(), world.counts() - before.1), (ms(0), counts(0, 0, 0, 1)));
    assert_eq!(left(&world, &sessions).await, 1);
    assert_eq!(error.session(), None);
}

#[tokio::test(start_paused = true)]
async fn a_temporary_failure_is_repeated_after_a_pause() {
    let world = World::new();
    let (layer, sessions) = used(&world, 3).await;
    world.store.on_writes(Fault::Unavailable);
    let (begin, before) = (Instant::now(), world.counts());
    let purge = start(&layer.bindings());
    at(begin, ms(1200)).await; // tried at 0 and 250 ms
    assert_eq!(world.counts() - before, counts(0, 0, 0, 2));
    world.store.on_writes(Fault::None);
    assert_eq!(purge.await.unwrap().unwrap(), 3);
    assert_eq!((begin.elapsed(), world.counts() - before), (ms(1250), counts(0, 0, 0, 3)));
    assert_eq!(left(&world, &sessions).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_lasting_failure_ends_after_three_more_attempts() {
    let pauses = ms(250 + 1000 + 4000);
    for (fault, took, left_over) in [
        (Fault::Unavailable, pauses, 2),
        (Fault::LostRequest, pauses, 2),
        // The first attempt was executed.
        (Fault::LostAnswer, pauses, 0),
    ] {
        let world = World::new();
        let (layer, sessions) = used(&world, 2).await;
        world.store.on_writes(fault);
        let (begin, before) = (Instant::now(), world.counts());
        let error = layer.bindings().purge_idle(Duration::ZERO).await.unwrap_err();
        let expected = match said(&error) {
            (ErrorKind::Store, StoreError::Unavailable(_)) => fault == Fault::Unavailable,
            (ErrorKind::OutcomeUnknown, StoreError::Unknown(_)) => fault != Fault::Unavailable,
            _ => false,
        };
        assert!(expected, "{fault:?}: {error:?}");
        assert_eq!(
            (begin.elapsed(), world.counts() - before),
            (took, counts(0, 0, 0, 4)),
            "{fault:?}"
        );
        assert_eq!(left(&world, &sessions).await, left_over, "{fault:?}");

        let before = world.counts();
        let error = layer.bindings().purge_forgotten().await.unwrap_err();
        assert_eq!(
            matches!(error.kind(), ErrorKind::Store),
            fault == Fault::Unavailable,
            "{fault:?}: {error:?}"
        );
        assert_eq!(world.counts() - before, counts(0, 0, 0, 4), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_without_an_answer_is_not_sent_again() {
    let world = World::new();
    let (layer, sessions) = used(&world, 2).await;
    world.store.on_writes(Fault::Hang);
    let (begin, before) = (Instant::now(), world.counts());
    let error = layer.bindings().purge_idle(Duration::ZERO).await.unwrap_err();
    // Each of the four attempts waits for one store timeout: the first for its answer, the others
    // until they may be sent.
    assert!(matches!(said(&error), (ErrorKind::Store, StoreError::Unavailable(_))), "{error:?}");
    assert_eq!(
        (begin.elapsed(), world.counts() - before),
        (ms(5_250 + 4 * 5_000), counts(0, 0, 0, 1))
    );
    assert_eq!(left(&world, &sessions).await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_fails_does_not_undo_earlier_batches() {
    let world = World::new();
    let (layer, sessions) = used(&world, 2 * BATCH + 5).await;
    world.store.on_writes(Fault::Slow(ms(100)));
    let begin = Instant::now();
    let purge = start(&layer.bindings());
    at(begin, ms(150)).await;
    world.store.on_writes(Fault::Unavailable);
    let error = purge.await.unwrap().unwrap_err();
    assert!(matches!(said(&error), (ErrorKind::Store, StoreError::Unavailable(_))), "{error:?}");
    assert_eq!(left(&world, &sessions).await, 5);
    world.store.on_writes(Fault::None);
    assert_eq!(layer.bindings().purge_idle(Duration::ZERO).await.unwrap(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_closed_layer_refuses_purges() {
    let world = World::new();
    let (layer, sessions) = used(&world, 1).await;
    let bindings = layer.bindings();
    world.store.on_writes(Fault::Unavailable);
    let (begin, before) = (Instant::now(), world.counts());
    let purge = start(&bindings);
    at(begin, ms(600)).await; // in the pause of a second
    assert_eq!(world.counts() - before, counts(0, 0, 0, 2));
    bindings.close(ms(100)).await;
    let error = purge.await.unwrap().unwrap_err();
    assert_eq!((error.kind(), begin.elapsed()), (&ErrorKind::Closed, ms(600)));
    world.store.on_writes(Fault::None);
    assert_eq!(*bindings.purge_idle(Duration::ZERO).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(*bindings.purge_forgotten().await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(world.counts() - before, counts(0, 0, 0, 2));
    assert_eq!(left(&world, &sessions).await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_purge_sends_no_further_batch() {
    let world = World::new();
    let (layer, sessions) = used(&world, BATCH + 5).await;
    world.store.on_writes(Fault::SlowAnswer(ms(100)));
    let before = world.counts();
    let dropped = tokio::time::timeout(ms(50), layer.bindings().purge_idle(Duration::ZERO)).await;
    assert!(dropped.is_err());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.counts() - before, counts(0, 0, 0, 1));
    assert_eq!(left(&world, &sessions).await, 5);
}

/// Uses a database, in which SQL can set times in the past.
#[cfg(feature = "sqlite")]
#[tokio::test]
async fn forgotten_sessions_are_removed_in_two_runs() {
    use tower_bound_agent::store::SqliteStore;

    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path().join("bindings.db")).await.unwrap();
    let run = async |sql: &'static str| {
        sqlx::raw_sql(sql).execute(store.pool()).await.unwrap().rows_affected()
    };
    let world = World::new();
    let layer = BoundAgentLayer::builder(std::sync::Arc::new(store.clone()), world.resolver())
        .build()
        .unwrap();
    let bindings = layer.bindings();
    let (chat, other) = (session(), session());
    for session in [chat, other] {
        bindings.retarget(session, workspace()).await.unwrap();
    }
    assert!(bindings.forget(chat).await.unwrap());
    assert_eq!(
        run("UPDATE agent_bindings SET deleted_at = 7 WHERE deleted_at IS NOT NULL").await,
        1
    );
    assert_eq!(bindings.purge_forgotten().await.unwrap(), Purged::new(0, 1));
    assert_eq!(
        bindings.purge_forgotten().await.unwrap(),
        Purged::new(0, 1),
        "the hour has not passed"
    );
    assert_eq!(
        run("UPDATE agent_bindings_meta SET floor_raised_at = floor_raised_at - 3600000").await,
        1
    );
    assert_eq!(bindings.purge_forgotten().await.unwrap(), Purged::new(1, 0));
    let row = bindings.retarget(chat, workspace()).await.unwrap();
    assert_eq!(row.revision.get(), 3, "the revision is above its last one");
    assert!(bindings.get(other).await.unwrap().is_some());
}
