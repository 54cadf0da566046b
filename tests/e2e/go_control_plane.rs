//! The proxy under a control plane made with the go-control-plane library, over each of its wire modes.

use std::net::SocketAddr;
use std::time::Instant;

use outrigger_tests::client::{Target, server_identities};
use outrigger_tests::config::{self, Bootstrap};
use outrigger_tests::control_plane::{CDS, EDS, LDS, RDS};
use outrigger_tests::go_control_plane::{self, Event, GoControlPlane, Options, Snapshot};
use outrigger_tests::load::Load;
use outrigger_tests::netns::skip;
use outrigger_tests::origin::Origin;
use outrigger_tests::proxy::Proxy;
use prost::Message;
use xds_protos::pb::envoy::config::cluster::v3::Cluster;
use xds_protos::pb::envoy::config::core::v3::transport_socket::ConfigType::TypedConfig;
use xds_protos::pb::envoy::config::core::v3::{
    ConfigSource, DataSource, RuntimeFractionalPercent, api_config_source::ApiType, config_source, data_source,
};
use xds_protos::pb::envoy::config::listener::v3::Listener;
use xds_protos::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use xds_protos::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use xds_protos::pb::envoy::service::runtime::v3::Runtime;
use xds_protos::pb::envoy::r#type::v3::FractionalPercent;
use xds_protos::pb::google::protobuf::{Duration as ProtoDuration, Struct, Value, value};

use super::support::*;

/// How resources are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mode {
    wire: Wire,
    /// One stream for all types; else one for each.
    ads: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    Sotw,
    Delta,
    /// Polls, with JSON.
    Rest,
}

const MODES: [Mode; 5] = [
    Mode { wire: Wire::Sotw, ads: true },
    Mode { wire: Wire::Delta, ads: true },
    Mode { wire: Wire::Sotw, ads: false },
    Mode { wire: Wire::Delta, ads: false },
    Mode { wire: Wire::Rest, ads: false },
];

/// The modes that a test goes through: none, said loudly, on a machine without Go.
fn modes(test: &str) -> Vec<Mode> {
    match go_control_plane::available() {
        Ok(()) => MODES.to_vec(),
        Err(why) => {
            skip(test, &why);
            Vec::new()
        }
    }
}

/// The static cluster in front of a control plane; a second one has `other`.
const SERVER: &str = "xds";
const OTHER: &str = "other";

impl Mode {
    fn api_type(self) -> ApiType {
        match self.wire {
            Wire::Sotw => ApiType::Grpc,
            Wire::Delta => ApiType::DeltaGrpc,
            Wire::Rest => ApiType::Rest,
        }
    }

    /// Where a control plane serves this.
    fn address(self, control_plane: &GoControlPlane) -> SocketAddr {
        if self.wire == Wire::Rest { control_plane.rest() } else { control_plane.grpc() }
    }

    /// Options of one that comes back on the address of another.
    fn again(self, control_plane: &GoControlPlane) -> Options {
        Options { ads: self.ads, grpc: Some(control_plane.grpc()), rest: Some(control_plane.rest()) }
    }

    /// Where a resource says that others come from: the aggregated stream, or this server.
    fn source(self, server: &str) -> ConfigSource {
        let mut source = config::sds(server);
        match &mut source.config_source_specifier {
            _ if self.ads => config::ads(),
            Some(config_source::ConfigSourceSpecifier::ApiConfigSource(api)) => {
                api.api_type = self.api_type().into();
                if self.wire == Wire::Rest {
                    api.grpc_services.clear();
                    api.cluster_names = vec![server.to_owned()];
                    api.refresh_delay = Some(ProtoDuration { seconds: 0, nanos: 50_000_000 });
                }
                source
            }
            _ => source,
        }
    }

    fn cluster(self, name: &str) -> Cluster {
        let mut cluster = config::eds_cluster(name);
        cluster.eds_cluster_config.get_or_insert_default().eds_config = Some(self.source(SERVER));
        cluster
    }

    /// A listener with routes from this server.
    fn front(self, server: &str) -> Listener {
        let mut manager = config::hcm_rds("front", "routes");
        if let Some(RouteSpecifier::Rds(rds)) = &mut manager.route_specifier {
            rds.config_source = Some(self.source(server));
        }
        config::http_listener("front", SocketAddr::from(([127, 0, 0, 1], 0)), &manager)
    }

    /// The same as [`Mode::source`], for a bootstrap.
    fn source_yaml(self, server: &str) -> String {
        let from =
            if self.ads { "ads: {}".to_owned() } else { format!("api_config_source: {{ {} }}", self.api(server)) };
        format!("{{ {from}, initial_fetch_timeout: 0s, resource_api_version: V3 }}")
    }

    /// The fields of an `ApiConfigSource`.
    fn api(self, server: &str) -> String {
        let from = match self.wire {
            Wire::Rest => format!("cluster_names: [{server}], refresh_delay: 0.05s"),
            _ => format!("grpc_services: [{{ envoy_grpc: {{ cluster_name: {server} }} }}]"),
        };
        let api = self.api_type().as_str_name();
        format!("api_type: {api}, transport_api_version: V3, set_node_on_first_message_only: true, {from}")
    }

    /// A bootstrap that asks `clusters` for clusters and `listeners` for listeners.
    fn bootstrap(self, clusters: SocketAddr, listeners: SocketAddr) -> String {
        let ads = if self.ads { format!("  ads_config: {{ {} }}\n", self.api(SERVER)) } else { String::new() };
        let (cds, lds) = (self.source_yaml(SERVER), self.source_yaml(OTHER));
        let dynamic = format!("{ads}  cds_config: {cds}\n  lds_config: {lds}\n");
        let protocol = if self.wire == Wire::Rest { "" } else { HTTP2 };
        let servers = cluster(SERVER, &[clusters], protocol) + &cluster(OTHER, &[listeners], protocol);
        let bootstrap = Bootstrap { node_id: "n1", static_clusters: &servers, ..Bootstrap::default() };
        format!("dynamic_resources:\n{dynamic}{}", bootstrap.yaml())
    }
}

/// A listener `front`, its routes, and clusters `v1` and `v2`, all from the control plane.
struct Mesh {
    mode: Mode,
    control_plane: GoControlPlane,
    proxy: Proxy,
    front: SocketAddr,
    v1: Origin,
    v2: Origin,
}

impl Mesh {
    async fn start(mode: Mode) -> Self {
        let (v1, v2) = (Origin::start("v1").unwrap(), Origin::start("v2").unwrap());
        let first = snapshot(mode, "1", &v1, &v2, (90, 10));
        let options = Options { ads: mode.ads, ..Options::default() };
        let control_plane = GoControlPlane::start(options, &first).await.unwrap();
        let proxy = start_yaml(&mode.bootstrap(mode.address(&control_plane), mode.address(&control_plane))).await;
        let front = address(&proxy, "front").await;
        Self { mode, control_plane, proxy, front, v1, v2 }
    }

    fn snapshot(&self, version: &str, weights: (u32, u32)) -> Snapshot {
        snapshot(self.mode, version, &self.v1, &self.v2, weights)
    }

    async fn get(&self, path: &str) -> outrigger_tests::client::Reply {
        Client::plain(self.front, false).await.get("a", path).await
    }

    async fn all_from(&self, version: &str) {
        eventually(&format!("only {version}, {:?}", self.mode), || async {
            for _ in 0..20 {
                if self.get("/").await.origin_version() != version {
                    return false;
                }
            }
            true
        })
        .await;
    }
}

fn base(mode: Mode, version: &str, v1: SocketAddr, v2: SocketAddr) -> Snapshot {
    Snapshot::new(version)
        .with(&mode.cluster("v1"))
        .with(&mode.cluster("v2"))
        .with(&config::endpoints("v1", &[v1]))
        .with(&config::endpoints("v2", &[v2]))
        .with(&mode.front(SERVER))
}

fn snapshot(mode: Mode, version: &str, v1: &Origin, v2: &Origin, weights: (u32, u32)) -> Snapshot {
    let route = config::weighted_route("/", &[("v1", weights.0), ("v2", weights.1)]);
    base(mode, version, v1.address(), v2.address()).with(&config::route_config("routes", vec![route]))
}

#[tokio::test]
async fn it_becomes_ready_and_serves() {
    for mode in modes("it_becomes_ready_and_serves") {
        let mesh = Mesh::start(mode).await;
        let mut client = Client::plain(mesh.front, false).await;
        assert_eq!(client.get("a", "/").await.status, 200, "{mode:?}");
        let acknowledged = |type_url| {
            move |event: &Event| {
                // A poll that says which version it has accepts that.
                event.type_url == type_url && (event.is_ack() || (event.event == "fetch" && event.version == "1"))
            }
        };
        for type_url in [CDS, LDS, RDS] {
            mesh.control_plane.wait_for("an ACK", acknowledged(type_url)).await.unwrap();
        }
        let events = mesh.control_plane.events();
        let streams: Vec<_> = events.iter().filter(|e| e.event == "open").map(|e| (e.delta, &*e.type_url)).collect();
        assert!(streams.iter().all(|(delta, _)| *delta == (mode.wire == Wire::Delta)), "{mode:?}: {streams:?}");
        let aggregated = streams.iter().any(|(_, type_url)| type_url.is_empty());
        assert_eq!(aggregated, mode.ads, "{mode:?}: {streams:?}");
        assert_eq!(streams.is_empty(), mode.wire == Wire::Rest, "{mode:?}: {streams:?}");
        let mut seen = std::collections::BTreeSet::new();
        let requests = events.iter().filter(|e| e.event == "request" || e.event == "fetch");
        let first = requests.filter(|e| e.stream == 0 || seen.insert(e.stream));
        assert!(first.into_iter().all(|e| e.node == "n1"), "{mode:?}: {events:?}");
        assert!(mesh.control_plane.nacks().is_empty(), "{mode:?}");
    }
}

#[tokio::test]
async fn snapshots_change_under_load_and_no_request_is_lost() {
    for mode in modes("snapshots_change_under_load_and_no_request_is_lost") {
        let mut mesh = Mesh::start(mode).await;
        let load = Load::new(mesh.front, 200.0, 4).start();
        eventually("both versions", || async {
            load.so_far().answered_by("v1") > 50 && load.so_far().answered_by("v2") > 0
        })
        .await;
        let mut last = Instant::now();
        for (version, weights) in [("2", (50, 50)), ("3", (10, 90)), ("4", (10, 90)), ("5", (0, 100))] {
            last = Instant::now();
            mesh.control_plane.set(&mesh.snapshot(version, weights)).await.unwrap();
            // What makes a snapshot the running one is seen by the clients alone.
            eventually("some requests of this snapshot", || async { load.so_far().since(last).samples.len() > 40 })
                .await;
        }
        eventually(&format!("only the new version, {mode:?}"), || async {
            let tail: Vec<_> = load.so_far().since(last).samples.into_iter().rev().take(30).collect();
            tail.len() == 30 && tail.iter().all(|s| format!("{:?}", s.outcome).contains("v2"))
        })
        .await;
        // The clusters are exchanged for another, in the order that loses nothing over any number of streams.
        let v3 = Origin::start("v3").unwrap();
        let to_v3 = config::route_config("routes", vec![config::route_to("/", "v3")]);
        let with_v3 =
            |snapshot: Snapshot| snapshot.with(&mode.cluster("v3")).with(&config::endpoints("v3", &[v3.address()]));
        mesh.control_plane.set(&with_v3(mesh.snapshot("6", (0, 100)))).await.unwrap();
        at_least(&mesh.proxy, "cluster.v3.membership_healthy", 1).await;
        let both = with_v3(base(mode, "7", mesh.v1.address(), mesh.v2.address())).with(&to_v3);
        mesh.control_plane.set(&both).await.unwrap();
        eventually("the new cluster", || async { load.so_far().answered_by("v3") > 20 }).await;
        let alone = with_v3(Snapshot::new("8").with(&mode.front(SERVER)).with(&to_v3));
        mesh.control_plane.set(&alone).await.unwrap();
        at_least(&mesh.proxy, "cluster_manager.cluster_removed", 2).await;
        last = Instant::now();
        eventually("requests after the end of the old clusters", || async {
            load.so_far().since(last).answered_by("v3") > 20
        })
        .await;
        let report = load.stop().await;
        assert_eq!(report.failed(), 0, "{mode:?}: {:?}", report.outcomes());
        assert!(mesh.control_plane.nacks().is_empty(), "{mode:?}: {:?}", mesh.control_plane.nacks());
    }
}

/// A cluster with a name where only an address can stand.
fn bad_cluster(at: SocketAddr) -> Cluster {
    use xds_protos::pb::envoy::config::core::v3::address::Address;
    use xds_protos::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
    let mut bad = config::static_cluster("bad-cluster", &[at]);
    for endpoint in bad.load_assignment.iter_mut().flat_map(|a| &mut a.endpoints).flat_map(|l| &mut l.lb_endpoints) {
        if let Some(HostIdentifier::Endpoint(endpoint)) = &mut endpoint.host_identifier
            && let Some(Address::SocketAddress(at)) = endpoint.address.as_mut().and_then(|a| a.address.as_mut())
        {
            at.address = "no-address.test".to_owned();
        }
    }
    bad
}

#[tokio::test]
async fn a_bad_snapshot_is_refused_by_name_and_the_last_good_one_serves_on() {
    for mode in modes("a_bad_snapshot_is_refused_by_name_and_the_last_good_one_serves_on") {
        let mut mesh = Mesh::start(mode).await;
        let load = Load::new(mesh.front, 100.0, 2).start();
        let bad = mesh.snapshot("2", (90, 10)).with(&bad_cluster(mesh.v1.address()));
        mesh.control_plane.set(&bad).await.unwrap();
        let refusal = |type_url: &'static str, words: &'static str| {
            move |event: &Event| event.type_url == type_url && event.error.contains(words)
        };
        // Polls cannot say no.
        if mode.wire != Wire::Rest {
            mesh.control_plane.wait_for("a NACK of the cluster", refusal(CDS, "bad-cluster")).await.unwrap();
        }
        at_least(&mesh.proxy, "cluster_manager.cds.update_rejected", 1).await;
        assert_eq!(mesh.get("/").await.status, 200, "{mode:?}");

        // Better again, with other weights.
        mesh.control_plane.set(&mesh.snapshot("3", (0, 100))).await.unwrap();
        mesh.all_from("v2").await;
        let report = load.stop().await;
        assert_eq!(report.failed(), 0, "{mode:?}: {:?}", report.outcomes());
    }
}

#[tokio::test]
async fn a_control_plane_comes_back_with_other_versions() {
    for mode in modes("a_control_plane_comes_back_with_other_versions") {
        let mut mesh = Mesh::start(mode).await;
        let load = Load::new(mesh.front, 100.0, 2).start();
        mesh.control_plane.set(&mesh.snapshot("7", (100, 0))).await.unwrap();
        mesh.all_from("v1").await;
        // A new process, whose versions begin at 1 again: what the proxy says it holds means nothing to it.
        mesh.control_plane.kill().unwrap();
        assert_eq!(mesh.get("/").await.origin_version(), "v1", "{mode:?}: the last good one serves on");
        mesh.control_plane =
            GoControlPlane::start(mode.again(&mesh.control_plane), &mesh.snapshot("1", (0, 100))).await.unwrap();
        mesh.all_from("v2").await;
        let report = load.stop().await;
        assert_eq!(report.failed(), 0, "{mode:?}: {:?}", report.outcomes());
        assert!(mesh.control_plane.nacks().is_empty(), "{mode:?}");
    }
}

#[tokio::test]
async fn two_control_planes_disagree_and_each_is_heard_for_its_type() {
    for mode in modes("two_control_planes_disagree_and_each_is_heard_for_its_type").into_iter().filter(|mode| !mode.ads)
    {
        let (v1, v2) = (Origin::start("v1").unwrap(), Origin::start("v2").unwrap());
        // The one knows `v1` and a listener nobody asks it for; the other, that asks for `v2`, has clusters of its own.
        let other_front = config::listener("else", "127.0.0.1:0".parse().unwrap(), "none", &bad_cluster(v1.address()));
        let clusters = |version: &str, names: &[&str]| {
            let of = |name: &str| if name == "v1" { v1.address() } else { v2.address() };
            names.iter().fold(Snapshot::new(version).with(&other_front), |snapshot, name| {
                snapshot.with(&mode.cluster(name)).with(&config::endpoints(name, &[of(name)]))
            })
        };
        let listeners = Snapshot::new("other-1")
            .with(&mode.front(OTHER))
            .with(&config::route_config("routes", vec![config::route_to("/two", "v2"), config::route_to("/", "v1")]))
            .with(&bad_cluster(v1.address()))
            .with(&mode.cluster("v1"))
            .with(&config::endpoints("v1", &[dead_address()]));
        let mut one = GoControlPlane::start(Options::default(), &clusters("1", &["v1"])).await.unwrap();
        let other = GoControlPlane::start(Options::default(), &listeners).await.unwrap();
        let proxy = start_yaml(&mode.bootstrap(mode.address(&one), mode.address(&other))).await;
        let front = address(&proxy, "front").await;
        let get = |path: &'static str| async move { Client::plain(front, false).await.get("a", path).await };
        assert_eq!(get("/").await.origin_version(), "v1", "{mode:?}");
        assert_eq!(get("/two").await.status, 503, "{mode:?}: a route to a cluster that nobody has");
        assert!(proxy.listener_address("else").await.is_err());

        let load = Load::new(front, 100.0, 2).start();
        one.set(&clusters("2", &["v1", "v2"])).await.unwrap();
        eventually("the cluster", || async { get("/two").await.origin_version() == "v2" }).await;
        one.set(&clusters("3", &["v1"])).await.unwrap();
        eventually("the cluster to go", || async { get("/two").await.status == 503 }).await;
        let report = load.stop().await;
        assert_eq!(report.failed(), 0, "{mode:?}: {:?}", report.outcomes());
        for (who, type_urls) in [(&one, [LDS, RDS]), (&other, [CDS, EDS])] {
            let requests = who.events().into_iter().filter(|e| e.event == "request" || e.event == "fetch");
            let asked = requests.filter(|e| type_urls.contains(&&*e.type_url));
            assert_eq!(asked.collect::<Vec<_>>(), [], "{mode:?}");
            assert!(who.nacks().is_empty(), "{mode:?}: {:?}", who.nacks());
        }
    }
}

/// Has the certificates and trust bundle of a listener come from where the mode says.
fn with_secrets(mode: Mode, mut listener: Listener) -> Listener {
    listener = config::with_istio_strict(listener, SERVER, "spiffe://cluster.local/");
    for chain in &mut listener.filter_chains {
        let Some(TypedConfig(packed)) = chain.transport_socket.as_mut().and_then(|s| s.config_type.as_mut()) else {
            continue;
        };
        let mut context = tls::DownstreamTlsContext::decode(&*packed.value).unwrap();
        let common = context.common_tls_context.get_or_insert_default();
        let certificates = common.tls_certificate_sds_secret_configs.iter_mut();
        let bundle = match &mut common.validation_context_type {
            Some(tls::common_tls_context::ValidationContextType::CombinedValidationContext(combined)) => {
                combined.validation_context_sds_secret_config.as_mut()
            }
            _ => None,
        };
        certificates.chain(bundle).for_each(|secret| secret.sds_config = Some(mode.source(SERVER)));
        packed.value = context.encode_to_vec();
    }
    listener
}

fn text(text: &str) -> Option<DataSource> {
    let specifier = Some(data_source::Specifier::InlineString(text.to_owned()));
    Some(DataSource { specifier, ..DataSource::default() })
}

fn identity(svid: &certs::Svid) -> tls::Secret {
    let certificate = tls::TlsCertificate {
        certificate_chain: text(&svid.chain_pem),
        private_key: text(&svid.key_pem),
        ..tls::TlsCertificate::default()
    };
    tls::Secret { name: certs::IDENTITY.to_owned(), r#type: Some(tls::secret::Type::TlsCertificate(certificate)) }
}

fn bundle(keys: &Keys) -> tls::Secret {
    let context = tls::CertificateValidationContext {
        trusted_ca: text(keys.authority.bundle_pem()),
        ..tls::CertificateValidationContext::default()
    };
    tls::Secret { name: certs::BUNDLE.to_owned(), r#type: Some(tls::secret::Type::ValidationContext(context)) }
}

#[tokio::test]
async fn secrets_rotate_and_no_connection_is_lost() {
    for mode in modes("secrets_rotate_and_no_connection_is_lost") {
        let (keys, origin) = (Keys::new(), Origin::start("v1").unwrap());
        let route = config::route_config("routes", vec![config::route_to("/", "v1")]);
        let with = |version: &str, svid: &certs::Svid| {
            Snapshot::new(version)
                .with(&mode.cluster("v1"))
                .with(&config::endpoints("v1", &[origin.address()]))
                .with(&with_secrets(mode, mode.front(SERVER)))
                .with(&route)
                .with(&identity(svid))
                .with(&bundle(&keys))
        };
        let options = Options { ads: mode.ads, ..Options::default() };
        let mut control_plane = GoControlPlane::start(options, &with("1", &keys.server)).await.unwrap();
        let proxy = start_yaml(&mode.bootstrap(mode.address(&control_plane), mode.address(&control_plane))).await;
        let front = address(&proxy, "front").await;
        let mut old = Client::connect(&Target::tls(front, keys.client_tls(&["h2"])), true).await;
        assert_eq!(old.get("a", "/").await.status, 200, "{mode:?}");
        let load = Load::new(Target::tls(front, keys.client_tls(&["http/1.1"])), 100.0, 2).start();
        let next = "spiffe://cluster.local/ns/default/sa/rotated";
        let rotated = keys.authority.issue(&next.parse().unwrap(), HOUR, &[]).unwrap();
        control_plane.set(&with("2", &rotated)).await.unwrap();
        eventually(&format!("the new certificate, {mode:?}"), || async {
            server_identities(front, &keys.client_tls(&["h2"])).await.unwrap() == [next]
        })
        .await;
        assert!(old.is_open() && old.get("a", "/").await.status == 200, "{mode:?}");
        let report = load.stop().await;
        assert_eq!(report.failed(), 0, "{mode:?}: {:?}", report.outcomes());
        assert!(control_plane.nacks().is_empty(), "{mode:?}: {:?}", control_plane.nacks());
    }
}

#[tokio::test]
async fn a_push_that_is_sent_again_and_again_is_refused_and_said_once() {
    for mode in modes("a_push_that_is_sent_again_and_again_is_refused_and_said_once") {
        // Only here the library sends at once what was refused.
        if mode.wire != Wire::Sotw {
            continue;
        }
        let mut mesh = Mesh::start(mode).await;
        let mut bad = config::static_cluster("bad", &[mesh.v1.address()]);
        bad.connect_timeout = Some(ProtoDuration { seconds: -1, nanos: 0 });
        mesh.control_plane.set(&mesh.snapshot("2", (100, 0)).with(&bad)).await.unwrap();
        let nacks = |mesh: &Mesh| mesh.control_plane.events().iter().filter(|event| !event.error.is_empty()).count();
        eventually("several refusals", || async { nacks(&mesh) >= 5 }).await;
        // The good ones of that push run meanwhile.
        mesh.all_from("v1").await;
        if !is_envoy() {
            let said = mesh.proxy.stderr().iter().filter(|line| line.contains("cluster bad rejected")).count();
            assert_eq!(said, 1, "{mode:?}: {:?}", mesh.proxy.stderr());
        }
        mesh.control_plane.set(&mesh.snapshot("3", (0, 100))).await.unwrap();
        mesh.all_from("v2").await;
        let accepted = |event: &Event| event.type_url == CDS && event.is_ack() && event.version == "3";
        mesh.control_plane.wait_for("an ACK", accepted).await.unwrap();
    }
}

fn layer(values: &[(&str, f64)]) -> Runtime {
    let value = |number: f64| Value { kind: Some(value::Kind::NumberValue(number)) };
    let fields = values.iter().map(|(name, number)| ((*name).to_owned(), value(*number))).collect();
    Runtime { name: "flags".to_owned(), layer: Some(Struct { fields }) }
}

#[tokio::test]
async fn a_layer_of_the_runtime_moves_traffic_while_it_flows() {
    for mode in modes("a_layer_of_the_runtime_moves_traffic_while_it_flows") {
        let (v1, v2) = (Origin::start("v1").unwrap(), Origin::start("v2").unwrap());
        let (to_v1, to_v2) = (v1.address(), v2.address());
        // A share of the requests, none unless the runtime says otherwise, goes to `v2`.
        let mut canary = config::route_to("/", "v2");
        let share = RuntimeFractionalPercent {
            default_value: Some(FractionalPercent { numerator: 0, denominator: 0 }),
            runtime_key: "canary".to_owned(),
        };
        canary.r#match.get_or_insert_default().runtime_fraction = Some(share);
        let routes = config::route_config("routes", vec![canary, config::route_to("/", "v1")]);
        let with = |version: &str, values: &[(&str, f64)]| {
            base(mode, version, to_v1, to_v2).with(&routes).with(&layer(values))
        };
        let options = Options { ads: mode.ads, ..Options::default() };
        let first = with("1", &[("canary", 100.0)]);
        let control_plane = GoControlPlane::start(options, &first).await.unwrap();
        let source = mode.source_yaml(SERVER);
        let layers = format!(
            "layered_runtime:
  layers:
  - {{ name: base, static_layer: {{ canary: 0, kept: 7 }} }}
  - {{ name: dynamic, rtds_layer: {{ name: flags, rtds_config: {source} }} }}
"
        );
        let server = mode.address(&control_plane);
        let proxy = start_yaml(&(layers + &mode.bootstrap(server, server))).await;
        let front = address(&proxy, "front").await;
        // Start-up waited for the layer.
        let mut mesh = Mesh { mode, control_plane, proxy, front, v1, v2 };
        assert_eq!(mesh.get("/").await.origin_version(), "v2", "{mode:?}");
        let runtime = mesh.proxy.admin("/runtime").await.unwrap().json();
        assert_eq!(runtime["entries"]["canary"]["final_value"], "100", "{mode:?}: {runtime}");
        assert_eq!(runtime["entries"]["kept"]["layer_values"], serde_json::json!(["7", ""]), "{mode:?}: {runtime}");

        let load = Load::new(mesh.front, 100.0, 2).start();
        mesh.control_plane.set(&with("2", &[("canary", 0.0)])).await.unwrap();
        mesh.all_from("v1").await;
        // The key is gone from the layer, and what lies below is 0 too.
        mesh.control_plane.set(&with("3", &[("canary", 100.0)])).await.unwrap();
        mesh.all_from("v2").await;
        mesh.control_plane.set(&with("4", &[])).await.unwrap();
        mesh.all_from("v1").await;
        let report = load.stop().await;
        assert_eq!(report.failed(), 0, "{mode:?}: {:?}", report.outcomes());
        assert!(mesh.control_plane.nacks().is_empty(), "{mode:?}: {:?}", mesh.control_plane.nacks());
    }
}
