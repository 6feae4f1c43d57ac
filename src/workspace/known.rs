//! The newest target that is known of a workspace, and what it has replaced.
//!
//! The targets of one workspace are ordered here and nowhere else: by generation if both have one,
//! else the answer whose question began later wins.

use super::REMEMBERED;
use crate::{
    Generation, Target, TargetSource as Source, binding::Relation, compact_instant::CompactInstant,
};
use std::sync::Arc;
use tokio::time::Instant;

/// The newest target that is known of a workspace.
#[derive(Debug, Default)]
pub(super) struct Known {
    newest: Option<Newest>,
    /// Boxed, because most workspaces are only known from rows that agree, and need none.
    history: Option<Box<History>>,
}

#[derive(Debug)]
struct Newest {
    target: Arc<Target>,
    began: CompactInstant,
}

impl Newest {
    /// Returns when the question began that the target was the answer to. For a target that was
    /// read in a row, when it was read.
    fn began(&self) -> Instant {
        self.began.into()
    }
}

#[derive(Debug, Default)]
struct History {
    source: Source,
    /// A session dials what its row names although the known target is another one and nothing
    /// orders the two. An answer that settles which of them is right is news for that session.
    contradicted: bool,
    /// When the first question began that was answered with a denial since the known target was
    /// learned or confirmed.
    denied: Option<Instant>,
    /// The targets that were replaced, newest last.
    superseded: Vec<Arc<Target>>,
}

/// The newer of a row's target and the known target.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Newer {
    pub(super) target: Arc<Target>,
    pub(super) contradiction: Option<Contradiction>,
}

/// The row names another target than an answer, was read after the question began, and nothing
/// orders the two targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Contradiction {
    /// When the row was read.
    pub(super) since: Instant,
    /// The answer was an announcement. So the row may name the agent that was replaced, and that
    /// agent may still be alive.
    pub(super) of_announcement: bool,
}

/// How an answer that names a target compares with what was known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Learned {
    /// The answer names a new target.
    Replaced,
    /// The answer names the known target, and adds its generation or settles a contradiction.
    Settled,
    /// The answer names the known target.
    Confirmed,
    /// The answer says less than what is known, from a question that began later.
    Behind,
    /// The answer says less than what is known, from a question that began earlier.
    Overtaken,
}

impl Newer {
    fn of(target: &Arc<Target>) -> Self {
        Self { target: Arc::clone(target), contradiction: None }
    }
}

impl Known {
    pub(super) fn source(&self) -> Source {
        self.history.as_ref().map_or(Source::Row, |history| history.source)
    }

    fn denied(&self) -> Option<Instant> {
        self.history.as_ref().and_then(|history| history.denied)
    }

    pub(super) fn superseded(&self) -> &[Arc<Target>] {
        self.history.as_ref().map_or(&[], |history| &history.superseded)
    }

    fn history(&mut self) -> &mut History {
        self.history.get_or_insert_default()
    }

    pub(super) fn target(&self) -> Option<&Arc<Target>> {
        self.newest.as_ref().map(|newest| &newest.target)
    }

    /// Returns the known target if it equals this one, so that all rows and answers that name it
    /// share one allocation.
    pub(super) fn intern(&self, target: &Arc<Target>) -> Arc<Target> {
        Arc::clone(self.target().filter(|known| *known == target).unwrap_or(target))
    }

    /// Returns the newer of a row's target and the known target. `None` if there is neither, or
    /// only a known target that was denied since.
    pub(super) fn newer(&mut self, row: Option<&Arc<Target>>, read: Instant) -> Option<Newer> {
        let (newer, is_unordered) = self.compare(row, read);
        if is_unordered {
            self.history().contradicted = true;
        }
        newer
    }

    /// Returns the same, and whether nothing orders the two, and changes nothing.
    pub(super) fn compare(
        &self,
        row: Option<&Arc<Target>>,
        read: Instant,
    ) -> (Option<Newer>, bool) {
        let ordered = |newer| (newer, false);
        let (row, known) = match (row, &self.newest) {
            (Some(row), Some(known)) => (row, known),
            (None, Some(known)) if self.denied().is_none() => {
                return ordered(Some(Newer::of(&known.target)));
            }
            (row, _) => return ordered(row.map(Newer::of)),
        };
        match row.compare(&known.target) {
            Relation::Newer => ordered(Some(Newer::of(&known.target))),
            Relation::Older | Relation::Same => ordered(Some(Newer::of(row))),
            Relation::Other if read < known.began() || self.has_superseded(row) => {
                ordered(Some(Newer::of(&known.target)))
            }
            // The row was read after the question began and names a target of which nothing is
            // known, so the row may be ahead. Two rows are no evidence against each other.
            Relation::Other => {
                let source = self.source();
                let contradicts =
                    source != Source::Row && self.denied().is_none_or(|denied| denied > read);
                let of_announcement = source == Source::Announcement;
                let contradiction =
                    contradicts.then_some(Contradiction { since: read, of_announcement });
                (Some(Newer { contradiction, ..Newer::of(row) }), true)
            }
        }
    }

    /// Learns what a row names. Returns `true` if that is newer than what was known.
    pub(super) fn learn_row(&mut self, target: &Arc<Target>, read: Instant) -> bool {
        let is_newer = self.target().is_none_or(|known| known.compare(target) == Relation::Newer);
        if is_newer {
            self.replace(Arc::clone(target), read, Source::Row);
        }
        is_newer
    }

    /// Learns the target that the answer to a question names.
    pub(super) fn learn_answer(&mut self, target: Arc<Target>, began: Instant) -> Learned {
        let source = self.source();
        let Some(known) = &mut self.newest else {
            self.replace(target, began, Source::Resolver);
            return Learned::Replaced;
        };
        let less = if began < known.began() { Learned::Overtaken } else { Learned::Behind };
        match known.target.compare(&target) {
            Relation::Older => less,
            Relation::Same => {
                let is_numbered = known.target.generation != target.generation;
                if is_numbered {
                    known.target = target;
                }
                known.began = known.began.max(began.into());
                let history = self.history();
                history.source = Source::Resolver;
                history.denied = None;
                let is_settled = std::mem::take(&mut history.contradicted);
                if is_numbered || is_settled { Learned::Settled } else { Learned::Confirmed }
            }
            // The resolver is the authority: an answer outranks a row, whenever that was read.
            Relation::Other if less == Learned::Overtaken && source != Source::Row => less,
            Relation::Newer | Relation::Other => {
                self.replace(target, began, Source::Resolver);
                Learned::Replaced
            }
        }
    }

    /// Learns that the resolver denies the workspace, in the answer to a question that began then.
    pub(super) fn learn_denial(&mut self, began: Instant) {
        if self.newest.as_ref().is_some_and(|known| began >= known.began()) {
            self.history().denied.get_or_insert(began);
        }
    }

    /// Notes that the control plane has announced this target, if the target is the known one.
    pub(super) fn note_announced(&mut self, target: &Arc<Target>) {
        if self.target().is_some_and(|known| Arc::ptr_eq(known, target)) {
            self.history().source = Source::Announcement;
        }
    }

    fn replace(&mut self, target: Arc<Target>, began: Instant, source: Source) {
        if source != self.source() {
            self.history().source = source;
        }
        if let Some(history) = &mut self.history {
            history.denied = None;
            history.contradicted = false;
            history.superseded.retain(|old| !old.same_endpoint(&target));
        }
        let new = Newest { target, began: began.into() };
        // A row that was read after the successor's question began is not ordered against the
        // successor, so its target is not remembered as superseded.
        let is_superseded =
            |old: &Newest| old.began <= new.began && !new.target.same_endpoint(&old.target);
        let superseded = self.newest.take().filter(is_superseded);
        self.newest = Some(new);
        if let Some(Newest { target, .. }) = superseded {
            let superseded = &mut self.history().superseded;
            if superseded.len() == REMEMBERED {
                superseded.remove(0);
            }
            superseded.push(target);
        }
    }

    fn has_superseded(&self, target: &Target) -> bool {
        self.superseded().iter().any(|old| old.same_endpoint(target))
    }

    fn is_newer_than(&self, target: &Target) -> bool {
        self.target().is_some_and(|known| target.compare(known) == Relation::Newer)
    }

    /// Returns `true` if the target must not be dialed any more because a newer one is known.
    pub(super) fn has_replaced(&self, target: &Target) -> bool {
        self.is_newer_than(target) || self.has_superseded(target)
    }

    /// Returns `true` if a repair must not write the target. Unlike
    /// [`has_replaced`](Self::has_replaced), this lets pass what was superseded and has come back
    /// as a later build.
    pub(super) fn supersedes(&self, target: &Target) -> bool {
        let is_superseded =
            |old: &Arc<Target>| old.same_endpoint(target) && old.generation == target.generation;
        self.is_newer_than(target) || self.superseded().iter().any(is_superseded)
    }

    /// Returns when the question began that was answered with this target, or when it was read in a
    /// row; `None` if it is not the known target.
    pub(super) fn named_at(&self, target: &Target) -> Option<Instant> {
        let known = self.newest.as_ref().filter(|known| known.target.same_endpoint(target))?;
        Some(known.began())
    }

    /// Returns `true` if the known target was named in answer to a question that began after this
    /// instant, or read in a row after it, and was not denied since.
    pub(super) fn is_named_since(&self, began: Instant) -> bool {
        self.denied().is_none() && self.newest.as_ref().is_some_and(|known| known.began() > began)
    }

    pub(super) fn generation(&self) -> Option<Generation> {
        self.target().and_then(|target| target.generation)
    }
}

#[cfg(test)]
mod tests;
