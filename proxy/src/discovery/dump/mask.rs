//! Field masks: which parts of a message a page shows.
//!
//! Works on the wire form, so that it means the same for every type. What is a valid path follows protobuf's own
//! utility: names as in the .proto file, and nothing below a list, a map or an Any.

use bytes::{BufMut, Bytes};
use prost::encoding::{WireType, encode_key, encode_varint};
use xds_protos::table::{Field, FieldType, Message, Special};
use xds_protos::wire::{Raw, take_field};

/// `?mask=`: comma-separated paths. Without any path it lets everything pass.
pub struct Mask {
    paths: Vec<Vec<String>>,
}

impl Mask {
    pub fn parse(text: &str) -> Mask {
        let paths = text.split(',').filter(|path| !path.is_empty());
        Mask { paths: paths.map(|path| path.split('.').map(str::to_owned).collect()).collect() }
    }

    fn paths(&self) -> Vec<&[String]> {
        self.paths.iter().map(Vec::as_slice).collect()
    }

    /// Whether every path leads somewhere in this message.
    pub fn fits(&self, message: Message) -> bool {
        self.paths.iter().all(|path| leads(message, path))
    }

    /// Whether every path leads somewhere in an element of a list, which holds one resource of type `inner` in an Any:
    /// paths go on inside it.
    pub fn fits_element(&self, element: Message, inner: Message) -> bool {
        self.paths.iter().all(|path| match any_field(element, path) {
            Some(_) => leads(inner, &path[1..]),
            None => leads(element, path),
        })
    }

    /// Whether a field of the message itself is shown.
    pub fn shows(&self, field: &str) -> bool {
        self.paths.is_empty() || self.paths.iter().any(|path| path.first().is_some_and(|name| name == field))
    }

    /// What is shown of a message.
    pub fn trim(&self, message: Message, bytes: Vec<u8>) -> Vec<u8> {
        if self.paths.is_empty() { bytes } else { trim(message, &bytes, &self.paths()) }
    }

    /// What is shown of an element of a list.
    pub fn trim_element(&self, element: Message, inner: Message, bytes: Vec<u8>) -> Vec<u8> {
        if self.paths.is_empty() {
            return bytes;
        }
        let (within, outer): (Vec<&[String]>, Vec<&[String]>) =
            self.paths().into_iter().partition(|path| any_field(element, path).is_some());
        let mut out = Vec::new();
        each_field(&bytes, |number, raw, whole| {
            let Some(field) = element.field_by_number(number) else { return };
            let below: Vec<&[String]> =
                within.iter().filter(|path| path[0] == field.name()).map(|path| &path[1..]).collect();
            match raw {
                Raw::Bytes(any) if !below.is_empty() => put(&mut out, number, &trim_any(inner, any, &below)),
                _ => keep(&mut out, field, raw, whole, &outer),
            }
        });
        out
    }
}

/// The field that a path starts with, if it is a single Any.
fn any_field(element: Message, path: &[String]) -> Option<Field> {
    let field = path.first().and_then(|name| field_of(element, name))?;
    let is_any = matches!(field.field_type(), FieldType::Message(m) if m.special() == Special::Any);
    (is_any && !field.is_repeated()).then_some(field)
}

fn field_of(message: Message, name: &str) -> Option<Field> {
    message.field_by_name(name).filter(|field| field.name() == name)
}

fn leads(message: Message, path: &[String]) -> bool {
    let mut at = Some(message);
    !path.is_empty()
        && path.iter().all(|name| {
            let field = at.and_then(|message| field_of(message, name));
            at = field.and_then(|field| match field.field_type() {
                FieldType::Message(inner) if !field.is_repeated() && field.map_entry().is_none() => Some(inner),
                _ => None,
            });
            field.is_some()
        })
}

/// Calls with each field's number and content, and its bytes with the tag.
pub(super) fn each_field<'a>(bytes: &'a [u8], mut call: impl FnMut(u32, Raw<'a>, &'a [u8])) {
    let mut rest = bytes;
    loop {
        let before = rest;
        let Some((number, raw)) = take_field(&mut rest) else { return };
        call(number, raw, &before[..before.len() - rest.len()]);
    }
}

fn trim(message: Message, bytes: &[u8], paths: &[&[String]]) -> Vec<u8> {
    let mut out = Vec::new();
    each_field(bytes, |number, raw, whole| {
        if let Some(field) = message.field_by_number(number) {
            keep(&mut out, field, raw, whole, paths);
        }
    });
    out
}

/// Appends what the paths let through of one field.
fn keep(out: &mut Vec<u8>, field: Field, raw: Raw<'_>, whole: &[u8], paths: &[&[String]]) {
    let below: Vec<&[String]> = paths.iter().filter(|path| path[0] == field.name()).map(|path| &path[1..]).collect();
    match (field.field_type(), raw) {
        _ if below.is_empty() => {}
        (FieldType::Message(inner), Raw::Bytes(bytes)) if below.iter().all(|path| !path.is_empty()) => {
            put(out, field.number(), &trim(inner, bytes, &below));
        }
        _ => out.extend_from_slice(whole),
    }
}

fn trim_any(inner: Message, any: &[u8], paths: &[&[String]]) -> Vec<u8> {
    let mut out = Vec::new();
    each_field(any, |number, raw, whole| match raw {
        Raw::Bytes(value) if number == 2 => put(&mut out, number, &trim(inner, value, paths)),
        _ => out.extend_from_slice(whole),
    });
    out
}

pub(super) fn put(out: &mut Vec<u8>, number: u32, value: &[u8]) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(value.len() as u64, out);
    out.put_slice(value);
}

/// The name of a resource: every xDS type has it in field 1.
pub fn name_of(bytes: &[u8]) -> String {
    let mut name = String::new();
    each_field(bytes, |number, raw, _| {
        if let (1, Raw::Bytes(text)) = (number, raw) {
            name = String::from_utf8_lossy(text).into_owned();
        }
    });
    name
}

/// Every message of a type inside another, at any depth and through Any, in their order; each a part of `bytes`.
pub fn find_all(message: Message, bytes: &Bytes, wanted: Message) -> Vec<Bytes> {
    let mut found = Vec::new();
    find(message, bytes, wanted, 0, &mut found);
    found.into_iter().map(|part| bytes.slice_ref(part)).collect()
}

fn find<'a>(message: Message, bytes: &'a [u8], wanted: Message, depth: usize, found: &mut Vec<&'a [u8]>) {
    if depth > xds_protos::MAX_DEPTH {
        return;
    }
    if message == wanted {
        return found.push(bytes);
    }
    if message.special() == Special::Any {
        let (mut name, mut value) = ("", &[][..]);
        each_field(bytes, |number, raw, _| match (number, raw) {
            (1, Raw::Bytes(url)) => name = std::str::from_utf8(url).unwrap_or("").rsplit('/').next().unwrap_or(""),
            (2, Raw::Bytes(packed)) => value = packed,
            _ => {}
        });
        if let Some(packed) = Message::find(name) {
            find(packed, value, wanted, depth + 1, found);
        }
        return;
    }
    each_field(bytes, |number, raw, _| {
        if let (Some(field), Raw::Bytes(inner)) = (message.field_by_number(number), raw)
            && let FieldType::Message(of) = field.field_type()
        {
            find(of, inner, wanted, depth + 1, found);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use xds_protos::{Descriptors, Format, ParseOptions, Style};

    fn message(name: &str) -> Message {
        Message::find(name).unwrap()
    }

    fn bytes(name: &str, json: &Value) -> Vec<u8> {
        Descriptors.parse(name, &json.to_string(), Format::Json, ParseOptions::default()).unwrap().bytes
    }

    const STATIC: &str = "envoy.admin.v3.ClustersConfigDump.StaticCluster";
    const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";

    #[test]
    fn a_mask_keeps_its_paths_inside_the_resource_too() {
        let element = json!({
            "cluster": {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "a", "connect_timeout": "1s"},
            "last_updated": "2026-11-22T23:32:18.556Z"
        });
        let trimmed = |mask: &str| {
            let wire = Mask::parse(mask).trim_element(message(STATIC), message(CLUSTER), bytes(STATIC, &element));
            Descriptors.to_json(STATIC, &wire, Style::default())
        };
        assert_eq!(
            trimmed("cluster.name,last_updated.seconds"),
            json!({"cluster": {"@type": element["cluster"]["@type"], "name": "a"}, "last_updated": "2026-11-22T23:32:18Z"})
        );
        assert_eq!(trimmed("last_updated"), json!({"last_updated": element["last_updated"]}));
        assert_eq!(trimmed(","), element);
    }

    #[test]
    fn a_path_must_lead_somewhere() {
        let fits = |mask: &str| Mask::parse(mask).fits_element(message(STATIC), message(CLUSTER));
        assert!(fits("cluster.name,last_updated") && fits("cluster.load_assignment.cluster_name") && fits(""));
        for bad in [
            "cluster",
            "nope",
            "cluster.nope",
            "cluster.name.x",
            "cluster.loadAssignment",
            "lastUpdated",
            "cluster.load_assignment.endpoints.priority",
            "cluster.name,nope",
        ] {
            assert!(!fits(bad), "{bad}");
        }
        let dump = message("envoy.admin.v3.ClustersConfigDump");
        assert!(Mask::parse("static_clusters").fits(dump) && !Mask::parse("static_clusters.cluster").fits(dump));
    }

    #[test]
    fn messages_are_found_through_any() {
        let listener = json!({"name": "l", "filter_chains": [{"filters": [{"name": "h", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "x", "route_config": {"name": "one"}}}]}]});
        let name = "envoy.config.listener.v3.Listener";
        let wire = Bytes::from(bytes(name, &listener));
        let found = find_all(message(name), &wire, message("envoy.config.route.v3.RouteConfiguration"));
        assert_eq!(found, [&b"\x0a\x03one"[..]]);
    }
}
