//! Stores that wrap another one, and several layers over one memory store.

use futures_util::TryStreamExt;
use std::sync::Arc;
use support::rows::{at, epoch, new, previous, row, session as numbered, target, workspace};
use support::*;
use tokio::time::{Duration, advance};
use tower_bound_agent::{
    Binding, BoundAgentLayer,
    store::{BindingStore, MemoryStore, StoreError, StoreWrapper, Swap},
};

/// A wrapper that overrides no method.
struct Bare<St>(St);

impl<St: BindingStore> StoreWrapper for Bare<St> {
    type Inner = St;

    fn inner(&self) -> &St {
        &self.0
    }
}

fn erased(store: impl BindingStore) -> impl BindingStore {
    store
}

#[tokio::test]
async fn a_wrapper_forwards_every_verb_to_its_store() {
    let inner = MemoryStore::new();
    let wrapper = erased(Bare(Arc::new(Bare(inner.clone()))));
    let hour = Duration::from_secs(3600);

    assert_eq!(
        wrapper.create(new(1, 1, Some(target(1)))).await.unwrap(),
        Swap::Applied(row(1, 1, Some(target(1)), 1, None))
    );
    let swapped = row(1, 1, Some(target(2)), 2, previous(1));
    let swap = wrapper.compare_and_swap(at(1), new(1, 1, Some(target(2)))).await.unwrap();
    assert_eq!(swap, Swap::Applied(swapped.clone()));
    assert_eq!(wrapper.load(numbered(1)).await.unwrap(), Some(swapped.clone()));
    assert_eq!(inner.load(numbered(1)).await.unwrap(), Some(swapped.clone()));
    let inherited = wrapper.inherit(numbered(2), numbered(1)).await.unwrap();
    assert!(matches!(inherited, Swap::Applied(_)), "{inherited:?}");
    let current = Arc::new(target(3));
    assert_eq!(
        wrapper.replace_agent(workspace(1), epoch(0), &target(2), &current, 10).await.unwrap(),
        2
    );
    assert_eq!(wrapper.load_many(&[numbered(1), numbered(2)]).await.unwrap().len(), 2);
    assert!(matches!(
        wrapper.purge_idle(hour, 10).await,
        Err(StoreError::UseNotRecorded { since: None })
    ));
    wrapper.touch(&[numbered(1)], hour).await.unwrap();
    assert!(matches!(
        wrapper.purge_idle(hour, 10).await,
        Err(StoreError::UseNotRecorded { since: Some(_) })
    ));
    let recent: Vec<Binding> = wrapper.recent(1).try_collect().await.unwrap();
    assert_eq!(recent.iter().map(|row| row.session).collect::<Vec<_>>(), [numbered(1)]);
    assert_eq!(wrapper.unbind(numbered(1)).await.unwrap().map(|row| row.target), Some(None));
    assert_eq!(wrapper.reset_workspace(workspace(1)).await.unwrap().rows, 2);
    assert_eq!(wrapper.retarget(numbered(1), workspace(2)).await.unwrap().workspace, workspace(2));
    assert!(wrapper.forget(numbered(1), None).await.unwrap());
    assert_eq!(
        wrapper.purge_forgotten(10).await.unwrap(),
        inner.purge_forgotten(10).await.unwrap()
    );
}

#[tokio::test]
async fn a_memory_store_and_its_wrappers_are_shared_while_two_layers_use_them() {
    let world = World::new();
    let store = MemoryStore::new();
    let wrapper = Arc::new(Bare(store.clone()));
    assert_eq!((store.shared(), wrapper.shared()), (false, false));
    let one = BoundAgentLayer::builder(store.clone(), world.resolver()).build().unwrap();
    assert_eq!((store.shared(), wrapper.shared()), (false, false));
    let other = BoundAgentLayer::builder(Arc::clone(&wrapper), world.resolver()).build().unwrap();
    assert_eq!((store.shared(), wrapper.shared()), (true, true));
    drop(one);
    assert_eq!((store.shared(), wrapper.shared()), (false, false));
    drop(other);
}

#[tokio::test(start_paused = true)]
async fn a_layer_notices_commands_of_another_layer_over_the_same_memory_store() {
    for wrapped in [false, true] {
        let world = World::new();
        let store = MemoryStore::new();
        let build = || match wrapped {
            true => {
                BoundAgentLayer::builder(Bare(store.clone()), world.resolver()).build().unwrap()
            }
            false => BoundAgentLayer::builder(store.clone(), world.resolver()).build().unwrap(),
        };
        // The first layer is in use before the second one exists.
        let one = build();
        let ((old, old_target), (to, new_target)) = (world.workspace(), world.workspace());
        for target in [&old_target, &new_target] {
            world.does(target, Does::Answer(Duration::ZERO));
        }
        let session = world.bind(&one, old).await;
        let other = build();
        assert_eq!(call(&world.dial(&one), session).await.unwrap().agent, old_target.agent);
        other.bindings().retarget(session, to).await.unwrap();
        assert_eq!(
            call(&world.dial(&one), session).await.unwrap().agent,
            old_target.agent,
            "the wrapper did not receive the call"
        );
        advance(Duration::from_secs(31)).await;
        tokio::time::sleep(ms(10)).await;
        assert_eq!(call(&world.dial(&one), session).await.unwrap().agent, new_target.agent);
    }
}

/// The refresh is off, because no other layer writes the store.
#[tokio::test(start_paused = true)]
async fn a_single_layer_over_a_memory_store_refreshes_nothing() {
    let world = World::new();
    let layer = BoundAgentLayer::builder(world.store.clone(), world.resolver()).build().unwrap();
    let (workspace, target) = world.workspace();
    world.does(&target, Does::Answer(Duration::ZERO));
    let session = world.bind(&layer, workspace).await;
    let before = world.counts();
    for _ in 0..10 {
        advance(Duration::from_secs(31)).await;
        call(&world.dial(&layer), session).await.unwrap();
    }
    assert_eq!((world.counts() - before).r, 0);
}
