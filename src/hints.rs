//! Hints between processes: the words, the contract of what carries them, and a carrier within one
//! process.
//!
//! Several processes (replicas) may work over one store. Each keeps what it knows in memory, so
//! that after an order or a repair in one of them the others dial the old agent until they notice.
//! A *hint* makes them notice sooner. It is a doubt with a floor, sent after its commit: who hears
//! it reads the row, or asks the resolver, and believes only that. So hints may be lost, late,
//! doubled or reordered: they change *how soon*, never *what*.

use crate::{Epoch, Generation, Revision, SessionId, WorkspaceId};
use futures_util::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use std::{fmt, str::FromStr, sync::Arc};
use tokio::sync::broadcast;
use uuid::Uuid;

#[cfg(feature = "postgres")]
mod postgres;

#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub use postgres::{ChannelNameError, PostgresHints};

/// News from another process.
///
/// The text form (`Display`, `FromStr`) is for carriers that transport text: at most 95 ASCII
/// letters, digits, colons and minus signs. It begins with a version. Later versions of this crate
/// may add kinds of hints, which this version fails to parse, and fields at the end, which it
/// ignores. A carrier tells a [`Heard::Lagged`] in place of what it cannot parse.
///
/// ```
/// use tower_bound_agent::hints::{About, Hint};
/// # use tower_bound_agent::{Revision, SessionId};
/// # let session = SessionId::new(uuid::Uuid::from_u128(7));
/// let hint = Hint::new(0xfeed, About::Session { session, revision: Some(Revision::new(3)) });
/// assert_eq!(hint.to_string(), "1:s:000000000000feed:00000000000000000000000000000007:3");
/// assert_eq!(hint.to_string().parse(), Ok(hint));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Hint {
    /// A random number of the layer that sent it, so that a layer ignores its own.
    pub origin: u64,
    /// What it is about.
    pub about: About,
}

impl Hint {
    /// A hint of a layer.
    #[must_use]
    pub const fn new(origin: u64, about: About) -> Self {
        Self { origin, about }
    }
}

/// What a hint is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum About {
    /// The agent of a workspace was replaced, or may have been.
    Workspace {
        /// Which workspace.
        workspace: WorkspaceId,
        /// Up to which generation rows were repaired. `None`: its agent may have been replaced,
        /// nobody knows by which.
        generation: Option<Generation>,
        /// The epoch of these generations. `None`: that of the one who hears it.
        epoch: Option<Epoch>,
    },
    /// An order or a repair has written the record of a session, or removed it.
    Session {
        /// Whose record.
        session: SessionId,
        /// The revision that was written. `None`: the record was removed.
        revision: Option<Revision>,
    },
    /// The order `reset_workspace` was given: the resolver's generations start again.
    Reset {
        /// Which workspace.
        workspace: WorkspaceId,
        /// The epoch that has begun. `None`: another one may have begun, nobody knows.
        epoch: Option<Epoch>,
    },
}

/// What a listener hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Heard {
    /// A hint.
    Hint(Hint),
    /// Something may have been lost: whatever hints could have said may be so.
    Lagged,
}

/// What carries hints from one process to the others.
///
/// It need not be reliable: hints may be lost, late, doubled or reordered. It must not stop the
/// layer either, whatever happens to it.
pub trait Hints: Send + Sync + 'static {
    /// Hands a hint over. Never waits, never fails; what cannot be carried is lost, and the others
    /// hear a [`Heard::Lagged`] if that can be told.
    fn send(&self, hint: Hint);

    /// Listens, beginning now: a hint that is sent after this call is heard, or a [`Heard::Lagged`]
    /// is heard after it was lost. So a carrier that is not listening yet when this returns says
    /// `Lagged` once it is.
    ///
    /// Each layer listens once, polls the stream as long as it lives, and may hear what it sent
    /// itself. The stream ends only when nothing can be heard any more, ever. Dropping it ends the
    /// listening, and all that worked for it.
    fn listen(&self) -> impl Stream<Item = Heard> + Send + 'static;
}

impl<H: Hints> Hints for Arc<H> {
    fn send(&self, hint: Hint) {
        (**self).send(hint);
    }

    fn listen(&self) -> impl Stream<Item = Heard> + Send + 'static {
        (**self).listen()
    }
}

/// The object-safe twin of [`Hints`], so that the layer has no type parameter.
pub(crate) trait ErasedHints: Send + Sync + 'static {
    fn send(&self, hint: Hint);
    fn listen(&self) -> BoxStream<'static, Heard>;
}

impl<H: Hints> ErasedHints for H {
    fn send(&self, hint: Hint) {
        Hints::send(self, hint);
    }

    fn listen(&self) -> BoxStream<'static, Heard> {
        Hints::listen(self).boxed()
    }
}

/// A carrier within one process, for tests and for several layers over one store. Clones share it.
///
/// A listener that falls more than 1,024 hints behind loses the oldest ones and hears a
/// [`Heard::Lagged`] in their place.
///
/// # Cancel safety
///
/// Polling the stream again after a wait for it was dropped loses nothing.
///
/// # Example
///
/// ```
/// use futures_util::StreamExt;
/// use tower_bound_agent::hints::{About, Heard, Hint, Hints, LocalHints};
/// # use tower_bound_agent::WorkspaceId;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let workspace = WorkspaceId::new(uuid::Uuid::from_u128(7));
/// let hints = LocalHints::new();
/// let mut heard = std::pin::pin!(hints.listen());
/// let hint = Hint::new(1, About::Reset { workspace, epoch: None });
/// hints.clone().send(hint);
/// assert_eq!(heard.next().await, Some(Heard::Hint(hint)));
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct LocalHints(broadcast::Sender<Hint>);

impl LocalHints {
    /// A carrier of its own, which nobody listens to yet.
    #[must_use]
    pub fn new() -> Self {
        Self(broadcast::Sender::new(1024))
    }
}

impl Default for LocalHints {
    fn default() -> Self {
        Self::new()
    }
}

impl Hints for LocalHints {
    fn send(&self, hint: Hint) {
        // An error: nobody listens.
        let _ = self.0.send(hint);
    }

    fn listen(&self) -> impl Stream<Item = Heard> + Send + 'static {
        stream::unfold(self.0.subscribe(), async |mut bus| {
            use broadcast::error::RecvError::{Closed, Lagged};
            match bus.recv().await {
                Ok(hint) => Some((Heard::Hint(hint), bus)),
                Err(Lagged(_)) => Some((Heard::Lagged, bus)),
                Err(Closed) => None,
            }
        })
    }
}

/// The version of the text form. Another one is not understood at all.
const VERSION: &str = "1";

/// Not the text form of a hint that this version of the crate knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a hint of a kind that is known")]
#[non_exhaustive]
pub struct ParseHintError;

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The epoch of those hints that have one stands in a field of its own, also if it is not
        // known.
        let (kind, id, number, epoch) = match self.about {
            About::Workspace { workspace, generation, epoch } => {
                ('w', workspace.into_uuid(), generation.map(Generation::get), Some(epoch))
            }
            About::Session { session, revision } => {
                ('s', session.into_uuid(), revision.map(Revision::get), None)
            }
            About::Reset { workspace, epoch } => ('r', workspace.into_uuid(), None, Some(epoch)),
        };
        write!(f, "{VERSION}:{kind}:{:016x}:{}:", self.origin, id.simple())?;
        number.map_or(Ok(()), |number| number.fmt(f))?;
        match epoch {
            Some(Some(epoch)) => write!(f, ":{epoch}"),
            Some(None) => f.write_str(":"),
            None => Ok(()),
        }
    }
}

impl FromStr for Hint {
    type Err = ParseHintError;

    fn from_str(text: &str) -> Result<Self, ParseHintError> {
        parse(text).ok_or(ParseHintError)
    }
}

/// A field that may be empty.
fn parse_number(field: &str) -> Option<Option<i64>> {
    if field.is_empty() { Some(None) } else { field.parse().ok().map(Some) }
}

fn parse(text: &str) -> Option<Hint> {
    let mut fields = text.split(':');
    if fields.next()? != VERSION {
        return None;
    }
    let kind = fields.next()?;
    let origin = u64::from_str_radix(fields.next()?, 16).ok()?;
    let id = Uuid::try_parse(fields.next()?).ok()?;
    let number = parse_number(fields.next()?)?;
    // Not in hints of those who know of no epochs.
    let mut epoch = || Some(parse_number(fields.next().unwrap_or_default())?.map(Epoch::new));
    let about = match kind {
        "w" => About::Workspace {
            workspace: id.into(),
            generation: number.map(Generation::new),
            epoch: epoch()?,
        },
        "s" => About::Session { session: id.into(), revision: number.map(Revision::new) },
        "r" => About::Reset { workspace: id.into(), epoch: epoch()? },
        _ => return None,
    };
    Some(Hint::new(origin, about))
}
