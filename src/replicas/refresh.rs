//! Reads cached rows again in the background.
//!
//! A check reads the rows that were used since they were read last and those that handles wait for,
//! then a part of all others. It works in slices that yield, and goes on after a statement that has
//! failed. A row that cannot be decoded is read alone, so that it hides no other row.

use crate::{
    Binding, Event, SessionId,
    cache::{CachedRow, ReadToken, State, usage::Cursor},
    clock::Tick,
    state::Shared,
    store::{BATCH, StoreError},
};
use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};
use tokio::task::{coop::consume_budget, yield_now};

/// After this many failed statements in a row, the store is taken to be out of reach until the next
/// check.
const MOST_FAILURES: usize = 3;
/// Rows that are not used are read in this many checks at most. A power of two.
const MOST_PARTS: u64 = 16;
/// How many rows that could not be decoded are read alone at each check, and how many are
/// remembered.
const MOST_UNREADABLE_A_CHECK: usize = 16;
const MOST_UNREADABLE: usize = 1_000;
/// How far the start among the rows in use moves on after a check that has stopped early.
const LIST_STEP: usize = 85;
/// Rows that are looked at before the task yields.
const SLICE: usize = 500;

/// The position at which the next check continues.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Where the check begins among the rows in use.
    list: usize,
    /// The part of the other rows whose turn it is, and when that part began: rows that were read
    /// since then are not read again.
    part: u64,
    part_began: Option<Tick>,
    /// Rows that could not be decoded.
    unreadable: HashMap<SessionId, Weak<CachedRow>>,
}

/// Reads the rows that hints were about.
pub(crate) async fn rows(shared: Arc<Shared>, entries: Vec<Arc<CachedRow>>) {
    let mut reading = Reading::new(&shared);
    for chunk in entries.chunks(BATCH) {
        reading.read(chunk.to_vec()).await;
        if reading.store_is_out_of_reach() {
            break;
        }
    }
    reading.tell();
}

/// Carries out one check. `whole`: of all cached rows, and not only of a part of those that are not
/// used.
pub(crate) async fn check(shared: Arc<Shared>, mut progress: Progress, whole: bool) -> Progress {
    let mut reading = Reading::new(&shared);
    reading.unreadable = std::mem::take(&mut progress.unreadable);
    progress.part_began.get_or_insert_with(|| shared.rows.tick());
    let unreadable: Vec<SessionId> =
        reading.unreadable.keys().copied().take(MOST_UNREADABLE_A_CHECK).collect();
    progress.list = reading.rows_in_use(progress.list).await;
    reading.rest(&mut progress, whole).await;
    reading.one_by_one(unreadable).await;
    reading.tell();
    progress.unreadable = reading.unreadable;
    progress
}

/// One round of statements.
struct Reading<'a> {
    shared: &'a Arc<Shared>,
    /// How many statements have failed since the last one that did not.
    failures: usize,
    /// How many rows the failed statements were about, and why the first statement failed.
    failed: u64,
    error: Option<StoreError>,
    unreadable: HashMap<SessionId, Weak<CachedRow>>,
}

impl<'a> Reading<'a> {
    fn new(shared: &'a Arc<Shared>) -> Self {
        Self { shared, failures: 0, failed: 0, error: None, unreadable: HashMap::new() }
    }

    fn store_is_out_of_reach(&self) -> bool {
        self.failures >= MOST_FAILURES
    }

    /// Reads the rows that were used since they were read last, and those that handles wait for.
    /// Returns where the next check begins.
    async fn rows_in_use(&mut self, list: usize) -> usize {
        let shared = Arc::clone(self.shared);
        let mut cursor = Cursor::at(list);
        // All rows are gathered before the first statement: a row that is replaced while others are
        // read is read all the same.
        let mut entries: Vec<Arc<CachedRow>> = Vec::new();
        while shared.usage.scan(&mut cursor, |entry| {
            if shared.usage.take_to_read(entry) {
                entries.push(Arc::clone(entry));
            }
        }) {
            yield_now().await;
        }
        let mut chunks = entries.chunks(BATCH);
        for chunk in &mut chunks {
            self.read(chunk.to_vec()).await;
            if self.store_is_out_of_reach() {
                for chunk in chunks {
                    chunk.iter().for_each(|entry| shared.usage.put_back_to_read(entry));
                    yield_now().await;
                }
                // The next check begins with other rows, since these ones may be the reason.
                return list + LIST_STEP;
            }
        }
        list
    }

    /// Reads those of the other rows whose turn it is.
    async fn rest(&mut self, progress: &mut Progress, whole: bool) {
        if self.store_is_out_of_reach() {
            return;
        }
        let shared = Arc::clone(self.shared);
        let parts = if whole { 1 } else { parts(shared.rows.len()) };
        let began = progress.part_began.unwrap_or_default();
        let mut chunk = Vec::new();
        for (looked_at, entry) in shared.rows.iter().enumerate() {
            if looked_at % SLICE == SLICE - 1 {
                yield_now().await;
            }
            let is_due = shared.rows.part_of(entry.row.session, parts) == progress.part % parts;
            let was_read = entry.stamp().latest() > began;
            if is_due && entry.is_current() && !was_read && !shared.usage.is_to_read(&entry) {
                chunk.push(entry);
            }
            if chunk.len() == BATCH {
                self.read(std::mem::take(&mut chunk)).await;
                if self.store_is_out_of_reach() {
                    return;
                }
            }
        }
        self.read(chunk).await;
        if !self.store_is_out_of_reach() {
            progress.part = progress.part.wrapping_add(1);
            progress.part_began = None;
        }
    }

    /// Reads rows that an earlier check could not decode, each by itself.
    async fn one_by_one(&mut self, sessions: Vec<SessionId>) {
        for session in sessions {
            if self.store_is_out_of_reach() {
                return;
            }
            let entry = self.unreadable.remove(&session).and_then(|entry| entry.upgrade());
            if let Some(entry) = entry.filter(|entry| entry.is_current()) {
                self.read(vec![entry]).await;
            }
        }
    }

    /// Reads rows in one statement, and in more if one of the rows cannot be decoded. The rows of a
    /// failed statement are among the first ones of the next check.
    async fn read(&mut self, entries: Vec<Arc<CachedRow>>) {
        let shared = self.shared;
        let put_back = |entry: &Arc<CachedRow>| shared.usage.put_back_to_read(entry);
        let mut parts = vec![entries];
        while let Some(part) = parts.pop() {
            let mut held = HashMap::with_capacity(part.len());
            for entry in &part {
                let session = entry.row.session;
                if self.unreadable.contains_key(&session) {
                    // The statement would only be halved for this row once more.
                    continue;
                }
                // The slot is not looked at without need: the cache counts that as a use, and no
                // row would ever leave it.
                let in_its_slot = match entry.state() {
                    State::Current => Some(Arc::clone(entry)),
                    // The row was in use just now, so another use makes no difference. A row that a
                    // handle waits for may have left the cache.
                    State::Replaced | State::Evicted => {
                        let cached = self.shared.rows.get(session);
                        cached.or_else(|| {
                            self.shared.usage.is_waited_for(entry).then(|| Arc::clone(entry))
                        })
                    }
                    State::Removed => None,
                };
                if let Some(entry) = in_its_slot {
                    held.insert(session, (entry, self.shared.rows.read_token(session)));
                }
                consume_budget().await;
            }
            if held.is_empty() {
                continue;
            }
            let sessions: Vec<SessionId> = held.keys().copied().collect();
            match self
                .shared
                .in_background("load_many", self.shared.store.load_many(&sessions))
                .await
            {
                Ok(rows) => {
                    self.failures = 0;
                    for row in rows {
                        let Some((entry, token)) = held.remove(&row.session) else { continue };
                        self.found(row, &entry, token);
                        consume_budget().await;
                    }
                    // The other rows were removed by another process, or never existed. A row that
                    // was cached since the read began is read anew, since it may be gone as well.
                    for (session, (_, token)) in held {
                        self.shared.rows.not_found(session, &token);
                        consume_budget().await;
                    }
                }
                Err(StoreError::Corrupt(cause)) => {
                    self.failures = 0;
                    let mut entries: Vec<_> = held.into_values().map(|(entry, _)| entry).collect();
                    if entries.len() > 1 {
                        parts.push(entries.split_off(entries.len() / 2));
                        parts.push(entries);
                    } else {
                        self.cannot_decode(&entries, StoreError::Corrupt(cause));
                    }
                }
                Err(error) => {
                    self.failures += 1;
                    self.failed += held.len() as u64;
                    self.error.get_or_insert(error);
                    part.iter().for_each(put_back);
                    if self.failures >= MOST_FAILURES {
                        parts.iter().flatten().for_each(put_back);
                        return;
                    }
                }
            }
        }
    }

    fn found(&self, row: Binding, entry: &Arc<CachedRow>, token: ReadToken) {
        if row.revision > entry.row.revision
            || row.epoch > entry.workspace_state.epoch()
            || entry.is_group_repaired()
        {
            self.shared.learn(row, token);
        } else if row.revision == entry.row.revision {
            entry.read_again(&token);
        }
    }

    fn cannot_decode(&mut self, entries: &[Arc<CachedRow>], error: StoreError) {
        for entry in entries {
            if self.unreadable.len() < MOST_UNREADABLE {
                self.unreadable.insert(entry.row.session, Arc::downgrade(entry));
            }
        }
        self.shared.emit(&Event::RefreshFailed { rows: entries.len() as u64, error: &error });
    }

    /// Emits one event for all statements that have failed.
    fn tell(&mut self) {
        if let Some(error) = self.error.take() {
            self.shared.emit(&Event::RefreshFailed { rows: self.failed, error: &error });
        }
    }
}

/// Returns in how many checks the rows that are not used are read: few rows at each, and one
/// statement at least.
pub(crate) fn parts(cached: u64) -> u64 {
    if cached <= BATCH as u64 {
        return 1;
    }
    cached.div_ceil(BATCH as u64 / 2).next_power_of_two().min(MOST_PARTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_is_read_in_parts() {
        for (cached, expected) in [
            (0, 1),
            (1, 1),
            (2_000, 1),
            (2_001, 4),
            (4_001, 8),
            (20_000, 16),
            (100_000, 16),
            (1_000_000, 16),
        ] {
            assert_eq!(parts(cached), expected, "{cached}");
        }
    }
}
