//! 1. Each side proves who it is, and who cannot is refused.

use outrigger_tests::client::{self, ClientTls, H1Client, Target, get, server_identities};
use serde_json::json;

use crate::Result;
use crate::admin;
use crate::resources::{IMPOSTOR_CLUSTER, Pod, identity};
use crate::show::Show;
use crate::world::{AUTHORITY, Mesh};

const SNI: &str = "outbound_.9080_.v1_.reviews.default.svc.cluster.local";

pub async fn check(mesh: &mut Mesh, show: &mut Show) -> Result<()> {
    show.section("1. STRICT mutual TLS");
    let (client_id, server_id) = (identity(Pod::Client.account()), identity(Pod::ReviewsV1.account()));
    show.progress("one request from application to application");
    let reply = mesh.get("/", 1).await?.into_iter().next().unwrap_or_default();
    let xfcc = reply["json"]["headers"]["x-forwarded-client-cert"].as_str().unwrap_or_default().to_owned();
    let parts: Vec<&str> = xfcc.split(';').collect();
    let proved = parts.contains(&format!("URI={client_id}").as_str());
    let found = if proved { String::new() } else { format!("status {}: {xfcc}", reply["status"]) };
    show.claim(proved, &format!("the client proved {client_id}"), &found);
    let by = parts.contains(&format!("By={server_id}").as_str());
    show.claim(by, &format!("to {server_id}"), if by { "" } else { &xfcc });

    let address = mesh.sidecar(Pod::ReviewsV1)?.traffic;
    let (svid, bundle) = mesh.issue(Pod::Client.account()).await?;
    let tls = |svid| ClientTls::new(SNI, &["istio", "h2", "http/1.1"], svid, Some(&bundle)).map_err(|e| e.to_string());
    let http = |svid| ClientTls::new(SNI, &["http/1.1"], svid, Some(&bundle)).map_err(|e| e.to_string());
    let ids = server_identities(address, &tls(Some(&svid))?).await.map_err(|e| format!("{address}: {e}"))?;
    show.claim(ids == [server_id.as_str()], &format!("the server proved {server_id}"), &ids.join(", "));

    // The same request, once as it should be and then with one thing wrong each.
    let good = try_get(Target::tls(address, http(Some(&svid))?)).await;
    show.claim(
        good.as_deref() == Ok("200"),
        "a stranger's program with the client's certificate is let in",
        &said(&good),
    );

    let before = mesh.origin_requests().await?;
    let request = format!("GET / HTTP/1.1\r\nhost: {AUTHORITY}\r\nconnection: close\r\n\r\n");
    let plain = client::raw(&address.into(), request.as_bytes(), false).await;
    let refused = plain.as_ref().map_or(true, Vec::is_empty);
    let found = match &plain {
        Ok(bytes) if bytes.is_empty() => "closed without a byte".to_owned(),
        Ok(bytes) => format!("{:.60}", String::from_utf8_lossy(bytes)),
        Err(e) => e.to_string(),
    };
    show.claim(refused, "plain text at the inbound port is refused", &found);

    let nobody = try_get(Target::tls(address, http(None)?)).await;
    show.claim(nobody.is_err(), "a client without a certificate is refused", &said(&nobody));
    let foreign_id = "spiffe://elsewhere.example/ns/default/sa/client";
    let foreign = mesh.issue_foreign(foreign_id).await?;
    let foreign = try_get(Target::tls(address, http(Some(&foreign))?)).await;
    show.claim(foreign.is_err(), &format!("{foreign_id} of the same CA is refused"), &said(&foreign));
    let reached = mesh.origin_requests().await? - before;
    show.claim(reached == 0, "none of these reached the application", &format!("{reached} requests"));

    let reply = mesh.get("/impostor", 1).await?.into_iter().next().unwrap_or_default();
    let claim = format!("a server that proves {} instead is refused with 503", identity("other"));
    show.claim(
        reply["status"] == 503,
        &claim,
        &format!("{}: {}", reply["status"], reply["text"].as_str().unwrap_or("")),
    );
    let stat = format!("cluster.{IMPOSTOR_CLUSTER}.ssl.fail_verify_san");
    let counted = admin::stat(mesh.sidecar(Pod::Client)?.admin, &stat).await?;
    let reached = mesh.impostor.requests();
    let found = format!("{reached} requests reached it; {stat} {counted}");
    show.claim(reached == 0 && counted > 0, "it never saw the request, and the failure is counted", &found);
    show.figure("identities", json!({ "client": client_id, "server": server_id, "xfcc": xfcc }));
    Ok(())
}

/// The status of a GET, or why there is none.
async fn try_get(target: Target) -> Result<String> {
    let send = async {
        let mut client = H1Client::connect(&target).await?;
        client.send(get(AUTHORITY, "/")).await
    };
    match send.await {
        Ok(reply) => Ok(reply.status.as_str().to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

fn said(outcome: &Result<String>) -> String {
    match outcome {
        Ok(status) => format!("answered {status}"),
        Err(e) => e.clone(),
    }
}
