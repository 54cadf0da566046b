//! `envoy.filters.network.tcp_proxy`: bytes to an endpoint of a cluster and back.

use super::{Connection, CopyError, Direction, Worker, copy_transports};
use crate::access_log::{self, AccessLogs, ConnectionInfo, Flag, ResponseFlags, Timings, UpstreamView};
use crate::config::ConfigError;
use crate::config::model::TcpProxyConfig;
use crate::net::Transport;
use crate::services::Services;
use crate::stats::Counter;
use crate::upstream::{Cluster, ClusterSlot, Host, LbContext, TcpLease, UpstreamConnectionInfo, UpstreamErrorKind};
use smallvec::SmallVec;
use std::cell::Cell;
use std::hash::Hasher;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// How often to pick, at most, while an endpoint comes up that has failed already.
const PICKS: u32 = 5;

/// `envoy.filters.network.tcp_proxy`.
pub struct TcpProxy {
    config: Arc<TcpProxyConfig>,
    /// With weights added up.
    clusters: Vec<(Arc<ClusterSlot>, u64)>,
    access_logs: Option<AccessLogs>,
    stats: TcpStats,
}

struct TcpStats {
    cx_total: Counter,
    cx_no_route: Counter,
    cx_drain_close: Counter,
    rx_bytes_total: Counter,
    tx_bytes_total: Counter,
    idle_timeout: Counter,
    max_downstream_connection_duration: Counter,
}

/// What the access log says of a connection, collected as it goes.
struct Record {
    info: Rc<ConnectionInfo>,
    started: SystemTime,
    since: Instant,
    timings: Timings,
    flags: ResponseFlags,
    /// Why the connection ended, when it did not end by itself.
    termination: &'static str,
    cluster: Option<Arc<Cluster>>,
    host: Option<Arc<Host>>,
    upstream: Option<UpstreamConnectionInfo>,
    failure: String,
    attempts: u32,
}

/// Bytes so far and when the last ones passed.
struct Progress {
    received: Cell<u64>,
    sent: Cell<u64>,
    last: Cell<Instant>,
}

/// Why a connection between both sides is over.
enum Ended {
    Copied(Result<(), CopyError>),
    Idle,
    MaxDuration,
    Drained,
}

impl TcpProxy {
    /// # Errors
    /// No cluster to go to, an access log that cannot be compiled.
    pub fn compile(config: &Arc<TcpProxyConfig>, services: &Arc<Services>) -> Result<Arc<TcpProxy>, ConfigError> {
        let mut sum = 0;
        let clusters: Vec<_> = config
            .clusters
            .iter()
            .map(|(name, weight)| {
                sum += u64::from(*weight);
                (services.clusters.slot(name), sum)
            })
            .collect();
        if sum == 0 && clusters.len() != 1 {
            return Err(ConfigError::new("weighted_clusters", "the weights add up to 0: no cluster could be chosen"));
        }
        let access_logs = match config.access_log.as_slice() {
            [] => None,
            logs => Some(AccessLogs::compile(logs, &services.log_files).map_err(|e| e.inside("access_log"))?),
        };
        let scope = services.registry.scope(&format!("tcp.{}.", config.stat_prefix));
        // never more than 0 here: bytes are not kept beyond the one read that the other side did not take
        for name in ["downstream_cx_rx_bytes_buffered", "downstream_cx_tx_bytes_buffered"] {
            scope.gauge(name);
        }
        let stats = TcpStats {
            cx_total: scope.counter("downstream_cx_total"),
            cx_no_route: scope.counter("downstream_cx_no_route"),
            cx_drain_close: scope.counter("downstream_cx_drain_close"),
            rx_bytes_total: scope.counter("downstream_cx_rx_bytes_total"),
            tx_bytes_total: scope.counter("downstream_cx_tx_bytes_total"),
            idle_timeout: scope.counter("idle_timeout"),
            max_downstream_connection_duration: scope.counter("max_downstream_connection_duration"),
        };
        Ok(Arc::new(TcpProxy { config: config.clone(), clusters, access_logs, stats }))
    }

    /// Serves the connection to its end.
    pub async fn serve(self: Arc<Self>, connection: Connection, worker: Rc<Worker>) {
        self.stats.cx_total.inc();
        let since = Instant::now();
        let mut record = Record {
            info: connection.info.clone(),
            started: SystemTime::now(),
            since,
            timings: Timings::default(),
            flags: ResponseFlags::default(),
            termination: "",
            cluster: None,
            host: None,
            upstream: None,
            failure: String::new(),
            attempts: 0,
        };
        let progress = Progress { received: Cell::new(0), sent: Cell::new(0), last: Cell::new(since) };
        if let Some(lease) = self.connect(&connection, &worker, &mut record).await {
            record.timings.upstream_pool_ready = Some(since.elapsed());
            self.proxy(connection, lease, &mut record, &progress).await;
        }
        self.log(&record, &progress);
    }

    fn cluster(&self) -> Option<&Arc<ClusterSlot>> {
        match self.clusters.as_slice() {
            [(only, _)] => Some(only),
            all => {
                let sum = all.last().map_or(0, |(_, sum)| *sum);
                let chosen = fastrand::u64(..sum.max(1));
                all.iter().find(|(_, upto)| chosen < *upto).map(|(slot, _)| slot)
            }
        }
    }

    /// A connection to an endpoint, trying others as often as configured; `None`, with the reason recorded, if none answers.
    async fn connect(&self, connection: &Connection, worker: &Worker, record: &mut Record) -> Option<TcpLease> {
        let Some(cluster) = self.cluster().and_then(|slot| slot.load()) else {
            self.stats.cx_no_route.inc();
            record.flags.set(Flag::NoClusterFound);
            return None;
        };
        record.cluster = Some(cluster.clone());
        let hash = self.config.hash_source_ip.then(|| hash_ip(connection.info.peer.0.ip()));
        let mut tried: SmallVec<[Arc<Host>; 1]> = SmallVec::new();
        loop {
            let original_dst = connection.original_dst.map(|dst| dst.0);
            let context = LbContext { hash, original_dst, avoid: &tried, picks: PICKS };
            let host = match worker.upstream.choose_host(&cluster, &context) {
                Ok(host) => host,
                Err(error) => {
                    record.flags.set(flag_of(error.kind));
                    return None;
                }
            };
            record.host = Some(host.clone());
            record.attempts += 1;
            let error = match worker.upstream.tcp(&cluster, &host).await {
                Ok(lease) => return Some(lease),
                Err(error) => error,
            };
            record.failure = error.transport_failure;
            let may_help =
                matches!(error.kind, UpstreamErrorKind::ConnectionFailure | UpstreamErrorKind::ConnectTimeout);
            if !may_help || record.attempts >= self.config.max_connect_attempts {
                record.flags.set(flag_of(error.kind));
                if may_help {
                    record.flags.set(Flag::UpstreamRetryLimitExceeded);
                }
                return None;
            }
            tried.push(host);
        }
    }

    /// Copies until either side, a time limit or the drain ends it.
    async fn proxy(&self, connection: Connection, lease: TcpLease, record: &mut Record, progress: &Progress) {
        let Connection { mut transport, drain, buffer_limit, .. } = connection;
        let TcpLease { transport: mut upstream, info, mut guard } = lease;
        record.upstream = Some(info);
        progress.last.set(Instant::now());
        let ended = {
            let upstream_bytes = &guard.connection;
            let moved = |direction: Direction, n: usize| {
                let n = n as u64;
                progress.last.set(Instant::now());
                match direction {
                    Direction::AToB => {
                        progress.received.set(progress.received.get() + n);
                        self.stats.rx_bytes_total.add(n);
                        upstream_bytes.sent(n);
                    }
                    Direction::BToA => {
                        progress.sent.set(progress.sent.get() + n);
                        self.stats.tx_bytes_total.add(n);
                        upstream_bytes.received(n);
                    }
                }
            };
            tokio::select! {
                biased;
                copied = copy_transports(&mut transport, &mut upstream, buffer_limit as usize, moved) => {
                    Ended::Copied(copied)
                }
                () = idle(self.config.idle_timeout, progress) => Ended::Idle,
                () = after(self.config.max_downstream_connection_duration) => Ended::MaxDuration,
                () = Box::pin(drain.over()) => Ended::Drained,
            }
        };
        match ended {
            Ended::Copied(Ok(())) => {}
            Ended::Copied(Err(CopyError { direction, reading, .. })) => {
                // a reset is passed on as what it is, not as an orderly end
                let upstream_failed = (direction == Direction::AToB) != reading;
                if upstream_failed {
                    guard.connection.set_closed_by_remote();
                    reset(&transport);
                } else {
                    reset(&upstream);
                }
            }
            Ended::Idle => {
                self.stats.idle_timeout.inc();
                record.flags.set(Flag::StreamIdleTimeout);
                record.termination = "tcp_session_idle_timeout";
            }
            Ended::MaxDuration => {
                self.stats.max_downstream_connection_duration.inc();
                record.flags.set(Flag::DurationTimeout);
                record.termination = "max_connection_duration";
            }
            Ended::Drained => {
                self.stats.cx_drain_close.inc();
                record.termination = "drain_close";
            }
        }
    }

    fn log(&self, record: &Record, progress: &Progress) {
        let Some(logs) = &self.access_logs else { return };
        let (received, sent) = (progress.received.get(), progress.sent.get());
        let upstream = record.cluster.as_ref().map(|cluster| UpstreamView {
            cluster: &cluster.config.name,
            observability_name: &cluster.config.stat_name,
            host: record.host.as_ref().map(|host| &host.address),
            host_name: record.host.as_ref().map_or("", |host| &host.hostname),
            local: record.upstream.as_ref().and_then(|up| up.local),
            tls: record.upstream.as_ref().and_then(|up| up.tls.as_deref()),
            protocol: None,
            connection_id: record.upstream.as_ref().map(|up| up.id),
            transport_failure: &record.failure,
            wire_bytes_received: sent,
            wire_bytes_sent: received,
            attempts: record.attempts,
        });
        logs.log(&access_log::Entry {
            timings: record.timings,
            connection_termination_details: record.termination,
            flags: record.flags,
            bytes_received: received,
            bytes_sent: sent,
            wire_bytes_received: received,
            wire_bytes_sent: sent,
            upstream,
            ..access_log::Entry::new(access_log::Kind::Tcp, &record.info, record.started, record.since.elapsed())
        });
    }
}

fn flag_of(kind: UpstreamErrorKind) -> Flag {
    match kind {
        UpstreamErrorKind::NoHealthyUpstream => Flag::NoHealthyUpstream,
        UpstreamErrorKind::Overflow => Flag::UpstreamOverflow,
        UpstreamErrorKind::ConnectionFailure | UpstreamErrorKind::ConnectTimeout => Flag::UpstreamConnectionFailure,
    }
}

/// As Envoy's `source_ip` hash policy: xxHash64 of the address as text.
fn hash_ip(ip: IpAddr) -> u64 {
    let mut hasher = twox_hash::XxHash64::with_seed(0);
    hasher.write(ip.to_string().as_bytes());
    hasher.finish()
}

/// Returns when nothing has passed for so long.
async fn idle(limit: Option<Duration>, progress: &Progress) {
    let Some(limit) = limit else { return std::future::pending().await };
    loop {
        let end = progress.last.get() + limit;
        if end <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(end).await;
    }
}

async fn after(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// Has the socket answer with a reset when it is closed.
fn reset(transport: &Transport) {
    if let crate::net::Socket::Tcp(tcp) = transport.socket() {
        // a socket that is gone already needs no reset
        let _ = socket2::SockRef::from(tcp).set_linger(Some(Duration::ZERO));
    }
}
