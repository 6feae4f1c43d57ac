//! Hints between processes: their text form, the contract of a hint bus, and a bus within one
//! process.
//!
//! Several processes (replicas) may work over one store. Each keeps its own state in memory, so
//! after a command or a repair in one process, the others dial the old agent until they notice. A
//! *hint* makes them notice sooner. It is sent after the commit of a write, and names the revision
//! or generation that the write has reached.
//!
//! A process that receives a hint reads the row or asks the resolver, and trusts only the result.
//! Therefore, hints may be lost, late, doubled or reordered: they change *how soon* a process
//! notices a change, and never *what* it does.

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

/// A message from another process about a change of a session or a workspace.
///
/// The text form (`Display`, `FromStr`) is for buses that transport text: at most 95 ASCII letters,
/// digits, colons and minus signs. It begins with a version. Later versions of this crate may add
/// kinds of hints, which this version cannot parse, and fields at the end, which it ignores. A bus
/// reports [`Heard::Lagged`] in place of a text that it cannot parse.
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
    /// The random number of the layer that sent the hint. A layer ignores its own hints.
    pub origin: u64,
    /// The subject of the hint.
    pub about: About,
}

impl Hint {
    /// Creates a hint of a layer.
    #[must_use]
    pub const fn new(origin: u64, about: About) -> Self {
        Self { origin, about }
    }
}

/// The subject of a [`Hint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum About {
    /// The agent of a workspace was replaced, or may have been.
    Workspace {
        /// The workspace.
        workspace: WorkspaceId,
        /// The generation up to which rows were repaired. `None`: the agent may have been replaced
        /// by an unknown one.
        generation: Option<Generation>,
        /// The epoch of the generation. `None`: the receiver's epoch of the workspace.
        epoch: Option<Epoch>,
    },
    /// A command or a repair has written or removed the record of a session.
    Session {
        /// The session.
        session: SessionId,
        /// The revision that was written. `None`: the record was removed.
        revision: Option<Revision>,
    },
    /// The command [`reset_workspace`](crate::Bindings::reset_workspace) was carried out: the
    /// resolver's generations start again.
    Reset {
        /// The workspace.
        workspace: WorkspaceId,
        /// The epoch that has begun. `None`: it is unknown whether another epoch has begun.
        epoch: Option<Epoch>,
    },
}

impl About {
    /// Returns the kind of subject as a word in snake case, for logs and the labels of metrics. The
    /// words of 0.1 do not change.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Workspace { .. } => "workspace",
            Self::Session { .. } => "session",
            Self::Reset { .. } => "reset",
        }
    }
}

/// An item of the stream of [`Hints::listen`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Heard {
    /// A hint from another layer or from the listener itself.
    Hint(Hint),
    /// Hints may have been lost, so any row and any agent may have changed.
    Lagged,
}

impl Heard {
    /// Returns the kind of item as a word in snake case, for logs and the labels of metrics. The
    /// words of 0.1 do not change.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Hint(..) => "hint",
            Self::Lagged => "lagged",
        }
    }
}

/// A bus that carries hints from one process to the others.
///
/// A bus need not be reliable: it may lose, delay, double or reorder hints. It must not block or
/// stop the layer, whatever happens to it. [`LocalHints`] is the smallest implementation; in this
/// crate's repository `examples/own_bus` is a bus over a message broker. The macro
/// `hints_contract_tests!` (feature `testing`) runs this contract as tests over a bus of yours.
pub trait Hints: Send + Sync + 'static {
    /// Sends a hint to the other processes.
    ///
    /// It never waits and never fails. A hint that cannot be carried is lost; if the bus notices,
    /// it reports [`Heard::Lagged`] to the other processes.
    fn send(&self, hint: Hint);

    /// Returns a stream of the hints that are sent from now on.
    ///
    /// A hint that is sent after this call is received, or [`Heard::Lagged`] is received after it
    /// was lost. A bus that is not listening yet when this returns must report `Lagged` when it is.
    ///
    /// Each layer listens once, polls the stream as long as it lives, and may receive its own
    /// hints. So the stream may also do the work of sending. The stream ends only if no hint can
    /// ever be received again. Dropping the stream ends the listening and all work for it.
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

/// The object-safe form of [`Hints`], which spares the layer a type parameter.
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

/// A bus within one process, for tests and for several layers over one store. Clones share the bus.
///
/// A listener that falls more than 1,024 hints behind loses the oldest ones and receives
/// [`Heard::Lagged`] in their place.
///
/// # Cancel safety
///
/// The wait for the next item of the stream may be dropped; no item is lost.
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
    /// Creates a bus without listeners.
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
        // The send fails if there are no listeners.
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

/// The version of the text form. A text of another version is not parsed.
const VERSION: &str = "1";

/// The error of parsing a text that is no hint of a kind that this version of the crate knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the text is not a hint that this version of the crate can parse")]
#[non_exhaustive]
pub struct ParseHintError;

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A hint that has an epoch writes a field for it, even if the epoch is unknown.
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

/// Parses a field that may be empty.
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
    // Older versions send no field for the epoch.
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
