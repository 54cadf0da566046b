//! Taking secrets out of a message on the wire: what `Style::redact` does to its JSON.

use super::mask::{each_field, put};
use xds_protos::table::{FieldType, Message, Special, kind};
use xds_protos::wire::Raw;
use xds_protos::{Descriptors, MAX_DEPTH, TypedStruct};

const REDACTED: &[u8] = b"[redacted]";

/// The message without its secrets; `None` when it has none. What cannot be read is left out whole.
pub fn redact(message: Message, bytes: &[u8]) -> Option<Vec<u8>> {
    Walk { secret: false, depth: 0 }.message(message, bytes)
}

#[derive(Clone, Copy)]
struct Walk {
    /// Below a sensitive field.
    secret: bool,
    depth: usize,
}

impl Walk {
    /// `None`: nothing was changed.
    fn message(self, message: Message, bytes: &[u8]) -> Option<Vec<u8>> {
        if self.depth > MAX_DEPTH {
            return Some(Vec::new());
        }
        if message.special() == Special::Any {
            return self.any(bytes);
        }
        let mut out = Vec::new();
        let mut changed = false;
        each_field(bytes, |number, raw, whole| {
            let Some(field) = message.field_by_number(number) else {
                // below a secret, what nobody knows may be one
                changed |= self.secret;
                if !self.secret {
                    out.extend_from_slice(whole);
                }
                return;
            };
            let inside = Walk { secret: self.secret || field.is_sensitive(), depth: self.depth + 1 };
            let is_key = message.is_map_entry() && number == 1;
            match (field.field_type(), raw) {
                (FieldType::Message(inner), Raw::Bytes(value)) => match inside.message(inner, value) {
                    Some(value) => {
                        changed = true;
                        put(&mut out, number, &value);
                    }
                    None => out.extend_from_slice(whole),
                },
                _ if !inside.secret || is_key => out.extend_from_slice(whole),
                (FieldType::Scalar(kind::STRING | kind::BYTES), _) => {
                    changed = true;
                    put(&mut out, number, REDACTED);
                }
                _ => changed = true,
            }
        });
        changed.then_some(out)
    }

    fn any(self, bytes: &[u8]) -> Option<Vec<u8>> {
        let (mut url, mut value) = ("", &[][..]);
        each_field(bytes, |number, raw, _| match (number, raw) {
            (1, Raw::Bytes(text)) => url = std::str::from_utf8(text).unwrap_or(""),
            (2, Raw::Bytes(packed)) => value = packed,
            _ => {}
        });
        let name = url.rsplit('/').next().unwrap_or("");
        let inside = Walk { depth: self.depth + 1, ..self };
        let (url, value) = if TypedStruct::NAMES.contains(&name) {
            // only as the message that it describes can it be judged
            let any = xds_protos::pb::google::protobuf::Any { type_url: url.to_owned(), value: value.to_vec() };
            let inner = Descriptors.typed_struct_to_any(any).ok()?;
            let message = Message::find(inner.type_url.rsplit('/').next().unwrap_or(""))?;
            (inner.type_url, inside.message(message, &inner.value)?)
        } else {
            match Message::find(name) {
                Some(message) => (url.to_owned(), inside.message(message, value)?),
                None if self.secret => (url.to_owned(), Vec::new()),
                None => return None,
            }
        };
        let mut out = Vec::new();
        put(&mut out, 1, url.as_bytes());
        put(&mut out, 2, &value);
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xds_protos::{Format, ParseOptions, Style};

    #[test]
    fn it_leaves_what_the_printer_leaves() {
        let name = "envoy.config.listener.v3.Listener";
        let tls = r#"{"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {"tls_certificates": [{"certificate_chain": {"inline_string": "public"},
            "private_key": {"inline_string": "secret"}, "password": {"inline_bytes": "c2VjcmV0"}}]}}"#;
        let text = format!(
            r#"{{"name": "l", "filter_chains": [{{"transport_socket": {{"name": "tls", "typed_config": {tls}}}}}]}}"#
        );
        let wire = Descriptors.parse(name, &text, Format::Json, ParseOptions::default()).unwrap().bytes;
        let message = Message::find(name).unwrap();
        let redacted = redact(message, &wire).unwrap();
        assert!(!redacted.windows(6).any(|w| w == b"secret") && redacted.windows(6).any(|w| w == b"public"));
        let style = |redact| Style { redact, defaults: false };
        assert_eq!(Descriptors.to_json(name, &redacted, style(false)), Descriptors.to_json(name, &wire, style(true)));
        assert_eq!(redact(Message::find("envoy.config.cluster.v3.Cluster").unwrap(), b"\x0a\x01c"), None);
    }
}
