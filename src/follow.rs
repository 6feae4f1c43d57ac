//! How this process follows what others write: the hints that it hears, and the rows in use that it reads again.
//!
//! Hints change *how soon* something is noticed, never *what*: a hint about a session makes its row be read, one about a
//! workspace makes its next calls ask the resolver. Behind them, all cached rows are read again from time to time, since
//! an old agent that still lives would be dialed for ever after an order of another process.

use crate::{
    Revision, SessionId,
    directory::AGAIN_AFTER,
    hints::{About, Heard, Hint},
    rows::{Entry, State},
    shared::Shared,
    store::BATCH,
};
use futures_util::{
    StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use std::{
    collections::HashMap,
    future::pending,
    sync::{Arc, Weak, atomic::Ordering},
};
use tokio::{
    select,
    time::{Duration, Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// Gaps that follow each other sooner count as one: each makes every workspace be asked about.
const BETWEEN_GAPS: Duration = Duration::from_secs(1);

/// Sees to it that somebody follows: a task that ends with the layer. Called wherever rows begin to be cached or are used.
pub(crate) fn ensure(shared: &Arc<Shared>) {
    if shared.following.load(Ordering::Acquire) {
        return;
    }
    let settings = &shared.settings;
    // Asked each time: another layer may work over the store by now.
    if shared.hints.is_none() && settings.record_use.is_none() && !shared.checks_rows() {
        return;
    }
    if shared.following.swap(true, Ordering::AcqRel) {
        return;
    }
    let now = Instant::now();
    let follower = Follower {
        shared: Arc::downgrade(shared),
        ended: shared.ended.clone(),
        // Listens before the first row is read.
        heard: match &shared.hints {
            Some(hints) => hints.listen(),
            None => stream::pending().boxed(),
        },
        floors: HashMap::new(),
        gap_at: None,
        last_gap: None,
        check_at: settings.row_check.map(|every| now + every),
        record_at: settings.record_use.map(|every| now + every),
        work: None,
    };
    let slot = Slot(Arc::downgrade(shared));
    shared.tasks.spawn(async move {
        let _slot = slot;
        follower.run().await;
    });
}

/// Lets another task follow if this one ended with its runtime.
struct Slot(Weak<Shared>);

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.following.store(false, Ordering::Release);
        }
    }
}

/// What a session's row is to show.
#[derive(Clone, Copy, Debug)]
struct Floor {
    /// The revision that was reached. `None`: there is no record any more.
    revision: Option<Revision>,
    /// How often the row was read and did not show it.
    misses: usize,
    due: Instant,
}

/// Held by nobody: it must not keep the layer alive, so it looks at it only while there is something to do.
struct Follower {
    shared: Weak<Shared>,
    ended: CancellationToken,
    heard: BoxStream<'static, Heard>,
    floors: HashMap<SessionId, Floor>,
    /// When the gaps heard by then are to be acted upon, and when that was done last.
    gap_at: Option<Instant>,
    last_gap: Option<Instant>,
    check_at: Option<Instant>,
    record_at: Option<Instant>,
    /// The statements under way. One at a time, and hints are heard meanwhile.
    work: Option<BoxFuture<'static, ()>>,
}

impl Follower {
    async fn run(mut self) {
        let ended = self.ended.clone();
        loop {
            if self.work.is_none() && self.begin().is_none() {
                return;
            }
            let due = self.due();
            select! {
                biased;
                () = ended.cancelled() => return,
                // Before what is heard, which may be so much that nothing else would ever get its turn.
                () = done(&mut self.work) => self.work = None,
                heard = self.heard.next() => match heard {
                    Some(heard) => if self.hear(heard).is_none() { return },
                    None => {
                        self.heard = stream::pending().boxed();
                        self.gap(Instant::now());
                    }
                },
                () = async { sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {}
            }
        }
    }

    /// When something is to be done next, unless something is being done.
    fn due(&self) -> Option<Instant> {
        if self.work.is_some() {
            return None;
        }
        let floors = self.floors.values().map(|floor| floor.due);
        floors.chain(self.gap_at).chain(self.check_at).chain(self.record_at).min()
    }

    /// What was heard, as long as there is a layer.
    fn hear(&mut self, heard: Heard) -> Option<()> {
        let shared = self.shared.upgrade()?;
        let now = Instant::now();
        match heard {
            Heard::Gap => self.gap(now),
            Heard::Hint(Hint { origin, .. }) if origin == shared.origin => {}
            Heard::Hint(hint) => match hint.about {
                About::Workspace { workspace, generation } => {
                    if let Some(place) = shared.directory.find(workspace) {
                        place.hear(generation, shared.rows.moment(), now);
                    }
                }
                About::Reset { workspace } => shared.reset(workspace),
                About::Session { session, revision } => {
                    shared.absent.hear(session);
                    if shared.rows.hear(session, revision) {
                        self.floors.insert(session, Floor { revision, misses: 0, due: now });
                    }
                }
            },
        }
        Some(())
    }

    fn gap(&mut self, now: Instant) {
        let earliest = self.last_gap.map_or(now, |last| last + BETWEEN_GAPS);
        self.gap_at.get_or_insert(earliest.max(now));
    }

    /// Begins what is due. `None` if the layer is gone.
    fn begin(&mut self) -> Option<()> {
        let now = Instant::now();
        if self.due().is_none_or(|due| due > now) {
            return Some(());
        }
        let shared = self.shared.upgrade()?;
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let mut reads = shared.checks_rows();
        if is_due(self.gap_at) {
            reads = true;
            // Doubts, and not a flush: that would make every session read its row at once.
            self.last_gap = self.gap_at.take().map(|_| now);
            shared.directory.doubt_all(now);
            self.check_at = Some(now);
        }
        if is_due(self.record_at) {
            let every = shared.settings.record_use?;
            self.record_at = Some(now + every);
            self.work = Some(Box::pin(async move { record_use(&shared, every).await }));
        } else if is_due(self.check_at) {
            self.check_at = shared.settings.row_check.map(|every| now + every);
            if reads {
                let entries = shared.rows.entries();
                self.work = Some(Box::pin(async move { read_again(&shared, entries).await }));
            }
        } else {
            let entries = self.floors_due(&shared, now);
            if !entries.is_empty() {
                self.work = Some(Box::pin(async move { read_again(&shared, entries).await }));
            }
        }
        Some(())
    }

    /// What is to be read again because of a hint. What shows by now what it has said is done, and what did not show it
    /// often enough.
    fn floors_due(&mut self, shared: &Shared, now: Instant) -> Vec<Arc<Entry>> {
        let mut entries = Vec::new();
        self.floors.retain(|session, floor| {
            if floor.due > now {
                return true;
            }
            let Some(entry) = shared.rows.below(*session, floor.revision) else { return false };
            entries.push(entry);
            match AGAIN_AFTER.get(floor.misses) {
                Some(pause) => {
                    floor.misses += 1;
                    floor.due = now + *pause;
                    true
                }
                // Read once more, for the last time.
                None => false,
            }
        });
        entries
    }
}

/// Pending for ever while there is no work.
async fn done(work: &mut Option<BoxFuture<'static, ()>>) {
    match work {
        Some(work) => work.await,
        None => pending().await,
    }
}

/// Reads rows that are cached, a statement for each 2,000 of them. The first statement that fails ends it: the rows are
/// read again at the next time, and nothing that is cached is less right than before.
async fn read_again(shared: &Arc<Shared>, entries: Vec<Arc<Entry>>) {
    for entries in entries.chunks(BATCH) {
        let mut held = HashMap::with_capacity(entries.len());
        for entry in entries {
            // The slot is not looked at without need: that counts as a use, and no row would ever leave the cache.
            let in_its_slot = match entry.state() {
                State::Current => Some(Arc::clone(entry)),
                // In use just now, so one use more makes no difference.
                State::Replaced | State::Evicted => shared.rows.get(entry.row.session),
                State::Removed => None,
            };
            if let Some(entry) = in_its_slot {
                let session = entry.row.session;
                held.insert(session, (entry, shared.rows.ticket(session)));
            }
        }
        if held.is_empty() {
            continue;
        }
        let sessions: Vec<SessionId> = held.keys().copied().collect();
        let Ok(rows) = shared.in_time(shared.store.load_many(&sessions)).await else { return };
        for row in rows {
            let Some((entry, ticket)) = held.remove(&row.session) else { continue };
            if row.revision > entry.row.revision || entry.is_ahead() {
                shared.learn(row, ticket);
            } else if row.revision == entry.row.revision {
                entry.read_again(&ticket);
            }
        }
        // Deleted by somebody else, or never there. What was cached since the read began may be gone by now as well, and
        // is read anew if it is not.
        for (session, (_, ticket)) in held {
            shared.rows.not_found(session, &ticket);
        }
    }
}

/// Writes down which sessions were used since the last time.
async fn record_use(shared: &Arc<Shared>, every: Duration) {
    let used = shared.rows.take_used();
    // Also if there are none: that use was recorded all the time is what is written down as well.
    let mut left = &used[..];
    loop {
        let (chunk, others) = left.split_at(left.len().min(BATCH));
        if shared.in_time(shared.store.touch(chunk, every)).await.is_err() {
            // Next time, with those that follow.
            return shared.rows.put_back_used(left);
        }
        if others.is_empty() {
            return;
        }
        left = others;
    }
}
