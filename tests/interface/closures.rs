//! Dialers as applications first write them: closures in spawned tasks, with the boxed errors of
//! `?`.

use http::Extensions; // The crate, although everything of the prelude is imported.
use std::io;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_bound_agent::{prelude::*, store::MemoryStore};
use uuid::Uuid;

fn layer() -> BoundAgentLayer {
    let target = Target::new(AgentId::new(Uuid::from_u128(7))).with_address("7");
    let resolver = service_fn(move |_: ResolveWorkspace| {
        let target = target.clone();
        async move { Ok::<_, BoxError>(Resolution::Running(target)) }
    });
    BoundAgentLayer::builder(MemoryStore::new(), resolver).build().unwrap()
}

fn ask() -> DialSession {
    DialSession::new(SessionId::new(Uuid::from_u128(1)))
        .in_workspace(WorkspaceId::new(Uuid::from_u128(1)))
}

#[tokio::test]
async fn an_async_block_with_boxed_errors_is_called_in_a_task() {
    let mut dial = layer().layer(service_fn(|ask: DialAgent| async move {
        let address = ask.target.address.clone().ok_or("no address")?;
        Ok::<_, BoxError>(address.parse::<u8>()?)
    }));
    let bound = tokio::spawn(async move {
        let bound = dial.ready().await?.call(ask()).await?;
        tokio::task::yield_now().await;
        Ok::<_, BoxError>(*bound)
    });
    assert_eq!(bound.await.unwrap().unwrap(), 7);
}

#[tokio::test]
async fn an_async_closure_with_boxed_errors_is_called_in_a_task() {
    let mut dial = layer().layer(service_fn(async move |ask: DialAgent| -> Result<u8, BoxError> {
        Ok(ask.target.address.as_deref().ok_or("no address")?.parse()?)
    }));
    // `oneshot` is spawned itself, or `call` is awaited in the task.
    let bound = tokio::spawn(dial.clone().oneshot(ask())).await.unwrap().unwrap();
    assert_eq!(*bound, 7);
    let bound = tokio::spawn(async move { dial.ready().await?.call(ask()).await });
    assert_eq!(*bound.await.unwrap().unwrap(), 7);
}

#[tokio::test]
async fn a_dialer_with_its_own_error_type_works_with_oneshot_in_a_task() {
    let layer = layer();
    let bound = tokio::spawn(async move {
        let dial = layer.layer(service_fn(async move |ask: DialAgent| -> io::Result<u8> {
            let _: Extensions = ask.extensions;
            ask.target.address.as_deref().unwrap_or_default().parse().map_err(io::Error::other)
        }));
        let bound = dial.clone().oneshot(ask()).await?;
        let again = dial.oneshot(ask()).await?;
        Ok::<_, BoxError>(*bound + *again)
    });
    assert_eq!(bound.await.unwrap().unwrap(), 14);
}
