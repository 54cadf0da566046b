//! How the xDS client reaches a cluster: a fresh connection per stream, to its endpoints in turn.
//!
//! Counts as the cluster's traffic. Its futures are `Send`: the client decides where they run.

use super::connect::{ConnectionGuard, UpstreamIo, establish};
use super::host::Host;
use super::slot::ClusterSlot;
use crate::config::model::Priority;
use crate::tls::ConnectOptions;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use xds_client::{BoxFuture, BoxIo, Connect};

pub(super) struct XdsConnector {
    slot: Arc<ClusterSlot>,
    /// `:authority` instead of the cluster's name.
    authority: Option<Arc<str>>,
    http2: bool,
    turn: AtomicUsize,
}

impl XdsConnector {
    pub fn new(slot: Arc<ClusterSlot>, authority: Option<Arc<str>>, http2: bool) -> XdsConnector {
        XdsConnector { slot, authority, http2, turn: AtomicUsize::new(0) }
    }
}

impl Connect for XdsConnector {
    fn connect(&self) -> BoxFuture<'static, io::Result<BoxIo>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        Box::pin(open(Arc::clone(&self.slot), turn, self.http2))
    }

    /// Envoy's default `:authority` of gRPC to a cluster.
    fn authority(&self) -> String {
        self.authority.as_ref().unwrap_or(&self.slot.name).to_string()
    }

    fn scheme(&self) -> &'static str {
        let cluster = self.slot.load();
        let tls = cluster.is_some_and(|cluster| {
            cluster.endpoints().hosts().next().is_some_and(|host| cluster.transport_for(host).is_tls())
        });
        if tls { "https" } else { "http" }
    }
}

async fn open(slot: Arc<ClusterSlot>, turn: usize, http2: bool) -> io::Result<BoxIo> {
    let Some(cluster) = slot.load() else {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("cluster '{}' is not there (yet)", slot.name)));
    };
    let hosts: Vec<Arc<Host>> = cluster.endpoints().hosts().cloned().collect();
    let Some(host) = turn.checked_rem(hosts.len()).and_then(|at| hosts.get(at)) else {
        cluster.stats().upstream_cx_none_healthy.inc();
        let text = format!("cluster '{}' has no endpoints", slot.name);
        return Err(io::Error::new(io::ErrorKind::NotConnected, text));
    };
    let mut guard = ConnectionGuard::new(&cluster, host, Priority::Default);
    let alpn = if http2 { "h2" } else { "http/1.1" };
    let connected = establish(&mut guard, &ConnectOptions::default(), &[alpn]).await.map_err(|e| {
        let reason = if e.transport_failure.is_empty() { "connect timeout" } else { &e.transport_failure };
        io::Error::new(
            io::ErrorKind::ConnectionRefused,
            format!("{} of cluster '{}': {reason}", host.address, slot.name),
        )
    })?;
    let stats = cluster.stats();
    if http2 { &stats.upstream_cx_http2_total } else { &stats.upstream_cx_http1_total }.inc();
    Ok(Box::new(UpstreamIo::new(connected.transport, guard)))
}
