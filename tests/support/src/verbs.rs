//! Every verb that writes, with the row before and after it, and with a caller that drops it.

use crate::rows::*;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};
use tower_bound_agent::{
    Binding,
    store::{BindingStore, StoreError, Swap},
};

/// The moment at which a future is dropped.
#[derive(Clone, Copy, Debug)]
pub enum Drop {
    /// Right after this number of polls: the statement may just have been sent.
    After(usize),
    /// When the future was woken for the next poll, in its place: the answer may have arrived.
    Before(usize),
}

/// Polls a future up to a point. Returns `None` if the future was not ready before.
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
            Poll::Pending if self.left == 0 && matches!(self.drop, Drop::After(_)) => {
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

pub async fn until<F: Future>(drop: Drop, future: F) -> Option<F::Output> {
    let (Drop::After(left) | Drop::Before(left)) = drop;
    Until { future: Box::pin(future), left, drop }.await
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verb {
    Create,
    Swap,
    Retarget,
    Unbind,
    Delete,
    Inherit,
    Reset,
    Replace,
}

impl Verb {
    pub const ALL: [Self; 8] = [
        Self::Create,
        Self::Swap,
        Self::Retarget,
        Self::Unbind,
        Self::Delete,
        Self::Inherit,
        Self::Reset,
        Self::Replace,
    ];

    /// Returns the row before and after the verb.
    pub fn rows(self, s: u128) -> (Option<Binding>, Option<Binding>) {
        let bound = Some(row(s, s, Some(target(1)), 1, None));
        match self {
            Self::Create => (None, bound),
            Self::Swap | Self::Replace => (bound, Some(row(s, s, Some(target(2)), 2, previous(1)))),
            Self::Retarget => (bound, Some(row(s, 0, None, 2, previous(1)))),
            Self::Unbind => (bound, Some(row(s, s, None, 2, previous(1)))),
            Self::Reset => (bound, Some(row(s, s, None, 2, previous(1)).with_epoch(epoch(1)))),
            Self::Delete => (bound, None),
            Self::Inherit => (None, Some(row(s, 0, Some(target(7)), 1, None))),
        }
    }

    pub async fn run(self, store: &impl BindingStore, s: u128) -> Result<(), StoreError> {
        match self {
            Self::Create => drop(store.create(new(s, s, Some(target(1)))).await?),
            Self::Swap => drop(store.compare_and_swap(at(1), new(s, s, Some(target(2)))).await?),
            Self::Retarget => drop(store.retarget(session(s), workspace(0)).await?),
            Self::Unbind => drop(store.unbind(session(s)).await?),
            Self::Delete => drop(store.forget(session(s), None).await?),
            Self::Inherit => drop(store.inherit(session(s), session(0)).await?),
            Self::Reset => drop(store.reset_workspace(workspace(s)).await?),
            Self::Replace => {
                let _ =
                    store.replace_agent(workspace(s), epoch(0), &target(1), &target(2), 10).await?;
            }
        }
        Ok(())
    }
}

/// Drops each verb at every poll, and asserts that its row is the old or the new one. `reader`
/// reads the same rows, on a connection of its own where possible. `all_back` waits until every
/// connection of the store is back in its pool.
pub async fn a_dropped_verb_leaves_old_or_new<St: BindingStore>(
    store: &St,
    reader: &St,
    all_back: impl AsyncFn(),
) {
    assert!(matches!(store.create(new(0, 0, Some(target(7)))).await, Ok(Swap::Applied(_))));
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

                // The row can be read at once, and is the old or the new one.
                let read = reader.load(session(s)).await.unwrap();
                assert!(read == before || read == after, "{verb:?}, dropped {drop_at:?}: {read:?}");
                // Every connection returns to the pool.
                all_back().await;
                // By now the statement, if it was sent, has ended and has left no lock behind.
                let read = reader.load(session(s)).await.unwrap();
                assert!(read == before || read == after, "{verb:?}, dropped {drop_at:?}: {read:?}");
                match outcome {
                    Some(done) => {
                        done.unwrap();
                        assert_eq!(read, after, "{verb:?} was not dropped");
                    }
                    None if polls == 0 => assert_eq!(read, before, "{verb:?} was never polled"),
                    None => {}
                }
                // The next statement of the store takes effect at once, and is not part of a
                // transaction that was left open.
                let next = store.retarget(session(s), workspace(1)).await.unwrap();
                assert_eq!(reader.load(session(s)).await.unwrap(), Some(next));
            }
            if completed {
                break;
            }
            assert!(polls < 100, "the verb ends within the limit of polls");
        }
    }
}
