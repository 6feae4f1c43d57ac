//! Loading of the most recently used rows.

use crate::{
    error::Cause,
    gate::Kind,
    state::{Shared, statement::no_answer},
    store::StoreError,
};
use futures_util::StreamExt;
use std::sync::Arc;
use tokio::{sync::mpsc, time::timeout};

/// Loads the rows that were used last. The query runs in a task of its own, so that a query without
/// an answer is not sent again.
pub(super) async fn warm(shared: &Arc<Shared>, limit: u64) -> Result<u64, StoreError> {
    let within = shared.settings.store_timeout;
    let Ok(pass) = timeout(within, shared.one_of_a_kind.of(Kind::Warm).pass()).await else {
        return Err(StoreError::Unavailable(Cause::Unanswered(within).into()));
    };
    // For each row, the count so far; `None` at the end.
    let (tell, mut told) = mpsc::channel(1);
    let task = Arc::clone(shared);
    let sent = shared.tasks.spawn(pass.hold(async move {
        let shared = task;
        let bulk = shared.rows.bulk_read_token();
        let mut rows = shared.store.recent(limit);
        let mut warmed = 0;
        loop {
            match shared.answer_in_parts(async { rows.next().await.transpose() }).await {
                Ok(Some(row)) => {
                    let token = shared.rows.read_token_of(bulk, row.session);
                    shared.learn(row, token);
                    warmed += 1;
                    // The caller has stopped waiting.
                    if tell.send(Ok(Some(warmed))).await.is_err() {
                        return;
                    }
                }
                Ok(None) => return drop(tell.send(Ok(None)).await),
                Err(error) => return drop(tell.send(Err(error)).await),
            }
        }
    }));
    if sent.is_none() {
        return Err(StoreError::Unavailable(Cause::TaskEnded.into()));
    }
    let mut all = 0;
    loop {
        match timeout(within, told.recv()).await {
            Ok(Some(Ok(Some(warmed)))) => all = warmed,
            Ok(Some(Ok(None))) => return Ok(all),
            Ok(Some(Err(error))) => return Err(error),
            Ok(None) => return Err(StoreError::Unavailable(Cause::TaskEnded.into())),
            Err(_) => return Err(no_answer(within)),
        }
    }
}
