//! Counts the instructions of a call with Callgrind, and compares them with their limits.
//!
//! ```text
//! benches/valgrind cargo bench -p benches --no-default-features --features http --bench instructions
//! ```
//!
//! A count is the difference between two runs, divided by the number of calls that the longer run
//! makes in addition. The start of the process, the first call and the end cancel out.
//!
//! A limit, in `instructions.limits` beside this file, is a *ratio*: the count of a call divided by
//! the count, in the same run, of what an application would use without this crate. Another
//! compiler, C library, processor or version of a dependency changes both. Counts vary by up to
//! 1.5 % from run to run: a map draws its seed, moka's maintenance depends on the time, and malloc
//! on both.
//!
//! With the feature `metrics` or `tracing`, the calls without HTTP are counted and compared with
//! limits of their own. There is no subscriber, and the recorder is the Prometheus exporter's.
//!
//! Without Valgrind nothing is counted, which is a failure if `CI` is `true`.

use benches::{Dialer, bind, calls, gets, layer, moka, sessions};
use std::{
    env, fs,
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};
use tokio::runtime::Runtime;
use tower::{Layer, timeout::TimeoutLayer};
use tower_bound_agent::{BoxError, DialSession, store::MemoryStore};

/// Names of the counts, and the number of calls that the longer run makes in addition.
const COUNTED: &[(&str, u64)] = &[
    #[cfg(feature = "metrics")]
    ("recorder", 20_000),
    ("moka_get", 20_000),
    ("bare", 20_000),
    ("bare_pending_once", 20_000),
    ("timeout", 20_000),
    ("timeout_pending_once", 20_000),
    ("cached", 20_000),
    ("cached_pending_once", 20_000),
    ("hyper_http1", 2_000),
    ("client_http1", 2_000),
    ("hyper_http2", 2_000),
    ("client_http2", 2_000),
];

/// Names of the counts that are limited, and of the counts that they are divided by.
const LIMITED: &[(&str, &[&str])] = &[
    ("cached", &["timeout", "moka_get"]),
    ("cached_pending_once", &["timeout_pending_once", "moka_get"]),
    ("client_http1", &["hyper_http1"]),
    ("client_http2", &["hyper_http2"]),
];

/// Follows the names of the limits.
const WITH: &str = match (cfg!(feature = "metrics"), cfg!(feature = "tracing")) {
    (false, false) => "",
    (true, false) => "+metrics",
    (false, true) => "+tracing",
    (true, true) => "+metrics+tracing",
};

/// Returns whether the features have limits for this: those of HTTP are counted without them.
fn is_counted(name: &str) -> bool {
    WITH.is_empty() || !name.contains("_http")
}

const LIMITS: &str = "benches/instructions.limits";
/// The run fails if a ratio exceeds its limit by more than this.
const TOLERANCE: f64 = 0.03;
/// Number of calls of the shorter run.
const WARM_UP: u64 = 1_000;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--run", name, n] => n.parse().map_err(BoxError::from).map(|n| run(name, n)),
        // `cargo test --all-targets`: everything runs, and nothing is counted.
        _ if !arguments.iter().any(|argument| argument == "--bench") => {
            COUNTED.iter().for_each(|(name, _)| run(name, 3));
            Ok(())
        }
        _ => measure(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<(), BoxError> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        if env::var("CI").is_ok_and(|ci| ci == "true") {
            return Err("valgrind is not installed (benches/valgrind installs it)".into());
        }
        println!("left out: valgrind is not installed (benches/valgrind installs it)");
        return Ok(());
    }
    let limits = Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.limits");
    let limits = limits_of(&fs::read_to_string(limits)?)?;
    let mut counts = Vec::new();
    println!("{:<22} {:>12}", "", "instructions");
    for &(name, more) in COUNTED.iter().filter(|(name, _)| is_counted(name)) {
        let (short, long) = (start(name, WARM_UP)?, start(name, WARM_UP + more)?);
        let (short, long) = (count(short)?, count(long)?);
        let each = long.saturating_sub(short) as f64 / more as f64;
        println!("{name:<22} {each:>12.0}");
        counts.push((name, each));
    }
    let of = |name: &str| counts.iter().find(|(of, _)| *of == name).map_or(f64::NAN, |(_, n)| *n);
    println!("\n{:<28} {:>8} {:>8}", "ratio", "is", "limit");
    let mut exceeded = Vec::new();
    for &(name, parts) in LIMITED.iter().filter(|(name, _)| is_counted(name)) {
        let parts: Vec<&str> =
            parts.iter().copied().chain(cfg!(feature = "metrics").then_some("recorder")).collect();
        let ratio = of(name) / parts.iter().copied().map(of).sum::<f64>();
        let limited = format!("{name}{WITH}");
        let limit = limits.iter().find(|(of, _)| *of == limited).map(|(_, limit)| *limit);
        let limit = limit.ok_or_else(|| format!("{LIMITS} has no limit of {limited}"))?;
        println!("{limited:<28} {ratio:>8.3} {limit:>8.3}   ÷ ({})", parts.join(" + "));
        let by = ratio / limit - 1.0;
        if by.abs() <= TOLERANCE {
            continue;
        }
        let percent = by * 100.0;
        if by < 0.0 {
            println!("  {percent:.1} %: please lower the limit in {LIMITS} to {ratio:.3}");
        } else {
            exceeded.push(format!(
                "{limited} executes {percent:.1} % more instructions than {LIMITS} allows: the \
                 ratio to {} was {limit:.3} and is {ratio:.3}.\n  To find out where: valgrind \
                 --tool=callgrind {} --run {name} {}, then callgrind_annotate.\n  If the change \
                 is worth its price, raise the limit, and give the reason in the commit.",
                parts.join(" + "),
                env::current_exe()?.display(),
                WARM_UP * 10,
            ));
        }
    }
    if exceeded.is_empty() { Ok(()) } else { Err(exceeded.join("\n").into()) }
}

/// Reads lines of a name and a number; `#` begins a comment.
fn limits_of(text: &str) -> Result<Vec<(String, f64)>, BoxError> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines
        .filter(|line| !line.is_empty())
        .map(|line| {
            let (name, limit) =
                line.split_once(' ').ok_or_else(|| format!("{LIMITS}: what is {line}?"))?;
            Ok((name.to_owned(), limit.trim().parse()?))
        })
        .collect()
}

/// Starts a run of this program under Callgrind.
fn start(name: &str, n: u64) -> Result<Child, BoxError> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    valgrind.arg(env::current_exe()?).args(["--run", name, &n.to_string()]);
    Ok(valgrind.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?)
}

/// Returns the number of instructions that the run has executed.
fn count(run: Child) -> Result<u64, BoxError> {
    let output = run.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.lines().find_map(|line| line.split_once("Collected : "));
    match collected {
        Some((_, count)) if output.status.success() => Ok(count.trim().parse()?),
        _ => Err(said.into()),
    }
}

fn run(name: &str, n: u64) {
    #[cfg(feature = "metrics")]
    if name == "recorder" || name.starts_with("cached") {
        recorder::install();
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let dialer = Dialer { pending_once: name.ends_with("_pending_once") };
    match name.split_once('_').map_or(name, |(kind, _)| kind) {
        "moka" => {
            let one = sessions(1);
            gets(&moka(&one), n, |_| one[0]);
        }
        #[cfg(feature = "metrics")]
        "recorder" => recorder::record(n),
        "bare" => drop(runtime.block_on(calls(dialer, n, |i| i))),
        "timeout" => {
            let timeout = TimeoutLayer::new(Duration::from_secs(30));
            runtime.block_on(calls(timeout.layer(dialer), n, |i| i));
        }
        "cached" => {
            let (one, layer) = (sessions(1), layer(MemoryStore::new()));
            runtime.block_on(async {
                bind(&layer, &one).await;
                calls(layer.layer(dialer), n, |_| DialSession::new(one[0])).await
            });
        }
        _ => http::run(&runtime, name, n),
    }
}

/// What a cached call records.
#[cfg(feature = "metrics")]
mod recorder {
    use metrics::{counter, histogram};
    use metrics_exporter_prometheus::PrometheusBuilder;

    /// Installs the recorder of this process, which may be there already.
    pub(super) fn install() {
        drop(metrics::set_global_recorder(PrometheusBuilder::new().build_recorder()));
    }

    /// Counts and times `n` calls and their dials, and does nothing else.
    pub(super) fn record(n: u64) {
        let (dials, calls) = (counter!("dials"), counter!("calls"));
        let (dial, call) = (histogram!("dial"), histogram!("call"));
        for _ in 0..n {
            dials.increment(1);
            dial.record(0.0);
            calls.increment(1);
            call.record(0.0);
        }
    }
}

/// Exchanges of a request and its response over a connection in memory. The server counts too.
mod http {
    use super::{BoxError, Duration, Layer, MemoryStore, Runtime, calls, layer};
    use benches::workspace;
    use http_body_util::{BodyExt, Empty, Full};
    use hyper::{Request, Response, Uri, body::Bytes, rt};
    use hyper_util::{
        client::legacy::{
            Client,
            connect::{Connected, Connection},
        },
        rt::{TokioExecutor, TokioIo},
    };
    use std::{
        convert::Infallible,
        future::ready,
        io,
        pin::Pin,
        task::{Context, Poll},
    };
    use tokio::io::DuplexStream;
    use tower::{Service, service_fn};
    use tower_bound_agent::{DialAgent, DialSession, SessionId, http::AgentClient};
    use uuid::Uuid;

    pub(super) fn run(runtime: &Runtime, name: &str, n: u64) {
        let http2 = name.ends_with("http2");
        runtime.block_on(async {
            if name.starts_with("hyper") {
                let connect = service_fn(move |_: Uri| ready(Ok::<_, io::Error>(serve(http2))));
                let client = Client::builder(TokioExecutor::new()).http2_only(http2).build(connect);
                let ask = || Request::get("http://agent/identity").body(Empty::<Bytes>::new());
                requests(client, n, ask).await;
            } else {
                let dialer =
                    service_fn(move |_: DialAgent| ready(Ok::<_, io::Error>(serve(http2))));
                let layer = layer(MemoryStore::new());
                let builder = AgentClient::<(), ()>::builder();
                let builder = if http2 { builder.http2() } else { builder.http1() };
                let client = builder.build(layer.layer(dialer));
                let chat = DialSession::new(SessionId::new(Uuid::from_u128(1)));
                let ask = || {
                    let chat = chat.clone().in_workspace(workspace());
                    Request::get("/identity").extension(chat).body(Empty::<Bytes>::new())
                };
                requests(client, n, ask).await;
            }
        });
    }

    /// Makes `n` requests, one after the other, and reads each response to its end.
    async fn requests<S, B, E>(
        client: S,
        n: u64,
        ask: impl Fn() -> Result<Request<Empty<Bytes>>, hyper::http::Error>,
    ) where
        S: Service<Request<Empty<Bytes>>, Response = Response<B>, Error = E> + Clone,
        B: hyper::body::Body<Error: std::fmt::Debug>,
        E: Into<BoxError>,
    {
        let exchange = service_fn(async |()| {
            let response = client.clone().call(ask()?).await.map_err(Into::into)?;
            let body = response.into_body().collect().await.map_err(|e| format!("{e:?}"))?;
            Ok::<_, BoxError>(body.to_bytes())
        });
        let _: Duration = calls(exchange, n, |_| ()).await;
    }

    /// Starts a server, and returns the connection to it.
    fn serve(http2: bool) -> Local {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let answer = hyper::service::service_fn(async |_: Request<hyper::body::Incoming>| {
            let body = Full::new(Bytes::from_static(b"an answer of an agent"));
            Ok::<_, Infallible>(Response::new(body))
        });
        let far = TokioIo::new(far);
        if http2 {
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(far, answer));
        } else {
            let server = hyper::server::conn::http1::Builder::new();
            tokio::spawn(server.serve_connection(far, answer));
        }
        Local(TokioIo::new(near))
    }

    /// A connection in memory.
    struct Local(TokioIo<DuplexStream>);

    impl Connection for Local {
        fn connected(&self) -> Connected {
            Connected::new()
        }
    }

    impl rt::Read for Local {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: rt::ReadBufCursor<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl rt::Write for Local {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, buf)
        }
        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }
        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }
}
