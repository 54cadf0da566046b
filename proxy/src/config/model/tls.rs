//! TLS contexts and secrets (`envoy.extensions.transport_sockets.tls.v3`).

use super::*;

#[derive(Debug, Clone, PartialEq)]
pub struct DownstreamTlsConfig {
    pub common: CommonTls,
    pub require_client_certificate: bool,
    /// TLS 1.3 tickets and TLS 1.2 sessions are not offered.
    pub disable_stateless_resumption: bool,
    pub disable_stateful_resumption: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct UpstreamTlsConfig {
    pub common: CommonTls,
    /// Server name to send; empty: none (unless HTTP's `auto_sni` sets it).
    pub sni: Arc<str>,
    /// Send the endpoint's hostname.
    pub auto_host_sni: bool,
    /// Verify the certificate against the server name sent.
    pub auto_sni_san_validation: bool,
    /// Client sessions kept for resumption; default 1.
    pub max_session_keys: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub struct CommonTls {
    pub certificates: CertificateSource,
    pub validation: ValidationSource,
    pub alpn: Vec<Box<[u8]>>,
    pub min_version: TlsVersion,
    pub max_version: TlsVersion,
    /// OpenSSL names, in order of preference; empty: our defaults. Names that no supported suite has were dropped with a warning.
    pub cipher_suites: Vec<Box<str>>,
    /// Key exchange groups by Envoy's names (`X25519`, `P-256`, `X25519MLKEM768`); empty: our defaults.
    pub groups: Vec<Box<str>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    V1_2,
    V1_3,
}

#[derive(Debug, Clone, PartialEq)]
pub enum CertificateSource {
    None,
    Inline(Vec<TlsCertificate>),
    Sds(SdsSecret),
}

#[derive(Debug, Clone, PartialEq)]
pub enum ValidationSource {
    /// Nothing is verified (Envoy's meaning of an absent validation context).
    None,
    Inline(Arc<ValidationContext>),
    Sds(SdsSecret),
    /// The secret's context merged over `default`.
    Combined {
        default: Arc<ValidationContext>,
        secret: SdsSecret,
    },
}

/// A secret by name; `source` is `None` for a static secret of the bootstrap.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SdsSecret {
    pub name: Arc<str>,
    pub source: Option<ConfigSource>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct TlsCertificate {
    pub chain: DataSource,
    pub key: DataSource,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct ValidationContext {
    pub trusted_ca: Option<DataSource>,
    /// Any of them must match; empty: any name is good.
    pub san_matchers: Vec<SanMatcher>,
    pub crl: Option<DataSource>,
    /// Hex SHA-256 of the DER certificate, any of them; empty: not checked.
    pub certificate_hashes: Vec<[u8; 32]>,
    /// SHA-256 of the SPKI, any of them; empty: not checked.
    pub spki_hashes: Vec<[u8; 32]>,
    /// `trust_chain_verification: ACCEPT_UNTRUSTED`.
    pub accept_untrusted: bool,
    pub allow_expired: bool,
}

#[derive(Debug, Clone)]
pub struct SanMatcher {
    /// `None`: any kind of name (the deprecated `match_subject_alt_names`).
    pub kind: Option<SanKind>,
    pub matcher: StringMatch,
}

impl PartialEq for SanMatcher {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind && format!("{:?}", self.matcher) == format!("{:?}", other.matcher)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SanKind {
    Dns,
    Uri,
    Email,
    Ip,
}

#[derive(Debug, Clone)]
pub struct SecretConfig {
    pub name: Arc<str>,
    pub kind: SecretKind,
}

#[derive(Debug, Clone, PartialEq)]
pub enum SecretKind {
    Certificate(TlsCertificate),
    Validation(Arc<ValidationContext>),
}
