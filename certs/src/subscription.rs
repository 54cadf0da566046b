//! What one SDS stream has asked for and been sent: the answering rules of the xDS protocol, without a socket.
//!
//! Both wire modes reduce to the same question: which of the names asked for have a version this stream has not got
//! yet? (Envoy docs, "xDS REST and gRPC protocol": "ACK/NACK and resource type instance version".)

use std::collections::{BTreeMap, BTreeSet};

/// How many names one stream may ask for. Envoy opens a stream per secret; a gateway behind a multiplexer asks for a
/// few hundred. The bound keeps a broken client from growing the server without end.
pub(crate) const MAX_NAMES: usize = 10_000;

/// The subscription of one stream. A version is a number that grows with every change of any secret.
#[derive(Debug, Default)]
pub(crate) struct Subscription {
    names: BTreeSet<String>,
    sent: BTreeMap<String, u64>,
}

impl Subscription {
    /// Asks for exactly `names` (state of the world). A name that goes and comes back is sent again.
    pub(crate) fn replace(&mut self, names: impl IntoIterator<Item = String>) {
        self.names = names.into_iter().collect();
        self.sent.retain(|name, _| self.names.contains(name));
    }

    /// Asks for one more name (delta). Asking again sends it again, as the protocol wants.
    pub(crate) fn add(&mut self, name: String) {
        self.sent.remove(&name);
        self.names.insert(name);
    }

    /// Asks for a name of which the client already holds `version`, if that is a version we gave out.
    pub(crate) fn resume(&mut self, name: String, version: Option<u64>) {
        if let Some(version) = version {
            self.sent.insert(name.clone(), version);
        }
        self.names.insert(name);
    }

    /// Stops asking for a name (delta).
    pub(crate) fn drop_name(&mut self, name: &str) {
        self.names.remove(name);
        self.sent.remove(name);
    }

    /// The names asked for, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        self.names.iter().cloned().collect()
    }

    /// How many names are asked for.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// The names asked for whose current version (by `version_of`) was not sent yet, in order.
    pub(crate) fn due(&self, version_of: impl Fn(&str) -> Option<u64>) -> Vec<String> {
        let not_sent = |name: &&String| {
            let version = version_of(name);
            version.is_some() && version != self.sent.get(*name).copied()
        };
        self.names.iter().filter(not_sent).cloned().collect()
    }

    /// The names sent before that exist no more, in order. They count as not sent from now on.
    pub(crate) fn take_gone(&mut self, exists: impl Fn(&str) -> bool) -> Vec<String> {
        let gone: Vec<String> = self.sent.keys().filter(|name| !exists(name)).cloned().collect();
        for name in &gone {
            self.sent.remove(name);
        }
        gone
    }

    /// Notes that a version of a name goes out.
    pub(crate) fn mark_sent(&mut self, name: &str, version: u64) {
        self.sent.insert(name.to_owned(), version);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn only_new_names_and_new_versions_are_due() {
        let mut sub = Subscription::default();
        sub.replace(names(&["a", "b", "later"]));
        let v1 = |name: &str| (name != "later").then_some(1);
        assert_eq!(sub.due(v1), ["a", "b"]);
        sub.mark_sent("a", 1);
        sub.mark_sent("b", 1);
        assert!(sub.due(v1).is_empty(), "an ACK gets no answer");
        sub.replace(names(&["a", "b", "c"]));
        assert_eq!(sub.due(v1), ["c"]);
        assert_eq!(sub.due(|name| Some(if name == "a" { 2 } else { 1 })), ["a", "c"]);
        sub.replace(names(&["a"]));
        sub.replace(names(&["a", "b"]));
        assert_eq!(sub.due(v1), ["b"], "a name that came back is sent again");
    }

    #[test]
    fn delta_sends_again_on_request_and_skips_what_the_client_holds() {
        let mut sub = Subscription::default();
        sub.resume("held".to_owned(), Some(3));
        sub.resume("foreign".to_owned(), None);
        let v3 = |_: &str| Some(3);
        assert_eq!(sub.due(v3), ["foreign"]);
        sub.add("held".to_owned());
        assert_eq!(sub.due(v3), ["foreign", "held"]);
        sub.mark_sent("foreign", 3);
        sub.mark_sent("held", 3);
        assert_eq!(sub.take_gone(|name| name == "held"), ["foreign"]);
        assert!(sub.take_gone(|name| name == "held").is_empty());
        sub.drop_name("held");
        assert_eq!(sub.len(), 1);
    }
}
