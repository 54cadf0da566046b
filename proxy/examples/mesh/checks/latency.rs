//! 3. Where the time goes, from the sidecars' own Prometheus pages, beside the same load sent direct.

use serde_json::json;

use super::canary::{Measured, REQUESTS};
use super::{Seen, mark, wait_requests};
use crate::Result;
use crate::show::Show;
use crate::stats::Histogram;
use crate::world::Mesh;

/// Upper bounds of the bars, milliseconds; the last bar is the rest.
const BARS: [f64; 12] = [0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 25.0];
/// Characters of a bar that holds everything.
const WIDTH: f64 = 40.0;

pub async fn check(mesh: &mut Mesh, show: &mut Show, mesh_load: &Measured) -> Result<()> {
    show.section("3. Latency");
    mesh.start_direct_load().await?;
    wait_requests(&mut mesh.direct, show, "warming up", 200).await?;
    mark(&mut mesh.direct).await?;
    wait_requests(&mut mesh.direct, show, "the same load, direct", REQUESTS).await?;
    mesh.direct.ask(json!({ "do": "stop" })).await?;
    let direct = Seen::report(&mut mesh.direct).await?;

    show.line("  milliseconds                                   p50      p90      p99    p99.9");
    let mut row = |name: &str, key: &str, histogram: &Histogram| {
        let values = histogram.percentiles().map(|ms| format!("{ms:>9.3}")).concat();
        show.line(&format!("  {name:<40} {values}"));
        show.figure(key, histogram.to_json());
    };
    row("direct, as the client sees it", "latency_direct", &direct.latency);
    row("through the mesh, as the client sees it", "latency_mesh", &mesh_load.client);
    row("  client's sidecar: downstream_rq_time", "latency_outbound_downstream", &mesh_load.outbound);
    row("  client's sidecar: upstream_rq_time", "latency_outbound_upstream", &mesh_load.outbound_upstream);
    row("  servers' sidecars: downstream_rq_time", "latency_inbound_downstream", &mesh_load.inbound);
    row("  servers' sidecars: upstream_rq_time", "latency_inbound_upstream", &mesh_load.inbound_upstream);
    bars(show, &mesh_load.outbound, &direct.latency);

    let asked = mesh_load.client.count();
    let counted = [&mesh_load.outbound, &mesh_load.outbound_upstream, &mesh_load.inbound, &mesh_load.inbound_upstream]
        .map(Histogram::count);
    let found = format!("{asked} asked; counted {counted:?}");
    show.claim(counted == [asked; 4], "every histogram of the sidecars holds every request once", &found);
    show.claim(direct.failed == 0, "the direct load had no failure", &direct.total.errors);
    Ok(())
}

/// `#` is the mesh, as the client's sidecar counted it; `-` is the direct load.
fn bars(show: &Show, mesh: &Histogram, direct: &Histogram) {
    show.line("  share of requests by time:  # through the mesh   - direct");
    let (mesh, direct) = (mesh.shares(&BARS), direct.shares(&BARS));
    for (number, (mesh, direct)) in mesh.into_iter().zip(direct).enumerate() {
        if mesh == 0.0 && direct == 0.0 {
            continue;
        }
        let label = match BARS.get(number) {
            Some(bound) => format!("<= {bound} ms"),
            None => "more".to_owned(),
        };
        let bar = |mark: &str, share: f64| mark.repeat((share * WIDTH).ceil() as usize);
        let (mesh_bar, direct_bar) = (bar("#", mesh), bar("-", direct));
        show.line(&format!("  {label:>11} {:>5.1}% |{mesh_bar}", mesh * 100.0));
        show.line(&format!("  {:>11} {:>5.1}% |{direct_bar}", "", direct * 100.0));
    }
}
