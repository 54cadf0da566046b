//! A connection manager as compiled from configuration: what all its connections share.

use super::routes::RouteTable;
use super::stats::HttpStats;
use crate::access_log::AccessLogs;
use crate::config::model::{DeliveredFilter, ExtensionConfig, HcmConfig, HttpFilterConfig, RouteSource};
use crate::config::{ConfigError, both, refuse_enabled};
use crate::dynamic_filter::DynamicFilter;
use crate::network::{Connection, Worker};
use crate::services::Services;
use crate::slots::{Commit, Follower, Key, Slot};
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
    /// Filters that come by ECDS; those that are disabled are only subscribed to.
    dynamic: Vec<HttpFilter>,
    pub(super) h1: hyper::server::conn::http1::Builder,
    pub(super) h2: hyper::server::conn::http2::Builder<super::connection::LocalExec>,
}

struct HttpFilter {
    filter: DynamicFilter<ExtensionConfig>,
    disabled: bool,
}

enum Routes {
    Inline(Arc<RouteTable>),
    Rds {
        slot: Arc<Slot<RouteTable>>,
        /// Keeps tables out that enable what is disabled here; `None`: any may come.
        _gate: Option<Arc<dyn Follower<RouteTable>>>,
    },
}

/// Keeps out route tables that enable a filter which this connection manager has disabled and must not pass by.
struct Gate(Arc<[Box<str>]>);

impl Follower<RouteTable> for Gate {
    fn prepare(&self, table: &Arc<RouteTable>) -> Result<Commit, ConfigError> {
        refuse_enabled(&self.0, &table.config)?;
        Ok(Box::new(|| {}))
    }
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
                let slot = services.routes.slot_counted(key, &format!("http.{}.", config.stat_prefix));
                let gate = (!config.disabled_guards.is_empty())
                    .then(|| Arc::new(Gate(config.disabled_guards.clone())) as Arc<dyn Follower<RouteTable>>);
                let followed = gate.as_ref().map_or(Ok(()), |gate| slot.follow(gate).map_err(|e| e.inside("rds")));
                followed.map(|()| Routes::Rds { slot, _gate: gate })
            }
        };
        let logs = AccessLogs::compile(&config.access_log, &services.log_files).map_err(|e| e.inside("access_log"));
        let (routes, logs) = both(routes, logs)?;
        let mut dynamic = Vec::new();
        for HttpFilterConfig::Dynamic { filter, disabled } in &config.http_filters {
            // what may come has nothing to build
            let filter = DynamicFilter::new(filter, services, |delivered| Ok(delivered.clone()));
            dynamic.push(HttpFilter { filter: filter.map_err(|e| e.inside("http_filters"))?, disabled: *disabled });
        }
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
            dynamic,
        }))
    }

    /// Whether its routes and filters are here, or the wait for them was given up.
    pub fn is_settled(&self) -> bool {
        let routes = match &self.routes {
            Routes::Inline(_) => true,
            Routes::Rds { slot, .. } => slot.is_settled(),
        };
        routes && self.dynamic.iter().all(|dynamic| dynamic.filter.is_settled())
    }

    /// What it waits for, as Envoy names such targets.
    pub fn awaited(&self) -> Vec<String> {
        let routes = match &self.routes {
            Routes::Rds { slot, .. } if !slot.is_settled() => {
                Some(format!("target RdsRouteConfigSubscription RDS local-init-target {}", slot.key.name))
            }
            Routes::Rds { .. } | Routes::Inline(_) => None,
        };
        self.dynamic.iter().filter_map(|dynamic| dynamic.filter.awaited()).chain(routes).collect()
    }

    /// Returns when `is_settled` first holds.
    pub async fn settled(&self) {
        for dynamic in &self.dynamic {
            dynamic.filter.settled().await;
        }
        if let Routes::Rds { slot, .. } = &self.routes {
            slot.settled().await;
        }
    }

    /// Whether a filter was not delivered: requests must not be served without it.
    pub(super) fn lacks_filter(&self) -> bool {
        self.dynamic.iter().any(|dynamic| !dynamic.disabled && dynamic.filter.is_missing())
    }

    /// Whether its filters end in a router, in place or delivered.
    pub(super) fn has_router(&self) -> bool {
        self.config.router.is_some() || self.dynamic.last().is_some_and(|dynamic| dynamic.filter.config().last)
    }

    /// Whether the router is told to add no `x-envoy-` headers.
    pub(super) fn suppresses_envoy_headers(&self) -> bool {
        if let Some(router) = &self.config.router {
            return router.suppress_envoy_headers;
        }
        let delivered = self.dynamic.last().and_then(|dynamic| dynamic.filter.load());
        delivered.is_some_and(
            |delivered| matches!(&delivered.filter, DeliveredFilter::Router(router) if router.suppress_envoy_headers),
        )
    }

    /// Serves the connection to its end: HTTP/1.1 or HTTP/2, upgrades included.
    pub async fn serve(self: Arc<Self>, connection: Connection, worker: Rc<Worker>) {
        super::connection::serve(self, connection, worker).await;
    }

    /// The route table now; `None` until RDS has delivered one.
    pub(super) fn routes(&self) -> Option<Arc<RouteTable>> {
        match &self.routes {
            Routes::Inline(table) => Some(table.clone()),
            Routes::Rds { slot, .. } => slot.load(),
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
