//! A connection manager as compiled from configuration: what all its connections share.

use super::routes::RouteTable;
use super::stats::HttpStats;
use crate::access_log::AccessLogs;
use crate::config::model::{HcmConfig, RouteSource};
use crate::config::{ConfigError, both};
use crate::network::{Connection, Worker};
use crate::services::Services;
use crate::slots::{Key, Slot};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

/// `envoy.filters.network.http_connection_manager`.
pub struct ConnectionManager {
    pub(super) config: Arc<HcmConfig>,
    pub(super) services: Arc<Services>,
    pub(super) stats: HttpStats,
    pub(super) logs: AccessLogs,
    routes: Routes,
    pub(super) h1: hyper::server::conn::http1::Builder,
    pub(super) h2: hyper::server::conn::http2::Builder<super::connection::LocalExec>,
}

enum Routes {
    Inline(Arc<RouteTable>),
    Rds(Arc<Slot<RouteTable>>),
}

impl ConnectionManager {
    /// `listener_stats` is `listener.<address>.` (for `listener.<address>.http.<prefix>.*`).
    ///
    /// # Errors
    /// The field that cannot be compiled.
    pub fn compile(
        config: &Arc<HcmConfig>,
        listener_stats: &str,
        services: &Arc<Services>,
    ) -> Result<Arc<ConnectionManager>, ConfigError> {
        let routes = match &config.routes {
            RouteSource::Inline(routes) => {
                RouteTable::compile(routes.clone(), services).map(Routes::Inline).map_err(|e| e.inside("route_config"))
            }
            RouteSource::Rds { name, source } => {
                let key = Key { name: name.clone(), source: Some(source.clone()) };
                Ok(Routes::Rds(services.routes.slot_counted(key, &format!("http.{}.", config.stat_prefix))))
            }
        };
        let logs = AccessLogs::compile(&config.access_log, &services.log_files).map_err(|e| e.inside("access_log"));
        let (routes, logs) = both(routes, logs)?;
        let registry = &services.registry;
        let stats = HttpStats::resolve(
            &registry.scope(&format!("http.{}.", config.stat_prefix)),
            &registry.scope(&format!("{listener_stats}http.{}.", config.stat_prefix)),
        );
        Ok(Arc::new(ConnectionManager {
            h1: super::connection::h1_builder(config),
            h2: super::connection::h2_builder(config),
            config: config.clone(),
            services: services.clone(),
            stats,
            logs,
            routes,
        }))
    }

    /// Whether its routes are here, or the wait for them was given up.
    pub fn is_settled(&self) -> bool {
        match &self.routes {
            Routes::Inline(_) => true,
            Routes::Rds(slot) => slot.is_settled(),
        }
    }

    /// Name of the route configuration that it waits for.
    pub fn awaited(&self) -> Option<Arc<str>> {
        match &self.routes {
            Routes::Rds(slot) if !slot.is_settled() => Some(slot.key.name.clone()),
            Routes::Rds(_) | Routes::Inline(_) => None,
        }
    }

    /// Returns when `is_settled` first holds.
    pub async fn settled(&self) {
        if let Routes::Rds(slot) = &self.routes {
            slot.settled().await;
        }
    }

    /// Serves the connection to its end: HTTP/1.1 or HTTP/2, upgrades included.
    pub async fn serve(self: Arc<Self>, connection: Connection, worker: Rc<Worker>) {
        super::connection::serve(self, connection, worker).await;
    }

    /// The route table now; `None` until RDS has delivered one.
    pub(super) fn routes(&self) -> Option<Arc<RouteTable>> {
        match &self.routes {
            Routes::Inline(table) => Some(table.clone()),
            Routes::Rds(slot) => slot.load(),
        }
    }
}

/// This machine's own address: what Envoy appends to x-forwarded-for for a peer on the loopback interface.
pub(super) fn local_ip() -> IpAddr {
    static LOCAL: OnceLock<IpAddr> = OnceLock::new();
    *LOCAL.get_or_init(|| {
        // connecting a UDP socket sends nothing: it only asks the kernel for a route and its source address. The
        // destination is TEST-NET-1 (RFC 5737)
        let routed = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
            .and_then(|socket| socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).and_then(|()| socket.local_addr()));
        routed.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip())
    })
}
