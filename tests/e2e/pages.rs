//! The admin's pages as an independent and strict reader of protobuf's JSON takes them: Go's library, with the types of
//! go-control-plane.

use outrigger_tests::config::{self, Bootstrap};
use outrigger_tests::control_plane::ControlPlane;
use outrigger_tests::go_control_plane::{available, strictly_parsed};
use outrigger_tests::netns::skip;
use outrigger_tests::origin::Origin;
use outrigger_tests::proxy::{Options, Proxy};
use std::net::SocketAddr;
use xds_protos::pb::google::protobuf::Duration;

use super::support::{eventually, is_envoy};
use super::validate::{expected, fixtures, root};

/// Pages that are messages, and which.
const PAGES: [(&str, &str); 9] = [
    ("/config_dump", "envoy.admin.v3.ConfigDump"),
    ("/config_dump?include_eds", "envoy.admin.v3.ConfigDump"),
    ("/config_dump?mask=dynamic_active_clusters", "envoy.admin.v3.ConfigDump"),
    ("/clusters?format=json", "envoy.admin.v3.Clusters"),
    ("/listeners?format=json", "envoy.admin.v3.Listeners"),
    ("/certs", "envoy.admin.v3.Certificates"),
    ("/server_info", "envoy.admin.v3.ServerInfo"),
    ("/memory", "envoy.admin.v3.Memory"),
    ("/init_dump", "envoy.admin.v3.UnreadyTargetsDumps"),
];
const CLIENT_STATUS: (&str, &str) = ("/v3/discovery:client_status", "envoy.service.status.v3.ClientStatusResponse");

/// Whether there is a parser; says it loudly when there is none.
fn can_parse(test: &str) -> bool {
    available().map_err(|why| skip(test, &why)).is_ok()
}

/// What is wrong with the pages of a proxy.
async fn problems(proxy: &Proxy, of: &str) -> Vec<String> {
    let mut pages = Vec::new();
    for (path, message) in PAGES {
        let reply = proxy.admin(path).await.unwrap();
        // a mask of what is not there is refused
        if !path.contains("mask") || reply.status == 200 {
            pages.push((path, message, reply.text()));
        }
    }
    if !is_envoy() {
        let (path, message) = CLIENT_STATUS;
        pages.push((path, message, proxy.admin_post(path).await.unwrap().text()));
    }
    let texts: Vec<(&str, &str)> = pages.iter().map(|(_, message, text)| (*message, text.as_str())).collect();
    let parsed = strictly_parsed(&texts).unwrap();
    let wrong = pages.iter().zip(parsed).filter_map(|(page, parsed)| parsed.err().map(|error| (page, error)));
    wrong.map(|((path, _, text), error)| format!("{of} {path}: {error}\n{text}\n")).collect()
}

#[tokio::test]
async fn a_strict_parser_reads_the_pages_of_every_bootstrap() {
    if !can_parse("a_strict_parser_reads_the_pages_of_every_bootstrap") {
        return;
    }
    let mut wrong = Vec::new();
    let mut read = 0;
    for file in fixtures("bootstraps") {
        let text = std::fs::read_to_string(&file).unwrap();
        if !expected(&text).accepted {
            continue;
        }
        let admin = "admin: { address: { socket_address: { address: 127.0.0.1, port_value: 0 } } }";
        let options = Options { prefix: vec!["env".into(), "-C".into(), root().into()], ..Options::default() };
        match Proxy::launch(&text, options.flag("--config-yaml").flag(admin)).await {
            Ok(proxy) => wrong.extend(problems(&proxy, &file.display().to_string()).await),
            Err(error) => wrong.push(format!("{}: {error}", file.display())),
        }
        read += 1;
    }
    assert!(read > 50 && wrong.is_empty(), "{read} read\n{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_strict_parser_reads_the_pages_beside_a_control_plane() {
    if !can_parse("a_strict_parser_reads_the_pages_beside_a_control_plane") {
        return;
    }
    let origin = Origin::start("v1").unwrap();
    let control_plane = ControlPlane::tcp().unwrap();
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let inline = config::route_config("inline", vec![config::direct_response("/", 200, "<a>\u{2028}")]);
    let mut refused = config::static_cluster("refused", &[origin.address()]);
    refused.connect_timeout = Some(Duration { seconds: -1, nanos: 0 });
    let mut nowhere = config::endpoints("cold", &[origin.address()]);
    nowhere.endpoints[0].priority = 200;
    control_plane.batch(|batch| {
        batch.set("good", &config::eds_cluster("good"));
        batch.set("good", &config::endpoints("good", &[origin.address()]));
        batch.set("cold", &config::eds_cluster("cold"));
        batch.set("cold", &nowhere);
        batch.set("refused", &refused);
        batch.set("routes", &config::route_config("routes", vec![config::route_to("/", "good")]));
        batch.set("by-name", &config::http_listener("by-name", any_port, &config::hcm_rds("a", "routes")));
        batch.set("at-once", &config::http_listener("at-once", any_port, &config::hcm_inline("b", inline)));
    });
    let bootstrap = Bootstrap { node_id: "n", ads: Some(control_plane.address()), ..Bootstrap::default() };
    let proxy = Proxy::launch(&bootstrap.yaml(), Options::default()).await.unwrap();
    let shown = |path: &'static str, text: &'static str| {
        let proxy = &proxy;
        async move { proxy.admin(path).await.unwrap().text().contains(text) }
    };
    eventually("a cluster with endpoints", || shown("/clusters", "good::127.0.0.1:")).await;
    if !is_envoy() {
        eventually("refused endpoints", || shown("/config_dump?include_eds", "\"cluster_name\": \"cold\"")).await;
        let page = proxy.admin("/config_dump?include_eds").await.unwrap().json();
        let sections = page["configs"].as_array().unwrap().iter();
        let all = sections.flat_map(|section| section["dynamic_endpoint_configs"].as_array().into_iter().flatten());
        let cold = all.filter(|one| one["endpoint_config"]["cluster_name"] == "cold").collect::<Vec<_>>();
        assert!(cold.len() == 1 && cold[0]["client_status"] == "NACKED", "{page}");
        assert!(cold[0]["error_state"]["details"].as_str().unwrap().contains("priority"), "{page}");
    }
    let wrong = problems(&proxy, "with a control plane").await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
