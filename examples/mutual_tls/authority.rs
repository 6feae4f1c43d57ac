//! Certificates that name agents, and the configurations of TLS that use them.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
    server::WebPkiClientVerifier,
};
use std::sync::Arc;
use tower_bound_agent::{AgentId, BoxError};

/// Returns the name in the certificate of an agent.
pub(crate) fn name_of(agent: AgentId) -> Result<ServerName<'static>, BoxError> {
    Ok(ServerName::try_from(format!("{agent}.agents.example"))?)
}

/// The authority that all sides trust.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    roots: Arc<RootCertStore>,
}

impl Authority {
    pub(crate) fn new() -> Result<Self, BoxError> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let (key, mut roots) = (KeyPair::generate()?, RootCertStore::empty());
        roots.add(params.self_signed(&key)?.der().clone())?;
        Ok(Self { issuer: Issuer::new(params, key), roots: Arc::new(roots) })
    }

    fn issue(
        &self,
        name: &str,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), BoxError> {
        let key = KeyPair::generate()?;
        let certificate =
            CertificateParams::new([name.to_owned()])?.signed_by(&key, &self.issuer)?;
        Ok((vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der())?))
    }

    pub(crate) fn client(&self, name: Option<&str>) -> Result<ClientConfig, BoxError> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(Arc::clone(&self.roots));
        let Some(name) = name else { return Ok(builder.with_no_client_auth()) };
        let (chain, key) = self.issue(name)?;
        Ok(builder.with_client_auth_cert(chain, key)?)
    }

    pub(crate) fn server(&self, agent: AgentId) -> Result<ServerConfig, BoxError> {
        let provider = Arc::new(ring::default_provider());
        let (chain, key) = self.issue(&name_of(agent)?.to_str())?;
        let roots = Arc::clone(&self.roots);
        let clients = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
        Ok(ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(clients.build()?)
            .with_single_cert(chain, key)?)
    }
}
