//! Prints what a control plane sends: `watch [--sotw] <host:port or socket path> <node id> <type>[=name,name] ...`
//!
//! `cargo run -p xds-client --example watch -- 127.0.0.1:18000 n1 cluster listener endpoint=a,b`

use std::process::ExitCode;
use std::sync::Arc;

use xds_client::pb::envoy::config::core::v3::Node;
use xds_client::{Client, Connect, Event, Mode, Options, Subscription, TcpConnector, TypeUrl, UnixConnector};

fn type_url(name: &str) -> TypeUrl {
    match name {
        "cluster" => TypeUrl::CLUSTER,
        "endpoint" => TypeUrl::ENDPOINT,
        "listener" => TypeUrl::LISTENER,
        "route" => TypeUrl::ROUTE,
        "secret" => TypeUrl::SECRET,
        other => TypeUrl::from(other),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let mode = if args.first().is_some_and(|a| a == "--sotw") { Mode::Sotw } else { Mode::Delta };
    if mode == Mode::Sotw {
        args.remove(0);
    }
    let [target, node, types @ ..] = args.as_slice() else {
        eprintln!("usage: watch [--sotw] <host:port or socket path> <node id> <type>[=name,name] ...");
        return ExitCode::FAILURE;
    };
    let connector: Arc<dyn Connect> = match target.contains('/') {
        true => Arc::new(UnixConnector::new(target)),
        false => Arc::new(TcpConnector::new(target)),
    };
    let node = Node { id: node.clone(), cluster: "watch".into(), ..Default::default() };
    let (client, mut events) = Client::start(Options { mode, ..Options::new(node) }, connector);
    for wanted in types {
        match wanted.split_once('=') {
            Some((t, names)) => client.subscribe(&type_url(t), Subscription::names(names.split(','))),
            None => client.subscribe(&type_url(wanted), Subscription::Wildcard),
        }
    }
    while let Some(event) = events.next().await {
        match event {
            Event::Connected => println!("connected to {target}"),
            Event::Disconnected { error, retry_in, .. } => println!("{error}; again in {retry_in:?}"),
            Event::Response(response) => {
                println!(
                    "{} version {:?} {:?}, {} bytes",
                    response.type_url.message_name(),
                    response.version,
                    response.kind,
                    response.bytes
                );
                for r in &response.resources {
                    println!("  {} {}", r.name, r.version);
                }
                for name in &response.removed {
                    println!("  {name} removed");
                }
                response.ack();
            }
        }
    }
    ExitCode::SUCCESS
}
