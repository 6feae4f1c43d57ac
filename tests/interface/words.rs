//! The words under which kinds appear in logs and in the labels of metrics.

use std::{path::PathBuf, time::Duration};
use tower_bound_agent::{
    AgentId, DoubtReason, ErrorKind, LastVerdict, OutcomeKind, Repair, Resolution, Status, Target,
    WorkspaceId, store::StoreError,
};
use uuid::Uuid;

fn target() -> Target {
    Target::new(AgentId::new(Uuid::from_u128(7))).with_generation(6).with_address("10.0.0.7:9000")
}

#[test]
fn each_kind_has_a_word_of_its_own() {
    let workspace = WorkspaceId::new(Uuid::nil());
    let errors = [
        (ErrorKind::NotBound, "not_bound"),
        (ErrorKind::WorkspaceMismatch { bound: workspace, asked: workspace }, "workspace_mismatch"),
        (ErrorKind::Retargeted, "retargeted"),
        (ErrorKind::Starting { retry_after: None }, "starting"),
        (ErrorKind::Stopped, "stopped"),
        (ErrorKind::Gone, "gone"),
        (ErrorKind::Unreachable { newer: None }, "unreachable"),
        (ErrorKind::WrongAgent, "wrong_agent"),
        (ErrorKind::TimedOut { last: LastVerdict::Same }, "timed_out"),
        (ErrorKind::Dialer, "dialer"),
        (ErrorKind::Local, "local"),
        (ErrorKind::Resolver, "resolver"),
        (ErrorKind::Store, "store"),
        (ErrorKind::OutcomeUnknown, "outcome_unknown"),
        (ErrorKind::Closed, "closed"),
    ];
    for (kind, word) in errors {
        assert_eq!(kind.as_str(), word);
    }
    let reasons = [
        (DoubtReason::Requested, "requested"),
        (DoubtReason::Hint, "hint"),
        (DoubtReason::HintsLost, "hints_lost"),
        (DoubtReason::Reset, "reset"),
        (DoubtReason::Unbound, "unbound"),
        (DoubtReason::RepairLost, "repair_lost"),
        (DoubtReason::CallDropped, "call_dropped"),
        (DoubtReason::ReportedStale, "reported_stale"),
        (DoubtReason::Contradicted, "contradicted"),
    ];
    for (reason, word) in reasons {
        assert_eq!(reason.as_str(), word);
    }
    let outcomes = [
        (OutcomeKind::Reused, "reused"),
        (OutcomeKind::Confirmed, "confirmed"),
        (OutcomeKind::Redialed, "redialed"),
        (OutcomeKind::Switched { from: target().into() }, "switched"),
        (OutcomeKind::FirstBind, "first_bind"),
    ];
    for (kind, word) in outcomes {
        assert_eq!(kind.as_str(), word);
    }
    let repairs = [
        (Repair::NotNeeded, "not_needed"),
        (Repair::Pending, "pending"),
        (Repair::Retrying, "retrying"),
        (Repair::Written, "written"),
        (Repair::Lost, "lost"),
        (Repair::Failed, "failed"),
    ];
    for (repair, word) in repairs {
        assert_eq!(repair.as_str(), word);
    }
    let verdicts = [
        (LastVerdict::Unknown, "unknown"),
        (LastVerdict::Same, "same"),
        (LastVerdict::Superseded, "superseded"),
        (LastVerdict::Starting, "starting"),
        (LastVerdict::Stopped, "stopped"),
        (LastVerdict::Gone, "gone"),
    ];
    for (verdict, word) in verdicts {
        assert_eq!(verdict.as_str(), word);
    }
    let statuses = [
        (Status::Running, "running"),
        (Status::Starting { retry_after: None }, "starting"),
        (Status::Stopped, "stopped"),
        (Status::Gone, "gone"),
        (Status::Unknown, "unknown"),
    ];
    for (status, word) in statuses {
        assert_eq!(status.as_str(), word);
    }
}

#[test]
fn error_messages_name_the_failure_and_the_remedy() {
    let (workspace, agent) = (WorkspaceId::new(Uuid::nil()), target().agent);
    let starting = |retry_after| ErrorKind::Starting { retry_after };
    let messages = [
        (
            ErrorKind::NotBound,
            "not bound to a workspace; name one with `in_workspace` or `retarget`",
        ),
        (
            ErrorKind::WorkspaceMismatch { bound: workspace, asked: workspace },
            &*format!(
                "bound to workspace {workspace}, not to {workspace}; move it with `retarget`"
            ),
        ),
        (
            ErrorKind::Retargeted,
            "retargeted during the call, and no dial was left for the new workspace; try again",
        ),
        (starting(Some(Duration::from_secs(2))), "the workspace is starting; try again after 2s"),
        (starting(None), "the workspace is starting; try again later"),
        (ErrorKind::Stopped, "the workspace is stopped"),
        (ErrorKind::Gone, "the workspace no longer exists"),
        (
            ErrorKind::Unreachable { newer: None },
            "the agent could not be dialed, and no other agent is known; try again later",
        ),
        (
            ErrorKind::Unreachable { newer: Some(target().into()) },
            &format!("no dial was left for agent {agent}, which became known late; try again"),
        ),
        (
            ErrorKind::WrongAgent,
            "another agent listens at the address of the dialed one, and no other target is known; \
             try again later",
        ),
        (
            ErrorKind::TimedOut { last: LastVerdict::Unknown },
            "no connection within `dial_timeout` (the resolver gave no answer); try again later",
        ),
        (ErrorKind::Dialer, "the dial service failed in `poll_ready`; replace it"),
        (ErrorKind::Local, "the dial failed for a reason in this process, not in the agent"),
        (ErrorKind::Resolver, "the resolver named no agent to dial; try again later"),
        (ErrorKind::Store, "the store could not read or write the binding; nothing was changed"),
        (
            ErrorKind::OutcomeUnknown,
            "the store did not confirm the command; read the binding before repeating it",
        ),
        (ErrorKind::Closed, "the layer was closed with `Bindings::close`"),
    ];
    for (kind, message) in messages {
        assert_eq!(kind.to_string(), message);
    }
}

#[test]
fn each_error_of_a_store_has_a_word_of_its_own() {
    let why = || "why".into();
    let errors = [
        (StoreError::Unavailable(why()), "unavailable"),
        (StoreError::Unknown(why()), "unknown"),
        (StoreError::Rejected(why()), "rejected"),
        (StoreError::Corrupt(why()), "corrupt"),
        (StoreError::LockedRowsSkipped { written: 1 }, "locked_rows_skipped"),
        (StoreError::Unsupported { verb: "touch" }, "unsupported"),
        (StoreError::Denied { location: String::new(), source: why() }, "denied"),
        (StoreError::Open { path: PathBuf::new(), source: why() }, "open"),
        (StoreError::NotADatabase { path: PathBuf::new(), source: why() }, "not_a_database"),
        (StoreError::Schema { location: String::new(), problem: String::new() }, "schema"),
        (
            StoreError::SchemaTooNew { location: String::new(), found: 9, supported: 1 },
            "schema_too_new",
        ),
        (StoreError::UseNotRecorded { since: None }, "use_not_recorded"),
        (StoreError::TableName { name: String::new() }, "table_name"),
    ];
    for (error, word) in errors {
        assert_eq!(error.as_str(), word);
    }
}

#[cfg(feature = "http")]
#[test]
fn each_side_of_a_failed_request_has_a_word_of_its_own() {
    use tower_bound_agent::http::{BadRequest, ClientError, Fault};
    let faults = [
        (Fault::Caller, "caller"),
        (Fault::Here, "here"),
        (Fault::Agent, "agent"),
        (Fault::Network, "network"),
    ];
    for (fault, word) in faults {
        assert_eq!(fault.as_str(), word);
    }
    let within = Duration::from_secs(1);
    let errors = [
        (ClientError::NoSession, "no_session"),
        (ClientError::Busy { waited: within }, "busy"),
        (ClientError::Superseded { newer: None }, "superseded"),
        (ClientError::NoResponse { within }, "no_response"),
        (ClientError::Request(BadRequest::Host), "request"),
    ];
    for (error, word) in errors {
        assert_eq!(error.as_str(), word);
    }
}

#[test]
fn answers_are_shown_on_one_line() {
    let agent = target().agent;
    let starting = |retry_after| Resolution::Starting { retry_after };
    let answers = [
        (
            Resolution::Running(target()),
            "running",
            &*format!("running, agent {agent} (generation 6, 10.0.0.7:9000)"),
        ),
        (starting(Some(Duration::from_secs(2))), "starting", "starting, try again after 2s"),
        (starting(None), "starting", "starting"),
        (Resolution::Stopped, "stopped", "stopped"),
        (Resolution::Gone, "gone", "gone"),
    ];
    for (answer, word, shown) in answers {
        assert_eq!((answer.as_str(), &*answer.to_string()), (word, shown));
    }
}

#[test]
fn each_hint_has_a_word_of_its_own() {
    use tower_bound_agent::{
        SessionId,
        hints::{About, Heard, Hint},
    };
    let (session, workspace) = (SessionId::new(Uuid::nil()), WorkspaceId::new(Uuid::nil()));
    let abouts = [
        (About::Workspace { workspace, generation: None, epoch: None }, "workspace"),
        (About::Session { session, revision: None }, "session"),
        (About::Reset { workspace, epoch: None }, "reset"),
    ];
    for (about, word) in abouts {
        assert_eq!(about.as_str(), word);
        assert_eq!(Heard::Hint(Hint::new(1, about)).as_str(), "hint");
    }
    assert_eq!(Heard::Lagged.as_str(), "lagged");
}

#[cfg(feature = "http")]
#[test]
fn each_reason_not_to_cross_a_hop_has_a_word_of_its_own() {
    use tower_bound_agent::http::{
        BadRequest,
        proxy::{BadResponse, Refusal},
    };
    let requests = [
        (BadRequest::Connect, "connect"),
        (BadRequest::Upgrade, "upgrade"),
        (BadRequest::Host, "host"),
    ];
    for (request, word) in requests {
        assert_eq!(request.as_str(), word);
    }
    let refusals = [
        (Refusal::Host, "host"),
        (Refusal::Length, "length"),
        (Refusal::Coding, "coding"),
        (Refusal::MaxForwards, "max_forwards"),
        (Refusal::Connect, "connect"),
        (Refusal::Protocol, "protocol"),
        (Refusal::Loop, "loop"),
        (Refusal::LastHop(http::Method::TRACE), "last_hop"),
    ];
    for (refusal, word) in refusals {
        assert_eq!(refusal.as_str(), word);
    }
    let responses = [
        (BadResponse::Switched, "switched"),
        (BadResponse::NotSwitched, "not_switched"),
        (BadResponse::Informational, "informational"),
        (BadResponse::Length, "length"),
        (BadResponse::Coding, "coding"),
    ];
    for (response, word) in responses {
        assert_eq!(response.as_str(), word);
    }
}

#[cfg(feature = "testing")]
#[test]
fn each_event_has_a_word_of_its_own_that_its_owned_form_shares() {
    use tower_bound_agent::{
        SessionId,
        testing::{ErrorBuilder, event, outcome},
    };
    let (session, workspace) = (SessionId::new(Uuid::nil()), WorkspaceId::new(Uuid::nil()));
    let (target, took) = (target(), Duration::ZERO);
    let (outcome, now) =
        (outcome(OutcomeKind::Reused, Repair::NotNeeded), tokio::time::Instant::now());
    let error = StoreError::Unsupported { verb: "touch" };
    let failure = ErrorBuilder::new(ErrorKind::Stopped).build();
    let events = [
        (event::dialed(session, workspace, &target, took, None), "dialed"),
        (event::validated(workspace, took, Ok(&Resolution::Gone)), "validated"),
        (event::switched(session, workspace, &target, &target), "switched"),
        (event::repaired(session, workspace, &target, Repair::Lost, None), "repaired"),
        (event::workspace_repaired(workspace, &target, Repair::Lost, None), "workspace_repaired"),
        (event::used(session, workspace, &target, &outcome), "used"),
        (event::failed(session, Some(workspace), &failure, took), "failed"),
        (event::look_up_failed(session, &error), "look_up_failed"),
        (event::hints_lost(), "hints_lost"),
        (event::in_use(session, workspace, &target, now), "in_use"),
        (event::refresh_failed(1, &error), "refresh_failed"),
        (event::use_not_recorded(1, &error), "use_not_recorded"),
        (event::reported_stale(session, workspace, &target), "reported_stale"),
        (event::dropped_in_flight(session, workspace, &target, took), "dropped_in_flight"),
    ];
    for (event, word) in events {
        assert_eq!((event.as_str(), event.to_owned().as_str()), (word, word));
    }
}

#[cfg(all(feature = "testing", feature = "http"))]
#[test]
fn an_error_of_a_dial_keeps_its_word_in_a_failed_request() {
    use tower_bound_agent::{http::ClientError, testing::ErrorBuilder};
    let error = ErrorBuilder::new(ErrorKind::Stopped).dial_error("refused").build();
    assert_eq!(ClientError::Dial(error).as_str(), "dial");
}

#[cfg(all(feature = "testing", feature = "http"))]
#[test]
fn a_request_that_was_not_processed_and_one_that_may_have_been_have_two_words() {
    use std::{error::Error as _, io};
    use tower_bound_agent::{
        http::{ClientError, Fault, http2_code},
        testing::hyper_error,
    };
    let lost = |kind: io::ErrorKind| hyper_error(io::Error::new(kind, "the cable"));
    for (error, word, is_unsent) in [
        (ClientError::Unsent as fn(hyper::Error) -> ClientError, "unsent", true),
        (ClientError::Send, "send", false),
    ] {
        let (refused, away) = (
            error(lost(io::ErrorKind::ConnectionReset)),
            error(lost(io::ErrorKind::HostUnreachable)),
        );
        assert_eq!((refused.as_str(), refused.is_unsent()), (word, is_unsent));
        assert_eq!((refused.fault(), away.fault()), (Fault::Agent, Fault::Network));
        assert_eq!(refused.http2_code(), None);
    }
    let error = lost(io::ErrorKind::ConnectionReset);
    assert_eq!(error.source().unwrap().to_string(), "the cable");
    assert!(!error.is_user() && http2_code(&error).is_none());
}
