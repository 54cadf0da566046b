//! The resources that a bootstrap carries itself, found in its own bytes for the ledger.

use bytes::Bytes;
use xds_protos::wire::{Raw, take_field};

/// `Bootstrap.static_resources`, and in it the lists with the types of their elements.
const STATIC_RESOURCES: u32 = 2;
const LISTS: [(u32, &str, &str); 3] =
    [(1, super::LISTENER, "listeners"), (2, super::CLUSTER, "clusters"), (3, super::SECRET, "secrets")];
/// Every one of these types has its name in field 1.
const NAME: u32 = 1;

/// A resource of the bootstrap.
pub struct StaticResource {
    pub type_url: &'static str,
    pub name: String,
    /// The message: a part of the bootstrap's bytes.
    pub bytes: Bytes,
    /// Where it stands, e.g. `static_resources.clusters[0]`.
    pub path: String,
}

/// Every static cluster, listener and secret.
pub fn static_resources(bootstrap: &Bytes) -> Vec<StaticResource> {
    let mut found = Vec::new();
    let mut counts = [0; LISTS.len()];
    for resources in nested(bootstrap, STATIC_RESOURCES) {
        let mut rest = resources;
        while let Some((number, raw)) = take_field(&mut rest) {
            let list = LISTS.iter().position(|(field, ..)| *field == number);
            let (Some(at), Raw::Bytes(message)) = (list, raw) else { continue };
            let (_, type_url, list) = LISTS[at];
            let name =
                nested(message, NAME).last().map(|name| String::from_utf8_lossy(name)).unwrap_or_default().into_owned();
            let path = format!("static_resources.{list}[{}]", counts[at]);
            counts[at] += 1;
            found.push(StaticResource { type_url, name, bytes: bootstrap.slice_ref(message), path });
        }
    }
    found
}

/// Every occurrence of a field that holds bytes.
fn nested(message: &[u8], number: u32) -> Vec<&[u8]> {
    let mut rest = message;
    let fields = std::iter::from_fn(|| take_field(&mut rest));
    fields
        .filter_map(|field| match field {
            (found, Raw::Bytes(bytes)) if found == number => Some(bytes),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::pb::bootstrap::Bootstrap;
    use prost::Message;
    use xds_protos::pb::envoy::config::cluster::v3::Cluster;
    use xds_protos::{Descriptors, Format, ParseOptions};

    #[test]
    fn they_are_found_where_they_stand() {
        let text = "static_resources: { clusters: [{ name: a }, { connect_timeout: 1s, name: b }], secrets: [{ name: s }], listeners: [{ name: l }] }";
        let options = ParseOptions::default();
        let (message, parsed) = Descriptors::load().parse_as::<Bootstrap>(text, Format::Yaml, options).unwrap();
        let bytes = Bytes::from(parsed.bytes);
        let found = static_resources(&bytes);
        let names: Vec<(&str, &str)> = found.iter().map(|r| (r.path.as_str(), r.name.as_str())).collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        assert_eq!(
            sorted,
            [
                ("static_resources.clusters[0]", "a"),
                ("static_resources.clusters[1]", "b"),
                ("static_resources.listeners[0]", "l"),
                ("static_resources.secrets[0]", "s")
            ]
        );
        let b = found.iter().find(|r| r.name == "b").unwrap();
        let as_decoded = &message.static_resources.unwrap().clusters[1];
        assert_eq!(Cluster::decode(b.bytes.clone()).as_ref(), Ok(as_decoded));
    }
}
