//! How statements are sent to the store, and how their answers are waited for.
//!
//! A statement is never given up while the store may still answer it: the database may go on with
//! it, hold a connection, and wait for a lock for as long as somebody holds that. So whoever waits
//! for an answer is told after the store timeout that there is none, while the task that has sent
//! the statement waits on, and nothing of the same kind is sent meanwhile.

use crate::{error::Cause, gate::Kind, state::Shared, store::StoreError};
use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    select,
    sync::oneshot,
    time::{sleep, timeout},
};

/// A statement that has no answer after so many store timeouts will have none: its connection is
/// dead. It is dropped.
const MOST_TIMEOUTS: u32 = 24;
/// While so many statements are overdue, no other one is sent.
const MOST_OVERDUE: usize = 1_000;

/// Counts a statement whose answer is overdue.
struct Overdue<'a>(&'a AtomicUsize);

impl<'a> Overdue<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Overdue<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Shared {
    /// Waits for the answer to a statement, however late it is: to be called by a task of the
    /// layer, which nobody drops. Once the layer was closed it waits for one store timeout only.
    pub(crate) async fn answer<T>(
        &self,
        statement: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        if self.overdue.load(Ordering::Acquire) >= MOST_OVERDUE {
            return Err(StoreError::Unavailable(Cause::TooManyUnanswered.into()));
        }
        let within = self.settings.store_timeout;
        let mut statement = pin!(statement);
        let mut closed = pin!(async {
            self.ended.cancelled().await;
            sleep(within).await;
        });
        select! {
            biased;
            answer = statement.as_mut() => return answer,
            () = closed.as_mut() => return Err(no_answer(within)),
            () = sleep(within) => {}
        }
        let _overdue = Overdue::new(&self.overdue);
        select! {
            biased;
            answer = statement => answer,
            () = closed => Err(no_answer(within)),
            () = sleep(within * (MOST_TIMEOUTS - 1)) => Err(no_answer(within * MOST_TIMEOUTS)),
        }
    }

    /// As [`answer`](Self::answer), for a statement that no call waits for: it waits for one of the
    /// connections that such statements share.
    pub(crate) async fn in_background<T>(
        &self,
        statement: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.background.pass().await.hold(self.answer(statement)).await
    }

    /// Sends a statement in a task of its own once there is none of its kind without an answer, and
    /// waits a store timeout for its end. The work goes on to its end in any case, so whatever is
    /// to be learned from the answer is learned in it.
    pub(crate) async fn send<T, F>(
        self: &Arc<Self>,
        kind: Kind,
        work: impl FnOnce(Arc<Self>) -> F,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let within = self.settings.store_timeout;
        let Ok(pass) = timeout(within, self.one_of_a_kind.of(kind).pass()).await else {
            return Err(StoreError::Unavailable(Cause::Unanswered(within).into()));
        };
        let shares = match kind {
            Kind::Purge => match timeout(within, self.background.pass()).await {
                Ok(shares) => Some(shares),
                Err(_) => return Err(StoreError::Unavailable(Cause::NoConnection(within).into())),
            },
            _ => None,
        };
        let (tell, mut told) = oneshot::channel();
        let work = work(Arc::clone(self));
        let sent = self.tasks.spawn(async move {
            let done = pass.hold(async {
                match shares {
                    Some(shares) => shares.hold(work).await,
                    None => work.await,
                }
            });
            let _ = tell.send(done.await);
        });
        if sent.is_none() {
            return Err(StoreError::Unavailable(Cause::TaskEnded.into()));
        }
        match timeout(within, &mut told).await {
            Ok(Ok(done)) => done,
            // The store panicked, or closing has cut the task short.
            Ok(Err(_)) => Err(StoreError::Unknown(Cause::TaskEnded.into())),
            Err(_) => {
                told.close();
                told.try_recv().unwrap_or_else(|_| Err(no_answer(within)))
            }
        }
    }
}

pub(crate) fn no_answer(within: std::time::Duration) -> StoreError {
    StoreError::Unknown(Cause::NoAnswer(within).into())
}
