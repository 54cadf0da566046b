//! The xDS streams: one aggregated, and one for each source and type (for secrets: and name) that has its own.

use super::stats::LimitStats;
use crate::config::model::{
    ApiConfigSource, Bootstrap, CertificateSource, CommonTls, ConfigSource, ConfigSourceKind, GrpcTarget, PathSource,
    SslCredentials, TlsCertificate, TlsVersion, UpstreamHttp, UpstreamProtocol, UpstreamTlsConfig, ValidationContext,
    ValidationSource,
};
use crate::services::Services;
use crate::tls::{ConnectOptions, UpstreamContext};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};
use tokio::sync::mpsc;
use xds_client::{
    BoxFuture, BoxIo, Client, Connect, Event, Events, FileOptions, Handshake, Keepalive, Method, Mode, Options,
    RateLimit, RestOptions, Target, TargetConnector, TypeUrl,
};

/// How this program names itself to control planes.
const USER_AGENT: &str = concat!("outrigger/", env!("CARGO_PKG_VERSION"));

/// Which stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum StreamId {
    Ads,
    /// Secrets have a stream each, as in Envoy: a server that cannot give one of them ends its stream only.
    Own {
        source: Arc<ApiConfigSource>,
        type_url: TypeUrl,
        name: Option<Arc<str>>,
    },
    /// No stream at all: a file, watched.
    File {
        source: Arc<PathSource>,
        type_url: TypeUrl,
    },
}

impl StreamId {
    /// What it brings resources from.
    pub fn source(&self) -> ConfigSourceKind {
        match self {
            StreamId::Ads => ConfigSourceKind::Ads,
            StreamId::Own { source, .. } => ConfigSourceKind::Api(source.clone()),
            StreamId::File { source, .. } => ConfigSourceKind::Path(source.clone()),
        }
    }

    /// Whether it has a control plane at its other end that a connection is kept to.
    pub fn is_connection(&self) -> bool {
        match self {
            StreamId::Ads => true,
            StreamId::Own { source, .. } => source.polling.is_none(),
            StreamId::File { .. } => false,
        }
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StreamId::Ads => f.write_str("ads"),
            StreamId::Own { source, type_url, name } => {
                write!(f, "{} of {}", type_url.message_name(), target_name(&source.target))?;
                name.as_ref().map_or(Ok(()), |name| write!(f, " ({name})"))
            }
            StreamId::File { source, .. } => write!(f, "file {}", source.path.display()),
        }
    }
}

fn target_name(target: &GrpcTarget) -> &str {
    match target {
        GrpcTarget::Cluster { name, .. } => name,
        GrpcTarget::Uri { uri, .. } => uri,
    }
}

/// A stream that is open, and what it serves.
struct Open {
    client: Client,
    /// Of streams that end with the last of them.
    names: HashSet<Arc<str>>,
    limits: Arc<Limits>,
}

/// What counts the rate limit of one stream, once that is known: the stats of what it serves.
#[derive(Debug, Default)]
struct Limits(OnceLock<LimitStats>);

impl xds_client::Stats for Limits {
    fn rate_limited(&self) {
        if let Some(stats) = self.0.get() {
            stats.rate_limited();
        }
    }

    fn pending_requests(&self, waiting: usize) {
        if let Some(stats) = self.0.get() {
            stats.pending_requests(waiting);
        }
    }
}

pub struct Streams {
    services: Arc<Services>,
    bootstrap: Arc<Bootstrap>,
    events: mpsc::Sender<(StreamId, Event)>,
    clients: HashMap<StreamId, Open>,
    reject_unknown_fields: bool,
    /// Of the aggregated stream.
    aggregated: Option<LimitStats>,
}

impl Streams {
    pub fn new(
        services: Arc<Services>,
        bootstrap: Arc<Bootstrap>,
        events: mpsc::Sender<(StreamId, Event)>,
        reject_unknown_fields: bool,
        aggregated: Option<LimitStats>,
    ) -> Streams {
        Streams { services, bootstrap, events, clients: HashMap::new(), reject_unknown_fields, aggregated }
    }

    /// The stream that serves a resource of this source, whether it is open or not.
    pub fn id(&self, source: &ConfigSource, type_url: &TypeUrl, name: Option<&Arc<str>>) -> StreamId {
        match &source.kind {
            ConfigSourceKind::Ads => StreamId::Ads,
            ConfigSourceKind::Path(path) => StreamId::File { source: path.clone(), type_url: type_url.clone() },
            ConfigSourceKind::Api(api) => StreamId::Own {
                source: api.clone(),
                type_url: type_url.clone(),
                name: name.filter(|_| *type_url == TypeUrl::SECRET).cloned(),
            },
        }
    }

    /// The client of that stream, opened when it is the first time. Unless it is the aggregated one, or serves everything of
    /// a type (no name), it ends when each name asked for here was given up.
    ///
    /// # Errors
    /// Why there is none: for the log, naming what to check.
    pub fn client(
        &mut self,
        source: &ConfigSource,
        type_url: &TypeUrl,
        name: Option<&Arc<str>>,
    ) -> Result<(StreamId, Client), String> {
        let id = self.id(source, type_url, name);
        let name = name.filter(|_| id != StreamId::Ads);
        if let Some(open) = self.clients.get_mut(&id) {
            open.names.extend(name.cloned());
            return Ok((id, open.client.clone()));
        }
        let limits = Arc::<Limits>::default();
        if let Some(aggregated) = self.aggregated.clone().filter(|_| id == StreamId::Ads) {
            _ = limits.0.set(aggregated);
        }
        let (client, events) = match &id {
            StreamId::Ads => {
                let api = self.bootstrap.ads.as_ref();
                let api = api.ok_or("the source is ADS, but the bootstrap has no ads_config")?;
                self.open(api, Method::Aggregated, limits.clone())?
            }
            StreamId::Own { source, type_url, .. } => {
                self.open(source, Method::Type(type_url.clone()), limits.clone())?
            }
            StreamId::File { source, type_url } => Client::watch_file(FileOptions {
                watched_directory: source.watched_directory.clone(),
                reject_unknown_fields: self.reject_unknown_fields,
                ..FileOptions::new(type_url.clone(), &source.path)
            }),
        };
        self.forward(&id, events);
        let open = Open { client: client.clone(), names: name.cloned().into_iter().collect(), limits };
        self.clients.insert(id.clone(), open);
        Ok((id, client))
    }

    /// Names what counts the rate limit of a stream; of several, the first.
    pub fn count_limits(&self, id: &StreamId, limits: LimitStats) {
        if let Some(open) = self.clients.get(id) {
            _ = open.limits.0.set(limits);
        }
    }

    fn open(&self, api: &ApiConfigSource, method: Method, limits: Arc<Limits>) -> Result<(Client, Events), String> {
        let http = self.http_of(&api.target);
        let http2 = api.polling.is_none() || http.is_some_and(|http| http.protocol == UpstreamProtocol::Http2);
        let connector: Arc<dyn Connect> = match &api.target {
            GrpcTarget::Cluster { name, authority } => {
                let connector = self.services.clusters.xds_connector(name, authority.clone(), http2);
                connector.ok_or_else(|| {
                    format!("the source names cluster '{name}', which static_resources.clusters does not have")
                })?
            }
            GrpcTarget::Uri { uri, credentials } => {
                let connector = TargetConnector::new(uri.parse::<Target>().map_err(|e| e.to_string())?);
                match credentials {
                    None => Arc::new(connector),
                    Some(credentials) => {
                        let channel = SecureChannel::new(credentials, &self.services)
                            .map_err(|e| format!("google_grpc {uri}: channel_credentials.ssl_credentials: {e}"))?;
                        Arc::new(connector.with_handshake(Arc::new(channel)))
                    }
                }
            }
        };
        let node = self.bootstrap.node.message.clone();
        match (&api.polling, method) {
            (Some(polling), Method::Type(type_url)) => {
                let options = RestOptions {
                    request_timeout: polling.request_timeout,
                    reject_unknown_fields: self.reject_unknown_fields,
                    user_agent: USER_AGENT.into(),
                    http2,
                    ..RestOptions::new(type_url, node, polling.refresh_delay)
                };
                Ok(Client::poll(options, connector))
            }
            (Some(_), Method::Aggregated) => Err("ads_config is a stream of gRPC, it cannot be polled".into()),
            (None, method) => {
                let mut options = Options {
                    mode: if api.delta { Mode::Delta } else { Mode::Sotw },
                    method,
                    set_node_on_first_message_only: api.set_node_on_first_message_only,
                    user_agent: USER_AGENT.into(),
                    rate_limit: api.rate_limit.map(|limit| RateLimit {
                        burst: limit.max_tokens,
                        per_second: limit.per_kilosecond as f64 / 1000.0,
                    }),
                    metadata: api.metadata.iter().cloned().collect(),
                    ..Options::new(node)
                };
                // The cluster's own pings, where it has any, as for its other connections.
                if let Some(own) = http.and_then(|http| http.http2.keepalive) {
                    let interval = own.interval.unwrap_or(Keepalive::default().interval);
                    options.keepalive = Some(Keepalive { interval, timeout: own.timeout });
                }
                if options.rate_limit.is_some() {
                    options.stats = limits;
                }
                Ok(Client::start(options, connector))
            }
        }
    }

    /// How the bootstrap's cluster of this target speaks HTTP.
    fn http_of(&self, target: &GrpcTarget) -> Option<&UpstreamHttp> {
        let GrpcTarget::Cluster { name, .. } = target else { return None };
        self.bootstrap.clusters.iter().find(|cluster| cluster.name == *name).map(|cluster| &cluster.http)
    }

    /// Has the events of one stream come in with those of the others.
    fn forward(&self, id: &StreamId, mut events: Events) {
        let (id, tx) = (id.clone(), self.events.clone());
        tokio::task::spawn_local(async move {
            while let Some(event) = events.next().await {
                if tx.send((id.clone(), event)).await.is_err() {
                    return;
                }
            }
        });
    }

    /// Gives up one name; a stream that served only this name ends. Says whether it did.
    pub fn unsubscribe(&mut self, id: &StreamId, type_url: &TypeUrl, name: &Arc<str>) -> bool {
        let Some(open) = self.clients.get_mut(id) else { return false };
        if open.names.remove(name) && open.names.is_empty() {
            self.clients.remove(id);
            return true;
        }
        open.client.unsubscribe(type_url, &[name]);
        false
    }
}

/// TLS of a `google_grpc` target.
struct SecureChannel(Arc<UpstreamContext>);

impl SecureChannel {
    fn new(credentials: &SslCredentials, services: &Services) -> Result<SecureChannel, String> {
        let SslCredentials { root_certs, identity } = credentials;
        let certificates = match identity.clone() {
            None => CertificateSource::None,
            Some((chain, key)) => CertificateSource::Inline(vec![TlsCertificate { chain, key }]),
        };
        let validation = ValidationContext { trusted_ca: Some(root_certs.clone()), ..ValidationContext::default() };
        let config = UpstreamTlsConfig {
            common: CommonTls {
                certificates,
                validation: ValidationSource::Inline(Arc::new(validation)),
                alpn: vec![b"h2".as_slice().into()],
                min_version: TlsVersion::V1_2,
                max_version: TlsVersion::V1_3,
                cipher_suites: Vec::new(),
                groups: Vec::new(),
            },
            sni: "".into(),
            auto_host_sni: false,
            // the server must be who the target says
            auto_sni_san_validation: true,
            max_session_keys: 1,
        };
        let scope = services.registry.scope("outrigger.xds.google_grpc.");
        let context = UpstreamContext::new(Arc::new(config), &services.secrets, &scope);
        context.map(SecureChannel).map_err(|e| e.to_string())
    }
}

impl Handshake for SecureChannel {
    fn handshake(&self, io: BoxIo, host: &str) -> BoxFuture<'static, io::Result<BoxIo>> {
        let (context, sni) = (self.0.clone(), Some(Arc::from(host)));
        Box::pin(async move {
            let options = ConnectOptions { sni, ..ConnectOptions::default() };
            let (stream, _) = context.connect(io, &options).await.map_err(|e| io::Error::other(e.to_string()))?;
            Ok(stream as BoxIo)
        })
    }
}
