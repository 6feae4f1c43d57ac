//! Targets that serve a workspace again after they were replaced: a standby pair, and one agent
//! that alternates between two addresses.

use crate::scene::*;
use support::*;
use tower::Layer;
use tower_bound_agent::{OutcomeKind, Target};

/// Two targets without generations that serve the workspace in turn.
type Pair = (Target, Target);

fn standby_pair(world: &World) -> Pair {
    (world.agent(None), world.agent(None))
}

fn two_addresses_of_one_agent(world: &World) -> Pair {
    let agent = world.agent(None);
    (agent.clone().with_address("10.0.0.1:9000"), agent.with_address("10.0.0.2:9000"))
}

/// Lets only the target that serves the workspace answer. The dialer distinguishes the two by their
/// address as well.
fn serves(s: &Scene, pair: &Pair, serving: &Target) {
    s.world.runs(s.ws, serving);
    s.world.answers_only(&[&pair.0, &pair.1], serving);
}

#[tokio::test(start_paused = true)]
async fn every_switch_between_two_targets_without_generations_is_written() {
    for pair in [standby_pair, two_addresses_of_one_agent] {
        let mut s = Scene::new(None).await;
        let pair = pair(&s.world);
        let (ws, _) = new_workspace(&s.world, None);
        s.ws = ws;
        serves(&s, &pair, &pair.0);
        let chats = [s.world.bind(&s.layer, s.ws).await, s.world.bind(&s.layer, s.ws).await];
        s.did().await;
        let mut from = &pair.0;
        for switch in 1..=7 {
            let to = if from == &pair.0 { &pair.1 } else { &pair.0 };
            serves(&s, &pair, to);
            let before = chats.map(|chat| s.world.row(chat).unwrap().revision.get());
            for (n, chat) in chats.into_iter().enumerate() {
                let bound = call(&s.dial(), chat).await.unwrap();
                assert_eq!(bound.target(), to);
                assert!(
                    matches!(bound.outcome().kind, OutcomeKind::Switched { .. }),
                    "switch {switch}"
                );
                assert_eq!(s.layer.bindings().flush().await, 0);
                // The first call asks and repairs the rows of both.
                let expected = if n == 0 { counts(2, 1, 0, 1) } else { counts(1, 0, 0, 0) };
                assert_eq!(s.did().await, expected, "switch {switch}, session {n}");
            }
            for (chat, before) in chats.into_iter().zip(before) {
                let row = s.world.row(chat).unwrap();
                assert_eq!(
                    (row.target.as_deref(), row.revision.get()),
                    (Some(to), before + 1),
                    "switch {switch}"
                );
            }
            // A process that starts now dials the target that serves the workspace.
            let layer = s.world.layer();
            let bound = call(&layer.layer(s.world.dialer()), chats[1]).await.unwrap();
            assert_eq!(
                (bound.target(), &bound.outcome().kind),
                (to, &OutcomeKind::Reused),
                "switch {switch}"
            );
            assert_eq!(layer.bindings().close(ms(0)).await, 0);
            assert_eq!(s.did().await, counts(1, 0, 1, 0));
            from = to;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn three_targets_in_a_circle_are_written_at_every_switch() {
    let mut s = Scene::new(None).await;
    let targets = [s.world.agent(None), s.world.agent(None), s.world.agent(None)];
    let (ws, _) = new_workspace(&s.world, None);
    s.ws = ws;
    s.world.runs(s.ws, &targets[0]);
    let chats = [s.world.bind(&s.layer, s.ws).await, s.world.bind(&s.layer, s.ws).await];
    s.did().await;
    for switch in 1..=7 {
        let to = &targets[switch % 3];
        s.world.answers_only(&[&targets[0], &targets[1], &targets[2]], to);
        s.world.runs(s.ws, to);
        for (n, chat) in chats.into_iter().enumerate() {
            assert_eq!(call(&s.dial(), chat).await.unwrap().target(), to);
            assert_eq!(s.layer.bindings().flush().await, 0);
            let expected = if n == 0 { counts(2, 1, 0, 1) } else { counts(1, 0, 0, 0) };
            assert_eq!(s.did().await, expected, "switch {switch}, session {n}");
            assert_eq!(s.world.row(chat).unwrap().target.as_deref(), Some(to));
        }
    }
}
