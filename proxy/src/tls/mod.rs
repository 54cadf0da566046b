//! TLS contexts, the secrets they are made from, and the verification of who is at the other end.
//!
//! Fails closed: a context whose secret is not here yet refuses connections; a secret that cannot be used is refused and
//! the one before it stays. A context follows its secrets: rotation builds a new rustls configuration for new handshakes
//! and touches no connection.

mod certificate;
mod context;
mod downstream;
mod expiry;
mod failure;
mod material;
mod secrets;
mod stats;
mod suites;
#[cfg(test)]
mod tests;
mod upstream;
mod verify;

pub use downstream::DownstreamContext;
pub use upstream::UpstreamContext;

use crate::config::model::SecretKind;
use crate::slots::Store;
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
    users: secrets::Users,
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
