//! Row 16: many sessions of one workspace.

use crate::scene::*;
use support::*;
use tokio::{
    task::JoinSet,
    time::{Duration, Instant, sleep},
};
use tower_bound_agent::{
    AgentId, Binding, ErrorKind, LastVerdict, OutcomeKind, Repair, Resolution, SessionId, Target,
};

const N: u64 = 100;

struct ManySessions {
    s: Scene,
    chats: Vec<SessionId>,
}

impl ManySessions {
    async fn new(generation: Option<i64>) -> Self {
        // All sessions may dial at once; queued dials are tested in `pending_dials`.
        let mut s = Scene::with(generation, |builder| builder.max_pending_dials(N as usize)).await;
        let chats = s.sessions(N as usize).await;
        Self { s, chats }
    }

    fn rows(&self) -> Vec<Binding> {
        self.chats.iter().map(|chat| self.s.world.row(*chat).expect("a row")).collect()
    }

    /// Asserts that each row was written exactly once since and names the new target.
    fn all_written_once(&self, before: &[Binding], new: &Target) {
        for (row, before) in self.rows().iter().zip(before) {
            assert_eq!(
                (row.target.as_deref(), row.revision.get()),
                (Some(new), before.revision.get() + 1)
            );
            assert_eq!(row.previous.map(|previous| previous.agent), Some(self.s.old.agent));
        }
    }

    /// Makes one call of each session, each `apart` after the previous one. Returns when each call
    /// began, how long it took, and its agent.
    async fn call(&self, apart: Duration) -> Vec<(Duration, Duration, Result<AgentId, ErrorKind>)> {
        let begin = Instant::now();
        let mut calls = JoinSet::new();
        for (n, chat) in self.chats.iter().copied().enumerate() {
            let dial = self.s.world.dial(&self.s.layer);
            calls.spawn(async move {
                let start = apart * n as u32;
                sleep(start).await;
                let (took, bound) = timed(call(&dial, chat)).await;
                (start, took, bound.map(|bound| bound.agent).map_err(|error| error.kind().clone()))
            });
        }
        let mut done = calls.join_all().await;
        done.sort_by_key(|(start, ..)| *start);
        assert!(begin.elapsed() <= Duration::from_secs(60));
        done
    }
}

#[tokio::test(start_paused = true)]
async fn row_16_after_a_rebuild_one_question_serves_all_sessions() {
    for generation in BOTH {
        let mut crowd = ManySessions::new(generation).await;
        let (new, before) = (crowd.s.rebuild(), crowd.rows());
        for (_, took, agent) in crowd.call(ms(0)).await {
            assert_eq!((took, agent), (ms(250), Ok(new.agent)));
        }
        crowd.s.layer.bindings().flush().await;
        // One statement repairs all rows.
        assert_eq!(crowd.s.did().await, counts(2 * N, 1, 0, 1));
        assert_eq!(crowd.s.world.most_validating(), 1);
        crowd.all_written_once(&before, &new);

        // Later calls use the cached rows without a question or a write.
        for (_, took, agent) in crowd.call(ms(0)).await {
            assert_eq!((took, agent), (ms(0), Ok(new.agent)));
        }
        assert_eq!(crowd.s.did().await, counts(N, 0, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn row_16_a_call_after_the_discovery_waits_no_delay() {
    for generation in BOTH {
        let mut crowd = ManySessions::new(generation).await;
        let (new, before) = (crowd.s.rebuild(), crowd.rows());
        crowd.s.resolver_takes(100);
        // The first delay passes at 250, and its answer arrives at 350; the sessions begin 10
        // apart.
        for (start, took, agent) in crowd.call(ms(10)).await {
            assert_eq!(agent, Ok(new.agent));
            assert_eq!(took, ms(350).saturating_sub(start), "begun at {start:?}");
        }
        crowd.s.layer.bindings().flush().await;
        let did = crowd.s.did().await;
        let (v, r, w) = (did.v, did.r, did.w);
        assert_eq!((v, r, w), (1, 0, 1));
        crowd.all_written_once(&before, &new);
        // N dials were made before, to bind the sessions. At 350 the answer or the next call may be
        // first.
        let of_old = crowd
            .s
            .world
            .dialed_agents()
            .into_iter()
            .filter(|agent| *agent == crowd.s.old.agent)
            .count() as u64;
        let stale = of_old - N;
        assert!((35..=36).contains(&stale), "{stale} dials of the stale agent");
        assert_eq!(did.d, N + stale);
        assert_eq!(crowd.s.world.most_validating(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn row_16_an_idle_session_waits_no_delay_later() {
    for generation in BOTH {
        let mut crowd = ManySessions::new(generation).await;
        let (new, before) = (crowd.s.rebuild(), crowd.rows());
        crowd.s.call().await.1.unwrap();
        assert_eq!(crowd.s.did().await, counts(2, 1, 0, 1));
        crowd.all_written_once(&before, &new);
        sleep(Duration::from_secs(600)).await;
        for chat in &crowd.chats[1..] {
            let (took, bound) = timed(call(&crowd.s.dial(), *chat)).await;
            let bound = bound.unwrap();
            assert_eq!((took, bound.agent), (ms(0), new.agent));
            assert!(
                matches!(&bound.outcome().kind, OutcomeKind::Switched { from } if **from == crowd.s.old)
            );
            // The repair wrote its row together with the first session's.
            assert_eq!(bound.outcome().repair(), Repair::NotNeeded);
        }
        crowd.s.layer.bindings().flush().await;
        assert_eq!(crowd.s.did().await, counts(N - 1, 0, 0, 0));
        crowd.all_written_once(&before, &new);
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_rebuild_concurrent_calls_ask_at_most_twice() {
    for generation in BOTH {
        let mut crowd = ManySessions::new(generation).await;
        crowd.s.old_does(Does::Answer(ms(1_500)));
        crowd.s.resolver_takes(100);
        // Their delays pass between 250 and 349, so the first question began before most of the
        // doubts.
        for (_, took, agent) in crowd.call(ms(1)).await {
            assert_eq!((took, agent), (ms(1_500), Ok(crowd.s.old.agent)));
        }
        assert_eq!(crowd.s.did().await, counts(N, 2, 0, 0));
        assert_eq!(crowd.s.world.most_validating(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn one_question_serves_all_sessions_whose_dials_fail() {
    for generation in BOTH {
        let mut crowd = ManySessions::new(generation).await;
        let (new, before) = (crowd.s.rebuild(), crowd.rows());
        crowd.s.old_does(Does::Fail(ms(20)));
        crowd.s.resolver_takes(30);
        for (_, took, agent) in crowd.call(ms(0)).await {
            assert_eq!((took, agent), (ms(50), Ok(new.agent)));
        }
        crowd.s.layer.bindings().flush().await;
        assert_eq!(crowd.s.did().await, counts(2 * N, 1, 0, 1));
        crowd.all_written_once(&before, &new);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stopped_workspace_costs_one_question_and_one_read_per_row() {
    for generation in BOTH {
        let mut crowd = ManySessions::new(generation).await;
        crowd.s.old_does(Does::Hang);
        crowd.s.says(Says::Is(Resolution::Stopped));
        for (_, took, end) in crowd.call(ms(0)).await {
            assert_eq!((took, end), (ms(250), Err(ErrorKind::Stopped)));
        }
        assert_eq!(crowd.s.did().await, counts(N, 1, N, 0));
        crowd.s.nothing_is_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_resolver_that_is_down_gets_one_question_at_a_time() {
    for says in [Says::Fails, Says::Hangs, Says::Panics] {
        let mut crowd = ManySessions::new(Some(5)).await;
        crowd.s.old_does(Does::Hang);
        crowd.s.says(says);
        for (_, took, end) in crowd.call(ms(0)).await {
            let last = LastVerdict::Unknown;
            assert_eq!((took, end), (Duration::from_secs(30), Err(ErrorKind::TimedOut { last })));
        }
        let did = crowd.s.did().await;
        assert_eq!((did.d, did.r, did.w), (N, 0, 0));
        assert!(did.v <= 5, "asked {} times", did.v);
        assert_eq!(crowd.s.world.most_validating(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn two_workspaces_are_validated_independently() {
    let mut s = Scene::new(Some(5)).await;
    let (other, there) = new_workspace(&s.world, Some(5));
    let second = s.world.bind(&s.layer, other).await;
    sleep(Duration::from_secs(10)).await;
    s.did().await;
    let new = s.rebuild();
    let newer = s.world.rebuild(other, &there, Does::Hang);
    s.resolver_takes(1_000);
    let dial = s.world.dial(&s.layer);
    let ((slow, one), (fast, two)) =
        tokio::join!(timed(call(&dial, s.chat)), timed(call(&dial, second)));
    assert_eq!((slow, one.unwrap().agent), (ms(1_250), new.agent));
    assert_eq!((fast, two.unwrap().agent), (ms(250), newer.agent));
    assert_eq!(s.did().await, counts(4, 2, 0, 2));
}
