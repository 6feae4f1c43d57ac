//! A call whose row is cached begins on the fast path, and one whose row was only just read begins
//! with a race. Which of the two it was makes no difference to anybody.

use crate::scene::*;
use support::*;
use tokio::time::{Duration, Instant};
use tower_bound_agent::{AgentId, Outcome, Repair};

/// What the resolver says.
#[derive(Clone, Copy, Debug)]
enum Resolver {
    TheSame,
    Another,
    Fails,
}

/// What happens 100 ms after the call began.
#[derive(Clone, Copy, Debug)]
enum Meanwhile {
    Nothing,
    /// The control plane announces what serves the workspace.
    Announced,
    /// A command points the session at another workspace.
    Retargeted,
    /// The workspace comes into doubt.
    Doubted,
}

/// All that a caller and an observer see, and what it has cost.
#[derive(Debug, PartialEq)]
struct Run {
    took: Duration,
    called: Result<Called, String>,
    events: Vec<(Duration, String)>,
    dials: u64,
    questions: u64,
    writes: u64,
    row: Option<&'static str>,
}

/// The agent, the kind of the outcome, the dials, the validations, and so on as in an [`Outcome`].
type Called = (&'static str, &'static str, u8, u8, Duration, Duration, Repair);

async fn run(
    generation: Option<i64>,
    does: Does,
    resolver: Resolver,
    meanwhile_: Meanwhile,
    is_cached: bool,
) -> Run {
    let mut s = Scene::new(generation).await;
    let chat = s.rows_elsewhere(1).await[0];
    let (elsewhere, there) = new_workspace(&s.world, generation);
    if is_cached {
        s.layer.bindings().get(chat).await.unwrap().unwrap();
    }
    let new = match resolver {
        Resolver::Another => s.world.rebuild(s.ws, &s.old, does),
        Resolver::TheSame => {
            s.old_does(does);
            s.old.clone()
        }
        Resolver::Fails => {
            s.old_does(does);
            s.says(Says::Fails);
            s.old.clone()
        }
    };
    s.resolver_takes(20);
    s.did().await;
    s.log.take();
    let named = |agent: AgentId| match agent {
        agent if agent == s.old.agent => "old",
        agent if agent == new.agent => "new",
        agent if agent == there.agent => "there",
        _ => "unknown",
    };
    let (bindings, dial, begin) = (s.layer.bindings(), s.dial(), Instant::now());
    let something = async {
        match meanwhile_ {
            Meanwhile::Nothing => {}
            Meanwhile::Announced => drop(bindings.announce(s.ws, new.clone())),
            Meanwhile::Retargeted => drop(bindings.retarget(chat, elsewhere).await.unwrap()),
            Meanwhile::Doubted => bindings.revalidate_workspace(s.ws),
        }
    };
    let (took, called) = meanwhile(100, something, timed(call(&dial, chat))).await;
    let called =
        called.map_err(|error| error.to_string().replace(&chat.to_string(), "chat")).map(|bound| {
            let Outcome { kind, dials, validations, decided_in, dialed_in, .. } = bound.outcome();
            let repair = bound.outcome().repair();
            (
                named(bound.agent),
                kind.as_str(),
                *dials,
                *validations,
                *decided_in,
                *dialed_in,
                repair,
            )
        });
    bindings.flush().await;
    let events = s.log.take().into_iter().map(|(at, seen)| {
        let mut seen = format!("{seen:?}");
        for agent in [&s.old, &new, &there] {
            seen = seen.replace(&format!("{:?}", agent.agent), named(agent.agent));
        }
        (at - begin, seen)
    });
    let events = events.collect();
    let row = s.world.row_agent(chat).map(named);
    let Counts { d, v, w, .. } = s.did().await;
    s.nothing_is_left();
    Run { took, called, events, dials: d, questions: v, writes: w, row }
}

#[tokio::test(start_paused = true)]
async fn the_fast_path_and_the_race_come_to_the_same_outcome() {
    let (mut reused, mut others) = (0, 0);
    let answers = [0, 1, 249, 250, 1_000].map(|after| Does::Answer(ms(after)));
    let fails = [0, 5, 300].map(|after| Does::Fail(ms(after)));
    for generation in BOTH {
        for does in answers.into_iter().chain(fails).chain([Does::Hang]) {
            for resolver in [Resolver::TheSame, Resolver::Another, Resolver::Fails] {
                for meanwhile in [
                    Meanwhile::Nothing,
                    Meanwhile::Announced,
                    Meanwhile::Retargeted,
                    Meanwhile::Doubted,
                ] {
                    let fast = run(generation, does, resolver, meanwhile, true).await;
                    let raced = run(generation, does, resolver, meanwhile, false).await;
                    let script = format!("{generation:?} {does:?} {resolver:?} {meanwhile:?}");
                    assert_eq!(fast, raced, "{script}");
                    match fast.called {
                        Ok((_, "reused", ..)) => reused += 1,
                        _ => others += 1,
                    }
                }
            }
        }
    }
    println!("{reused} reused, {others} others");
    assert!(reused > 40 && others > 40, "{reused} reused, {others} others");
}
