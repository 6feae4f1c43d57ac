//! A parser that accepts only messages that obey the rules. It is independent of the crate's code
//! and of hyper's.

use crate::{NAME, NUMBER};
use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// The agent, which answers each request with the bytes of the case and records each rule that a
/// request breaks.
#[derive(Clone, Default)]
pub struct Agent(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    answer: Vec<u8>,
    numbers: HashSet<String>,
    requests: u64,
    broken: Vec<String>,
}

impl Agent {
    pub fn answers(&self, answer: Vec<u8>) {
        self.0.lock().unwrap().answer = answer;
    }

    pub fn broken(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().broken)
    }

    pub fn requests(&self) -> u64 {
        self.0.lock().unwrap().requests
    }

    pub fn blame(&self, what: String) {
        self.0.lock().unwrap().broken.push(what);
    }

    /// Records that a tunnel was granted, so that the response must be one.
    pub fn has_accepted(&self, accept: &str) {
        let mut state = self.0.lock().unwrap();
        let answer = lossy(&state.answer);
        let lower = answer.to_ascii_lowercase();
        if !(answer.contains(accept)
            && lower.contains("upgrade: websocket")
            && lower.starts_with("http/1.1 101 "))
        {
            state.broken.push(format!("a tunnel for {answer:?}"));
        }
    }

    pub async fn serve(self, mut stream: DuplexStream) {
        while let Some((head, asks_to_switch)) = self.read(&mut stream).await {
            let answer = self.0.lock().unwrap().answer.clone();
            if stream.write_all(&answer).await.is_err() {
                return;
            }
            let (old, switches) =
                (answer.starts_with(b"HTTP/1.0"), answer.starts_with(b"HTTP/1.1 101"));
            if old || switches {
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
                if !rest.is_empty() && !asks_to_switch {
                    self.blame(format!(
                        "used again after {:?}: {head:?} then {:?}",
                        lossy(&answer),
                        lossy(&rest)
                    ));
                }
                return;
            }
        }
    }

    /// Reads one request, with its body. `None` at the end of the connection.
    async fn read(&self, stream: &mut DuplexStream) -> Option<(String, bool)> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else {
                if !head.is_empty() {
                    self.blame(format!("half a head: {:?}", lossy(&head)));
                }
                return None;
            };
            head.push(byte);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let (framing, asks_to_switch) = self.note(&head)?;
        match framing {
            Framing::Length(length) => {
                skip(stream, length).await?;
            }
            Framing::Chunked => {
                if let Err(broken) = self.chunks(stream).await? {
                    self.blame(format!("{broken}: {head:?}"));
                    return None;
                }
            }
        }
        Some((head, asks_to_switch))
    }

    /// Checks a head. Returns `None` if the length of the body is unknown.
    fn note(&self, head: &str) -> Option<(Framing, bool)> {
        let mut state = self.0.lock().unwrap();
        state.requests += 1;
        match check_request(head) {
            Ok((framing, number, asks_to_switch)) => {
                if !state.numbers.insert(number) {
                    state.broken.push(format!("a number twice: {head:?}"));
                }
                Some((framing, asks_to_switch))
            }
            Err(broken) => {
                state.broken.push(format!("{broken}: {head:?}"));
                None
            }
        }
    }

    async fn chunks(&self, stream: &mut DuplexStream) -> Option<Result<(), String>> {
        loop {
            let size = line(stream).await?;
            let Ok(size) = usize::from_str_radix(&size, 16) else {
                return Some(Err(format!("a chunk of {size:?}")));
            };
            if size == 0 {
                break;
            }
            skip(stream, size).await?;
            if !line(stream).await?.is_empty() {
                return Some(Err("a chunk without an end".into()));
            }
        }
        loop {
            let trailer = line(stream).await?;
            if trailer.is_empty() {
                return Some(Ok(()));
            }
            if !trailer.starts_with("x-sum: ") {
                return Some(Err(format!("a trailer: {trailer:?}")));
            }
        }
    }
}

/// Reads `length` bytes in chunks, so that an announced length allocates nothing. Returns `None` if
/// the stream ends before.
async fn skip(stream: &mut DuplexStream, length: usize) -> Option<()> {
    let length = length as u64;
    let skipped = tokio::io::copy(&mut stream.take(length), &mut tokio::io::sink()).await.ok()?;
    (skipped == length).then_some(())
}

async fn line(stream: &mut DuplexStream) -> Option<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await.ok()?);
    }
    Some(lossy(&line[..line.len() - 2]))
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub enum Framing {
    Length(usize),
    Chunked,
}

/// Returns the variable to which CGI servers map a name.
fn plain(name: &str) -> String {
    name.chars()
        .map(
            |letter| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '-' },
        )
        .collect()
}

/// Names and values.
type Fields<'a> = Vec<(&'a str, &'a str)>;

/// Splits a head. Every line ends with CRLF, and nothing else does.
fn lines(head: &str) -> Result<(&str, Fields<'_>), String> {
    let head = head.strip_suffix("\r\n\r\n").ok_or("no end")?;
    let mut lines = head.split("\r\n");
    let first = lines.next().ok_or("no first line")?;
    let is_control = |letter: char| letter.is_ascii_control() && letter != '\t';
    if head.split("\r\n").any(|line| line.contains(is_control)) {
        return Err("a control character".into());
    }
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(':').ok_or(format!("no header: {line:?}"))?;
        let is_token =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err(format!("no name: {name:?}"));
        }
        Ok((name, value.trim_matches([' ', '\t'])))
    });
    Ok((first, headers.collect::<Result<_, String>>()?))
}

/// Header names, in any spelling, that must not cross in either direction.
const NEVER: &[&str] = &["keep-alive", "proxy-connection", "http2-settings"];

fn check_request(head: &str) -> Result<(Framing, String, bool), String> {
    let (first, headers) = lines(head)?;
    let [method, target, "HTTP/1.1"] = first.split(' ').collect::<Vec<_>>()[..] else {
        return Err("the first line".into());
    };
    if !(target.starts_with('/') || target == "*") {
        return Err("the target".into());
    }
    let all = |name: &str| {
        headers.iter().filter(|header| header.0 == name).map(|header| header.1).collect::<Vec<_>>()
    };
    let at_most = |name: &str, allowed: &[&str]| match all(name)[..] {
        [] => Ok(None),
        [value] if allowed.is_empty() || allowed.contains(&value) => Ok(Some(value)),
        ref values => Err(format!("{name}: {values:?}")),
    };
    let exactly = |name: &str, expected: &str| match all(name)[..] {
        [value] if value == expected => Ok(()),
        ref values => Err(format!("{name}: {values:?}")),
    };
    for (name, _) in &headers {
        let plain = plain(name);
        let is_alias = plain != *name;
        let is_own = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"].contains(name);
        let is_identity = [
            "x-real-ip",
            "remote-user",
            "x-auth-request-user",
            "x-envoy-internal",
            "ssl-client-cert",
            "proxy",
            "proxy-authorization",
            "forwarded",
        ];
        let one_spelling = [
            "host",
            "connection",
            "te",
            "transfer-encoding",
            "content-length",
            "upgrade",
            "via",
            "cookie",
            "expect",
        ];
        if NEVER.contains(&plain.as_str())
            || is_identity.contains(&plain.as_str())
            || plain.starts_with("x-forwarded") && !is_own
            || is_alias && one_spelling.contains(&plain.as_str())
        {
            return Err(format!("{name} has crossed"));
        }
    }
    exactly("x-forwarded-for", "10.0.0.1")?;
    exactly("x-forwarded-proto", "http")?;
    let host = at_most("host", &[])?.filter(|host| !host.is_empty()).ok_or("no host")?;
    exactly("x-forwarded-host", host)?;
    at_most("cookie", &[])?;
    let vias = all("via").join(", ");
    let own = vias
        .split(|letter| ", \t()".contains(letter))
        .filter(|word| word.eq_ignore_ascii_case(NAME))
        .count();
    if own != 1 || !vias.ends_with(NAME) {
        return Err(format!("via: {vias}"));
    }
    let te = at_most("te", &["trailers"])?.is_some();
    let upgrade = at_most("upgrade", &["websocket"])?.is_some();
    let connection = at_most("connection", &["te", "upgrade", "te, upgrade"])?.unwrap_or_default();
    if connection.contains("te") != te || connection.contains("upgrade") != upgrade {
        return Err(format!("connection: {connection}"));
    }
    let chunked = at_most("transfer-encoding", &["chunked"])?.is_some();
    let length = at_most("content-length", &[])?;
    if chunked && length.is_some() {
        return Err("two framings".into());
    }
    if upgrade
        && (method != "GET"
            || chunked
            || length.is_some_and(|length| length != "0")
            || all("sec-websocket-key").len() != 1)
    {
        return Err("no WebSocket".into());
    }
    let number = at_most(NUMBER, &[])?.ok_or("no number")?.to_owned();
    let framing = match length {
        Some(length) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
            Framing::Length(length.parse().map_err(|_| "a long body")?)
        }
        Some(_) => return Err("the length".into()),
        None if chunked => Framing::Chunked,
        None => Framing::Length(0),
    };
    Ok((framing, number, upgrade))
}

/// Checks the head of the first response on a connection of HTTP/1. `switched`: the gateway has
/// granted a tunnel, be it to a later request.
pub fn check_response(bytes: &[u8], switched: bool) -> Result<(), String> {
    let mut text = lossy(bytes);
    while let Some(rest) = text.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n") {
        text = rest.to_owned();
    }
    if text.is_empty() {
        return Ok(());
    }
    let end = text.find("\r\n\r\n").ok_or_else(|| format!("half a head: {text:?}"))?;
    let head = &text[..end + 4];
    let broken = |what: &str| Err(format!("{what}: {head:?}"));
    let (first, headers) = lines(head).map_err(|what| format!("{what}: {head:?}"))?;
    let status = first
        .strip_prefix("HTTP/1.1 ")
        .or_else(|| first.strip_prefix("HTTP/1.0 "))
        .and_then(|rest| rest.get(..3));
    let Some(status) = status.filter(|status| status.bytes().all(|byte| byte.is_ascii_digit()))
    else {
        return broken("the first line");
    };
    if status == "101" && !switched || status.starts_with('1') && status != "101" {
        return broken("the status");
    }
    let all = |name: &str| {
        headers
            .iter()
            .filter(|header| header.0.eq_ignore_ascii_case(name))
            .map(|header| header.1)
            .collect::<Vec<_>>()
    };
    for (name, _) in &headers {
        let name = name.to_ascii_lowercase();
        if NEVER.contains(&name.as_str())
            || ["te", "proxy-authenticate", "x-accel-redirect", "x-sendfile"]
                .contains(&name.as_str())
        {
            return broken("a header has crossed");
        }
    }
    let upgrades = switched || status == "426";
    if all("upgrade").iter().any(|upgrade| !upgrades || *upgrade != "websocket") {
        return broken("upgrade");
    }
    let options = all("connection").join(", ");
    if options.split(", ").any(|option| {
        !(["", "close", "keep-alive"].contains(&option) || option == "upgrade" && upgrades)
    }) {
        return broken("connection");
    }
    match (&all("transfer-encoding")[..], &all("content-length")[..]) {
        (["chunked"], []) | ([], []) => Ok(()),
        ([], [length])
            if length.bytes().all(|byte| byte.is_ascii_digit()) && !length.is_empty() =>
        {
            Ok(())
        }
        _ => broken("the framing"),
    }
}
