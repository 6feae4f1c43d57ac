//! Row 5: the resolver denies the workspace, and the row is read again before the call ends.

use crate::scene::*;
use support::*;
use tokio::time::{Duration, Instant, sleep};
use tower_bound_agent::{
    DialSession, ErrorKind, LastVerdict, OutcomeKind, Repair, Resolution,
    store::{BindingStore, NewBinding, Swap},
};

fn denials() -> [(Resolution, ErrorKind); 4] {
    let soon = Some(Duration::from_secs(7));
    [
        (Resolution::Stopped, ErrorKind::Stopped),
        (Resolution::Gone, ErrorKind::Gone),
        (Resolution::Starting { retry_after: soon }, ErrorKind::Starting { retry_after: soon }),
        (Resolution::Starting { retry_after: None }, ErrorKind::Starting { retry_after: None }),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_stopped_workspace_is_an_error_after_the_row_was_read_again() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, ws).await;
    world.does(&old, Does::Hang);
    world.says(ws, Says::Is(Resolution::Stopped));

    let before = world.counts();
    let error = call(&dial, chat).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Stopped);
    assert_eq!(world.counts() - before, counts(1, 1, 1, 0));
    assert_eq!(world.live_dials(), 0);
}

#[tokio::test(start_paused = true)]
async fn row_5_a_slow_dial_ends_with_a_typed_error_at_the_denial() {
    for generation in BOTH {
        for (said, kind) in denials() {
            let mut s = Scene::new(generation).await;
            s.old_does(Does::Hang);
            s.says(Says::Is(said));
            s.resolver_takes(100);
            let (took, error) = s.call().await;
            let error = error.unwrap_err();
            assert_eq!((took, error.kind(), error.session()), (ms(350), &kind, Some(s.chat)));
            assert_eq!(s.did().await, counts(1, 1, 1, 0));
            assert_eq!(s.row_agent(), Some(s.old.agent));
            s.nothing_is_left();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn row_5_a_failed_dial_is_not_repeated_after_a_denial() {
    for generation in BOTH {
        for (said, kind) in denials() {
            let mut s = Scene::new(generation).await;
            s.old_does(Does::Fail(ms(100)));
            s.says(Says::Is(said));
            s.resolver_takes(50);
            let (took, error) = s.call().await;
            let error = error.unwrap_err();
            assert_eq!((took, error.kind()), (ms(150), &kind));
            assert_eq!(error.dial_error().unwrap().to_string(), "connection refused");
            assert_eq!(s.did().await, counts(1, 1, 1, 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn row_5_a_concurrent_retarget_wins() {
    for generation in BOTH {
        for (said, _) in denials() {
            for does in [Does::Hang, Does::Fail(ms(260))] {
                let mut s = Scene::new(generation).await;
                let (other, there) = new_workspace(&s.world, generation);
                s.old_does(does);
                s.says(Says::Is(said.clone()));
                s.resolver_takes(100);
                let retarget = async {
                    s.world.store.elsewhere().retarget(s.chat, other).await.unwrap();
                };
                // The first question began at 250; a dial that fails at 260 needs a question that
                // begins at 260.
                let (took, bound) = meanwhile(349, retarget, s.call()).await;
                let bound = bound.unwrap();
                let asked = if does == Does::Hang { 1 } else { 2 };
                assert_eq!(took, ms(250 + 100 * asked));
                assert_eq!(
                    (bound.agent, bound.workspace(), &bound.outcome().kind),
                    (there.agent, other, &OutcomeKind::FirstBind)
                );
                // The other workspace is asked too: the retargeted row names no agent.
                assert_eq!(s.did().await, counts(2, asked + 1, 1, 1));
                assert_eq!((s.row().workspace, s.row_agent()), (other, Some(there.agent)));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn row_5_a_newer_target_in_the_row_wins() {
    for generation in BOTH {
        for (said, _) in denials() {
            let mut s = Scene::new(generation).await;
            let new = s.world.agent(generation.map(|g| g + 1));
            s.old_does(Does::Hang);
            s.says(Says::Is(said));
            s.resolver_takes(100);
            let (took, bound) = meanwhile(349, s.written_elsewhere(&new), s.call()).await;
            let bound = bound.unwrap();
            assert_eq!((took, bound.agent), (ms(350), new.agent));
            assert!(
                matches!(&bound.outcome().kind, OutcomeKind::Switched { from } if **from == s.old)
            );
            assert_eq!(bound.outcome().repair(), Repair::NotNeeded);
            assert_eq!(s.did().await, counts(2, 1, 1, 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn row_5_a_read_that_began_before_the_verdict_does_not_count() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let (elsewhere, _) = new_workspace(&s.world, None);
        let new = s.world.agent(generation.map(|g| g + 1));
        s.old_does(Does::Hang);
        s.says(Says::Is(Resolution::Stopped));
        s.world.store.on_reads(Fault::SlowAnswer(ms(200)));
        // A call that names another workspace reads the row at 200; the newer target comes at 240,
        // the verdict at 250. The read of 200 answers at 400 and knows nothing of it; the next one
        // does.
        let dial = s.world.dial(&s.layer);
        let reads_early = async {
            let mistaken = call(&dial, DialSession::new(s.chat).in_workspace(elsewhere));
            let (error, ()) = tokio::join!(mistaken, async {
                sleep(ms(40)).await;
                s.written_elsewhere(&new).await;
            });
            assert_eq!(
                error.unwrap_err().kind(),
                &ErrorKind::WorkspaceMismatch { bound: s.ws, asked: elsewhere }
            );
        };
        let (took, bound) = meanwhile(200, reads_early, timed(call(&dial, s.chat))).await;
        assert_eq!((took, bound.unwrap().agent), (ms(600), new.agent));
        assert_eq!(s.did().await, counts(2, 1, 2, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn row_5_a_session_forgotten_meanwhile_is_not_bound() {
    let mut s = Scene::new(Some(5)).await;
    s.old_does(Does::Hang);
    s.says(Says::Is(Resolution::Stopped));
    s.resolver_takes(100);
    let forget = async { assert!(s.world.store.elsewhere().forget(s.chat, None).await.unwrap()) };
    let (took, error) = meanwhile(300, forget, s.call()).await;
    assert_eq!((took, error.unwrap_err().kind()), (ms(350), &ErrorKind::NotBound));
    // One read after the verdict, which finds no row.
    assert_eq!(s.did().await, counts(1, 1, 1, 0));
    s.nothing_is_left();
}

#[tokio::test(start_paused = true)]
async fn a_row_of_an_older_generation_does_not_win() {
    let mut s = Scene::new(Some(5)).await;
    let older = s.world.agent(Some(4));
    s.old_does(Does::Hang);
    s.says(Says::Is(Resolution::Stopped));
    s.resolver_takes(100);
    let (took, error) = meanwhile(300, s.written_elsewhere(&older), s.call()).await;
    assert_eq!((took, error.unwrap_err().kind()), (ms(350), &ErrorKind::Stopped));
    assert_eq!(s.did().await, counts(1, 1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_succeeds_before_the_row_was_read_is_used() {
    for generation in BOTH {
        for (said, _) in denials() {
            let mut s = Scene::new(generation).await;
            s.old_does(Does::Answer(ms(300)));
            s.says(Says::Is(said));
            s.world.store.on_reads(Fault::Slow(ms(100)));
            let (took, bound) = s.call().await;
            assert_eq!((took, bound.unwrap().agent), (ms(300), s.old.agent));
            assert_eq!(s.did().await, counts(1, 1, 1, 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_dial_continues_if_the_row_cannot_be_read() {
    for generation in BOTH {
        for (said, _) in denials() {
            let mut s = Scene::new(generation).await;
            s.old_does(Does::Answer(ms(1_000)));
            s.says(Says::Is(said));
            s.world.store.on_reads(Fault::Unavailable);
            let (took, bound) = s.call().await;
            assert_eq!((took, bound.unwrap().agent), (ms(1_000), s.old.agent));
            assert_eq!(s.did().await, counts(1, 1, 1, 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_dial_continues_if_the_store_hangs() {
    let mut s = Scene::new(Some(5)).await;
    s.old_does(Does::Answer(ms(6_000)));
    s.says(Says::Is(Resolution::Gone));
    s.world.store.on_reads(Fault::Hang);
    let (took, bound) = s.call().await;
    assert_eq!((took, bound.unwrap().agent), (ms(6_000), s.old.agent));
    // The question is repeated at 5,250. Its read is not sent, since the first read has no answer
    // yet.
    assert_eq!(s.did().await, counts(1, 2, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn the_question_and_the_read_are_repeated_when_the_store_is_back() {
    for (said, kind) in denials() {
        let mut s = Scene::new(Some(5)).await;
        s.old_does(Does::Hang);
        s.says(Says::Is(said));
        s.world.store.on_reads(Fault::Unavailable);
        let begin = Instant::now();
        let back = async { s.world.store.on_reads(Fault::None) };
        let (took, error) = meanwhile(1_000, back, s.call()).await;
        assert_eq!((took, error.unwrap_err().kind()), (ms(2_250), &kind));
        assert_eq!(s.asked_since(begin), [ms(250), ms(2_250)]);
        assert_eq!(s.did().await, counts(1, 2, 2, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_dial_ends_at_once_after_a_denial_if_the_row_cannot_be_read() {
    let mut s = Scene::new(Some(5)).await;
    s.old_does(Does::Fail(ms(100)));
    s.says(Says::Is(Resolution::Stopped));
    s.world.store.on_reads(Fault::Unavailable);
    let (took, error) = s.call().await;
    assert_eq!((took, error.unwrap_err().kind()), (ms(100), &ErrorKind::Stopped));
    assert_eq!(s.did().await, counts(1, 1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_denial_does_not_keep_later_calls_from_a_living_agent() {
    // The next call dials the bound agent all the same, and uses it without a question.
    for (said, _) in denials() {
        let mut s = Scene::new(Some(5)).await;
        s.old_does(Does::Hang);
        s.says(Says::Is(said));
        s.call().await.1.unwrap_err();
        s.did().await;
        s.old_does(Does::Answer(ms(5)));
        let (took, bound) = s.call().await;
        assert_eq!((took, bound.unwrap().agent), (ms(5), s.old.agent));
        assert_eq!(s.did().await, counts(1, 0, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_continues_without_the_row_is_validated_until_the_timeout() {
    let mut s = Scene::new(Some(5)).await;
    s.old_does(Does::Hang);
    s.says(Says::Is(Resolution::Stopped));
    s.world.store.on_reads(Fault::Unavailable);
    let (took, error) = s.call().await;
    assert_eq!(
        (took, error.unwrap_err().kind()),
        (ms(30_000), &ErrorKind::TimedOut { last: LastVerdict::Stopped })
    );
    assert_eq!(s.did().await, counts(1, 5, 5, 0));
}

#[tokio::test(start_paused = true)]
async fn a_row_created_again_by_another_process_wins() {
    // Deleted and created again elsewhere: the revision goes on, and the row that is read names the
    // newer target.
    let mut s = Scene::new(Some(5)).await;
    let new = s.world.agent(Some(6));
    s.old_does(Does::Hang);
    s.says(Says::Is(Resolution::Stopped));
    s.resolver_takes(100);
    let anew = async {
        let store = s.world.store.elsewhere();
        assert!(store.forget(s.chat, None).await.unwrap());
        let created =
            store.create(NewBinding::new(s.chat, s.ws, Some(new.clone().into()))).await.unwrap();
        assert!(matches!(created, Swap::Applied(_)));
    };
    let (took, bound) = meanwhile(300, anew, s.call()).await;
    assert_eq!((took, bound.unwrap().agent), (ms(350), new.agent));
    assert_eq!(s.did().await, counts(2, 1, 1, 0));
}
