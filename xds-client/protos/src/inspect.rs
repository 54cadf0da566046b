//! What a message on the wire holds that its descriptor does not know, or calls deprecated.
//!
//! Typed messages drop unknown fields in silence; this is how a proxy can say that it did, or refuse
//! (`--reject-unknown-dynamic-fields`). It looks into every Any whose type is known.

use std::fmt::Write;

use crate::error::FieldPath;
use crate::node::MAX_DEPTH;
use crate::table::{Field, FieldType, Message, Special};
use crate::wire::{self, Raw};

/// What was noticed. At most [`MAX_FINDINGS`] of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Fields that the descriptor does not have; their last name is `#` and the number.
    pub unknown_fields: Vec<FieldPath>,
    /// Fields in use that the API calls deprecated.
    pub deprecated: Vec<FieldPath>,
}

/// A control plane that is years ahead could otherwise fill the memory with paths.
pub const MAX_FINDINGS: usize = 50;

#[derive(Default)]
struct Walk {
    path: String,
    depth: usize,
    findings: Findings,
}

/// Walks a message; `None` when the bytes are none.
pub(crate) fn inspect(message: Message, bytes: &[u8]) -> Option<Findings> {
    let mut walk = Walk::default();
    walk.message(message, bytes)?;
    Some(walk.findings)
}

impl Walk {
    fn message(&mut self, message: Message, bytes: &[u8]) -> Option<()> {
        match message.special() {
            // These hold whatever their sender likes.
            Special::Struct | Special::Value | Special::ListValue => return Some(()),
            Special::Any => return self.any(bytes),
            _ => {}
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let mut seen: Vec<(u32, usize)> = Vec::new();
        for (number, raw) in wire::fields(bytes)? {
            let at = match seen.iter_mut().find(|(known, _)| *known == number) {
                Some((_, count)) => {
                    *count += 1;
                    *count
                }
                None => {
                    seen.push((number, 0));
                    0
                }
            };
            self.field(message, number, at, raw)?;
        }
        self.depth -= 1;
        Some(())
    }

    fn field(&mut self, message: Message, number: u32, at: usize, raw: Raw<'_>) -> Option<()> {
        let Some(field) = message.field_by_number(number) else {
            if at == 0 && self.findings.unknown_fields.len() < MAX_FINDINGS {
                let dot = if self.path.is_empty() { "" } else { "." };
                let path = format!("{}{dot}#{number}", self.path);
                self.findings.unknown_fields.push(FieldPath { path, name: format!("{}.#{number}", message.name()) });
            }
            return Some(());
        };
        let inner = match (field.field_type(), raw) {
            (FieldType::Message(inner), Raw::Bytes(bytes)) => Some((inner, bytes)),
            _ => None,
        };
        let deprecated = field.is_deprecated() && at == 0;
        if inner.is_none() && !deprecated {
            return Some(());
        }
        let length = self.path.len();
        self.step(field, at, inner);
        if deprecated && self.findings.deprecated.len() < MAX_FINDINGS {
            let name = format!("{}.{}", message.name(), field.name());
            self.findings.deprecated.push(FieldPath { path: self.path.clone(), name });
        }
        if let Some((inner, bytes)) = inner {
            match field.map_entry().and_then(|entry| entry.field_by_number(2)) {
                Some(value) => self.entry(value, bytes)?,
                None => self.message(inner, bytes)?,
            }
        }
        self.path.truncate(length);
        Some(())
    }

    /// Goes one step down the path.
    fn step(&mut self, field: Field, at: usize, inner: Option<(Message, &[u8])>) {
        if !self.path.is_empty() {
            self.path.push('.');
        }
        self.path.push_str(field.name());
        // Writing to a String does not fail.
        let _ = match inner {
            Some((_, entry)) if field.map_entry().is_some() => {
                let fields = wire::fields(entry).unwrap_or_default();
                match fields.iter().find(|(number, _)| *number == 1) {
                    Some((_, Raw::Bytes(key))) => write!(self.path, "[{:?}]", String::from_utf8_lossy(key)),
                    Some((_, Raw::Varint(key))) => write!(self.path, "[{key}]"),
                    _ => write!(self.path, "[{at}]"),
                }
            }
            _ if field.is_repeated() => write!(self.path, "[{at}]"),
            _ => Ok(()),
        };
    }

    fn entry(&mut self, value: Field, entry: &[u8]) -> Option<()> {
        let FieldType::Message(inner) = value.field_type() else { return Some(()) };
        for (number, raw) in wire::fields(entry)? {
            if let (2, Raw::Bytes(bytes)) = (number, raw) {
                self.message(inner, bytes)?;
            }
        }
        Some(())
    }

    fn any(&mut self, bytes: &[u8]) -> Option<()> {
        let (mut name, mut packed) = ("", &[][..]);
        for (number, raw) in wire::fields(bytes)? {
            match (number, raw) {
                (1, Raw::Bytes(url)) => name = std::str::from_utf8(url).ok()?.rsplit('/').next().unwrap_or(""),
                (2, Raw::Bytes(value)) => packed = value,
                _ => {}
            }
        }
        match Message::find(name) {
            Some(message) => {
                // An Any in an Any adds no field to the path, but a level all the same.
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return None;
                }
                self.message(message, packed)?;
                self.depth -= 1;
                Some(())
            }
            None => Some(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{put_bytes, put_nested, put_tag, put_varint};
    use crate::{Descriptors, Format, ParseOptions};

    const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";

    #[test]
    fn unknown_and_deprecated_fields_are_found_through_any_and_maps() {
        let text = "name: c\nhttp2_protocol_options: {}\nhealth_checks: [{}, {timeout: 1s}]\n";
        let descriptors = Descriptors::load();
        let mut bytes = descriptors.parse(CLUSTER, text, Format::Yaml, ParseOptions::default()).unwrap().bytes;
        let extensions = Message::find(CLUSTER).unwrap().field_by_name("typed_extension_protocol_options").unwrap();
        put_nested(&mut bytes, extensions.number(), |out| {
            put_bytes(out, 1, b"x.y");
            put_nested(out, 2, |out| {
                put_bytes(out, 1, b"t/envoy.extensions.upstreams.http.v3.HttpProtocolOptions");
                put_nested(out, 2, |out| {
                    put_tag(out, 9_000, 0);
                    put_varint(out, 1);
                });
            });
        });
        put_bytes(&mut bytes, 8_000, b"later");
        let findings = descriptors.inspect(CLUSTER, &bytes).unwrap();
        let paths = |found: &[FieldPath]| found.iter().map(|f| f.path.clone()).collect::<Vec<_>>();
        assert_eq!(paths(&findings.unknown_fields), ["typed_extension_protocol_options[\"x.y\"].#9000", "#8000"]);
        assert_eq!(findings.unknown_fields[1].name, "envoy.config.cluster.v3.Cluster.#8000");
        assert_eq!(paths(&findings.deprecated), ["http2_protocol_options"]);
        assert_eq!(descriptors.inspect(CLUSTER, &[0xff]), None);
    }

    #[test]
    fn nesting_is_bounded() {
        let url = b"t/google.protobuf.Any";
        let mut bytes = Vec::new();
        for _ in 0..1_000 {
            let mut outer = Vec::new();
            put_bytes(&mut outer, 1, url);
            put_bytes(&mut outer, 2, &bytes);
            bytes = outer;
        }
        assert_eq!(Descriptors::load().inspect("google.protobuf.Any", &bytes), None);
    }
}
