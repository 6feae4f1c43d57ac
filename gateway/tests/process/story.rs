//! A scripted story: each counter of `/metrics` and each line of the log is exactly its own, and
//! the dashboard and the alerts name nothing else.

use crate::scene::{Gateway, Platform, Responds, Socket, name};
use promql_parser::{
    label::MatchOp,
    parser::{self, Expr, LabelModifier, VectorSelector},
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use support::net::Agent;
use uuid::Uuid;

/// What the story has counted; every other counter is zero.
#[rustfmt::skip]
const COUNTERS: &[(&str, f64)] = &[
    ("bound_agent_calls_failed_total{error=\"not_bound\"}", 1.0),
    ("bound_agent_calls_failed_total{error=\"resolver\"}", 1.0),
    ("bound_agent_calls_failed_total{error=\"stopped\"}", 1.0),
    ("bound_agent_calls_total{outcome=\"first_bind\"}", 2.0),
    ("bound_agent_calls_total{outcome=\"reused\"}", 4.0),
    ("bound_agent_calls_total{outcome=\"switched\"}", 2.0),
    ("bound_agent_dials_total{result=\"answered\"}", 2.0),
    ("bound_agent_dials_total{result=\"failed\"}", 2.0),
    ("bound_agent_repairs_total{scope=\"session\",result=\"written\"}", 2.0),
    ("bound_agent_repairs_total{scope=\"workspace\",result=\"written\"}", 1.0),
    ("bound_agent_switches_total", 2.0),
    ("bound_agent_validations_total{verdict=\"failed\"}", 1.0),
    ("bound_agent_validations_total{verdict=\"running\"}", 2.0),
    ("bound_agent_validations_total{verdict=\"stopped\"}", 1.0),
    ("gateway_authorizations_total{result=\"granted\"}", 11.0),
    ("gateway_requests_total{by=\"agent\",status=\"101\"}", 1.0),
    ("gateway_requests_total{by=\"agent\",status=\"200\"}", 7.0),
    ("gateway_requests_total{by=\"gateway\",status=\"404\"}", 1.0),
    ("gateway_requests_total{by=\"gateway\",status=\"503\"}", 2.0),
];

/// The lines of its log: level and message, then fields that do not change from run to run.
const LINES: &[&str] = &[
    "INFO serving store=sqlite",
    "INFO switched to another agent dials=2 validations=1",
    "WARN validation failed",
    "WARN call failed kind=resolver",
];

/// What the dashboard and the alerts may name although the story does not count it: series that
/// exist from their first event on.
const AFTER_AN_EVENT: &[(&str, &[&str])] = &[
    ("gateway_handshakes_failed_total", &[]),
    ("gateway_certificates_loads_total", &["result=loaded", "result=failed"]),
    ("gateway_authorizations_total", &["result=failed"]),
];

/// Two sessions of one workspace live through a rebuild, a stop, and a failing resolver.
async fn tell() -> (Gateway, Platform, BTreeMap<String, f64>) {
    let (platform, mut first, mut second) =
        (Platform::start().await, Agent::start(1).await, Agent::start(2).await);
    let gateway = Gateway::start(&platform, "settings.resolve_timeout = \"300ms\"").await;
    let workspace = platform.workspace(&first);
    let (one, other) = (gateway.session(workspace).await, gateway.session(workspace).await);
    let written = async |scope: &str, count: f64| {
        let series = format!("bound_agent_repairs_total{{scope=\"{scope}\",result=\"written\"}}");
        gateway.measures(&series, count).await;
    };
    let turn = async |session: Uuid, agent: &Agent| {
        assert_eq!(gateway.get(session, "/").await.said(), (200, &*name(agent)));
    };

    // A first bind, which dials, and one that finds the connection of the other session.
    turn(one, &first).await;
    written("session", 1.0).await;
    turn(other, &first).await;
    written("session", 2.0).await;
    for _ in 0..3 {
        turn(one, &first).await;
    }
    // A session that nobody has bound.
    let stranger = Uuid::new_v4();
    assert_eq!(gateway.get(stranger, "/").await.refusal(), (404, "not_bound".into()));

    // A rebuild: the first agent is gone, and the second one is found by the resolver.
    platform.runs(workspace, &second.target);
    first.kill().await;
    gateway.has_no_connection_to(&first).await;
    turn(one, &second).await;
    written("workspace", 1.0).await;
    turn(other, &second).await;
    let mut socket = Socket::open(&gateway, other).await;
    assert_eq!(socket.say("hello").await, "hello");
    drop(socket);
    gateway.measures("gateway_tunnels", 0.0).await;

    // The workspace is stopped.
    platform.says(workspace, json!({ "status": "stopped" }));
    second.kill().await;
    gateway.has_no_connection_to(&second).await;
    assert_eq!(gateway.get(one, "/").await.refusal(), (503, "stopped".into()));

    // Another workspace: the resolver fails.
    let new = gateway.session(Uuid::new_v4()).await;
    platform.responds(Responds::With(500, "broken".into()));
    assert_eq!(gateway.get(new, "/").await.refusal(), (503, "resolver".into()));
    gateway.measures("gateway_connections", 0.0).await;
    let metrics = gateway.metrics().await;
    (gateway, platform, metrics)
}

#[tokio::test]
async fn every_counter_and_every_line_is_that_of_the_story() {
    let (gateway, _platform, metrics) = tell().await;
    let counters: BTreeMap<_, _> = metrics
        .iter()
        .filter(|(series, value)| {
            series.split('{').next().unwrap().ends_with("_total") && **value != 0.0
        })
        .map(|(series, value)| (&**series, *value))
        .collect();
    assert_eq!(counters, COUNTERS.iter().copied().collect());
    let gauges = [
        ("bound_agent_rows_cached", 3.0),
        ("bound_agent_connections_held", 0.0),
        ("bound_agent_http_connections{state=\"in_use\"}", 0.0),
        ("bound_agent_http_requests_waiting", 0.0),
        ("bound_agent_dials_pending", 0.0),
        ("bound_agent_validations_pending", 0.0),
        ("bound_agent_repairs_pending{state=\"retrying\"}", 0.0),
        ("bound_agent_call_duration_seconds_count", 11.0),
    ];
    for (series, value) in gauges {
        assert_eq!(metrics.get(series), Some(&value), "{series}");
    }
    let mut log = gateway.log();
    // Of the two switches, the second line is left out if it comes within a second.
    log.dedup_by(|line, before| line["message"] == before["message"]);
    let lines: Vec<_> = log.iter().map(line).collect();
    assert_eq!(lines, LINES);
}

/// Returns the level, the message and the fields that do not change from run to run.
fn line(line: &Value) -> String {
    let field = |name: &str| {
        line.get(name).map(|value| {
            format!(" {name}={}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        })
    };
    let fixed = ["store", "dials", "validations", "kind"].iter().filter_map(|name| field(name));
    format!(
        "{} {}{}",
        line["level"].as_str().unwrap(),
        line["message"].as_str().unwrap(),
        fixed.collect::<String>()
    )
}

/// Series by name, each with its labels.
type Exported = BTreeMap<String, BTreeSet<BTreeMap<String, String>>>;

fn exported(metrics: &BTreeMap<String, f64>) -> Exported {
    let mut exported = Exported::new();
    for series in metrics.keys() {
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        // No value of a label has a comma or a quote.
        let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
        let labels = labels.map(|label| {
            let (name, value) = label.split_once('=').unwrap();
            (name.to_owned(), value.trim_matches('"').to_owned())
        });
        exported.entry(name.to_owned()).or_default().insert(labels.collect());
    }
    for (name, labels) in AFTER_AN_EVENT {
        let of = exported.entry((*name).to_owned()).or_default();
        if labels.is_empty() {
            of.insert(BTreeMap::new());
        }
        for label in *labels {
            let (name, value) = label.split_once('=').unwrap();
            of.insert(BTreeMap::from([(name.to_owned(), value.to_owned())]));
        }
    }
    exported
}

/// Labels that Prometheus adds when it scrapes.
const OF_PROMETHEUS: [&str; 2] = ["job", "instance"];

/// Returns what a query names and the gateway does not export.
fn unknown(query: &str, exported: &Exported) -> Vec<String> {
    // As Grafana replaces them.
    let query = query.replace("$__rate_interval", "5m").replace("$job", ".*");
    let parsed = match parser::parse(&query) {
        Ok(parsed) => parsed,
        Err(error) => return vec![format!("{query}: {error}")],
    };
    let (mut wrong, mut labels) = (Vec::new(), BTreeSet::new());
    for selector in selectors(&parsed) {
        wrong.extend(
            unselected(selector, exported, &mut labels).map(|what| format!("{query}: {what}")),
        );
    }
    labels.extend(OF_PROMETHEUS.map(str::to_owned));
    let groupings = groupings(&parsed);
    wrong.extend(
        groupings
            .filter(|label| !labels.contains(*label))
            .map(|label| format!("{query}: by {label}")),
    );
    wrong
}

/// Returns why no series is selected. Adds the labels of those that are.
fn unselected(
    selector: &VectorSelector,
    exported: &Exported,
    labels: &mut BTreeSet<String>,
) -> Option<String> {
    let name = selector.name.as_deref().unwrap_or_default();
    let Some(series) = exported.get(name) else { return Some(format!("no series {name}")) };
    labels.extend(series.iter().flatten().map(|(label, _)| label.clone()));
    for matcher in &selector.matchers.matchers {
        let values: BTreeSet<_> = series.iter().filter_map(|of| of.get(&matcher.name)).collect();
        if OF_PROMETHEUS.contains(&&*matcher.name) {
            continue;
        }
        // Also what is excluded must exist.
        let named = match &matcher.op {
            MatchOp::Equal | MatchOp::NotEqual => vec![&*matcher.value],
            MatchOp::Re(_) | MatchOp::NotRe(_) => matcher.value.split('|').collect(),
        };
        for value in named {
            if !values.iter().any(|known| **known == value) {
                return Some(format!("{name} has no {}={value:?}", matcher.name));
            }
        }
    }
    None
}

fn selectors(expr: &Expr) -> Vec<&VectorSelector> {
    match expr {
        Expr::VectorSelector(selector) => vec![selector],
        Expr::MatrixSelector(matrix) => vec![&matrix.vs],
        _ => children(expr).into_iter().flat_map(selectors).collect(),
    }
}

fn groupings(expr: &Expr) -> Box<dyn Iterator<Item = &str> + '_> {
    let own = match expr {
        Expr::Aggregate(aggregate) => match &aggregate.modifier {
            Some(LabelModifier::Include(labels)) => {
                labels.labels.iter().map(|label| &**label).collect()
            }
            _ => Vec::new(),
        },
        _ => Vec::new(),
    };
    Box::new(own.into_iter().chain(children(expr).into_iter().flat_map(groupings)))
}

fn children(expr: &Expr) -> Vec<&Expr> {
    match expr {
        Expr::Aggregate(aggregate) => vec![&aggregate.expr],
        Expr::Unary(unary) => vec![&unary.expr],
        Expr::Binary(binary) => vec![&binary.lhs, &binary.rhs],
        Expr::Paren(paren) => vec![&paren.expr],
        Expr::Subquery(query) => vec![&query.expr],
        Expr::Call(call) => call.args.args.iter().map(|argument| &**argument).collect(),
        _ => Vec::new(),
    }
}

fn read(file: &str) -> String {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../");
    std::fs::read_to_string(format!("{root}{file}")).unwrap()
}

/// Returns each text under this key.
fn texts(value: &Value, key: &str) -> Vec<String> {
    match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(name, value)| match value {
                Value::String(text) if name == key => vec![text.clone()],
                _ => texts(value, key),
            })
            .collect(),
        Value::Array(list) => list.iter().flat_map(|value| texts(value, key)).collect(),
        _ => Vec::new(),
    }
}

#[tokio::test]
async fn the_dashboard_and_the_alerts_name_only_what_the_gateway_exports() {
    let (_gateway, _platform, metrics) = tell().await;
    let exported = exported(&metrics);
    let dashboard: Value = serde_json::from_str(&read("ops/grafana.json")).unwrap();
    let alerts: Value = serde_yaml_ng::from_str(&read("ops/alerts.yaml")).unwrap();
    let (shown, watched) = (texts(&dashboard, "expr"), texts(&alerts, "expr"));
    assert!(shown.len() > 30 && watched.len() > 10, "{} and {}", shown.len(), watched.len());
    let wrong: Vec<_> =
        shown.iter().chain(&watched).flat_map(|query| unknown(query, &exported)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");

    // Every series of the layer is on the dashboard.
    let named: BTreeSet<_> = shown
        .iter()
        .filter_map(|query| parser::parse(&query.replace("$__rate_interval", "5m")).ok())
        .flat_map(|query| {
            selectors(&query).iter().filter_map(|one| one.name.clone()).collect::<Vec<_>>()
        })
        .collect();
    let missing: Vec<_> = exported
        .keys()
        .filter(|name| !name.ends_with("_sum") && !name.ends_with("_count"))
        .filter(|name| !named.contains(*name))
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");

    // What the check must find.
    for (query, found) in [
        ("rate(bound_agent_call_total[5m])", "no series bound_agent_call_total"),
        (
            "sum(bound_agent_calls_total{outcome=\"reuse\"})",
            "bound_agent_calls_total has no outcome=\"reuse\"",
        ),
        (
            "bound_agent_calls_total{kind=\"reused\"}",
            "bound_agent_calls_total has no kind=\"reused\"",
        ),
        ("sum by (kind) (rate(bound_agent_calls_total[5m]))", "by kind"),
        (
            "bound_agent_calls_failed_total{error!~\"gone|lost\"}",
            "bound_agent_calls_failed_total has no error=\"lost\"",
        ),
        ("sum(rate(bound_agent_calls_total[5m])", "unclosed"),
    ] {
        let wrong = unknown(query, &exported);
        assert!(wrong.len() == 1 && wrong[0].contains(found), "{query}: {wrong:?}");
    }
}
