//! Requests and responses that are nearly valid.

/// SplitMix64, which yields the same numbers for the same seed on every platform.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    pub fn pick<'a, T: ?Sized>(&mut self, choices: &[&'a T]) -> &'a T {
        choices[self.below(choices.len())]
    }
}

pub const METHODS: &[&str] =
    &["GET", "GET", "POST", "HEAD", "OPTIONS", "TRACE", "DELETE", "PUT", "QUERY", "CONNECT", "X!"];

const TARGETS: &[&str] = &[
    "/",
    "/a",
    "/a?b=c",
    "/?",
    "//",
    "/%00%0d%0a",
    "/a/../b",
    "*",
    "http://app.example/a",
    "http://app.example",
    "http://me@app.example/",
    "https://other.example:1/x",
    "app.example:22",
    "/\u{e9}",
    "/a\tb",
    "",
    "/{}|\"<>^`",
    "?a",
    "/#f",
    "http://[::1]:80/",
    "http:///",
    "/a HTTP/1.1\r\nhost: evil\r\n\r\nGET /b",
];

const HEADERS: &[&str] = &[
    "host",
    "connection",
    "connection",
    "keep-alive",
    "proxy-connection",
    "http2-settings",
    "proxy-authorization",
    "te",
    "transfer-encoding",
    "content-length",
    "upgrade",
    "upgrade",
    "expect",
    "via",
    "max-forwards",
    "trailer",
    "cookie",
    "cookie",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-prefix",
    "x-forwarded-user",
    "x-real-ip",
    "remote-user",
    "x-auth-request-user",
    "x-envoy-internal",
    "ssl-client-cert",
    "proxy",
    "x-mine",
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-accept",
    "authorization",
    "content-type",
    "fuzz-number",
    "x-accel-redirect",
    "x-sendfile",
    "proxy-authenticate",
    "date",
    "set-cookie",
];

const VALUES: &[&str] = &[
    "",
    "0",
    "1",
    "2",
    "5",
    "5, 5",
    "5, 6",
    "+5",
    "05",
    "99999999999999999999",
    "close",
    "keep-alive",
    "upgrade",
    "Upgrade",
    "te",
    "te, upgrade",
    "upgrade, http2-settings",
    "host",
    "content-length",
    "x-mine",
    "via, x-forwarded-for",
    "cookie, fuzz-number",
    "transfer-encoding",
    "chunked",
    "gzip",
    "gzip, chunked",
    "chunked, chunked",
    "identity",
    "\tchunked ",
    "trailers",
    "trailers;q=0, gzip",
    "websocket",
    "WebSocket",
    "h2c",
    "h2c, websocket",
    "websocket/13",
    "100-continue",
    "1.1 gate.example",
    "1.1 a (gate.example",
    "1.0 a, 2 b",
    "many",
    "-1",
    "a=b",
    "a=b; c=d",
    "app.example",
    "app.example:80",
    "a,b",
    "me@app.example",
    "[::1]",
    "evil example",
    "for=6.6.6.6",
    "6.6.6.6",
    "dGhlIHNhbXBsZSBub25jZQ==",
    "13",
    "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
    "x-sum",
    "x-sum, x-forwarded-user",
    ",",
    ";",
    "\"",
];

/// Returns the name of a header, sometimes in another spelling.
fn name(random: &mut Random) -> String {
    let name = random.pick(HEADERS);
    match random.below(12) {
        0 => name.replacen('-', "_", 1),
        1 => name.replace('-', "_"),
        2 => name.replace('-', "."),
        3 => name.to_uppercase(),
        4 => format!("{name}{}", random.pick(&["_", " ", "-", "\t", "\u{e9}", "x"])),
        _ => name.to_owned(),
    }
}

fn value(random: &mut Random) -> Vec<u8> {
    match random.below(10) {
        0 => (0..random.below(20)).map(|_| (random.next() >> 32) as u8).collect(),
        1 => format!("{}, {}", random.pick(VALUES), random.pick(VALUES)).into_bytes(),
        _ => random.pick(VALUES).as_bytes().to_vec(),
    }
}

fn headers(random: &mut Random, into: &mut Vec<u8>) {
    for _ in 0..random.below(10) {
        into.extend(name(random).into_bytes());
        into.extend(b": ");
        into.extend(value(random));
        into.extend(if random.one_in(60) { &b"\n"[..] } else { b"\r\n" });
    }
}

/// Returns valid headers, for a client that builds its headers.
pub fn valid_headers(random: &mut Random) -> Vec<(http::HeaderName, http::HeaderValue)> {
    let pairs = (0..random.below(12)).map(|_| (name(random), value(random)));
    let pairs = pairs.collect::<Vec<_>>().into_iter();
    pairs
        .filter_map(|(name, value)| {
            Some((name.parse().ok()?, http::HeaderValue::from_bytes(&value).ok()?))
        })
        .collect()
}

fn body(random: &mut Random, into: &mut Vec<u8>) {
    match random.below(6) {
        0 => into.extend(b"content-length: 5\r\n\r\nsmall"),
        1 => into.extend(b"transfer-encoding: chunked\r\n\r\n5\r\nsmall\r\n0\r\n\r\n"),
        2 => into.extend(b"transfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n5;x=y\r\nsmall\r\n0\r\nx-sum: 1\r\nx-forwarded-user: root\r\n\r\n"),
        3 => into.extend(b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        _ => into.extend(b"\r\n"),
    }
}

/// Flips, inserts and removes some bytes.
fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..random.below(4) {
        let at = random.below(bytes.len().max(1));
        match random.below(3) {
            0 if at < bytes.len() => bytes[at] = (random.next() >> 32) as u8,
            1 if at < bytes.len() => drop(bytes.remove(at)),
            _ => bytes.insert(
                at.min(bytes.len()),
                *random
                    .pick(&[b"\r", b"\n", b"\0", b" ", b":", b",", b"\t", b"("])
                    .first()
                    .unwrap_or(&b' '),
            ),
        }
    }
}

/// Returns the bytes of one HTTP/1 request, sometimes of more.
pub fn request(random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    if random.one_in(8) {
        let start = "GET /a HTTP/1.1\r\nhost: app.example\r\nconnection: upgrade\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let upgrade =
            random.pick(&["websocket", "WebSocket", "h2c", "h2c, websocket", "websocket, h2c"]);
        return format!("{start}upgrade: {upgrade}\r\n\r\nfollows").into_bytes();
    }
    for _ in 0..1 + random.below(2) {
        let version = random.pick(&[
            "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/1.2", "HTTP/2.0",
        ]);
        let target = random.pick(TARGETS);
        let target = if random.one_in(2) { "/a" } else { target };
        bytes.extend(format!("{} {target} {version}\r\n", random.pick(METHODS)).into_bytes());
        if !random.one_in(8) {
            bytes.extend(b"host: app.example\r\n");
        }
        if random.one_in(8) {
            bytes.extend(
                b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
            );
        }
        headers(random, &mut bytes);
        body(random, &mut bytes);
    }
    if random.one_in(4) {
        mutate(random, &mut bytes);
    }
    bytes
}

/// Returns the bytes of a response.
pub fn answer(random: &mut Random) -> Vec<u8> {
    if random.one_in(6) {
        let (upgrade, accept) = (
            random.pick(&["websocket", "WebSocket", "h2c", "websocket, h2c", ""]),
            random.pick(VALUES),
        );
        let accept = if random.one_in(2) { "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" } else { accept };
        let head = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n";
        return format!("{head}upgrade: {upgrade}\r\nsec-websocket-accept: {accept}\r\n\r\n")
            .into_bytes();
    }
    // Complete responses, after which a connection could be reused.
    if random.one_in(8) {
        return b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok"
            .to_vec();
    }
    if random.one_in(8) {
        return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
            .to_vec();
    }
    let version = random.pick(&["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0"]);
    let status = random.pick(&[
        "200 OK",
        "200 OK",
        "101 Switching",
        "100 Continue",
        "103 x",
        "204 No",
        "304 x",
        "407 x",
        "426 x",
        "500 x",
        "999 x",
        "0 x",
    ]);
    let mut bytes = format!("{version} {status}\r\n").into_bytes();
    if random.one_in(4) {
        bytes.extend(
            b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n",
        );
    }
    headers(random, &mut bytes);
    body(random, &mut bytes);
    if random.one_in(4) {
        mutate(random, &mut bytes);
    }
    bytes
}
