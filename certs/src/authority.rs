//! The certificate authority of one trust domain: makes a root, loads it again, issues leaves.
//!
//! Certificates follow X509-SVID.md (spiffe/spiffe, standards): exactly one URI SAN, the CA bit and key usages as
//! sections 4.1 to 4.4 ask. Knows files and certificates; knows no server.

use std::fmt;
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;

use crate::{SpiffeId, SpiffeIdError, TrustDomain};

/// How long a root lives: ten years, as Istio's self-signed root does.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Certificates are valid from a little before they are made: clocks of two machines differ, and a certificate that
/// is "not yet valid" at the peer is an outage nobody understands. Istio's CA backdates by the same two minutes.
const BACKDATE: Duration = Duration::from_secs(120);

/// The file an authority keeps its root certificate in.
pub const CA_CERT_FILE: &str = "ca.pem";
/// The file an authority keeps its private key in (mode 0600).
pub const CA_KEY_FILE: &str = "ca-key.pem";

/// Why the authority could not be made, loaded, or could not issue.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file could not be read or written.
    #[error("{action} {path}: {source}", path = .path.display())]
    File {
        /// `cannot read` or `cannot write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{what}: {detail}")]
    Invalid {
        /// Which input.
        what: String,
        /// What was found, and what is expected.
        detail: String,
    },
    /// The identity or trust domain is malformed.
    #[error(transparent)]
    SpiffeId(#[from] SpiffeIdError),
    /// The identity belongs to another trust domain.
    #[error("'{id}' is outside the trust domain '{trust_domain}' of this authority")]
    OtherTrustDomain {
        /// The identity asked for.
        id: String,
        /// The domain this authority signs for.
        trust_domain: TrustDomain,
    },
    /// The identity has no path: only the authority itself may carry it.
    #[error("'{0}' names a trust domain, not a workload; expected a path, such as /ns/default/sa/reviews")]
    NotAWorkload(String),
    /// The lifetime is zero or cannot be represented.
    #[error("a lifetime of {0:?} is not usable; expected at least one second")]
    Lifetime(Duration),
    /// The root has expired.
    #[error("the root certificate expired at {0}; make a new authority")]
    Expired(OffsetDateTime),
    /// The certificate library refused.
    #[error("cannot make the certificate: {0}")]
    Certificate(#[from] rcgen::Error),
}

/// A certificate and its private key, as PEM, ready for a file or a secret.
///
/// `Debug` shows neither the key nor the chain.
#[derive(Clone, PartialEq, Eq)]
pub struct Svid {
    /// The leaf, then any intermediates; the root is not part of it.
    pub chain_pem: String,
    /// The private key, PKCS#8.
    pub key_pem: String,
    /// When it was made. `not_before` of the certificate is two minutes earlier.
    pub issued_at: SystemTime,
    /// The end of its validity, to the second.
    pub not_after: SystemTime,
}

impl Svid {
    /// When it should be replaced: at two thirds of its life, so that a third remains for failed attempts.
    pub fn renew_at(&self) -> SystemTime {
        let life = self.not_after.duration_since(self.issued_at).unwrap_or_default();
        self.issued_at + life * 2 / 3
    }

    /// Writes `cert.pem` (chain) and `key.pem` (mode 0600) into `dir`, which is created when missing.
    pub fn save(&self, dir: &Path) -> Result<(), AuthorityError> {
        make_dir(dir)?;
        write_file(&dir.join("cert.pem"), &self.chain_pem, 0o644)?;
        write_file(&dir.join("key.pem"), &self.key_pem, 0o600)
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid").field("not_after", &self.not_after).field("key_pem", &"redacted").finish_non_exhaustive()
    }
}

/// The CA of one trust domain: an ECDSA P-256 key and its self-signed root.
pub struct Authority {
    trust_domain: TrustDomain,
    issuer: Issuer<'static, KeyPair>,
    root_pem: String,
    not_after: OffsetDateTime,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

impl Authority {
    /// A new authority with a fresh key.
    ///
    /// # Errors
    /// When `trust_domain` is not a valid trust domain name.
    pub fn new(trust_domain: &str) -> Result<Self, AuthorityError> {
        let trust_domain: TrustDomain = trust_domain.parse()?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let now = OffsetDateTime::now_utc();

        let mut params = CertificateParams::default();
        params.not_before = to_second(now - BACKDATE);
        params.not_after = to_second(now + ROOT_LIFETIME);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
        params.distinguished_name.push(DnType::CommonName, "SPIFFE root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // X509-SVID section 4.2: a signing certificate should carry the identity of the trust domain.
        let id = SpiffeId::of_trust_domain(trust_domain.clone());
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];

        let root_pem = params.self_signed(&key)?.pem();
        let not_after = params.not_after;
        Ok(Self { trust_domain, issuer: Issuer::new(params, key), root_pem, not_after })
    }

    /// Loads what [`Authority::save`] wrote into `dir`.
    ///
    /// # Errors
    /// Names the file that is missing, unreadable, no CA certificate, without a SPIFFE identity, or that does not
    /// belong to the other one.
    pub fn load(dir: &Path) -> Result<Self, AuthorityError> {
        let cert_path = dir.join(CA_CERT_FILE);
        let key_path = dir.join(CA_KEY_FILE);
        let root_pem = read_file(&cert_path)?;
        let key_pem = read_file(&key_path)?;
        let key = KeyPair::from_pem(&key_pem).map_err(|e| {
            invalid(&key_path, format!("no usable private key ({e}); expected a PEM block 'PRIVATE KEY' (PKCS#8)"))
        })?;

        let (trust_domain, not_after) = inspect_root(&root_pem, &key).map_err(|detail| invalid(&cert_path, detail))?;
        let issuer = Issuer::from_ca_cert_pem(&root_pem, key).map_err(|e| invalid(&cert_path, e.to_string()))?;
        Ok(Self { trust_domain, issuer, root_pem, not_after })
    }

    /// Writes the root certificate and its key into `dir`, which is created when missing. The key has mode 0600.
    pub fn save(&self, dir: &Path) -> Result<(), AuthorityError> {
        make_dir(dir)?;
        write_file(&dir.join(CA_CERT_FILE), &self.root_pem, 0o644)?;
        write_file(&dir.join(CA_KEY_FILE), &self.issuer.key().serialize_pem(), 0o600)
    }

    /// The trust domain this authority signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The trust bundle: the root certificate as PEM.
    pub fn bundle_pem(&self) -> &str {
        &self.root_pem
    }

    /// Issues a workload certificate: one URI SAN with the identity, and `dns_names` beside it.
    ///
    /// The lifetime starts now and ends with the root's at the latest. The subject is empty, so the SAN extension is
    /// critical (RFC 5280 section 4.2.1.6), as in the certificates Istio makes.
    ///
    /// # Errors
    /// When the identity is of another trust domain or names no workload, or a name or the lifetime is not usable.
    pub fn issue(&self, id: &SpiffeId, lifetime: Duration, dns_names: &[&str]) -> Result<Svid, AuthorityError> {
        if id.trust_domain() != &self.trust_domain {
            let trust_domain = self.trust_domain.clone();
            return Err(AuthorityError::OtherTrustDomain { id: id.to_string(), trust_domain });
        }
        if id.path().is_empty() {
            return Err(AuthorityError::NotAWorkload(id.to_string()));
        }
        let mut names = vec![SanType::URI(id.to_string().try_into()?)];
        for name in dns_names {
            names.push(SanType::DnsName((*name).try_into()?));
        }
        self.sign(names, lifetime)
    }

    /// Issues a certificate for host names and addresses, without a SPIFFE identity: what a gateway shows the world.
    ///
    /// # Errors
    /// When there is no name at all, or a name or the lifetime is not usable.
    pub fn issue_for_hosts(
        &self,
        dns_names: &[&str],
        addresses: &[IpAddr],
        lifetime: Duration,
    ) -> Result<Svid, AuthorityError> {
        let mut names = Vec::with_capacity(dns_names.len() + addresses.len());
        for name in dns_names {
            names.push(SanType::DnsName((*name).try_into()?));
        }
        names.extend(addresses.iter().copied().map(SanType::IpAddress));
        if names.is_empty() {
            let detail = "neither a DNS name nor an address was given".to_owned();
            return Err(AuthorityError::Invalid { what: "host certificate".to_owned(), detail });
        }
        self.sign(names, lifetime)
    }

    fn sign(&self, names: Vec<SanType>, lifetime: Duration) -> Result<Svid, AuthorityError> {
        let now = OffsetDateTime::now_utc();
        if self.not_after <= now {
            return Err(AuthorityError::Expired(self.not_after));
        }
        if lifetime < Duration::from_secs(1) {
            return Err(AuthorityError::Lifetime(lifetime));
        }
        let span = time::Duration::try_from(lifetime).map_err(|_| AuthorityError::Lifetime(lifetime))?;
        let end = now.checked_add(span).map_or(self.not_after, |end| end.min(self.not_after));

        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.not_before = to_second(now - BACKDATE);
        params.not_after = to_second(end);
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        // NoCa would leave the basic constraints out; X509-SVID 4.1 wants readers to see that a leaf cannot sign.
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&key, &self.issuer)?;
        Ok(Svid {
            chain_pem: leaf.pem(),
            key_pem: key.serialize_pem(),
            issued_at: now.into(),
            not_after: params.not_after.into(),
        })
    }
}

/// Reads trust domain and end of validity from a root, and checks that it may sign with `key`.
fn inspect_root(root_pem: &str, key: &KeyPair) -> Result<(TrustDomain, OffsetDateTime), String> {
    let block = Pem::iter_from_buffer(root_pem.as_bytes())
        .find_map(|block| block.ok().filter(|b| b.label == "CERTIFICATE"))
        .ok_or("no PEM block 'CERTIFICATE' in it")?;
    let root = block.parse_x509().map_err(|e| format!("not an X.509 certificate ({e})"))?;
    if !root.is_ca() {
        return Err("the certificate is a leaf; expected a CA certificate".to_owned());
    }
    if root.public_key().raw != key.subject_public_key_info() {
        return Err(format!("the certificate does not belong to the private key in {CA_KEY_FILE}"));
    }
    let names = root.subject_alternative_name().ok().flatten().map(|ext| &ext.value.general_names);
    let uri = names.into_iter().flatten().find_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let uri = uri.ok_or("the certificate has no URI SAN; expected spiffe://<trust domain>")?;
    let id: SpiffeId = uri.parse().map_err(|e: SpiffeIdError| e.to_string())?;
    let end = root.validity().not_after.to_datetime();
    Ok((id.trust_domain().clone(), end))
}

/// Certificates count whole seconds; cut here so that what we report is what they say.
fn to_second(at: OffsetDateTime) -> OffsetDateTime {
    at.replace_nanosecond(0).unwrap_or(at)
}

fn invalid(path: &Path, detail: String) -> AuthorityError {
    AuthorityError::Invalid { what: path.display().to_string(), detail }
}

fn file_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> AuthorityError + 'a {
    move |source| AuthorityError::File { action, path: path.to_owned(), source }
}

fn make_dir(dir: &Path) -> Result<(), AuthorityError> {
    fs::create_dir_all(dir).map_err(file_error("cannot create", dir))
}

fn read_file(path: &Path) -> Result<String, AuthorityError> {
    fs::read_to_string(path).map_err(file_error("cannot read", path))
}

/// Writes a new file beside the old one and renames it into place: a reader sees the old or the new one, never half,
/// and a private key never exists with a wider mode.
pub(crate) fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), AuthorityError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    let written = (|| {
        let _ = fs::remove_file(&new);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&new, path)
    })();
    written.map_err(file_error("cannot write", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
    use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

    const HOUR: Duration = Duration::from_secs(3600);

    fn reviews() -> SpiffeId {
        "spiffe://cluster.local/ns/default/sa/reviews".parse().unwrap()
    }

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    /// Verifies the chain as a TLS peer would, `later` from now.
    fn verify(svid: &Svid, authority: &Authority, usage: KeyUsage, later: Duration) -> Result<(), webpki::Error> {
        let root = der(authority.bundle_pem());
        let leaf = der(&svid.chain_pem);
        let anchors = [anchor_from_trusted_cert(&root)?];
        let now = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs()) + later);
        let leaf = EndEntityCert::try_from(&leaf)?;
        let algs = webpki::ALL_VERIFICATION_ALGS;
        leaf.verify_for_usage(algs, &anchors, &[], now, usage, None, None).map(drop)
    }

    #[test]
    fn an_svid_proves_its_identity_to_both_sides_of_a_connection() {
        let authority = Authority::new("cluster.local").unwrap();
        let svid = authority.issue(&reviews(), HOUR, &["reviews.default.svc"]).unwrap();
        for usage in [KeyUsage::client_auth(), KeyUsage::server_auth()] {
            verify(&svid, &authority, usage, Duration::ZERO).unwrap();
        }
        let leaf = der(&svid.chain_pem);
        let leaf = EndEntityCert::try_from(&leaf).unwrap();
        assert_eq!(leaf.valid_uri_names().collect::<Vec<_>>(), ["spiffe://cluster.local/ns/default/sa/reviews"]);
        assert_eq!(leaf.valid_dns_names().collect::<Vec<_>>(), ["reviews.default.svc"]);
        PrivateKeyDer::from_pem_slice(svid.key_pem.as_bytes()).unwrap();
    }

    #[test]
    fn the_leaf_has_the_extensions_the_specification_asks_for() {
        let authority = Authority::new("td").unwrap();
        let svid = authority.issue(&"spiffe://td/a".parse().unwrap(), HOUR, &[]).unwrap();
        let der = der(&svid.chain_pem);
        let (_, leaf) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert!(leaf.subject_alternative_name().unwrap().unwrap().critical, "no subject, so the SAN is critical");
        assert_eq!(leaf.subject().iter().count(), 0);
        assert!(!leaf.is_ca());
        let usage = leaf.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign());
        let purposes = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(purposes.server_auth && purposes.client_auth);
        let now = OffsetDateTime::now_utc();
        let validity = leaf.validity();
        assert!(validity.not_before.to_datetime() < now - Duration::from_secs(60), "backdated");
        assert_eq!(SystemTime::from(validity.not_after.to_datetime()), svid.not_after);
        assert!(svid.renew_at() > svid.issued_at + HOUR / 2 && svid.renew_at() < svid.not_after);
    }

    #[test]
    fn strangers_and_the_expired_do_not_verify() {
        let authority = Authority::new("cluster.local").unwrap();
        let stranger = Authority::new("cluster.local").unwrap();
        let svid = authority.issue(&reviews(), HOUR, &[]).unwrap();
        let usage = || KeyUsage::client_auth();
        assert!(verify(&svid, &stranger, usage(), Duration::ZERO).is_err());
        assert!(matches!(verify(&svid, &authority, usage(), 2 * HOUR), Err(webpki::Error::CertExpired { .. })));
    }

    #[test]
    fn a_gateway_certificate_carries_hosts_and_addresses() {
        let authority = Authority::new("td").unwrap();
        let svid =
            authority.issue_for_hosts(&["a.example", "*.b.example"], &["127.0.0.1".parse().unwrap()], HOUR).unwrap();
        verify(&svid, &authority, KeyUsage::server_auth(), Duration::ZERO).unwrap();
        let leaf = der(&svid.chain_pem);
        let leaf = EndEntityCert::try_from(&leaf).unwrap();
        for name in ["a.example", "x.b.example", "127.0.0.1"] {
            leaf.verify_is_valid_for_subject_name(&name.try_into().unwrap()).unwrap();
        }
        assert!(authority.issue_for_hosts(&[], &[], HOUR).is_err());
    }

    #[test]
    fn a_saved_authority_signs_on_after_loading() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new("td").unwrap();
        authority.save(&dir.path().join("ca")).unwrap();
        let loaded = Authority::load(&dir.path().join("ca")).unwrap();
        assert_eq!(loaded.trust_domain().as_str(), "td");
        assert_eq!(loaded.bundle_pem(), authority.bundle_pem());
        let svid = loaded.issue(&"spiffe://td/a".parse().unwrap(), HOUR, &[]).unwrap();
        verify(&svid, &authority, KeyUsage::server_auth(), Duration::ZERO).unwrap();

        use std::os::unix::fs::PermissionsExt;
        svid.save(dir.path()).unwrap();
        for key in ["ca/ca-key.pem", "key.pem"] {
            assert_eq!(fs::metadata(dir.path().join(key)).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn bad_files_are_named_with_what_was_expected() {
        let dir = tempfile::tempdir().unwrap();
        let load = || Authority::load(dir.path()).unwrap_err().to_string();
        assert!(load().contains("cannot read") && load().contains("ca.pem"));
        Authority::new("td").unwrap().save(dir.path()).unwrap();
        fs::write(dir.path().join(CA_CERT_FILE), "nothing here").unwrap();
        assert!(load().contains("no PEM block 'CERTIFICATE'"), "{}", load());
        fs::write(dir.path().join(CA_CERT_FILE), Authority::new("td").unwrap().bundle_pem()).unwrap();
        assert!(load().contains("does not belong to the private key"), "{}", load());
        let leaf = Authority::new("td").unwrap().issue(&"spiffe://td/a".parse().unwrap(), HOUR, &[]).unwrap();
        fs::write(dir.path().join(CA_CERT_FILE), leaf.chain_pem).unwrap();
        assert!(load().contains("is a leaf"), "{}", load());
        fs::write(dir.path().join(CA_KEY_FILE), "nothing").unwrap();
        assert!(load().contains("no usable private key"), "{}", load());
    }

    #[test]
    fn what_may_not_be_issued_is_refused() {
        let authority = Authority::new("td").unwrap();
        let other = authority.issue(&"spiffe://other/a".parse().unwrap(), HOUR, &[]);
        assert!(matches!(other, Err(AuthorityError::OtherTrustDomain { .. })));
        let root = authority.issue(&"spiffe://td".parse().unwrap(), HOUR, &[]);
        assert!(matches!(root, Err(AuthorityError::NotAWorkload(_))));
        let id = "spiffe://td/a".parse().unwrap();
        assert!(matches!(authority.issue(&id, Duration::ZERO, &[]), Err(AuthorityError::Lifetime(_))));
        let capped = authority.issue(&id, Duration::MAX / 4, &[]).map(|svid| svid.not_after);
        assert!(matches!(capped, Err(AuthorityError::Lifetime(_)) | Ok(_)), "never a panic");
        let century = authority.issue(&id, Duration::from_secs(100 * 365 * 24 * 3600), &[]).unwrap();
        assert_eq!(century.not_after, SystemTime::from(authority.not_after), "the root's end is the end");
    }

    #[test]
    fn debug_shows_no_key() {
        let authority = Authority::new("td").unwrap();
        let svid = authority.issue(&"spiffe://td/a".parse().unwrap(), HOUR, &[]).unwrap();
        for text in [format!("{svid:?}"), format!("{authority:?}"), format!("{:?}", crate::Secret::from(svid.clone()))]
        {
            assert!(!text.contains("PRIVATE KEY") && !text.contains(&svid.key_pem[40..60]), "{text}");
        }
    }
}
