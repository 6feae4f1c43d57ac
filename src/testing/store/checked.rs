//! The store under test, with the general rules checked at each call of a verb.

use super::rows::{
    Row, Shown, session, show_new, show_session, show_target, show_workspace, workspace,
};
use crate::{
    Binding, Epoch, Revision, SessionId, Target, WorkspaceId,
    observer::WithSources,
    store::{BindingStore, NewBinding, StoreError, Swap},
};
use std::{collections::BTreeMap, sync::Arc};

/// The result of a write that compares: [`Swap`] without revisions and epochs.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Swapped {
    Applied(Row),
    Conflict(Option<Row>),
}

/// A store that one test uses alone. It remembers what the store has answered, and checks that
///
/// * a row that was written has a greater revision than the session's row ever had,
/// * every returned row carries the epoch of its workspace,
/// * a verb that writes returns the row that is read afterwards, and one that refuses to write
///   leaves the row as it was,
/// * a verb that writes several rows reports their number.
pub(super) struct Checked<St> {
    store: St,
    /// The row of each session that was ever named; `None` if there is none.
    rows: BTreeMap<SessionId, Option<Binding>>,
    /// Every revision that the row of a session has had, in their order.
    revisions: BTreeMap<SessionId, Vec<Revision>>,
    epochs: BTreeMap<WorkspaceId, Epoch>,
    /// The calls so far.
    calls: Vec<String>,
}

/// Prints the calls that led to a failure.
impl<St> Drop for Checked<St> {
    fn drop(&mut self) {
        const SHOWN: usize = 20;
        if std::thread::panicking() {
            let from = self.calls.len().saturating_sub(SHOWN);
            eprintln!("the last calls (in the message, left is the store and right the contract):");
            for call in &self.calls[from..] {
                eprintln!("    {call}");
            }
        }
    }
}

/// Returns the result of a verb. An error fails the test.
pub(super) fn ok<T>(verb: &str, result: Result<T, StoreError>) -> T {
    result.unwrap_or_else(|error| panic!("{verb} has failed: {}", WithSources(&error)))
}

impl<St: BindingStore> Checked<St> {
    /// Wraps a store without rows.
    pub(super) fn new(store: St) -> Self {
        let (rows, revisions, epochs) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { store, rows, revisions, epochs, calls: Vec::new() }
    }

    fn call(&mut self, verb: String) -> String {
        self.calls.push(verb.clone());
        verb
    }

    /// Returns the store itself, for verbs that write no row.
    pub(super) const fn inner(&self) -> &St {
        &self.store
    }

    /// Returns the epoch of a workspace, according to the last reset.
    pub(super) fn epoch(&self, w: u128) -> Epoch {
        self.epochs.get(&workspace(w)).copied().unwrap_or_default()
    }

    /// Returns a record in the epoch of its workspace.
    pub(super) fn new_binding(&self, s: u128, w: u128, target: Option<Arc<Target>>) -> NewBinding {
        NewBinding::new(session(s), workspace(w), target).with_epoch(self.epoch(w))
    }

    /// Returns the last revision of a session's row.
    pub(super) fn revision(&self, s: u128) -> Revision {
        self.earlier_revision(s, 0)
    }

    /// Returns the revision of a session's row `writes_ago` writes ago, or its first one.
    pub(super) fn earlier_revision(&self, s: u128, writes_ago: usize) -> Revision {
        let revisions = self.revisions.get(&session(s)).map_or(&[][..], Vec::as_slice);
        let then = revisions.len().saturating_sub(1 + writes_ago);
        revisions.get(then).copied().unwrap_or(Revision::new(0))
    }

    pub(super) async fn load(&mut self, s: u128) -> Option<Row> {
        self.call(format!("load({})", show_session(session(s))));
        self.loaded("load", session(s)).await
    }

    pub(super) async fn create(&mut self, new: NewBinding) -> Swapped {
        let verb = self.call(format!("create({})", show_new(&new)));
        let swap = ok(&verb, self.store.create(new.clone()).await);
        self.swapped(&verb, new.session, swap).await
    }

    /// Swaps at the last revision of the row.
    pub(super) async fn swap(&mut self, s: u128, w: u128, target: Option<Arc<Target>>) -> Swapped {
        self.swap_at(self.revision(s), self.new_binding(s, w, target)).await
    }

    pub(super) async fn swap_at(&mut self, expected: Revision, new: NewBinding) -> Swapped {
        let verb = self.call(format!("compare_and_swap(revision {expected}: {})", show_new(&new)));
        let swap = ok(&verb, self.store.compare_and_swap(expected, new.clone()).await);
        self.swapped(&verb, new.session, swap).await
    }

    pub(super) async fn retarget(&mut self, s: u128, w: u128) -> Row {
        let verb = self.call(format!(
            "retarget({}, {})",
            show_session(session(s)),
            show_workspace(workspace(w))
        ));
        let row = ok(&verb, self.store.retarget(session(s), workspace(w)).await);
        self.written(&verb, session(s), row).await
    }

    pub(super) async fn unbind(&mut self, s: u128) -> Option<Row> {
        let verb = self.call(format!("unbind({})", show_session(session(s))));
        match ok(&verb, self.store.unbind(session(s)).await) {
            Some(row) => Some(self.written(&verb, session(s), row).await),
            None => self.loaded(&verb, session(s)).await,
        }
    }

    pub(super) async fn forget(&mut self, s: u128, expected: Option<Revision>) -> bool {
        let verb = self.call(format!("forget({}, {expected:?})", show_session(session(s))));
        let forgotten = ok(&verb, self.store.forget(session(s), expected).await);
        if forgotten {
            self.rows.insert(session(s), None);
        }
        self.loaded(&verb, session(s)).await;
        forgotten
    }

    pub(super) async fn inherit(&mut self, child: u128, parent: u128) -> Swapped {
        let verb = self.call(format!(
            "inherit({} of {})",
            show_session(session(child)),
            show_session(session(parent))
        ));
        let swap = ok(&verb, self.store.inherit(session(child), session(parent)).await);
        self.swapped(&verb, session(child), swap).await
    }

    /// Resets a workspace and returns the number of its rows.
    pub(super) async fn reset(&mut self, w: u128) -> u64 {
        let verb = self.call(format!("reset_workspace({})", show_workspace(workspace(w))));
        let reset = ok(&verb, self.store.reset_workspace(workspace(w)).await);
        let before = self.epoch(w);
        let begun = reset.epoch;
        assert!(begun > before, "{verb}: epoch {begun} is not greater than {before}");
        self.epochs.insert(workspace(w), begun);
        let of_workspace = |row: &Binding| row.workspace == workspace(w);
        let rows = self.rows.values().flatten().filter(|row| of_workspace(row)).count() as u64;
        assert_eq!(self.changed(&verb).await, rows, "{verb}: each row of the workspace is written");
        reset.rows
    }

    /// Runs a group repair and returns the number of written rows.
    pub(super) async fn replace(
        &mut self,
        w: u128,
        epoch: Epoch,
        stale: &Target,
        current: &Arc<Target>,
        limit: u64,
    ) -> u64 {
        let verb = self.call(format!(
            "replace_agent({}, epoch {epoch}: {} by {}, at most {limit})",
            show_workspace(workspace(w)),
            show_target(Some(stale)),
            show_target(Some(current)),
        ));
        let replaced = self.store.replace_agent(workspace(w), epoch, stale, current, limit).await;
        let replaced = ok(&verb, replaced);
        assert_eq!(self.changed(&verb).await, replaced, "{verb} says how many rows were written");
        replaced
    }

    /// Returns the rows in the order of their sessions.
    pub(super) async fn load_many(&mut self, sessions: &[u128]) -> Vec<Row> {
        let verb = self.call(format!("load_many({sessions:?})"));
        let sessions: Vec<_> = sessions.iter().map(|s| session(*s)).collect();
        let mut found = ok(&verb, self.store.load_many(&sessions).await);
        found.sort_by_key(|row| row.session);
        for row in &found {
            self.is_known(&verb, row.session, Some(row));
        }
        found.iter().map(Row::of).collect()
    }

    /// Returns the rows of these sessions after a purge, which may have deleted them.
    pub(super) async fn purged<const N: usize>(&mut self, sessions: [u128; N]) -> [Option<Row>; N] {
        let mut rows = [const { None }; N];
        for (row, s) in rows.iter_mut().zip(sessions) {
            let read = ok("load", self.store.load(session(s)).await);
            if read.is_none() {
                self.rows.insert(session(s), None);
            }
            self.is_known("load after a purge", session(s), read.as_ref());
            *row = read.as_ref().map(Row::of);
        }
        rows
    }

    /// Checks that the rows of all sessions that were ever named are as they are known.
    pub(super) async fn audit(&mut self, after: &str) {
        let sessions: Vec<_> = self.rows.keys().copied().collect();
        for session in sessions {
            self.loaded(after, session).await;
        }
    }

    async fn swapped(&mut self, verb: &str, session: SessionId, swap: Swap) -> Swapped {
        match swap {
            Swap::Applied(row) => Swapped::Applied(self.written(verb, session, row).await),
            Swap::Conflict(winner) => {
                self.is_known(verb, session, winner.as_ref());
                self.loaded(verb, session).await;
                Swapped::Conflict(winner.as_ref().map(Row::of))
            }
        }
    }

    /// Checks a row that a verb has returned as written.
    async fn written(&mut self, verb: &str, session: SessionId, row: Binding) -> Row {
        self.is_next(verb, session, row.clone());
        self.loaded(verb, session).await;
        Row::of(&row)
    }

    /// Remembers a row that was written.
    fn is_next(&mut self, verb: &str, session: SessionId, row: Binding) {
        self.is_sound(verb, session, &row);
        let revisions = self.revisions.entry(session).or_default();
        if let Some(last) = revisions.last() {
            let (next, last) = (row.revision, *last);
            assert!(
                next > last,
                "{verb}: the row was written at revision {next}, and the session had {last} before"
            );
        }
        revisions.push(row.revision);
        self.rows.insert(session, Some(row));
    }

    fn is_sound(&self, verb: &str, session: SessionId, row: &Binding) {
        assert_eq!(row.session, session, "{verb}: the row of another session");
        let epoch = self.epochs.get(&row.workspace).copied().unwrap_or_default();
        assert_eq!(
            row.epoch,
            epoch,
            "{verb}: the epoch of the workspace of {:?}",
            Shown(Some(row))
        );
    }

    /// Compares a row that was returned and not written with the known row.
    fn is_known(&mut self, verb: &str, session: SessionId, row: Option<&Binding>) {
        if let Some(row) = row {
            self.is_sound(verb, session, row);
        }
        match self.rows.get(&session) {
            Some(known) => {
                assert_eq!(Shown(row), Shown(known.as_ref()), "{verb}: the row as it is")
            }
            None => assert_eq!(Shown(row), Shown(None), "{verb}: the session has no row yet"),
        }
        self.rows.entry(session).or_insert(None);
    }

    async fn loaded(&mut self, after: &str, session: SessionId) -> Option<Row> {
        let row = ok("load", self.store.load(session).await);
        self.is_known(&format!("load after {after}"), session, row.as_ref());
        row.as_ref().map(Row::of)
    }

    /// Returns the number of rows that differ from the known ones, and remembers them.
    async fn changed(&mut self, verb: &str) -> u64 {
        let mut changed = 0;
        for (session, known) in self.rows.clone() {
            let read = ok("load", self.store.load(session).await);
            if read == known {
                continue;
            }
            let after = format!("load after {verb}");
            match (read, known) {
                (Some(read), Some(_)) => self.is_next(&after, session, read),
                (read, known) => {
                    let (read, known) = (Shown(read.as_ref()), Shown(known.as_ref()));
                    panic!("{after}: {read:?}, and it was {known:?}")
                }
            }
            changed += 1;
        }
        changed
    }
}
