//! The hint bus of these tests.

use futures_util::{Stream, stream};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};
use tokio::sync::mpsc;
use tower_bound_agent::{
    Generation, Revision, SessionId, WorkspaceId,
    hints::{About, Heard, Hint, Hints},
};

/// A bus whose hints the test creates. It records the hints of its layers, and the number of
/// dropped streams.
#[derive(Clone, Default)]
pub(crate) struct ScriptedBus {
    sent: Arc<Mutex<Vec<Hint>>>,
    listeners: Arc<Mutex<Vec<mpsc::UnboundedSender<Heard>>>>,
    pub(crate) gone: Arc<AtomicUsize>,
}

struct Gone(Arc<AtomicUsize>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

impl ScriptedBus {
    pub(crate) fn says(&self, heard: Heard) {
        for listener in self.listeners.lock().unwrap().iter() {
            let _ = listener.send(heard);
        }
    }

    pub(crate) fn says_of(&self, session: SessionId, revision: Option<i64>) {
        self.says(Heard::Hint(Hint::new(
            1,
            About::Session { session, revision: revision.map(Revision::new) },
        )));
    }

    pub(crate) fn says_rebuilt(&self, workspace: WorkspaceId, generation: impl Into<Option<i64>>) {
        let generation = generation.into().map(Generation::new);
        self.says(Heard::Hint(Hint::new(
            1,
            About::Workspace { workspace, generation, epoch: None },
        )));
    }

    pub(crate) fn sent(&self) -> Vec<About> {
        std::mem::take(&mut *self.sent.lock().unwrap()).into_iter().map(|hint| hint.about).collect()
    }

    pub(crate) fn falls_silent(&self) {
        self.listeners.lock().unwrap().clear();
    }
}

impl Hints for ScriptedBus {
    fn send(&self, hint: Hint) {
        self.sent.lock().unwrap().push(hint);
    }

    fn listen(&self) -> impl Stream<Item = Heard> + Send + 'static {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.listeners.lock().unwrap().push(sender);
        let gone = Gone(Arc::clone(&self.gone));
        stream::unfold((receiver, gone), |(mut receiver, gone)| async move {
            receiver.recv().await.map(|heard| (heard, (receiver, gone)))
        })
    }
}
