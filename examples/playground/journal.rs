//! The last turns and the counters, in bounded memory.

use crate::{
    lanes::{Answered, Lane},
    trace::{Trace, lock, ms, round},
};
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::Instant;
use tower_bound_agent::BoxError;

/// Turns that are kept: those of about a minute.
const MOST_TURNS: usize = 9_000;
const MOST_PRESSES: usize = 32;
/// Turns in one message to a page. A page that is slow, or new, gets the latest ones.
const MOST_IN_FRAME: usize = 5_000;

pub(crate) struct Journal {
    pub(crate) epoch: Instant,
    /// The validation delay of the crate's lane. A turn that takes as long is slow.
    pub(crate) delay: Duration,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    finished: u64,
    turns: VecDeque<Turn>,
    counters: [Counters; 3],
    presses: VecDeque<Press>,
    pressed: u64,
}

/// What is counted of a lane's turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) turns: u64,
    pub(crate) waiting: u64,
    /// Turns that took the validation delay or longer, whether they failed or not.
    pub(crate) slow: u64,
    pub(crate) failed: u64,
    pub(crate) switched: u64,
    /// SQL statements, without those of the resolver.
    pub(crate) sql: u64,
    /// Questions to the resolver, each of which is one more statement.
    pub(crate) reads: u64,
}

impl Counters {
    pub(crate) fn json(self) -> Value {
        json!({
            "turns": self.turns, "waiting": self.waiting, "slow": self.slow, "failed": self.failed,
            "switched": self.switched, "sql": self.sql, "reads": self.reads,
        })
    }

    /// What was added since an earlier count.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            turns: self.turns - earlier.turns,
            waiting: self.waiting,
            slow: self.slow - earlier.slow,
            failed: self.failed - earlier.failed,
            switched: self.switched - earlier.switched,
            sql: self.sql - earlier.sql,
            reads: self.reads - earlier.reads,
        }
    }
}

/// A turn that is over.
struct Turn {
    id: u64,
    lane: Lane,
    chat: usize,
    workspace: &'static str,
    began: Duration,
    took: Duration,
    ended: Result<Answered, String>,
    trace: Arc<Trace>,
}

/// A button that was pressed, and the counters at that time.
struct Press {
    number: u64,
    label: String,
    at: Duration,
    counters: [Counters; 3],
}

/// What a page has received already.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cursor {
    finished: u64,
    pressed: u64,
}

impl Journal {
    pub(crate) fn new(delay: Duration) -> Self {
        Self { epoch: Instant::now(), delay, inner: Mutex::default() }
    }

    pub(crate) fn begin(&self, lane: Lane) {
        lock(&self.inner).counters[lane as usize].waiting += 1;
    }

    pub(crate) fn finish(
        &self,
        lane: Lane,
        chat: usize,
        workspace: &'static str,
        trace: Arc<Trace>,
        ended: Result<Answered, BoxError>,
    ) {
        let took = trace.began.elapsed();
        let began = trace.began.duration_since(self.epoch);
        let mut inner = lock(&self.inner);
        let counters = &mut inner.counters[lane as usize];
        counters.waiting -= 1;
        counters.turns += 1;
        counters.slow += u64::from(took >= self.delay);
        counters.failed += u64::from(ended.is_err());
        counters.switched +=
            u64::from(ended.as_ref().is_ok_and(|answered| answered.word == "switched"));
        inner.finished += 1;
        let ended = ended.map_err(|error| chain(&*error));
        let turn = Turn { id: inner.finished, lane, chat, workspace, began, took, ended, trace };
        if inner.turns.len() == MOST_TURNS {
            inner.turns.pop_front();
        }
        inner.turns.push_back(turn);
    }

    /// Returns the counters of turns. The caller adds those of statements.
    pub(crate) fn counters(&self) -> [Counters; 3] {
        lock(&self.inner).counters
    }

    pub(crate) fn press(&self, label: String, counters: [Counters; 3]) {
        let at = self.epoch.elapsed();
        let mut inner = lock(&self.inner);
        inner.pressed += 1;
        let number = inner.pressed;
        if inner.presses.len() == MOST_PRESSES {
            inner.presses.pop_front();
        }
        inner.presses.push_back(Press { number, label, at, counters });
    }

    /// Returns the counters when the last button was pressed.
    pub(crate) fn last_press(&self) -> Option<Value> {
        let inner = lock(&self.inner);
        inner.presses.back().map(|press| {
            let counters = press.counters.map(Counters::json);
            json!({ "number": press.number, "label": press.label, "at": round(ms(press.at)), "counters": counters })
        })
    }

    /// Returns the turns and presses that a page has not received yet, and moves its cursor.
    pub(crate) fn news(&self, cursor: &mut Cursor) -> (Value, Value) {
        let inner = lock(&self.inner);
        let first = inner.turns.front().map_or(0, |turn| turn.id);
        let seen =
            usize::try_from((cursor.finished + 1).saturating_sub(first)).unwrap_or(usize::MAX);
        let skip = seen.max(inner.turns.len().saturating_sub(MOST_IN_FRAME));
        let turns = inner.turns.iter().skip(skip).map(Turn::row).collect();
        let presses = inner.presses.iter().filter(|press| press.number > cursor.pressed);
        let presses =
            presses.map(|press| json!([press.number, press.label, round(ms(press.at))])).collect();
        *cursor = Cursor { finished: inner.finished, pressed: inner.pressed };
        (turns, presses)
    }

    /// Returns everything about one turn, if it is still kept.
    pub(crate) fn turn(&self, id: u64) -> Option<Value> {
        let inner = lock(&self.inner);
        let first = inner.turns.front()?.id;
        inner
            .turns
            .get(usize::try_from(id.checked_sub(first)?).ok()?)
            .map(|turn| turn.json(self.delay))
    }
}

impl Turn {
    fn word(&self) -> &'static str {
        self.ended.as_ref().map_or("failed", |answered| answered.word)
    }

    /// The turn as a page's time line needs it.
    fn row(&self) -> Value {
        let (began, took) = (round(ms(self.began)), round(ms(self.took)));
        json!([self.id, self.lane as usize, self.word(), began, took, self.chat, self.workspace])
    }

    fn json(&self, delay: Duration) -> Value {
        let (answered, error) = match &self.ended {
            Ok(answered) => (Some(answered), None),
            Err(error) => (None, Some(error)),
        };
        json!({
            "id": self.id, "lane": self.lane as usize, "lane_name": self.lane.name(), "chat": self.chat,
            "workspace": self.workspace, "began": round(ms(self.began)), "took": round(ms(self.took)),
            "outcome": self.word(), "error": error,
            "build": answered.map(|answered| crate::trace::build(&answered.target)),
            "call": answered.and_then(|answered| answered.outcome.as_ref()).map(Answered::json),
            "delay": (self.lane == Lane::Bound).then_some(ms(delay)),
            "steps": self.trace.json(),
        })
    }
}

fn chain(error: &(dyn std::error::Error + Send + Sync + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}
