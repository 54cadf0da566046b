//! `--serve`: the mesh stays up, and a person plays with it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::Result;
use crate::resources::Pod;
use crate::show::Show;
use crate::world::{AUTHORITY, Mesh, RATE};

/// Says what there is, makes load, and shows what comes of it until somebody presses Ctrl-C.
pub async fn run(mesh: &mut Mesh, show: &mut Show) -> Result<()> {
    show.section("The mesh is up; Ctrl-C ends it");
    let at = mesh.place.node().to_string();
    let page = mesh.control_plane.ask_text(json!({ "do": "page", "at": at })).await?;
    let node = mesh.place.shell_prefix(None);
    let service = mesh.sidecar(Pod::Client)?.traffic;
    let client = match mesh.place.redirects() {
        // As the application's user: the sidecar's own traffic is not redirected.
        true => format!("{}setpriv --reuid 1000 --clear-groups ", mesh.place.shell_prefix(Some(Pod::Client))),
        false => String::new(),
    };
    show.line("  a request as the client application makes it:");
    show.line(&format!("    {client}curl -si -H 'host: {AUTHORITY}' http://{service}/"));
    show.line("  a server that is not who it should be:");
    show.line(&format!("    {client}curl -si -H 'host: {AUTHORITY}' http://{service}/impostor"));
    show.line("  shift the weights, or see what the control plane wants:");
    show.line(&format!("    {node}curl -X POST 'http://{page}/weights?v2=30'"));
    show.line(&format!("    {node}curl http://{page}/"));
    show.line("  plain text at a server's sidecar:");
    show.line(&format!("    {node}curl -si http://{}/", mesh.sidecar(Pod::ReviewsV1)?.traffic));
    for (pod, id) in mesh.sidecar_ids() {
        let admin = mesh.sidecar(pod)?.admin;
        show.line(&format!("  the sidecar of {} (process {id}):", pod.name()));
        show.line(&format!(
            "    {node}curl http://{admin}/clusters   (/certs /listeners /config_dump /stats/prometheus /help)"
        ));
        show.line(&format!("    tail -f {}", mesh.access_log(pod).display()));
    }
    mesh.client.ask(json!({ "do": "stop" })).await?;
    mesh.start_load().await?;
    loop {
        mesh.client.ask(json!({ "do": "mark" })).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        mesh.check_alive()?;
        let report = mesh.client.ask(json!({ "do": "report" })).await?;
        let by = |version: &str| {
            let configs = report["configs"].as_array().into_iter().flatten();
            configs.filter_map(|config| config["versions"][version].as_u64()).sum::<u64>()
        };
        let p99 = report["latency"]["p99_ms"].as_f64().unwrap_or_default();
        let failed = report["total"]["failed"].as_u64().unwrap_or_default();
        let errors = report["total"]["errors"].as_array().into_iter().flatten().filter_map(Value::as_str);
        show.progress(&format!(
            "{RATE} requests per second: v1 {}, v2 {}, p99 {p99:.2} ms; failed since the start: {failed} {}",
            by("v1"),
            by("v2"),
            errors.collect::<Vec<_>>().join("; ")
        ));
    }
}
