//! Hashes of messages, by which an equal update is recognised. Protobuf maps are encoded in no particular order, so
//! they are taken out of the message and hashed by sorted key.

use super::pb::{cluster, core, google, listener};
use prost::Message;
use std::collections::{BTreeMap, HashMap};
use twox_hash::XxHash64;

/// Bytes that are the same for equal messages.
#[derive(Default)]
struct Canonical(Vec<u8>);

impl Canonical {
    fn message(&mut self, message: &impl Message) {
        // Lengths keep neighbours apart; a Vec takes any number of bytes, so encoding cannot fail.
        self.0.extend_from_slice(&(message.encoded_len() as u64).to_le_bytes());
        let _ = message.encode(&mut self.0);
    }

    fn text(&mut self, text: &str) {
        self.0.extend_from_slice(&(text.len() as u64).to_le_bytes());
        self.0.extend_from_slice(text.as_bytes());
    }

    fn map<V>(&mut self, map: HashMap<String, V>, mut each: impl FnMut(&mut Self, V)) {
        let sorted: BTreeMap<_, _> = map.into_iter().collect();
        self.0.extend_from_slice(&(sorted.len() as u64).to_le_bytes());
        for (key, value) in sorted {
            self.text(&key);
            each(self, value);
        }
    }

    fn optional<V>(&mut self, value: Option<V>, each: impl FnOnce(&mut Self, V)) {
        self.0.push(u8::from(value.is_some()));
        if let Some(value) = value {
            each(self, value);
        }
    }

    fn structure(&mut self, message: Option<google::Struct>) {
        self.optional(message, |this, message| {
            this.text(&xds_protos::struct_to_json(&message).to_string());
        });
    }

    fn metadata(&mut self, message: Option<core::Metadata>) {
        self.optional(message, |this, message| {
            this.map(message.filter_metadata, |this, fields| this.structure(Some(fields)));
            this.map(message.typed_filter_metadata, |this, any| this.message(&any));
        });
    }

    fn finish(self) -> u64 {
        XxHash64::oneshot(0, &self.0)
    }
}

pub(super) fn cluster_hash(message: &cluster::Cluster) -> u64 {
    let mut message = message.clone();
    let mut canonical = Canonical::default();
    canonical.map(std::mem::take(&mut message.typed_extension_protocol_options), |this, any| this.message(&any));
    canonical.metadata(message.metadata.take());
    for candidate in &mut message.transport_socket_matches {
        canonical.structure(candidate.r#match.take());
    }
    if let Some(load) = &mut message.load_assignment {
        canonical.map(std::mem::take(&mut load.named_endpoints), |this, endpoint| this.message(&endpoint));
        for locality in &mut load.endpoints {
            canonical.metadata(locality.metadata.take());
            for endpoint in &mut locality.lb_endpoints {
                canonical.metadata(endpoint.metadata.take());
            }
        }
    }
    canonical.message(&message);
    canonical.finish()
}

pub(super) fn filter_chain_hash(message: &listener::FilterChain) -> u64 {
    let mut message = message.clone();
    let mut canonical = Canonical::default();
    canonical.metadata(message.metadata.take());
    canonical.message(&message);
    canonical.finish()
}

/// Of the listener without its filter chains.
pub(super) fn shell_hash(message: &listener::Listener) -> u64 {
    let mut shell = listener::Listener { filter_chains: Vec::new(), default_filter_chain: None, ..message.clone() };
    let mut canonical = Canonical::default();
    canonical.metadata(shell.metadata.take());
    canonical.message(&shell);
    canonical.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(keys: &[&str], lb_policy: i32) -> cluster::Cluster {
        let value = |k: &str| google::Value { kind: Some(google::value::Kind::StringValue(k.into())) };
        let fields: HashMap<_, _> = keys.iter().map(|k| ((*k).to_owned(), value(k))).collect();
        cluster::Cluster {
            name: "c".into(),
            lb_policy,
            metadata: Some(core::Metadata {
                filter_metadata: [("istio".to_owned(), google::Struct { fields })].into(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn equal_messages_hash_equal_whatever_the_order_of_their_maps() {
        let keys: Vec<String> = (0..40).map(|i| format!("k{i}")).collect();
        let forwards: Vec<&str> = keys.iter().map(String::as_str).collect();
        let backwards: Vec<&str> = forwards.iter().rev().copied().collect();
        assert_eq!(cluster_hash(&cluster(&forwards, 0)), cluster_hash(&cluster(&backwards, 0)));
        assert_ne!(cluster_hash(&cluster(&forwards, 0)), cluster_hash(&cluster(&forwards, 1)));
        assert_ne!(cluster_hash(&cluster(&forwards, 0)), cluster_hash(&cluster(&forwards[1..], 0)));
    }
}
