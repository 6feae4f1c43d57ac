//! Verbs whose caller drops the future.

use crate::{
    store::{BindingStore, StoreError},
    testing::store::{
        checked::ok,
        rows::{Row, epoch, full, new, previous, row, session, workspace},
    },
};
use std::{
    pin::Pin,
    task::{Context, Poll},
};

/// The moment at which a future is dropped.
#[derive(Clone, Copy, Debug)]
enum When {
    /// Right after this number of polls: a statement may just have been sent.
    AfterPolls(usize),
    /// When the future was woken for the next poll, in its place: an answer may have arrived.
    BeforePoll(usize),
}

/// Polls a future up to a point. Returns `None` if the future was not ready before.
struct Until<F> {
    future: Pin<Box<F>>,
    left: usize,
    when: When,
}

impl<F: Future> Future for Until<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= 1;
        match self.future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if self.left == 0 && matches!(self.when, When::AfterPolls(_)) => {
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

async fn until<F: Future>(when: When, future: F) -> Option<F::Output> {
    let (When::AfterPolls(left) | When::BeforePoll(left)) = when;
    Until { future: Box::pin(future), left, when }.await
}

#[derive(Clone, Copy, Debug)]
enum Verb {
    Create,
    Swap,
    Retarget,
    Unbind,
    Forget,
    Inherit,
    Reset,
    Replace,
}

impl Verb {
    const ALL: [Self; 8] = [
        Self::Create,
        Self::Swap,
        Self::Retarget,
        Self::Unbind,
        Self::Forget,
        Self::Inherit,
        Self::Reset,
        Self::Replace,
    ];

    /// Returns the row before and after the verb. Each session has a workspace of its own.
    fn rows(self, s: u128) -> (Option<Row>, Option<Row>) {
        let bound = || Some(row(s, s, Some(full(1)), None));
        let unbound = Some(row(s, s, None, previous(1)));
        match self {
            Self::Create => (None, bound()),
            Self::Swap => (bound(), Some(row(s, 0, Some(full(2)), previous(1)))),
            Self::Replace => (bound(), Some(row(s, s, Some(full(2)), previous(1)))),
            Self::Retarget => (bound(), Some(row(s, 0, None, previous(1)))),
            Self::Unbind | Self::Reset => (bound(), unbound),
            Self::Forget => (bound(), None),
            Self::Inherit => (None, Some(row(s, 0, Some(full(7)), None))),
        }
    }

    async fn run<St: BindingStore>(self, store: &St, s: u128) -> Result<(), StoreError> {
        match self {
            Self::Create => drop(store.create(new(s, s, Some(full(1)))).await?),
            Self::Swap => {
                // Both fields change in one write, so that a partial write is visible.
                let read = store.load(session(s)).await?.ok_or_else(missing)?;
                let moved = new(s, 0, Some(full(2)));
                drop(store.compare_and_swap(read.revision, moved).await?);
            }
            Self::Retarget => drop(store.retarget(session(s), workspace(0)).await?),
            Self::Unbind => drop(store.unbind(session(s)).await?),
            Self::Forget => drop(store.forget(session(s), None).await?),
            Self::Inherit => drop(store.inherit(session(s), session(0)).await?),
            Self::Reset => drop(store.reset_workspace(workspace(s)).await?),
            Self::Replace => {
                let (stale, current) = (full(1), full(2));
                store.replace_agent(workspace(s), epoch(0), &stale, &current, 10).await?;
            }
        }
        Ok(())
    }
}

fn missing() -> StoreError {
    StoreError::Corrupt("the row is not there any more".into())
}

/// Each writing verb is dropped at each of its polls: the row is the old or the new one,
/// immediately and later, and can be read at once. A verb that was never polled has no effect.
///
/// > Dropping a future leaves the row unchanged or fully written, never in between.
pub async fn a_dropped_verb_leaves_the_old_or_the_new_row<St: BindingStore>(store: St) {
    /// The maximum number of polls of a verb.
    const POLLS: usize = 1_000;
    let _ = ok("create", store.create(new(0, 0, Some(full(7)))).await);
    let (mut s, mut all) = (0, Vec::new());
    for verb in Verb::ALL {
        for polls in 0.. {
            let mut done = false;
            for when in [When::AfterPolls(polls), When::BeforePoll(polls)] {
                s += 1;
                let (before, after) = verb.rows(s);
                if before.is_some() {
                    let _ = ok("create", store.create(new(s, s, Some(full(1)))).await);
                }
                let outcome = until(when, verb.run(&store, s)).await;
                let read = ok("load", store.load(session(s)).await).as_ref().map(Row::of);
                match outcome {
                    Some(result) => {
                        ok(&format!("{verb:?}"), result);
                        assert_eq!(read, after, "{verb:?} was not dropped");
                        done = true;
                    }
                    None if polls == 0 => assert_eq!(read, before, "{verb:?} was never polled"),
                    None => {
                        is_one_of(&format!("{verb:?}, dropped {when:?}"), &read, &before, &after)
                    }
                }
                all.push((verb, when, s));
            }
            if done {
                break;
            }
            assert!(polls < POLLS, "{verb:?} has not ended after {POLLS} polls");
        }
    }
    // Statements that were still under way have ended by now, or end during these reads.
    for (verb, when, s) in all {
        let (before, after) = verb.rows(s);
        let read = ok("load", store.load(session(s)).await).as_ref().map(Row::of);
        is_one_of(&format!("{verb:?}, dropped {when:?}, later"), &read, &before, &after);
    }
}

fn is_one_of(what: &str, read: &Option<Row>, before: &Option<Row>, after: &Option<Row>) {
    assert!(
        read == before || read == after,
        "{what}: {read:?} is neither {before:?} nor {after:?}"
    );
}
