//! The SPIFFE authority: one CA, and one SDS server per pod on a Unix socket, as each pod's agent has one.

use std::path::Path;
use std::time::Duration;

use certs::{Authority, SdsServer, Secret, SpiffeId, Svid};
use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::resources::{Pod, TRUST_DOMAIN, identity};
use crate::roles::{Obey, unknown};
use crate::{Result, admin};

/// How long a certificate lives: as in Istio.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The authority's process.
#[derive(Default)]
pub struct Pods {
    authority: Option<Authority>,
    servers: Vec<(Pod, SdsServer)>,
}

impl Obey for Pods {
    async fn obey(&mut self, command: &Value) -> Result<Value> {
        let text = |key: &str| command[key].as_str().unwrap_or_default();
        match text("do") {
            // {"do": "serve", "pod": NAME, "socket": PATH, "open": whether other users may connect}
            "serve" => {
                let pod = Pod::named(text("pod")).ok_or("no such pod")?;
                let mode = if command["open"] == true { 0o666 } else { 0o600 };
                let server = SdsServer::bind(text("socket"), mode).map_err(|e| e.to_string())?;
                let authority = self.authority()?;
                server.set(certs::BUNDLE, Secret::Bundle(authority.bundle_pem().to_owned()));
                let svid = issue(authority, pod.account())?;
                let facts = facts(&svid)?;
                server.set(certs::IDENTITY, svid);
                self.servers.push((pod, server));
                Ok(facts)
            }
            // New certificates for all pods; answers with their facts by pod.
            "rotate" => {
                let mut new = Map::new();
                for number in 0..self.servers.len() {
                    let account = self.servers[number].0.account();
                    let svid = issue(self.authority()?, account)?;
                    new.insert(self.servers[number].0.name().to_owned(), facts(&svid)?);
                    self.servers[number].1.set(certs::IDENTITY, svid);
                }
                Ok(Value::Object(new))
            }
            // {"do": "issue", "account": NAME}: a certificate to try things with.
            "issue" => {
                let authority = self.authority()?;
                let svid = issue(authority, text("account"))?;
                Ok(json!({ "chain": svid.chain_pem, "key": svid.key_pem, "bundle": authority.bundle_pem() }))
            }
            // {"do": "issue-foreign", "id": SPIFFE ID, "dir": a folder for the CA's files}
            "issue-foreign" => {
                let (chain, key) = issue_foreign(self.authority()?, text("id"), Path::new(text("dir")))?;
                Ok(json!({ "chain": chain, "key": key }))
            }
            _ => unknown(command),
        }
    }
}

impl Pods {
    fn authority(&mut self) -> Result<&Authority> {
        if self.authority.is_none() {
            self.authority = Some(Authority::new(TRUST_DOMAIN).map_err(|e| e.to_string())?);
        }
        self.authority.as_ref().ok_or_else(|| "no authority".to_owned())
    }
}

fn issue(authority: &Authority, account: &str) -> Result<Svid> {
    let id: SpiffeId = identity(account).parse().map_err(|e| format!("{account}: {e}"))?;
    authority.issue(&id, LIFETIME, &[]).map_err(|e| e.to_string())
}

/// Signs for an identity of another trust domain, with the same key. The authority itself refuses that; a proxy must
/// not depend on it, so this is done behind its back.
fn issue_foreign(authority: &Authority, id: &str, dir: &Path) -> Result<(String, String)> {
    authority.save(dir).map_err(|e| e.to_string())?;
    let key = std::fs::read_to_string(dir.join("ca-key.pem")).map_err(|e| format!("the CA's key: {e}"))?;
    let sign = || {
        let issuer = Issuer::from_ca_cert_pem(authority.bundle_pem(), KeyPair::from_pem(&key)?)?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
    };
    sign().map_err(|e: rcgen::Error| e.to_string())
}

/// What identifies a certificate: the serial number as admin pages show it, and the SHA-256 as
/// `x-forwarded-client-cert` carries it.
fn facts(svid: &Svid) -> Result<Value> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(svid.chain_pem.as_bytes()).map_err(|e| e.to_string())?;
    let certificate = pem.parse_x509().map_err(|e| e.to_string())?;
    let hash = Sha256::digest(&pem.contents);
    Ok(json!({ "serial": admin::plain_serial(&hex(certificate.raw_serial())), "sha256": hex(&hash) }))
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
