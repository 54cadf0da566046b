//! The xDS streams: one aggregated, and one for each source and type (for secrets: and name) that has its own.

use super::is_ads;
use crate::config::model::{ApiConfigSource, Bootstrap, ConfigSource, ConfigSourceKind, GrpcTarget};
use crate::services::Services;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use tokio::sync::mpsc;
use xds_client::{Client, Connect, Event, Method, Mode, Options, TcpConnector, TypeUrl, UnixConnector};

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
    /// A source that no stream can serve.
    None,
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StreamId::Ads => f.write_str("ads"),
            StreamId::Own { source, type_url, name } => {
                write!(f, "{} of {}", type_url.message_name(), target_name(&source.target))?;
                name.as_ref().map_or(Ok(()), |name| write!(f, " ({name})"))
            }
            StreamId::None => f.write_str("no stream"),
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
}

impl Streams {
    pub fn new(services: Arc<Services>, bootstrap: Arc<Bootstrap>, events: mpsc::Sender<(StreamId, Event)>) -> Streams {
        Streams { services, bootstrap, events, clients: HashMap::new() }
    }

    /// The stream that serves a resource of this source, whether it is open or not.
    pub fn id(&self, source: &ConfigSource, type_url: &TypeUrl, name: Option<&Arc<str>>) -> StreamId {
        match &source.kind {
            _ if is_ads(source) => StreamId::Ads,
            ConfigSourceKind::Api(api) => StreamId::Own {
                source: api.clone(),
                type_url: type_url.clone(),
                name: name.filter(|_| *type_url == TypeUrl::SECRET).cloned(),
            },
            ConfigSourceKind::Ads | ConfigSourceKind::Path(_) => StreamId::None,
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
        let (api, method) = match &id {
            StreamId::Ads => {
                let api = self.bootstrap.ads.clone();
                (api.ok_or("the source is ADS, but the bootstrap has no ads_config")?, Method::Aggregated)
            }
            StreamId::Own { source, type_url, .. } => (source.clone(), Method::Type(type_url.clone())),
            StreamId::None => {
                return Err("path_config_source is not supported yet; use ADS or an api_config_source".into());
            }
        };
        let client = self.open(&id, &api, method)?;
        self.clients.insert(id.clone(), client.clone());
        Ok((id, client))
    }

    fn open(&self, id: &StreamId, api: &ApiConfigSource, method: Method) -> Result<Client, String> {
        let connector: Arc<dyn Connect> = match &api.target {
            GrpcTarget::Cluster { name, .. } => self.services.clusters.xds_connector(name).ok_or_else(|| {
                format!("envoy_grpc names cluster '{name}', which static_resources.clusters does not have")
            })?,
            GrpcTarget::Uri(uri) => match uri.strip_prefix("unix:") {
                Some(path) => Arc::new(UnixConnector::new(path.trim_start_matches("//"))),
                None => Arc::new(TcpConnector::new(uri.to_string())),
            },
        };
        let options = Options {
            mode: if api.delta { Mode::Delta } else { Mode::Sotw },
            method,
            set_node_on_first_message_only: api.set_node_on_first_message_only,
            user_agent: concat!("outrigger/", env!("CARGO_PKG_VERSION")).into(),
            ..Options::new(self.bootstrap.node.message.clone())
        };
        let (client, mut events) = Client::start(options, connector);
        let (id, tx) = (id.clone(), self.events.clone());
        tokio::task::spawn_local(async move {
            while let Some(event) = events.next().await {
                if tx.send((id.clone(), event)).await.is_err() {
                    return;
                }
            }
        });
        Ok(client)
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
