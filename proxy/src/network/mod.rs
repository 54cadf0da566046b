//! Network (L4) filters: what a filter chain does with a connection once its transport is up.

mod copy;
mod splice;
mod tcp_proxy;

pub use copy::{CHUNK, CopyError, Direction, copy_bidirectional, copy_transports};
pub use tcp_proxy::TcpProxy;

use crate::access_log::ConnectionInfo;
use crate::config::ConfigError;
use crate::config::model::{DeliveredFilter, NetworkFilterConfig, TrafficDirection};
use crate::drain::Drain;
use crate::dynamic_filter::DynamicFilter;
use crate::net::{OriginalDst, Transport};
use crate::services::Services;
use crate::upstream::WorkerUpstream;
use std::rc::Rc;
use std::sync::Arc;

/// What the code on one worker thread shares.
pub struct Worker {
    pub index: usize,
    pub services: Arc<Services>,
    pub upstream: Rc<WorkerUpstream>,
}

/// An accepted connection with its transport up, on its way through a filter chain.
pub struct Connection {
    pub transport: Transport,
    pub info: Rc<ConnectionInfo>,
    pub original_dst: Option<OriginalDst>,
    pub direction: TrafficDirection,
    /// The filter chain's.
    pub drain: Drain,
    /// Soft limit of what is buffered per direction, bytes.
    pub buffer_limit: u32,
}

/// The compiled network filters of one filter chain.
pub enum NetworkChain {
    Http(Arc<crate::http::ConnectionManager>),
    Tcp(Arc<TcpProxy>),
    /// Some of the filters come by ECDS.
    Dynamic(Box<DynamicChain>),
    /// No filter at all: connections are closed at once.
    Empty,
}

/// Filters of which some come by ECDS.
pub struct DynamicChain {
    /// All that ECDS has; of these only the last of the chain does something with connections.
    filters: Vec<DynamicFilter<NetworkChain>>,
    /// The last filter, if it stands in place.
    fixed: Option<NetworkChain>,
}

impl DynamicChain {
    fn compile(
        filters: &[NetworkFilterConfig],
        listener_stats: &str,
        services: &Arc<Services>,
    ) -> Result<DynamicChain, ConfigError> {
        let mut chain = DynamicChain { filters: Vec::new(), fixed: None };
        for filter in filters {
            let NetworkFilterConfig::Dynamic(config) = filter else {
                let fixed = NetworkChain::one(filter, listener_stats, services)?;
                if chain.fixed.replace(fixed).is_some() {
                    return Err(ConfigError::new("", TWO_ENDS));
                }
                continue;
            };
            let (prefix, shared) = (listener_stats.to_owned(), services.clone());
            chain.filters.push(DynamicFilter::new(config, services, move |delivered| {
                let built = match &delivered.filter {
                    DeliveredFilter::Network(filter) => NetworkChain::one(filter, &prefix, &shared),
                    DeliveredFilter::Passed | DeliveredFilter::Router(_) | DeliveredFilter::Listener(_) => {
                        Ok(NetworkChain::Empty)
                    }
                };
                built.map(Arc::new)
            })?);
        }
        Ok(chain)
    }

    /// What ends the chain, if ECDS has it.
    fn delivered(&self) -> Option<Arc<NetworkChain>> {
        self.filters.last().filter(|filter| filter.config().last)?.load()
    }
}

const TWO_ENDS: &str = "a terminal filter must be the last one of its chain";

impl NetworkChain {
    /// `listener_stats` is `listener.<address>.`; `place` is that of the filter in the chain's message.
    ///
    /// # Errors
    /// The filter's place and field.
    pub fn compile(
        filters: &[NetworkFilterConfig],
        place: usize,
        listener_stats: &str,
        services: &Arc<Services>,
    ) -> Result<NetworkChain, ConfigError> {
        match filters {
            [] => Ok(NetworkChain::Empty),
            filters if filters.iter().any(|filter| matches!(filter, NetworkFilterConfig::Dynamic(_))) => {
                DynamicChain::compile(filters, listener_stats, services)
                    .map(|chain| NetworkChain::Dynamic(chain.into()))
            }
            [filter] => NetworkChain::one(filter, listener_stats, services),
            [_, ..] => Err(ConfigError::new("", TWO_ENDS)),
        }
        .map_err(|e| e.inside("typed_config").inside(&format!("filters[{place}]")))
    }

    /// A terminal filter that stands in place.
    fn one(
        filter: &NetworkFilterConfig,
        listener_stats: &str,
        services: &Arc<Services>,
    ) -> Result<NetworkChain, ConfigError> {
        match filter {
            NetworkFilterConfig::HttpConnectionManager(config) => {
                crate::http::ConnectionManager::compile(config, listener_stats, services).map(NetworkChain::Http)
            }
            NetworkFilterConfig::TcpProxy(config) => TcpProxy::compile(config, services).map(NetworkChain::Tcp),
            NetworkFilterConfig::Dynamic(_) => Err(ConfigError::new("", "a filter by ECDS cannot come by ECDS")),
        }
    }

    /// Whether everything it needs to serve (its routes, its filters) has arrived or was given up on.
    pub fn is_settled(&self) -> bool {
        match self {
            NetworkChain::Http(manager) => manager.is_settled(),
            NetworkChain::Dynamic(chain) => {
                chain.filters.iter().all(DynamicFilter::is_settled)
                    && chain.fixed.as_ref().is_none_or(NetworkChain::is_settled)
                    && chain.delivered().is_none_or(|last| last.is_settled())
            }
            NetworkChain::Tcp(_) | NetworkChain::Empty => true,
        }
    }

    /// What it waits for, as Envoy names such targets.
    pub fn awaited(&self) -> Vec<String> {
        match self {
            NetworkChain::Http(manager) => manager.awaited(),
            NetworkChain::Dynamic(chain) => {
                let fixed = chain.fixed.iter().flat_map(NetworkChain::awaited);
                let delivered = chain.delivered().map(|last| last.awaited()).unwrap_or_default();
                chain.filters.iter().filter_map(DynamicFilter::awaited).chain(fixed).chain(delivered).collect()
            }
            NetworkChain::Tcp(_) | NetworkChain::Empty => Vec::new(),
        }
    }

    /// Returns when `is_settled` first holds.
    pub async fn settled(&self) {
        match self {
            NetworkChain::Http(manager) => manager.settled().await,
            NetworkChain::Dynamic(chain) => {
                for filter in &chain.filters {
                    filter.settled().await;
                }
                if let Some(fixed) = &chain.fixed {
                    Box::pin(fixed.settled()).await;
                }
                if let Some(last) = chain.delivered() {
                    Box::pin(last.settled()).await;
                }
            }
            NetworkChain::Tcp(_) | NetworkChain::Empty => {}
        }
    }

    /// Whether a filter was not delivered: connections must not be served without it.
    pub fn lacks_filter(&self) -> bool {
        match self {
            NetworkChain::Dynamic(chain) => chain.filters.iter().any(DynamicFilter::is_missing),
            NetworkChain::Http(_) | NetworkChain::Tcp(_) | NetworkChain::Empty => false,
        }
    }

    /// Serves the connection to its end.
    pub async fn serve(&self, connection: Connection, worker: &Rc<Worker>) {
        match self {
            NetworkChain::Http(manager) => manager.clone().serve(connection, worker.clone()).await,
            NetworkChain::Tcp(proxy) => proxy.clone().serve(connection, worker.clone()).await,
            // a filter may have been taken away during the handshake
            NetworkChain::Dynamic(_) if self.lacks_filter() => {}
            NetworkChain::Dynamic(chain) => match (&chain.fixed, chain.delivered()) {
                (Some(last), _) => Box::pin(last.serve(connection, worker)).await,
                (None, Some(last)) => Box::pin(last.serve(connection, worker)).await,
                (None, None) => {}
            },
            NetworkChain::Empty => {}
        }
    }
}
