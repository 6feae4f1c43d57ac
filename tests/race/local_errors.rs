//! Row 49: an error of this process is no evidence about an agent.

use crate::scene::*;
use std::{error::Error as _, io};
use support::*;
use tokio::{task::JoinSet, time::Duration};
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};
use tower_bound_agent::{BoxError, DialAgent, ErrorKind, LocalError};

#[tokio::test(start_paused = true)]
async fn a_local_error_ends_the_call_without_a_question() {
    let exhausted = || io::Error::from(io::ErrorKind::AddrNotAvailable).into();
    let marked = || LocalError::new("no credentials").into();
    let errors: [fn() -> BoxError; 2] = [exhausted, marked];
    for error in errors {
        for after in [ms(0), ms(100), ms(300)] {
            let mut s = Scene::new(Some(5)).await;
            let dials = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
            let counted = dials.clone();
            let dial = s.layer.layer(service_fn(move |_: DialAgent| {
                counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                async move {
                    if !after.is_zero() {
                        tokio::time::sleep(after).await;
                    }
                    Err::<Conn, _>(error())
                }
            }));
            let (took, called) = timed(call(&dial, s.chat)).await;
            let failed = called.unwrap_err();
            assert_eq!((took, failed.kind()), (after, &ErrorKind::Local));
            assert!(LocalError::is_in(failed.source().unwrap()), "{failed:?}");
            assert_eq!(dials.load(std::sync::atomic::Ordering::SeqCst), 1);
            // A slow dial is validated, whatever its result.
            let asked = u64::from(after > ms(250));
            assert_eq!(s.did().await, counts(0, asked, 0, 0));
            // The error leaves no doubt.
            s.old_does(Does::Answer(ms(200)));
            s.call().await.1.unwrap();
            assert_eq!(s.did().await, counts(1, 0, 0, 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn shed_load_is_not_passed_on_to_the_resolver() {
    const WORKSPACES: usize = 100;
    let (world, mut chats) = (World::new(), Vec::new());
    let layer = world.layer();
    for _ in 0..WORKSPACES {
        let (ws, target) = new_workspace(&world, Some(5));
        chats.push(world.bind(&layer, ws).await);
        world.does(&target, Does::Answer(ms(100)));
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    let before = world.counts();
    let dialer = ServiceBuilder::new().load_shed().concurrency_limit(10).service(world.dialer());
    let dial = layer.layer(dialer);
    let mut calls = JoinSet::new();
    for chat in chats {
        let dial = dial.clone();
        calls.spawn(async move { dial.oneshot(chat.into()).await });
    }
    let (mut connected, mut shed) = (0, 0);
    while let Some(called) = calls.join_next().await {
        match called.unwrap() {
            Ok(_) => connected += 1,
            Err(error) => {
                assert_eq!(error.kind(), &ErrorKind::Local);
                assert!(error.source().unwrap().is::<tower::load_shed::error::Overloaded>());
                shed += 1;
            }
        }
    }
    assert_eq!((connected, shed), (10, 90));
    assert_eq!(world.counts() - before, counts(10, 0, 0, 0));
}
