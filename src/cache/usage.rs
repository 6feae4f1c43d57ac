//! The sessions in use: held by a connection, waited for by a handle, or used since the last scan.
//!
//! *Reference counts* with *dirty lists*. Each cached row counts its own connections in one atomic,
//! so that a call takes no lock. Rows in use are listed by workspace in striped lists. A row enters
//! its list with its first use after a scan, and leaves it at the first scan that finds it idle: a
//! scan costs what is used, not what is cached.

use crate::{
    AgentId, SessionId, Target, WorkspaceId, cache::CachedRow, settings::Settings, sync::lock,
};
use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst},
    },
};
use tokio::{
    sync::Notify,
    time::{Duration, Instant},
};

/// The entry is in a list. Changes only with the lock of the list held.
const LISTED: u8 = 1;
/// The row was used, and that is not recorded in the store yet.
const TO_RECORD: u8 = 2;
/// The row was used, and not read again since.
const TO_READ: u8 = 4;

/// The work that is pending because a cached row was used: a set of flags. A field of the row
/// beside its [`Use`], so that the two are not padded.
#[derive(Debug, Default)]
pub(crate) struct Marks(AtomicU8);

impl Marks {
    /// Takes over the flags of the row that this one replaces, except for its place in a list.
    pub(crate) fn inherit(&self, replaced: &Self) {
        let taken = replaced.0.fetch_and(LISTED, SeqCst);
        self.0.fetch_or(taken & !LISTED, SeqCst);
    }
}

/// The use of one cached row: a field of the row.
#[derive(Debug, Default)]
pub(crate) struct Use {
    /// The number of connections to the row's own target.
    held: AtomicU32,
    /// When the present use began, in seconds after [`Usage::began`]; 0 if it is not known.
    since: AtomicU32,
}

impl Use {
    fn is_held(&self) -> bool {
        self.held.load(SeqCst) > 0
    }
}

/// Returns `true` if a connection or a handle of this process depends on the row.
fn is_held_or_waited_for(entry: &CachedRow) -> bool {
    entry.usage.is_held() || is_waited_for(entry)
}

/// Returns `true` if a handle of the row waits to be superseded.
fn is_waited_for(entry: &CachedRow) -> bool {
    entry.waiting_handles().is_some_and(|waiting| waiting.load(SeqCst) > 0)
}

/// How a connection that is in use is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Hold {
    #[default]
    Nothing,
    /// In the row, whose target is the connection's.
    Row,
    /// In a list of its own, since the row names another target than the connection.
    Apart(u64),
}

/// A session that is in use, as [`Usage::held_in`] finds it.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) session: SessionId,
    pub(crate) workspace: WorkspaceId,
    pub(crate) target: Arc<Target>,
    pub(crate) connections: u32,
    pub(crate) since: Instant,
}

#[derive(Debug, Default)]
struct List {
    entries: Vec<Arc<CachedRow>>,
    /// The connections to another target than the row of their session named.
    apart: HashMap<u64, Held>,
}

/// The more lists, the less is scanned for one workspace, and the shorter a lock is held.
const LISTS: usize = 256;
/// The number of entries that are scanned before the lock of their list is released.
const SLICE: usize = 500;
/// While the store cannot be written, at most so many sessions are remembered that have left the
/// lists before their use was recorded.
const MOST_UNRECORDED: usize = 100_000;

/// The sessions in use.
#[derive(Debug)]
pub(crate) struct Usage {
    lists: Box<[Mutex<List>]>,
    hasher: RandomState,
    /// The flags of a row that was just used, for the scans that the settings ask for.
    marks: u8,
    began: Instant,
    /// Sessions that have left the lists before their use was recorded.
    unrecorded: Mutex<Vec<SessionId>>,
    next_apart: AtomicU64,
    /// The number of tasks that wait for an agent to be drained, and what wakes those of the
    /// workspaces of each list.
    draining: AtomicU32,
    released: Box<[Notify]>,
}

/// How far a scan of all lists has come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cursor {
    list: usize,
    /// The number of lists that are finished.
    done: usize,
    /// The number of entries of this list that are left; `None` before the first of them.
    left: Option<usize>,
}

impl Cursor {
    /// Begins a scan with this list.
    pub(crate) fn at(list: usize) -> Self {
        Self { list: list % LISTS, ..Self::default() }
    }
}

impl Usage {
    pub(crate) fn new(settings: &Settings) -> Self {
        let mut marks = LISTED;
        if settings.usage_interval.is_some() {
            marks |= TO_RECORD;
        }
        if settings.refresh_interval.every().is_some() {
            marks |= TO_READ;
        }
        Self {
            lists: (0..LISTS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            marks,
            began: Instant::now(),
            unrecorded: Mutex::default(),
            next_apart: AtomicU64::new(0),
            draining: AtomicU32::new(0),
            released: (0..LISTS).map(|_| Notify::new()).collect(),
        }
    }

    /// Notes that a call uses the row. One atomic load if it was used since the last scan already.
    #[inline]
    pub(crate) fn note(&self, entry: &Arc<CachedRow>) {
        if entry.marks.0.load(SeqCst) & self.marks != self.marks {
            self.list(entry, self.marks);
        }
    }

    /// Counts a connection to `target` as in use. `now`: the time, if the caller knows it.
    #[inline]
    pub(crate) fn hold(
        &self,
        entry: &Arc<CachedRow>,
        target: &Arc<Target>,
        now: Option<Instant>,
    ) -> Hold {
        let names = |row: &Arc<Target>| Arc::ptr_eq(row, target) || row.is(target);
        if entry.row.target.as_ref().is_some_and(names) {
            let first = entry.usage.held.fetch_add(1, SeqCst) == 0;
            if let Some(now) = now.filter(|_| first) {
                entry.usage.since.store(self.seconds(now), SeqCst);
            }
            // After the count: a scan that takes the row off its list in between sees the count.
            self.note(entry);
            return Hold::Row;
        }
        self.hold_apart(entry, target, now)
    }

    fn hold_apart(
        &self,
        entry: &Arc<CachedRow>,
        target: &Arc<Target>,
        now: Option<Instant>,
    ) -> Hold {
        self.note(entry);
        let id = self.next_apart.fetch_add(1, SeqCst);
        let held = Held {
            session: entry.row.session,
            workspace: entry.workspace(),
            target: Arc::clone(target),
            connections: 1,
            since: now.unwrap_or_else(Instant::now),
        };
        self.of(entry.workspace()).apart.insert(id, held);
        Hold::Apart(id)
    }

    /// Ends the use of a connection.
    #[inline]
    pub(crate) fn release(&self, entry: &CachedRow, hold: Hold) {
        let released = match hold {
            Hold::Nothing => return,
            Hold::Row => entry.usage.held.fetch_sub(1, SeqCst) == 1,
            Hold::Apart(id) => self.release_apart(entry, id),
        };
        // The count went down before that: a task that begins to wait afterwards sees it.
        if released && self.draining.load(SeqCst) > 0 {
            self.tell_released(entry);
        }
    }

    #[cold]
    fn release_apart(&self, entry: &CachedRow, id: u64) -> bool {
        self.of(entry.workspace()).apart.remove(&id).is_some()
    }

    #[cold]
    fn tell_released(&self, entry: &CachedRow) {
        self.released[self.index(entry.workspace())].notify_waiters();
    }

    /// Notes that a handle waits to be superseded: until the guard is dropped its row is read at
    /// every check, cached or not.
    pub(crate) fn wait(&self, entry: &Arc<CachedRow>) -> Waiting {
        entry.make_waiting_handles().fetch_add(1, SeqCst);
        self.list(entry, LISTED);
        Waiting(Arc::clone(entry))
    }

    /// Moves the use of an entry to the row that was written in its place.
    pub(crate) fn hand_over(&self, entry: &Arc<CachedRow>, written: &Arc<CachedRow>) {
        if !Arc::ptr_eq(entry, written) {
            written.marks.inherit(&entry.marks);
            self.adopt(written);
        }
    }

    /// Lists a row that has replaced another one in use.
    pub(crate) fn adopt(&self, entry: &Arc<CachedRow>) {
        let marks = entry.marks.0.load(SeqCst);
        if marks != 0 && marks & LISTED == 0 {
            self.list(entry, LISTED);
        }
    }

    fn list(&self, entry: &Arc<CachedRow>, marks: u8) {
        let mut list = self.of(entry.workspace());
        let before = entry.marks.0.fetch_or(marks | LISTED, SeqCst);
        if before & LISTED != 0 {
            return;
        }
        if entry.usage.since.load(SeqCst) == 0 {
            entry.usage.since.store(self.seconds(Instant::now()), SeqCst);
        }
        if list.entries.len() == list.entries.capacity() {
            // Bounds a list that is never scanned to a multiple of the entries in use.
            let mut kept = Vec::with_capacity(list.entries.len() + 1);
            kept.extend(list.entries.drain(..).filter(|entry| self.stays(entry)));
            kept.reserve(kept.len() + 1);
            list.entries = kept;
        }
        list.entries.push(Arc::clone(entry));
    }

    /// Returns `true` if an entry stays in its list, whose lock is held. Else the entry is marked
    /// as taken off.
    fn stays(&self, entry: &CachedRow) -> bool {
        let left_the_cache = !is_held_or_waited_for(entry) && entry.has_left();
        if left_the_cache
            && entry.marks.0.fetch_and(!(TO_RECORD | TO_READ), SeqCst) & TO_RECORD != 0
        {
            self.note_unrecorded([entry.row.session]);
        }
        if entry.marks.0.load(SeqCst) & !LISTED != 0 || is_held_or_waited_for(entry) {
            return true;
        }
        entry.marks.0.fetch_and(!LISTED, SeqCst);
        if is_held_or_waited_for(entry) {
            // A connection was counted in between, by a caller that may have seen the row listed.
            entry.marks.0.fetch_or(LISTED, SeqCst);
            return true;
        }
        entry.usage.since.store(0, SeqCst);
        false
    }

    /// Scans some entries, and takes those off their list that are idle after that. Returns `false`
    /// if there are no more.
    pub(crate) fn scan(&self, cursor: &mut Cursor, mut visit: impl FnMut(&Arc<CachedRow>)) -> bool {
        while cursor.done < LISTS {
            let mut list = lock(&self.lists[cursor.list]);
            let mut left = cursor.left.unwrap_or(list.entries.len()).min(list.entries.len());
            let until = left.saturating_sub(SLICE);
            let any = left > 0;
            while left > until {
                left -= 1;
                visit(&list.entries[left]);
                if !self.stays(&list.entries[left]) {
                    // The entry that moves here was visited, or came meanwhile.
                    list.entries.swap_remove(left);
                }
            }
            cursor.left = Some(left);
            if left == 0 {
                if list.entries.len() < list.entries.capacity() / 4 {
                    list.entries.shrink_to_fit();
                }
                *cursor =
                    Cursor { list: (cursor.list + 1) % LISTS, done: cursor.done + 1, left: None };
            }
            if any {
                return true;
            }
        }
        false
    }

    /// Returns `true` if the row is to be read: it was used since the last call of this, or a
    /// handle waits for its news.
    pub(crate) fn take_to_read(&self, entry: &CachedRow) -> bool {
        entry.marks.0.fetch_and(!TO_READ, SeqCst) & TO_READ != 0 || is_waited_for(entry)
    }

    /// Returns `true` if the next check is to read the row.
    pub(crate) fn is_to_read(&self, entry: &CachedRow) -> bool {
        entry.marks.0.load(SeqCst) & TO_READ != 0
    }

    /// Returns `true` if a handle waits for news of this very row.
    pub(crate) fn is_waited_for(&self, entry: &CachedRow) -> bool {
        is_waited_for(entry)
    }

    /// Returns `true` if a connection or a handle of this process depends on the row.
    pub(crate) fn is_held_or_waited_for(&self, entry: &CachedRow) -> bool {
        is_held_or_waited_for(entry)
    }

    /// Notes that the row could not be read: it is among the first ones of the next check.
    pub(crate) fn put_back_to_read(&self, entry: &Arc<CachedRow>) {
        if self.marks & TO_READ != 0 {
            self.list(entry, TO_READ);
        }
    }

    /// Returns whether the session's use is to be recorded, and its connections.
    pub(crate) fn take_to_record(&self, entry: &CachedRow) -> (bool, Option<Held>) {
        let used = entry.marks.0.fetch_and(!TO_RECORD, SeqCst) & TO_RECORD != 0;
        let held = self.held(entry);
        (used || held.is_some(), held)
    }

    /// Takes some of the sessions that have left the lists before their use was recorded.
    pub(crate) fn take_unrecorded(&self, at_most: usize) -> Vec<SessionId> {
        let mut unrecorded = lock(&self.unrecorded);
        let left = unrecorded.len().saturating_sub(at_most);
        unrecorded.split_off(left)
    }

    /// Notes that the use of these sessions is not recorded yet.
    pub(crate) fn note_unrecorded(&self, sessions: impl IntoIterator<Item = SessionId>) {
        let mut unrecorded = lock(&self.unrecorded);
        let room = MOST_UNRECORDED.saturating_sub(unrecorded.len());
        unrecorded.extend(sessions.into_iter().take(room));
    }

    /// Returns how many connections are held, by the sessions and workspaces that are asked for.
    /// Changes nothing.
    pub(crate) fn connections(&self, of: impl Fn(SessionId, WorkspaceId) -> bool) -> u64 {
        let held = |list: &Mutex<List>| {
            let list = lock(list);
            let rows = list.entries.iter().filter(|entry| of(entry.row.session, entry.workspace()));
            let apart = list.apart.values().filter(|held| of(held.session, held.workspace));
            rows.map(|entry| u64::from(entry.usage.held.load(SeqCst))).sum::<u64>()
                + apart.map(|held| u64::from(held.connections)).sum::<u64>()
        };
        self.lists.iter().map(held).sum()
    }

    /// Returns the connections to other targets than their rows name.
    pub(crate) fn apart(&self) -> Vec<Held> {
        self.lists
            .iter()
            .flat_map(|list| lock(list).apart.values().cloned().collect::<Vec<_>>())
            .collect()
    }

    /// Returns the sessions of a workspace that are in use. Takes one lock.
    pub(crate) fn held_in(&self, workspace: WorkspaceId) -> Vec<Held> {
        let mut list = self.of(workspace);
        list.entries.retain(|entry| self.stays(entry));
        let rows = list
            .entries
            .iter()
            .filter(|entry| entry.workspace() == workspace)
            .filter_map(|entry| self.held(entry));
        let apart = list.apart.values().filter(|held| held.workspace == workspace).cloned();
        let mut found: Vec<Held> = rows.chain(apart).collect();
        // A row that was replaced while it was held is listed beside the one that has replaced it.
        found
            .sort_unstable_by_key(|held| (held.session.into_uuid(), held.target.agent.into_uuid()));
        found.dedup_by(|later, kept| {
            let same = later.session == kept.session && later.target.is(&kept.target);
            if same {
                kept.connections += later.connections;
                kept.since = kept.since.min(later.since);
            }
            same
        });
        found
    }

    /// Returns `true` if this process holds a connection into the workspace.
    pub(crate) fn is_held(&self, workspace: WorkspaceId) -> bool {
        let list = self.of(workspace);
        let in_it = |entry: &&Arc<CachedRow>| entry.workspace() == workspace;
        list.entries.iter().filter(in_it).any(|entry| entry.usage.is_held())
            || list.apart.values().any(|held| held.workspace == workspace)
    }

    /// Returns a connection to the agent that is in use, or `None` if there is none.
    pub(crate) fn holder(&self, workspace: WorkspaceId, agent: AgentId) -> Option<Holder> {
        let mut list = self.of(workspace);
        list.entries.retain(|entry| self.stays(entry));
        let to_it = |entry: &CachedRow| {
            entry.workspace() == workspace
                && entry.row.target.as_ref().is_some_and(|target| target.agent == agent)
        };
        let entry = list.entries.iter().find(|entry| to_it(entry) && entry.usage.is_held());
        if let Some(entry) = entry {
            return Some(Holder::Row(Arc::clone(entry)));
        }
        let apart = list
            .apart
            .iter()
            .find(|(_, held)| held.workspace == workspace && held.target.agent == agent);
        apart.map(|(id, _)| Holder::Apart(*id))
    }

    /// Returns `true` if that connection is still in use.
    pub(crate) fn still_holds(&self, workspace: WorkspaceId, holder: &Holder) -> bool {
        match holder {
            Holder::Row(entry) => entry.usage.is_held(),
            Holder::Apart(id) => self.of(workspace).apart.contains_key(id),
        }
    }

    fn held(&self, entry: &CachedRow) -> Option<Held> {
        let connections = entry.usage.held.load(SeqCst);
        let target = entry.row.target.as_ref().filter(|_| connections > 0)?;
        Some(Held {
            session: entry.row.session,
            workspace: entry.workspace(),
            target: Arc::clone(target),
            connections,
            since: self.began + Duration::from_secs(entry.usage.since.load(SeqCst).into()),
        })
    }

    fn seconds(&self, now: Instant) -> u32 {
        let seconds = now.saturating_duration_since(self.began).as_secs();
        // 0 means that it is not known.
        u32::try_from(seconds).unwrap_or(u32::MAX).max(1)
    }

    fn of(&self, workspace: WorkspaceId) -> MutexGuard<'_, List> {
        lock(&self.lists[self.index(workspace)])
    }

    fn index(&self, workspace: WorkspaceId) -> usize {
        (self.hasher.hash_one(workspace) % LISTS as u64) as usize
    }
}

/// A connection that is in use.
#[derive(Debug)]
pub(crate) enum Holder {
    Row(Arc<CachedRow>),
    Apart(u64),
}

/// Counts a handle that waits to be superseded.
#[derive(Debug)]
pub(crate) struct Waiting(Arc<CachedRow>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.make_waiting_handles().fetch_sub(1, SeqCst);
    }
}

/// Counts a task that waits for an agent to be drained.
struct Draining<'a>(&'a Usage);

impl Drop for Draining<'_> {
    fn drop(&mut self) {
        self.0.draining.fetch_sub(1, SeqCst);
    }
}

/// Waits until this process holds no connection to the agent.
pub(crate) async fn drained(usage: &Usage, workspace: WorkspaceId, agent: AgentId) {
    usage.draining.fetch_add(1, SeqCst);
    let _draining = Draining(usage);
    let released = &usage.released[usage.index(workspace)];
    let mut holder = None;
    loop {
        // Created before the comparison, so that a release in between wakes this task.
        let next_release = released.notified();
        if !holder.as_ref().is_some_and(|holder| usage.still_holds(workspace, holder)) {
            holder = usage.holder(workspace, agent);
            if holder.is_none() {
                return;
            }
        }
        next_release.await;
    }
}
