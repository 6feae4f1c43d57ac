//! The words under which kinds appear in logs and in the labels of metrics.

use std::time::Duration;
use tower_bound_agent::{
    AgentId, ErrorKind, LastVerdict, OutcomeKind, Repair, Resolution, Status, Target, WorkspaceId,
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
    assert_eq!((Status::Running.as_str(), Status::Unknown.as_str()), ("running", "unknown"));
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
