//! The admin page, as operators and agents use it.

use outrigger_tests::config::{self, Bootstrap};
use outrigger_tests::control_plane::{CDS, ControlPlane, EDS};
use outrigger_tests::origin::Origin;
use outrigger_tests::proxy::{Options, Proxy};
use prost::Message;
use serde_json::Value;
use tokio::net::TcpStream;
use xds_protos::pb::envoy::admin::v3::ClientResourceStatus;
use xds_protos::pb::envoy::config::cluster::v3::Cluster;
use xds_protos::pb::envoy::service::status::v3::ClientStatusRequest;
use xds_protos::pb::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
use xds_protos::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use xds_protos::pb::envoy::r#type::matcher::v3::{NodeMatcher, StringMatcher};

use super::support::*;

async fn bed() -> (Origin, Bed) {
    let origin = Origin::start("v1").unwrap();
    let front = Front { routes: &all_to("a"), ..Front::default() };
    let clusters = cluster("a", &[origin.address()], "") + &cluster("secure", &[origin.address()], "");
    let bed = Bed::start(front, &clusters).await;
    (origin, bed)
}

async fn json(proxy: &Proxy, path: &str) -> Value {
    let reply = proxy.admin(path).await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.header("content-type")), (200, "application/json"), "{path}");
    reply.json()
}

#[tokio::test]
async fn ready_and_server_info() {
    let (_origin, bed) = bed().await;
    let ready = bed.proxy.admin("/ready").await.unwrap();
    assert_eq!((ready.text().as_str(), ready.header("content-type")), ("LIVE\n", "text/plain; charset=UTF-8"));
    assert_eq!(
        (ready.header("cache-control"), ready.header("x-content-type-options")),
        ("no-cache, max-age=0", "nosniff")
    );
    let info = json(&bed.proxy, "/server_info").await;
    assert_eq!((&info["state"], &info["node"]["id"]), (&"LIVE".into(), &"test".into()));
    assert_eq!(
        (&info["command_line_options"]["concurrency"], &info["command_line_options"]["drain_time"]),
        (&1.into(), &"1s".into())
    );
    assert_eq!(info["version"].as_str().map(|v| v.split('/').count()), Some(5), "{}", info["version"]);
}

#[tokio::test]
async fn stats_in_every_form() {
    let (_origin, bed) = bed().await;
    assert_eq!(bed.client(WAYS[0]).await.get("a", "/").await.status, 200);
    let text = bed.proxy.admin("/stats").await.unwrap().text();
    let names: Vec<&str> = text.lines().filter_map(|line| line.split_once(": ")).map(|(name, _)| name).collect();
    for name in [
        "cluster.a.upstream_rq_total",
        "cluster.a.upstream_cx_active",
        "cluster_manager.active_clusters",
        "http.front.downstream_rq_2xx",
        "http.front.downstream_cx_length_ms",
        "listener.front.downstream_cx_total",
        "listener_manager.total_listeners_active",
        "server.live",
        "server.state",
        "server.uptime",
    ] {
        assert!(names.contains(&name), "{name} is missing");
    }
    let used = bed.proxy.admin("/stats?usedonly").await.unwrap().text();
    assert!(used.contains("cluster.a.upstream_rq_200: 1\n") && !used.contains("cluster.a.upstream_rq_retry"));
    let filtered = bed.proxy.admin("/stats?filter=%5Ecluster%5C.a%5C.upstream_rq_2").await.unwrap().text();
    assert_eq!(filtered, "cluster.a.upstream_rq_200: 1\ncluster.a.upstream_rq_2xx: 1\n");
    let page = json(&bed.proxy, "/stats?format=json&filter=upstream_rq_2xx").await;
    assert!(
        page["stats"]
            .as_array()
            .unwrap()
            .contains(&serde_json::json!({"name": "cluster.a.upstream_rq_2xx", "value": 1})),
        "{page}"
    );
    let counters =
        bed.proxy.admin("/stats?type=Counters&filter=cluster.a.upstream_cx_(total|active)").await.unwrap().text();
    assert_eq!(counters, "cluster.a.upstream_cx_total: 1\n");
}

#[tokio::test]
async fn prometheus_reads_it() {
    let (_origin, bed) = bed().await;
    for _ in 0..3 {
        assert_eq!(bed.client(WAYS[0]).await.get("a", "/").await.status, 200);
    }
    let series = "envoy_cluster_upstream_rq_time_count{envoy_cluster_name=\"a\"} 3";
    eventually("the histogram to be flushed", || async {
        bed.proxy.admin("/stats/prometheus").await.unwrap().text().contains(series)
    })
    .await;
    let text = bed.proxy.admin("/stats/prometheus").await.unwrap().text();
    for line in [
        "# TYPE envoy_cluster_upstream_rq_xx counter",
        "envoy_cluster_upstream_rq_xx{envoy_response_code_class=\"2\",envoy_cluster_name=\"a\"} 3",
        "envoy_cluster_upstream_rq{envoy_response_code=\"200\",envoy_cluster_name=\"a\"} 3",
        "envoy_http_downstream_rq_xx{envoy_response_code_class=\"2\",envoy_http_conn_manager_prefix=\"front\"} 3",
        "# TYPE envoy_cluster_membership_healthy gauge",
        "envoy_cluster_membership_healthy{envoy_cluster_name=\"a\"} 1",
        "# TYPE envoy_cluster_upstream_rq_time histogram",
        "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"a\",le=\"+Inf\"} 3",
        "envoy_server_live{} 1",
    ] {
        assert!(text.lines().any(|l| l == line), "no line {line}");
    }
    // Every line is a type or a sample of the type last named.
    let mut family = String::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            family = kind.split(' ').next().unwrap().to_owned();
            continue;
        }
        let (name, rest) = line.split_once('{').expect(line);
        let (_, value) = rest.rsplit_once("} ").expect(line);
        assert!(name.starts_with(&family), "{line} under {family}");
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
    let used = bed.proxy.admin("/stats/prometheus?usedonly").await.unwrap().text();
    assert!(used.len() < text.len() && used.contains(series));
}

#[tokio::test]
async fn clusters_and_listeners() {
    let (origin, bed) = bed().await;
    assert_eq!(bed.client(WAYS[0]).await.get("a", "/").await.status, 200);
    let text = bed.proxy.admin("/clusters").await.unwrap().text();
    let host = origin.address();
    for line in [
        "a::observability_name::a".to_owned(),
        "a::default_priority::max_connections::1024".to_owned(),
        "a::added_via_api::false".to_owned(),
        format!("a::{host}::rq_total::1"),
        format!("a::{host}::cx_active::1"),
        format!("a::{host}::health_flags::healthy"),
        format!("a::{host}::weight::1"),
    ] {
        assert!(text.lines().any(|l| l == line), "no line {line} in\n{text}");
    }
    let page = json(&bed.proxy, "/clusters?format=json").await;
    let a = page["cluster_statuses"].as_array().unwrap().iter().find(|c| c["name"] == "a").unwrap();
    assert_eq!(a["host_statuses"][0]["address"]["socket_address"]["port_value"], host.port());
    assert_eq!(a["host_statuses"][0]["health_status"]["eds_health_status"], "HEALTHY");
    let text = bed.proxy.admin("/listeners").await.unwrap().text();
    assert_eq!(text, format!("front::{}\nfront-mtls::{}\n", bed.plain, bed.mtls));
}

#[tokio::test]
async fn listeners_without_a_port_of_their_own_are_listed_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("l.sock");
    let filter = "{ name: t, typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, \
                  stat_prefix: t, cluster: a } }";
    let listeners = format!(
        "  - {{ name: inner, bind_to_port: false, address: {{ socket_address: {{ address: 127.0.0.1, port_value: 15002 }} }}, \
         filter_chains: [{{ filters: [{filter}] }}] }}\n  - {{ name: local, address: {{ pipe: {{ path: {} }} }}, \
         filter_chains: [{{ filters: [{filter}] }}] }}\n",
        path.display()
    );
    let proxy = start(&listeners, &cluster("a", &[dead_address()], "")).await;
    let text = proxy.admin("/listeners").await.unwrap().text();
    assert_eq!(text, format!("inner::127.0.0.1:15002\nlocal::{}\n", path.display()));
}

#[tokio::test]
async fn the_configuration_is_shown_without_its_secrets() {
    let keys = Keys::new();
    let inline = std::fs::read_to_string(keys.dir().join("server/key.pem")).unwrap().replace('\n', "\\n");
    let chain = std::fs::read_to_string(keys.dir().join("server/cert.pem")).unwrap().replace('\n', "\\n");
    let transport = format!(
        "{{ name: envoy.transport_sockets.tls, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
         common_tls_context: {{ tls_certificates: [{{ certificate_chain: {{ inline_string: \"{chain}\" }}, private_key: {{ inline_string: \"{inline}\" }} }}] }} }} }}"
    );
    let front = Front {
        routes: "{ match: { prefix: / }, direct_response: { status: 200 } }",
        transport: &transport,
        ..Front::default()
    };
    let proxy = start(&front.yaml(), &cluster("a", &[dead_address()], "")).await;
    let reply = proxy.admin("/config_dump").await.unwrap();
    let text = reply.text();
    let secret = keys.server.key_pem.lines().nth(1).unwrap();
    assert!(!text.contains(secret), "the private key is shown");
    assert!(text.contains("[redacted]"));
    let page = reply.json();
    let sections: Vec<&str> = page["configs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["@type"].as_str().unwrap().rsplit('.').next().unwrap())
        .collect();
    for section in ["BootstrapConfigDump", "ClustersConfigDump", "ListenersConfigDump", "RoutesConfigDump"] {
        assert!(sections.contains(&section), "{section} is missing in {sections:?}");
    }
    let clusters = page["configs"].as_array().unwrap().iter().find(|c| c["static_clusters"].is_array()).unwrap();
    assert_eq!(clusters["static_clusters"][0]["cluster"]["name"], "a");
    let only = json(&proxy, "/config_dump?resource=static_clusters").await;
    assert_eq!(only["configs"][0]["cluster"]["name"], "a");
    assert_eq!(only["configs"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_typed_struct_hides_no_secret() {
    let keys = Keys::new();
    let file = |name: &str| std::fs::read_to_string(keys.dir().join(name)).unwrap().replace('\n', "\\n");
    let (chain, key) = (file("server/cert.pem"), file("server/key.pem"));
    let secret = keys.server.key_pem.lines().nth(1).unwrap();
    for kind in ["xds.type.v3.TypedStruct", "udpa.type.v1.TypedStruct"] {
        let transport = format!(
            "{{ name: envoy.transport_sockets.tls, typed_config: {{ '@type': type.googleapis.com/{kind}, \
             type_url: type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
             value: {{ common_tls_context: {{ tls_certificates: [{{ certificate_chain: {{ inline_string: \"{chain}\" }}, \
             private_key: {{ inline_string: \"{key}\" }} }}] }} }} }} }}"
        );
        let front = Front {
            routes: "{ match: { prefix: / }, direct_response: { status: 200 } }",
            transport: &transport,
            ..Front::default()
        };
        let proxy = start(&front.yaml(), "").await;
        for path in ["/config_dump", "/config_dump?resource=static_listeners", "/config_dump?mask=bootstrap"] {
            let text = proxy.admin(path).await.unwrap().text();
            assert!(!text.contains(secret) && text.contains("[redacted]") && text.contains(kind), "{path}: {text}");
        }
        if !is_envoy() {
            let text = proxy.admin_post("/v3/discovery:client_status").await.unwrap().text();
            assert!(!text.contains(secret) && text.contains("[redacted]") && text.contains(kind), "{text}");
        }
    }
}

#[tokio::test]
async fn no_certificates_are_an_empty_list() {
    let proxy = start("", &cluster("a", &[dead_address()], "")).await;
    assert_eq!(json(&proxy, "/certs").await, serde_json::json!({"certificates": []}));
}

#[tokio::test]
async fn certificates_are_listed() {
    let (_origin, bed) = bed().await;
    let page = json(&bed.proxy, "/certs").await;
    let found = page["certificates"].as_array().unwrap();
    let chain = found.iter().find(|c| c["cert_chain"][0]["subject_alt_names"].to_string().contains(SERVER_ID)).unwrap();
    let leaf = &chain["cert_chain"][0];
    assert_eq!(leaf["path"], bed.keys.dir().join("server/cert.pem").to_str().unwrap());
    assert_eq!(leaf["days_until_expiration"], "0");
    assert!(
        leaf["expiration_time"].as_str().unwrap().ends_with('Z') && !leaf["serial_number"].as_str().unwrap().is_empty()
    );
}

#[tokio::test]
async fn log_levels_change() {
    let (_origin, bed) = bed().await;
    let levels = bed.proxy.admin_post("/logging").await.unwrap().text();
    assert!(levels.starts_with("active loggers:\n") && levels.contains("  http: warning\n"), "{levels}");
    let levels = bed.proxy.admin_post("/logging?http=debug").await.unwrap().text();
    assert!(levels.contains("  http: debug\n") && levels.contains("  upstream: warning\n"), "{levels}");
    let levels = bed.proxy.admin_post("/logging?level=error").await.unwrap().text();
    assert!(levels.contains("  http: error\n") && levels.contains("  upstream: error\n"), "{levels}");
    let bad = bed.proxy.admin_post("/logging?nonsense=debug").await.unwrap();
    assert_eq!(bad.status, 400, "{}", bad.text());
    assert_eq!(bed.proxy.admin_post("/logging?level=loud").await.unwrap().status, 400);
}

#[tokio::test]
async fn a_failed_health_check_asks_clients_to_leave() {
    let (_origin, bed) = bed().await;
    let mut client = bed.client(WAYS[0]).await;
    assert_eq!(client.get("a", "/").await.header("connection"), "");
    let reply = bed.proxy.admin_post("/healthcheck/fail").await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.text().as_str()), (200, "OK\n"));
    let ready = bed.proxy.admin("/ready").await.unwrap();
    assert_eq!((ready.status.as_u16(), ready.text().as_str()), (503, "DRAINING\n"));
    let reply = client.get("a", "/").await;
    assert_eq!((reply.status.as_u16(), reply.header("connection")), (200, "close"));
    client.wait_closed().await;
    let mut h2 = bed.client(WAYS[1]).await;
    assert_eq!(h2.get("a", "/").await.status, 200);
    h2.wait_closed().await;
    bed.proxy.admin_post("/healthcheck/ok").await.unwrap();
    assert_eq!(bed.proxy.admin("/ready").await.unwrap().text(), "LIVE\n");
    assert_eq!(bed.client(WAYS[0]).await.get("a", "/").await.header("connection"), "");
}

#[tokio::test]
async fn listeners_drain_at_once_or_gracefully() {
    let (_origin, bed) = bed().await;
    assert_eq!(bed.proxy.admin_post("/drain_listeners?graceful&skip_exit").await.unwrap().text(), "OK\n");
    assert_eq!(bed.client(WAYS[0]).await.get("a", "/").await.status, 200, "graceful keeps accepting");
    assert_eq!(bed.proxy.admin_post("/drain_listeners").await.unwrap().text(), "OK\n");
    eventually("the ports to close", || async { TcpStream::connect(bed.plain).await.is_err() }).await;
    assert_eq!(bed.proxy.admin("/ready").await.unwrap().text(), "LIVE\n");
}

#[tokio::test]
async fn quitquitquit_and_sigterm_end_well() {
    let (_origin, bed) = bed().await;
    assert!(bed.proxy.quit().await.unwrap().success());
    let (_origin, other) = self::bed().await;
    assert!(other.proxy.terminate().await.unwrap().success());
}

#[tokio::test]
async fn what_is_not_there_or_not_allowed() {
    let (_origin, bed) = bed().await;
    let reply = bed.proxy.admin("/no/such/page").await.unwrap();
    assert_eq!(reply.status, 404);
    assert!(reply.text().starts_with("invalid path. admin commands are:\n  /: Admin home page\n"), "{}", reply.text());
    for path in ["/quitquitquit", "/healthcheck/fail", "/drain_listeners", "/logging"] {
        let reply = bed.proxy.admin(path).await.unwrap();
        assert_eq!(
            (reply.status.as_u16(), reply.text().trim_end()),
            (405, "Method GET not allowed, POST required."),
            "{path}"
        );
    }
    let help = bed.proxy.admin("/help").await.unwrap().text();
    for path in
        ["/certs", "/clusters", "/config_dump", "/listeners", "/ready", "/server_info", "/stats", "/stats/prometheus"]
    {
        assert!(help.contains(&format!("  {path}")), "{path} is missing");
    }
}

/// The lines of `/ledger` that start with these words.
async fn ledger(proxy: &Proxy, query: &str, words: &[&str]) -> Vec<String> {
    let text = proxy.admin(&format!("/ledger{query}")).await.unwrap().text();
    let starts = |line: &&str| line.split_whitespace().zip(words).filter(|(a, b)| a == *b).count() == words.len();
    text.lines().filter(starts).map(str::to_owned).collect()
}

#[tokio::test]
async fn the_ledger_says_what_became_of_every_resource() {
    if is_envoy() {
        return; // it has nothing like it
    }
    let origin = Origin::start("v1").unwrap();
    let control_plane = ControlPlane::tcp().unwrap();
    control_plane.batch(|batch| {
        batch.set("good", &config::eds_cluster("good"));
        batch.set("good", &config::endpoints("good", &[origin.address()]));
        batch.set("cold", &config::eds_cluster("cold"));
    });
    let bootstrap = Bootstrap { node_id: "n", ads: Some(control_plane.address()), ..Bootstrap::default() };
    let proxy = Proxy::launch(&bootstrap.yaml(), Options::default()).await.unwrap();
    eventually("the first clusters", || async { !ledger(&proxy, "", &["cds", "cold", "warming"]).await.is_empty() })
        .await;
    eventually("a cluster with endpoints", || async {
        ledger(&proxy, "?type=cds&state=running&name_regex=go.d", &["cds", "good", "running"]).await.len() == 1
    })
    .await;
    assert_eq!(ledger(&proxy, "", &["eds", "cold", "requested", "-"]).await.len(), 1);
    assert_eq!(ledger(&proxy, "", &["eds", "good", "running"]).await.len(), 1);
    // a version that is refused stands beside the one that runs
    let mut bad = config::eds_cluster("good");
    bad.connect_timeout = Some(xds_protos::pb::google::protobuf::Duration { seconds: -1, nanos: 0 });
    control_plane.set("good", &bad);
    eventually("a refusal", || async { ledger(&proxy, "", &["cds", "good", "rejected"]).await.len() == 1 }).await;
    let page = json(&proxy, "/ledger?format=json&state=rejected").await;
    let row = &page["resources"][0];
    assert_eq!((&row["type"], &row["name"]), (&"cds".into(), &"good".into()));
    assert!(row["version_running"] != row["version_offered"], "{row}");
    assert!(row["error"]["details"].as_str().unwrap().contains("connect_timeout"), "{row}");
    let stats = proxy.admin("/stats?filter=outrigger.ledger.cds").await.unwrap().text();
    for line in
        ["outrigger.ledger.cds.rejected: 1", "outrigger.ledger.cds.warming: 1", "outrigger.ledger.cds.running: 1"]
    {
        assert!(stats.lines().any(|l| l == line), "no {line} in\n{stats}");
    }
    let refused = proxy.admin("/ledger?state=lost").await.unwrap();
    assert_eq!((refused.status.as_u16(), refused.text().starts_with("state is 'lost'")), (400, true));
    control_plane.remove(CDS, "cold");
    eventually("a removal", || async { ledger(&proxy, "", &["cds", "cold"]).await.is_empty() }).await;
}

#[tokio::test]
async fn the_client_says_by_grpc_and_json_what_it_holds() {
    if is_envoy() {
        return; // it has nothing like it
    }
    let origin = Origin::start("v1").unwrap();
    let control_plane = ControlPlane::tcp().unwrap();
    control_plane.batch(|batch| {
        batch.set("good", &config::eds_cluster("good"));
        batch.set("good", &config::endpoints("good", &[origin.address()]));
    });
    let bootstrap = Bootstrap { node_id: "me", ads: Some(control_plane.address()), ..Bootstrap::default() };
    let proxy = start_yaml(&bootstrap.yaml()).await;
    let channel = tonic::transport::Endpoint::new(format!("http://{}", proxy.admin_address())).unwrap();
    let mut client = ClientStatusDiscoveryServiceClient::new(channel.connect().await.unwrap());

    let all = client.fetch_client_status(ClientStatusRequest::default()).await.unwrap().into_inner();
    let [config] = &all.config[..] else { panic!("{all:?}") };
    assert_eq!(config.node.as_ref().unwrap().id, "me");
    let find = |type_url: &str, name: &str| {
        let found = config.generic_xds_configs.iter().find(|one| one.type_url == type_url && one.name == name);
        found.unwrap_or_else(|| panic!("no {type_url} {name} in {all:?}")).clone()
    };
    let cluster = find(CDS, "good");
    let body = Cluster::decode(cluster.xds_config.as_ref().unwrap().value.as_slice()).unwrap();
    assert_eq!((cluster.client_status(), body), (ClientResourceStatus::Acked, config::eds_cluster("good")));
    assert_eq!(find(EDS, "good").client_status(), ClientResourceStatus::Acked);

    // one stream: a message for each
    let (asks, asked) = tokio::sync::mpsc::channel(2);
    let mut answers =
        client.stream_client_status(tokio_stream::wrappers::ReceiverStream::new(asked)).await.unwrap().into_inner();
    asks.send(ClientStatusRequest { exclude_resource_contents: true, ..Default::default() }).await.unwrap();
    let brief = answers.message().await.unwrap().unwrap();
    assert!(brief.config[0].generic_xds_configs.iter().all(|one| one.xds_config.is_none() && !one.name.is_empty()));
    let id = StringMatcher { match_pattern: Some(MatchPattern::Exact("you".into())), ..Default::default() };
    let others = NodeMatcher { node_id: Some(id), ..Default::default() };
    asks.send(ClientStatusRequest { node_matchers: vec![others], ..Default::default() }).await.unwrap();
    assert!(answers.message().await.unwrap().unwrap().config.is_empty());
    drop(asks);
    assert!(answers.message().await.unwrap().is_none());

    let mut bad = config::eds_cluster("good");
    bad.connect_timeout = Some(xds_protos::pb::google::protobuf::Duration { seconds: -1, nanos: 0 });
    control_plane.set("good", &bad);
    eventually("a refusal", || async {
        let page = proxy.admin_post("/v3/discovery:client_status").await.unwrap();
        let page = page.json();
        let rows = page["config"][0]["generic_xds_configs"].as_array().unwrap().clone();
        rows.iter()
            .any(|row| row["name"] == "good" && row["client_status"] == "NACKED" && row["error_state"].is_object())
    })
    .await;
}

/// What the two may print differently: when, in which order, and what Envoy leaves out.
fn comparable(page: &Value) -> Value {
    let mut page = page.clone();
    let sections = page["configs"].as_array_mut().unwrap();
    sections.retain(|section| section["@type"] != "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump");
    for section in sections.iter_mut() {
        let endpoints = section["@type"].as_str().unwrap().ends_with("EndpointsConfigDump");
        // the control plane counts versions for each stream
        section.as_object_mut().unwrap().remove("version_info");
        for (field, list) in section.as_object_mut().unwrap() {
            let Value::Array(list) = list else { continue };
            for element in list.iter_mut() {
                let element = element.as_object_mut().unwrap();
                // Envoy has these of few types or none
                element.remove("client_status");
                if field != "dynamic_listeners" {
                    element.remove("error_state");
                } else if element.get("active_state").is_none() {
                    // whose error it is Envoy says in the refused message only
                    element.remove("name");
                }
                if endpoints {
                    element.remove("version_info");
                }
                without_times(element);
            }
            // a refused cluster without a good version is nowhere in Envoy's page
            list.retain(|element| element.as_object().is_some_and(|fields| !fields.is_empty()));
            list.sort_by_key(Value::to_string);
            // Envoy lists a refused listener twice
            list.dedup();
        }
    }
    // elements of one list come in any order, sections do not
    if sections.iter().any(|section| section["@type"].as_str().unwrap().contains("Dump.")) {
        sections.sort_by_key(Value::to_string);
    }
    page
}

fn without_times(fields: &mut serde_json::Map<String, Value>) {
    for time in ["last_updated", "last_update_attempt", "details", "version_info"] {
        fields.remove(time);
    }
    for inner in fields.values_mut().filter_map(Value::as_object_mut) {
        without_times(inner);
    }
}

#[tokio::test]
async fn the_configuration_is_shown_as_envoy_shows_it() {
    let Some(envoy) = outrigger_tests::proxy::envoy() else { return };
    let origin = Origin::start("v1").unwrap();
    let control_plane = ControlPlane::tcp().unwrap();
    let any_port = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let inline = config::route_config("inline", vec![config::direct_response("/", 200, "<a>\u{2028}")]);
    let routes = config::route_config("routes", vec![config::route_to("/", "good")]);
    control_plane.batch(|batch| {
        batch.set("good", &config::eds_cluster("good"));
        batch.set("good", &config::endpoints("good", &[origin.address()]));
        batch.set("fixed", &config::static_cluster("fixed", &[origin.address(), dead_address()]));
        batch.set("routes", &routes);
        batch.set("by-name", &config::http_listener("by-name", any_port, &config::hcm_rds("a", "routes")));
        batch.set("at-once", &config::http_listener("at-once", any_port, &config::hcm_inline("b", inline)));
    });
    let bootstrap = Bootstrap { node_id: "n", ads: Some(control_plane.address()), ..Bootstrap::default() }.yaml();
    let ours = Proxy::start(&bootstrap).await.unwrap();
    let theirs =
        Proxy::start_with(&bootstrap, Options::default().binary(envoy).flag("--use-dynamic-base-id")).await.unwrap();
    let same = async |queries: &[&str]| {
        for query in queries {
            let path = format!("/config_dump{query}");
            eventually(&format!("equal pages at {path}"), || async {
                let (a, b) = (json(&ours, &path).await, json(&theirs, &path).await);
                comparable(&a) == comparable(&b)
            })
            .await;
        }
    };
    let dynamic = "?resource=dynamic_active_clusters&mask=cluster.name&name_regex=good|fixed";
    let routes = "?resource=dynamic_route_configs&mask=route_config.name";
    same(&["", "?include_eds", dynamic, routes, "?mask=dynamic_route_configs", "?name_regex=nothing&include_eds"])
        .await;
    // a cluster that cannot become warm, and a listener that neither takes
    control_plane.set("cold", &config::eds_cluster("cold"));
    let mut bad = config::http_listener("bad", any_port, &config::hcm_rds("c", "routes"));
    bad.filter_chains.push(bad.filter_chains[0].clone());
    control_plane.set("bad", &bad);
    same(&["", "?include_eds"]).await;
    for query in ["?resource=nope", "?resource=bootstrap", "?mask=static_clusters.cluster", "?mask=nope"] {
        let path = format!("/config_dump{query}");
        let (a, b) = (ours.admin(&path).await.unwrap(), theirs.admin(&path).await.unwrap());
        let shown = |r: &outrigger_tests::client::Reply| (r.status, r.text(), r.header("content-type").to_owned());
        assert_eq!(shown(&a), shown(&b), "{path}");
    }
}
