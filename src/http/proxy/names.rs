//! Sets of header names.

use std::borrow::Cow;

/// Headers of requests that a [`Hop`](super::Hop) removes, beside `Forwarded` and the
/// `X-Forwarded-` family: proxies set them to describe the client, its address and its original
/// request, and applications trust them. A name that ends with `*` is a prefix.
///
/// The list does not contain headers with a client's own credentials, which the agent verifies
/// (`Authorization`, `Cookie`, `X-Auth-Token`, `X-Access-Token`, `X-Api-Key`), and those of
/// tracing.
pub const IDENTITY_HEADERS: &[&str] = &[
    // The client's identity: the convention of CGI, and proxies that follow it (Authelia,
    // Kubernetes, Home Assistant).
    "remote-*",
    "x-remote-*",
    "auth-user",
    "auth-type",
    "x-user",
    "x-username",
    "x-user-id",
    "x-user-name",
    "x-user-email",
    "x-user-group*",
    "x-user-role*",
    "x-userid",
    "x-userinfo",
    "x-authenticated-*",
    "x-proxy-user",
    "impersonate-*",
    // oauth2-proxy, Keycloak's gatekeeper, authentik, Pomerium, Vouch, Grafana's convention,
    // Teleport, Tailscale, exe.dev.
    "gap-auth",
    "x-auth-request-*",
    "x-auth-user*",
    "x-auth-subject",
    "x-auth-email",
    "x-auth-group*",
    "x-auth-role*",
    "x-authentik-*",
    "x-pomerium-*",
    "x-vouch-*",
    "x-webauth-*",
    "teleport-*",
    "tailscale-*",
    "x-tailscale-*",
    "x-exedev-*",
    // Kong, WSO2, Google's endpoints, AWS, Azure, App Engine, Cloudflare.
    "x-consumer-*",
    "x-credential-*",
    "x-anonymous-consumer",
    "x-jwt-assertion",
    "x-id-token",
    "x-endpoint-api-userinfo",
    "x-apigateway-api-userinfo",
    "x-goog-authenticated-user-*",
    "x-goog-iap-*",
    "x-appengine-*",
    "x-amzn-oidc-*",
    "x-amzn-mtls-*",
    "x-ms-client-principal*",
    "x-ms-token-*",
    "x-arr-*",
    "cf-access-*",
    // Apache's modules, Shibboleth, SiteMinder, Oracle, IBM.
    "oidc-*",
    "mellon-*",
    "cas-*",
    "shib-*",
    "eppn",
    "sm-*",
    "oam-*",
    "osso-*",
    "iv-*",
    // Certificates of clients (RFC 9440, and before it).
    "client-cert*",
    "ssl-client-*",
    "sslclientcert*",
    "x-client-cert*",
    "x-client-dn",
    "x-client-s-dn",
    "x-client-verify",
    "x-mtls-*",
    "x-ssl*",
    "x-tls-*",
    "l5d-*",
    // The client's address.
    "cf-connecting-*",
    "cf-pseudo-ipv4",
    "client-ip",
    "do-connecting-ip",
    "fastly-client-ip",
    "fly-client-ip",
    "proxy-client-ip",
    "true-client-ip",
    "wl-proxy-client-*",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-*",
    "x-nf-client-connection-ip",
    "x-originating-ip",
    "x-proxyuser-ip",
    "x-real-*",
    "x-vercel-forwarded-for",
    // The original request.
    "cf-visitor",
    "front-end-https",
    "x-host",
    "x-http-host-override",
    "x-original-*",
    "x-rewrite-url",
    "x-scheme",
    "x-script-name",
    "x-url-scheme",
    // CGI makes `HTTP_PROXY` of it, which programs take for the proxy that they must use.
    "proxy",
];

/// Headers of responses that a [`Hop`](super::Hop) removes: proxies take them for commands. An
/// agent could have the proxy in front of the gateway send a file of its own, or a request of its
/// own.
///
/// A name that ends with `*` stands for every name that begins with the rest. `X-Accel-Buffering`
/// and its like, which change how a response is passed on, are not listed.
pub const COMMANDS_TO_PROXIES: &[&str] = &[
    "proxy-authenticate",
    "proxy-authentication-info",
    "x-accel-redirect",
    "x-envoy-*",
    "x-lighttpd-send-*",
    "x-reproxy-*",
    "x-sendfile",
    "x-sendfile-*",
];

/// A set of header names and prefixes. Names must be normalized by [`map`].
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    /// Sorted.
    whole: Vec<Box<str>>,
    /// Sorted; none is a prefix of another one.
    beginnings: Vec<Box<str>>,
    starts: Starts,
}

/// A Bloom filter over the first bytes of the names, so that most headers need no search.
#[derive(Clone, Debug, Default)]
struct Starts {
    bits: [u64; 16],
    /// A listed name is shorter than the filter's prefix, so the filter is disabled.
    any: bool,
}

impl Starts {
    const LENGTH: usize = 3;

    fn bit(name: &str) -> Option<usize> {
        let start = name.as_bytes().get(..Self::LENGTH)?;
        // Letters differ in their lowest five bits, so a simple polynomial hash suffices.
        let spread = start
            .iter()
            .fold(0, |sum: usize, byte| sum.wrapping_mul(37).wrapping_add(usize::from(*byte)));
        Some(spread % 1024)
    }

    fn add(&mut self, name: &str) {
        match Self::bit(name) {
            Some(bit) => self.bits[bit / 64] |= 1 << (bit % 64),
            None => self.any = true,
        }
    }

    fn may_have(&self, name: &str) -> bool {
        self.any || Self::bit(name).is_some_and(|bit| self.bits[bit / 64] & 1 << (bit % 64) != 0)
    }
}

impl Names {
    pub(super) fn new(names: &[&str]) -> Self {
        let mut all = Self::default();
        for name in names {
            all.add(name);
        }
        all
    }

    /// Adds a name, or a prefix that ends with `*`.
    pub(super) fn add(&mut self, name: &str) {
        let name = name.to_ascii_lowercase();
        match name.strip_suffix('*') {
            Some(beginning) => {
                let beginning = map(beginning);
                self.starts.add(&beginning);
                if !begins_with(&self.beginnings, &beginning) {
                    self.beginnings.retain(|longer| !longer.starts_with(&*beginning));
                    let at = self.beginnings.partition_point(|other| **other < *beginning);
                    self.beginnings.insert(at, beginning.into());
                }
            }
            None => {
                let name = map(&name);
                self.starts.add(&name);
                if let Err(at) = self.whole.binary_search_by(|other| (**other).cmp(&name)) {
                    self.whole.insert(at, name.into());
                }
            }
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.starts.may_have(name)
            && (self.whole.binary_search_by(|other| (**other).cmp(name)).is_ok()
                || begins_with(&self.beginnings, name))
    }
}

/// Returns `true` if a name begins with one of the prefixes. Since none is a prefix of another one,
/// only the greatest one that is not above the name can match.
fn begins_with(beginnings: &[Box<str>], name: &str) -> bool {
    let after = beginnings.partition_point(|beginning| **beginning <= *name);
    after.checked_sub(1).is_some_and(|at| name.starts_with(&*beginnings[at]))
}

/// Replaces every character except letters and digits by a hyphen: CGI servers cannot distinguish
/// such names. Expects lower case.
pub(super) fn map(name: &str) -> Cow<'_, str> {
    let is_plain = |byte: u8| byte == b'-' || byte.is_ascii_alphanumeric();
    if name.bytes().all(is_plain) {
        return Cow::Borrowed(name);
    }
    Cow::Owned(
        name.bytes().map(|byte| if is_plain(byte) { char::from(byte) } else { '-' }).collect(),
    )
}

/// Returns `true` if the gateway has a rule for this header, so that other spellings of it are
/// removed.
pub(super) fn has_a_rule(name: &str) -> bool {
    super::fields::HOP_BY_HOP.iter().any(|hop| hop == name)
        || matches!(
            name,
            "authorization"
                | "content-length"
                | "content-type"
                | "cookie"
                | "expect"
                | "host"
                | "max-forwards"
                | "proxy-authorization"
                | "trailer"
                | "via"
        )
        || name.starts_with("sec-websocket-")
}

#[cfg(test)]
mod tests {
    use super::{IDENTITY_HEADERS, Names, map};

    #[test]
    fn names_match_exactly_or_by_prefix() {
        let names = Names::new(&["x-b-*", "x-a", "x-b-longer-*", "X_C_*", "x-b", "z*"]);
        for found in ["x-a", "x-b", "x-b-", "x-b-c", "x-b-longer-d", "x-c-d", "z", "zz"] {
            assert!(names.has(found), "{found}");
        }
        for missed in ["", "x", "x-", "x-a-", "x-ab", "x-bb", "x-c", "y", "w"] {
            assert!(!names.has(missed), "{missed}");
        }
    }

    #[test]
    fn every_name_of_the_default_is_in_lower_case_and_found() {
        let names = Names::new(IDENTITY_HEADERS);
        for name in IDENTITY_HEADERS {
            assert_eq!(map(name.trim_end_matches('*')), name.trim_end_matches('*'));
            assert_eq!(*name, name.to_ascii_lowercase());
            assert!(names.has(&name.replace('*', "x")), "{name}");
        }
    }

    #[test]
    fn names_that_cgi_cannot_distinguish_map_to_one() {
        for name in ["x-real-ip", "x_real_ip", "x.real.ip", "x~real!ip"] {
            assert_eq!(map(name), "x-real-ip");
        }
    }
}
