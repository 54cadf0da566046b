//! What the control plane sends: clusters, endpoints, listeners and routes of the three sidecars, in Istio's shapes.
//!
//! Everything follows from [`Desired`], as istiod computes everything from what stands in Kubernetes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use outrigger_tests::config::{
    SDS_CLUSTER, any, eds_cluster, endpoints, hcm_inline, hcm_rds, http_listener, original_dst_cluster, route_config,
    route_to, static_cluster, tcp_listener, weighted_route, with_istio_mtls, with_istio_strict,
};
use outrigger_tests::control_plane::Batch;
use prost::{Message, Name};
use serde_json::{Value, json};
use xds_protos::pb::envoy::config::accesslog::v3::{AccessLog, access_log};
use xds_protos::pb::envoy::config::cluster::v3::Cluster;
use xds_protos::pb::envoy::config::core::v3::{self as core, header_value_option::HeaderAppendAction};
use xds_protos::pb::envoy::config::listener::v3::{FilterChainMatch, Listener, ListenerFilter, listener_filter};
use xds_protos::pb::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use xds_protos::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use xds_protos::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use xds_protos::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager as hcm,
};
use xds_protos::pb::google::protobuf::{BoolValue, UInt32Value};

/// The trust domain of the mesh.
pub const TRUST_DOMAIN: &str = "cluster.local";
/// The port the service `reviews` has.
pub const SERVICE_PORT: u16 = 9080;
/// Tells a client which configuration chose the route of its request; answers of the proxy itself have it too.
pub const CONFIG_HEADER: &str = "x-mesh-config";

/// Listeners whose address the rest of the mesh must learn, because the port is chosen by the kernel.
pub const OUTBOUND: &str = "0.0.0.0_9080";
pub const INBOUND: &str = "virtualInbound";

/// Ports that the redirect rules send traffic to.
const OUTBOUND_PORT: u16 = 15001;
const INBOUND_PORT: u16 = 15006;
/// The inbound side connects to its application from here: the redirect rules know this address.
const INBOUND_SOURCE: &str = "127.0.0.6";

/// A pod of the mesh: an application with a sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pod {
    Client,
    ReviewsV1,
    ReviewsV2,
}

impl Pod {
    pub const ALL: [Self; 3] = [Self::Client, Self::ReviewsV1, Self::ReviewsV2];
    /// The pods that serve.
    pub const SERVERS: [Self; 2] = [Self::ReviewsV1, Self::ReviewsV2];

    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::ReviewsV1 => "reviews-v1",
            Self::ReviewsV2 => "reviews-v2",
        }
    }

    /// The pod of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|pod| pod.name() == name)
    }

    /// Its Kubernetes service account; both versions of `reviews` share one.
    pub fn account(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::ReviewsV1 | Self::ReviewsV2 => "reviews",
        }
    }

    /// Its version, as its origin says it; also that of the client's cluster for it.
    pub fn version(self) -> &'static str {
        match self {
            Self::Client => "",
            Self::ReviewsV1 => "v1",
            Self::ReviewsV2 => "v2",
        }
    }
}

/// The SPIFFE identity of a service account.
pub fn identity(account: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/default/sa/{account}")
}

/// The client's cluster for a version of `reviews`.
pub fn outbound_cluster(version: &str) -> String {
    format!("outbound|{SERVICE_PORT}|{version}|reviews")
}

/// A cluster whose endpoint does not have the identity it should have.
pub const IMPOSTOR_CLUSTER: &str = "outbound|9080||impostor";
/// The inbound side's cluster for the application beside it.
pub const INBOUND_CLUSTER: &str = "inbound|9080||";

/// The state of the world as the control plane knows it.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    /// Counts pushes; each answer carries it in [`CONFIG_HEADER`].
    pub number: u64,
    /// Share of `reviews` v2, per cent.
    pub weight_v2: u32,
    /// Whether iptables redirects the traffic: then listeners have Istio's ports.
    pub redirected: bool,
    /// The applications of v1 and v2.
    pub origins: Vec<SocketAddr>,
    /// Where v1 and v2 are reached; empty until their sidecars are up.
    pub endpoints: Vec<SocketAddr>,
    /// A server with a certificate of the mesh, but not that of `reviews`.
    pub impostor: Option<SocketAddr>,
    /// The folder for access logs.
    pub logs: PathBuf,
}

impl Desired {
    pub fn to_json(&self) -> Value {
        let texts = |addresses: &[SocketAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        json!({
            "number": self.number, "weight_v2": self.weight_v2, "redirected": self.redirected,
            "origins": texts(&self.origins), "endpoints": texts(&self.endpoints),
            "impostor": self.impostor.map(|address| address.to_string()),
            "logs": self.logs.to_string_lossy(),
        })
    }

    /// Reads what [`Desired::to_json`] wrote; what is missing or malformed is empty.
    pub fn from_json(value: &Value) -> Self {
        let address = |value: &Value| value.as_str().and_then(|text| text.parse().ok());
        let addresses = |value: &Value| value.as_array().into_iter().flatten().filter_map(address).collect();
        Self {
            number: value["number"].as_u64().unwrap_or_default(),
            weight_v2: value["weight_v2"].as_u64().and_then(|w| u32::try_from(w).ok()).unwrap_or_default().min(100),
            redirected: value["redirected"].as_bool().unwrap_or_default(),
            origins: addresses(&value["origins"]),
            endpoints: addresses(&value["endpoints"]),
            impostor: address(&value["impostor"]),
            logs: value["logs"].as_str().unwrap_or_default().into(),
        }
    }
}

/// Sets the resources of one sidecar.
pub fn apply(batch: &mut Batch<'_>, pod: Pod, desired: &Desired) {
    match pod {
        Pod::Client => outbound(batch, desired),
        Pod::ReviewsV1 => inbound(batch, pod, desired.origins.first().copied(), desired),
        Pod::ReviewsV2 => inbound(batch, pod, desired.origins.get(1).copied(), desired),
    }
}

/// The client's side: routes by weight, and mutual TLS to whom it expects.
fn outbound(batch: &mut Batch<'_>, desired: &Desired) {
    let server = identity(Pod::ReviewsV1.account());
    let mut add = |name: &str, sni: &str, at: Option<SocketAddr>| {
        batch.set(name, &with_istio_mtls(eds_cluster(name), SDS_CLUSTER, sni, &[&server]));
        batch.set(name, &endpoints(name, at.as_slice()));
    };
    let clusters = ["v1", "v2"].map(outbound_cluster);
    for (number, (name, version)) in clusters.iter().zip(["v1", "v2"]).enumerate() {
        let sni = format!("outbound_.{SERVICE_PORT}_.{version}_.reviews.default.svc.cluster.local");
        add(name, &sni, desired.endpoints.get(number).copied());
    }
    let sni = format!("outbound_.{SERVICE_PORT}_._.impostor.default.svc.cluster.local");
    add(IMPOSTOR_CLUSTER, &sni, desired.impostor);

    let weight = desired.weight_v2.min(100);
    let [v1, v2] = &clusters;
    let weighted = weighted_route("/", &[(v1, 100 - weight), (v2, weight)]);
    let mut routes = route_config("9080", vec![route_to("/impostor", IMPOSTOR_CLUSTER), weighted]);
    let number = core::HeaderValue {
        key: CONFIG_HEADER.to_owned(),
        value: desired.number.to_string(),
        ..core::HeaderValue::default()
    };
    routes.response_headers_to_add.push(core::HeaderValueOption {
        header: Some(number),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..core::HeaderValueOption::default()
    });
    batch.set("9080", &routes);

    let manager = with_access_log(hcm_rds("outbound", "9080"), &desired.logs, Pod::Client);
    if !desired.redirected {
        // The application is told to use its sidecar as the server.
        let mut listener = http_listener(OUTBOUND, loopback(0), &manager);
        listener.traffic_direction = core::TrafficDirection::Outbound.into();
        batch.set(OUTBOUND, &listener);
        return;
    }
    // All outbound traffic arrives at one port, and goes on to the listener of the port the application meant.
    batch.set("PassthroughCluster", &original_dst_cluster("PassthroughCluster"));
    let mut entrance = tcp_listener("virtualOutbound", wildcard(OUTBOUND_PORT), "PassthroughCluster");
    entrance.use_original_dst = Some(BoolValue { value: true });
    entrance.traffic_direction = core::TrafficDirection::Outbound.into();
    batch.set("virtualOutbound", &entrance);
    let mut listener = http_listener(OUTBOUND, wildcard(SERVICE_PORT), &manager);
    listener.bind_to_port = Some(BoolValue { value: false });
    listener.traffic_direction = core::TrafficDirection::Outbound.into();
    batch.set(OUTBOUND, &listener);
}

/// The server's side: STRICT mutual TLS from anyone of the trust domain, then the application beside us.
fn inbound(batch: &mut Batch<'_>, pod: Pod, origin: Option<SocketAddr>, desired: &Desired) {
    batch.set(INBOUND_CLUSTER, &application(origin, desired.redirected));
    let mut manager = hcm_inline("inbound", route_config(INBOUND_CLUSTER, vec![route_to("/", INBOUND_CLUSTER)]));
    manager.forward_client_cert_details = hcm::ForwardClientCertDetails::AppendForward.into();
    manager.set_current_client_cert_details = Some(hcm::SetCurrentClientCertDetails {
        subject: Some(BoolValue { value: true }),
        uri: true,
        ..hcm::SetCurrentClientCertDetails::default()
    });
    let manager = with_access_log(manager, &desired.logs, pod);
    let at = if desired.redirected { wildcard(INBOUND_PORT) } else { loopback(0) };
    let listener = http_listener(INBOUND, at, &manager);
    let mut listener = with_istio_strict(listener, SDS_CLUSTER, &format!("spiffe://{TRUST_DOMAIN}/"));
    listener.traffic_direction = core::TrafficDirection::Inbound.into();
    let only_tls = FilterChainMatch {
        transport_protocol: "tls".to_owned(),
        destination_port: desired.redirected.then_some(UInt32Value { value: SERVICE_PORT.into() }),
        ..FilterChainMatch::default()
    };
    for chain in &mut listener.filter_chains {
        chain.filter_chain_match = Some(only_tls.clone());
    }
    if desired.redirected {
        add_listener_filter(&mut listener, "envoy.filters.listener.original_dst", &OriginalDst::default());
    }
    add_listener_filter(&mut listener, "envoy.filters.listener.tls_inspector", &TlsInspector::default());
    batch.set(INBOUND, &listener);
}

/// The cluster of the application: its address, or, when redirected, the address the client meant.
fn application(origin: Option<SocketAddr>, redirected: bool) -> Cluster {
    if !redirected {
        return static_cluster(INBOUND_CLUSTER, origin.as_slice());
    }
    let mut cluster = original_dst_cluster(INBOUND_CLUSTER);
    let source = core::SocketAddress {
        address: INBOUND_SOURCE.to_owned(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(0)),
        ..core::SocketAddress::default()
    };
    cluster.upstream_bind_config =
        Some(core::BindConfig { source_address: Some(source), ..core::BindConfig::default() });
    cluster
}

fn add_listener_filter<M: Message + Name>(listener: &mut Listener, name: &str, filter: &M) {
    listener.listener_filters.push(ListenerFilter {
        name: name.to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(any(filter))),
        ..ListenerFilter::default()
    });
}

fn with_access_log(mut manager: HttpConnectionManager, logs: &Path, pod: Pod) -> HttpConnectionManager {
    let path = access_log_path(logs, pod).to_string_lossy().into_owned();
    manager.access_log.push(AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        config_type: Some(access_log::ConfigType::TypedConfig(any(&FileAccessLog {
            path,
            ..FileAccessLog::default()
        }))),
        ..AccessLog::default()
    });
    manager
}

/// Where a pod's sidecar writes its access log.
pub fn access_log_path(logs: &Path, pod: Pod) -> PathBuf {
    logs.join(pod.name()).join("access.log")
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn wildcard(port: u16) -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], port))
}
