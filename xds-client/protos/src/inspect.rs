//! What a message on the wire holds that its descriptor does not know, or calls deprecated.
//!
//! Typed messages drop unknown fields in silence; this is how a proxy can say that it did, or refuse
//! (`--reject-unknown-dynamic-fields`). It looks into every Any whose type is known.

use std::fmt::Write;

use crate::error::FieldPath;
use crate::node::MAX_DEPTH;
use crate::table::{Field, FieldType, Message, Special};
use crate::wire::{Raw, take_field};

/// What was noticed. At most [`MAX_FINDINGS`] of each, but one use of every field that is refused for its age.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Fields that the descriptor does not have; their last name is `#` and the number.
    pub unknown_fields: Vec<FieldPath>,
    /// Fields in use that the API calls deprecated.
    pub deprecated: Vec<FieldPath>,
}

/// A control plane that is years ahead could otherwise fill the memory with paths.
pub const MAX_FINDINGS: usize = 50;

/// A field on the way down; paths are made of these once there is something to say.
struct Step<'a> {
    up: Option<&'a Step<'a>>,
    /// The message that it stands in, and how many fields stand before it.
    message: &'a [u8],
    nth: usize,
    field: Field,
}

#[derive(Default)]
struct Walk {
    depth: usize,
    too_deep: bool,
    findings: Findings,
}

/// Walks a message; `None` when the bytes are none.
pub(crate) fn inspect(message: Message, bytes: &[u8]) -> Option<Findings> {
    let mut walk = Walk::default();
    walk.message(message, bytes, None)?;
    Some(walk.findings)
}

impl Walk {
    fn descend(&mut self) -> Option<()> {
        self.depth += 1;
        self.too_deep |= self.depth > MAX_DEPTH;
        (!self.too_deep).then_some(())
    }

    fn message(&mut self, message: Message, bytes: &[u8], up: Option<&Step<'_>>) -> Option<()> {
        match message.special() {
            // These hold whatever their sender likes.
            Special::Struct | Special::Value | Special::ListValue => return Some(()),
            Special::Any => return self.any(bytes, up),
            _ => {}
        }
        self.descend()?;
        let (mut rest, mut nth) = (bytes, 0);
        // What was said of this message already, so that it is said once; few, as findings are.
        let mut said = Vec::new();
        while !rest.is_empty() {
            let (number, raw) = take_field(&mut rest)?;
            match message.field_by_number(number) {
                Some(field) => self.field(message, &Step { up, message: bytes, nth, field }, raw, &mut said)?,
                None => self.unknown(message, number, up, &mut said),
            }
            nth += 1;
        }
        self.depth -= 1;
        Some(())
    }

    fn unknown(&mut self, message: Message, number: u32, up: Option<&Step<'_>>, said: &mut Vec<u32>) {
        if self.findings.unknown_fields.len() < MAX_FINDINGS && !said.contains(&number) {
            said.push(number);
            let mut path = up.map(Step::path).unwrap_or_default();
            let dot = if path.is_empty() { "" } else { "." };
            // Writing to a String does not fail.
            let _ = write!(path, "{dot}#{number}");
            self.findings.unknown_fields.push(FieldPath { path, name: format!("{}.#{number}", message.name()) });
        }
    }

    fn field(&mut self, message: Message, step: &Step<'_>, raw: Raw<'_>, said: &mut Vec<u32>) -> Option<()> {
        let field = step.field;
        if field.is_deprecated() && !said.contains(&field.number()) {
            said.push(field.number());
            let name = format!("{}.{}", message.name(), field.name());
            let known = || self.findings.deprecated.iter().any(|known| known.name == name);
            // one of each that is refused is always named, so that none hides behind fifty others
            if self.findings.deprecated.len() < MAX_FINDINGS || (field.is_disallowed_by_default() && !known()) {
                self.findings.deprecated.push(FieldPath { path: step.path(), name });
            }
        }
        let (FieldType::Message(inner), Raw::Bytes(bytes)) = (field.field_type(), raw) else { return Some(()) };
        match field.map_entry().and_then(|entry| entry.field_by_number(2)) {
            Some(value) => self.entry(value, bytes, step),
            None => self.message(inner, bytes, Some(step)),
        }
    }

    fn entry(&mut self, value: Field, mut entry: &[u8], step: &Step<'_>) -> Option<()> {
        let FieldType::Message(inner) = value.field_type() else { return Some(()) };
        while !entry.is_empty() {
            if let (2, Raw::Bytes(bytes)) = take_field(&mut entry)? {
                self.message(inner, bytes, Some(step))?;
            }
        }
        Some(())
    }

    fn any(&mut self, mut bytes: &[u8], up: Option<&Step<'_>>) -> Option<()> {
        let (mut name, mut packed) = ("", &[][..]);
        while !bytes.is_empty() {
            match take_field(&mut bytes)? {
                (1, Raw::Bytes(url)) => name = std::str::from_utf8(url).ok()?.rsplit('/').next().unwrap_or(""),
                (2, Raw::Bytes(value)) => packed = value,
                _ => {}
            }
        }
        let Some(message) = Message::find(name) else { return Some(()) };
        let depth = self.depth;
        // An Any in an Any adds no field to the path, but a level all the same.
        self.descend()?;
        // What turns out to be no such message is for those to report who unpack it; perhaps nobody does.
        let walked = self.message(message, packed, up);
        self.depth = depth;
        if self.too_deep { None } else { walked.or(Some(())) }
    }
}

impl Step<'_> {
    fn path(&self) -> String {
        let mut path = self.up.map(Step::path).unwrap_or_default();
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(self.field.name());
        // Writing to a String does not fail.
        let _ = if self.field.map_entry().is_some() {
            match self.key() {
                Some(Raw::Bytes(key)) => write!(path, "[{:?}]", String::from_utf8_lossy(key)),
                Some(Raw::Varint(key)) => write!(path, "[{key}]"),
                _ => write!(path, "[{}]", self.at()),
            }
        } else if self.field.is_repeated() {
            write!(path, "[{}]", self.at())
        } else {
            Ok(())
        };
        path
    }

    /// Its place in a list: how many of the fields before it are of that list.
    fn at(&self) -> usize {
        let mut rest = self.message;
        let numbers = (0..self.nth).map_while(|_| take_field(&mut rest)).map(|(number, _)| number);
        numbers.filter(|number| *number == self.field.number()).count()
    }

    /// The key, when this is an entry of a map.
    fn key(&self) -> Option<Raw<'_>> {
        let mut rest = self.message;
        for _ in 0..self.nth {
            take_field(&mut rest)?;
        }
        let (_, Raw::Bytes(mut entry)) = take_field(&mut rest)? else { return None };
        while !entry.is_empty() {
            if let (1, key) = take_field(&mut entry)? {
                return Some(key);
            }
        }
        None
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
        // What an Any holds may be broken without breaking what is around it.
        put_nested(&mut bytes, extensions.number(), |out| {
            put_nested(out, 2, |out| {
                put_bytes(out, 1, b"t/envoy.extensions.upstreams.http.v3.HttpProtocolOptions");
                put_bytes(out, 2, &[0xff]);
            });
        });
        assert_eq!(descriptors.inspect(CLUSTER, &bytes).as_ref(), Some(&findings));
        assert!(descriptors.violations(CLUSTER, &bytes).is_some());
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
