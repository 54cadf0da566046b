//! The xDS streams: one aggregated, and one for each source and type (for secrets: and name) that has its own.

use super::stats::LimitStats;
use crate::config::model::{ApiConfigSource, Bootstrap, ConfigSource, ConfigSourceKind, GrpcTarget, PathSource};
use crate::services::Services;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use tokio::sync::mpsc;
use xds_client::{
    Client, Connect, Event, Events, FileOptions, Method, Mode, Options, RateLimit, RestOptions, Target,
    TargetConnector, TypeUrl,
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
        GrpcTarget::Uri(uri) => uri,
    }
}

pub struct Streams {
    services: Arc<Services>,
    bootstrap: Arc<Bootstrap>,
    events: mpsc::Sender<(StreamId, Event)>,
    clients: HashMap<StreamId, Client>,
    reject_unknown_fields: bool,
    /// Of the aggregated stream.
    limits: Option<LimitStats>,
}

impl Streams {
    pub fn new(
        services: Arc<Services>,
        bootstrap: Arc<Bootstrap>,
        events: mpsc::Sender<(StreamId, Event)>,
        reject_unknown_fields: bool,
        limits: Option<LimitStats>,
    ) -> Streams {
        Streams { services, bootstrap, events, clients: HashMap::new(), reject_unknown_fields, limits }
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

    /// The client of that stream, opened when it is the first time.
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
        if let Some(client) = self.clients.get(&id) {
            return Ok((id, client.clone()));
        }
        let (client, events) = match &id {
            StreamId::Ads => {
                let api = self.bootstrap.ads.as_ref();
                let api = api.ok_or("the source is ADS, but the bootstrap has no ads_config")?;
                self.open(api, Method::Aggregated)?
            }
            StreamId::Own { source, type_url, .. } => self.open(source, Method::Type(type_url.clone()))?,
            StreamId::File { source, type_url } => Client::watch_file(FileOptions {
                watched_directory: source.watched_directory.clone(),
                reject_unknown_fields: self.reject_unknown_fields,
                ..FileOptions::new(type_url.clone(), &source.path)
            }),
        };
        self.forward(&id, events);
        self.clients.insert(id.clone(), client.clone());
        Ok((id, client))
    }

    fn open(&self, api: &ApiConfigSource, method: Method) -> Result<(Client, Events), String> {
        let connector: Arc<dyn Connect> = match &api.target {
            GrpcTarget::Cluster { name, .. } => self.services.clusters.xds_connector(name).ok_or_else(|| {
                format!("the source names cluster '{name}', which static_resources.clusters does not have")
            })?,
            GrpcTarget::Uri(uri) => Arc::new(TargetConnector::new(uri.parse::<Target>().map_err(|e| e.to_string())?)),
        };
        let node = self.bootstrap.node.message.clone();
        match (&api.polling, method) {
            (Some(polling), Method::Type(type_url)) => {
                let options = RestOptions {
                    request_timeout: polling.request_timeout,
                    reject_unknown_fields: self.reject_unknown_fields,
                    user_agent: USER_AGENT.into(),
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
                    ..Options::new(node)
                };
                if let (Method::Aggregated, Some(limits)) = (&options.method, &self.limits) {
                    options.stats = Arc::new(limits.clone());
                }
                Ok(Client::start(options, connector))
            }
        }
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

    /// Gives up one name; a stream that served only this name ends.
    pub fn unsubscribe(&mut self, id: &StreamId, type_url: &TypeUrl, name: &Arc<str>) {
        match id {
            StreamId::Own { name: Some(_), .. } => drop(self.clients.remove(id)),
            _ => {
                if let Some(client) = self.clients.get(id) {
                    client.unsubscribe(type_url, &[name]);
                }
            }
        }
    }
}
