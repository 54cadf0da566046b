//! 4. Weights shift while requests flow, and none is lost.

use serde_json::json;

use super::{claim_share, mark, wait_config};
use crate::Result;
use crate::show::Show;
use crate::world::Mesh;

/// Requests under the new weights, from the first one on, over which their share is taken.
const REQUESTS: u64 = 800;

pub async fn check(mesh: &mut Mesh, show: &mut Show) -> Result<()> {
    show.section("4. Live shifts: 90/10 -> 50/50 -> 0/100");
    let mut figures = Vec::new();
    for weight in [50, 100] {
        mark(&mut mesh.client).await?;
        mesh.desired.number += 1;
        mesh.desired.weight_v2 = weight;
        let pushed_at = mesh.push().await?;
        let (seen, under) = wait_config(&mut mesh.client, show, mesh.desired.number, REQUESTS).await?;
        let took = under.first_at.saturating_sub(pushed_at) as f64 / 1000.0;
        show.line(&format!(
            "  {}/{weight}: first request under the new weights {took:.1} ms after the push",
            100 - weight
        ));
        claim_share(show, &under, weight);
        seen.claim_none_failed(show);
        figures.push(json!({
            "weight_v2": weight, "push_to_first_request_ms": took,
            "v1": under.v1, "v2": under.v2, "requests": seen.answered + seen.failed, "failed": seen.failed,
        }));
    }
    show.figure("shifts", figures.into());
    Ok(())
}
