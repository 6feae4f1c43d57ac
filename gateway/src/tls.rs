//! TLS from files that may change while the gateway runs.

use crate::{
    config::{AgentsTls, Protocol, ServerTls},
    log::with_sources,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    server::{VerifierBuilderError, WebPkiClientVerifier},
};
use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Why files are no configuration of TLS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file could not be read.
    #[error("{}: cannot be read", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file has no certificate or no key in PEM.
    #[error("{}: has no certificate or key in PEM", file.display())]
    Pem {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: pem::Error,
    },
    /// The certificate does not fit the key, or one of them is malformed.
    #[error("the certificate or the key cannot be used")]
    Certificate(#[from] rustls::Error),
    /// The certificates of authorities cannot be used.
    #[error("the certificates of authorities cannot be used")]
    Authorities(#[from] VerifierBuilderError),
    /// The system has no certificates of authorities.
    #[error("the system has no certificates of authorities; set `ca`")]
    NoAuthorities,
}

/// The contents of the files, in the order of their paths.
type Contents = Vec<Vec<u8>>;
type Build<T> = Box<dyn Fn(&[PathBuf], &Contents) -> Result<T, TlsError> + Send + Sync>;

/// A value that is built from files, and built again when they have changed. If they cannot be
/// used, the value stays what it was.
pub(crate) struct Reloading<T> {
    files: Vec<PathBuf>,
    build: Build<T>,
    state: Mutex<State<T>>,
}

struct State<T> {
    now: Arc<T>,
    /// What was tried last. A file that is half written is not tried again before it changes.
    tried: Contents,
}

/// A [`Reloading`] of any type.
pub(crate) trait Reload: Send + Sync {
    /// Builds the value again if a file has changed, or in any case if `always`. Returns `true` if
    /// it was built.
    fn reload(&self, always: bool) -> Result<bool, TlsError>;

    /// Returns the files.
    fn files(&self) -> &[PathBuf];
}

impl<T> Reloading<T> {
    fn load(files: Vec<PathBuf>, build: Build<T>) -> Result<Self, TlsError> {
        let tried = read_all(&files)?;
        let now = Arc::new(build(&files, &tried)?);
        Ok(Self { files, build, state: Mutex::new(State { now, tried }) })
    }

    /// Returns the value as it is now.
    pub(crate) fn now(&self) -> Arc<T> {
        Arc::clone(&self.state().now)
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send + Sync> Reload for Reloading<T> {
    fn reload(&self, always: bool) -> Result<bool, TlsError> {
        let contents = read_all(&self.files)?;
        let mut state = self.state();
        if state.tried == contents && !always {
            return Ok(false);
        }
        let built = (self.build)(&self.files, &contents);
        state.tried = contents;
        state.now = Arc::new(built?);
        Ok(true)
    }

    fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

impl<T> fmt::Debug for Reloading<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloading").field("files", &self.files).finish_non_exhaustive()
    }
}

/// Builds everything again whose files have changed, and says so in the log.
pub(crate) fn reload_all(all: &[Arc<dyn Reload>], always: bool) {
    for one in all {
        let files = one.files();
        match one.reload(always) {
            Ok(true) => {
                metrics::counter!(crate::metrics::RELOADS, "result" => "loaded").increment(1);
                tracing::info!(?files, "certificates were loaded");
            }
            Ok(false) => {}
            Err(error) => {
                metrics::counter!(crate::metrics::RELOADS, "result" => "failed").increment(1);
                let error = with_sources(&error);
                tracing::warn!(?files, error, "certificates cannot be used; the old ones stay");
            }
        }
    }
}

/// Loads the certificate of the gateway.
pub(crate) fn server(tls: &ServerTls) -> Result<Reloading<ServerConfig>, TlsError> {
    let mut files = vec![tls.certificate.clone(), tls.key.clone()];
    files.extend(tls.client_ca.clone());
    let build: Build<ServerConfig> = Box::new(|files, contents| {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?;
        let builder = match files.get(2) {
            Some(file) => {
                let roots = Arc::new(roots(file, &contents[2])?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
                builder.with_client_cert_verifier(verifier.build()?)
            }
            None => builder.with_no_client_auth(),
        };
        let (chain, key) = (chain(&files[0], &contents[0])?, key(&files[1], &contents[1])?);
        let mut config = builder.with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    });
    Reloading::load(files, build)
}

/// Loads what the gateway knows of agents, and its certificate for them.
pub(crate) fn agents(
    tls: &AgentsTls,
    protocol: Protocol,
) -> Result<Reloading<ClientConfig>, TlsError> {
    let mut files = vec![tls.ca.clone()];
    files.extend(tls.certificate.clone().into_iter().chain(tls.key.clone()));
    let build: Build<ClientConfig> = Box::new(move |files, contents| {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots(&files[0], &contents[0])?);
        let mut config = match files.len() {
            3 => {
                let chain = chain(&files[1], &contents[1])?;
                builder.with_client_auth_cert(chain, key(&files[2], &contents[2])?)?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![match protocol {
            Protocol::Http1 => b"http/1.1".to_vec(),
            Protocol::Http2 => b"h2".to_vec(),
        }];
        Ok(config)
    });
    Reloading::load(files, build)
}

/// Loads the authorities for requests of the gateway's own: those of the file, else those of the
/// system if they are `needed`.
pub(crate) fn authorities(ca: Option<&Path>, needed: bool) -> Result<ClientConfig, TlsError> {
    let roots = match ca {
        Some(file) => roots(file, &read(file)?)?,
        None => {
            let mut roots = RootCertStore::empty();
            if needed {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    return Err(TlsError::NoAuthorities);
                }
            }
            roots
        }
    };
    Ok(ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(file).map_err(|source| TlsError::Read { file: file.to_owned(), source })
}

fn read_all(files: &[PathBuf]) -> Result<Contents, TlsError> {
    files.iter().map(|file| read(file)).collect()
}

fn roots(file: &Path, content: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(file, content)? {
        roots.add(certificate)?;
    }
    Ok(roots)
}

fn chain(file: &Path, content: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |source| TlsError::Pem { file: file.to_owned(), source };
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(content).collect::<Result<_, _>>().map_err(wrong)?;
    if chain.is_empty() { Err(wrong(pem::Error::NoItemsFound)) } else { Ok(chain) }
}

fn key(file: &Path, content: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(content)
        .map_err(|source| TlsError::Pem { file: file.to_owned(), source })
}
