//! How this process follows what others write: the hints that it hears, and the rows that it reads
//! again.
//!
//! Hints change *how soon* something is noticed, never *what*: a hint about a session makes its row
//! be read, one about a workspace makes the resolver be asked, by its next call or for those who
//! hold connections. Behind them, cached rows are read [again](crate::replicas::refresh) from time
//! to time, since an old agent that still lives would be dialed for ever after an order of another
//! process.

use crate::{
    Event, Revision, SessionId,
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

/// Gaps that follow each other sooner count as one: each makes every workspace be asked about.
const BETWEEN_GAPS: Duration = Duration::from_secs(1);
/// All cached rows are read at most so often because of gaps, unless the row check has an interval.
const BETWEEN_WHOLE_CHECKS: Duration = Duration::from_secs(30);
/// After a gap, workspaces come into doubt by so many at a time, or by a part of all so that the
/// last ones do after half a minute, with a pause in between that varies by half of it.
const DOUBTS_AT_ONCE: usize = 4;
const BETWEEN_DOUBTS: Duration = Duration::from_millis(100);
const MOST_TIMES: usize = 300;

/// The follower shows a sign of life so often.
const BETWEEN_SIGNS: Duration = Duration::from_secs(10);
/// Of so many calls of a thread, one looks whether the follower is driven.
const CALLS_BETWEEN_LOOKS: u8 = 64;

thread_local! {
    static CALLS: Cell<u8> = const { Cell::new(0) };
}

/// Sees to it that somebody follows: a task that ends with the layer. Called wherever rows begin to
/// be cached or are used. Mostly this is one atomic load; now and then it looks whether the task is
/// driven.
pub(crate) fn ensure(shared: &Arc<Shared>) {
    let calls = CALLS.get();
    CALLS.set(calls.wrapping_add(1));
    if !calls.is_multiple_of(CALLS_BETWEEN_LOOKS) && !shared.following.is(0) {
        return;
    }
    ensure_driven(shared, Instant::now);
}

/// As [`ensure`], where the clock may be read: another task follows if nobody drives the runtime of
/// the present one.
pub(crate) fn ensure_driven(shared: &Arc<Shared>, now: impl FnOnce() -> Instant) {
    let settings = &shared.settings;
    // Asked each time: another layer may work over the store by now.
    if shared.hints.is_none() && settings.usage_interval.is_none() && !shared.checks_rows() {
        return;
    }
    let (following, now) = (&shared.following, now());
    let current = following.current.load(Ordering::Acquire);
    // Whoever holds it looks as well, or is the follower.
    let Ok(mut seen) = following.seen.try_lock() else { return };
    if current != 0 && !has_stopped(*seen, BETWEEN_SIGNS, now) {
        return;
    }
    // With the lock held, so that nobody else begins to follow.
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
        // Listens before the first row is read.
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
        check_at: settings.refresh_interval.map(|every| now + every),
        record_at: settings.usage_interval.map(|every| now + every),
        work: None,
        hinted: None,
    };
    let slot = Slot(Arc::downgrade(shared), number);
    // After closing nobody follows any more.
    let _ = shared.tasks.spawn(async move {
        let _slot = slot;
        follower.run().await;
    });
}

/// Lets another task follow if this one ended with its runtime.
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

/// What a session's row is to show.
#[derive(Clone, Copy, Debug)]
struct Floor {
    /// The revision that was reached. `None`: there is no record any more.
    revision: Option<Revision>,
    /// How often the row was read and did not show it.
    misses: usize,
    due: Instant,
}

/// What a task of the follower has come to.
enum Done {
    /// Use was recorded.
    Recorded,
    /// Rows were read.
    Checked(Progress),
    /// These workspaces are known here, those in use first.
    Surveyed(Vec<Weak<WorkspaceState>>),
}

/// Held by nobody: it must not keep the layer alive, so it looks at it only while there is
/// something to do.
struct Follower {
    shared: Weak<Shared>,
    number: u64,
    ended: CancellationToken,
    heard: BoxStream<'static, Heard>,
    floors: HashMap<SessionId, Floor>,
    /// When the gaps heard by then are to be acted upon, and when that was done last.
    gap_at: Option<Instant>,
    last_gap: Option<Instant>,
    /// Workspaces that are to come into doubt, and how many of them at which time.
    doubts: VecDeque<Weak<WorkspaceState>>,
    doubts_at_once: usize,
    doubt_at: Option<Instant>,
    progress: Progress,
    /// All cached rows are to be read because of a gap, but not before then.
    all_rows: bool,
    all_rows_at: Option<Instant>,
    check_at: Option<Instant>,
    record_at: Option<Instant>,
    /// A look at all that is cached or used, in a task of its own: hints are heard meanwhile. One
    /// at a time.
    work: Option<JoinHandle<Option<Option<Done>>>>,
    /// The rows being read that hints were about. They do not wait for the work.
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
                // Before what is heard, which may be so much that nothing else would ever get its
                // turn.
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
                    // A stream that is always ready must not keep its thread from everything else.
                    consume_budget().await;
                }
                () = async { sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {}
                () = sleep(BETWEEN_SIGNS) => {}
            }
        }
    }

    /// Shows that its runtime is driven. `None` if another one follows by now, or if the layer is
    /// gone.
    fn sign(&self) -> Option<()> {
        let shared = self.shared.upgrade()?;
        let mut seen = shared.following.seen();
        if !shared.following.is(self.number) {
            return None;
        }
        *seen = Instant::now();
        Some(())
    }

    /// When something is to be done next that can be done now.
    fn due(&self) -> Option<Instant> {
        let works = [self.gap_due(), self.check_at, self.record_at].into_iter().flatten();
        let work = works.min().filter(|_| self.work.is_none());
        let floors = self.floors.values().map(|floor| floor.due);
        let floor = if self.hinted.is_none() { floors.min() } else { None };
        work.into_iter().chain(floor).chain(self.doubt_at).min()
    }

    /// Not while the doubts of an earlier gap are being raised: then this one follows.
    fn gap_due(&self) -> Option<Instant> {
        self.gap_at.filter(|_| self.doubt_at.is_none())
    }

    /// What was heard, as long as there is a layer.
    fn hear(&mut self, heard: Heard) -> Option<()> {
        let shared = self.shared.upgrade()?;
        let now = Instant::now();
        match heard {
            Heard::Lagged => self.gap(now),
            Heard::Hint(Hint { origin, .. }) if origin == shared.origin => {}
            Heard::Hint(hint) => match hint.about {
                About::Workspace { workspace, generation, epoch } => {
                    if let Some(workspace_state) = shared.workspaces.find(workspace) {
                        match epoch.map_or(cmp::Ordering::Equal, |epoch| {
                            epoch.cmp(&workspace_state.epoch())
                        }) {
                            // Of generations that are not compared with those of today.
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
                    shared.absent.hear(session);
                    if shared.rows.hear(session, revision) || shared.rows.is_waited_for(session) {
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
            // Hints that were lost may be about any row.
            self.all_rows = true;
            self.check_at = Some(now);
            self.work = self.spawn(&shared, survey(Arc::clone(&shared)));
        } else if is_due(self.record_at) {
            let every = shared.settings.usage_interval?;
            self.record_at = Some(now + every);
            self.work = self.spawn(&shared, usage_interval(Arc::clone(&shared), every));
        } else if is_due(self.check_at) {
            let every = shared.settings.refresh_interval;
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

    /// `None`: the task crashed, and what it had come to is lost.
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

    /// Hints were lost: each workspace may have another agent by now. Doubts, and not a flush: that
    /// would make every session read its row at once. And not all at once: each may cost a question
    /// and a dial.
    fn raise_doubts(&mut self, shared: &Arc<Shared>, now: Instant) {
        let some = self.doubts.len().min(self.doubts_at_once);
        for workspace_state in
            self.doubts.drain(..some).filter_map(|workspace_state| workspace_state.upgrade())
        {
            workspace_state.doubt(now);
            ask_for_holders(shared, &workspace_state);
        }
        self.doubt_at = (!self.doubts.is_empty()).then(|| now + jitter::around(BETWEEN_DOUBTS));
    }

    /// What is to be read again because of a hint. What shows by now what it has said is done, and
    /// what did not show it often enough.
    fn floors_due(&mut self, shared: &Shared, now: Instant) -> Vec<Arc<CachedRow>> {
        let mut entries = Vec::new();
        self.floors.retain(|session, floor| {
            if floor.due > now {
                return true;
            }
            match shared.rows.below(*session, floor.revision) {
                Some(entry) => entries.push(entry),
                // The cache has not kept the row: whoever waits for news of it reads it.
                None if shared.rows.get(*session).is_none()
                    && shared.rows.is_waited_for(*session) =>
                {
                    shared.rows.remove(*session);
                }
                None => return false,
            }
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

/// Pending for ever while there is no task. `None` if it was ended or crashed.
async fn done<T>(task: &mut Option<JoinHandle<Option<Option<T>>>>) -> Option<T> {
    match task {
        Some(task) => task.await.ok().flatten().flatten(),
        None => pending().await,
    }
}

/// The workspaces that are known here: first those into which connections are held or whose handles
/// wait, then those that were used of late.
async fn survey(shared: Arc<Shared>) -> Done {
    let (mut held, mut used) = (Vec::new(), Vec::new());
    let mut cursor = Cursor::default();
    while shared.usage.look(&mut cursor, |entry| {
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

/// Entries that are looked at in one go.
const SLICE: usize = 500;

/// Writes down which sessions were used since the last time or are held now.
async fn usage_interval(shared: Arc<Shared>, every: Duration) -> Done {
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
            more = shared.usage.look(&mut cursor, |entry| {
                let (is_used, holds) = shared.usage.take_to_record(entry);
                used.extend(is_used.then_some(entry.row.session));
                held.extend(holds);
            });
            held.into_iter().for_each(&mut tell);
        }
        if !more {
            used.extend(shared.usage.take_gone(BATCH));
        }
        while used.len() >= BATCH || !more {
            let chunk: Vec<SessionId> = used.drain(..used.len().min(BATCH)).collect();
            // The last one also if it is empty: that use was recorded all the time is what is
            // written down as well.
            if let Err(error) = shared.in_background(shared.store.touch(&chunk, every)).await {
                // Next time, with those that follow.
                let sessions = (chunk.len() + used.len()) as u64;
                shared.emit(&Event::UseNotRecorded { sessions, error: &error });
                shared.usage.note_gone(chunk.into_iter().chain(used));
                return Done::Recorded;
            }
            if !more && used.is_empty() {
                used.extend(shared.usage.take_gone(BATCH));
                if used.is_empty() {
                    return Done::Recorded;
                }
            }
        }
        yield_now().await;
    }
}
