//! Connections for raw bytes. Never pooled: each belongs to one downstream connection.

use super::cluster::Cluster;
use super::connect::{Connected, ConnectionGuard, establish, next_connection_id};
use super::host::Host;
use super::{UpstreamConnectionInfo, UpstreamError, UpstreamErrorKind};
use crate::config::model::Priority;
use crate::net::Transport;
use crate::tls::ConnectOptions;
use std::sync::Arc;

/// A raw upstream connection; counted against the breakers until dropped.
pub struct TcpLease {
    pub transport: Transport,
    pub info: UpstreamConnectionInfo,
    /// To be told of bytes ([`ConnectionGuard::received`], [`ConnectionGuard::sent`]) and of the remote's close; counts
    /// the connection as active while it lives.
    pub guard: TcpGuard,
}

/// What counts a raw connection while it lives.
pub struct TcpGuard {
    pub connection: ConnectionGuard,
    cluster: Arc<Cluster>,
    host: Arc<Host>,
}

impl Drop for TcpGuard {
    fn drop(&mut self) {
        self.cluster.end_request(&self.host, Priority::Default);
    }
}

/// Opens a connection within the breakers and the connect timeout.
pub(super) async fn open(cluster: &Arc<Cluster>, host: &Arc<Host>) -> Result<TcpLease, UpstreamError> {
    let breakers = cluster.breakers(Priority::Default);
    if !breakers.connections.has_room() {
        cluster.stats().upstream_cx_overflow.inc();
        return Err(UpstreamError::new(UpstreamErrorKind::Overflow));
    }
    let mut connection = ConnectionGuard::new(cluster, host, Priority::Default);
    let Connected { transport, tls, local } = establish(&mut connection, &ConnectOptions::default(), &[]).await?;
    cluster.begin_request(host, Priority::Default);
    let guard = TcpGuard { connection, cluster: Arc::clone(cluster), host: Arc::clone(host) };
    let info = UpstreamConnectionInfo { id: next_connection_id(), local, tls, http2: false };
    Ok(TcpLease { transport, info, guard })
}
