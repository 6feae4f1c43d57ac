//! Hints: their text form, and the bus within one process.

use futures_util::{FutureExt, StreamExt};
use proptest::prelude::*;
use std::{pin::pin, sync::Arc};
use tower_bound_agent::{
    Epoch, Generation, Revision, SessionId, WorkspaceId,
    hints::{About, Heard, Hint, Hints, LocalHints},
};
use uuid::Uuid;

fn session(n: u128) -> SessionId {
    SessionId::new(Uuid::from_u128(n))
}

fn workspace(n: u128) -> WorkspaceId {
    WorkspaceId::new(Uuid::from_u128(n))
}

fn written(revision: i64) -> Hint {
    Hint::new(1, About::Session { session: session(1), revision: Some(Revision::new(revision)) })
}

fn any_hint() -> impl Strategy<Value = Hint> {
    let number = || prop::option::of(prop_oneof![any::<i64>(), 0..100i64]);
    let about = prop_oneof![
        (any::<u128>(), number(), number()).prop_map(|(id, number, epoch)| About::Workspace {
            workspace: workspace(id),
            generation: number.map(Generation::new),
            epoch: epoch.map(Epoch::new),
        }),
        (any::<u128>(), number()).prop_map(|(id, number)| About::Session {
            session: session(id),
            revision: number.map(Revision::new)
        }),
        (any::<u128>(), number()).prop_map(|(id, number)| About::Reset {
            workspace: workspace(id),
            epoch: number.map(Epoch::new)
        }),
    ];
    (any::<u64>(), about).prop_map(|(origin, about)| Hint::new(origin, about))
}

proptest! {
    #[test]
    fn every_hint_survives_its_text_form(hint in any_hint()) {
        let text = hint.to_string();
        prop_assert_eq!(text.parse::<Hint>(), Ok(hint));
        prop_assert!(text.len() <= 95, "{} bytes", text.len());
        prop_assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b':' || byte == b'-'));
    }

    #[test]
    fn fields_that_a_later_version_adds_are_ignored(hint in any_hint(), more in "(:[a-z0-9]{0,5}){1,3}") {
        prop_assert_eq!(format!("{hint}{more}").parse::<Hint>(), Ok(hint));
    }

    #[test]
    fn a_truncated_hint_differs_at_most_in_its_number(hint in any_hint(), at in 0..95usize) {
        let text = hint.to_string();
        if let Some(Ok(cut)) = text.get(..at).map(str::parse::<Hint>) {
            prop_assert_eq!(cut.origin, hint.origin);
            prop_assert_eq!(std::mem::discriminant(&cut.about), std::mem::discriminant(&hint.about));
        }
    }

    #[test]
    fn every_text_that_parses_survives_a_round_trip(text in prop_oneof![".*", "1:[wsr]:[0-9a-f]{0,17}:.{0,40}:.{0,22}:.{0,22}"]) {
        if let Ok(hint) = text.parse::<Hint>() {
            prop_assert_eq!(hint.to_string().parse(), Ok(hint));
        }
    }
}

#[test]
fn an_unknown_kind_or_version_is_refused() {
    const ID: &str = "00000000-0000-0000-0000-000000000007";
    let good = format!("1:w:f:{ID}:3");
    let about = About::Workspace {
        workspace: workspace(7),
        generation: Some(Generation::new(3)),
        epoch: None,
    };
    assert_eq!(good.parse(), Ok(Hint::new(15, about)));
    for bad in [
        String::new(),
        format!("2:w:f:{ID}:3"),
        format!("1:q:f:{ID}:3"),
        format!("1:w:g:{ID}:3"),
        format!("1:w:11111111111111111:{ID}:3"),
        "1:w:f:7:3".to_owned(),
        format!("1:w:f:{ID}:x"),
        format!("1:w:f:{ID}:9223372036854775808"),
        format!("1:w:f:{ID}"),
        format!(" {good}"),
    ] {
        assert!(bad.parse::<Hint>().is_err(), "{bad:?}");
    }
}

#[tokio::test]
async fn every_listener_receives_all_hints_since_it_listens() {
    let hints = LocalHints::new();
    hints.send(written(1));
    let mut first = pin!(hints.listen());
    hints.send(written(2));
    let mut second = pin!(hints.clone().listen());
    hints.clone().send(written(3));

    assert_eq!(first.next().await, Some(Heard::Hint(written(2))));
    assert_eq!(first.next().await, Some(Heard::Hint(written(3))));
    assert_eq!(first.next().now_or_never(), None);
    assert_eq!(second.next().await, Some(Heard::Hint(written(3))));
    assert_eq!(second.next().now_or_never(), None);
}

#[tokio::test]
async fn a_listener_that_falls_behind_receives_one_lagged_and_then_the_rest() {
    let hints = LocalHints::new();
    let mut heard = pin!(hints.listen());
    for revision in 0..3000 {
        hints.send(written(revision));
    }
    assert_eq!(heard.next().await, Some(Heard::Lagged));
    for revision in 3000 - 1024..3000 {
        assert_eq!(heard.next().await, Some(Heard::Hint(written(revision))));
    }
    assert_eq!(heard.next().now_or_never(), None);
}

#[tokio::test]
async fn the_stream_ends_when_all_senders_are_dropped() {
    let hints = Arc::new(LocalHints::new());
    let mut heard = pin!(hints.listen());
    hints.send(written(1));
    drop(hints);
    assert_eq!(heard.next().await, Some(Heard::Hint(written(1))));
    assert_eq!(heard.next().await, None);
}
