//! The chats, the load that they cause, and what the buttons do.

use crate::{
    agents::{Agents, Condition},
    database::Database,
    journal::{Counters, Journal},
    lanes::{Asked, Lane, Lanes, dial_timeout},
    trace::{Trace, ms},
};
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};
use tokio::time::{MissedTickBehavior, interval};
use tower_bound_agent::{BoxError, SessionId};
use uuid::Uuid;

/// How many chats of a workspace are moved by one press of "retarget".
const MOVED: usize = 10;

pub(crate) struct World {
    pub(crate) journal: Journal,
    database: Arc<Database>,
    pub(crate) agents: Arc<Agents>,
    lanes: Lanes,
    chats: Vec<Chat>,
    running: AtomicBool,
}

struct Chat {
    session: SessionId,
    workspace: AtomicUsize,
    lanes: [InLane; 3],
}

#[derive(Default)]
struct InLane {
    busy: AtomicBool,
    known: AtomicBool,
}

/// What a button applies to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    All,
    One(usize),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    Rebuild,
    Kill,
    Freeze(bool),
    Silence(bool),
    Stop,
    Start,
    Retarget,
}

impl World {
    /// Creates the database in a folder and starts the agents. No chat takes a turn yet. `delay` is
    /// the validation delay of the crate's lane.
    pub(crate) async fn create(
        folder: &Path,
        chats: usize,
        workspaces: usize,
        delay: Duration,
    ) -> Result<Arc<Self>, BoxError> {
        let file = folder.join("playground.db");
        let database = Arc::new(Database::create(&file, chats, workspaces).await?);
        let agents = Arc::new(Agents::start(Arc::clone(&database), workspaces).await?);
        let lanes = Lanes::new(Arc::clone(&database), Arc::clone(&agents), delay)?;
        let chats = (0..chats).map(|chat| Chat {
            session: SessionId::new(Uuid::new_v4()),
            workspace: AtomicUsize::new(chat % workspaces),
            lanes: Default::default(),
        });
        let chats = chats.collect();
        database.counts().reset();
        let (journal, running) = (Journal::new(delay), AtomicBool::new(false));
        Ok(Arc::new(Self { journal, database, agents, lanes, chats, running }))
    }

    pub(crate) fn chats(&self) -> usize {
        self.chats.len()
    }

    /// Returns the chats that point at a workspace.
    pub(crate) fn chats_of(&self, workspace: usize) -> impl Iterator<Item = usize> {
        let at = move |chat: &Chat| chat.workspace.load(SeqCst) == workspace;
        self.chats.iter().enumerate().filter(move |(_, chat)| at(chat)).map(|(n, _)| n)
    }

    /// One turn of a chat in one lane. A chat whose last turn in this lane is not over waits for
    /// it, and takes no other one.
    pub(crate) async fn turn(&self, lane: Lane, chat: usize) {
        let of = &self.chats[chat];
        let here = &of.lanes[lane as usize];
        if here.busy.swap(true, SeqCst) {
            return;
        }
        self.journal.begin(lane);
        let workspace = of.workspace.load(SeqCst);
        let known = here.known.load(SeqCst);
        let asked = Asked { chat, session: of.session, workspace, known };
        let trace = Trace::begin();
        let ended = self.lanes.turn(lane, asked, &trace).await;
        if ended.is_ok() {
            here.known.store(true, SeqCst);
        }
        let name = self.agents.workspaces()[workspace].name;
        self.journal.finish(lane, chat, name, trace, ended);
        here.busy.store(false, SeqCst);
    }

    /// Lets chats take turns, one after the other, so many in a second: the same in every lane.
    pub(crate) async fn load(self: Arc<Self>, per_second: u32) {
        let mut ticks = interval(Duration::from_secs(1) / per_second);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        for chat in (0..self.chats.len()).cycle() {
            ticks.tick().await;
            while !self.running.load(Relaxed) {
                ticks.tick().await;
            }
            self.spawn(chat);
        }
    }

    fn spawn(self: &Arc<Self>, chat: usize) {
        for lane in Lane::ALL {
            let world = Arc::clone(self);
            tokio::spawn(async move { world.turn(lane, chat).await });
        }
    }

    /// Returns the counters of all lanes.
    pub(crate) fn counters(&self) -> [Counters; 3] {
        let mut counters = self.journal.counters();
        for lane in Lane::ALL {
            let counters = &mut counters[lane as usize];
            counters.sql = self.database.counts().of(lane);
            counters.reads = self.agents.reads(lane);
        }
        counters
    }

    fn press(&self, label: impl Into<String>) {
        self.journal.press(label.into(), self.counters());
    }

    /// Lets all chats take a turn at once.
    pub(crate) fn storm(self: &Arc<Self>) -> String {
        self.press("Storm");
        for chat in 0..self.chats.len() {
            self.spawn(chat);
        }
        format!("All {} chats take a turn at once, in every lane", self.chats.len())
    }

    /// Lets the chats take turns, or pauses them.
    pub(crate) fn set_running(&self, running: bool) -> String {
        self.running.store(running, SeqCst);
        if running { "The chats take turns" } else { "The chats are paused" }.to_owned()
    }

    pub(crate) fn set_database_down(&self, down: bool) -> Result<String, BoxError> {
        let word = if down { "down" } else { "up" };
        self.press(format!("Database {word}"));
        if !self.database.set_down(down) {
            return Err(format!("The database is {word} already").into());
        }
        Ok(format!("The database is {word}"))
    }

    /// Does what a button says, in one workspace or in all.
    pub(crate) async fn act(&self, action: Action, place: Place) -> Result<String, BoxError> {
        let (places, of) = match place {
            Place::All => ((0..self.agents.workspaces().len()).collect(), "all".to_owned()),
            Place::One(n) => (vec![n], self.agents.workspaces()[n].name.to_owned()),
        };
        let name = match action {
            Action::Rebuild => "Rebuild",
            Action::Kill => "Kill",
            Action::Freeze(true) => "Freeze",
            Action::Freeze(false) => "Thaw",
            Action::Silence(true) => "Black hole",
            Action::Silence(false) => "Answer",
            Action::Stop => "Stop",
            Action::Start => "Start",
            Action::Retarget => "Retarget",
        };
        self.press(format!("{name} {of}"));
        let agents = &self.agents;
        let done = join_all(places.into_iter().map(|n| async move {
            match action {
                Action::Rebuild => agents.rebuild(n).await,
                Action::Kill => agents.kill(n).await,
                Action::Freeze(freeze) => agents.freeze(n, freeze).await,
                Action::Silence(silence) => agents.silence(n, silence).await,
                Action::Stop => agents.stop(n).await,
                Action::Start => agents.start_one(n).await,
                Action::Retarget => self.retarget(n).await,
            }
        }))
        .await;
        let (done, failed): (Vec<_>, Vec<_>) = done.into_iter().partition(Result::is_ok);
        match (place, &*done, failed.into_iter().next()) {
            (Place::One(_), _, Some(Err(error))) | (_, [], Some(Err(error))) => Err(error),
            (Place::One(_), ..) => done.into_iter().next().unwrap_or_else(|| Ok(String::new())),
            (Place::All, done, _) => Ok(format!("{name}: done in {} workspaces", done.len())),
        }
    }

    /// Moves some chats of a workspace to the next one, by the application's command in each lane.
    async fn retarget(&self, from: usize) -> Result<String, BoxError> {
        let to = (from + 1) % self.agents.workspaces().len();
        let chats: Vec<usize> = self.chats_of(from).take(MOVED).collect();
        for chat in &chats {
            let of = &self.chats[*chat];
            for lane in Lane::ALL {
                let known = of.lanes[lane as usize].known.load(SeqCst);
                let asked = Asked { chat: *chat, session: of.session, workspace: to, known };
                self.lanes.retarget(lane, asked).await?;
                of.lanes[lane as usize].known.store(true, SeqCst);
            }
            of.workspace.store(to, SeqCst);
        }
        let name = |n: usize| self.agents.workspaces()[n].name;
        Ok(format!("{} chats of {} are moved to {}", chats.len(), name(from), name(to)))
    }

    /// Returns the state that every page shows, without turns.
    pub(crate) fn state(&self) -> Value {
        let counters = self.counters().map(Counters::json);
        let workspaces: Vec<Value> = self
            .agents
            .workspaces()
            .iter()
            .enumerate()
            .map(|(n, workspace)| {
                let shown = workspace.shown();
                json!({
                    "name": workspace.name, "build": shown.build, "condition": shown.condition.as_str(),
                    "running": shown.condition == Condition::Running, "chats": self.chats_of(n).count(),
                    "reads": Lane::ALL.map(|lane| workspace.reads(lane)),
                })
            })
            .collect();
        let delay = self.journal.delay;
        json!({
            "delay": ms(delay), "dial_timeout": ms(dial_timeout(delay)),
            "counters": counters, "press": self.journal.last_press(), "workspaces": workspaces,
            "database": if self.database.is_down() { "down" } else { "up" },
            "load": if self.running.load(SeqCst) { "running" } else { "paused" },
            "resolver_statements": self.database.counts().of_resolver(), "chats": self.chats.len(),
        })
    }

    /// Waits until the repairs of the crate's lane are written.
    pub(crate) async fn flush(&self) {
        self.lanes.bindings().flush().await;
    }

    /// Ends the layer, then the agents.
    pub(crate) async fn close(&self) {
        self.running.store(false, SeqCst);
        self.lanes.bindings().close(Duration::from_secs(2)).await;
        self.agents.close().await;
    }
}
