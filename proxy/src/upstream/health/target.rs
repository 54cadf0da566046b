//! Where and over which transport a host is checked.

use super::ActiveHealth;
use crate::config::model::Address;
use crate::net::Transport;
use crate::tls::ConnectOptions;
use crate::upstream::cluster::{Cluster, Transport as ClusterTransport};
use crate::upstream::connect;
use crate::upstream::host::Host;
use http::Uri;
use http::uri::{Authority, PathAndQuery, Scheme};
use std::net::SocketAddr;
use std::sync::Arc;

pub(super) struct Target {
    pub cluster: Arc<Cluster>,
    pub host: Arc<Host>,
    pub health: Arc<ActiveHealth>,
}

impl Target {
    /// A connection, unbounded in time. Not counted with the cluster's traffic.
    ///
    /// # Errors
    /// A text that says why there is none.
    pub async fn connect(&self) -> Result<Transport, String> {
        let alpn = &self.health.check.alpn;
        let options = ConnectOptions { alpn: (!alpn.is_empty()).then(|| alpn.clone()), ..ConnectOptions::default() };
        let place = connect::Place { address: &self.address(), transport: self.transport(), host: &self.host };
        connect::open(&self.cluster, &place, &options, &[]).await.map(|connected| connected.transport)
    }

    fn transport(&self) -> &ClusterTransport {
        match &self.health.check.transport_criteria {
            Some(criteria) => self.cluster.transport_by(Some(criteria)),
            None => self.cluster.transport_for(&self.host),
        }
    }

    fn address(&self) -> Address {
        let own = &self.host.address.0;
        let Some(check) = self.host.check() else { return own.clone() };
        match (check.address.as_ref().unwrap_or(own), check.port) {
            (Address::Socket(socket), port) if port != 0 => Address::Socket(SocketAddr::new(socket.ip(), port)),
            (address, _) => address.clone(),
        }
    }

    /// The name that a check gives its host: the endpoint's, else the configured one, else the cluster's.
    pub fn host<'a>(&'a self, configured: &'a str) -> &'a str {
        match self.host.check().map(|check| &*check.hostname).filter(|name| !name.is_empty()) {
            Some(name) => name,
            None if configured.is_empty() => &self.cluster.config.name,
            None => configured,
        }
    }

    /// The target of an HTTP/2 request. A name that is no authority (the cluster's may be anything) gives way to the address.
    pub fn uri(&self, host: &str, path: PathAndQuery) -> Uri {
        let authority = host.parse().or_else(|_| self.host.address.to_string().parse());
        let mut parts = http::uri::Parts::default();
        parts.authority = Some(authority.unwrap_or_else(|_| Authority::from_static("localhost")));
        parts.scheme = Some(if self.is_tls() { Scheme::HTTPS } else { Scheme::HTTP });
        parts.path_and_query = Some(path);
        // all three parts are there
        Uri::from_parts(parts).unwrap_or_default()
    }

    fn is_tls(&self) -> bool {
        matches!(self.transport(), ClusterTransport::Tls { .. })
    }
}
