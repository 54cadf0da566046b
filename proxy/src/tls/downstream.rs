//! The server side of TLS on a filter chain.

use super::certificate;
use super::context::{Core, Current, Recipe};
use super::failure;
use super::material::Material;
use super::secrets::Identity;
use super::stats::{ContextStats, Side};
use super::verify::{Rules, Verifier, dns_covers};
use super::{PeerCertificate, Secrets, TlsFailure, TlsFailureKind, TlsInfo, suites};
use crate::config::ConfigError;
use crate::config::model::{CommonTls, DownstreamTlsConfig, TlsVersion};
use crate::net::Socket;
use crate::stats::Scope;
use rustls::crypto::CryptoProvider;
use rustls::server::{Acceptor, ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CommonState, HandshakeKind, ServerConfig};
use std::sync::Arc;
use std::time::SystemTime;
use tokio_rustls::LazyConfigAcceptor;

/// The server side of TLS on a filter chain.
pub struct DownstreamContext {
    core: Arc<Core<ServerRecipe>>,
    stats: Arc<ContextStats>,
}

struct ServerRecipe(Arc<DownstreamTlsConfig>);

struct Built {
    /// With our protocols, for clients that have one in common with us or do not ask.
    with_alpn: Arc<ServerConfig>,
    /// For clients that ask for none of ours: Envoy goes on without a protocol, rustls would refuse.
    without_alpn: Arc<ServerConfig>,
}

impl Recipe for ServerRecipe {
    type Built = Built;

    fn common(&self) -> &CommonTls {
        &self.0.common
    }

    fn build(&self, provider: &Arc<CryptoProvider>, material: &Material) -> Result<Built, ConfigError> {
        let ServerRecipe(settings) = self;
        let Material { identities, rules, .. } = material;
        if identities.is_empty() {
            return Err(ConfigError::new("tls_certificates", "No TLS certificates found for server context"));
        }
        let algorithms = provider.signature_verification_algorithms;
        let verifier = Verifier::new(rules.clone(), settings.require_client_certificate, algorithms);
        let mut config = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(suites::versions(&settings.common)?)
            .map_err(|e| ConfigError::new("tls_params", e.to_string()))?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(Chooser(identities.clone())));
        // As BoringSSL: the server's order for TLS 1.2, the client's for TLS 1.3 unless an order was configured.
        let ordered = !settings.common.cipher_suites.is_empty();
        config.ignore_client_order = ordered || settings.common.max_version == TlsVersion::V1_2;
        // A resumed session is not verified again, so tickets and sessions live and die with what verified them: every
        // build has keys and a store of its own.
        if settings.disable_stateful_resumption {
            config.session_storage = Arc::new(NoServerSessionStorage {});
        }
        if !settings.disable_stateless_resumption {
            config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()
                .map_err(|e| ConfigError::new("", format!("no random numbers for ticket keys: {e}")))?;
        } else if settings.disable_stateful_resumption {
            config.send_tls13_tickets = 0;
        }
        let without_alpn = Arc::new(config.clone());
        config.alpn_protocols = settings.common.alpn.iter().map(|p| p.to_vec()).collect();
        Ok(Built { with_alpn: Arc::new(config), without_alpn })
    }
}

impl DownstreamContext {
    /// `scope` is the listener's (`listener.<address>.`); stats are `ssl.*` below it.
    ///
    /// # Errors
    /// Names the field that cannot be used (cipher, certificate, CA).
    pub fn new(
        config: Arc<DownstreamTlsConfig>,
        secrets: &Arc<Secrets>,
        scope: &Scope,
    ) -> Result<Arc<DownstreamContext>, ConfigError> {
        let core = Core::new(ServerRecipe(config), secrets)?;
        let stats = Arc::new(ContextStats::new(scope, Side::Server));
        core.use_by(&stats);
        stats.get(core.load().as_ref().map(|current| current.material.expiries.as_slice()).unwrap_or_default());
        Ok(Arc::new(DownstreamContext { core, stats }))
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

    /// The handshake, unbounded in time: the caller sets the bound.
    pub async fn accept(
        &self,
        socket: Socket,
    ) -> Result<(Box<tokio_rustls::server::TlsStream<Socket>>, Arc<TlsInfo>), TlsFailure> {
        let current = self.core.load().inspect_err(|failure| self.stats.get(&[]).failed(failure, false))?;
        let Current { built, material } = &*current;
        let stats = self.stats.get(&material.expiries);
        let failed = |error: &std::io::Error| {
            let (failure, pinned) = TlsFailure::from_io(error);
            stats.failed(&failure, pinned);
            failure
        };
        let start = LazyConfigAcceptor::new(Acceptor::default(), socket).await.map_err(|e| failed(&e))?;
        let config = built.for_client(&start.client_hello());
        let stream = Box::new(start.into_stream(config.clone()).await.map_err(|e| failed(&e))?);
        let (_, connection) = stream.get_ref();
        let sni = connection.server_name().map(Box::from);
        let local = choose(&material.identities, sni.as_deref(), |_| true).map(|i| i.described.clone());
        let info = describe(connection, sni, local, &material.rules).inspect_err(|f| stats.failed(f, false))?;
        stats.succeeded(
            &info,
            connection.negotiated_cipher_suite().map(|s| s.suite()),
            connection.negotiated_key_exchange_group().map(|g| g.name()),
        );
        Ok((stream, Arc::new(info)))
    }
}

impl Built {
    fn for_client(&self, hello: &ClientHello<'_>) -> &Arc<ServerConfig> {
        let ours = &self.with_alpn.alpn_protocols;
        let none_of_ours = hello.alpn().is_some_and(|mut theirs| !theirs.any(|t| ours.iter().any(|o| o == t)));
        if none_of_ours { &self.without_alpn } else { &self.with_alpn }
    }
}

/// What a finished handshake settled, either side.
///
/// # Errors
/// A resumed session whose certificate has expired since it was verified, a certificate that cannot be read.
pub(super) fn describe(
    connection: &CommonState,
    sni: Option<Box<str>>,
    local: Option<Arc<PeerCertificate>>,
    rules: &Rules,
) -> Result<TlsInfo, TlsFailure> {
    let peer = match connection.peer_certificates() {
        None | Some([]) => None,
        Some(chain) => {
            let chain = chain.iter().map(|c| c.clone().into_owned()).collect();
            let leaf = certificate::parse_leaf(chain).map_err(failure::unreadable)?;
            let mut peer = leaf.certificate;
            peer.verified = rules.verify_anything();
            Some(peer)
        }
    };
    let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
    if let Some(peer) = &peer
        && resumed
        && peer.verified
        && !rules.allow_expired
        && peer.not_after < SystemTime::now()
    {
        return Err(failure::expired_in_session());
    }
    Ok(TlsInfo {
        version: suites::version_name(connection.protocol_version()),
        cipher: connection.negotiated_cipher_suite().and_then(|s| suites::suite_name(s.suite())).map_or("", |(_, n)| n),
        group: connection
            .negotiated_key_exchange_group()
            .and_then(|g| suites::group_name(g.name()))
            .map_or("", |(_, n)| n),
        sni,
        alpn: connection.alpn_protocol().map(Box::from),
        resumed,
        peer: peer.map(Arc::new),
        local,
    })
}

/// Shows a certificate that is for the server name and that the client can verify; failing a name, one that it can verify.
#[derive(Debug)]
struct Chooser(Vec<Arc<Identity>>);

impl ResolvesServerCert for Chooser {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let usable = |i: &Identity| i.certified.key.choose_scheme(hello.signature_schemes()).is_some();
        let chosen = choose(&self.0, hello.server_name(), usable).or(self.0.first());
        chosen.map(|i| i.certified.clone())
    }
}

fn choose<'a>(
    identities: &'a [Arc<Identity>],
    sni: Option<&str>,
    usable: impl Fn(&Identity) -> bool,
) -> Option<&'a Arc<Identity>> {
    let named = |i: &Identity| sni.is_some_and(|sni| i.described.dns_sans.iter().any(|san| dns_covers(san, sni)));
    let usable: Vec<_> = identities.iter().filter(|i| usable(i)).collect();
    usable.iter().find(|i| named(i)).or(usable.first()).copied()
}

impl TlsFailure {
    /// The handshake took longer than the caller allows.
    pub fn timed_out() -> TlsFailure {
        TlsFailure::new(TlsFailureKind::Handshake, "TLS_error: the handshake timed out")
    }
}
