//! The four protobuf messages of the protocol, and the one form in which the rest of the crate sees them.
//! Knows both wire modes; knows nothing of subscriptions, order or retries.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut};
use prost::Message;
use prost::encoding::{self, DecodeContext, WireType};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use xds_protos::pb;
use xds_protos::pb::envoy::config::core::v3::Node;
use xds_protos::pb::envoy::service::discovery::v3 as discovery;
use xds_protos::pb::google::protobuf::Any;

use crate::event::{Kind, Resource, ResourceError};
use crate::stats::{Said, Stats};
use crate::types::{Mode, TypeUrl};

/// The wrapper that a state-of-the-world server puts around a resource to give it a name or a time to live.
const WRAPPER: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

/// Fields inside of a resource's wrapper that are counted as usual; a message may have so many for each of its resources.
const FIELDS_OF_RESOURCE: usize = 8;

/// A request of either mode; which fields are used, the mode decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    pub type_url: String,
    /// Send the node with it.
    pub node: bool,
    /// It answers the response of its nonce; else it says what is subscribed.
    pub answers: bool,
    /// State of the world: the version in use.
    pub version: String,
    /// State of the world: every name. Delta: the names added.
    pub names: Vec<String>,
    /// Delta: the names taken back.
    pub unsubscribe: Vec<String>,
    /// Delta, first request of a type on a stream: what the client holds.
    pub initial_versions: HashMap<String, String>,
    pub nonce: String,
    pub error: Option<String>,
}

impl Request {
    fn error_detail(error: Option<String>) -> Option<pb::google::rpc::Status> {
        // Envoy answers with INTERNAL whatever the reason.
        error.map(|message| pb::google::rpc::Status {
            code: tonic::Code::Internal as i32,
            message,
            ..Default::default()
        })
    }

    pub(crate) fn into_delta(self, node: &Node) -> discovery::DeltaDiscoveryRequest {
        discovery::DeltaDiscoveryRequest {
            node: self.node.then(|| node.clone()),
            type_url: self.type_url,
            resource_names_subscribe: self.names,
            resource_names_unsubscribe: self.unsubscribe,
            initial_resource_versions: self.initial_versions,
            response_nonce: self.nonce,
            error_detail: Request::error_detail(self.error),
            ..Default::default()
        }
    }

    pub(crate) fn into_sotw(self, node: &Node) -> discovery::DiscoveryRequest {
        discovery::DiscoveryRequest {
            version_info: self.version,
            node: self.node.then(|| node.clone()),
            resource_names: self.names,
            type_url: self.type_url,
            response_nonce: self.nonce,
            error_detail: Request::error_detail(self.error),
            ..Default::default()
        }
    }
}

/// A response of either mode.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub type_url: TypeUrl,
    pub version: String,
    pub nonce: String,
    pub kind: Kind,
    pub resources: Vec<Resource>,
    pub removed: Vec<String>,
    pub errors: Vec<ResourceError>,
    pub control_plane: String,
    pub bytes: usize,
    pub received: Instant,
}

impl Incoming {
    pub(crate) fn from_delta(m: discovery::DeltaDiscoveryResponse, bytes: usize, received: Instant) -> Self {
        let mut removed = m.removed_resources;
        removed.extend(m.removed_resource_names.into_iter().map(|n| n.name));
        Incoming {
            type_url: m.type_url.into(),
            version: m.system_version_info,
            nonce: m.nonce,
            kind: Kind::Delta,
            resources: m.resources.into_iter().map(unwrapped).collect(),
            removed,
            errors: m.resource_errors.into_iter().map(resource_error).collect(),
            control_plane: m.control_plane.unwrap_or_default().identifier,
            bytes,
            received,
        }
    }

    pub(crate) fn from_sotw(m: discovery::DiscoveryResponse, bytes: usize, received: Instant) -> Self {
        Incoming {
            type_url: m.type_url.into(),
            version: m.version_info,
            nonce: m.nonce,
            kind: Kind::Full,
            resources: m.resources.into_iter().map(plain).collect(),
            removed: Vec::new(),
            errors: m.resource_errors.into_iter().map(resource_error).collect(),
            control_plane: m.control_plane.unwrap_or_default().identifier,
            bytes,
            received,
        }
    }
}

fn resource_error(e: discovery::ResourceError) -> ResourceError {
    let status = e.error_detail.unwrap_or_default();
    ResourceError {
        name: e.resource_name.unwrap_or_default().name,
        code: tonic::Code::from_i32(status.code),
        message: status.message,
    }
}

/// A resource in its wrapper, as delta always sends it.
fn unwrapped(r: discovery::Resource) -> Resource {
    let mut name = r.name;
    if name.is_empty() {
        name = r.resource_name.map(|n| n.name).unwrap_or_default();
    }
    if name.is_empty() {
        name = r.resource.as_ref().and_then(|any| name_in(&any.value)).unwrap_or_default();
    }
    // A negative time is no time: it would expire before it came.
    let ttl = r.ttl.and_then(|d| Some(Duration::new(d.seconds.try_into().ok()?, d.nanos.try_into().ok()?)));
    Resource { name, aliases: r.aliases, version: r.version, ttl, body: r.resource, heartbeat: false }
}

/// A resource of a state-of-the-world response: bare, or in the wrapper.
fn plain(any: Any) -> Resource {
    if any.type_url == WRAPPER
        && let Ok(wrapper) = discovery::Resource::decode(any.value.as_slice())
    {
        return unwrapped(wrapper);
    }
    // A wrapper that cannot be read stays as it is: the consumer refuses it for its type, and names it in the NACK.
    Resource { name: name_in(&any.value).unwrap_or_default(), body: Some(any), ..Resource::default() }
}

/// The string in field 1, where every xDS resource type has its name, without decoding the message.
/// The first occurrence is taken; serializers write one, and write it first.
pub(crate) fn name_in(mut message: &[u8]) -> Option<String> {
    while message.has_remaining() {
        let (tag, wire_type) = encoding::decode_key(&mut message).ok()?;
        if tag == 1 && wire_type == WireType::LengthDelimited {
            let mut name = String::new();
            encoding::string::merge(wire_type, &mut name, &mut message, DecodeContext::default()).ok()?;
            return Some(name);
        }
        encoding::skip_field(wire_type, tag, &mut message, DecodeContext::default()).ok()?;
    }
    None
}

/// How many fields a message has, and how many those of number `inside` have in turn. Of one that cannot be read, up to where
/// it breaks off.
fn fields_in(mut message: &[u8], inside: Option<u32>) -> (usize, usize) {
    let (mut own, mut inner) = (0, 0);
    while message.has_remaining() {
        let Ok((tag, wire_type)) = encoding::decode_key(&mut message) else { break };
        own += 1;
        if inside == Some(tag) && wire_type == WireType::LengthDelimited {
            let length = encoding::decode_varint(&mut message).ok().and_then(|length| usize::try_from(length).ok());
            let Some((field, rest)) = length.and_then(|length| message.split_at_checked(length)) else { break };
            inner += fields_in(field, None).0;
            message = rest;
        } else if encoding::skip_field(wire_type, tag, &mut message, DecodeContext::default()).is_err() {
            break;
        }
    }
    (own, inner)
}

/// Messages to and from gRPC bodies. One codec for both modes, so that the stream's driver is written once; and only here
/// is the size of a message on the wire known.
#[derive(Clone)]
pub(crate) struct XdsCodec {
    pub mode: Mode,
    pub node: Arc<Node>,
    pub stats: Arc<dyn Stats>,
    pub max_resources: usize,
}

impl Codec for XdsCodec {
    type Encode = Request;
    type Decode = Incoming;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        self.clone()
    }

    fn decoder(&mut self) -> Self {
        self.clone()
    }
}

impl Encoder for XdsCodec {
    type Item = Request;
    type Error = Status;

    fn encode(&mut self, request: Request, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let said = match (request.answers, &request.error) {
            (_, Some(_)) => Said::Nack,
            (true, None) => Said::Ack,
            (false, None) => Said::Subscription,
        };
        let type_url = TypeUrl::from(request.type_url.as_str());
        let before = dst.remaining_mut();
        let encoded = match self.mode {
            Mode::Delta => request.into_delta(&self.node).encode(dst),
            Mode::Sotw => request.into_sotw(&self.node).encode(dst),
        };
        self.stats.request_sent(&type_url, said, before.saturating_sub(dst.remaining_mut()));
        encoded.map_err(|e| Status::internal(format!("encoding a discovery request: {e}")))
    }
}

impl Decoder for XdsCodec {
    type Item = Incoming;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Incoming>, Status> {
        let (bytes, received) = (src.remaining(), Instant::now());
        let src = src.copy_to_bytes(bytes);
        // Before it is decoded: two bytes on the wire may become hundreds. Field 2 has the resources in both modes.
        let (own, inner) = fields_in(&src, (self.mode == Mode::Delta).then_some(2));
        let limit = self.max_resources;
        if own > limit || inner > limit.saturating_mul(FIELDS_OF_RESOURCE) {
            let text =
                format!("the response has {own} resources of {inner} fields, more than the limit of {limit} allows");
            return Err(Status::out_of_range(text));
        }
        match self.mode {
            Mode::Delta => discovery::DeltaDiscoveryResponse::decode(src)
                .map(|m| Incoming::from_delta(m, bytes, received))
                .map_err(|e| ("DeltaDiscoveryResponse", e)),
            Mode::Sotw => discovery::DiscoveryResponse::decode(src)
                .map(|m| Incoming::from_sotw(m, bytes, received))
                .map_err(|e| ("DiscoveryResponse", e)),
        }
        .map(Some)
        .map_err(|(what, e)| Status::internal(format!("the server sent {bytes} bytes that are no {what}: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xds_protos::pb::envoy::config::cluster::v3::Cluster;
    use xds_protos::pb::google::protobuf::Duration as ProtoDuration;

    fn any(type_url: &str, value: Vec<u8>) -> Any {
        Any { type_url: type_url.into(), value }
    }

    #[test]
    fn a_name_is_found_without_decoding_the_rest() {
        let cluster = Cluster { name: "outbound|80||a".into(), alt_stat_name: "alt".into(), ..Default::default() };
        assert_eq!(name_in(&cluster.encode_to_vec()).as_deref(), Some("outbound|80||a"));
        // Field 2 varint, field 3 bytes, then the name.
        assert_eq!(name_in(b"\x10\x07\x1a\x02zz\x0a\x01n").as_deref(), Some("n"));
    }

    #[test]
    fn fields_are_counted_before_they_are_decoded() {
        let resource = discovery::Resource { aliases: vec!["x".into(); 5], version: "1".into(), ..Default::default() };
        let response = discovery::DeltaDiscoveryResponse {
            resources: vec![resource; 3],
            removed_resources: vec!["y".into(); 4],
            nonce: "n".into(),
            ..Default::default()
        };
        let bytes = response.encode_to_vec();
        assert_eq!((fields_in(&bytes, Some(2)), fields_in(&bytes, None)), ((8, 18), (8, 0)));
        assert_eq!(fields_in(b"\x12\x00\x12\xff\x01", Some(2)), (2, 0));
    }

    #[test]
    fn bytes_that_are_no_message_have_no_name() {
        for garbage in [&b""[..], b"\x0a\x05ab", b"\xff\xff\xff", b"\x0a\x01\xff", b"\x08\x01", b"\x0b\x0b\x0b"] {
            assert_eq!(name_in(garbage), None, "{garbage:?}");
        }
    }

    #[test]
    fn a_wrapped_resource_is_unwrapped_and_a_bare_one_is_named() {
        let body = any(TypeUrl::CLUSTER.as_str(), Cluster { name: "in".into(), ..Default::default() }.encode_to_vec());
        let wrapper = discovery::Resource {
            name: "out".into(),
            version: "7".into(),
            ttl: Some(ProtoDuration { seconds: 3, nanos: 5 }),
            resource: Some(body.clone()),
            ..Default::default()
        };
        let response = discovery::DiscoveryResponse {
            resources: vec![any(WRAPPER, wrapper.encode_to_vec()), body.clone(), any(WRAPPER, vec![0xff])],
            ..Default::default()
        };
        let got = Incoming::from_sotw(response, 0, Instant::now()).resources;
        assert_eq!((got[0].name.as_str(), got[0].version.as_str()), ("out", "7"));
        assert_eq!(got[0].ttl, Some(Duration::new(3, 5)));
        assert_eq!(got[0].body.as_ref(), Some(&body));
        assert_eq!((got[1].name.as_str(), got[1].body.as_ref()), ("in", Some(&body)));
        assert_eq!(got[2].body.as_ref().unwrap().type_url, WRAPPER);
    }

    #[test]
    fn a_heartbeat_has_no_body_and_a_negative_ttl_is_none() {
        let r = discovery::Resource {
            name: "a".into(),
            ttl: Some(ProtoDuration { seconds: -1, nanos: 0 }),
            ..Default::default()
        };
        assert_eq!(unwrapped(r), Resource { name: "a".into(), ..Resource::default() });
    }
}
