//! The client status discovery service: the ledger as `envoy.service.status.v3.ClientStatusResponse`.
//!
//! As every client answers for itself: one `ClientConfig`, with `client_status` and without `config_status`, which only
//! management servers know. Answers are made as they are read, and hold no secrets.

use super::dump::{any, failure, status, time};
use super::ledger::{Api, Ledger, Record, State};
use crate::admin::write_json;
use crate::config::{ConfigError, model::StringMatch, string_match};
use bytes::Bytes;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};
use std::sync::Arc;
use xds_protos::pb::envoy::config::core::v3::Node;
use xds_protos::pb::envoy::service::status::v3::ClientStatusRequest;
use xds_protos::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use xds_protos::pb::envoy::r#type::matcher::v3::double_matcher::MatchPattern as DoublePattern;
use xds_protos::pb::envoy::r#type::matcher::v3::list_matcher::MatchPattern as ListPattern;
use xds_protos::pb::envoy::r#type::matcher::v3::struct_matcher::path_segment::Segment;
use xds_protos::pb::envoy::r#type::matcher::v3::value_matcher::MatchPattern;
use xds_protos::pb::envoy::r#type::matcher::v3::{NodeMatcher, StringMatcher, StructMatcher, ValueMatcher};
use xds_protos::{Descriptors, Style, struct_to_json};

/// `ClientStatusResponse.config`, and in it `ClientConfig.node` and `.generic_xds_configs`.
const CONFIG: u32 = 1;
const NODE: u32 = 1;
const GENERIC: u32 = 3;
/// Bytes made at once.
const CHUNK: usize = 32 * 1024;

/// What one request is answered with.
pub struct ClientStatus {
    /// `None`: this client is not among those that were asked about.
    node: Option<Node>,
    resources: Vec<Resource>,
    exclude_contents: bool,
}

struct Resource {
    api: Api,
    name: Arc<str>,
    record: Record,
}

impl ClientStatus {
    /// The message type of requests.
    pub const REQUEST: &str = "envoy.service.status.v3.ClientStatusRequest";

    /// # Errors
    /// The request is no `ClientStatusRequest`, or a matcher in it cannot be used.
    pub fn new(ledger: &Ledger, node: &Node, request: &[u8]) -> Result<ClientStatus, String> {
        let request = ClientStatusRequest::decode(request).map_err(|e| format!("not a ClientStatusRequest: {e}"))?;
        let mut meant = request.node_matchers.is_empty();
        for matcher in &request.node_matchers {
            meant |= matches_node(matcher, node)?;
        }
        let all = Api::ALL.into_iter().flat_map(|api| {
            let records = ledger.of(&api.type_url());
            records.map(move |(id, record)| Resource { api, name: id.name.clone(), record: record.clone() })
        });
        // what only drains is not configuration any more
        let resources = all.filter(|one| meant && one.record.state() != State::Draining).collect();
        let node = meant.then(|| node.clone());
        Ok(ClientStatus { node, resources, exclude_contents: request.exclude_resource_contents })
    }

    /// The wire form in pieces, and what goes before them, made of their length.
    pub fn into_wire(self) -> (impl Iterator<Item = Bytes> + use<>, fn(usize) -> Vec<u8>) {
        let Some(node) = &self.node else { return (Wire::default(), |_| Vec::new()) };
        let mut head = Vec::new();
        put(&mut head, NODE, &node.encode_to_vec());
        let rest = self.resources.into_iter();
        let prefix = |length: usize| {
            let mut prefix = Vec::new();
            encode_key(CONFIG, WireType::LengthDelimited, &mut prefix);
            encode_varint(length as u64, &mut prefix);
            prefix
        };
        (Wire { head, rest, exclude_contents: self.exclude_contents }, prefix)
    }

    /// Protobuf's JSON, in pieces.
    pub fn into_json(self) -> impl Iterator<Item = Bytes> + use<> {
        let mut text = String::new();
        let mut end = "{}\n";
        if let Some(node) = &self.node {
            text.push_str("{\n \"config\": [\n  {\n   \"node\": ");
            write_json(&mut text, &Descriptors.print(node, Style::default()), 3);
            end = "\n  }\n ]\n}\n";
            if !self.resources.is_empty() {
                text.push_str(",\n   \"generic_xds_configs\": [");
                end = "\n   ]\n  }\n ]\n}\n";
            }
        }
        Json { text, first: true, rest: self.resources.into_iter(), exclude_contents: self.exclude_contents, end }
    }
}

impl Resource {
    fn generic(&self, exclude_contents: bool) -> GenericXdsConfig {
        let Resource { api, name, record } = self;
        let held = record.held();
        let mut error_state = failure(*api, record);
        if exclude_contents && let Some(error) = &mut error_state {
            error.failed_configuration = None;
        }
        if let Some(failed) = error_state.as_mut().and_then(|error| error.failed_configuration.as_mut()) {
            Descriptors.redact(failed);
        }
        let contents = held.filter(|_| !exclude_contents).map(|config| {
            let mut contents = any(*api, config);
            Descriptors.redact(&mut contents);
            contents
        });
        GenericXdsConfig {
            type_url: api.type_url().as_str().to_owned(),
            name: name.to_string(),
            version_info: held.map(|config| config.version.to_string()).unwrap_or_default(),
            xds_config: contents,
            last_updated: held.map(|config| config.taken).or(record.requested).map(time),
            config_status: 0,
            client_status: if record.is_static { 0 } else { status(record) },
            error_state,
            is_static_resource: record.is_static,
        }
    }
}

fn put(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

#[derive(Default)]
struct Wire {
    head: Vec<u8>,
    rest: std::vec::IntoIter<Resource>,
    exclude_contents: bool,
}

impl Iterator for Wire {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut out = std::mem::take(&mut self.head);
        while out.len() < CHUNK
            && let Some(one) = self.rest.next()
        {
            put(&mut out, GENERIC, &one.generic(self.exclude_contents).encode_to_vec());
        }
        (!out.is_empty()).then(|| out.into())
    }
}

struct Json {
    text: String,
    first: bool,
    rest: std::vec::IntoIter<Resource>,
    exclude_contents: bool,
    end: &'static str,
}

impl Iterator for Json {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut out = std::mem::take(&mut self.text);
        while out.len() < CHUNK {
            let Some(one) = self.rest.next() else {
                out.push_str(std::mem::take(&mut self.end));
                break;
            };
            out.push_str(if std::mem::take(&mut self.first) { "\n    " } else { ",\n    " });
            write_json(&mut out, &Descriptors.print(&one.generic(self.exclude_contents), Style::default()), 4);
        }
        (!out.is_empty()).then(|| out.into())
    }
}

/// Whether a matcher means this client.
fn matches_node(matcher: &NodeMatcher, node: &Node) -> Result<bool, String> {
    if let Some(id) = &matcher.node_id {
        let id = text_match(id).map_err(|e| format!("node_matchers.node_id: {e}"))?;
        if !id.matches(node.id.as_bytes()) {
            return Ok(false);
        }
    }
    let metadata = node.metadata.as_ref().map(struct_to_json).unwrap_or_default();
    for one in &matcher.node_metadatas {
        if !matches_metadata(one, &metadata).map_err(|e| format!("node_matchers.node_metadatas: {e}"))? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn text_match(matcher: &StringMatcher) -> Result<StringMatch, ConfigError> {
    string_match(matcher.clone())
}

fn matches_metadata(matcher: &StructMatcher, metadata: &serde_json::Value) -> Result<bool, String> {
    let mut at = Some(metadata);
    for segment in &matcher.path {
        let Some(Segment::Key(key)) = &segment.segment else { return Err("a path segment without a key".into()) };
        at = at.and_then(|value| value.get(key));
    }
    matcher.value.as_ref().map_or(Ok(at.is_some()), |value| matches_value(value, at))
}

fn matches_value(matcher: &ValueMatcher, value: Option<&serde_json::Value>) -> Result<bool, String> {
    use serde_json::Value;
    Ok(match &matcher.match_pattern {
        Some(MatchPattern::NullMatch(_)) => value == Some(&Value::Null),
        Some(MatchPattern::PresentMatch(present)) => value.is_some() == *present,
        Some(MatchPattern::BoolMatch(expected)) => value == Some(&Value::Bool(*expected)),
        Some(MatchPattern::StringMatch(expected)) => {
            let expected = text_match(expected).map_err(|e| e.to_string())?;
            value.and_then(Value::as_str).is_some_and(|text| expected.matches(text.as_bytes()))
        }
        Some(MatchPattern::OrMatch(any)) => {
            let mut found = false;
            for one in &any.value_matchers {
                found |= matches_value(one, value)?;
            }
            found
        }
        Some(MatchPattern::DoubleMatch(expected)) => {
            let number = value.and_then(Value::as_f64);
            match expected.match_pattern.as_ref().ok_or("a double_match without range or exact")? {
                // the end is not in it
                DoublePattern::Range(range) => number.is_some_and(|number| range.start <= number && number < range.end),
                DoublePattern::Exact(exact) => number == Some(*exact),
            }
        }
        Some(MatchPattern::ListMatch(expected)) => {
            let Some(ListPattern::OneOf(expected)) = &expected.match_pattern else {
                return Err("a list_match without one_of".into());
            };
            let items = value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            // asked once of nothing, so that what is wrong with the matcher is said whatever the list
            let mut found = matches_value(expected, None).map(|_| false)?;
            for item in items {
                found |= matches_value(expected, Some(item))?;
            }
            found
        }
        None => return Err("a value without a match_pattern".into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::ledger::Standing;
    use std::rc::Rc;
    use xds_client::TypeUrl;
    use xds_protos::pb::envoy::admin::v3::ClientResourceStatus;
    use xds_protos::pb::envoy::service::status::v3::ClientStatusResponse;
    use xds_protos::{Format, ParseOptions};

    struct Settled;

    impl Standing for Settled {
        fn is_warming(&self, _: Api, _: &str) -> bool {
            false
        }

        fn is_draining(&self, _: Api, _: &str) -> bool {
            false
        }
    }

    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(Rc::new(Settled));
        ledger.record_static(&TypeUrl::CLUSTER, "fixed", Bytes::from_static(b"\x0a\x05fixed"), &[]);
        ledger.accepted(&TypeUrl::CLUSTER, &"ads".into(), "good", "1", &b"\x0a\x04good"[..]);
        ledger.rejected(&TypeUrl::CLUSTER, &"ads".into(), "good", "2", &b"\x0a\x04good"[..], "no");
        ledger.requested(&TypeUrl::ROUTE, &"ads".into(), "r");
        let key = r#"{"name": "key", "tls_certificate": {"private_key": {"inline_string": "very secret"}}}"#;
        let key = Descriptors.parse(TypeUrl::SECRET.message_name(), key, Format::Json, ParseOptions::default());
        ledger.accepted(&TypeUrl::SECRET, &"ads".into(), "key", "1", key.unwrap().bytes);
        ledger
    }

    fn node() -> Node {
        let text = r#"{"id": "me", "metadata": {"a": {"b": "c"}, "n": 1.5, "l": ["xy", 2, [true]]}}"#;
        Descriptors.parse_as(text, Format::Json, ParseOptions::default()).unwrap().0
    }

    fn wire(status: ClientStatus) -> Vec<u8> {
        let (pieces, prefix) = status.into_wire();
        let body: Vec<u8> = pieces.flatten().collect();
        [prefix(body.len()), body].concat()
    }

    fn asked(request: &str) -> Result<ClientStatus, String> {
        let parsed = Descriptors.parse(ClientStatus::REQUEST, request, Format::Json, ParseOptions::default());
        ClientStatus::new(&ledger(), &node(), &parsed.unwrap().bytes)
    }

    #[test]
    fn what_is_held_and_what_was_refused_is_told_without_secrets() {
        let ledger = ledger();
        let all = || ClientStatus::new(&ledger, &node(), b"").unwrap();
        let wire = wire(all());
        assert!(!wire.windows(11).any(|w| w == b"very secret"));
        let response = ClientStatusResponse::decode(wire.as_slice()).unwrap();
        let [config] = &response.config[..] else { panic!("{response:?}") };
        assert_eq!(config.node.as_ref().unwrap().id, "me");
        let rows: Vec<(&str, &str, &str, ClientResourceStatus, bool, bool)> = config
            .generic_xds_configs
            .iter()
            .map(|c| {
                let error = c.error_state.is_some();
                (
                    &*c.name,
                    &*c.version_info,
                    c.type_url.rsplit('.').next().unwrap(),
                    c.client_status(),
                    c.is_static_resource,
                    error,
                )
            })
            .collect();
        use ClientResourceStatus::{Acked, Nacked, Requested, Unknown};
        assert_eq!(
            rows,
            [
                ("r", "", "RouteConfiguration", Requested, false, false),
                ("fixed", "", "Cluster", Unknown, true, false),
                ("good", "1", "Cluster", Nacked, false, true),
                ("key", "1", "Secret", Acked, false, false),
            ]
        );
        assert_eq!(config.generic_xds_configs[2].xds_config.as_ref().unwrap().value, b"\x0a\x04good");
        let text: Vec<u8> = all().into_json().flatten().collect();
        let text = String::from_utf8(text).unwrap();
        let parsed: (ClientStatusResponse, _) =
            Descriptors.parse_as(&text, Format::Json, ParseOptions::default()).unwrap();
        assert_eq!(parsed.0, response, "{text}");
    }

    #[test]
    fn what_cannot_be_read_may_be_a_secret() {
        let mut ledger = Ledger::new(Rc::new(Settled));
        let key = r#"{"name": "key", "tls_certificate": {"private_key": {"inline_string": "very secret"}}}"#;
        let key =
            Descriptors.parse(TypeUrl::SECRET.message_name(), key, Format::Json, ParseOptions::default()).unwrap();
        ledger.rejected(&TypeUrl::SECRET, &"ads".into(), "key", "1", [&key.bytes[..], &[0xff]].concat(), "no");
        let all = || ClientStatus::new(&ledger, &node(), b"").unwrap();
        let wire = wire(all());
        assert!(!wire.windows(11).any(|w| w == b"very secret"));
        let text: Vec<u8> = all().into_json().flatten().collect();
        let text = String::from_utf8(text).unwrap();
        let parsed: (ClientStatusResponse, _) =
            Descriptors.parse_as(&text, Format::Json, ParseOptions::default()).unwrap();
        assert_eq!(parsed.0, ClientStatusResponse::decode(wire.as_slice()).unwrap());
        assert!(
            text.contains("\"[redacted: bytes that are no envoy.extensions.transport_sockets.tls.v3.Secret]\""),
            "{text}"
        );
    }

    #[test]
    fn contents_may_be_left_out() {
        let wire = wire(asked(r#"{"exclude_resource_contents": true}"#).unwrap());
        let response = ClientStatusResponse::decode(wire.as_slice()).unwrap();
        for one in &response.config[0].generic_xds_configs {
            let failed = one.error_state.as_ref().and_then(|error| error.failed_configuration.as_ref());
            assert!(one.xds_config.is_none() && failed.is_none() && !one.name.is_empty());
        }
    }

    #[test]
    fn only_who_is_meant_answers() {
        let meant = |matchers: &str| asked(&format!(r#"{{"node_matchers": [{matchers}]}}"#)).map(|s| s.node.is_some());
        assert_eq!(meant(r#"{"node_id": {"exact": "me"}}"#), Ok(true));
        assert_eq!(meant(r#"{"node_id": {"exact": "you"}}"#), Ok(false));
        assert_eq!(meant(r#"{"node_id": {"exact": "you"}}, {"node_id": {"prefix": "m"}}"#), Ok(true));
        let metadata = |value: &str| {
            meant(&format!(r#"{{"node_metadatas": [{{"path": [{{"key": "a"}}, {{"key": "b"}}], "value": {value}}}]}}"#))
        };
        assert_eq!(metadata(r#"{"string_match": {"exact": "c"}}"#), Ok(true));
        assert_eq!(metadata(r#"{"present_match": false}"#), Ok(false));
        let of = |key: &str, value: &str| {
            meant(&format!(r#"{{"node_metadatas": [{{"path": [{{"key": "{key}"}}], "value": {value}}}]}}"#))
        };
        assert_eq!(of("n", r#"{"double_match": {"exact": 1.5}}"#), Ok(true));
        assert_eq!(of("n", r#"{"double_match": {"range": {"start": 1.5, "end": 2}}}"#), Ok(true));
        assert_eq!(of("n", r#"{"double_match": {"range": {"start": 1, "end": 1.5}}}"#), Ok(false));
        assert_eq!(of("a", r#"{"double_match": {"exact": 1.5}}"#), Ok(false));
        let listed = |value: &str| of("l", &format!(r#"{{"list_match": {{"one_of": {value}}}}}"#));
        assert_eq!(listed(r#"{"string_match": {"prefix": "x"}}"#), Ok(true));
        assert_eq!(listed(r#"{"string_match": {"exact": "z"}}"#), Ok(false));
        assert_eq!(listed(r#"{"list_match": {"one_of": {"bool_match": true}}}"#), Ok(true));
        assert_eq!(of("n", r#"{"list_match": {"one_of": {"double_match": {"exact": 1.5}}}}"#), Ok(false));
        assert!(listed("{}").is_err() && of("n", r#"{"list_match": {}}"#).is_err() && metadata("{}").is_err());
        assert_eq!(wire(asked(r#"{"node_matchers": [{"node_id": {"exact": "you"}}]}"#).unwrap()), b"");
        let text: Vec<u8> =
            asked(r#"{"node_matchers": [{"node_id": {"exact": "you"}}]}"#).unwrap().into_json().flatten().collect();
        assert_eq!(text, b"{}\n");
    }
}
