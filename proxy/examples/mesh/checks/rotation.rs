//! 5. Certificates change while requests flow: new connections use them, and no request is lost.

use std::collections::BTreeSet;

use outrigger_tests::client::{ClientTls, server_chain};
use serde_json::json;

use super::{Seen, mark, wait_requests};
use crate::Result;
use crate::admin;
use crate::authority::hex;
use crate::resources::Pod;
use crate::show::Show;
use crate::world::{CONNECTIONS, Mesh, RATE, wait_for};

pub async fn check(mesh: &mut Mesh, show: &mut Show) -> Result<()> {
    show.section("5. Certificates rotate under load");
    mark(&mut mesh.client).await?;
    let began = std::time::Instant::now();
    let new = mesh.authority.ask(json!({ "do": "rotate" })).await?;
    let fact = |pod: Pod, key: &str| new[pod.name()][key].as_str().unwrap_or_default().to_owned();
    for pod in Pod::ALL {
        let (admin, serial) = (mesh.sidecar(pod)?.admin, fact(pod, "serial"));
        show.progress(&format!("waiting for the new certificate of {}", pod.name()));
        let serials = wait_for(&format!("serial {serial} in /certs of {}", pod.name()), async || {
            let serials = admin::serials(admin).await?;
            // The old one may be listed for as long as connections use it.
            Ok(serials.contains(&serial).then_some(serials))
        })
        .await?;
        let found = serials.into_iter().collect::<Vec<_>>().join(", ");
        show.claim(true, &format!("/certs of {} shows the new serial {serial}", pod.name()), &found);
    }
    let took = began.elapsed().as_secs_f64() * 1000.0;

    let (svid, bundle) = mesh.issue(Pod::Client.account()).await?;
    let tls = ClientTls::new("reviews", &["http/1.1"], Some(&svid), Some(&bundle)).map_err(|e| e.to_string())?;
    for pod in Pod::SERVERS {
        let chain = server_chain(mesh.sidecar(pod)?.traffic, &tls).await.map_err(|e| format!("{}: {e}", pod.name()))?;
        let leaf = chain.first().ok_or("no certificate")?;
        let (_, leaf) = x509_parser::parse_x509_certificate(leaf).map_err(|e| e.to_string())?;
        let shown = admin::plain_serial(&hex(leaf.raw_serial()));
        let claim = format!("a new connection to {} is shown the new one", pod.name());
        show.claim(shown == fact(pod, "serial"), &claim, &shown);
    }
    // More requests at once than there are connections: some must be new.
    show.progress("requests over new connections");
    let hash = fact(Pod::Client, "sha256");
    let replies = mesh.get("/delay/100", 2 * CONNECTIONS).await?;
    let hashes: BTreeSet<String> = replies
        .iter()
        .filter_map(|reply| reply["json"]["headers"]["x-forwarded-client-cert"].as_str())
        .flat_map(|xfcc| xfcc.split(';'))
        .filter_map(|part| part.strip_prefix("Hash=").map(str::to_owned))
        .collect();
    let ok = replies.iter().all(|reply| reply["status"] == 200);
    let claim = "servers are shown the client's new one on new connections";
    show.claim(ok && hashes.contains(&hash), claim, &format!("{} different certificates seen", hashes.len()));

    wait_requests(&mut mesh.client, show, "after the rotation", RATE).await?;
    let seen = Seen::report(&mut mesh.client).await?;
    seen.claim_none_failed(show);
    show.figure("rotation", json!({ "ms": took, "requests": seen.answered + seen.failed, "failed": seen.failed }));
    Ok(())
}
