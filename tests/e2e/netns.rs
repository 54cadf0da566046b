//! Redirected traffic in network namespaces, with the rules of `docker/iptables-init.sh`. Root only.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use outrigger_tests::client::{H1Client, Reply, get};
use outrigger_tests::config::Bootstrap;
use outrigger_tests::netns::{Namespace, Network, available, skip};
use outrigger_tests::origin::Origin;
use outrigger_tests::proxy::{Options, Proxy};

use super::support::*;

/// The user the rules of redirection leave alone.
const PROXY_USER: u32 = 1337;

/// A listener that answers HTTP with its name.
fn answering(name: &str, ip: &str, port: u16, fields: &str) -> String {
    let routes =
        format!("{{ match: {{ prefix: / }}, direct_response: {{ status: 200, body: {{ inline_string: {name} }} }} }}");
    let front = Front { name, routes: &routes, listener: fields, ..Front::default() };
    front.yaml().replacen("address: 127.0.0.1, port_value: 0", &format!("address: '{ip}', port_value: {port}"), 1)
}

const ORIGINAL: &str = "type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED";

async fn proxy_in(namespace: &Namespace, listeners: &str, clusters: &str) -> Proxy {
    let yaml = Bootstrap { static_listeners: listeners, static_clusters: clusters, ..Bootstrap::default() }.yaml();
    let options = Options { prefix: namespace.prefix(), user: Some(PROXY_USER), ..options() };
    Proxy::launch(&yaml, options).await.unwrap_or_else(|e| panic!("{e}"))
}

/// A TCP proxy to `cluster`, as a flow item of `filters`.
fn tcp(cluster: &str) -> String {
    format!(
        "{{ name: tcp, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, \
         stat_prefix: {cluster}, cluster: {cluster} }} }}"
    )
}

async fn origin_in(namespace: &Namespace, version: &'static str, at: SocketAddr) -> Origin {
    namespace.run(move || async move { Origin::listen(version, at, None) }).await.unwrap().unwrap()
}

fn any(port: u16) -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, port).into()
}

async fn ask(namespace: &Namespace, to: SocketAddr) -> Reply {
    let asked = namespace.run(move || async move {
        let deadline = std::time::Instant::now() + outrigger_tests::client::PATIENCE;
        // The proxy may still be opening its ports.
        loop {
            let answer = match H1Client::connect(&to.into()).await {
                Ok(mut client) => client.send(get("app.test", "/")).await,
                Err(e) => Err(e),
            };
            match answer {
                Ok(reply) => return reply,
                Err(e) if std::time::Instant::now() > deadline => panic!("{to}: {e}"),
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        }
    });
    asked.await.unwrap()
}

#[tokio::test]
async fn outbound_traffic_goes_to_the_listener_of_its_destination() {
    if let Err(why) = available() {
        return skip("outbound_traffic_goes_to_the_listener_of_its_destination", &why);
    }
    let network = Network::new(&["client", "server"]).unwrap();
    let (client, server) = (network.get("client"), network.get("server"));
    let to = |port: u16| SocketAddr::from((server.address(), port));
    let _direct = origin_in(server, "direct", any(7070)).await;
    let virtual_listener = format!(
        "  - {{ name: outbound, use_original_dst: true, address: {{ socket_address: {{ address: 0.0.0.0, port_value: 15001 }} }}, \
         filter_chains: [{{ filters: [{}] }}] }}\n",
        tcp("passthrough")
    );
    let listeners = virtual_listener
        + &answering("by-address", &server.address().to_string(), 8080, "bind_to_port: false")
        + &answering("by-port", "0.0.0.0", 8080, "bind_to_port: false")
        + &answering("other-port", "0.0.0.0", 9090, "bind_to_port: false");
    let _proxy = proxy_in(client, &listeners, &format!("  - {{ name: passthrough, {} }}\n", ORIGINAL)).await;
    client.redirect(&[]).unwrap();
    assert_eq!(ask(client, to(8080)).await.text(), "by-address");
    assert_eq!(ask(client, (Ipv4Addr::new(10, 201, 0, 99), 8080).into()).await.text(), "by-port");
    assert_eq!(ask(client, to(9090)).await.text(), "other-port");
    let reply = ask(client, to(7070)).await;
    assert_eq!(reply.origin_version(), "direct", "what no listener takes passes to where it was sent");
    assert!(reply.json()["peer"].as_str().unwrap().starts_with(&client.address().to_string()), "{}", reply.text());
}

#[tokio::test]
async fn inbound_traffic_reaches_the_application_from_127_0_0_6() {
    if let Err(why) = available() {
        return skip("inbound_traffic_reaches_the_application_from_127_0_0_6", &why);
    }
    let network = Network::new(&["client", "server"]).unwrap();
    let (client, server) = (network.get("client"), network.get("server"));
    let _app = origin_in(server, "app", any(8080)).await;
    let _other = origin_in(server, "other", any(8081)).await;
    let chain = |matcher: &str, cluster: &str| format!("{{ {matcher} filters: [{}] }}", tcp(cluster));
    let listener = format!(
        "  - name: inbound
    address: {{ socket_address: {{ address: 0.0.0.0, port_value: 15006 }} }}
    listener_filters: [{{ name: original_dst, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst }} }}]
    filter_chains: [{}]
    default_filter_chain: {}
",
        chain("filter_chain_match: { destination_port: 8080 },", "inbound"),
        chain("", "passthrough")
    );
    let bind = "upstream_bind_config: { source_address: { address: 127.0.0.6, port_value: 0 } }";
    let clusters =
        format!("  - {{ name: inbound, {ORIGINAL}, {bind} }}\n  - {{ name: passthrough, {ORIGINAL}, {bind} }}\n");
    let _proxy = proxy_in(server, &listener, &clusters).await;
    server.redirect(&[]).unwrap();
    for (port, version) in [(8080, "app"), (8081, "other")] {
        let reply = ask(client, (server.address(), port).into()).await;
        assert_eq!(reply.origin_version(), version);
        let peer = reply.json()["peer"].as_str().unwrap().to_owned();
        assert!(peer.starts_with("127.0.0.6:"), "{peer}");
    }
}

#[tokio::test]
async fn ipv6_is_redirected_too() {
    const TEST: &str = "ipv6_is_redirected_too";
    if let Err(why) = available() {
        return skip(TEST, &why);
    }
    if !std::path::Path::new("/proc/net/if_inet6").exists() {
        return skip(TEST, "this kernel has no IPv6");
    }
    let network = Network::new(&["client", "server"]).unwrap();
    let addresses = [("client", "fd00:201::1"), ("server", "fd00:201::2")];
    for (label, address) in addresses {
        let step = ["-6", "addr", "add", &format!("{address}/64"), "dev", "eth0", "nodad"];
        if !network.get(label).command("ip").args(step).status().is_ok_and(|status| status.success()) {
            return skip(TEST, "an IPv6 address cannot be set");
        }
    }
    let (client, server) = (network.get("client"), network.get("server"));
    let at: IpAddr = "fd00:201::2".parse().unwrap();
    let _direct = origin_in(server, "direct", ("::".parse::<IpAddr>().unwrap(), 7070).into()).await;
    let listeners = format!(
        "  - {{ name: outbound, use_original_dst: true, address: {{ socket_address: {{ address: '::', port_value: 15001 }} }}, \
         filter_chains: [{{ filters: [{}] }}] }}\n",
        tcp("passthrough")
    ) + &answering("by-address", &at.to_string(), 8080, "bind_to_port: false");
    let _proxy = proxy_in(client, &listeners, &format!("  - {{ name: passthrough, {ORIGINAL} }}\n")).await;
    client.redirect(&[]).unwrap();
    assert_eq!(ask(client, (at, 8080).into()).await.text(), "by-address");
    assert_eq!(ask(client, (at, 7070).into()).await.origin_version(), "direct");
}
