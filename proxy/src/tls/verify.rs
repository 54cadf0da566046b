//! Who may be at the other end: chain, validity, purpose, revocation, pins and names.
//!
//! Leans to refusal: a certificate that cannot be read, a CRL that does not cover an issuer, a name of another kind than
//! the matcher's are all no. Only the explicit `accept_untrusted` and an absent validation context let strangers in, and
//! then the certificate is marked unverified.

use super::certificate::{self, Leaf};
use crate::config::model::{SanKind, SanMatcher};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use webpki::{CertRevocationList, EndEntityCert, KeyUsage, RevocationOptionsBuilder};

/// A bundle of trusted certificates.
pub(super) struct Trust {
    /// One to one with `certificates`.
    pub anchors: Vec<TrustAnchor<'static>>,
    pub certificates: Vec<CertificateDer<'static>>,
    pub not_after: Vec<SystemTime>,
}

/// Everything that is asked of a peer's certificate.
#[derive(Default)]
pub(super) struct Rules {
    pub trust: Option<Arc<Trust>>,
    pub crls: Arc<Vec<CertRevocationList<'static>>>,
    pub san_matchers: Vec<SanMatcher>,
    pub certificate_hashes: Vec<[u8; 32]>,
    pub spki_hashes: Vec<[u8; 32]>,
    pub accept_untrusted: bool,
    pub allow_expired: bool,
}

/// What the peer's certificate is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    Server,
    Client,
}

/// A refusal that rustls has no kind for.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Refusal {
    #[error("SAN matcher, certificate SANs are [{0}]")]
    Name(String),
    #[error("certificate hash or SPKI pin, the certificate's SHA-256 is {0}")]
    Pin(String),
    #[error("KEY_USAGE_BIT_INCORRECT (the certificate's key usage lacks digitalSignature)")]
    KeyUsage,
    #[error("{0}")]
    Chain(String),
}

impl From<Refusal> for CertificateError {
    fn from(refusal: Refusal) -> CertificateError {
        CertificateError::Other(OtherError(Arc::new(refusal)))
    }
}

impl Rules {
    /// Whether a certificate that passed was proven to be somebody's.
    pub fn verify_anything(&self) -> bool {
        !self.accept_untrusted && self.asks_for_certificate()
    }

    /// Whether a server with these rules asks its clients for a certificate.
    pub fn asks_for_certificate(&self) -> bool {
        self.trust.is_some() || !self.certificate_hashes.is_empty() || !self.spki_hashes.is_empty()
    }

    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        peer: Peer,
        name: Option<&str>,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<(), CertificateError> {
        let has_names = !self.san_matchers.is_empty() || name.is_some();
        let has_pins = !self.certificate_hashes.is_empty() || !self.spki_hashes.is_empty();
        if self.trust.is_none() && !has_names && !has_pins {
            return Ok(());
        }
        let leaf = certificate::parse_leaf(vec![end_entity.clone().into_owned()]).map_err(Refusal::Chain)?;
        // the path does not say it, and Envoy asks for it even of strangers
        if !leaf.may_sign {
            return Err(Refusal::KeyUsage.into());
        }
        if let Some(trust) = &self.trust {
            match self.verify_chain(trust, &leaf, end_entity, intermediates, now, peer, algorithms) {
                Err(_) if self.accept_untrusted => {}
                other => other?,
            }
        }
        if has_pins
            && !self.certificate_hashes.contains(&leaf.certificate.fingerprint)
            && !self.spki_hashes.contains(&leaf.spki_hash)
        {
            return Err(Refusal::Pin(certificate::hex(&leaf.certificate.fingerprint)).into());
        }
        let named = self.san_matchers.is_empty() || self.san_matchers.iter().any(|m| san_matches(m, &leaf));
        if !named || name.is_some_and(|name| !is_for_name(&leaf, name)) {
            let c = &leaf.certificate;
            let all = [&c.uri_sans, &c.dns_sans, &c.ip_sans, &c.email_sans];
            let listed: Vec<&str> = all.into_iter().flatten().map(String::as_str).collect();
            return Err(Refusal::Name(listed.join(", ")).into());
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn verify_chain(
        &self,
        trust: &Trust,
        leaf: &Leaf,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        peer: Peer,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<(), CertificateError> {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs());
        // Envoy trusts a leaf that stands in trusted_ca itself (partial chain); path building would refuse it. With CRLs
        // configured nothing could say that it is not revoked, so then it is not taken.
        if self.crls.is_empty() && trust.certificates.iter().any(|c| c.as_ref() == end_entity.as_ref()) {
            return directly_trusted(leaf, time, peer, self.allow_expired);
        }
        match self.build_path(trust, end_entity, intermediates, now, peer, algorithms) {
            Err(webpki::Error::CertExpired { .. }) if self.allow_expired => {
                // judged as of the last moment at which every certificate shown was good
                let chain = std::iter::once(end_entity).chain(intermediates);
                let ends = chain.map(|der| certificate::parse(der.clone().into_owned()).map(|c| c.not_after));
                let last = ends.collect::<Result<Vec<_>, _>>().map_err(Refusal::Chain)?.into_iter().min();
                let last = last.and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default();
                let then = UnixTime::since_unix_epoch(last);
                self.build_path(trust, end_entity, intermediates, then, peer, algorithms)
            }
            other => other,
        }
        .map_err(|e| translate(&e))
    }

    fn build_path(
        &self,
        trust: &Trust,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        peer: Peer,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<(), webpki::Error> {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs());
        // webpki does not look at an anchor's validity, OpenSSL does
        let live: Vec<TrustAnchor<'_>>;
        let anchors = if self.allow_expired || trust.not_after.iter().all(|end| *end >= time) {
            &trust.anchors
        } else {
            let zipped = trust.anchors.iter().zip(&trust.not_after);
            live = zipped.filter(|(_, end)| **end >= time).map(|(anchor, _)| anchor.clone()).collect();
            &live
        };
        let crls: Vec<&CertRevocationList<'_>> = self.crls.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&crls).ok().map(RevocationOptionsBuilder::build);
        let usage = match peer {
            Peer::Server => KeyUsage::server_auth(),
            Peer::Client => KeyUsage::client_auth(),
        };
        EndEntityCert::try_from(end_entity)?
            .verify_for_usage(algorithms.all, anchors, intermediates, now, usage, revocation, None)
            .map(|_| ())
    }
}

fn directly_trusted(leaf: &Leaf, time: SystemTime, peer: Peer, allow_expired: bool) -> Result<(), CertificateError> {
    let (for_servers, for_clients) = leaf.usage;
    if !(if peer == Peer::Server { for_servers } else { for_clients }) {
        return Err(CertificateError::InvalidPurpose);
    }
    if time < leaf.certificate.not_before {
        return Err(CertificateError::NotValidYet);
    }
    if time > leaf.certificate.not_after && !allow_expired {
        return Err(CertificateError::Expired);
    }
    Ok(())
}

/// webpki's refusals as those of rustls, which choose the alert.
fn translate(error: &webpki::Error) -> CertificateError {
    use webpki::Error as E;
    match error {
        E::BadDer | E::BadDerTime | E::TrailingData(_) => CertificateError::BadEncoding,
        E::CertExpired { .. } | E::InvalidCertValidity => CertificateError::Expired,
        E::CertNotValidYet { .. } => CertificateError::NotValidYet,
        E::UnknownIssuer => CertificateError::UnknownIssuer,
        E::CertRevoked => CertificateError::Revoked,
        E::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus,
        E::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        E::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        other => Refusal::Chain(other.to_string()).into(),
    }
}

/// In OpenSSL's words, which Envoy's logs carry, and then in ours: what to check.
pub(super) fn words(error: &CertificateError) -> String {
    let openssl = match error {
        CertificateError::Expired => {
            "certificate has expired (check the peer's certificate, our trusted_ca and both clocks)"
        }
        CertificateError::NotValidYet => "certificate is not yet valid (check both clocks)",
        CertificateError::UnknownIssuer => {
            "unable to get local issuer certificate (no certificate of trusted_ca signed the peer's chain)"
        }
        CertificateError::Revoked => "certificate revoked",
        CertificateError::UnknownRevocationStatus => {
            "unable to get certificate CRL (no CRL covers an issuer of the chain)"
        }
        CertificateError::BadSignature => {
            "certificate signature failure (a CA of this name is trusted, with another key)"
        }
        CertificateError::InvalidPurpose => {
            "unsupported certificate purpose (extended key usage forbids this side of TLS)"
        }
        CertificateError::BadEncoding => "the certificate cannot be read",
        other => return format!("X509_verify_cert: {other}"),
    };
    format!("X509_verify_cert: certificate verification error at depth 0: {openssl}")
}

fn san_matches(matcher: &SanMatcher, leaf: &Leaf) -> bool {
    let c = &leaf.certificate;
    let any = |names: &[String]| names.iter().any(|name| matcher.matcher.matches(name.as_bytes()));
    let dns = |names: &[String]| match &matcher.matcher {
        crate::config::model::StringMatch::Exact { value, .. } => names.iter().any(|san| dns_covers(san, value)),
        _ => any(names),
    };
    match matcher.kind {
        Some(SanKind::Uri) => any(&c.uri_sans),
        Some(SanKind::Dns) => dns(&c.dns_sans),
        Some(SanKind::Email) => any(&c.email_sans),
        Some(SanKind::Ip) => any(&c.ip_sans),
        None => any(&c.uri_sans) || dns(&c.dns_sans) || any(&c.email_sans) || any(&c.ip_sans),
    }
}

/// Whether a DNS name of a certificate covers a host: equal but for case, or a wildcard for exactly its first label.
pub(super) fn dns_covers(san: &str, host: &str) -> bool {
    match san.strip_prefix("*.") {
        Some(parent) if !host.starts_with("*.") => host.split_once('.').is_some_and(|(first, rest)| {
            !first.is_empty() && parent.contains('.') && rest.eq_ignore_ascii_case(parent)
        }),
        _ => san.eq_ignore_ascii_case(host),
    }
}

fn is_for_name(leaf: &Leaf, name: &str) -> bool {
    match name.parse::<IpAddr>() {
        Ok(ip) => leaf.certificate.ip_sans.contains(&ip.to_string()),
        Err(_) => leaf.certificate.dns_sans.iter().any(|san| dns_covers(san, name)),
    }
}

/// The rules as rustls asks them, for either side.
pub(super) struct Verifier {
    pub rules: Arc<Rules>,
    /// The name that the certificate must also be for.
    pub name: Option<Arc<str>>,
    /// For servers: a client must show a certificate.
    pub mandatory: bool,
    pub algorithms: WebPkiSupportedAlgorithms,
    hints: Vec<DistinguishedName>,
}

impl Verifier {
    pub fn new(rules: Arc<Rules>, mandatory: bool, algorithms: WebPkiSupportedAlgorithms) -> Verifier {
        let anchors = rules.trust.iter().flat_map(|trust| &trust.anchors);
        let hints = anchors.map(|anchor| DistinguishedName::in_sequence(&anchor.subject)).collect();
        Verifier { rules, name: None, mandatory, algorithms, hints }
    }

    /// The same rules and this name.
    pub fn named(rules: Arc<Rules>, name: Option<Arc<str>>, algorithms: WebPkiSupportedAlgorithms) -> Verifier {
        Verifier { rules, name, mandatory: true, algorithms, hints: Vec::new() }
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier")
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.rules.verify(end_entity, intermediates, now, Peer::Server, self.name.as_deref(), &self.algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn offer_client_auth(&self) -> bool {
        self.mandatory || self.rules.asks_for_certificate()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.rules.verify(end_entity, intermediates, now, Peer::Client, None, &self.algorithms)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_covers_one_label_only() {
        assert!(dns_covers("*.example.com", "a.Example.com") && dns_covers("*.example.com", "*.example.com"));
        assert!(!dns_covers("*.example.com", "a.b.example.com") && !dns_covers("*.example.com", "example.com"));
        assert!(!dns_covers("*.com", "example.com") && !dns_covers("a*.example.com", "ab.example.com"));
        assert!(!dns_covers("*.example.com", ".example.com"));
    }
}
