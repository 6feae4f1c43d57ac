//! A collector: receives spans over OTLP (HTTP with protobuf), and prints traces.

use async_trait::async_trait;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, body::Bytes, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, common::v1::any_value::Value, trace::v1::Span,
};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use prost::Message;
use std::{
    fmt::Write,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{net::TcpListener, runtime::Handle};
use tower_bound_agent::BoxError;

/// The spans, each with the name of its service.
type Spans = Arc<Mutex<Vec<(String, Span)>>>;

pub(crate) struct Collector {
    endpoint: String,
    spans: Spans,
}

impl Collector {
    pub(crate) async fn start() -> Result<Self, BoxError> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}/v1/traces", listener.local_addr()?);
        let spans = Spans::default();
        let collected = Arc::clone(&spans);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let spans = Arc::clone(&collected);
                let receive = service_fn(move |request| receive(request, Arc::clone(&spans)));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), receive));
            }
        });
        Ok(Self { endpoint, spans })
    }

    /// Returns what makes the spans of a service and sends them here.
    pub(crate) fn provider(&self, service: &'static str) -> Result<SdkTracerProvider, BoxError> {
        let client = legacy::Client::builder(TokioExecutor::new()).build_http();
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client(client, Handle::current()))
            .with_endpoint(&self.endpoint)
            .build()?;
        let resource = Resource::builder_empty().with_service_name(service).build();
        Ok(SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource)
            .build())
    }

    /// Returns the traces as trees, in the order in which they began.
    pub(crate) fn traces(&self) -> String {
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        spans.sort_by_key(|(_, span)| span.start_time_unix_nano);
        let mut tree = String::from("\n");
        print(&spans, None, "", &mut tree);
        tree
    }
}

/// Prints the spans with this parent, each with those below it.
fn print(spans: &[(String, Span)], parent: Option<&Span>, indent: &str, tree: &mut String) {
    let is_below = |span: &Span| match parent {
        Some(parent) => {
            (&span.trace_id, &span.parent_span_id) == (&parent.trace_id, &parent.span_id)
        }
        None => span.parent_span_id.is_empty(),
    };
    for (service, span) in spans.iter().filter(|(_, span)| is_below(span)) {
        let _ = write!(tree, "{indent}{service}: {}", span.name);
        for attribute in &span.attributes {
            let value = attribute.value.as_ref().and_then(|value| value.value.as_ref());
            let _ = match (attribute.key.as_str(), value) {
                (key @ ("outcome" | "verb"), Some(Value::StringValue(value))) => {
                    write!(tree, " {key}={value}")
                }
                ("error", _) => write!(tree, " error"),
                _ => Ok(()),
            };
        }
        tree.push('\n');
        print(spans, Some(span), &format!("{indent}  "), tree);
    }
}

async fn receive(
    request: Request<Incoming>,
    spans: Spans,
) -> Result<Response<Full<Bytes>>, BoxError> {
    let body = request.into_body().collect().await?.to_bytes();
    for of in ExportTraceServiceRequest::decode(body)?.resource_spans {
        let service = of.resource.iter().flat_map(|resource| &resource.attributes);
        let service = service.filter(|attribute| attribute.key == "service.name");
        let mut service = service.filter_map(|attribute| attribute.value.as_ref()?.value.as_ref());
        let service = match service.next() {
            Some(Value::StringValue(name)) => name.clone(),
            _ => String::from("unknown"),
        };
        let mut spans = spans.lock().unwrap_or_else(PoisonError::into_inner);
        let received = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
        spans.extend(received.map(|span| (service.clone(), span)));
    }
    Ok(Response::new(Full::default())) // an empty message
}

/// Sends batches. The exporter has a thread of its own, so the runtime must be named.
#[derive(Debug)]
struct Client(legacy::Client<HttpConnector, Full<Bytes>>, Handle);

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let response = self.0.request(request.map(Full::new));
        let response = self.1.spawn(async move {
            let (head, body) = response.await?.into_parts();
            Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
        });
        response.await?
    }
}
