//! Reads a sidecar's admin page, as an operator or a Prometheus server would.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use outrigger_tests::client::{H1Client, Reply, get};
use serde_json::Value;

use crate::Result;

/// Gets a page.
pub async fn page(admin: SocketAddr, path: &str) -> Result<Reply> {
    let ask = async {
        let mut client = H1Client::connect(&admin.into()).await?;
        client.send(get(&admin.to_string(), path)).await
    };
    ask.await.map_err(|e: outrigger_tests::client::Error| format!("http://{admin}{path}: {e}"))
}

/// The address a listener is bound to, from `/listeners?format=json`; `None` while there is no such listener.
pub async fn listener(admin: SocketAddr, name: &str) -> Result<Option<SocketAddr>> {
    let listeners = page(admin, "/listeners?format=json").await?.json();
    let found = listeners["listener_statuses"].as_array().into_iter().flatten().find(|l| l["name"] == name);
    Ok(found.and_then(|listener| {
        let address = &listener["local_address"]["socket_address"];
        let port = u16::try_from(address["port_value"].as_u64()?).ok()?;
        Some(SocketAddr::new(address["address"].as_str()?.parse().ok()?, port))
    }))
}

/// A counter or gauge by its full name; 0 when there is none.
pub async fn stat(admin: SocketAddr, name: &str) -> Result<u64> {
    let text = page(admin, "/stats").await?.text();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")?.trim().parse().ok());
    Ok(value.unwrap_or_default())
}

/// The serial numbers of the certificates the sidecar shows to others, from `/certs`.
pub async fn serials(admin: SocketAddr) -> Result<BTreeSet<String>> {
    let certs = page(admin, "/certs").await?.json();
    let chains = certs["certificates"].as_array().into_iter().flatten().flat_map(|c| c["cert_chain"].as_array());
    let serials = chains.flatten().filter_map(|certificate: &Value| certificate["serial_number"].as_str());
    Ok(serials.map(plain_serial).collect())
}

/// A serial number in one spelling: lower case, no leading zeros.
pub fn plain_serial(serial: &str) -> String {
    serial.trim_start_matches('0').to_ascii_lowercase()
}
