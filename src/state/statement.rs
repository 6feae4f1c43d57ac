//! How statements are sent to the store, and how their answers are waited for.
//!
//! A statement is never given up while the store may still answer it: the database may go on with
//! it, hold a connection, and wait for a lock. So a caller that waits for an answer gets an error
//! after the store timeout, while the task that has sent the statement waits on, and no statement
//! of the same kind is sent in the meantime.

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

/// After this many store timeouts a statement without an answer is dropped: its connection is dead.
const MOST_TIMEOUTS: u32 = 24;
/// While this many statements are overdue, no other one is sent.
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
    /// Waits for the answer to a statement, however late it is. To be called in a task of the
    /// layer, which is not dropped with its caller. Once the layer was closed, waits for one store
    /// timeout only.
    pub(crate) async fn answer<T>(
        &self,
        verb: &'static str,
        statement: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        #[cfg(not(feature = "metrics"))]
        let _ = verb;
        #[cfg(feature = "metrics")]
        let began = tokio::time::Instant::now();
        let answer = self.answer_in_parts(statement).await;
        #[cfg(feature = "metrics")]
        self.metrics.statement(verb, began.elapsed());
        answer
    }

    /// Waits for the answer to a part of a statement, as [`answer`](Self::answer) does. Its time is
    /// not measured.
    pub(crate) async fn answer_in_parts<T>(
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

    /// Waits for the answer to a statement that no call waits for, as [`answer`](Self::answer)
    /// does, and before that for one of the connections that such statements share.
    pub(crate) async fn in_background<T>(
        &self,
        verb: &'static str,
        statement: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.background.pass().await.hold(self.answer(verb, statement)).await
    }

    /// Sends a statement in a task of its own once no statement of its kind is without an answer,
    /// and waits a store timeout for its end. `work` goes on to its end in any case, so it also has
    /// to learn what the answer teaches.
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
