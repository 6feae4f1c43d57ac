//! The resolver, type-erased: any `Service<ResolveWorkspace, Response = Resolution>`.

use crate::{BoxError, Resolution, ResolveWorkspace, sync::lock};
use futures_util::future::BoxFuture;
use std::{
    future::poll_fn,
    sync::{Arc, Mutex},
};
use tower_service::Service;

pub(crate) type Resolver = Arc<dyn Resolve>;

pub(crate) trait Resolve: Send + Sync + 'static {
    fn resolve(&self, ask: ResolveWorkspace) -> BoxFuture<'static, Result<Resolution, BoxError>>;
}

/// The service is only cloned from here, so it needs to be `Send` and not `Sync`.
struct Prototype<R>(Mutex<R>);

impl<R> Resolve for Prototype<R>
where
    R: Service<ResolveWorkspace, Response = Resolution> + Clone + Send + 'static,
    R::Error: Into<BoxError>,
    R::Future: Send,
{
    fn resolve(&self, ask: ResolveWorkspace) -> BoxFuture<'static, Result<Resolution, BoxError>> {
        let mut service = lock(&self.0).clone();
        Box::pin(async move {
            poll_fn(|cx| service.poll_ready(cx)).await.map_err(Into::into)?;
            service.call(ask).await.map_err(Into::into)
        })
    }
}

pub(crate) fn erase<R>(resolver: R) -> Resolver
where
    R: Service<ResolveWorkspace, Response = Resolution> + Clone + Send + 'static,
    R::Error: Into<BoxError>,
    R::Future: Send,
{
    Arc::new(Prototype(Mutex::new(resolver)))
}
