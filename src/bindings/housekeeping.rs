//! Housekeeping: purges of idle and of forgotten sessions.

use super::Bindings;
use crate::{
    Error, ErrorKind,
    gate::Kind,
    store::{BATCH, ErasedStore, Purged, StoreError},
};
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;

/// The pauses before the attempts to repeat a batch. After the last attempt the purge has failed.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(250), Duration::from_secs(1), Duration::from_secs(4)];

impl Bindings {
    /// Forgets the sessions that no process has used for longer than `idle`. Returns how many.
    ///
    /// Call it regularly, in one process or in all of them. Every process that uses sessions must
    /// [record their use](crate::BoundAgentBuilder::usage_interval). A session whose use was never
    /// recorded counts from the creation of its record. A session that is [in use](crate::InUse) is
    /// kept, however long ago its connection was dialed. `idle` should be days: until the use of a
    /// session that returns is recorded, the session may still be forgotten.
    ///
    /// The purge runs in batches of 2,000 rows, each within the store timeout. A batch that fails
    /// for a temporary reason is tried again three times within about five seconds. If the answer
    /// to a batch was lost, its rows are not counted.
    ///
    /// # Errors
    ///
    /// Rows that were forgotten before an error stay forgotten.
    ///
    /// * [`Store`](ErrorKind::Store): the store failed, or another purge has no answer yet. If use
    ///   was not recorded for long enough, [`store_error`](Error::store_error) is a
    ///   [`StoreError::UseNotRecorded`]; if the store cannot purge, it is a
    ///   [`StoreError::Unsupported`].
    /// * [`OutcomeUnknown`](ErrorKind::OutcomeUnknown): the store did not answer the last batch.
    /// * [`Closed`](ErrorKind::Closed): the layer was closed.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the batch under way is carried out wholly or not at all, and no
    /// other batch follows.
    ///
    /// # Example
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_bound_agent::{Bindings, Error};
    /// # async fn once_a_day(bindings: Bindings) -> Result<(), Error> {
    /// let forgotten = bindings.purge_idle(Duration::from_secs(90 * 24 * 60 * 60)).await?;
    /// let removed = bindings.purge_forgotten().await?;
    /// println!("{forgotten} sessions forgotten, {} tombstones removed, {} waiting", removed.gone, removed.waiting);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn purge_idle(&self, idle: Duration) -> Result<u64, Error> {
        let mut all = 0;
        loop {
            let deleted = self
                .batch("purge_idle", move |store| async move {
                    store.purge_idle(idle, BATCH as u64).await
                })
                .await?;
            all += deleted;
            if deleted < BATCH as u64 {
                return Ok(all);
            }
        }
    }

    /// Removes the tombstones of sessions that were forgotten at least seven days ago. Returns how
    /// many were removed, and how many wait for a later run.
    ///
    /// A tombstone is removed in two runs that are at least an hour apart (see
    /// [`BindingStore::purge_forgotten`](crate::store::BindingStore::purge_forgotten) for the
    /// reason), so call it regularly, such as once a day. It runs in batches, as
    /// [`purge_idle`](Self::purge_idle) does.
    ///
    /// # Errors
    ///
    /// Tombstones that were removed before an error stay removed.
    ///
    /// * [`Store`](ErrorKind::Store): the store failed, or another purge has no answer yet.
    /// * [`OutcomeUnknown`](ErrorKind::OutcomeUnknown): the store did not answer the last batch.
    /// * [`Closed`](ErrorKind::Closed): the layer was closed.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the batch under way is carried out wholly or not at all, and no
    /// other batch follows.
    pub async fn purge_forgotten(&self) -> Result<Purged, Error> {
        let mut all = Purged::default();
        loop {
            let purged = self
                .batch("purge_forgotten", |store| async move {
                    store.purge_forgotten(BATCH as u64).await
                })
                .await?;
            all = Purged::new(all.gone + purged.gone, purged.waiting);
            if purged.gone < BATCH as u64 {
                return Ok(all);
            }
        }
    }

    /// Runs one batch, and repeats it after a temporary failure. A batch whose answer was lost may
    /// be repeated, because it then finds other rows.
    async fn batch<T, F>(
        &self,
        verb: &'static str,
        batch: impl Fn(Arc<dyn ErasedStore>) -> F,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let mut pauses = PAUSES.into_iter();
        loop {
            self.open(None)?;
            let batch = batch(Arc::clone(&self.shared.store));
            let error = match self
                .shared
                .send(Kind::Purge, |shared| async move { shared.answer(verb, batch).await })
                .await
            {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            self.open(None)?;
            let kind = match error {
                StoreError::Unknown(_) => ErrorKind::OutcomeUnknown,
                _ => ErrorKind::Store,
            };
            let may_pass = matches!(error, StoreError::Unavailable(_) | StoreError::Unknown(_));
            match pauses.next().filter(|_| may_pass) {
                // Closing ends the pause.
                Some(pause) => drop(self.shared.ended.run_until_cancelled(sleep(pause)).await),
                None => return Err(Error::new(kind).with_store(Some(Arc::new(error)))),
            }
        }
    }
}
