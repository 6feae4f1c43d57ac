//! What is done to the store now and then: rows that nobody uses go.

use super::Bindings;
use crate::{
    Error, ErrorKind,
    gate::Kind,
    store::{BATCH, ErasedStore, Purged, StoreError},
};
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;

/// What a batch waits before it is tried again. After the last of them it has failed.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(250), Duration::from_secs(1), Duration::from_secs(4)];

impl Bindings {
    /// Forgets the sessions that nobody has used for longer than `idle`, in any process. Says how
    /// many.
    ///
    /// To be called now and then, by one process or by all of them, while every process that uses
    /// sessions [records it](crate::BoundAgentBuilder::usage_interval). A session whose use was
    /// never recorded counts from the creation of its record. A session that is [in
    /// use](crate::InUse) stays, however long ago its connection was made. `idle` should be days: a
    /// use counts once it was recorded, and until then a session that comes back after so long may
    /// still be forgotten.
    ///
    /// This goes in batches of 2,000 rows, each within the store timeout. A batch that fails for a
    /// reason that may pass is tried again three times, over some five seconds; if its answer was
    /// lost, its rows are not in the number that is returned.
    ///
    /// # Errors
    ///
    /// What was forgotten before an error stays so. [`Store`](ErrorKind::Store); then
    /// [`store_error`](Error::store_error) may be a [`StoreError::UseNotRecorded`], if use was not
    /// recorded for long enough to tell, or a [`StoreError::Unsupported`].
    /// [`OutcomeUnknown`](ErrorKind::OutcomeUnknown) if no answer came for the last batch;
    /// [`Closed`](ErrorKind::Closed). While a batch has no answer no other one is sent: that is a
    /// [`StoreError::Unavailable`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the batch under way is carried out wholly or not at all, and no
    /// other one follows.
    ///
    /// # Example
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_bound_agent::{Bindings, Error};
    /// # async fn once_a_day(bindings: Bindings) -> Result<(), Error> {
    /// let forgotten = bindings.purge_idle(Duration::from_secs(90 * 24 * 60 * 60)).await?;
    /// let removed = bindings.purge_forgotten().await?;
    /// println!("{forgotten} sessions forgotten, {} old rows removed, {} wait", removed.gone, removed.waiting);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn purge_idle(&self, idle: Duration) -> Result<u64, Error> {
        let mut all = 0;
        loop {
            let deleted = self
                .batch(move |store| async move { store.purge_idle(idle, BATCH as u64).await })
                .await?;
            all += deleted;
            if deleted < BATCH as u64 {
                return Ok(all);
            }
        }
    }

    /// Removes what is left of sessions that were forgotten at least seven days ago. Says how many
    /// rows are gone, and how many wait for a later run.
    ///
    /// A row goes in two runs that are at least an hour apart (see
    /// [`purge_forgotten`](crate::store::BindingStore::purge_forgotten) for why), so this is to be
    /// called again and again, once a day or so. In batches as [`purge_idle`](Self::purge_idle) is,
    /// and with the same errors and cancel safety.
    ///
    /// # Errors
    ///
    /// [`Store`](ErrorKind::Store), [`OutcomeUnknown`](ErrorKind::OutcomeUnknown),
    /// [`Closed`](ErrorKind::Closed). What was removed before an error stays so.
    pub async fn purge_forgotten(&self) -> Result<Purged, Error> {
        let mut all = Purged::default();
        loop {
            let purged = self
                .batch(|store| async move { store.purge_forgotten(BATCH as u64).await })
                .await?;
            all = Purged::new(all.gone + purged.gone, purged.waiting);
            if purged.gone < BATCH as u64 {
                return Ok(all);
            }
        }
    }

    /// Runs one batch, again if that may help. A batch that was carried out without an answer may
    /// be repeated: it finds the next rows.
    async fn batch<T, F>(&self, batch: impl Fn(Arc<dyn ErasedStore>) -> F) -> Result<T, Error>
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
                .send(Kind::Purge, |shared| async move { shared.answer(batch).await })
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
                // `close` does not wait for a pause.
                Some(pause) => drop(self.shared.ended.run_until_cancelled(sleep(pause)).await),
                None => return Err(Error::new(kind).with_store(Some(Arc::new(error)))),
            }
        }
    }
}
