//! The words under which kinds appear in logs and in the labels of metrics.

use std::time::Duration;
use tower_bound_agent::{
    AgentId, ErrorKind, LastVerdict, OutcomeKind, Repair, Resolution, Status, Target, WorkspaceId,
    store::StoreError,
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
        (StoreError::LeftOut { written: 1 }, "left_out"),
        (StoreError::Unsupported { verb: "touch" }, "unsupported"),
    ];
    for (error, word) in errors {
        assert_eq!(error.as_str(), word);
    }
}

#[cfg(feature = "http")]
#[test]
fn each_side_of_a_failed_request_has_a_word_of_its_own() {
    use tower_bound_agent::http::{ClientError, Fault};
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
