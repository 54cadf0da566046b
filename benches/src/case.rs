//! The cases: a configuration, and how it is loaded.

use crate::load;
use crate::process::{Process, pin, wait_for_port};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// CPU of the proxy under test, and of what drives it.
pub const PROXY_CPU: usize = 0;
pub const DRIVER_CPU: usize = 1;

/// How a case is run.
pub struct Run {
    pub seconds: Duration,
    pub connections: usize,
    pub rounds: usize,
}

/// One round of one proxy.
#[derive(Debug, Clone)]
pub struct Row {
    pub outrigger: bool,
    pub rps: f64,
    /// Microseconds of CPU per request.
    pub cpu_us: f64,
    /// The part of it in user mode.
    pub user_us: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Resident after the load, MB.
    pub rss_mb: f64,
}

/// HTTP/1.1 kept-alive connections through one worker, with routing, stats and access log on.
pub fn http1_keep_alive(outrigger: &Path, envoy: &Path, run: &Run) -> Result<Vec<Row>, String> {
    let (_origin, origin_address) = start_origin()?;
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let mut rows = Vec::new();
    for round in 0..run.rounds {
        for (binary, is_outrigger) in [(outrigger, true), (envoy, false)] {
            let port = free_port()?;
            let log = folder.path().join(format!("access-{round}-{is_outrigger}.log"));
            let config = folder.path().join("proxy.yaml");
            std::fs::write(&config, yaml(port, &origin_address, &log)).map_err(|e| e.to_string())?;
            let mut command = Command::new(binary);
            command.args(["--concurrency", "1", "-l", "error", "--disable-hot-restart", "-c"]).arg(&config);
            command.stdout(Stdio::null());
            let proxy = Process::start(command, PROXY_CPU)?;
            let target = format!("127.0.0.1:{port}");
            wait_for_port(&target, binary)?;
            rows.push(round_of(&proxy, &target, run, is_outrigger)?);
        }
    }
    Ok(rows)
}

/// An origin, and its address. This process is pinned to the same CPU.
pub fn start_origin() -> Result<(Process, String), String> {
    let me = std::env::current_exe().map_err(|e| e.to_string())?;
    pin(0, DRIVER_CPU)?;
    let mut command = Command::new(me);
    command.args(["origin"]).stdout(Stdio::piped());
    let mut origin = Process::start(command, DRIVER_CPU)?;
    let address = origin.first_line()?;
    Ok((origin, address))
}

fn round_of(proxy: &Process, target: &str, run: &Run, outrigger: bool) -> Result<Row, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    let mut options = load::Options {
        target: target.parse().map_err(|e| format!("{target}: {e}"))?,
        path: "/api/v1/items".into(),
        host: "bench.example".into(),
        seconds: 1.0,
        connections: run.connections,
        rate: None,
    };
    let load = |options: &load::Options| runtime.block_on(load::run(options)).map_err(|e| format!("load: {e}"));
    load(&options)?;
    options.seconds = run.seconds.as_secs_f64();
    let before = proxy.cpu()?;
    let outcome = load(&options)?;
    let after = proxy.cpu()?;
    if outcome.failed > 0 || outcome.answered == 0 {
        let who = if outrigger { "Outrigger" } else { "Envoy" };
        return Err(format!("{who}: {} requests failed, {} answered", outcome.failed, outcome.answered));
    }
    let cpu_us = (after.total - before.total).as_secs_f64() * 1e6 / outcome.answered as f64;
    let (user, system) = (after.user_ticks - before.user_ticks, after.system_ticks - before.system_ticks);
    Ok(Row {
        outrigger,
        rps: outcome.answered as f64 / outcome.elapsed.as_secs_f64(),
        cpu_us,
        user_us: cpu_us * user as f64 / (user + system).max(1) as f64,
        p50_ms: outcome.latency.value_at_quantile(0.5) as f64 / 1000.0,
        p99_ms: outcome.latency.value_at_quantile(0.99) as f64 / 1000.0,
        rss_mb: proxy.rss_mb(),
    })
}

pub fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
    listener.local_addr().map(|a| a.port()).map_err(|e| e.to_string())
}

/// The same for both: two virtual hosts, several routes, default access log to a file, an admin interface.
fn yaml(port: u16, origin: &str, log: &Path) -> String {
    let (origin_host, origin_port) = origin.rsplit_once(':').unwrap_or((origin, "0"));
    format!(
        r#"
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}
static_resources:
  listeners:
  - name: in
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: {log}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
          route_config:
            name: local
            virtual_hosts:
            - name: bench
              domains: [bench.example, "*.bench.example"]
              routes:
              - match: {{prefix: /static/}}
                route: {{cluster: origin}}
              - match: {{prefix: /api/, headers: [{{name: x-canary, string_match: {{exact: "1"}}}}]}}
                route: {{cluster: origin}}
              - match: {{prefix: /api/}}
                route: {{weighted_clusters: {{clusters: [{{name: origin, weight: 90}}, {{name: canary, weight: 10}}]}}}}
            - name: other
              domains: ["*"]
              routes: [{{match: {{prefix: /}}, direct_response: {{status: 404}}}}]
  clusters:
  - name: origin
    load_assignment:
      cluster_name: origin
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {origin_host}, port_value: {origin_port}}}}}}}}}]}}]
  - name: canary
    load_assignment:
      cluster_name: canary
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {origin_host}, port_value: {origin_port}}}}}}}}}]}}]
"#,
        log = log.display()
    )
}
