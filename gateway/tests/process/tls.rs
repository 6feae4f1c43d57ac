//! TLS to clients and to agents: certificates that change, and agents that are not who they were.

use crate::scene::{Gateway, Platform, name, read_to_end};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::WebPkiClientVerifier,
};
use serde_json::json;
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};
use support::net::{Agent, soon};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};
use uuid::Uuid;

/// An authority, and the folder in which its certificates are.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    folder: TempDir,
}

/// A certificate with its key, in PEM.
struct Issued {
    certificate: String,
    key: String,
}

impl Issued {
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.certificate.as_bytes())
            .collect::<Result<_, _>>()
            .unwrap()
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap()
    }
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ca.pem"), &pem).unwrap();
        Self { issuer: Issuer::new(params, key), pem, folder }
    }

    fn issue(&self, name: &str) -> Issued {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Issued { certificate, key: key.serialize_pem() }
    }

    fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        roots
    }

    /// Returns the keys of `server.tls`, for files with this certificate.
    fn server(&self, issued: &Issued) -> String {
        let (certificate, key) = files(self.folder.path());
        write(self.folder.path(), issued);
        format!("server.tls = {{ certificate = {certificate:?}, key = {key:?} }}")
    }

    fn client(&self, own: Option<&Issued>) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots());
        match own {
            Some(own) => builder.with_client_auth_cert(own.chain(), own.key()).unwrap(),
            None => builder.with_no_client_auth(),
        }
    }
}

fn files(folder: &Path) -> (PathBuf, PathBuf) {
    (folder.join("server.pem"), folder.join("server.key"))
}

fn write(folder: &Path, issued: &Issued) {
    let (certificate, key) = files(folder);
    fs::write(certificate, &issued.certificate).unwrap();
    fs::write(key, &issued.key).unwrap();
}

async fn connect(gateway: &Gateway, config: ClientConfig) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("gateway.example").unwrap();
    soon(TlsConnector::from(Arc::new(config)).connect(name, gateway.connect().await)).await
}

/// Returns the certificate of a connection.
fn presented(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

async fn get(stream: &mut TlsStream<TcpStream>, session: Uuid) -> String {
    let request = format!("GET /sessions/{session}/head HTTP/1.1\r\nHost: a\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    while !said.ends_with(b"\r\n\r\n") {
        said.push(soon(stream.read_u8()).await.unwrap());
    }
    let head = String::from_utf8(said).unwrap();
    let length = head.split_once("content-length: ").unwrap().1.lines().next().unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    soon(stream.read_exact(&mut body)).await.unwrap();
    head + &String::from_utf8(body).unwrap()
}

#[tokio::test]
async fn certificates_are_loaded_again_and_bad_ones_are_not() {
    let (platform, agent, authority) =
        (Platform::start().await, Agent::start(1).await, Authority::new());
    let [first, second, third] = [(); 3].map(|()| authority.issue("gateway.example"));
    let gateway = Gateway::start(&platform, &authority.server(&first)).await;
    let session = gateway.session(platform.workspace(&agent)).await;
    let folder = authority.folder.path();
    let connect = async || connect(&gateway, authority.client(None)).await.unwrap();
    let of = |issued: &Issued| issued.chain()[0].to_vec();

    let mut old = connect().await;
    assert_eq!(presented(&old), of(&first));
    let said = get(&mut old, session).await;
    assert!(
        said.starts_with("HTTP/1.1 200 ") && said.contains("x-forwarded-proto: https"),
        "{said}"
    );

    write(folder, &second);
    gateway.signal("HUP");
    gateway.line("certificates were loaded").await;
    assert_eq!(presented(&connect().await), of(&second));
    assert!(get(&mut old, session).await.starts_with("HTTP/1.1 200 "), "open connections go on");

    // The certificate of one with the key of the other, as between two writes.
    let refused = "certificates cannot be used; the old ones stay";
    fs::write(files(folder).0, &third.certificate).unwrap();
    gateway.signal("HUP");
    let line = gateway.line(refused).await;
    assert_eq!(line["level"], "WARN");
    assert!(line["error"].as_str().unwrap().contains("cannot be used: "), "{line}");
    assert_eq!(presented(&connect().await), of(&second));
    // Without a signal, the change is noticed by itself.
    fs::write(files(folder).1, &third.key).unwrap();
    gateway.measures("gateway_certificates_loads_total{result=\"loaded\"}", 2.0).await;
    assert_eq!(presented(&connect().await), of(&third));
    fs::remove_file(files(folder).0).unwrap();
    gateway.signal("HUP");
    gateway
        .line_with(refused, |line| line["error"].as_str().unwrap().contains("cannot be read"))
        .await;
    assert_eq!(presented(&connect().await), of(&third));
}

#[tokio::test]
async fn clients_present_certificates_if_the_gateway_wants_them() {
    let (platform, agent, authority) =
        (Platform::start().await, Agent::start(1).await, Authority::new());
    let keys = authority.server(&authority.issue("gateway.example"));
    let keys = keys.replace(" }", &format!(", client_ca = {:?} }}", authority.ca()));
    let gateway = Gateway::start(&platform, &keys).await;
    let session = gateway.session(platform.workspace(&agent)).await;
    let stranger = Authority::new().issue("client");
    for own in [None, Some(&stranger)] {
        // With TLS 1.3, a client hears of it with the first read.
        let refused = match connect(&gateway, authority.client(own)).await {
            Ok(mut stream) => soon(stream.read_u8()).await.is_err(),
            Err(_) => true,
        };
        assert!(refused);
    }
    gateway.measures("gateway_handshakes_failed_total", 2.0).await;
    let own = authority.issue("client");
    let mut stream = connect(&gateway, authority.client(Some(&own))).await.unwrap();
    assert!(get(&mut stream, session).await.starts_with("HTTP/1.1 200 "));
    // Who speaks no TLS is no client.
    let said = gateway.raw("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(!said.contains("HTTP"), "{said}");
}

/// TLS in front of an agent. The certificate and the agent can be exchanged.
struct Front {
    address: String,
    inner: Arc<Mutex<(Arc<ServerConfig>, String)>>,
    open: Arc<Mutex<JoinSet<()>>>,
}

impl Front {
    async fn start(config: ServerConfig, agent: &Agent) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let to = agent.target.address.as_deref().unwrap().to_owned();
        let inner = Arc::new(Mutex::new((Arc::new(config), to)));
        let open = Arc::new(Mutex::new(JoinSet::new()));
        let front = Self { address, inner: Arc::clone(&inner), open: Arc::clone(&open) };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (config, to) = inner.lock().unwrap().clone();
                open.lock().unwrap().spawn(async move {
                    let Ok(mut client) = TlsAcceptor::from(config).accept(stream).await else {
                        return;
                    };
                    let mut agent = TcpStream::connect(to).await.unwrap();
                    let _ = copy_bidirectional(&mut client, &mut agent).await;
                });
            }
        });
        front
    }

    /// Another agent listens here now; the connections of the one before are closed.
    async fn becomes(&self, config: ServerConfig, agent: &Agent) {
        let to = agent.target.address.as_deref().unwrap().to_owned();
        *self.inner.lock().unwrap() = (Arc::new(config), to);
        let mut open = std::mem::take(&mut *self.open.lock().unwrap());
        open.shutdown().await;
    }

    /// Returns what the platform says of the agent.
    fn running(&self, agent: &Agent) -> serde_json::Value {
        let generation = agent.target.generation.unwrap().get();
        json!({
            "status": "running", "agent": name(agent), "address": self.address,
            "generation": generation,
        })
    }
}

fn server(authority: &Authority, agent: &Agent, is_mutual: bool) -> ServerConfig {
    let issued = authority.issue(&format!("{}.agents.internal", name(agent)));
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = if is_mutual {
        let roots = Arc::new(authority.roots());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
        builder.with_client_cert_verifier(verifier.unwrap())
    } else {
        builder.with_no_client_auth()
    };
    builder.with_single_cert(issued.chain(), issued.key()).unwrap()
}

#[tokio::test]
async fn an_address_that_another_agent_has_now_is_not_mistaken_for_the_agent() {
    let (platform, authority) = (Platform::start().await, Authority::new());
    let (first, second) = (Agent::start(1).await, Agent::start(2).await);
    let front = Front::start(server(&authority, &first, false), &first).await;
    let gateway = Gateway::start(&platform, &format!("agents.tls.ca = {:?}", authority.ca())).await;
    let workspace = Uuid::new_v4();
    platform.says(workspace, front.running(&first));
    let session = gateway.session(workspace).await;
    assert_eq!(gateway.get(session, "/").await.said(), (200, &*name(&first)));

    // The address is given to the next agent, and the platform does not know it yet.
    front.becomes(server(&authority, &second, false), &second).await;
    gateway.revalidate(workspace).await;
    let refused = gateway.get(session, "/").await;
    assert_eq!(refused.refusal(), (502, "wrong_agent".into()));
    let failed = gateway.line("call failed").await;
    let error = failed["error"].as_str().unwrap();
    let expected = "another agent listens at the address of the dialed one: its certificate names";
    assert!(error.contains(expected), "{error}");
    assert!(error.contains(&name(&first)) && error.contains(&name(&second)), "{error}");
    assert_eq!((first.requests(), second.accepted()), (1, 0), "nothing was sent to a stranger");

    platform.says(workspace, front.running(&second));
    assert_eq!(gateway.get(session, "/").await.said(), (200, &*name(&second)));
    assert_eq!((first.requests(), second.requests()), (1, 1));
}

#[tokio::test]
async fn the_gateway_presents_its_certificate_to_agents_that_want_one() {
    let (platform, authority) = (Platform::start().await, Authority::new());
    let agent = Agent::start(1).await;
    let front = Front::start(server(&authority, &agent, true), &agent).await;
    let workspace = Uuid::new_v4();
    platform.says(workspace, front.running(&agent));
    write(authority.folder.path(), &authority.issue("gateway"));
    let (certificate, key) = files(authority.folder.path());
    let ca = format!("agents.tls.ca = {:?}", authority.ca());
    let without = Gateway::start(&platform, &ca).await;
    let session = without.session(workspace).await;
    // With TLS 1.3, the agent refuses after the connection was made, perhaps after the request.
    assert!([502, 503].contains(&without.get(session, "/").await.status));
    assert_eq!(agent.requests(), 0);
    let keys = format!("{ca}\nagents.tls.certificate = {certificate:?}\nagents.tls.key = {key:?}");
    let with = Gateway::start(&platform, &keys).await;
    let session = with.session(workspace).await;
    assert_eq!(with.get(session, "/").await.said(), (200, &*name(&agent)));
}

#[tokio::test]
async fn an_agent_of_another_authority_is_not_trusted() {
    let (platform, authority, other) =
        (Platform::start().await, Authority::new(), Authority::new());
    let agent = Agent::start(1).await;
    let front = Front::start(server(&other, &agent, false), &agent).await;
    let workspace = Uuid::new_v4();
    platform.says(workspace, front.running(&agent));
    let gateway = Gateway::start(&platform, &format!("agents.tls.ca = {:?}", authority.ca())).await;
    let session = gateway.session(workspace).await;
    assert_eq!(gateway.get(session, "/").await.refusal(), (502, "unreachable".into()));
    let failed = gateway.line("call failed").await;
    assert!(failed["error"].as_str().unwrap().contains("invalid peer certificate"), "{failed}");
    let mut stream = gateway.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").await.unwrap();
    assert!(read_to_end(&mut stream).await.starts_with("HTTP/1.1 404 "));
}
