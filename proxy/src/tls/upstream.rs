//! The client side of TLS of a cluster.

use super::downstream::describe;
use super::material::{Material, Sources};
use super::secrets::{Follower, Identity};
use super::stats::{Side, TlsStats};
use super::verify::{Rules, Verifier};
use super::{CertificateView, ConnectOptions, Secrets, TlsFailure, TlsFailureKind, TlsInfo, suites};
use crate::config::ConfigError;
use crate::config::model::UpstreamTlsConfig;
use crate::net::Socket;
use crate::slots::Key;
use crate::stats::Scope;
use arc_swap::ArcSwapOption;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};
use rustls_pki_types::ServerName;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_rustls::TlsConnector;

/// At most so many kinds of [`ConnectOptions`] are remembered: they may follow request headers (`auto_sni`).
const MAX_VARIANTS: usize = 256;

/// rustls wants a name even where none is sent; this one never leaves the process.
const NO_NAME: &str = "no-server-name.invalid";

/// The client side of TLS of a cluster. Built on the control thread, again whenever one of its secrets changes; workers
/// only load what is built.
pub struct UpstreamContext {
    config: Arc<UpstreamTlsConfig>,
    secrets: Arc<Secrets>,
    sources: Sources,
    provider: Arc<CryptoProvider>,
    current: ArcSwapOption<Built>,
    /// Only one builds at a time, so that a later secret is never overtaken by an earlier one.
    building: Mutex<()>,
    stats: TlsStats,
}

struct Built {
    plain: Arc<ClientConfig>,
    /// Copies that differ in name to verify or protocols; each with its own sessions, because a resumed session is
    /// not verified again. Locked once per connection.
    variants: Mutex<HashMap<ConnectOptions, Arc<ClientConfig>>>,
    identity: Option<Arc<Identity>>,
    rules: Arc<Rules>,
    view: CertificateView,
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
        let in_common = |e: ConfigError| e.inside("common_tls_context");
        if !config.sni.is_empty() {
            server_name(&config.sni).map_err(|e| ConfigError::new("sni", e))?;
        }
        let sources = Sources::new(&config.common, secrets).map_err(in_common)?;
        suites::versions(&config.common).map_err(in_common)?;
        let context = Arc::new(UpstreamContext {
            provider: suites::provider(&config.common).map_err(in_common)?,
            secrets: secrets.clone(),
            sources,
            current: ArcSwapOption::empty(),
            building: Mutex::default(),
            stats: TlsStats::new(scope, Side::Client),
            config,
        });
        let follower: Arc<dyn Follower> = context.clone();
        secrets.follow(Arc::downgrade(&follower));
        match context.build() {
            Err(e) if context.sources.has_secrets() => tracing::warn!("TLS context is not ready: {e}"),
            other => other.map_err(in_common)?,
        }
        Ok(context)
    }

    /// Whether every secret has arrived or was given up on.
    pub fn is_settled(&self) -> bool {
        self.sources.is_settled()
    }

    /// Returns when `is_settled` first holds.
    pub async fn settled(&self) {
        self.sources.settled().await;
    }

    fn build(&self) -> Result<(), ConfigError> {
        let _one = self.building.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Material { identities, rules, view }) = self.sources.load(&self.secrets)? else { return Ok(()) };
        let algorithms = self.provider.signature_verification_algorithms;
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(suites::versions(&self.config.common)?)
            .map_err(|e| ConfigError::new("tls_params", e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier::named(rules.clone(), None, algorithms)))
            .with_client_cert_resolver(Arc::new(Shown(identities.iter().map(|i| i.certified.clone()).collect())));
        config.alpn_protocols = self.config.common.alpn.iter().map(|p| p.to_vec()).collect();
        config.resumption = self.resumption();
        let identity = identities.into_iter().next();
        let built = Built { plain: Arc::new(config), variants: Mutex::default(), identity, rules, view };
        self.current.store(Some(Arc::new(built)));
        Ok(())
    }

    fn resumption(&self) -> Resumption {
        match self.config.max_session_keys {
            0 => Resumption::disabled(),
            n => Resumption::in_memory_sessions(n as usize),
        }
    }

    /// The configuration for a connection with these options, which differ in more than the name sent.
    fn variant(&self, built: &Built, options: ConnectOptions) -> Arc<ClientConfig> {
        let mut variants = built.variants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = variants.get(&options) {
            return config.clone();
        }
        let mut config = ClientConfig::clone(&built.plain);
        let algorithms = self.provider.signature_verification_algorithms;
        let verifier = Verifier::named(built.rules.clone(), options.verify_name.clone(), algorithms);
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        if let Some(alpn) = &options.alpn {
            config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        }
        config.enable_sni = options.sni.is_some();
        config.resumption = self.resumption();
        let config = Arc::new(config);
        if variants.len() >= MAX_VARIANTS {
            variants.clear();
        }
        variants.insert(options, config.clone());
        config
    }

    /// The handshake, unbounded in time: the caller sets the bound.
    pub async fn connect(
        &self,
        socket: Socket,
        options: &ConnectOptions,
    ) -> Result<(Box<tokio_rustls::client::TlsStream<Socket>>, Arc<TlsInfo>), TlsFailure> {
        let fail = |failure: TlsFailure, pinned: bool| {
            self.stats.failed(&failure, pinned);
            failure
        };
        let Some(built) = self.current.load_full() else {
            return Err(fail(TlsFailure::not_ready(&self.sources.missing()), false));
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
            self.variant(&built, ConnectOptions { sni: told_apart, verify_name, alpn: options.alpn.clone() })
        };
        let stream = TlsConnector::from(config).connect(name, socket).await.map_err(|e| {
            let (failure, pinned) = TlsFailure::from_io(&e);
            fail(failure, pinned)
        })?;
        let stream = Box::new(stream);
        let (_, connection) = stream.get_ref();
        let local = built.identity.as_ref().map(|i| i.described.clone());
        let info =
            describe(connection, sni.map(|s| Box::from(&**s)), local, &built.rules).map_err(|f| fail(f, false))?;
        self.stats.succeeded(
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

impl Follower for UpstreamContext {
    fn follows(&self, key: &Key) -> bool {
        self.sources.follows(key)
    }

    fn rebuild(&self) {
        match self.build() {
            Ok(()) => self.stats.update_by_sds.inc(),
            Err(e) => tracing::warn!("a new secret cannot be used, the one before it stays: {e}"),
        }
    }

    fn view(&self) -> Option<CertificateView> {
        self.current.load().as_ref().map(|built| built.view.clone())
    }
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
