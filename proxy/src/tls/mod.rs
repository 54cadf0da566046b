//! TLS contexts, the secrets they are made from, and the verification of who is at the other end.
//!
//! Fails closed: a context whose secret is not here yet refuses connections; a secret that cannot be used is refused and
//! the one before it stays. A context follows its secrets: rotation builds a new rustls configuration for new handshakes
//! and touches no connection.

use crate::config::ConfigError;
use crate::config::model::{DownstreamTlsConfig, SdsSecret, SecretKind, UpstreamTlsConfig};
use crate::net::Socket;
use crate::slots::{Key, Store};
use crate::stats::Scope;
use rustls_pki_types::CertificateDer;
use std::sync::Arc;

/// What a handshake settled.
#[derive(Debug, Clone)]
pub struct TlsInfo {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// OpenSSL's name of the suite, as Envoy shows it.
    pub cipher: &'static str,
    /// Key exchange group by Envoy's name (`X25519`), empty when unknown.
    pub group: &'static str,
    pub sni: Option<Box<str>>,
    pub alpn: Option<Box<[u8]>>,
    pub resumed: bool,
    /// The peer's certificate, when it showed one.
    pub peer: Option<Arc<PeerCertificate>>,
    /// The certificate we showed, when we did.
    pub local: Option<Arc<PeerCertificate>>,
}

/// A certificate, read once per connection.
#[derive(Debug, Clone)]
pub struct PeerCertificate {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// RFC 2253, as Envoy prints it (`CN=leaf,O=x`).
    pub subject: String,
    pub issuer: String,
    /// Lower-case hex.
    pub serial: String,
    pub uri_sans: Vec<String>,
    pub dns_sans: Vec<String>,
    pub ip_sans: Vec<String>,
    pub email_sans: Vec<String>,
    /// SHA-256 of the leaf's DER.
    pub fingerprint: [u8; 32],
    pub not_before: std::time::SystemTime,
    pub not_after: std::time::SystemTime,
    /// Whether the chain and names were verified (false under `accept_untrusted` or without a validation context).
    pub verified: bool,
}

/// Why there is no TLS connection. `Display` is the text of `%..._TRANSPORT_FAILURE_REASON%`.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{reason}")]
pub struct TlsFailure {
    pub reason: String,
    pub kind: TlsFailureKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsFailureKind {
    /// A secret has not arrived.
    NotReady,
    /// The peer showed no certificate and must.
    NoCertificate,
    /// Chain, validity or purpose.
    Untrusted,
    /// The chain is good, the name is not.
    WrongIdentity,
    /// Anything else of the protocol, alerts included.
    Handshake,
    /// The other side went away.
    Closed,
}

/// Secrets by name and source. Filled by discovery through [`Secrets::update`].
pub struct Secrets {
    pub store: Store<SecretKind>,
}

impl Secrets {
    pub fn new(store: Store<SecretKind>) -> Arc<Secrets> {
        Arc::new(Secrets { store })
    }

    /// The slot key of a secret.
    pub fn key(secret: &SdsSecret) -> Key {
        Key { name: secret.name.clone(), source: secret.source.clone() }
    }

    /// Checks a secret (parses, key fits certificate, not expired) and gives it to all who hold its slot.
    ///
    /// # Errors
    /// What is wrong with it; the secret before it stays in use.
    pub fn update(&self, _key: &Key, _secret: SecretKind) -> Result<(), ConfigError> {
        todo!()
    }

    /// Every certificate in use, for /certs.
    pub fn certificates(&self) -> Vec<CertificateView> {
        todo!()
    }
}

/// One entry of /certs.
#[derive(Debug, Clone)]
pub struct CertificateView {
    pub ca: Vec<CertificateDetails>,
    pub chain: Vec<CertificateDetails>,
}

#[derive(Debug, Clone)]
pub struct CertificateDetails {
    /// File, or `<inline>`.
    pub path: String,
    pub certificate: Arc<PeerCertificate>,
}

/// The server side of TLS on a filter chain.
pub struct DownstreamContext {}

impl DownstreamContext {
    /// `scope` is the listener's (`listener.<address>.`); stats are `ssl.*` below it.
    ///
    /// # Errors
    /// Names the field that cannot be used (cipher, certificate, CA).
    pub fn new(
        _config: Arc<DownstreamTlsConfig>,
        _secrets: &Arc<Secrets>,
        _scope: &Scope,
    ) -> Result<Arc<DownstreamContext>, ConfigError> {
        todo!()
    }

    /// Whether every secret has arrived or was given up on.
    pub fn is_settled(&self) -> bool {
        todo!()
    }

    /// Returns when `is_settled` first holds.
    pub async fn settled(&self) {
        todo!()
    }

    /// The handshake, unbounded in time: the caller sets the bound.
    pub async fn accept(
        &self,
        _socket: Socket,
    ) -> Result<(Box<tokio_rustls::server::TlsStream<Socket>>, Arc<TlsInfo>), TlsFailure> {
        todo!()
    }
}

/// The client side of TLS of a cluster.
pub struct UpstreamContext {}

/// What one connection may set differently.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ConnectOptions {
    /// Server name instead of the configured one (`auto_sni`, `auto_host_sni`).
    pub sni: Option<Arc<str>>,
    /// The certificate must also be for this DNS name (`auto_san_validation`).
    pub verify_name: Option<Arc<str>>,
    /// Protocols to offer instead of the configured ones, e.g. `h2` when the configuration names none.
    pub alpn: Option<Vec<Box<[u8]>>>,
}

impl UpstreamContext {
    /// `scope` is the cluster's (`cluster.<name>.`).
    ///
    /// # Errors
    /// Names the field that cannot be used.
    pub fn new(
        _config: Arc<UpstreamTlsConfig>,
        _secrets: &Arc<Secrets>,
        _scope: &Scope,
    ) -> Result<Arc<UpstreamContext>, ConfigError> {
        todo!()
    }

    pub fn is_settled(&self) -> bool {
        todo!()
    }

    pub async fn settled(&self) {
        todo!()
    }

    /// The handshake, unbounded in time: the caller sets the bound.
    pub async fn connect(
        &self,
        _socket: Socket,
        _options: &ConnectOptions,
    ) -> Result<(Box<tokio_rustls::client::TlsStream<Socket>>, Arc<TlsInfo>), TlsFailure> {
        todo!()
    }
}
