//! The life of one accepted connection up to its filter chain: original destination, listener filters, choice of the
//! chain, transport. What fails before the chain serves is logged here, in the listener's access log.

use super::chain_match::Facts;
use super::compiled::{Chain, Listener};
use super::filters::original_dst::{original_dst, unmapped};
use super::filters::{self, Detected, FilterError};
use super::worker::{Entry, Table};
use crate::access_log::{self, ConnectionInfo, Flag, ResponseFlags};
use crate::net::{DownstreamPeer, LocalAddr, OriginalDst, Socket, Transport};
use crate::network::{Connection, Worker};
use crate::tls::{TlsFailure, TlsInfo};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

/// Connections of the process, for logs.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// Addresses of a connection. Unix sockets have none and are shown as 0.0.0.0:0.
struct Addresses {
    peer: SocketAddr,
    /// What the peer connected to before any redirection.
    local: SocketAddr,
    direct_local: SocketAddr,
    original: Option<SocketAddr>,
}

/// What keeps a connection from being served.
enum Refused {
    /// Nothing worth a line.
    Silently,
    NoChain,
    Transport(TlsFailure, Arc<Chain>),
}

/// Serves a connection to its end.
pub(super) async fn serve(socket: Socket, entry: Rc<Entry>, table: Rc<Table>, worker: Rc<Worker>) {
    let started = (SystemTime::now(), Instant::now());
    let mut listener = entry.listener();
    // the peer is gone already when there are no addresses
    let Ok(addresses) = addresses(&socket, &listener) else { return };
    if listener.config.use_original_dst
        && let Some(destination) = addresses.original
        && let Some(target) = table.find(destination)
        && !Rc::ptr_eq(&target, &entry)
    {
        // The other listener's filters and chains run. Its own `use_original_dst` is not asked again: no loops.
        listener = target.listener();
    }
    drop((entry, table));

    let detected = match detect(&listener, &socket, addresses.local.port()).await {
        Some(detected) => detected,
        None => return,
    };
    let facts = Facts {
        local: addresses.local,
        peer: addresses.peer,
        direct_peer: addresses.peer,
        server_name: detected.server_name.as_deref(),
        tls: detected.tls,
        application_protocols: &detected.application_protocols,
    };
    let chain = listener.chain(&facts).cloned();
    let stats = listener.stats.clone();
    let _counted = stats.connection(worker.index);
    let refused = match chain {
        None => {
            listener.stats.no_filter_chain_match.inc();
            Refused::NoChain
        }
        Some(chain) if chain.network.lacks_filter() => {
            listener.stats.network_extension_config_missing.inc();
            Refused::Silently
        }
        Some(chain) => match transport(&listener, &chain, socket).await {
            Ok((transport, tls)) => {
                let info = describe(&listener, &chain.name, &addresses, detected, started.0, tls, None);
                let connection = Connection {
                    transport,
                    info: Rc::new(info),
                    original_dst: addresses.original.map(OriginalDst),
                    direction: listener.config.traffic_direction,
                    drain: chain.drain.clone(),
                    buffer_limit: listener.config.per_connection_buffer_limit_bytes,
                };
                // an update may replace the listener while this runs: only the chain is needed from here on
                drop(listener);
                return chain.network.serve(connection, &worker).await;
            }
            Err(failure) => failure.map_or(Refused::Silently, |f| Refused::Transport(f, chain)),
        },
    };
    log_refused(&listener, &addresses, detected, refused, started);
}

fn addresses(socket: &Socket, listener: &Listener) -> std::io::Result<Addresses> {
    let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let (peer, local) = match socket {
        Socket::Tcp(tcp) => (unmapped(tcp.peer_addr()?), unmapped(tcp.local_addr()?)),
        Socket::Unix(_) => (nowhere, nowhere),
    };
    let original = match listener.restores_destination() {
        true => original_dst(socket, local, listener.config.transparent),
        false => None,
    };
    Ok(Addresses { peer, local: original.unwrap_or(local), direct_local: local, original })
}

/// Runs the listener filters; `None` when the connection ends with them.
async fn detect(listener: &Listener, socket: &Socket, port: u16) -> Option<Detected> {
    let mut detected = Detected::default();
    let config = &listener.config;
    if config.listener_filters.is_empty() {
        return Some(detected);
    }
    let Some(current) = listener.filters() else {
        listener.stats.extension_config_missing.inc();
        return None;
    };
    let _counted = listener.stats.pre_connection();
    let inspecting = filters::inspect(&current, socket, port, &listener.stats.inspectors, &mut detected);
    let result = match config.listener_filters_timeout {
        // no bound: a client that waits for the server to speak first waits for ever, as in Envoy
        None => inspecting.await,
        Some(limit) => match tokio::time::timeout(limit, inspecting).await {
            Ok(result) => result,
            Err(_) => {
                listener.stats.pre_cx_timeout.inc();
                return config.continue_on_listener_filters_timeout.then_some(detected);
            }
        },
    };
    match result {
        Ok(()) => Some(detected),
        Err(FilterError::RemoteClosed) => {
            listener.stats.listener_filter_remote_close.inc();
            None
        }
        Err(FilterError::Io) => {
            listener.stats.listener_filter_error.inc();
            None
        }
    }
}

/// Brings the transport up; the error is `None` when the listener's drain was over before it was.
async fn transport(
    listener: &Listener,
    chain: &Chain,
    socket: Socket,
) -> Result<(Transport, Option<Arc<TlsInfo>>), Option<TlsFailure>> {
    let Some(context) = &chain.tls else { return Ok((Transport::Plain(socket), None)) };
    // boxed: the state of a handshake is large and would stay in every connection's future
    let handshake = Box::pin(context.accept(socket));
    let limited = async {
        match chain.connect_timeout {
            None => handshake.await,
            Some(limit) => tokio::time::timeout(limit, handshake).await.unwrap_or_else(|_| {
                listener.stats.cx_transport_socket_connect_timeout.inc();
                Err(TlsFailure::timed_out())
            }),
        }
    };
    let over = Box::pin(chain.drain.over());
    tokio::select! {
        done = limited => done.map(|(stream, info)| (Transport::ServerTls(stream), Some(info))).map_err(Some),
        () = over => Err(None),
    }
}

fn describe(
    listener: &Listener,
    chain: &Arc<str>,
    addresses: &Addresses,
    detected: Detected,
    started: SystemTime,
    tls: Option<Arc<TlsInfo>>,
    failure: Option<String>,
) -> ConnectionInfo {
    let negotiated = tls.as_ref().and_then(|tls| tls.sni.clone());
    ConnectionInfo {
        id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
        started,
        peer: DownstreamPeer(addresses.peer),
        direct_peer: DownstreamPeer(addresses.peer),
        local: LocalAddr(addresses.local),
        direct_local: LocalAddr(addresses.direct_local),
        sni: detected.server_name.or(negotiated),
        tls,
        listener_name: listener.config.name.clone(),
        filter_chain_name: chain.clone(),
        transport_failure: failure.map(Box::from).unwrap_or_default(),
    }
}

/// One line for a connection that no chain served.
fn log_refused(
    listener: &Listener,
    addresses: &Addresses,
    detected: Detected,
    refused: Refused,
    (started, since): (SystemTime, Instant),
) {
    let Some(logs) = &listener.access_logs else { return };
    let mut flags = ResponseFlags::default();
    let (chain, failure, details) = match refused {
        Refused::Silently => return,
        Refused::NoChain => {
            flags.set(Flag::NoRouteFound);
            (Arc::from(""), None, "filter_chain_not_found")
        }
        Refused::Transport(failure, chain) => (chain.name.clone(), Some(failure.reason), ""),
    };
    let connection = describe(listener, &chain, addresses, detected, started, None, failure);
    logs.log(&access_log::Entry {
        response_code_details: details,
        flags,
        ..access_log::Entry::new(access_log::Kind::Tcp, &connection, started, since.elapsed())
    });
}
