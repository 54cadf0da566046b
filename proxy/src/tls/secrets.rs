//! Secrets: checked when they come, parsed once, shared by all contexts that use them.

use super::certificate;
use super::expiry::ExpiryLadder;
use super::upstream::ClientCores;
use super::verify::{Rules, Trust};
use super::{CertificateDetails, CertificateView, Secrets};
use crate::config::ConfigError;
use crate::config::model::{DataSource, SdsSecret, SecretKind, TlsCertificate, ValidationContext};
use crate::slots::{Key, Store};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

/// A certificate with its key, ready to sign.
pub(super) struct Identity {
    pub certified: Arc<CertifiedKey>,
    /// What we show, described.
    pub described: Arc<super::PeerCertificate>,
    pub view: Vec<CertificateDetails>,
}

impl std::fmt::Debug for Identity {
    /// Never shows the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.described.subject)
    }
}

/// A validation context whose bundle is parsed.
pub(super) struct Bundle {
    pub context: Arc<ValidationContext>,
    pub trust: Option<Arc<Trust>>,
    pub crls: Arc<Vec<webpki::CertRevocationList<'static>>>,
    pub view: Vec<CertificateDetails>,
}

/// A secret after it was checked.
#[derive(Clone)]
pub(super) enum Parsed {
    Identity(Arc<Identity>),
    Bundle(Arc<Bundle>),
}

/// Puts what was built in use.
pub(super) type Commit = Box<dyn FnOnce()>;

/// A context that is made from secrets.
pub(super) trait Follower: Send + Sync {
    fn follows(&self, key: &Key) -> bool;
    /// Builds itself from what the secrets are, this one of `key` instead of the one before it; nothing uses it yet.
    ///
    /// # Errors
    /// The secret cannot be used here; what is in use stays.
    fn prepare(self: Arc<Self>, key: &Key, secret: &Parsed) -> Result<Commit, ConfigError>;
    fn view(&self) -> Option<CertificateView>;
}

/// Who uses secrets, and the secrets in parsed form: a thousand clusters share one.
#[derive(Default)]
pub(super) struct Users {
    followers: Mutex<Vec<Weak<dyn Follower>>>,
    client_cores: ClientCores,
    expiry: Mutex<ExpiryLadder>,
    parsed: Mutex<HashMap<Key, Known>>,
}

/// A parsed secret, good as long as its slot holds that very secret: a slot that is asked for again after it was let go
/// must not come upon the secret of its predecessor, which may have been deleted since.
struct Known {
    of: Weak<SecretKind>,
    parsed: Parsed,
}

impl Secrets {
    pub fn new(store: Store<SecretKind>) -> Arc<Secrets> {
        Arc::new(Secrets { store, users: Users::default() })
    }

    /// The slot key of a secret.
    pub fn key(secret: &SdsSecret) -> Key {
        Key { name: secret.name.clone(), source: secret.source.clone() }
    }

    /// Checks a secret (parses, key fits certificate, not expired), builds the contexts of all who hold its slot from it,
    /// and puts them in use before it returns: all of them, or none. New handshakes use it; connections stay as they are.
    ///
    /// # Errors
    /// What is wrong with it, by itself or for one of those who use it; the secret before it stays in use.
    pub fn update(&self, key: &Key, secret: SecretKind) -> Result<(), ConfigError> {
        let refused = |e: ConfigError| {
            ConfigError::new(e.path, format!("secret {}: {}; the one before it stays in use", key.name, e.message))
        };
        let parsed = parse(&secret).map_err(refused)?;
        if self.store.get(key).is_none() {
            return Ok(());
        }
        // not under the lock: building may take long and looks secrets up
        let followers: Vec<_> = self.followers().iter().filter_map(Weak::upgrade).collect();
        let followers = followers.into_iter().filter(|f| f.follows(key));
        let built: Result<Vec<Commit>, _> = followers.map(|f| f.prepare(key, &parsed)).collect();
        let built = built.map_err(refused)?;
        let secret = Arc::new(secret);
        self.remember(key.clone(), &secret, parsed);
        self.store.fill(key, secret);
        built.into_iter().for_each(|commit| commit());
        Ok(())
    }

    /// Nobody holds this secret's slot any more: its key material is let go at once.
    pub fn forget(&self, key: &Key) {
        self.parsed().remove(key);
    }

    /// Every certificate in use, for /certs; those that several contexts share stand there once.
    pub fn certificates(&self) -> Vec<CertificateView> {
        let followers: Vec<_> = self.followers().iter().filter_map(Weak::upgrade).collect();
        let mut seen = std::collections::HashSet::new();
        followers
            .iter()
            .filter_map(|follower| follower.view())
            .filter(|view| {
                let prints = |all: &[CertificateDetails]| -> Vec<[u8; 32]> {
                    all.iter().map(|d| d.certificate.fingerprint).collect()
                };
                seen.insert((prints(&view.ca), prints(&view.chain)))
            })
            .collect()
    }

    /// Logs certificates in use that come closer to their end: see [`ExpiryLadder`].
    pub fn warn_of_expiry(&self) {
        let views = self.certificates();
        let all = views.iter().flat_map(|v| v.ca.iter().chain(&v.chain));
        self.users.expiry.lock().unwrap_or_else(PoisonError::into_inner).climb(all, SystemTime::now());
    }

    pub(super) fn client_cores(&self) -> &ClientCores {
        &self.users.client_cores
    }

    /// Whole days until the first certificate in use expires, 0 when one has; `None` when there is none
    /// (`server.days_until_first_cert_expiring`).
    pub fn days_until_first_expiry(&self) -> Option<u64> {
        let views = self.certificates();
        let first = views.iter().flat_map(|v| v.ca.iter().chain(&v.chain)).map(|d| d.certificate.not_after).min()?;
        Some(first.duration_since(SystemTime::now()).unwrap_or_default().as_secs() / 86_400)
    }

    pub(super) fn follow(&self, follower: Weak<dyn Follower>) {
        let mut followers = self.followers();
        // growth is paid for by a clean-up whenever the list doubles
        if followers.len() == followers.capacity() {
            followers.retain(|f| f.strong_count() > 0);
        }
        followers.push(follower);
    }

    /// The parsed secret, once it is here.
    pub(super) fn get(&self, key: &Key) -> Option<Parsed> {
        let secret = self.store.get(key)?.load()?;
        if let Some(known) = self.parsed().get(key)
            && known.of.as_ptr() == Arc::as_ptr(&secret)
        {
            return Some(known.parsed.clone());
        }
        // filled by somebody who did not come through `update`: still never used unchecked
        let parsed = parse(&secret).ok()?;
        self.remember(key.clone(), &secret, parsed.clone());
        Some(parsed)
    }

    fn remember(&self, key: Key, of: &Arc<SecretKind>, parsed: Parsed) {
        let mut all = self.parsed();
        all.retain(|key, _| self.store.get(key).is_some());
        all.insert(key, Known { of: Arc::downgrade(of), parsed });
    }

    fn followers(&self) -> std::sync::MutexGuard<'_, Vec<Weak<dyn Follower>>> {
        self.users.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn parsed(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Known>> {
        self.users.parsed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse(secret: &SecretKind) -> Result<Parsed, ConfigError> {
    match secret {
        SecretKind::Certificate(certificate) => {
            identity(certificate).map(Parsed::Identity).map_err(|e| e.inside("tls_certificate"))
        }
        SecretKind::Validation(context) => {
            let bundle = bundle(context).map_err(|e| e.inside("validation_context"))?;
            some_ca_is_valid(&bundle).map_err(|e| e.inside("validation_context"))?;
            Ok(Parsed::Bundle(bundle))
        }
    }
}

/// A bundle that proves nobody any more would cut everyone off.
fn some_ca_is_valid(bundle: &Bundle) -> Result<(), ConfigError> {
    let now = SystemTime::now();
    let expired = |details: &CertificateDetails| details.certificate.not_after < now;
    let Some(first) = bundle.view.first().filter(|_| !bundle.context.allow_expired) else { return Ok(()) };
    if !bundle.view.iter().all(expired) {
        return Ok(());
    }
    let message = format!(
        "all of its {} certificates have expired (the first is {}, from {}); send a bundle with a CA that is valid",
        bundle.view.len(),
        first.certificate.subject,
        first.path
    );
    Err(ConfigError::new("trusted_ca", message))
}

/// A certificate and its key, checked: they parse, fit each other, and the leaf has not expired.
pub(super) fn identity(certificate: &TlsCertificate) -> Result<Arc<Identity>, ConfigError> {
    let chain = pem_certificates(&certificate.chain, "certificate_chain")?;
    let key = PrivateKeyDer::from_pem_slice(&certificate.key.bytes).map_err(|e| {
        ConfigError::new(
            "private_key",
            format!("found no private key in {}: {e}; expected PEM", origin(&certificate.key)),
        )
    })?;
    let key = any_supported_type(&key)
        .map_err(|e| ConfigError::new("private_key", format!("{} cannot be used: {e}", origin(&certificate.key))))?;
    let described = certificate::parse_leaf(chain.clone()).map_err(|e| ConfigError::new("certificate_chain", e))?;
    let mut described = described.certificate;
    if described.not_after < SystemTime::now() {
        let message = format!("the certificate of {} ({}) has expired", described.subject, origin(&certificate.chain));
        return Err(ConfigError::new("certificate_chain", message));
    }
    described.verified = true;
    let certified = CertifiedKey::new(chain.clone(), key);
    certified.keys_match().map_err(|_| {
        ConfigError::new("private_key", "the key is not the certificate's: check that both are of the same issue")
    })?;
    let path = origin(&certificate.chain);
    let view = details(&chain, &path)?;
    Ok(Arc::new(Identity { certified: Arc::new(certified), described: Arc::new(described), view }))
}

/// A validation context, checked: its CAs and CRLs parse.
pub(super) fn bundle(context: &Arc<ValidationContext>) -> Result<Arc<Bundle>, ConfigError> {
    let mut view = Vec::new();
    let trust = match &context.trusted_ca {
        None => None,
        Some(source) => {
            let certificates = pem_certificates(source, "trusted_ca")?;
            view = details(&certificates, &origin(source)).map_err(|e| e.inside("trusted_ca"))?;
            let anchors = certificates
                .iter()
                .map(|der| webpki::anchor_from_trusted_cert(der).map(|anchor| anchor.to_owned()))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| ConfigError::new("trusted_ca", format!("{} holds no usable CA: {e}", origin(source))))?;
            let not_after = view.iter().map(|d| d.certificate.not_after).collect();
            Some(Arc::new(Trust { anchors, certificates, not_after }))
        }
    };
    Ok(Arc::new(Bundle { context: context.clone(), trust, crls: Arc::new(crls(context)?), view }))
}

/// The rules of one context, or of a secret's merged over a default's as protobuf merges messages: single fields are
/// replaced when set, repeated ones appended.
///
/// # Errors
/// Names to match without a CA to trust: the names of an unproven certificate mean nothing.
pub(super) fn rules(default: Option<&Bundle>, over: &Bundle) -> Result<Rules, ConfigError> {
    let context = &over.context;
    let mut rules = Rules {
        trust: over.trust.clone(),
        crls: over.crls.clone(),
        accept_untrusted: context.accept_untrusted,
        allow_expired: context.allow_expired,
        ..Rules::default()
    };
    for bundle in default.into_iter().chain([over]) {
        rules.san_matchers.extend(bundle.context.san_matchers.iter().cloned());
        rules.certificate_hashes.extend(&bundle.context.certificate_hashes);
        rules.spki_hashes.extend(&bundle.context.spki_hashes);
    }
    if let Some(default) = default {
        rules.accept_untrusted |= default.context.accept_untrusted;
        rules.allow_expired |= default.context.allow_expired;
        rules.trust = rules.trust.take().or_else(|| default.trust.clone());
        if rules.crls.is_empty() {
            rules.crls = default.crls.clone();
        }
    }
    if rules.trust.is_none() && !rules.crls.is_empty() {
        return Err(ConfigError::new("crl", "a CRL needs a trusted_ca to be checked against"));
    }
    if rules.trust.is_none() && !rules.san_matchers.is_empty() {
        return Err(ConfigError::new(
            "match_typed_subject_alt_names",
            "SAN-based verification of peer certificates without trusted CA is insecure and not allowed",
        ));
    }
    Ok(rules)
}

fn crls(context: &ValidationContext) -> Result<Vec<webpki::CertRevocationList<'static>>, ConfigError> {
    let Some(source) = &context.crl else { return Ok(Vec::new()) };
    let fail = |e: String| ConfigError::new("crl", format!("{} cannot be read: {e}; expected PEM", origin(source)));
    let mut lists = Vec::new();
    for der in CertificateRevocationListDer::pem_slice_iter(&source.bytes) {
        let der = der.map_err(|e| fail(e.to_string()))?;
        let list = webpki::OwnedCertRevocationList::from_der(&der).map_err(|e| fail(e.to_string()))?;
        lists.push(list.into());
    }
    if lists.is_empty() { Err(fail("it holds no CRL".to_owned())) } else { Ok(lists) }
}

fn pem_certificates(source: &DataSource, field: &str) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let fail = |e: String| ConfigError::new(field, format!("{} cannot be read: {e}; expected PEM", origin(source)));
    let all = CertificateDer::pem_slice_iter(&source.bytes).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|e| fail(e.to_string()))?;
    if all.is_empty() { Err(fail("it holds no certificate".to_owned())) } else { Ok(all) }
}

fn details(chain: &[CertificateDer<'static>], path: &str) -> Result<Vec<CertificateDetails>, ConfigError> {
    chain
        .iter()
        .map(|der| {
            let certificate = certificate::parse(der.clone()).map_err(|e| ConfigError::new("", e))?;
            Ok(CertificateDetails { path: path.to_owned(), certificate: Arc::new(certificate) })
        })
        .collect()
}

fn origin(source: &DataSource) -> String {
    source.path.as_ref().map_or_else(|| "<inline>".to_owned(), |p| p.display().to_string())
}
