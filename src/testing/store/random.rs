//! Random commands, compared with the store in memory.

use super::{
    checked::{Checked, Swapped},
    rows::{Row, bare, full},
};
use crate::{
    Target,
    store::{BindingStore, MemoryStore},
};
use std::sync::Arc;

/// The number of runs, each with sessions and workspaces of its own.
const RUNS: u64 = 15;
const COMMANDS: usize = 50;

/// The generator SplitMix64, which yields the same numbers for the same seed on every platform.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number less than `n`.
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn target(&mut self) -> Arc<Target> {
        let id = u128::from(1 + self.below(3));
        if self.below(2) == 0 { full(id) } else { bare(id) }
    }

    fn maybe_target(&mut self) -> Option<Arc<Target>> {
        (self.below(3) > 0).then(|| self.target())
    }
}

/// A command on three sessions and two workspaces, so that commands often concern the same row.
#[derive(Clone, Debug)]
enum Command {
    Load(u128),
    Create(u128, u128, Option<Arc<Target>>),
    /// A swap whose expected revision is this number of writes old; 0 applies.
    Swap(u128, u128, Option<Arc<Target>>, usize),
    Retarget(u128, u128),
    Unbind(u128),
    /// The same, if the deletion compares.
    Forget(u128, Option<usize>),
    Inherit(u128, u128),
    Reset(u128),
    Replace(u128, Arc<Target>, Arc<Target>, u64),
    LoadMany(Vec<u128>),
}

/// The answer of a store, without revisions and epochs.
#[derive(Debug, PartialEq)]
enum Answer {
    Row(Option<Row>),
    Rows(Vec<Row>),
    Swapped(Swapped),
    Number(u64),
    YesOrNo(bool),
}

impl Command {
    /// `first` is the smallest id of this run.
    fn of(random: &mut Random, first: u128) -> Self {
        let s = first + u128::from(random.below(3));
        let w = first + u128::from(random.below(2));
        let writes_ago = if random.below(5) > 0 { 0 } else { 1 + random.below(2) as usize };
        match random.below(18) {
            0 => Self::Load(s),
            1 | 2 => Self::Create(s, w, random.maybe_target()),
            3..=6 => Self::Swap(s, w, random.maybe_target(), writes_ago),
            7 | 8 => Self::Retarget(s, w),
            9 => Self::Unbind(s),
            10 => Self::Forget(s, (random.below(2) == 0).then_some(writes_ago)),
            11 | 12 => Self::Inherit(s, first + u128::from(random.below(3))),
            13 => Self::Reset(w),
            14..=16 => Self::Replace(w, random.target(), random.target(), random.below(4)),
            _ => {
                let sessions = (0..random.below(6)).map(|_| first + u128::from(random.below(4)));
                Self::LoadMany(sessions.collect())
            }
        }
    }

    async fn run<St: BindingStore>(self, store: &mut Checked<St>) -> Answer {
        match self {
            Self::Load(s) => Answer::Row(store.load(s).await),
            Self::Create(s, w, target) => {
                let new = store.new_binding(s, w, target);
                Answer::Swapped(store.create(new).await)
            }
            Self::Swap(s, w, target, writes_ago) => {
                let expected = store.earlier_revision(s, writes_ago);
                let new = store.new_binding(s, w, target);
                Answer::Swapped(store.swap_at(expected, new).await)
            }
            Self::Retarget(s, w) => Answer::Row(Some(store.retarget(s, w).await)),
            Self::Unbind(s) => Answer::Row(store.unbind(s).await),
            Self::Forget(s, writes_ago) => {
                let expected = writes_ago.map(|writes_ago| store.earlier_revision(s, writes_ago));
                Answer::YesOrNo(store.forget(s, expected).await)
            }
            Self::Inherit(child, parent) => Answer::Swapped(store.inherit(child, parent).await),
            Self::Reset(w) => Answer::Number(store.reset(w).await),
            Self::Replace(w, stale, current, limit) => {
                let epoch = store.epoch(w);
                Answer::Number(store.replace(w, epoch, &stale, &current, limit).await)
            }
            Self::LoadMany(sessions) => Answer::Rows(store.load_many(&sessions).await),
        }
    }
}

/// In random sequences of commands, every answer is the one of
/// [`MemoryStore`](crate::store::MemoryStore), except for the numbers of revisions and epochs. This
/// case finds errors that no other case covers. The commands are the same in each run of the test;
/// a failure lists the commands that led to it.
///
/// > **Every method is one atomic statement** on one row, unless it says otherwise.
pub async fn random_commands_give_the_answers_of_the_memory_store<St: BindingStore>(store: St) {
    let store = Arc::new(store);
    for run in 0..RUNS {
        let (mut random, first) = (Random(run), 1_000 * u128::from(run));
        let mut tested = Checked::new(Arc::clone(&store));
        let mut memory = Checked::new(MemoryStore::new());
        let mut commands = Vec::new();
        for _ in 0..COMMANDS {
            let command = Command::of(&mut random, first);
            commands.push(format!("{command:?}"));
            let expected = command.clone().run(&mut memory).await;
            let answer = command.run(&mut tested).await;
            assert_eq!(answer, expected, "run {run}, after\n{}", commands.join("\n"));
        }
        tested.audit("random commands").await;
    }
}
