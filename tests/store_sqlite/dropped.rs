//! Verbs whose caller goes away, at every point where it can.

use super::*;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};
use tower_bound_agent::store::{BindingStore, StoreError};

/// When a future is dropped.
#[derive(Clone, Copy, Debug)]
enum Drop {
    /// Right after it was polled that often: the statement may just have been sent.
    After(usize),
    /// Instead of the poll after that, when it was woken for it: the answer may be there.
    Before(usize),
}

/// Polls a future up to a point; `None` if it was not ready before.
struct Until<F> {
    future: F,
    left: usize,
    drop: Drop,
}

impl<F: Future + Unpin> Future for Until<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= 1;
        match Pin::new(&mut self.future).poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if self.left == 0 && matches!(self.drop, Drop::After(_)) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

async fn until<F: Future>(drop: Drop, future: F) -> Option<F::Output> {
    let (Drop::After(left) | Drop::Before(left)) = drop;
    Until { future: Box::pin(future), left, drop }.await
}

#[derive(Clone, Copy, Debug)]
enum Verb {
    Create,
    Swap,
    Retarget,
    Unbind,
    Delete,
    Inherit,
    Reset,
}

impl Verb {
    const ALL: [Self; 7] =
        [Self::Create, Self::Swap, Self::Retarget, Self::Unbind, Self::Delete, Self::Inherit, Self::Reset];

    /// The row that it works on, before and after.
    fn rows(self, s: u128) -> (Option<Binding>, Option<Binding>) {
        let bound = Some(row(s, s, Some(target(1)), 1, None));
        match self {
            Self::Create => (None, bound),
            Self::Swap => (bound, Some(row(s, s, Some(target(2)), 2, previous(1)))),
            Self::Retarget => (bound, Some(row(s, 0, None, 2, previous(1)))),
            Self::Unbind | Self::Reset => (bound, Some(row(s, s, None, 2, previous(1)))),
            Self::Delete => (bound, None),
            Self::Inherit => (None, Some(row(s, 0, Some(target(7)), 1, None))),
        }
    }

    async fn run(self, store: &SqliteStore, s: u128) -> Result<(), StoreError> {
        match self {
            Self::Create => drop(store.create(new(s, s, Some(target(1)))).await?),
            Self::Swap => drop(store.compare_and_swap(at(1), new(s, s, Some(target(2)))).await?),
            Self::Retarget => drop(store.retarget(session(s), workspace(0)).await?),
            Self::Unbind => drop(store.unbind(session(s)).await?),
            Self::Delete => drop(store.delete(session(s), None).await?),
            Self::Inherit => drop(store.inherit(session(s), session(0)).await?),
            Self::Reset => drop(store.reset_workspace(workspace(s)).await?),
        }
        Ok(())
    }
}

async fn a_dropped_verb_leaves_old_or_new(store: &SqliteStore, connections: usize) {
    assert!(matches!(store.create(new(0, 0, Some(target(7)))).await, Ok(tower_bound_agent::store::Swap::Applied(_))));
    let mut s = 0;
    for verb in Verb::ALL {
        for polls in 0.. {
            let mut completed = false;
            for drop_at in [Drop::After(polls), Drop::Before(polls)] {
                s += 1;
                let (before, after) = verb.rows(s);
                if before.is_some() {
                    let _ = store.create(new(s, s, Some(target(1)))).await.unwrap();
                }
                let outcome = until(drop_at, verb.run(store, s)).await;
                completed |= outcome.is_some();

                // The row can be read at once, and is one or the other.
                let read = store.load(session(s)).await.unwrap();
                assert!(read == before || read == after, "{verb:?}, dropped {drop_at:?}: {read:?}");
                // Every connection comes back.
                let mut held = Vec::new();
                for _ in 0..connections {
                    held.push(store.pool().acquire().await.unwrap());
                }
                drop(held);
                // Now the statement, if there was one, has ended; and it has left no lock behind.
                let read = store.load(session(s)).await.unwrap();
                assert!(read == before || read == after, "{verb:?}, dropped {drop_at:?}: {read:?}");
                match outcome {
                    Some(done) => {
                        done.unwrap();
                        assert_eq!(read, after, "{verb:?} was not dropped");
                    }
                    None if polls == 0 => assert_eq!(read, before, "{verb:?} was never polled"),
                    None => {}
                }
                let _ = store.retarget(session(s), workspace(1)).await.unwrap();
            }
            if completed {
                break;
            }
            assert!(polls < 100, "it must end some day");
        }
    }
}

#[tokio::test]
async fn a_verb_dropped_at_any_poll_leaves_the_row_old_or_new() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path().join("bindings.db")).await.unwrap();
    a_dropped_verb_leaves_old_or_new(&store, 4).await;
}

#[tokio::test]
async fn a_verb_dropped_at_any_poll_gives_the_only_connection_back() {
    a_dropped_verb_leaves_old_or_new(&in_memory().await, 1).await;
}

/// What was sent is carried out, even if it had to wait, and nobody was left to hear of it.
#[tokio::test]
async fn a_verb_dropped_while_its_statement_waits_for_a_lock_is_carried_out() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bindings.db");
    let neighbour = SqliteStore::open(&path).await.unwrap();
    let one = SqlitePoolOptions::new().max_connections(1).test_before_acquire(false);
    let store = SqliteStore::new(one.connect_with(SqliteConnectOptions::new().filename(&path)).await.unwrap());
    let _ = neighbour.create(new(0, 0, Some(target(7)))).await.unwrap();
    for (s, verb) in (1..).zip(Verb::ALL) {
        let (before, after) = verb.rows(s);
        if before.is_some() {
            let _ = neighbour.create(new(s, s, Some(target(1)))).await.unwrap();
        }
        let lock = neighbour.pool().begin_with("BEGIN IMMEDIATE").await.unwrap();
        // With a connection that is free, the first poll sends the statement.
        while store.pool().num_idle() == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        assert!(until(Drop::After(1), verb.run(&store, s)).await.is_none());
        assert_eq!(neighbour.load(session(s)).await.unwrap(), before);
        lock.rollback().await.unwrap();
        assert_eq!(
            store.load(session(s)).await.unwrap(),
            after,
            "{verb:?}; its connection is free again, so it has ended"
        );
    }
}

#[tokio::test]
async fn an_opening_dropped_at_any_poll_can_be_done_again() {
    for polls in 0.. {
        for drop_at in [Drop::After(polls), Drop::Before(polls)] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("bindings.db");
            let first = until(drop_at, SqliteStore::open(&path)).await;
            let again = SqliteStore::open(&path).await.unwrap();
            again.check().await.unwrap();
            assert_eq!(again.retarget(session(1), workspace(1)).await.unwrap(), row(1, 1, None, 1, None));
            if let Some(first) = first {
                assert_eq!(first.unwrap().load(session(1)).await.unwrap(), Some(row(1, 1, None, 1, None)));
                return;
            }
        }
        assert!(polls < 200, "it must end some day");
    }
}
