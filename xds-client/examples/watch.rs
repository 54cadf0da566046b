//! A `tail` for control planes: prints what one sends, and takes all of it.
//!
//! ```sh
//! cargo run -p xds-client --example watch -- 127.0.0.1:18000 node-1 cluster listener endpoint=a,b
//! cargo run -p xds-client --example watch -- --sotw --ttl unix:///run/xds.sock node-1 secret=default,ROOTCA
//! cargo run -p xds-client --example watch -- --rest 5 127.0.0.1:8080 node-1 cluster
//! cargo run -p xds-client --example watch -- --file /etc/proxy/cds.yaml node-1 cluster
//! ```

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use xds_client::pb::envoy::config::core::v3::Node;
use xds_client::{
    Client, Event, Events, FileOptions, Mode, Options, Response, RestOptions, Said, Stats, Subscription,
    TargetConnector, TypeUrl,
};

const USAGE: &str = "usage: watch [--sotw] [--ttl] [--rest SECONDS | --file] <target> <node id> <type>[=name,name] ...
  target: host:port, dns:///host:port, ipv4:..., unix:path; with --file, the file
  type:   cluster endpoint listener route scoped-route virtual-host secret extension runtime, or a type URL";

/// Shows what is said to the server.
#[derive(Debug)]
struct Echo;

impl Stats for Echo {
    fn request_sent(&self, type_url: &TypeUrl, said: Said, bytes: usize) {
        println!("-> {said:?} of {}, {bytes} bytes", type_url.message_name());
    }
}

enum Source {
    Stream,
    Rest(Duration),
    File,
}

fn type_url(name: &str) -> TypeUrl {
    match name {
        "cluster" => TypeUrl::CLUSTER,
        "endpoint" => TypeUrl::ENDPOINT,
        "listener" => TypeUrl::LISTENER,
        "route" => TypeUrl::ROUTE,
        "scoped-route" => TypeUrl::SCOPED_ROUTE,
        "virtual-host" => TypeUrl::VIRTUAL_HOST,
        "secret" => TypeUrl::SECRET,
        "extension" => TypeUrl::EXTENSION,
        "runtime" => TypeUrl::RUNTIME,
        other => TypeUrl::from(other),
    }
}

fn start(mut args: impl Iterator<Item = String>) -> Result<(Client, Events), Box<dyn Error>> {
    let (mut mode, mut announce_resource_ttl, mut source) = (Mode::Delta, false, Source::Stream);
    let target = loop {
        let arg = args.next().ok_or(USAGE)?;
        match arg.as_str() {
            "--sotw" => mode = Mode::Sotw,
            "--ttl" => announce_resource_ttl = true,
            "--rest" => source = Source::Rest(Duration::from_secs(args.next().ok_or(USAGE)?.parse()?)),
            "--file" => source = Source::File,
            _ => break arg,
        }
    };
    let node = Node { id: args.next().ok_or(USAGE)?, cluster: "watch".into(), ..Default::default() };
    let wanted: Vec<(TypeUrl, Subscription)> = args
        .map(|wanted| match wanted.split_once('=') {
            Some((t, names)) => (type_url(t), Subscription::names(names.split(','))),
            None => (type_url(&wanted), Subscription::Wildcard),
        })
        .collect();
    let (first, _) = wanted.first().ok_or(USAGE)?;
    let (client, events) = match source {
        Source::File => Client::watch_file(FileOptions::new(first.clone(), target)),
        Source::Rest(delay) => {
            let connector = Arc::new(TargetConnector::new(target.parse()?));
            Client::poll(RestOptions::new(first.clone(), node, delay), connector)
        }
        Source::Stream => {
            let connector = Arc::new(TargetConnector::new(target.parse()?));
            let options = Options { mode, announce_resource_ttl, stats: Arc::new(Echo), ..Options::new(node) };
            Client::start(options, connector)
        }
    };
    for (type_url, names) in wanted {
        client.try_subscribe(&type_url, names)?;
    }
    Ok((client, events))
}

fn show(response: &Response) {
    let what = if response.expired { "expired" } else { "received" };
    println!(
        "<- {} {what}, version {:?}, {:?}, {} bytes, from {:?}",
        response.type_url.message_name(),
        response.version,
        response.kind,
        response.bytes,
        response.control_plane
    );
    for r in &response.resources {
        let state = match (&r.body, r.heartbeat) {
            (Some(any), _) => format!("{} bytes", any.value.len()),
            (None, true) => "lives".into(),
            (None, false) => "does not exist".into(),
        };
        println!("   {} {} {state}", r.name, r.version);
    }
    for name in &response.removed {
        println!("   {name} removed");
    }
    for error in &response.errors {
        println!("   {} {:?}: {}", error.name, error.code, error.message);
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // The client lives as long as its handle.
    let (_client, mut events) = match start(std::env::args().skip(1)) {
        Ok(started) => started,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    while let Some(event) = events.next().await {
        match event {
            Event::Connected => println!("== connected"),
            Event::Disconnected { error, retry_in: Duration::MAX, .. } => println!("== {error}"),
            Event::Disconnected { error, retry_in, .. } => println!("== {error}; again in {retry_in:?}"),
            Event::Response(response) => {
                show(&response);
                response.ack();
            }
        }
    }
    ExitCode::SUCCESS
}
