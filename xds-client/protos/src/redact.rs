//! Taking secrets out of a message on the wire, so that it may be shown.
//!
//! Secret is what stands below a field marked `udpa.annotations.sensitive`: its strings and bytes become `[redacted]`,
//! its numbers and booleans are left out; keys of maps stay. A `TypedStruct` keeps its shape, and is judged as the
//! message that it describes. Where nobody can know what is secret it fails closed: what calls itself a type that is
//! known and cannot be read as one, fields that a Secret does not have, members of a `TypedStruct` that its message does
//! not have. Only an Any of a type that is not known stays as it is: nothing says that there is a secret in it, and an
//! extension of somebody's own has to be shown.

use crate::TypedStruct;
use crate::node::MAX_DEPTH;
use crate::pb::google::protobuf::Any;
use crate::table::{Field, FieldType, Message, Special, kind};
use crate::wire::{Raw, put_bytes, take_field};

/// What stands in place of a secret. As bytes it is no message, whatever the type.
const REDACTED: &[u8] = b"[redacted]";
const SECRET: &str = "envoy.extensions.transport_sockets.tls.v3.Secret";
/// Messages in messages. A level of a `Struct` is three of them, and [`MAX_DEPTH`] holds for those of texts.
const MOST_LEVELS: usize = 3 * MAX_DEPTH;

/// The bytes are no message of their type: nobody can say what in them is secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unreadable;

/// The message without its secrets; `None` when it has none.
pub(crate) fn redact(message: Message, bytes: &[u8]) -> Result<Option<Vec<u8>>, Unreadable> {
    Walk { secret: false, closed: false, depth: 0 }.message(message, bytes)
}

/// The same of what an Any holds.
pub(crate) fn redact_any(any: &mut Any) {
    let walk = Walk { secret: false, closed: false, depth: 0 };
    if let Some((url, value)) = walk.packed(type_name(any.type_url.as_bytes()), &any.value) {
        any.value = value;
        if let Some(url) = url {
            any.type_url = url.to_owned();
        }
    }
}

#[derive(Clone, Copy)]
struct Walk {
    /// Below a sensitive field.
    secret: bool,
    /// In a message in which fields that nobody knows count as secret.
    closed: bool,
    depth: usize,
}

/// What becomes of a field.
enum Outcome {
    Keep,
    Drop,
    Put(Vec<u8>),
}

impl Outcome {
    /// Of a field whose content was walked.
    fn of(walked: Option<Vec<u8>>) -> Outcome {
        walked.map_or(Outcome::Keep, Outcome::Put)
    }

    fn redacted() -> Outcome {
        Outcome::Put(REDACTED.to_vec())
    }
}

/// Decides on each field of a message; `None` when all are kept.
fn rewrite<'a>(
    bytes: &'a [u8],
    mut decide: impl FnMut(u32, Raw<'a>) -> Result<Outcome, Unreadable>,
) -> Result<Option<Vec<u8>>, Unreadable> {
    let mut out: Option<Vec<u8>> = None;
    let mut rest = bytes;
    while !rest.is_empty() {
        let start = bytes.len() - rest.len();
        let (number, raw) = take_field(&mut rest).ok_or(Unreadable)?;
        let outcome = decide(number, raw)?;
        let whole = &bytes[start..bytes.len() - rest.len()];
        match (outcome, &mut out) {
            (Outcome::Keep, None) => {}
            (Outcome::Keep, Some(out)) => out.extend_from_slice(whole),
            (changed, out) => {
                let out = out.get_or_insert_with(|| bytes[..start].to_vec());
                if let Outcome::Put(value) = changed {
                    put_bytes(out, number, &value);
                }
            }
        }
    }
    Ok(out)
}

/// The last values of two fields that hold bytes.
fn pair(mut bytes: &[u8]) -> Result<(&[u8], &[u8]), Unreadable> {
    let (mut first, mut second) = (&[][..], &[][..]);
    while !bytes.is_empty() {
        match take_field(&mut bytes).ok_or(Unreadable)? {
            (1, Raw::Bytes(value)) => first = value,
            (2, Raw::Bytes(value)) => second = value,
            _ => {}
        }
    }
    Ok((first, second))
}

/// The type that a type URL names.
fn type_name(url: &[u8]) -> &str {
    std::str::from_utf8(url).unwrap_or("").rsplit('/').next().unwrap_or("")
}

fn is_typed_struct(message: Message) -> bool {
    TypedStruct::NAMES.contains(&message.name())
}

impl Walk {
    fn deeper(self) -> Result<Walk, Unreadable> {
        if self.depth >= MOST_LEVELS { Err(Unreadable) } else { Ok(Walk { depth: self.depth + 1, ..self }) }
    }

    fn within(self, field: Field) -> Walk {
        Walk { secret: self.secret || field.is_sensitive(), ..self }
    }

    fn message(self, message: Message, bytes: &[u8]) -> Result<Option<Vec<u8>>, Unreadable> {
        let this = Walk { closed: self.closed || message.name() == SECRET, ..self.deeper()? };
        if message.special() == Special::Any {
            return this.any(bytes);
        }
        if is_typed_struct(message) {
            return this.typed_struct(bytes);
        }
        rewrite(bytes, |number, raw| {
            // what the type does not have, in number or in form; beside a secret it may be a newer way to give one
            let unknown = || {
                let hidden = this.secret || this.closed || message.fields().any(Field::is_sensitive);
                Ok(if hidden { Outcome::Drop } else { Outcome::Keep })
            };
            let Some(field) = message.field_by_number(number) else { return unknown() };
            let inside = this.within(field);
            let text = matches!(field.kind(), kind::STRING | kind::BYTES);
            match (field.field_type(), raw) {
                (FieldType::Message(inner), Raw::Bytes(value)) => Ok(Outcome::of(inside.message(inner, value)?)),
                (FieldType::Message(_), _) => unknown(),
                // the key of a map entry
                _ if message.is_map_entry() && number == 1 => Ok(Outcome::Keep),
                (_, Raw::Bytes(_)) if inside.secret && text => Ok(Outcome::redacted()),
                _ if inside.secret => Ok(Outcome::Drop),
                (_, Raw::Bytes(_)) if !text && !field.is_repeated() => unknown(),
                (_, Raw::Varint(_) | Raw::Fixed32(_) | Raw::Fixed64(_)) if text => unknown(),
                _ => Ok(Outcome::Keep),
            }
        })
    }

    fn any(self, bytes: &[u8]) -> Result<Option<Vec<u8>>, Unreadable> {
        let (url, packed) = pair(bytes)?;
        Ok(self.packed(type_name(url), packed).map(|(other, value)| {
            let mut out = Vec::new();
            put_bytes(&mut out, 1, other.map_or(url, str::as_bytes));
            put_bytes(&mut out, 2, &value);
            out
        }))
    }

    /// What an Any holds, and its type URL where that changes; `None` when all is kept.
    fn packed(self, name: &str, packed: &[u8]) -> Option<(Option<&'static str>, Vec<u8>)> {
        match Message::find(name).map(|message| self.message(message, packed)) {
            Some(Ok(value)) => value.map(|value| (None, value)),
            Some(Err(Unreadable)) => {
                // a text: as what it calls itself no reader of JSON could take it
                let mut text = Vec::new();
                put_bytes(&mut text, 1, format!("[redacted: bytes that are no {name}]").as_bytes());
                Some((Some("type.googleapis.com/google.protobuf.StringValue"), text))
            }
            None => self.secret.then(|| (None, REDACTED.to_vec())),
        }
    }

    fn typed_struct(self, bytes: &[u8]) -> Result<Option<Vec<u8>>, Unreadable> {
        let (url, _) = pair(bytes)?;
        let shape = Message::find(type_name(url)).map_or(Shape::Free, Shape::message);
        rewrite(bytes, |number, raw| match (number, raw) {
            (1, Raw::Bytes(_)) => Ok(Outcome::Keep),
            (2, Raw::Bytes(value)) => Ok(Outcome::of(self.members(shape, value)?)),
            _ => Ok(self.unshaped()),
        })
    }

    fn unshaped(self) -> Outcome {
        if self.secret || self.closed { Outcome::Drop } else { Outcome::Keep }
    }
}

/// What a value in the tree of a `TypedStruct` is to its message.
#[derive(Clone, Copy)]
enum Shape {
    /// A message, by its fields.
    Object(Message),
    /// An object with `@type`.
    Any,
    /// An object whose members are values of this field.
    Map(Field),
    Scalar,
    /// Whatever its sender likes, or a well-known type: nothing in it is sensitive by itself.
    Free,
}

impl Shape {
    fn message(message: Message) -> Shape {
        match message.special() {
            Special::None | Special::Empty => Shape::Object(message),
            Special::Any => Shape::Any,
            _ => Shape::Free,
        }
    }

    fn field(field: Field) -> Shape {
        match (field.map_entry().and_then(|entry| entry.field_by_number(2)), field.field_type()) {
            (Some(value), _) => Shape::Map(value),
            (None, FieldType::Message(message)) => Shape::message(message),
            (None, FieldType::Enum(_) | FieldType::Scalar(_)) => Shape::Scalar,
        }
    }
}

/// Trees: `google.protobuf.Struct` and `Value`, read as the message that a shape says.
impl Walk {
    fn hidden(self) -> Walk {
        Walk { secret: true, ..self }
    }

    /// The body of a `Struct`.
    fn members(self, shape: Shape, bytes: &[u8]) -> Result<Option<Vec<u8>>, Unreadable> {
        let this = self.deeper()?;
        let named = |member: &str| {
            let url = text_member(bytes, member)?;
            // what says nothing of itself is not taken for something unknown
            let untyped = if url.is_empty() { Shape::Scalar } else { Shape::Free };
            Ok(Message::find(type_name(url)).map_or(untyped, Shape::message))
        };
        // the type of an Any says what stands beside it; a well-known type stands in `value`
        let (shape, well_known) = match shape {
            Shape::Any => match named("@type")? {
                shape @ (Shape::Object(_) | Shape::Scalar) => (shape, None),
                other => (Shape::Free, Some(other)),
            },
            other => (other, None),
        };
        let described = match shape {
            Shape::Object(message) if is_typed_struct(message) => Some(named("type_url")?),
            _ => well_known,
        };
        rewrite(bytes, |number, raw| {
            let (1, Raw::Bytes(entry)) = (number, raw) else { return Ok(this.unshaped()) };
            let key = std::str::from_utf8(pair(entry)?.0).unwrap_or("");
            let (inside, shape) = match (shape, described) {
                (_, Some(described)) if key == "value" => (this, described),
                (Shape::Object(_), _) if key == "@type" => (this, Shape::Free),
                (Shape::Object(message), _) => match message.field_by_name(key) {
                    Some(field) => (this.within(field), Shape::field(field)),
                    None => (this.hidden(), Shape::Free),
                },
                (Shape::Map(value), _) => (this.within(value), Shape::field(value)),
                // an object where its message has a plain value
                (Shape::Scalar, _) => (this.hidden(), Shape::Free),
                (Shape::Free | Shape::Any, _) => (this, Shape::Free),
            };
            let entry = rewrite(entry, |number, raw| match (number, raw) {
                (1, Raw::Bytes(_)) => Ok(Outcome::Keep),
                (2, Raw::Bytes(value)) => Ok(Outcome::of(inside.value(shape, value)?)),
                _ => Ok(inside.unshaped()),
            });
            Ok(Outcome::of(entry?))
        })
    }

    /// The body of a `Value`.
    fn value(self, shape: Shape, bytes: &[u8]) -> Result<Option<Vec<u8>>, Unreadable> {
        let this = self.deeper()?;
        // a plain value where an object has to stand is the mistake of somebody who has one field too few
        let misplaced = matches!(shape, Shape::Object(_) | Shape::Any | Shape::Map(_));
        rewrite(bytes, |number, raw| match (number, raw) {
            (1, Raw::Varint(_)) => Ok(Outcome::Keep),
            (2, Raw::Fixed64(_)) | (4, Raw::Varint(_)) if this.secret => Ok(Outcome::Drop),
            (2, Raw::Fixed64(_)) | (4, Raw::Varint(_)) => Ok(Outcome::Keep),
            (3, Raw::Bytes(_)) if this.secret || misplaced => Ok(Outcome::redacted()),
            (3, Raw::Bytes(_)) => Ok(Outcome::Keep),
            (5, Raw::Bytes(members)) => Ok(Outcome::of(this.members(shape, members)?)),
            (6, Raw::Bytes(items)) => Ok(Outcome::of(rewrite(items, |number, raw| match (number, raw) {
                (1, Raw::Bytes(item)) => Ok(Outcome::of(this.value(shape, item)?)),
                _ => Ok(this.unshaped()),
            })?)),
            _ => Ok(this.unshaped()),
        })
    }
}

/// A member of a `Struct` that is a string.
fn text_member<'a>(mut bytes: &'a [u8], wanted: &str) -> Result<&'a [u8], Unreadable> {
    let mut found = &[][..];
    while !bytes.is_empty() {
        let (1, Raw::Bytes(entry)) = take_field(&mut bytes).ok_or(Unreadable)? else { continue };
        let (key, mut value) = pair(entry)?;
        while key == wanted.as_bytes() && !value.is_empty() {
            if let (3, Raw::Bytes(text)) = take_field(&mut value).ok_or(Unreadable)? {
                found = text;
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Descriptors, Format, ParseOptions, Style};
    use serde_json::{Value, json};

    const UPSTREAM_TLS: &str = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";

    fn wire(name: &str, json: &Value) -> Vec<u8> {
        Descriptors.parse(name, &json.to_string(), Format::Json, ParseOptions::default()).unwrap().bytes
    }

    fn shown(name: &str, bytes: &[u8]) -> Value {
        Descriptors.to_json(name, bytes, Style { redact: true, defaults: false })
    }

    fn has(bytes: &[u8], text: &str) -> bool {
        bytes.windows(text.len()).any(|w| w == text.as_bytes())
    }

    fn any_of(url: &str, value: Vec<u8>) -> Any {
        Any { type_url: format!("type.googleapis.com/{url}"), value }
    }

    fn redacted(mut any: Any) -> Any {
        redact_any(&mut any);
        any
    }

    #[test]
    fn secrets_go_and_the_rest_stays() {
        let tls = json!({"@type": format!("type.googleapis.com/{UPSTREAM_TLS}"),
            "common_tls_context": {"tls_certificates": [{"certificate_chain": {"inline_string": "public"},
            "private_key": {"inline_string": "hunter2"}, "password": {"inline_bytes": "aHVudGVyMg=="}}]}});
        let cluster = json!({"name": "c", "transport_socket": {"name": "tls", "typed_config": tls}});
        let bytes = redact(Message::find(CLUSTER).unwrap(), &wire(CLUSTER, &cluster)).unwrap().unwrap();
        assert!(!has(&bytes, "hunter2") && has(&bytes, "public"));
        assert_eq!(redact(Message::find(CLUSTER).unwrap(), b"\x0a\x01c"), Ok(None));
    }

    #[test]
    fn a_typed_struct_keeps_its_shape_and_loses_its_secrets() {
        for kind in TypedStruct::NAMES {
            let certificate = |key: Value| json!({"certificateChain": {"inline_string": "public"}, "private_key": key, "ocsp_staple": {"filename": "f"}});
            let context = |key: Value, more: Value| {
                json!({"@type": format!("type.googleapis.com/{kind}"), "type_url": format!("t/{UPSTREAM_TLS}"),
                    "value": {"sni": "s", "max_session_keys": 1, "common_tls_context":
                        {"tls_certificates": [certificate(key.clone())], "tls_certificate_sds_secret_configs": certificate(key),
                        "more": more}}})
            };
            let given = context(json!({"inline_string": "hunter2"}), json!({"a": ["hunter2", 1]}));
            let cluster = json!({"name": "c", "transport_socket": {"name": "tls", "typed_config": given}});
            // the second list is of messages without such a field
            let mut expected = context(json!({"inline_string": "[redacted]"}), json!({"a": ["[redacted]", null]}));
            expected["value"]["common_tls_context"]["tls_certificate_sds_secret_configs"] = json!({
                "certificateChain": {"inline_string": "[redacted]"}, "private_key": {"inline_string": "[redacted]"},
                "ocsp_staple": {"filename": "[redacted]"}});
            let expected = json!({"name": "c", "transport_socket": {"name": "tls", "typed_config": expected}});
            assert_eq!(shown(CLUSTER, &wire(CLUSTER, &cluster)), expected);
            for key in [json!("hunter2"), json!(["hunter2"]), json!({"hunter": {"x": "hunter2"}})] {
                let given = wire(
                    CLUSTER,
                    &json!({"name": "c", "transport_socket": {"name": "tls",
                    "typed_config": context(key, json!("hunter2"))}}),
                );
                assert!(!shown(CLUSTER, &given).to_string().contains("hunter2"));
            }
        }
    }

    #[test]
    fn an_any_in_a_typed_struct_is_what_its_type_says() {
        let secret = "envoy.extensions.transport_sockets.tls.v3.GenericSecret";
        let value = |inner: Value| {
            json!({"@type": "type.googleapis.com/xds.type.v3.TypedStruct", "type_url": format!("t/{CLUSTER}"),
                "value": {"name": "c", "transport_socket": {"name": "x", "typed_config": inner}}})
        };
        let typed =
            |kind: &str, key: &str, text: &str| json!({"@type": format!("t/{kind}"), key: {"inline_string": text}});
        let shown = |inner: Value| {
            let any = wire("google.protobuf.Any", &value(inner));
            shown("google.protobuf.Any", &any)
        };
        assert_eq!(shown(typed(secret, "secret", "a")), value(typed(secret, "secret", "[redacted]")));
        assert_eq!(shown(typed("mine.Own", "secret", "a")), value(typed("mine.Own", "secret", "a")));
        assert_eq!(shown(json!({"secret": "a"})), value(json!({"secret": "[redacted]"})));
        let nested = |text: &str| {
            json!({"@type": "t/udpa.type.v1.TypedStruct", "type_url": format!("t/{secret}"),
                "value": {"secret": {"inline_string": text}}})
        };
        assert_eq!(shown(nested("a")), value(nested("[redacted]")));
        let twice = |inner: Value| json!({"@type": "t/google.protobuf.Any", "value": inner});
        assert_eq!(shown(twice(nested("a"))), value(twice(nested("[redacted]"))));
    }

    #[test]
    fn what_cannot_be_read_is_not_shown() {
        let good =
            wire(SECRET, &json!({"name": "s", "tls_certificate": {"private_key": {"inline_string": "hunter2"}}}));
        let name = 3;
        let broken = [
            [&good[..], &[0xff]].concat(),
            [&good[..], &[0x12, 0xff, 0x01]].concat(),
            [&good[..name], &[0x0f], &good[name..]].concat(),
            good[..good.len() - 1].to_vec(),
        ];
        for bytes in broken {
            let any = redacted(any_of(SECRET, bytes.clone()));
            assert!(!has(&any.value, "hunter2"), "{bytes:?}");
            let expected = json!({"@type": "type.googleapis.com/google.protobuf.StringValue",
                "value": format!("[redacted: bytes that are no {SECRET}]")});
            assert_eq!(Descriptors.print(&any, Style::default()), expected);
            let outer = any_of("google.protobuf.Any", prost::Message::encode_to_vec(&any_of(SECRET, bytes)));
            assert!(
                shown("google.protobuf.Any", &prost::Message::encode_to_vec(&outer)).to_string().contains("redacted")
            );
        }
        let own = any_of("mine.Own", vec![0xff]);
        assert_eq!(redacted(own.clone()), own);
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |numbers: &[u32], inner: &[u8]| {
            let mut bytes = inner.to_vec();
            for number in numbers {
                let mut outer = Vec::new();
                put_bytes(&mut outer, *number, &bytes);
                bytes = outer;
            }
            bytes
        };
        // Value.struct_value, the value of an entry, Struct.fields
        let tree = nested(&[5, 2, 1].repeat(1_000), b"");
        let typed = |shape: &str| {
            let mut url = Vec::new();
            put_bytes(&mut url, 1, format!("t/{shape}").as_bytes());
            any_of("xds.type.v3.TypedStruct", [&url[..], &nested(&[2], &tree)].concat())
        };
        for any in [typed("google.protobuf.Struct"), typed(CLUSTER), any_of("google.protobuf.Struct", tree.clone())] {
            assert!(redacted(any).type_url.ends_with("StringValue"));
        }
    }

    #[test]
    fn what_a_secret_does_not_have_counts_as_secret() {
        let field = |number: u32, value: &[u8]| {
            let mut out = Vec::new();
            put_bytes(&mut out, number, value);
            out
        };
        let unknown = field(1000, b"hunter2");
        let certificate = field(2, &unknown);
        // the name as a number, and a certificate as one: not in their form
        for bytes in [&unknown[..], &certificate, &[0x08, 1], &[0x10, 1]] {
            assert_eq!(redacted(any_of(SECRET, bytes.to_vec())).value.len(), if bytes == certificate { 2 } else { 0 });
        }
        let context = field(1, &field(2, &unknown));
        assert!(!has(&redacted(any_of(UPSTREAM_TLS, context)).value, "hunter2"));
        let cluster = any_of(CLUSTER, unknown);
        assert_eq!(redacted(cluster.clone()), cluster);
    }
}
