//! Requests without an answer: the resolver is asked about their agent, and what becomes known reaches them.

use crate::net::*;
use std::time::Duration;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chats_of_a_frozen_agent_that_was_rebuilt_fail_at_most_once_and_within_seconds() {
    for speaks in BOTH {
        // Dials are not what is questioned here.
        let net = Net::new().with(|builder| builder.validation_delay(Duration::from_secs(10)));
        let (old, new) = (Agent::start(1).await, Agent::start(2).await);
        let ws = net.workspace(&old);
        let mut chats = Vec::new();
        for _ in 0..200 {
            chats.push(net.bind(ws).await);
        }
        let client = net.client(speaks);
        let mut warm = JoinSet::new();
        for chat in chats.clone() {
            let client = client.clone();
            warm.spawn(async move { turn(&client, "/slow/20", chat).await });
        }
        while let Some(turn) = warm.join_next().await {
            turn.unwrap();
        }
        // Nobody is told.
        net.runs(ws, &new);
        old.freeze();
        let before = net.counts();
        let begin = Instant::now();
        let mut turns = JoinSet::new();
        for (number, chat) in (0..).zip(chats) {
            let client = client.clone();
            turns.spawn(async move {
                sleep(Duration::from_millis(20 * number)).await;
                let (mut failed, mut slowest) = (0, Duration::ZERO);
                for _ in 0..3 {
                    let begin = Instant::now();
                    match send(&client, get_("/", chat)).await {
                        Ok(response) => drop(text(response).await),
                        Err(_) => failed += 1,
                    }
                    slowest = slowest.max(begin.elapsed());
                }
                (failed, slowest)
            });
        }
        let (mut failed, mut slowest) = (0, Duration::ZERO);
        while let Some(turn) = turns.join_next().await {
            let (more, slow) = turn.unwrap();
            assert!(more <= 1);
            failed += more;
            slowest = slowest.max(slow);
        }
        // Those that were begun in the two seconds before the first question.
        assert!(failed <= 110, "{speaks:?}: {failed} turns failed");
        assert!(slowest < Duration::from_secs(3), "{speaks:?}: {slowest:?}");
        assert!(begin.elapsed() < Duration::from_secs(10));
        assert!((net.counts() - before).v <= 2, "{speaks:?}: {:?}", net.counts() - before);
    }
}
