//! HTTP: the connection manager, one exchange at a time, its routes and its rules for paths and headers.

use crate::config::ConfigError;
use crate::config::model::{HcmConfig, RouteConfig};
use crate::network::{Connection, Worker};
use crate::services::Services;
use std::rc::Rc;
use std::sync::Arc;

/// `envoy.filters.network.http_connection_manager`.
pub struct ConnectionManager {}

impl ConnectionManager {
    /// `listener_stats` is `listener.<address>.` (for `listener.<address>.http.<prefix>.*`).
    ///
    /// # Errors
    /// The field that cannot be compiled.
    pub fn compile(
        _config: &Arc<HcmConfig>,
        _listener_stats: &str,
        _services: &Arc<Services>,
    ) -> Result<Arc<ConnectionManager>, ConfigError> {
        todo!()
    }

    pub fn is_settled(&self) -> bool {
        todo!()
    }

    pub async fn settled(&self) {
        todo!()
    }

    /// Serves the connection to its end: HTTP/1.1 or HTTP/2, upgrades included.
    pub async fn serve(self: Arc<Self>, _connection: Connection, _worker: Rc<Worker>) {
        todo!()
    }
}

/// A compiled route configuration: virtual hosts indexed, header formats compiled, clusters bound to their slots.
pub struct RouteTable {
    pub config: Arc<RouteConfig>,
}

impl RouteTable {
    /// # Errors
    /// Duplicate domains, bad header formats; unknown clusters when `validate_clusters` is set.
    pub fn compile(_config: Arc<RouteConfig>, _services: &Arc<Services>) -> Result<Arc<RouteTable>, ConfigError> {
        todo!()
    }
}
