//! Listeners over real sockets: one control thread, one worker, on the test's thread.

use super::*;
use crate::access_log::LogFiles;
use crate::config::model::*;
use crate::drain::{Drain, Strategy};
use crate::network::Worker;
use crate::services::Services;
use crate::slots::{Kind, Store};
use crate::stats::Registry;
use crate::tls::Secrets;
use crate::upstream::{ClusterManager, Update, WorkerUpstream};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, LocalSet, spawn_local};

struct World {
    services: Arc<Services>,
    manager: Rc<ListenerManager>,
    worker: JoinHandle<()>,
}

fn world() -> World {
    let registry = Registry::new(StatsConfig::default());
    let wants = || mpsc::unbounded_channel().0;
    let secrets = Secrets::new(Store::new(Kind::Secret, wants()));
    let assignments = Arc::new(Store::new(Kind::Assignment, wants()));
    let clusters = ClusterManager::new(registry.clone(), secrets.clone(), assignments);
    let services = Arc::new(Services {
        registry,
        secrets,
        clusters: clusters.clone(),
        routes: Arc::new(Store::new(Kind::Route, wants())),
        extensions: Arc::new(Store::new(Kind::Extension, wants())),
        log_files: LogFiles::new(Duration::from_secs(1)),
        drain: Drain::root(Strategy::Gradual),
        node_id: String::new(),
        node_cluster: String::new(),
    });
    let (orders, received) = mpsc::unbounded_channel();
    let worker = Worker { index: 0, services: services.clone(), upstream: WorkerUpstream::new(clusters) };
    let worker = spawn_local(run_worker(Rc::new(worker), received));
    let manager = ListenerManager::new(services.clone(), vec![orders], Duration::from_millis(200));
    World { services, manager, worker }
}

impl World {
    fn value(&self, name: &str) -> u64 {
        self.services.registry.counter(name).value()
    }

    fn add(&self, config: ListenerConfig) -> Update {
        self.manager.add_or_update(Arc::new(config), true).unwrap()
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.manager.views()[0].addresses[0]).await.unwrap()
    }

    /// A cluster of one endpoint that greets with `name` and then echoes until the client has ended.
    async fn origin(&self, name: &'static str) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.cluster(name, listener.local_addr().unwrap());
        spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                spawn_local(async move {
                    stream.write_all(name.as_bytes()).await.unwrap();
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
    }

    fn cluster(&self, name: &'static str, address: SocketAddr) {
        let endpoint = Endpoint {
            address: Address::Socket(address),
            hostname: Box::default(),
            health: HealthStatus::Healthy,
            weight: 1,
            metadata: None,
            check: None,
        };
        let locality = LocalityEndpoints { locality: Locality::default(), priority: 0, endpoints: vec![endpoint] };
        let assignment =
            LoadAssignment { cluster_name: name.into(), localities: vec![locality], overprovisioning_factor: 140 };
        let config = ClusterConfig::new(name, ClusterDiscovery::Static(assignment));
        self.services.clusters.add_or_update(Arc::new(config), false).unwrap();
    }
}

/// A chain to a cluster of the same name.
fn chain(cluster: &str, hash: u64) -> FilterChainConfig {
    let proxy = TcpProxyConfig {
        stat_prefix: cluster.into(),
        clusters: vec![(cluster.into(), 1)],
        idle_timeout: None,
        max_downstream_connection_duration: None,
        max_connect_attempts: 1,
        access_log: Vec::new(),
        hash_source_ip: false,
    };
    FilterChainConfig {
        name: cluster.into(),
        matcher: FilterChainMatch::default(),
        transport: DownstreamTransport::Raw,
        transport_connect_timeout: None,
        filters: vec![NetworkFilterConfig::TcpProxy(Arc::new(proxy))],
        terminal: 0,
        hash,
    }
}

pub(super) fn listener(chains: Vec<FilterChainConfig>) -> ListenerConfig {
    ListenerConfig {
        name: "l".into(),
        address: Address::Socket("127.0.0.1:0".parse().unwrap()),
        additional_addresses: Vec::new(),
        stat_prefix: None,
        traffic_direction: TrafficDirection::Inbound,
        bind_to_port: true,
        use_original_dst: false,
        transparent: false,
        freebind: false,
        reuse_port: true,
        ipv4_compat: false,
        tcp_backlog: 128,
        max_accepts_per_event: 1,
        tcp_fast_open_queue_length: None,
        listener_filters: Vec::new(),
        listener_filters_timeout: Some(Duration::from_secs(15)),
        continue_on_listener_filters_timeout: false,
        filter_chains: chains,
        default_filter_chain: None,
        per_connection_buffer_limit_bytes: 1 << 20,
        access_log: Vec::new(),
        drain_modify_only: false,
        connection_limit: Default::default(),
        global_connection_limit: None,
        shell_hash: 1,
    }
}

async fn greeting(stream: &mut TcpStream, expected: &str) {
    let mut got = vec![0; expected.len()];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(got, expected.as_bytes());
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    // an orderly end or a reset
    !matches!(stream.read(&mut [0; 16]).await, Ok(1..))
}

fn on_this_thread(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(20), test).await.expect("the test hangs");
    });
}

#[test]
fn a_connection_reaches_the_cluster_of_its_chain_and_half_closes() {
    on_this_thread(async {
        let w = world();
        w.origin("one").await;
        assert_eq!(w.add(listener(vec![chain("one", 1)])), Update::Live);
        let address = w.manager.views()[0].addresses[0];
        assert!(TcpStream::connect(address).await.is_err(), "refused until the workers start");
        w.manager.start_workers();
        tokio::task::yield_now().await;
        let mut stream = w.connect().await;
        greeting(&mut stream, "one").await;
        assert_eq!(w.value("listener.127.0.0.1_0.worker_0.downstream_cx_total"), 1);
        assert_eq!(w.services.registry.gauge("listener.127.0.0.1_0.downstream_cx_active").value(), 1);
        stream.write_all(b"bytes").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "bytes");
        tokio::task::yield_now().await;
        assert_eq!(w.value("listener.127.0.0.1_0.downstream_cx_destroy"), 1);
        assert_eq!(
            (w.value("tcp.one.downstream_cx_rx_bytes_total"), w.value("tcp.one.downstream_cx_tx_bytes_total")),
            (5, 8)
        );
    });
}

#[test]
fn an_update_keeps_equal_chains_and_drains_changed_ones() {
    on_this_thread(async {
        let w = world();
        for name in ["kept", "old", "new"] {
            w.origin(name).await;
        }
        w.manager.start_workers();
        let by_source = |mut chain: FilterChainConfig, ip: &str| {
            chain.matcher.source_prefix_ranges = vec![ip.parse().unwrap()];
            chain
        };
        let config =
            |second| listener(vec![by_source(chain("kept", 1), "127.0.0.2/32"), by_source(second, "127.0.0.1/32")]);
        assert_eq!(w.add(config(chain("old", 2))), Update::Live);
        assert_eq!(w.add(config(chain("old", 2))), Update::Unchanged);
        tokio::task::yield_now().await;
        let address = w.manager.views()[0].addresses[0];
        let other = tokio::net::TcpSocket::new_v4().unwrap();
        other.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut kept = other.connect(address).await.unwrap();
        let mut old = w.connect().await;
        greeting(&mut kept, "kept").await;
        greeting(&mut old, "old").await;

        assert_eq!(w.add(config(chain("new", 3))), Update::Live);
        assert_eq!(w.value("listener_manager.listener_in_place_updated"), 1);
        tokio::task::yield_now().await;
        assert_eq!(w.manager.views()[0].addresses[0], address, "the sockets stay");
        greeting(&mut w.connect().await, "new").await;
        old.write_all(b"x").await.unwrap();
        greeting(&mut old, "x").await;
        assert!(is_closed(&mut old).await, "its chain's drain ended it");
        kept.write_all(b"y").await.unwrap();
        greeting(&mut kept, "y").await;

        // another shell: the same sockets, and everything that ran drains
        let mut shell = config(chain("new", 3));
        shell.shell_hash = 2;
        assert_eq!(w.add(shell), Update::Live);
        tokio::task::yield_now().await;
        assert_eq!(w.manager.views()[0].addresses[0], address);
        greeting(&mut w.connect().await, "new").await;
        assert!(is_closed(&mut kept).await);
    });
}

#[test]
fn a_removed_listener_refuses_and_its_connections_drain() {
    on_this_thread(async {
        let w = world();
        w.origin("one").await;
        w.manager.start_workers();
        w.add(listener(vec![chain("one", 1)]));
        tokio::task::yield_now().await;
        let address = w.manager.views()[0].addresses[0];
        let mut stream = w.connect().await;
        greeting(&mut stream, "one").await;
        assert!(w.manager.remove("l") && !w.manager.remove("l"));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(TcpStream::connect(address).await.is_err());
        stream.write_all(b"still").await.unwrap();
        greeting(&mut stream, "still").await;
        assert!(is_closed(&mut stream).await);
        // with its orders at an end and its connections gone the worker returns
        drop(w.manager);
        w.worker.await.unwrap();
    });
}

#[test]
fn without_a_chain_or_a_cluster_the_connection_is_closed_and_counted() {
    on_this_thread(async {
        let w = world();
        w.manager.start_workers();
        let mut config = listener(vec![chain("nowhere", 1)]);
        config.filter_chains[0].matcher.source_type = SourceType::External;
        w.add(config);
        tokio::task::yield_now().await;
        assert!(is_closed(&mut w.connect().await).await);
        assert_eq!(w.value("listener.127.0.0.1_0.no_filter_chain_match"), 1);
        w.add(listener(vec![chain("nowhere", 2)]));
        tokio::task::yield_now().await;
        assert!(is_closed(&mut w.connect().await).await);
        assert_eq!(w.value("tcp.nowhere.downstream_cx_no_route"), 1);
    });
}

#[test]
fn a_silent_client_ends_with_the_filters_time_limit_or_goes_on() {
    on_this_thread(async {
        let w = world();
        w.origin("one").await;
        w.manager.start_workers();
        let mut config = listener(vec![chain("one", 1)]);
        config.listener_filters = vec![
            ListenerFilterConfig::TlsInspector(ListenerFilterPredicate::Never),
            ListenerFilterConfig::HttpInspector(ListenerFilterPredicate::Never),
        ];
        config.listener_filters_timeout = Some(Duration::from_millis(30));
        w.add(config.clone());
        tokio::task::yield_now().await;
        assert!(is_closed(&mut w.connect().await).await);
        assert_eq!(w.value("listener.127.0.0.1_0.downstream_pre_cx_timeout"), 1);
        // the origin speaks first: what Istio's listeners are set to
        config.continue_on_listener_filters_timeout = true;
        config.shell_hash = 2;
        w.add(config);
        tokio::task::yield_now().await;
        greeting(&mut w.connect().await, "one").await;
    });
}

#[test]
fn warming_waits_for_secrets_and_then_goes_live_by_itself() {
    on_this_thread(async {
        let w = world();
        w.manager.start_workers();
        let secret = SdsSecret { name: "default".into(), source: None };
        let mut tls = chain("one", 1);
        tls.transport = DownstreamTransport::Tls(Arc::new(DownstreamTlsConfig {
            common: CommonTls {
                certificates: CertificateSource::Sds(secret.clone()),
                validation: ValidationSource::None,
                alpn: Vec::new(),
                min_version: TlsVersion::V1_2,
                max_version: TlsVersion::V1_3,
                cipher_suites: Vec::new(),
                groups: Vec::new(),
            },
            require_client_certificate: false,
            disable_stateless_resumption: true,
            disable_stateful_resumption: true,
        }));
        assert_eq!(w.add(listener(vec![tls])), Update::Warming);
        assert_eq!((w.manager.warming().len(), w.manager.views().len()), (1, 0));
        w.services.secrets.store.give_up(&Secrets::key(&secret));
        w.manager.all_warm().await;
        tokio::task::yield_now().await;
        assert_eq!(w.manager.views().len(), 1);
        // given up on, not given: no handshake without a certificate
        assert!(is_closed(&mut w.connect().await).await);
        let stat = "listener.127.0.0.1_0.server_ssl_socket_factory.downstream_context_secrets_not_ready";
        assert_eq!(w.value(stat), 1);
    });
}

#[test]
fn what_cannot_be_bound_is_refused_and_says_what_to_check() {
    on_this_thread(async {
        let w = world();
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = listener(vec![chain("one", 1)]);
        config.address = Address::Socket(taken.local_addr().unwrap());
        let error = w.manager.add_or_update(Arc::new(config.clone()), true).err().unwrap().to_string();
        assert!(error.starts_with("address: cannot bind '127.0.0.1:") && error.contains("ss -ltnp"), "{error}");
        // two listeners of ours on one address
        config.bind_to_port = false;
        w.add(config.clone());
        config.name = "other".into();
        let error = w.manager.add_or_update(Arc::new(config), true).err().unwrap().to_string();
        assert!(error.contains("has duplicate address"), "{error}");
        assert_eq!(w.value("listener_manager.listener_create_failure"), 2);
        let [view] = &w.manager.views()[..] else { panic!("one listener") };
        assert_eq!((view.addresses.len(), &view.shown[..]), (0, &[Address::Socket(taken.local_addr().unwrap())][..]));
    });
}

#[test]
fn a_unix_socket_is_a_listener_too() {
    on_this_thread(async {
        let w = world();
        w.origin("one").await;
        w.manager.start_workers();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let mut config = listener(vec![chain("one", 1)]);
        let address = Address::Pipe { path: path.clone(), mode: 0o600 };
        config.address = address.clone();
        w.add(config);
        assert_eq!(w.manager.views()[0].shown, [address]);
        tokio::task::yield_now().await;
        let mut stream = tokio::net::UnixStream::connect(path).await.unwrap();
        let mut got = [0; 3];
        stream.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"one");
    });
}

/// A port that this test has for itself until it binds it.
fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn without_reuse_port_an_address_goes_on_under_another_name() {
    on_this_thread(async {
        let w = world();
        for name in ["one", "two", "three"] {
            w.origin(name).await;
        }
        w.manager.start_workers();
        let at = free_address();
        let single = |name: &str, cluster: &str, backlog| {
            let mut config = listener(vec![chain(cluster, 1)]);
            (config.reuse_port, config.tcp_backlog, config.name) = (false, backlog, name.into());
            config.address = Address::Socket(at);
            config.shell_hash = backlog.into();
            config
        };
        w.add(single("first", "one", 10));
        tokio::task::yield_now().await;
        let mut early = TcpStream::connect(at).await.unwrap();
        greeting(&mut early, "one").await;

        // the same address, by the next name, in one go
        assert!(w.manager.remove("first"));
        // it blocks, and nothing of ours runs meanwhile: the kernel alone takes the connection
        let waiting = std::net::TcpStream::connect(at).unwrap();
        assert_eq!(w.add(single("second", "two", 10)), Update::Live);
        waiting.set_nonblocking(true).unwrap();
        let mut waiting = TcpStream::from_std(waiting).unwrap();
        early.write_all(b"still").await.unwrap();
        greeting(&mut early, "still").await;
        let mut got = [0; 3];
        waiting.read_exact(&mut got).await.unwrap();
        assert!(&got == b"one" || &got == b"two", "a connection made meanwhile is served");
        tokio::time::sleep(Duration::from_millis(20)).await;
        greeting(&mut TcpStream::connect(at).await.unwrap(), "two").await;

        // another backlog
        assert_eq!(w.add(single("second", "three", 20)), Update::Live);
        tokio::time::sleep(Duration::from_millis(20)).await;
        greeting(&mut TcpStream::connect(at).await.unwrap(), "three").await;

        // and at the end nobody holds the port
        assert!(w.manager.remove("second"));
        while TcpStream::connect(at).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        std::net::TcpListener::bind(at).unwrap();
    });
}

#[test]
fn a_stopped_listener_with_one_socket_refuses() {
    on_this_thread(async {
        let w = world();
        w.origin("one").await;
        w.manager.start_workers();
        let mut config = listener(vec![chain("one", 1)]);
        config.reuse_port = false;
        w.add(config);
        tokio::task::yield_now().await;
        let address = w.manager.views()[0].addresses[0];
        greeting(&mut TcpStream::connect(address).await.unwrap(), "one").await;
        w.manager.drain(false, false, false);
        while TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn a_path_serves_on_while_what_comes_to_it_warms() {
    on_this_thread(async {
        let w = world();
        w.origin("one").await;
        w.origin("two").await;
        w.manager.start_workers();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let mut config = listener(vec![chain("one", 1)]);
        config.address = Address::Pipe { path: path.clone(), mode: 0o600 };
        w.add(config.clone());
        tokio::task::yield_now().await;
        let reach = async |expected: &[u8]| {
            let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
            let mut got = [0; 3];
            stream.read_exact(&mut got).await.unwrap();
            assert_eq!(got, expected);
        };
        reach(b"one").await;
        let mode = || std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions()) & 0o777;

        let secret = SdsSecret { name: "default".into(), source: None };
        let mut tls = chain("one", 2);
        tls.name = "tls".into();
        tls.matcher.transport_protocol = "tls".into();
        tls.transport = DownstreamTransport::Tls(Arc::new(DownstreamTlsConfig {
            common: CommonTls {
                certificates: CertificateSource::Sds(secret.clone()),
                validation: ValidationSource::None,
                alpn: Vec::new(),
                min_version: TlsVersion::V1_2,
                max_version: TlsVersion::V1_3,
                cipher_suites: Vec::new(),
                groups: Vec::new(),
            },
            require_client_certificate: false,
            disable_stateless_resumption: true,
            disable_stateful_resumption: true,
        }));
        config.address = Address::Pipe { path: path.clone(), mode: 0o640 };
        config.filter_chains = vec![chain("two", 1), tls];
        config.shell_hash = 2;
        assert_eq!(w.add(config), Update::Warming);
        reach(b"one").await;
        assert_eq!(mode(), 0o600);
        w.services.secrets.store.give_up(&Secrets::key(&secret));
        w.manager.all_warm().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        reach(b"two").await;
        assert_eq!(mode(), 0o640);
    });
}

#[test]
fn a_connection_is_handed_to_the_listener_of_its_destination() {
    on_this_thread(async {
        let w = world();
        for name in ["first", "exact", "wildcard"] {
            w.origin(name).await;
        }
        w.manager.start_workers();
        // a transparent listener takes the address that was connected to for the original one: no iptables needed
        let mut config = listener(vec![chain("first", 1)]);
        config.address = Address::Socket("0.0.0.0:0".parse().unwrap());
        (config.transparent, config.use_original_dst) = (true, true);
        if let Err(e) = w.manager.add_or_update(Arc::new(config), true) {
            eprintln!("SKIPPED, needs CAP_NET_ADMIN: {e}");
            return;
        }
        tokio::task::yield_now().await;
        let port = w.manager.views()[0].addresses[0].port();
        let reach = async |ip: [u8; 4], expected: &str| {
            let mut stream = TcpStream::connect(SocketAddr::from((ip, port))).await.unwrap();
            greeting(&mut stream, expected).await;
        };
        reach([127, 0, 0, 5], "first").await;
        let unbound = |name: &str, ip: [u8; 4]| {
            let mut config = listener(vec![chain(name, 1)]);
            config.name = name.into();
            config.address = Address::Socket(SocketAddr::from((ip, port)));
            config.bind_to_port = false;
            config
        };
        w.add(unbound("exact", [127, 0, 0, 5]));
        tokio::task::yield_now().await;
        reach([127, 0, 0, 5], "exact").await;
        reach([127, 0, 0, 6], "first").await;
        w.add(unbound("wildcard", [0, 0, 0, 0]));
        tokio::task::yield_now().await;
        reach([127, 0, 0, 6], "wildcard").await;
        reach([127, 0, 0, 5], "exact").await;
        assert!(w.manager.remove("exact") && w.manager.remove("wildcard"));
        tokio::task::yield_now().await;
        reach([127, 0, 0, 5], "first").await;
    });
}
