//! A rebuild, told as a table: what three lanes pay for the same turns.

use crate::{
    journal::Counters,
    lanes::Lane,
    world::{Action, Place, World},
};
use futures_util::{StreamExt, stream};
use std::{path::Path, sync::Arc, time::Duration};
use tower_bound_agent::BoxError;

const CHATS: usize = 300;
const WORKSPACES: usize = 4;
/// How many turns of a lane run at once, so that a small machine tells the same story.
const AT_ONCE: usize = 8;
/// Longer than by default, so that a busy machine tells it as well: no healthy dial takes as long.
const DELAY: Duration = Duration::from_secs(1);

/// Returns whether the story happened as it should.
pub(crate) async fn tell(folder: &Path) -> Result<bool, BoxError> {
    let world = World::create(folder, CHATS, WORKSPACES, DELAY).await?;
    let mut story = Story { world: Arc::clone(&world), last: world.counters(), wrong: Vec::new() };
    let told = story.tell().await;
    world.close().await;
    told?;
    for wrong in &story.wrong {
        eprintln!("NOT AS EXPECTED  {wrong}");
    }
    Ok(story.wrong.is_empty())
}

struct Story {
    world: Arc<World>,
    last: [Counters; 3],
    wrong: Vec<String>,
}

/// Slow turns, failed turns, SQL statements, and questions to the resolver.
type Numbers = [u64; 4];

impl Story {
    async fn tell(&mut self) -> Result<(), BoxError> {
        let (chats, in_one) = (CHATS as u64, (CHATS / WORKSPACES) as u64);
        let workspaces = WORKSPACES as u64;
        println!(
            "{CHATS} chats of {WORKSPACES} workspaces, each served by an agent process. Every chat takes a turn:\n"
        );
        println!(
            "{:<34} {:<24} {:>5} {:>5} {:>6} {:>5} {:>8}",
            "step", "lane", "turns", "slow", "failed", "SQL", "resolver"
        );

        self.round(0, AT_ONCE).await;
        let bound = [0, 0, 2 * chats, workspaces];
        self.step(
            "the first turn of each",
            chats,
            [bound, [0, 0, chats, chats], [0, 0, chats, chats]],
        );

        self.round(0, AT_ONCE).await;
        let resolved = [0, 0, chats, chats];
        self.step("the second turn", chats, [[0; 4], resolved, [0; 4]]);

        println!("\n{}.\n", self.world.act(Action::Rebuild, Place::One(0)).await?);
        // Turns that begin while the first one waits are slow as well. In this story it is alone.
        for lane in Lane::ALL {
            self.world.turn(lane, 0).await;
        }
        self.round(1, CHATS).await;
        // The group repair is one statement.
        let repaired = [1, 0, 1, 1];
        self.step(
            "the turn after the rebuild",
            chats,
            [repaired, resolved, [in_one, in_one, 0, 0]],
        );

        self.round(0, CHATS).await;
        self.step("the turn after that", chats, [[0; 4], resolved, [in_one, in_one, 0, 0]]);
        println!(
            "\nSlow: {} ms or longer. Without a question, {in_one} chats hang in every turn from now on.",
            DELAY.as_millis()
        );
        Ok(())
    }

    /// One turn of each chat from this one on, in all lanes. Turns that hang do so together.
    async fn round(&self, first: usize, remembered_at_once: usize) {
        let world = &self.world;
        let lane = |lane: Lane, at_once: usize| {
            let chats = stream::iter(first..CHATS);
            chats.for_each_concurrent(at_once, move |chat| world.turn(lane, chat))
        };
        tokio::join!(
            lane(Lane::Bound, AT_ONCE),
            lane(Lane::Resolve, AT_ONCE),
            lane(Lane::Remember, remembered_at_once),
        );
        world.flush().await;
    }

    fn step(&mut self, name: &str, turns: u64, expected: [Numbers; 3]) {
        let now = self.world.counters();
        for lane in Lane::ALL {
            let n = lane as usize;
            let new = now[n].since(self.last[n]);
            let found = [new.slow, new.failed, new.sql, new.reads];
            let [slow, failed, sql, reads] = found;
            let step = if n == 0 { name } else { "" };
            println!(
                "{step:<34} {:<24} {:>5} {slow:>5} {failed:>6} {sql:>5} {reads:>8}",
                lane.name(),
                new.turns
            );
            if (new.turns, found) != (turns, expected[n]) {
                self.wrong.push(format!(
                    "{name}, {}: {} turns, {found:?}; expected {turns}, {:?} (slow, failed, SQL, resolver)",
                    lane.name(),
                    new.turns,
                    expected[n]
                ));
            }
        }
        self.last = now;
    }
}
