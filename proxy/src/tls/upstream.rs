//! The client side of TLS of a cluster.

use super::context::{Core, Current, Recipe};
use super::downstream::describe;
use super::material::Material;
use super::stats::{ContextStats, Side};
use super::verify::Verifier;
use super::{ConnectOptions, Secrets, TlsFailure, TlsFailureKind, TlsInfo, suites};
use crate::config::ConfigError;
use crate::config::model::{CertificateSource, CommonTls, UpstreamTlsConfig, ValidationSource};
use crate::stats::Scope;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};
use rustls_pki_types::ServerName;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// At most so many kinds of [`ConnectOptions`] are remembered: they may follow request headers (`auto_sni`).
const MAX_VARIANTS: usize = 256;

/// rustls wants a name even where none is sent; this one never leaves the process.
const NO_NAME: &str = "no-server-name.invalid";

/// So many sessions at least are kept for resumption: clusters that share a context share its sessions, which are told
/// apart by server name.
const SHARED_SESSIONS: usize = 512;

/// The client side of TLS of a cluster. Clusters of equal settings share all of it but their stats.
pub struct UpstreamContext {
    config: Arc<UpstreamTlsConfig>,
    core: Arc<Core<ClientRecipe>>,
    stats: Arc<ContextStats>,
}

/// What is built depends on `common` and `max_session_keys`; names are given with each connection.
pub(super) struct ClientRecipe(Arc<UpstreamTlsConfig>);

pub(super) struct Built {
    plain: Arc<ClientConfig>,
    /// Copies that differ in name to verify or protocols; each with its own sessions, because a resumed session is
    /// not verified again. Locked once per connection.
    variants: Mutex<HashMap<ConnectOptions, Arc<ClientConfig>>>,
}

impl ClientRecipe {
    /// Whether a core made for one serves the other.
    fn is_equal(&self, config: &UpstreamTlsConfig) -> bool {
        self.0.max_session_keys == config.max_session_keys && self.0.common == config.common
    }

    fn resumption(&self) -> Resumption {
        match self.0.max_session_keys {
            0 => Resumption::disabled(),
            n => Resumption::in_memory_sessions((n as usize).max(SHARED_SESSIONS)),
        }
    }
}

impl Recipe for ClientRecipe {
    type Built = Built;

    fn common(&self) -> &CommonTls {
        &self.0.common
    }

    fn build(&self, provider: &Arc<CryptoProvider>, material: &Material) -> Result<Built, ConfigError> {
        let Material { identities, rules, .. } = material;
        let algorithms = provider.signature_verification_algorithms;
        let mut config = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(suites::versions(self.common())?)
            .map_err(|e| ConfigError::new("tls_params", e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier::named(rules.clone(), None, algorithms)))
            .with_client_cert_resolver(Arc::new(Shown(identities.iter().map(|i| i.certified.clone()).collect())));
        config.alpn_protocols = self.common().alpn.iter().map(|p| p.to_vec()).collect();
        config.resumption = self.resumption();
        Ok(Built { plain: Arc::new(config), variants: Mutex::default() })
    }
}

/// The cores that are in use, by a hash of what makes them equal.
#[derive(Default)]
pub(super) struct ClientCores(Mutex<HashMap<u64, Vec<Weak<Core<ClientRecipe>>>>>);

impl ClientCores {
    /// The core of these settings, made when it is new.
    fn get(
        &self,
        config: &Arc<UpstreamTlsConfig>,
        secrets: &Arc<Secrets>,
    ) -> Result<Arc<Core<ClientRecipe>>, ConfigError> {
        let mut cores = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = content_hash(config);
        if let Some(equal) = cores.get_mut(&hash) {
            equal.retain(|core| core.strong_count() > 0);
            if let Some(core) = equal.iter().filter_map(Weak::upgrade).find(|core| core.recipe.is_equal(config)) {
                return Ok(core);
            }
        } else if cores.len() == cores.capacity() {
            // growth is paid for by a clean-up
            cores.retain(|_, equal| equal.iter().any(|core| core.strong_count() > 0));
        }
        let core = Core::new(ClientRecipe(config.clone()), secrets)?;
        cores.entry(hash).or_default().push(Arc::downgrade(&core));
        Ok(core)
    }
}

/// Of what tells most contexts apart; what has equal hashes is still compared.
fn content_hash(config: &UpstreamTlsConfig) -> u64 {
    let CommonTls { certificates, validation, alpn, min_version, max_version, cipher_suites, groups } = &config.common;
    let mut hasher = DefaultHasher::new();
    (config.max_session_keys, alpn, *min_version as u8, *max_version as u8).hash(&mut hasher);
    (cipher_suites, groups).hash(&mut hasher);
    if let CertificateSource::Sds(secret) = certificates {
        secret.hash(&mut hasher);
    }
    let context = match validation {
        ValidationSource::None => None,
        ValidationSource::Inline(context) => Some(context),
        ValidationSource::Sds(secret) => {
            secret.hash(&mut hasher);
            None
        }
        ValidationSource::Combined { default, secret } => {
            secret.hash(&mut hasher);
            Some(default)
        }
    };
    for matcher in context.iter().flat_map(|context| &context.san_matchers) {
        format!("{matcher:?}").hash(&mut hasher);
    }
    hasher.finish()
}

impl UpstreamContext {
    /// `scope` is the cluster's (`cluster.<name>.`).
    ///
    /// # Errors
    /// Names the field that cannot be used.
    pub fn new(
        config: Arc<UpstreamTlsConfig>,
        secrets: &Arc<Secrets>,
        scope: &Scope,
    ) -> Result<Arc<UpstreamContext>, ConfigError> {
        if !config.sni.is_empty() {
            server_name(&config.sni).map_err(|e| ConfigError::new("sni", e))?;
        }
        let core = secrets.client_cores().get(&config, secrets)?;
        let stats = Arc::new(ContextStats::new(scope, Side::Client));
        core.use_by(&stats);
        Ok(Arc::new(UpstreamContext { config, core, stats }))
    }

    /// Whether every secret has arrived or was given up on.
    pub fn is_settled(&self) -> bool {
        self.core.is_settled()
    }

    /// Returns when `is_settled` first holds.
    pub async fn settled(&self) {
        self.core.settled().await;
    }

    /// Names of the secrets that warming waits for.
    pub fn awaited(&self) -> Vec<Arc<str>> {
        self.core.awaited()
    }

    /// The configuration for a connection with these options, which differ in more than the name sent.
    fn variant(&self, current: &Current<Built>, options: ConnectOptions) -> Arc<ClientConfig> {
        let Current { built, material } = current;
        let mut variants = built.variants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = variants.get(&options) {
            return config.clone();
        }
        let mut config = ClientConfig::clone(&built.plain);
        let algorithms = self.core.provider.signature_verification_algorithms;
        let verifier = Verifier::named(material.rules.clone(), options.verify_name.clone(), algorithms);
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        if let Some(alpn) = &options.alpn {
            config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        }
        config.enable_sni = options.sni.is_some();
        config.resumption = self.core.recipe.resumption();
        let config = Arc::new(config);
        if variants.len() >= MAX_VARIANTS {
            variants.clear();
        }
        variants.insert(options, config.clone());
        config
    }

    /// The handshake, unbounded in time: the caller sets the bound.
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        socket: S,
        options: &ConnectOptions,
    ) -> Result<(Box<TlsStream<S>>, Arc<TlsInfo>), TlsFailure> {
        let current = self.core.load().inspect_err(|failure| self.stats.get(&[]).failed(failure, false))?;
        let Current { built, material } = &*current;
        let stats = self.stats.get(&material.expiries);
        let fail = |failure: TlsFailure, pinned: bool| {
            stats.failed(&failure, pinned);
            failure
        };
        let configured = Some(&self.config.sni).filter(|sni| !sni.is_empty());
        let sni = options.sni.as_ref().filter(|sni| !sni.is_empty()).or(configured);
        let verify_name = match &options.verify_name {
            None if self.config.auto_sni_san_validation => sni.cloned(),
            name => name.clone(),
        };
        let name = server_name(sni.map_or(NO_NAME, |sni| sni))
            .map_err(|e| fail(TlsFailure::new(TlsFailureKind::Handshake, format!("TLS_error: {e}")), false))?;
        let config = if verify_name.is_none() && options.alpn.is_none() && sni.is_some() {
            built.plain.clone()
        } else {
            // sessions are kept by server name inside a variant, so the name itself need not tell variants apart
            let told_apart = sni.map(|_| Arc::from(""));
            self.variant(&current, ConnectOptions { sni: told_apart, verify_name, alpn: options.alpn.clone() })
        };
        let stream = TlsConnector::from(config).connect(name, socket).await.map_err(|e| {
            let (failure, pinned) = TlsFailure::from_io(&e);
            fail(failure, pinned)
        })?;
        let stream = Box::new(stream);
        let (_, connection) = stream.get_ref();
        let local = material.identities.first().map(|i| i.described.clone());
        let info =
            describe(connection, sni.map(|s| Box::from(&**s)), local, &material.rules).map_err(|f| fail(f, false))?;
        stats.succeeded(
            &info,
            connection.negotiated_cipher_suite().map(|s| s.suite()),
            connection.negotiated_key_exchange_group().map(|g| g.name()),
        );
        Ok((stream, Arc::new(info)))
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(name.to_owned())
        .map_err(|_| format!("{name:?} cannot be a server name: expected a DNS name or an IP address"))
}

/// Shows our certificate to servers that ask; whichever of ours the server can verify. As Envoy, does not heed the list of
/// CAs that the server would like.
#[derive(Debug)]
struct Shown(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.iter().find(|c| c.key.choose_scheme(schemes).is_some()).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::{SdsSecret, StatsConfig, TlsVersion, UpstreamTlsConfig};
    use crate::slots::{Kind, Store};
    use crate::stats::Registry;

    fn config(secret: &str, sni: &str) -> Arc<UpstreamTlsConfig> {
        Arc::new(UpstreamTlsConfig {
            common: CommonTls {
                certificates: CertificateSource::Sds(SdsSecret { name: secret.into(), source: None }),
                validation: ValidationSource::None,
                alpn: Vec::new(),
                min_version: TlsVersion::V1_2,
                max_version: TlsVersion::V1_3,
                cipher_suites: Vec::new(),
                groups: Vec::new(),
            },
            sni: sni.into(),
            auto_host_sni: false,
            auto_sni_san_validation: false,
            max_session_keys: 1,
        })
    }

    #[test]
    fn clusters_of_equal_settings_share_a_context() {
        let (wants, _told) = tokio::sync::mpsc::unbounded_channel();
        let secrets = Secrets::new(Store::new(Kind::Secret, wants));
        let registry = Registry::new(StatsConfig::default());
        let make = |name: &str, secret: &str| {
            let scope = registry.scope(&format!("cluster.{name}."));
            UpstreamContext::new(config(secret, &format!("{name}.test")), &secrets, &scope).unwrap()
        };
        let (a, b, other) = (make("a", "default"), make("b", "default"), make("c", "another"));
        assert!(Arc::ptr_eq(&a.core, &b.core) && !Arc::ptr_eq(&a.core, &other.core));
        let before = Arc::downgrade(&a.core);
        drop((a, b));
        assert!(before.upgrade().is_none(), "nobody holds it any more");
        assert!(make("a", "default").awaited() == [Arc::from("default")]);
    }
}
