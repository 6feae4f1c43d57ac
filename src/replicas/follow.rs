//! The follower: a task that hears the hints of other processes, and reads rows again.
//!
//! Hints change *how soon* something is noticed, never *what*. A hint about a session makes the
//! follower read its row. A hint about a workspace makes the resolver be asked: by the next call,
//! or for sessions that hold a connection. Behind the hints, cached rows are
//! [refreshed](crate::replicas::refresh) from time to time: without that, an old agent that still
//! lives would be dialed for ever after a command of another process whose hint was lost.

use crate::{
    DoubtReason, Event, Revision, SessionId,
    cache::{CachedRow, usage::Cursor},
    hints::{About, Heard, Hint},
    jitter,
    pulse::has_stopped,
    replicas::{
        holders::ask_for_holders,
        refresh::{self, Progress},
    },
    state::Shared,
    store::BATCH,
    workspace::{AGAIN_AFTER, WorkspaceState},
};
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use std::{
    cell::Cell,
    cmp,
    collections::{HashMap, HashSet, VecDeque},
    future::pending,
    sync::{Arc, Weak, atomic::Ordering},
};
use tokio::{
    select,
    task::{JoinHandle, coop::consume_budget, yield_now},
    time::{Duration, Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// Gaps that follow each other sooner count as one, since each makes the resolver be asked about
/// every workspace.
const BETWEEN_GAPS: Duration = Duration::from_secs(1);
/// Because of gaps, all cached rows are read at most this often, unless the refresh has an
/// interval.
const BETWEEN_WHOLE_CHECKS: Duration = Duration::from_secs(30);
/// After a gap, this many workspaces come into doubt at a time, or more, so that the last ones do
/// after half a minute. The pause between two times varies by half.
const DOUBTS_AT_ONCE: usize = 4;
const BETWEEN_DOUBTS: Duration = Duration::from_millis(100);
const MOST_TIMES: usize = 300;

/// How often the follower shows a sign of life.
const BETWEEN_SIGNS: Duration = Duration::from_secs(10);
/// Of this many calls of a thread, one looks whether the follower is driven.
const CALLS_BETWEEN_LOOKS: u8 = 64;

thread_local! {
    static CALLS: Cell<u8> = const { Cell::new(0) };
}

/// Starts a follower if there is none. Called wherever rows begin to be cached or are used. Mostly
/// this is one atomic load; now and then it looks whether the follower's runtime is driven.
#[inline]
pub(crate) fn ensure(shared: &Arc<Shared>) {
    let calls = CALLS.get();
    CALLS.set(calls.wrapping_add(1));
    let is_there = !calls.is_multiple_of(CALLS_BETWEEN_LOOKS) && !shared.following.is(0);
    if !is_there {
        ensure_driven(shared, Instant::now);
    }
}

/// Returns whether there is anything to follow. Asked each time: another layer may work over the
/// store by now.
#[inline]
fn is_needed(shared: &Shared) -> bool {
    let settings = &shared.settings;
    shared.hints.is_some() || settings.usage_interval.is_some() || shared.checks_rows()
}

/// Does what [`ensure`] does, where the clock may be read: a follower whose runtime is not driven
/// is replaced.
#[inline]
pub(crate) fn ensure_driven(shared: &Arc<Shared>, now: impl FnOnce() -> Instant) {
    if is_needed(shared) {
        follow(shared, now());
    }
}

/// Begins to follow, unless a follower is there and driven.
fn follow(shared: &Arc<Shared>, now: Instant) {
    let (settings, following) = (&shared.settings, &shared.following);
    let current = following.current.load(Ordering::Acquire);
    // The lock is held by another caller that looks, or by the follower.
    let Ok(mut seen) = following.seen.try_lock() else { return };
    if current != 0 && !has_stopped(*seen, BETWEEN_SIGNS, now) {
        return;
    }
    // With the lock held, so that only one follower begins.
    if !following.is(current) {
        return;
    }
    *seen = now;
    let number = following.begun.fetch_add(1, Ordering::Relaxed) + 1;
    following.current.store(number, Ordering::Release);
    drop(seen);
    let follower = Follower {
        shared: Arc::downgrade(shared),
        number,
        ended: shared.ended.clone(),
        // Listens from before the first row is read.
        heard: match &shared.hints {
            Some(hints) => hints.listen(),
            None => stream::pending().boxed(),
        },
        floors: HashMap::new(),
        gap_at: None,
        last_gap: None,
        doubts: VecDeque::new(),
        doubts_at_once: 0,
        doubt_at: None,
        progress: Progress::default(),
        all_rows: false,
        all_rows_at: None,
        check_at: settings.refresh_interval.every().map(|every| now + every),
        record_at: settings.usage_interval.map(|every| now + every),
        work: None,
        hinted: None,
    };
    let slot = Slot(Arc::downgrade(shared), number);
    // After the layer was closed no follower begins.
    let _ = shared.tasks.spawn(async move {
        let _slot = slot;
        follower.run().await;
    });
}

/// Makes room for another follower if this one has ended with its runtime.
struct Slot(Weak<Shared>, u64);

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            let _ = shared.following.current.compare_exchange(
                self.1,
                0,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
        }
    }
}

/// The minimum state that a session's row must show after a hint.
#[derive(Clone, Copy, Debug)]
struct Floor {
    /// The revision that the hint names. `None`: the row was removed.
    revision: Option<Revision>,
    /// How often the row was read and did not show the revision.
    misses: usize,
    due: Instant,
}

/// The result of a task of the follower.
enum Done {
    /// Use was recorded.
    Recorded,
    /// Rows were read.
    Checked(Progress),
    /// The workspaces that are known here, those in use first.
    Surveyed(Vec<Weak<WorkspaceState>>),
}

/// The state of the follower. Must not keep the layer alive, so it holds the layer only while there
/// is something to do.
struct Follower {
    shared: Weak<Shared>,
    number: u64,
    ended: CancellationToken,
    heard: BoxStream<'static, Heard>,
    floors: HashMap<SessionId, Floor>,
    /// When to act upon the gaps that were heard by then, and when that was done last.
    gap_at: Option<Instant>,
    last_gap: Option<Instant>,
    /// Workspaces that are to come into doubt, how many at a time, and when the next ones do.
    doubts: VecDeque<Weak<WorkspaceState>>,
    doubts_at_once: usize,
    doubt_at: Option<Instant>,
    progress: Progress,
    /// All cached rows are to be read because of a gap, not before `all_rows_at`.
    all_rows: bool,
    all_rows_at: Option<Instant>,
    check_at: Option<Instant>,
    record_at: Option<Instant>,
    /// The task that looks at all cached or used rows; hints are heard in the meantime. One at a
    /// time.
    work: Option<JoinHandle<Option<Option<Done>>>>,
    /// The task that reads the rows that hints were about. It does not wait for `work`.
    hinted: Option<JoinHandle<Option<Option<()>>>>,
}

impl Follower {
    async fn run(mut self) {
        let ended = self.ended.clone();
        loop {
            if self.sign().is_none() || self.begin().is_none() {
                return;
            }
            let due = self.due();
            select! {
                biased;
                () = ended.cancelled() => return,
                // Before the hints, of which there may be so many that no other arm would ever get
                // its turn.
                done = done(&mut self.work) => {
                    self.work = None;
                    self.done(done);
                }
                _ = done(&mut self.hinted) => self.hinted = None,
                heard = self.heard.next() => {
                    match heard {
                        Some(heard) => if self.hear(heard).is_none() { return },
                        None => {
                            self.heard = stream::pending().boxed();
                            self.gap(Instant::now());
                        }
                    }
                    // A stream that is always ready must not keep its thread from other tasks.
                    consume_budget().await;
                }
                () = async { sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {}
                () = sleep(BETWEEN_SIGNS) => {}
            }
        }
    }

    /// Shows that the follower's runtime is driven. Returns `None` if another follower has taken
    /// over, or if the layer was dropped.
    fn sign(&self) -> Option<()> {
        let shared = self.shared.upgrade()?;
        let mut seen = shared.following.seen();
        if !shared.following.is(self.number) {
            return None;
        }
        *seen = Instant::now();
        Some(())
    }

    /// Returns when the next thing is due for which no task has to end first.
    fn due(&self) -> Option<Instant> {
        let works = [self.gap_due(), self.check_at, self.record_at].into_iter().flatten();
        let work = works.min().filter(|_| self.work.is_none());
        let floors = self.floors.values().map(|floor| floor.due);
        let floor = if self.hinted.is_none() { floors.min() } else { None };
        work.into_iter().chain(floor).chain(self.doubt_at).min()
    }

    /// Returns when to act upon a gap: after all doubts of an earlier gap were raised.
    fn gap_due(&self) -> Option<Instant> {
        self.gap_at.filter(|_| self.doubt_at.is_none())
    }

    /// Acts upon a hint. Returns `None` if the layer was dropped.
    fn hear(&mut self, heard: Heard) -> Option<()> {
        let shared = self.shared.upgrade()?;
        let now = Instant::now();
        #[cfg(feature = "metrics")]
        match heard {
            Heard::Hint(hint) if hint.origin == shared.origin => {}
            Heard::Hint(hint) => shared.metrics.hint_received(hint.about.as_str()),
            Heard::Lagged => shared.metrics.hints_lagged(),
        }
        match heard {
            Heard::Lagged => self.gap(now),
            Heard::Hint(Hint { origin, .. }) if origin == shared.origin => {}
            Heard::Hint(hint) => match hint.about {
                About::Workspace { workspace, generation, epoch } => {
                    if let Some(workspace_state) = shared.workspaces.find(workspace) {
                        match epoch.map_or(cmp::Ordering::Equal, |epoch| {
                            epoch.cmp(&workspace_state.epoch())
                        }) {
                            // Its generation belongs to an earlier numbering.
                            cmp::Ordering::Less => {}
                            cmp::Ordering::Equal => {
                                if workspace_state.hear(generation, now) {
                                    ask_for_holders(&shared, &workspace_state);
                                }
                            }
                            cmp::Ordering::Greater => shared.reset(workspace, epoch),
                        }
                    }
                }
                About::Reset { workspace, epoch } => {
                    let workspace_state = shared.workspaces.find(workspace);
                    let known = workspace_state
                        .zip(epoch)
                        .is_some_and(|(workspace_state, epoch)| workspace_state.epoch() >= epoch);
                    if !known {
                        shared.reset(workspace, epoch);
                    }
                }
                About::Session { session, revision } => {
                    if shared.rows.record_hint(session, revision)
                        || shared.rows.is_waited_for(session)
                    {
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

    /// Begins what is due. Returns `None` if the layer was dropped.
    fn begin(&mut self) -> Option<()> {
        let now = Instant::now();
        if self.due().is_none_or(|due| due > now) {
            return Some(());
        }
        let shared = self.shared.upgrade()?;
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_due(self.doubt_at) {
            self.raise_doubts(&shared, now);
        }
        if self.hinted.is_none() {
            let entries = self.floors_due(&shared, now);
            if !entries.is_empty() {
                self.hinted = self.spawn(&shared, refresh::rows(Arc::clone(&shared), entries));
            }
        }
        if self.work.is_some() {
            return Some(());
        }
        if is_due(self.gap_due()) {
            self.last_gap = self.gap_at.take().map(|_| now);
            shared.emit(&Event::HintsLost {});
            // The hints that were lost may have been about any row.
            self.all_rows = true;
            self.check_at = Some(now);
            self.work = self.spawn(&shared, survey(Arc::clone(&shared)));
        } else if is_due(self.record_at) {
            let every = shared.settings.usage_interval?;
            self.record_at = Some(now + every);
            self.work = self.spawn(&shared, record_usage(Arc::clone(&shared), every));
        } else if is_due(self.check_at) {
            let every = shared.settings.refresh_interval.every();
            let reads = self.all_rows || shared.checks_rows();
            let is_small = refresh::parts(shared.rows.len()) == 1;
            let whole = self.all_rows && (is_small || self.all_rows_at.is_none_or(|at| at <= now));
            if whole {
                self.all_rows = false;
                self.all_rows_at = Some(now + every.unwrap_or(BETWEEN_WHOLE_CHECKS));
            }
            self.check_at =
                every.map(|every| now + every).or(self.all_rows_at.filter(|_| self.all_rows));
            if reads {
                let check =
                    refresh::check(Arc::clone(&shared), std::mem::take(&mut self.progress), whole);
                self.work = self.spawn(&shared, async { Done::Checked(check.await) });
            }
        }
        Some(())
    }

    fn spawn<T: Send + 'static>(
        &self,
        shared: &Shared,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<JoinHandle<Option<Option<T>>>> {
        let ended = self.ended.clone();
        shared.tasks.spawn(async move { ended.run_until_cancelled(work).await })
    }

    /// Takes the result of a task; `None` if the task has crashed.
    fn done(&mut self, done: Option<Done>) {
        match done {
            Some(Done::Checked(progress)) => self.progress = progress,
            Some(Done::Surveyed(workspace_states)) => {
                self.doubts_at_once =
                    workspace_states.len().div_ceil(MOST_TIMES).max(DOUBTS_AT_ONCE);
                self.doubts = workspace_states.into();
                self.doubt_at = Some(Instant::now());
            }
            Some(Done::Recorded) | None => {}
        }
    }

    /// Raises doubts after hints were lost, since each workspace may have another agent by now. A
    /// flush would make every session read its row at once. Not all doubts at once either: each may
    /// cost a question and a dial.
    fn raise_doubts(&mut self, shared: &Arc<Shared>, now: Instant) {
        let some = self.doubts.len().min(self.doubts_at_once);
        for workspace_state in
            self.doubts.drain(..some).filter_map(|workspace_state| workspace_state.upgrade())
        {
            workspace_state.doubt(DoubtReason::HintsLost, now);
            ask_for_holders(shared, &workspace_state);
        }
        self.doubt_at = (!self.doubts.is_empty()).then(|| now + jitter::around(BETWEEN_DOUBTS));
    }

    /// Returns the rows to be read again because of hints. Forgets the floors of rows that show the
    /// hint's revision by now, and of rows that were read often enough without showing it.
    fn floors_due(&mut self, shared: &Shared, now: Instant) -> Vec<Arc<CachedRow>> {
        let mut entries = Vec::new();
        self.floors.retain(|session, floor| {
            if floor.due > now {
                return true;
            }
            match shared.rows.cached_below(*session, floor.revision) {
                Some(entry) => entries.push(entry),
                // The cache has not kept the row: the handles that wait for news of it read it.
                None if shared.rows.get(*session).is_none()
                    && shared.rows.is_waited_for(*session) =>
                {
                    shared.rows.ask_to_read(*session);
                }
                None => return false,
            }
            match AGAIN_AFTER.get(floor.misses) {
                Some(pause) => {
                    floor.misses += 1;
                    floor.due = now + *pause;
                    true
                }
                // The row is read for the last time.
                None => false,
            }
        });
        entries
    }
}

/// Returns the result of a task, `None` if the task was ended or has crashed; pending for ever
/// while there is no task.
async fn done<T>(task: &mut Option<JoinHandle<Option<Option<T>>>>) -> Option<T> {
    match task {
        Some(task) => task.await.ok().flatten().flatten(),
        None => pending().await,
    }
}

/// Lists the workspaces that are known here: first those with held connections or waiting handles,
/// then those that were used of late, then all others.
async fn survey(shared: Arc<Shared>) -> Done {
    let (mut held, mut used) = (Vec::new(), Vec::new());
    let mut cursor = Cursor::default();
    while shared.usage.scan(&mut cursor, |entry| {
        let workspace_states =
            if shared.usage.is_held_or_waited_for(entry) { &mut held } else { &mut used };
        workspace_states.push(Arc::downgrade(&entry.workspace_state));
    }) {
        yield_now().await;
    }
    let (mut seen, mut workspace_states) = (HashSet::new(), Vec::new());
    let mut add = |workspace_state: &Weak<WorkspaceState>| {
        if seen.insert(workspace_state.as_ptr() as usize) {
            workspace_states.push(Weak::clone(workspace_state));
        }
    };
    for (looked_at, workspace_state) in held.iter().chain(&used).enumerate() {
        add(workspace_state);
        if looked_at % SLICE == SLICE - 1 {
            yield_now().await;
        }
    }
    for (looked_at, entry) in shared.rows.iter().enumerate() {
        add(&Arc::downgrade(&entry.workspace_state));
        if looked_at % SLICE == SLICE - 1 {
            yield_now().await;
        }
    }
    Done::Surveyed(workspace_states)
}

/// Rows that are looked at before the task yields.
const SLICE: usize = 500;

/// Records which sessions were used since the last time or are held now.
async fn record_usage(shared: Arc<Shared>, every: Duration) -> Done {
    let mut told = HashSet::new();
    let mut tell = |held: crate::cache::usage::Held| {
        if told.insert(held.session) {
            let (session, workspace, target) = (held.session, held.workspace, &*held.target);
            shared.emit(&Event::InUse { session, workspace, target, since: held.since });
        }
    };
    let mut used = Vec::new();
    for held in shared.usage.apart() {
        used.push(held.session);
        tell(held);
    }
    let (mut cursor, mut more) = (Cursor::default(), true);
    loop {
        let mut held = Vec::new();
        if more {
            more = shared.usage.scan(&mut cursor, |entry| {
                let (is_used, holds) = shared.usage.take_to_record(entry);
                used.extend(is_used.then_some(entry.row.session));
                held.extend(holds);
            });
            held.into_iter().for_each(&mut tell);
        }
        if !more {
            used.extend(shared.usage.take_unrecorded(BATCH));
        }
        while used.len() >= BATCH || !more {
            let chunk: Vec<SessionId> = used.drain(..used.len().min(BATCH)).collect();
            // The last chunk is sent even if it is empty: the store also records until when use was
            // recorded at all.
            if let Err(error) =
                shared.in_background("touch", shared.store.touch(&chunk, every)).await
            {
                // These sessions are recorded next time, with those that follow.
                let sessions = (chunk.len() + used.len()) as u64;
                shared.emit(&Event::UseNotRecorded { sessions, error: &error });
                shared.usage.note_unrecorded(chunk.into_iter().chain(used));
                return Done::Recorded;
            }
            if !more && used.is_empty() {
                used.extend(shared.usage.take_unrecorded(BATCH));
                if used.is_empty() {
                    return Done::Recorded;
                }
            }
        }
        yield_now().await;
    }
}
