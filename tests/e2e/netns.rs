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

fn listener(name: &str, ip: &str, port: u16, fields: &str, chain: &str, cluster: &str) -> String {
    format!(
        "  - name: {name}
    address: {{ socket_address: {{ address: '{ip}', port_value: {port} }} }}
    {fields}
    filter_chains: [{{ {chain} filters: [{{ name: tcp, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: {name}, cluster: {cluster} }} }}] }}]
"
    )
}

/// A listener that answers HTTP with its name.
fn answering(name: &str, ip: &str, port: u16, fields: &str) -> String {
    let routes =
        format!("{{ match: {{ prefix: / }}, direct_response: {{ status: 200, body: {{ inline_string: {name} }} }} }}");
    let front = Front { name, routes: &routes, listener: fields, ..Front::default() };
    front.yaml().replacen("address: 127.0.0.1, port_value: 0", &format!("address: '{ip}', port_value: {port}"), 1)
}

const ORIGINAL: &str = "type: ORIGINAL_DST\nlb_policy: CLUSTER_PROVIDED";

async fn proxy_in(namespace: &Namespace, listeners: &str, clusters: &str) -> Proxy {
    let yaml = Bootstrap { static_listeners: listeners, static_clusters: clusters, ..Bootstrap::default() }.yaml();
    let dir = namespace.prefix();
    let options = Options { prefix: dir, user: None, ..options() };
    let mut options = options;
    // `ip netns exec` needs root, the rules need the proxy's own user: change it inside.
    let user = PROXY_USER.to_string();
    options.prefix.extend(["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups"].map(Into::into));
    let name = namespace.name().to_owned();
    let started = namespace.run(move || async move {
        let dir = tempfile::tempdir().unwrap();
        drop(dir);
        Proxy::launch(&yaml, options).await.map_err(|e| format!("{name}: {e}"))
    });
    started.await.unwrap().unwrap()
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
