//! 6. The control plane dies and comes back; traffic does not care.

use serde_json::json;

use super::{Seen, claim_share, mark, wait_config, wait_requests};
use crate::Result;
use crate::admin;
use crate::show::Show;
use crate::world::{Mesh, RATE, wait_for};

/// How long it stays dead, seconds.
const SECONDS: u64 = 2;
/// Requests under the first push after its return.
const REQUESTS: u64 = 400;

pub async fn check(mesh: &mut Mesh, show: &mut Show) -> Result<()> {
    show.section("6. The control plane dies, and comes back");
    mark(&mut mesh.client).await?;
    mesh.kill_control_plane().await?;
    wait_connected(mesh, show, false).await?;
    show.claim(true, "it was killed, and every sidecar noticed", "control_plane.connected_state 0");
    mark(&mut mesh.client).await?;
    wait_requests(&mut mesh.client, show, "without a control plane", SECONDS * RATE).await?;
    let dead = Seen::report(&mut mesh.client).await?;
    dead.claim_none_failed(show);

    mark(&mut mesh.client).await?;
    let began = std::time::Instant::now();
    mesh.restart_control_plane().await?;
    wait_connected(mesh, show, true).await?;
    let back = began.elapsed().as_secs_f64();
    show.claim(true, "it came back, and every sidecar found it", &format!("after {back:.1} s"));
    mesh.desired.number += 1;
    mesh.desired.weight_v2 = 50;
    let pushed_at = mesh.push().await?;
    let (seen, under) = wait_config(&mut mesh.client, show, mesh.desired.number, REQUESTS).await?;
    let took = under.first_at.saturating_sub(pushed_at) as f64 / 1000.0;
    show.line(&format!("  50/50: first request under the new weights {took:.1} ms after the push"));
    claim_share(show, &under, 50);
    seen.claim_none_failed(show);
    show.figure(
        "outage",
        json!({
            "requests_without": dead.answered + dead.failed, "failed_without": dead.failed, "reconnect_s": back,
            "push_to_first_request_ms": took, "requests_after": seen.answered + seen.failed, "failed_after": seen.failed,
        }),
    );
    Ok(())
}

async fn wait_connected(mesh: &Mesh, show: &Show, connected: bool) -> Result<()> {
    for sidecar in &mesh.sidecars {
        let what = format!("{} to {} the control plane", sidecar.pod.name(), if connected { "find" } else { "lose" });
        show.progress(&format!("waiting for {what}"));
        wait_for(&what, async || {
            let state = admin::stat(sidecar.admin, "control_plane.connected_state").await?;
            Ok(((state == 1) == connected).then_some(()))
        })
        .await?;
    }
    Ok(())
}
