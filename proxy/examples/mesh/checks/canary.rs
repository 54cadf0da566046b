//! 2. A canary gets the share its weight says. The load of this part is also what part 3 measures.

use serde_json::json;

use super::{Seen, claim_share, mark, wait_requests};
use crate::Result;
use crate::resources::{Pod, outbound_cluster};
use crate::show::Show;
use crate::stats::{Histogram, read_sum};
use crate::world::{Mesh, RATE, wait_for};

/// Requests of this part, and of the direct load it is compared with.
pub const REQUESTS: u64 = 2000;

/// What the load of this part looked like, from both ends and in between.
pub struct Measured {
    /// As the client application saw it.
    pub client: Histogram,
    /// As the client's sidecar saw it: whole requests, and what it waited for servers.
    pub outbound: Histogram,
    pub outbound_upstream: Histogram,
    /// As the servers' sidecars saw it.
    pub inbound: Histogram,
    pub inbound_upstream: Histogram,
}

pub async fn check(mesh: &mut Mesh, show: &mut Show) -> Result<Measured> {
    show.section(&format!("2. A canary: 90/10 by weight, {RATE} requests per second"));
    // Connections and code paths warm up outside the measurement.
    mesh.start_load().await?;
    wait_requests(&mut mesh.client, show, "warming up", RATE / 2).await?;
    mesh.client.ask(json!({ "do": "stop" })).await?;
    let before = Scrape::take(mesh, show).await?;
    mark(&mut mesh.client).await?;
    mesh.start_load().await?;
    wait_requests(&mut mesh.client, show, "90/10", REQUESTS).await?;
    mesh.client.ask(json!({ "do": "stop" })).await?;
    let after = Scrape::take(mesh, show).await?;

    let seen = Seen::report(&mut mesh.client).await?;
    let (number, weight) = (mesh.desired.number, mesh.desired.weight_v2);
    let under = seen.under(number).ok_or_else(|| format!("no request was routed by configuration {number}"))?;
    claim_share(show, under, weight);
    seen.claim_none_failed(show);
    show.figure("canary", json!({ "v1": under.v1, "v2": under.v2, "weight_v2": weight, "failed": seen.failed }));
    Ok(Measured {
        client: seen.latency,
        outbound: after.outbound.since(&before.outbound),
        outbound_upstream: after.outbound_upstream.since(&before.outbound_upstream),
        inbound: after.inbound.since(&before.inbound),
        inbound_upstream: after.inbound_upstream.since(&before.inbound_upstream),
    })
}

/// The latency histograms of all sidecars at a time when no request is under way.
#[derive(Default)]
struct Scrape {
    outbound: Histogram,
    outbound_upstream: Histogram,
    inbound: Histogram,
    inbound_upstream: Histogram,
}

impl Scrape {
    async fn take(mesh: &Mesh, show: &Show) -> Result<Self> {
        show.progress("reading the sidecars' histograms");
        let mut scrape = Self::default();
        for sidecar in &mesh.sidecars {
            let (prefix, clusters) = match sidecar.pod {
                Pod::Client => ("outbound", ["v1", "v2"].map(outbound_cluster).to_vec()),
                _ => ("inbound", vec![crate::resources::INBOUND_CLUSTER.to_owned()]),
            };
            let label = ("envoy_http_conn_manager_prefix", prefix);
            // A proxy may show its histograms later than its counters: Envoy merges them once per flush.
            let (page, requests) = wait_for("a histogram that holds every request", async || {
                let reply = crate::admin::page(sidecar.admin, "/stats/prometheus").await?;
                let page = reply.text();
                let all = Histogram::read(&page, "envoy_http_downstream_rq_time", label)?;
                let complete = all.count() == read_sum(&page, "envoy_http_downstream_rq_completed", label);
                Ok(complete.then_some((page, all)))
            })
            .await?;
            let mut upstream = Histogram::default();
            for cluster in &clusters {
                let label = ("envoy_cluster_name", cluster.as_str());
                upstream.add(&Histogram::read(&page, "envoy_cluster_upstream_rq_time", label)?);
            }
            let (all, waited) = match sidecar.pod {
                Pod::Client => (&mut scrape.outbound, &mut scrape.outbound_upstream),
                _ => (&mut scrape.inbound, &mut scrape.inbound_upstream),
            };
            all.add(&requests);
            waited.add(&upstream);
        }
        Ok(scrape)
    }
}
