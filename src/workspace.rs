//! What this process knows of each workspace, for as long as somebody here uses it.
//!
//! Targets of one workspace are ordered here and nowhere else: by generation if both have one, else
//! by which answer's question began later. What is known is of one epoch of the workspace: with the
//! next one all of it is void. Rows are ordered elsewhere ([`rows`](crate::cache)), by revision.

pub(crate) mod pending;

use crate::{
    AgentId, Epoch, Generation, SessionId, Target, WorkspaceId,
    answer::{Answer, Denied},
    binding::Row,
    binding::{Behind, Relation},
    clock::{Stamp, Tick},
    compact_instant::CompactInstant,
    settings::Settings,
    sync::lock,
    workspace::pending::{PendingDials, Queue, Slot},
};
use moka::sync::Cache;
use std::{
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
    ops::{Deref, DerefMut},
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU32, Ordering, fence},
    },
};
use tokio::{
    sync::{Notify, futures::Notified},
    time::{Duration, Instant},
};

/// The workspaces in use.
#[derive(Debug)]
pub(crate) struct Workspaces {
    places: Arc<Places>,
    /// Workspaces that were denied a moment ago. Calls that fail hold nothing, so without this
    /// nobody would remember why.
    denied: Cache<WorkspaceId, Arc<WorkspaceState>>,
    /// The workspaces that were announced last.
    kept: Mutex<VecDeque<Arc<WorkspaceState>>>,
}

/// What all workspaces have in common.
#[derive(Debug)]
struct Places {
    stripes: Box<[Mutex<Stripe>]>,
    hasher: RandomState,
    /// How often a workspace whose dials hang is asked again.
    first: Duration,
    longest: Duration,
    max_pending_dials: usize,
}

/// Bounds how many places are moved to make room for another one.
const STRIPES: usize = 1024;

/// Some of the places, sorted: a map of them would take twice the room.
#[derive(Debug, Default)]
struct Stripe(Vec<(WorkspaceId, Weak<WorkspaceState>)>);

impl Places {
    fn stripe(&self, workspace: WorkspaceId) -> MutexGuard<'_, Stripe> {
        lock(&self.stripes[self.hasher.hash_one(workspace) as usize % STRIPES])
    }
}

impl Stripe {
    fn find(&self, workspace: WorkspaceId) -> Result<usize, usize> {
        self.0.binary_search_by_key(&workspace, |(there, _)| *there)
    }

    fn get(&self, workspace: WorkspaceId) -> Option<&Weak<WorkspaceState>> {
        self.find(workspace).ok().map(|index| &self.0[index].1)
    }

    fn insert(&mut self, workspace: WorkspaceId, place: Weak<WorkspaceState>) {
        match self.find(workspace) {
            Ok(index) => self.0[index].1 = place,
            Err(index) => {
                if self.0.len() == self.0.capacity() {
                    self.0.reserve_exact(self.0.len() / 8 + 1);
                }
                self.0.insert(index, (workspace, place));
            }
        }
    }

    /// Removes the place that is there, if that is to go.
    fn remove_if(
        &mut self,
        workspace: WorkspaceId,
        goes: impl FnOnce(&Weak<WorkspaceState>) -> bool,
    ) {
        if let Ok(index) = self.find(workspace)
            && goes(&self.0[index].1)
        {
            self.0.remove(index);
            if self.0.len() < self.0.capacity() / 4 {
                self.0.shrink_to_fit();
            }
        }
    }
}

/// A dropped dial that had been pending for less says nothing.
const TOO_SHORT_TO_DOUBT: Duration = Duration::from_millis(10);
/// Between two reports of one agent that raise a doubt; doubles while the answer is "same".
const REPORT_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_REPORT_PAUSE: Duration = Duration::from_secs(60);
/// Whose next call holds its connection; the list is emptied by every verdict.
const MOST_REPORTERS: usize = 64;
/// An answer of a generation that is known to have been reached is doubted so often, and for so
/// long each time.
pub(crate) const AGAIN_AFTER: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(200), Duration::from_millis(1_000)];
/// A denial that is at most so old answers a call that has nothing to dial.
const FRESH_DENIAL: Duration = Duration::from_secs(1);
/// Of so many workspaces that nobody here uses.
const MOST_DENIED: u64 = 1_000;
/// How many workspaces are remembered though nobody here uses them, because they were announced.
const MOST_KEPT: usize = 10_000;
/// How many replaced targets are remembered, to tell rows that are behind from rows that are ahead.
const REMEMBERED: usize = 8;

/// One epoch of a workspace. Held by cached rows, calls, repairs and handles; goes when the last of
/// them goes.
#[derive(Debug)]
pub(crate) struct WorkspaceState {
    workspace: WorkspaceId,
    places: Arc<Places>,
    /// Changed by everything that may change what is to be dialed: the hot path's one atomic load.
    /// Never 0. It is only compared with versions that were read a moment ago, or at the last call
    /// of a session.
    version: AtomicU32,
    /// Calls whose dial is pending, and that may leave a doubt behind.
    waiting: AtomicU32,
    busy: OnceLock<Box<Busy>>,
    facts: Mutex<Facts>,
}

/// What is only needed of workspaces for which somebody has waited, or which were reset.
#[derive(Debug, Default)]
struct Busy {
    epoch: Epoch,
    /// Made for the first dial that is pending.
    dials: OnceLock<Arc<PendingDials>>,
    /// A task asks the resolver about a doubt for those who hold connections.
    asking: AtomicBool,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Facts {
    known: Option<Known>,
    /// Only of workspaces that were asked about or doubted.
    rest: Option<Box<Rest>>,
}

/// What there is to be remembered of few workspaces. Reached through [`Facts`], which has room for
/// it when it is needed.
#[derive(Debug, Default)]
struct Rest {
    /// The epoch has ended, or may have: everything here is void.
    reset: bool,
    /// Who has said what is known.
    from: Source,
    /// A row was chosen that names another target than `known` without being ordered against it.
    /// Who has chosen it must be told when that is settled.
    contradicted: bool,
    /// When the question began whose answer was, since `known` was learned or confirmed, that the
    /// workspace does not run.
    denied: Option<Instant>,
    /// What `known` has replaced, newest last.
    superseded: Vec<Arc<Target>>,
    /// Doubt about whatever is bound, since then.
    doubt: Option<Instant>,
    /// Doubts that are not younger than the first were asked about in vain, and are not asked about
    /// at once before the second.
    quiet: Option<(Instant, Instant)>,
    /// Only of agents about which there is something to say.
    agents: Agents,
    verdict: Option<Verdict>,
    /// The pause after the last answer, and when it ends.
    pause: Option<(Duration, Instant)>,
    /// The last group repairs that have landed.
    repairs: Vec<GroupRepair>,
    /// A generation that another process has reached, and how many answers have not. See
    /// [`AGAIN_AFTER`].
    floor: Option<(Generation, usize)>,
}

impl Deref for Facts {
    type Target = Rest;

    fn deref(&self) -> &Rest {
        static NOTHING: LazyLock<Rest> = LazyLock::new(Rest::default);
        self.rest.as_deref().unwrap_or(&NOTHING)
    }
}

impl DerefMut for Facts {
    fn deref_mut(&mut self) -> &mut Rest {
        self.rest.get_or_insert_default()
    }
}

/// Facts of one agent, mostly; of a few while they replace each other.
#[derive(Debug, Default)]
struct Agents(Vec<(AgentId, AgentFacts)>);

impl Agents {
    fn get(&self, agent: AgentId) -> Option<&AgentFacts> {
        self.0.iter().find(|(of, _)| *of == agent).map(|(_, facts)| facts)
    }

    fn of(&mut self, agent: AgentId) -> &mut AgentFacts {
        let index = self.0.iter().position(|(of, _)| *of == agent).unwrap_or_else(|| {
            self.0.reserve_exact(1);
            self.0.push((agent, AgentFacts::default()));
            self.0.len() - 1
        });
        &mut self.0[index].1
    }

    fn values(&self) -> impl Iterator<Item = &AgentFacts> {
        self.0.iter().map(|(_, facts)| facts)
    }
}

/// A group repair that has landed.
#[derive(Clone, Debug)]
pub(crate) struct GroupRepair {
    pub(crate) behind: Behind,
    pub(crate) target: Arc<Target>,
    /// When its last statement began, which found no more rows than it wrote.
    pub(crate) began: Tick,
    pub(crate) landed: Tick,
}

/// Whether a row that names something else than what has answered must be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repaired {
    /// No group repair to this target has landed.
    NotYet,
    /// One has written this row, or found it changed; it landed then.
    Already(Tick),
    /// One has landed, and the row was seen to be behind after that.
    Missed,
}

/// The newest target that is known.
#[derive(Clone, Debug)]
struct Known {
    target: Arc<Target>,
    began: CompactInstant,
}

impl Known {
    fn new(target: Arc<Target>, began: Instant) -> Self {
        Self { target, began: began.into() }
    }

    /// When the question began whose answer it was; for a row, when it was read.
    fn began(&self) -> Instant {
        self.began.into()
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Source {
    #[default]
    /// A row of some session, which may be behind.
    Row,
    Resolver,
    /// The control plane, which knows before its resolver does.
    Announced,
}

#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    pub(crate) answer: Answer,
    pub(crate) began: Instant,
    pub(crate) landed: Instant,
}

#[derive(Debug, Default)]
struct AgentFacts {
    doubt: Option<Instant>,
    /// Dropped dials raise no doubt before then: the resolver has just named this agent.
    trusted_until: Option<Instant>,
    answered: Option<Instant>,
    /// Once one was believed.
    reports: Option<Box<Reports>>,
}

/// What sessions have reported of one agent.
#[derive(Debug)]
struct Reports {
    /// Whose they are, since the last verdict.
    sessions: Vec<SessionId>,
    /// No other one raises a doubt before `pause` has passed since the last one.
    last: Instant,
    pause: Duration,
}

impl AgentFacts {
    fn is_reported_by(&self, session: SessionId) -> bool {
        self.reports.as_ref().is_some_and(|reports| reports.sessions.contains(&session))
    }
}

impl Reports {
    fn begin(now: Instant) -> Box<Self> {
        Box::new(Self { sessions: Vec::new(), last: now, pause: REPORT_PAUSE })
    }
}

/// What a session is to dial.
#[derive(Clone, Debug)]
pub(crate) enum Choice {
    /// Exactly what the row names, without any doubt. Until the version of the workspace state
    /// changes, the row may be dialed without another choice.
    Settled(Arc<Target>),
    /// This target.
    Dial {
        target: Arc<Target>,
        /// Since when the target may be wrong: the call validates it while it dials.
        doubt: Option<Instant>,
        /// A connection is held back until the target was validated or the delay has passed.
        hold: bool,
    },
    /// Nothing, before the resolver has named a target.
    AskFirst {
        doubt: Option<Instant>,
        /// Why there is nothing to dial, if the resolver has just said so.
        denied: Option<Denied>,
    },
    /// Nothing: the epoch of the workspace has ended, or may have, so the row must be read again.
    Reset,
}

impl Choice {
    pub(crate) fn target(&self) -> Option<&Arc<Target>> {
        match self {
            Self::Settled(target) | Self::Dial { target, .. } => Some(target),
            Self::AskFirst { .. } | Self::Reset => None,
        }
    }

    /// Returns since when the session is in doubt.
    pub(crate) fn doubt(&self) -> Option<Instant> {
        match self {
            Self::Dial { doubt, .. } | Self::AskFirst { doubt, .. } => *doubt,
            Self::Settled(_) | Self::Reset => None,
        }
    }

    /// Returns why there is nothing to dial, if the resolver has just said so.
    pub(crate) fn denied(&self) -> Option<Denied> {
        match self {
            Self::AskFirst { denied, .. } => *denied,
            Self::Settled(_) | Self::Dial { .. } | Self::Reset => None,
        }
    }

    pub(crate) fn is_settled(&self) -> bool {
        matches!(self, Self::Settled(_))
    }

    pub(crate) fn is_held(&self) -> bool {
        matches!(self, Self::Dial { hold: true, .. })
    }

    pub(crate) fn is_reset(&self) -> bool {
        matches!(self, Self::Reset)
    }
}

impl Workspaces {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            places: Arc::new(Places {
                stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
                hasher: RandomState::new(),
                first: settings.revalidate_every,
                longest: settings.revalidate_at_most,
                max_pending_dials: settings.max_pending_dials,
            }),
            // moka's clock only bounds the memory; how old a denial may be is decided with tokio's.
            denied: Cache::builder().max_capacity(MOST_DENIED).time_to_live(FRESH_DENIAL).build(),
            kept: Mutex::default(),
        }
    }

    /// The workspace in this epoch, which somebody has read in a row, or in a later one. If it is
    /// the first row of a new epoch, whoever holds what was known before must look its row up
    /// again.
    pub(crate) fn place(&self, workspace: WorkspaceId, epoch: Epoch) -> Arc<WorkspaceState> {
        let mut stripe = self.places.stripe(workspace);
        let ended = match stripe.get(workspace).and_then(Weak::upgrade) {
            Some(place) if place.epoch() >= epoch => return place,
            ended => ended,
        };
        let place = Arc::new(WorkspaceState {
            workspace,
            places: Arc::clone(&self.places),
            version: AtomicU32::new(1),
            waiting: AtomicU32::new(0),
            busy: if epoch == Epoch::default() {
                OnceLock::new()
            } else {
                Box::new(Busy::of(epoch)).into()
            },
            facts: Mutex::default(),
        });
        stripe.insert(workspace, Arc::downgrade(&place));
        // Before the place that has ended may be dropped, which takes the lock.
        drop(stripe);
        if let Some(ended) = ended {
            ended.end();
            // What was known of another numbering says at least that there may be another agent.
            place.doubt(Instant::now());
        }
        place
    }

    /// The workspace, if anybody here uses it.
    pub(crate) fn find(&self, workspace: WorkspaceId) -> Option<Arc<WorkspaceState>> {
        self.places.stripe(workspace).get(workspace).and_then(Weak::upgrade)
    }

    /// The resolver has denied a workspace: what it said is remembered for a moment, though nobody
    /// may use the workspace.
    pub(crate) fn remember_denial(&self, place: Arc<WorkspaceState>) {
        self.denied.insert(place.workspace, place);
    }

    /// The workspace, which is remembered for a while even if nobody here uses it.
    pub(crate) fn keep(&self, workspace: WorkspaceId) -> Arc<WorkspaceState> {
        let place = self.place(workspace, Epoch::default());
        let mut kept = lock(&self.kept);
        if !kept.iter().any(|kept| Arc::ptr_eq(kept, &place)) {
            if kept.len() == MOST_KEPT {
                let oldest = kept.pop_front();
                // Its end takes another lock.
                drop((kept, oldest));
                kept = lock(&self.kept);
            }
            kept.push_back(Arc::clone(&place));
        }
        drop(kept);
        place
    }

    /// Forgets all that is known of a workspace, unless it is of this epoch already; whoever holds
    /// it must look its row up again. Which epoch it is, the rows say.
    pub(crate) fn reset(&self, workspace: WorkspaceId, epoch: Option<Epoch>) {
        let Some(place) = self.find(workspace) else { return };
        if epoch.is_some_and(|epoch| place.epoch() >= epoch) {
            return;
        }
        let is_this = |there: &Weak<WorkspaceState>| std::ptr::eq(there.as_ptr(), &*place);
        self.places.stripe(workspace).remove_if(workspace, is_this);
        place.end();
    }
}

impl Drop for WorkspaceState {
    fn drop(&mut self) {
        // Somebody may have made a new one in the meantime.
        self.places
            .stripe(self.workspace)
            .remove_if(self.workspace, |place| place.strong_count() == 0);
    }
}

/// Counts a call whose dial is pending.
#[derive(Debug)]
pub(crate) struct Waiting<'a>(&'a WorkspaceState);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The one task of a workspace that asks about a doubt.
#[derive(Debug)]
pub(crate) struct Asking(Arc<WorkspaceState>);

impl Asking {
    pub(crate) fn place(&self) -> &Arc<WorkspaceState> {
        &self.0
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.busy().asking.store(false, Ordering::Release);
    }
}

impl Busy {
    fn of(epoch: Epoch) -> Self {
        Self { epoch, ..Self::default() }
    }
}

impl WorkspaceState {
    fn busy(&self) -> &Busy {
        self.busy.get_or_init(Box::default)
    }

    pub(crate) fn workspace(&self) -> WorkspaceId {
        self.workspace
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.busy.get().map_or_else(Epoch::default, |busy| busy.epoch)
    }

    pub(crate) fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }

    /// The epoch has ended, or may have.
    fn end(&self) {
        self.change(|facts| {
            facts.reset = true;
            true
        });
    }

    fn dials(&self) -> Option<&Arc<PendingDials>> {
        self.busy.get()?.dials.get()
    }

    /// Returns the queue of a target that has as many pending dials as it may have.
    pub(crate) fn queue(&self, target: &Target) -> Option<Queue> {
        self.dials()?.queue(target)
    }

    /// Counts a dial that is pending.
    pub(crate) fn enter(&self, target: &Arc<Target>) -> Slot {
        let dials = || Arc::new(PendingDials::new(self.places.max_pending_dials));
        self.busy().dials.get_or_init(dials).enter(target)
    }

    /// Sees every change after this call, also one before its first poll.
    pub(crate) fn changed(&self) -> Notified<'_> {
        let changed = self.busy().changed.notified();
        // Who changes a fact after that finds somebody to notify, or has changed the version before
        // it is looked at here.
        fence(Ordering::SeqCst);
        changed
    }

    pub(crate) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(self)
    }

    /// `None` if there is one already.
    pub(crate) fn begin_to_ask(place: &Arc<Self>) -> Option<Asking> {
        (!place.busy().asking.swap(true, Ordering::AcqRel)).then(|| Asking(Arc::clone(place)))
    }

    fn change(&self, change: impl FnOnce(&mut Facts) -> bool) -> bool {
        let mut facts = lock(&self.facts);
        let changed = change(&mut facts);
        if changed {
            // Under the lock, so that a version that was read with a choice never belongs to an
            // earlier state.
            let next = self.version.load(Ordering::Relaxed).wrapping_add(1).max(1);
            self.version.store(next, Ordering::Release);
        }
        drop(facts);
        if changed {
            fence(Ordering::SeqCst);
            if let Some(busy) = self.busy.get() {
                busy.changed.notify_waiters();
            }
        }
        changed
    }

    /// Chooses what a session with this row, read at `read`, is to dial: the newer of the row's
    /// target and what is known here. Returns the version that this was chosen from, too.
    pub(crate) fn choose(&self, row: &Row, read: Instant, now: Instant) -> (Choice, u32) {
        let mut facts = lock(&self.facts);
        (facts.choose(row, read, now), self.version.load(Ordering::Relaxed))
    }

    /// A row was read: it may know of a later build. Returns what the row names, shared by all rows
    /// that name the same.
    pub(crate) fn learn_row(&self, target: &Arc<Target>, read: Instant) -> Arc<Target> {
        let mut named = Arc::clone(target);
        self.change(|facts| {
            if let Some(known) = facts.known.as_ref().filter(|known| known.target == *target) {
                named = Arc::clone(&known.target);
                return false;
            }
            let newer = facts
                .known
                .as_ref()
                .is_none_or(|known| known.target.compare(target) == Relation::Newer);
            if newer {
                // The resolver was not asked about this one.
                if let Some(rest) = &mut facts.rest {
                    rest.pause = None;
                }
                facts.replace(Known::new(Arc::clone(target), read), Source::Row);
            }
            newer
        });
        named
    }

    /// An answer has come. Returns what it is worth, and when to ask again if the dial still hangs
    /// then.
    pub(crate) fn learn_answer(
        &self,
        answer: Answer,
        began: Instant,
        now: Instant,
    ) -> (Answer, Instant) {
        let mut worth = answer;
        let mut again = now;
        self.change(|facts| {
            // A generation that was only heard of ends no call: what says less is used, and asked
            // about again.
            let mut below_floor = None;
            if let (Answer::Running(target), Some(known)) = (&mut worth, &facts.known)
                && **target == *known.target
            {
                // One for all that hold it.
                *target = Arc::clone(&known.target);
            }
            let changed = match &worth {
                Answer::Running(target) => {
                    below_floor = facts.is_below_floor(target);
                    let same =
                        facts.known.as_ref().is_some_and(|known| known.target.same_place(target));
                    let trusted_until = same.then(|| now + self.places.first);
                    match facts.learn(Arc::clone(target), began) {
                        Some(changed) => {
                            if below_floor.is_none() {
                                facts.believe(target.agent, began, trusted_until);
                            }
                            changed
                        }
                        None => {
                            let overtaken =
                                facts.known.as_ref().is_some_and(|known| known.began() > began);
                            worth = if overtaken { Answer::Overtaken } else { Answer::Unknown };
                            false
                        }
                    }
                }
                Answer::Denied(_) => {
                    if facts.known.as_ref().is_some_and(|known| began >= known.began()) {
                        facts.denied.get_or_insert(began);
                    }
                    false
                }
                Answer::Unknown | Answer::Overtaken => false,
            };
            if below_floor.is_some() || !matches!(worth, Answer::Running(_)) {
                facts.quiet = Some((began, now + below_floor.unwrap_or(self.places.first)));
            }
            let pause = match facts.pause {
                // Somebody had a doubt of its own, and asked for those who hang as well.
                Some((pause, ends)) if !changed && now < ends => pause,
                // Who hangs asks when the pause ends. Long after that somebody begins to hang anew.
                Some((pause, ends)) if !changed && now <= ends + self.places.longest => {
                    (pause * 2).min(self.places.longest)
                }
                _ => self.places.first,
            };
            let pause = pause.max(self.places.first);
            again = now + pause;
            facts.pause = Some((pause, again));
            if matches!(worth, Answer::Running(_) | Answer::Denied(_)) && below_floor.is_none() {
                facts.verdict = Some(Verdict { answer: worth.clone(), began, landed: now });
            }
            changed
        });
        (worth, again)
    }

    /// The control plane says what serves the workspace now. Returns whether that is believed: it
    /// is not older than what is known.
    pub(crate) fn announced(&self, target: Arc<Target>, now: Instant) -> bool {
        let (worth, _) = self.learn_answer(Answer::Running(Arc::clone(&target)), now, now);
        let believed = matches!(worth, Answer::Running(_));
        let mut facts = lock(&self.facts);
        if believed && facts.known.as_ref().is_some_and(|known| Arc::ptr_eq(&known.target, &target))
        {
            facts.from = Source::Announced;
        }
        believed
    }

    /// When to ask about the doubt that was raised about the workspace since `answered`. `None` if
    /// there is none.
    pub(crate) fn doubt_to_ask(&self, answered: Option<Instant>, now: Instant) -> Option<Instant> {
        let facts = lock(&self.facts);
        let doubt =
            facts.doubt.filter(|doubt| answered.is_none_or(|answered| *doubt > answered))?;
        let quiet = facts.quiet.filter(|(asked, _)| doubt <= *asked);
        Some(quiet.map_or(now, |(_, until)| until.max(now)))
    }

    /// Until when nobody whose dial still hangs needs to ask again.
    pub(crate) fn paused_until(&self, now: Instant) -> Option<Instant> {
        lock(&self.facts).pause.map(|(_, ends)| ends).filter(|ends| *ends > now)
    }

    pub(crate) fn newest_generation(&self) -> Option<Generation> {
        lock(&self.facts).known.as_ref().and_then(|known| known.target.generation)
    }

    /// Whether a repair to this target would be behind what is known.
    pub(crate) fn supersedes(&self, target: &Target) -> bool {
        let facts = lock(&self.facts);
        facts.reset
            || facts
                .known
                .as_ref()
                .is_some_and(|known| target.compare(&known.target) == Relation::Newer)
            || facts
                .superseded
                .iter()
                .any(|old| old.same_place(target) && old.generation == target.generation)
    }

    /// Whether an agent is known by what was asked or read after this, and nobody has denied it
    /// since.
    pub(crate) fn runs_since(&self, began: Instant) -> bool {
        let facts = lock(&self.facts);
        facts.denied.is_none() && facts.known.as_ref().is_some_and(|known| known.began() > began)
    }

    /// A group repair has landed.
    pub(crate) fn repaired(&self, repair: GroupRepair) {
        lock(&self.facts).repaired(repair);
    }

    /// A hint: another process has reached this generation, or knows that the agent may be another
    /// one. A doubt, and a floor for the answers to it: what was written is for the store to say.
    /// Returns `false` if it is no news.
    pub(crate) fn hear(&self, generation: Option<Generation>, now: Instant) -> bool {
        self.change(|facts| {
            if let Some(generation) = generation {
                if facts
                    .known
                    .as_ref()
                    .is_some_and(|known| known.target.generation >= Some(generation))
                {
                    return false;
                }
                if facts.floor.is_none_or(|(floor, _)| floor < generation) {
                    facts.floor = Some((generation, 0));
                }
            }
            facts.doubt = Some(now);
            true
        })
    }

    /// What the group repairs to this target have made of a row that is behind.
    pub(crate) fn repair_of(&self, stamp: Stamp, behind: Behind, target: &Target) -> Repaired {
        let facts = lock(&self.facts);
        let mut found = facts.repairs.iter().rev().filter(|repair| match (repair.behind, behind) {
            // Up to a later generation is more than was asked for.
            (Behind::Generation(reached), Behind::Generation(wanted)) => reached >= wanted,
            (repaired, wanted) => repaired == wanted && repair.target.same_place(target),
        });
        let Some(repair) = found.next() else { return Repaired::NotYet };
        let seen_before = match stamp.answered() {
            // What a read brings that began while the statement ran may still be what it was
            // before.
            None => stamp.began() < repair.landed,
            // A row that was written while the statement ran may have been missed.
            Some(answered) => answered < repair.began,
        };
        if seen_before { Repaired::Already(repair.landed) } else { Repaired::Missed }
    }

    /// The last word of the resolver, unless a doubt is younger.
    pub(crate) fn verdict(&self) -> Option<Verdict> {
        lock(&self.facts).verdict().cloned()
    }

    /// A hint: whatever is bound here may be wrong.
    pub(crate) fn doubt(&self, now: Instant) {
        self.change(|facts| {
            facts.doubt = Some(now);
            true
        });
    }

    /// Raises a doubt about one agent: a command dropped it from a row, or a row that won over a
    /// newer answer names it and nothing is known of it here.
    pub(crate) fn doubt_agent(&self, agent: AgentId, now: Instant) {
        self.change(|facts| {
            let agent = facts.agents.of(agent);
            agent.doubt = Some(now);
            true
        });
    }

    /// A call was dropped while its dial, begun then, was pending. Says whether that raised a
    /// doubt.
    pub(crate) fn doubt_dropped(&self, agent: AgentId, began: Instant, now: Instant) -> bool {
        if now.duration_since(began) < TOO_SHORT_TO_DOUBT {
            return false;
        }
        self.change(|facts| {
            let agent = facts.agents.of(agent);
            let answered = agent.answered.is_some_and(|answered| answered >= began);
            let trusted = agent.trusted_until.is_some_and(|until| now < until);
            if answered || trusted || agent.doubt.is_some() {
                return false;
            }
            agent.doubt = Some(now);
            true
        })
    }

    /// A caller found that its connection talks to the wrong or a dead agent. Says whether that
    /// raised a doubt.
    pub(crate) fn doubt_reported(&self, session: SessionId, target: &Target, now: Instant) -> bool {
        self.change(|facts| {
            let newer = facts
                .known
                .as_ref()
                .is_some_and(|known| target.compare(&known.target) == Relation::Newer);
            if newer || facts.has_superseded(target) || facts.reset {
                return false;
            }
            let agent = facts.agents.of(target.agent);
            if agent.reports.as_ref().is_some_and(|reports| now < reports.last + reports.pause) {
                return false;
            }
            agent.doubt = Some(now);
            let reports = agent.reports.get_or_insert_with(|| Reports::begin(now));
            reports.last = now;
            if reports.sessions.len() < MOST_REPORTERS && !reports.sessions.contains(&session) {
                reports.sessions.push(session);
            }
            true
        })
    }

    /// Records that a target has answered a dial, if other dials are pending. `times`: when it
    /// began, and now.
    pub(crate) fn answered_dial(
        &self,
        target: &Target,
        times: impl FnOnce() -> (Instant, Instant),
    ) {
        if let Some(dials) = self.dials() {
            dials.answered(target, times);
        }
    }

    /// An agent has answered a dial. `asked`: after the resolver was asked about it.
    pub(crate) fn answered(&self, agent: AgentId, asked: bool, now: impl FnOnce() -> Instant) {
        let watched = self.waiting.load(Ordering::Relaxed) > 0;
        if !asked && !watched {
            return;
        }
        let mut facts = lock(&self.facts);
        if watched {
            facts.agents.of(agent).answered = Some(now());
        }
        // The next dial that hangs is asked about as often as the first one. In a herd, other dials
        // still hang: the present pause holds for them.
        let herd = self.dials().is_some_and(|dials| dials.is_in_use());
        facts.pause = facts.pause.filter(|_| herd).map(|(_, ends)| (Duration::ZERO, ends));
    }
}

impl Facts {
    /// Chooses what a session with this row, read at `read`, is to dial.
    fn choose(&mut self, row: &Row, read: Instant, now: Instant) -> Choice {
        if self.reset {
            return Choice::Reset;
        }
        let (target, disagreement) = self.newest(row.target.as_ref(), read);
        let Some(target) = target else {
            return Choice::AskFirst { doubt: None, denied: self.fresh_denial(now) };
        };
        let agent = self.agents.get(target.agent);
        let doubt = [self.doubt, agent.and_then(|agent| agent.doubt), disagreement]
            .into_iter()
            .flatten()
            .max();
        let is_bound = row.target.as_ref().is_some_and(|bound| Arc::ptr_eq(bound, &target));
        if doubt.is_none() && is_bound {
            return Choice::Settled(target);
        }
        let active = doubt.filter(|doubt| {
            !self.quiet.is_some_and(|(asked, until)| *doubt <= asked && now < until)
        });
        if row.target.is_none() && active.is_some() {
            // Nothing binds the session to it: better ask first than dial what is in doubt.
            return Choice::AskFirst { doubt: active, denied: None };
        }
        // A row that contradicts an announcement may name the agent that was replaced, and that may
        // still live.
        let contradicts = disagreement.is_some() && self.from == Source::Announced;
        let reported = agent.is_some_and(|agent| agent.is_reported_by(row.session));
        let hold = active.is_some() && (contradicts || reported);
        Choice::Dial { target, doubt: active, hold }
    }

    /// The newer of the two, and since when the two contradict each other without being ordered.
    fn newest(
        &mut self,
        row: Option<&Arc<Target>>,
        read: Instant,
    ) -> (Option<Arc<Target>>, Option<Instant>) {
        let (row, known) = match (row, &self.known) {
            (Some(row), Some(known)) => (row, known),
            (None, Some(known)) if self.denied.is_none() => {
                return (Some(Arc::clone(&known.target)), None);
            }
            (row, _) => return (row.cloned(), None),
        };
        match row.compare(&known.target) {
            Relation::Newer => (Some(Arc::clone(&known.target)), None),
            Relation::Older | Relation::Same => (Some(Arc::clone(row)), None),
            Relation::Other if read < known.began() || self.has_superseded(row) => {
                (Some(Arc::clone(&known.target)), None)
            }
            // The row was read after the question and names an agent of which nothing is known
            // here: it may be ahead. It contradicts what is known, unless that was denied before.
            Relation::Other => {
                self.contradicted = true;
                let contradicts =
                    self.from != Source::Row && self.denied.is_none_or(|denied| denied > read);
                (Some(Arc::clone(row)), contradicts.then_some(read))
            }
        }
    }

    /// The last word of the resolver, unless a doubt is younger.
    fn verdict(&self) -> Option<&Verdict> {
        let verdict = self.verdict.as_ref()?;
        let doubts = self.agents.values().filter_map(|agent| agent.doubt).chain(self.doubt);
        (doubts.max() <= Some(verdict.began)).then_some(verdict)
    }

    /// Why the workspace has no agent, if the resolver has said so within the last second.
    fn fresh_denial(&self, now: Instant) -> Option<Denied> {
        let verdict = self.verdict().filter(|verdict| now <= verdict.landed + FRESH_DENIAL)?;
        match verdict.answer {
            Answer::Denied(denied) => Some(denied),
            _ => None,
        }
    }

    fn repaired(&mut self, repair: GroupRepair) {
        self.repairs.retain(|old| match (old.behind, repair.behind) {
            // The new one says all that the old one said, and of later reads.
            (Behind::Generation(old), Behind::Generation(reached)) => old > reached,
            (Behind::Agent(old_behind), Behind::Agent(behind)) => {
                // The rows that the old one has written have been written again: they do not name
                // its target any more.
                let rewritten = old.target.agent == behind;
                // Rows name again what the old one has replaced.
                let restored = repair.target.agent == old_behind;
                !rewritten && !restored
            }
            _ => true,
        });
        if self.repairs.len() == REMEMBERED {
            self.repairs.remove(0);
        }
        self.repairs.push(repair);
    }

    /// Whether an answer says less than another process has reached, and when to ask again then. A
    /// resolver that never gets there is believed in the end.
    fn is_below_floor(&mut self, target: &Target) -> Option<Duration> {
        let (_, misses) =
            self.floor.as_mut().filter(|(floor, _)| target.generation < Some(*floor))?;
        let pause = AGAIN_AFTER.get(*misses).copied();
        *misses += 1;
        if pause.is_none() {
            self.floor = None;
        }
        pause
    }

    fn has_superseded(&self, target: &Target) -> bool {
        self.superseded.iter().any(|old| old.same_place(target))
    }

    /// Whether the answer changed what is known; `None` if it says less than that.
    fn learn(&mut self, target: Arc<Target>, began: Instant) -> Option<bool> {
        let Some(known) = &mut self.known else {
            self.replace(Known::new(target, began), Source::Resolver);
            return Some(true);
        };
        match known.target.compare(&target) {
            Relation::Older => None,
            Relation::Same => {
                let numbered = known.target.generation != target.generation;
                if numbered {
                    known.target = target;
                }
                known.began = known.began.max(began.into());
                self.from = Source::Resolver;
                self.denied = None;
                Some(std::mem::take(&mut self.contradicted) | numbered)
            }
            // A row that was read after the question began may be behind as well as ahead: the
            // resolver is the authority.
            Relation::Other if began < known.began() && self.from != Source::Row => None,
            Relation::Newer | Relation::Other => {
                self.replace(Known::new(target, began), Source::Resolver);
                Some(true)
            }
        }
    }

    fn replace(&mut self, known: Known, from: Source) {
        if from != self.from {
            self.from = from;
        }
        if let Some(rest) = &mut self.rest {
            rest.denied = None;
            rest.contradicted = false;
            rest.superseded.retain(|old| !old.same_place(&known.target));
            rest.agents.0.retain(|(agent, _)| *agent == known.target.agent);
        }
        if let Some(old) = self.known.replace(known)
            // What was read later than its successor's question began is not ordered against it, so
            // not behind it.
            && self.known.as_ref().is_some_and(|known| old.began <= known.began && !known.target.same_place(&old.target))
        {
            if self.superseded.len() == REMEMBERED {
                self.superseded.remove(0);
            }
            self.superseded.push(old.target);
        }
    }

    /// The resolver named this agent in a read that began then: older doubts about it are answered.
    /// If it named what was known already, dropped dials raise no new ones for a while.
    fn believe(&mut self, agent: AgentId, began: Instant, trusted_until: Option<Instant>) {
        self.doubt = self.doubt.filter(|doubt| *doubt > began);
        let agent = self.agents.of(agent);
        if agent.doubt.is_none_or(|doubt| doubt <= began) {
            agent.doubt = None;
            agent.trusted_until = trusted_until;
            if let Some(reports) =
                agent.reports.as_mut().filter(|reports| !reports.sessions.is_empty())
            {
                reports.sessions.clear();
                reports.pause = (reports.pause * 2).min(LONGEST_REPORT_PAUSE);
            }
        }
    }
}

#[cfg(test)]
mod tests;
