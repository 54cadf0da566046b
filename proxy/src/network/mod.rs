//! Network (L4) filters: what a filter chain does with a connection once its transport is up.

mod copy;
mod splice;
mod tcp_proxy;

pub use copy::{CHUNK, CopyError, Direction, copy_bidirectional, copy_transports};
pub use tcp_proxy::TcpProxy;

use crate::access_log::ConnectionInfo;
use crate::config::ConfigError;
use crate::config::model::{NetworkFilterConfig, TrafficDirection};
use crate::drain::Drain;
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
    /// No filter at all: connections are closed at once.
    Empty,
}

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
            [NetworkFilterConfig::HttpConnectionManager(config)] => {
                crate::http::ConnectionManager::compile(config, listener_stats, services).map(NetworkChain::Http)
            }
            [NetworkFilterConfig::TcpProxy(config)] => TcpProxy::compile(config, services).map(NetworkChain::Tcp),
            [_, ..] => Err(ConfigError::new("", "a terminal filter must be the last one of its chain")),
        }
        .map_err(|e| e.inside("typed_config").inside(&format!("filters[{place}]")))
    }

    /// Whether everything it needs to serve (its routes) has arrived or was given up on.
    pub fn is_settled(&self) -> bool {
        match self {
            NetworkChain::Http(manager) => manager.is_settled(),
            NetworkChain::Tcp(_) | NetworkChain::Empty => true,
        }
    }

    /// Name of the route configuration that it waits for.
    pub fn awaited(&self) -> Option<Arc<str>> {
        match self {
            NetworkChain::Http(manager) => manager.awaited(),
            NetworkChain::Tcp(_) | NetworkChain::Empty => None,
        }
    }

    /// Returns when `is_settled` first holds.
    pub async fn settled(&self) {
        if let NetworkChain::Http(manager) = self {
            manager.settled().await;
        }
    }

    /// Serves the connection to its end.
    pub async fn serve(&self, connection: Connection, worker: &Rc<Worker>) {
        match self {
            NetworkChain::Http(manager) => manager.clone().serve(connection, worker.clone()).await,
            NetworkChain::Tcp(proxy) => proxy.clone().serve(connection, worker.clone()).await,
            NetworkChain::Empty => {}
        }
    }
}
