//! The series of the gateway itself. Those of the layer are described in its guide.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};

pub(crate) const REQUESTS: &str = "gateway.requests";
pub(crate) const REQUEST_DURATION: &str = "gateway.request.duration";
pub(crate) const AUTHORIZATIONS: &str = "gateway.authorizations";
pub(crate) const HANDSHAKES_FAILED: &str = "gateway.handshakes.failed";
pub(crate) const CONNECTIONS: &str = "gateway.connections";
pub(crate) const TUNNELS: &str = "gateway.tunnels";
pub(crate) const RELOADS: &str = "gateway.certificates.loads";

/// The upper bounds of the buckets of every histogram, in seconds: around the validation delay
/// (250 ms) and the timeouts of seconds.
const BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.3, 0.5, 1.0, 2.5, 5.0, 30.0];

/// Creates the recorder of a gateway, for [`metrics::set_global_recorder`]. Its
/// [`handle`](PrometheusRecorder::handle) is for [`Gateway::start`](crate::Gateway::start).
///
/// Counters end with `_total` and histograms with `_seconds`, as Prometheus recommends.
#[must_use]
pub fn recorder() -> PrometheusRecorder {
    let builder = PrometheusBuilder::new().with_recommended_naming(true);
    // An error means that there is no bucket.
    builder
        .set_buckets(&BUCKETS)
        .map(PrometheusBuilder::build_recorder)
        .unwrap_or_else(|_| PrometheusBuilder::new().with_recommended_naming(true).build_recorder())
}

/// Describes the series of the gateway.
pub(crate) fn describe() {
    describe_counter!(
        REQUESTS,
        Unit::Count,
        "Requests of clients, by who responded and the status"
    );
    describe_histogram!(
        REQUEST_DURATION,
        Unit::Seconds,
        "Time from a request to the response's head"
    );
    describe_counter!(AUTHORIZATIONS, Unit::Count, "Decisions about requests, by result");
    describe_counter!(HANDSHAKES_FAILED, Unit::Count, "TLS handshakes of clients that failed");
    describe_counter!(RELOADS, Unit::Count, "Attempts to load changed certificates, by result");
    describe_gauge!(CONNECTIONS, Unit::Count, "Connections of clients, tunnels included");
    describe_gauge!(TUNNELS, Unit::Count, "Tunnels: WebSockets and other upgraded connections");
}
