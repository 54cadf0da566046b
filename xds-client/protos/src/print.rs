//! The wire form of a message to JSON, as Envoy's admin pages print it.
//!
//! That is protobuf's JSON with the field names of the .proto files, in the order of the field numbers; fields at their
//! default are left out. An Any whose type is not known, or whose bytes are not that type, stays as it is, in base64:
//! one odd extension must not cost the whole page. With secrets taken out, that holds for types that are not known only
//! (see `redact`). Maps are sorted by key, so that equal configuration prints equally.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value};

use crate::node::MAX_DEPTH;
use crate::redact::redact;
use crate::table::{Enum, Field, FieldType, Message, Special, kind};
use crate::text;
use crate::wire::{self, Raw, take_fixed32, take_fixed64, take_varint};

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Replace secrets: strings and bytes below a field marked `udpa.annotations.sensitive` become `[redacted]`, their
    /// numbers and booleans are left out; so does what is said to be of a known type and cannot be read.
    pub redact: bool,
    /// Print scalars, lists and maps that are at their default too (`/server_info` does).
    pub defaults: bool,
}

#[derive(Clone, Copy)]
struct Printer {
    style: Style,
    depth: usize,
}

/// Prints a message of that type; `None` when the bytes are no message.
pub(crate) fn print(message: Message, bytes: &[u8], style: Style) -> Option<Value> {
    let printer = Printer { style, depth: 0 };
    match if style.redact { redact(message, bytes).ok()? } else { None } {
        Some(redacted) => printer.message(message, &redacted),
        None => printer.message(message, bytes),
    }
}

/// Prints a tree with one space per level, as protobuf does.
pub fn to_pretty(value: &Value) -> String {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    // Writing a tree with string keys into memory does not fail.
    let _ = serde::Serialize::serialize(value, &mut serializer);
    String::from_utf8(out).unwrap_or_default()
}

impl Printer {
    fn message(self, message: Message, bytes: &[u8]) -> Option<Value> {
        let this = Printer { depth: self.depth + 1, ..self };
        if this.depth > MAX_DEPTH {
            return None;
        }
        match message.special() {
            Special::Any => this.any(bytes),
            Special::Duration => this.moment(bytes, text::print_duration),
            Special::Timestamp => this.moment(bytes, text::print_timestamp),
            Special::FieldMask => {
                let paths = wire::fields(bytes)?.into_iter().filter_map(|field| match field {
                    (1, Raw::Bytes(path)) => Some(text::camel_case(&String::from_utf8_lossy(path))),
                    _ => None,
                });
                Some(paths.collect::<Vec<_>>().join(",").into())
            }
            Special::Wrapper => {
                let value = message.field_by_number(1)?;
                let fields = wire::fields(bytes)?;
                let raw = fields.iter().rev().find(|(number, _)| *number == 1);
                Some(raw.and_then(|(_, raw)| this.single(value, *raw)).unwrap_or_else(|| this.default_of(value)))
            }
            Special::Value => this.dynamic(bytes),
            Special::Struct => this.structure(bytes),
            Special::ListValue => {
                let mut items = Vec::new();
                for (number, raw) in wire::fields(bytes)? {
                    if let (1, Raw::Bytes(item)) = (number, raw) {
                        items.push(this.dynamic(item)?);
                    }
                }
                Some(Value::Array(items))
            }
            Special::None | Special::Empty => this.object(message, bytes, Map::new()).map(Value::Object),
        }
    }

    /// Adds the fields of a message to an object.
    fn object(self, message: Message, bytes: &[u8], mut out: Map<String, Value>) -> Option<Map<String, Value>> {
        let mut found = wire::fields(bytes)?;
        // Of the members of a oneof the last on the wire holds.
        let mut members: Vec<Option<u32>> = vec![None; message.oneofs().len()];
        for (number, _) in &found {
            if let Some(slot) =
                message.field_by_number(*number).and_then(Field::oneof).and_then(|at| members.get_mut(at))
            {
                *slot = Some(*number);
            }
        }
        found.sort_by_key(|(number, _)| *number);
        let mut groups = found.chunk_by(|a, b| a.0 == b.0).peekable();
        let mut known = message.fields().peekable();
        while let Some(field) = known.next_if(|_| self.style.defaults || groups.peek().is_some()) {
            while groups.next_if(|group| group[0].0 < field.number()).is_some() {}
            let group = groups.next_if(|group| group[0].0 == field.number());
            let held = field.oneof().and_then(|at| members.get(at)).is_none_or(|last| *last == Some(field.number()));
            let printed = match group.filter(|_| held) {
                Some(group) => self.field(field, group)?,
                None => None,
            };
            let default = || (self.style.defaults && !field.has_presence()).then(|| self.default_of(field));
            if let Some(printed) = printed.or_else(default) {
                out.insert(field.name().to_owned(), printed);
            }
        }
        Some(out)
    }

    /// All that the wire holds of one field. The outer `None`: not a message after all; the inner: nothing to print.
    fn field(self, field: Field, group: &[(u32, Raw<'_>)]) -> Option<Option<Value>> {
        if let Some(entry) = field.map_entry() {
            let mut sorted = BTreeMap::new();
            for (_, raw) in group {
                let Raw::Bytes(bytes) = raw else { continue };
                let (key, value) = self.entry(entry, bytes)?;
                sorted.insert(key, value);
            }
            return Some(Some(Value::Object(sorted.into_iter().collect())));
        }
        if field.is_repeated() {
            let mut items = Vec::new();
            for (_, raw) in group {
                match (field.kind(), raw) {
                    (kind::STRING | kind::BYTES, _) => items.extend(self.single(field, *raw)),
                    (kind::MESSAGE, Raw::Bytes(_)) => items.push(self.single(field, *raw)?),
                    (kind::MESSAGE, _) => {}
                    (_, Raw::Bytes(packed)) => self.packed(field, packed, &mut items)?,
                    _ => items.extend(self.single(field, *raw)),
                }
            }
            return Some((!items.is_empty()).then_some(Value::Array(items)));
        }
        if let (FieldType::Message(message), [_, _, ..]) = (field.field_type(), group) {
            // Several pieces of one message are merged, which is what their concatenation means.
            let mut whole = Vec::new();
            for (_, raw) in group {
                if let Raw::Bytes(piece) = raw {
                    whole.extend_from_slice(piece);
                }
            }
            return Some(Some(self.message(message, &whole)?));
        }
        let Some((_, raw)) = group.last() else { return Some(None) };
        if !field.has_presence() && matches!(raw, Raw::Varint(0) | Raw::Fixed32(0) | Raw::Fixed64(0) | Raw::Bytes([])) {
            return Some(None);
        }
        match (field.field_type(), raw) {
            (FieldType::Message(message), Raw::Bytes(bytes)) => Some(Some(self.message(message, bytes)?)),
            _ => Some(self.single(field, *raw)),
        }
    }

    fn packed(self, field: Field, mut packed: &[u8], items: &mut Vec<Value>) -> Option<()> {
        while !packed.is_empty() {
            let raw = match field.kind() {
                kind::DOUBLE | kind::FIXED64 | kind::SFIXED64 => Raw::Fixed64(take_fixed64(&mut packed)?),
                kind::FLOAT | kind::FIXED32 | kind::SFIXED32 => Raw::Fixed32(take_fixed32(&mut packed)?),
                _ => Raw::Varint(take_varint(&mut packed)?),
            };
            items.extend(self.single(field, raw));
        }
        Some(())
    }

    fn entry(self, entry: Message, bytes: &[u8]) -> Option<(String, Value)> {
        let (key_field, value_field) = (entry.field_by_number(1)?, entry.field_by_number(2)?);
        let fields = wire::fields(bytes)?;
        let last = |wanted| fields.iter().rev().find(|(number, _)| *number == wanted).map(|(_, raw)| *raw);
        let key =
            match last(1).and_then(|raw| self.single(key_field, raw)).unwrap_or_else(|| self.default_of(key_field)) {
                Value::String(key) => key,
                other => other.to_string(),
            };
        let value = match last(2) {
            Some(raw) => self.single(value_field, raw),
            None => None,
        };
        Some((key, value.unwrap_or_else(|| self.default_of(value_field))))
    }

    /// One value. `None` when the wire type does not fit.
    fn single(self, field: Field, raw: Raw<'_>) -> Option<Value> {
        let zigzag = |value: u64| (value >> 1) as i64 ^ -((value & 1) as i64);
        Some(match (field.field_type(), raw) {
            (FieldType::Message(message), Raw::Bytes(bytes)) => self.message(message, bytes)?,
            (FieldType::Enum(values), Raw::Varint(value)) => enum_value(values, value as i32),
            (FieldType::Scalar(kind), Raw::Varint(value)) => match kind {
                kind::BOOL => Value::Bool(value != 0),
                kind::INT32 => (value as i32).into(),
                kind::UINT32 => (value as u32).into(),
                kind::SINT32 => (zigzag(value) as i32).into(),
                kind::INT64 => (value as i64).to_string().into(),
                kind::UINT64 => value.to_string().into(),
                kind::SINT64 => zigzag(value).to_string().into(),
                _ => return None,
            },
            (FieldType::Scalar(kind), Raw::Fixed32(value)) => match kind {
                kind::FIXED32 => value.into(),
                kind::SFIXED32 => (value as i32).into(),
                kind::FLOAT => float(shortest(f32::from_bits(value))),
                _ => return None,
            },
            (FieldType::Scalar(kind), Raw::Fixed64(value)) => match kind {
                kind::FIXED64 => value.to_string().into(),
                kind::SFIXED64 => (value as i64).to_string().into(),
                kind::DOUBLE => float(f64::from_bits(value)),
                _ => return None,
            },
            (FieldType::Scalar(kind::STRING), Raw::Bytes(value)) => String::from_utf8_lossy(value).into(),
            (FieldType::Scalar(kind::BYTES), Raw::Bytes(value)) => text::base64(value).into(),
            _ => return None,
        })
    }

    fn default_of(self, field: Field) -> Value {
        if field.is_repeated() {
            return if field.map_entry().is_some() { Value::Object(Map::new()) } else { Value::Array(Vec::new()) };
        }
        match field.field_type() {
            FieldType::Message(message) => self.message(message, &[]).unwrap_or(Value::Null),
            FieldType::Enum(values) => enum_value(values, 0),
            FieldType::Scalar(kind::BOOL) => false.into(),
            FieldType::Scalar(kind::STRING | kind::BYTES) => "".into(),
            FieldType::Scalar(kind::INT64 | kind::UINT64 | kind::SINT64 | kind::FIXED64 | kind::SFIXED64) => "0".into(),
            FieldType::Scalar(_) => 0.into(),
        }
    }

    fn moment(self, bytes: &[u8], print: fn(text::Moment) -> String) -> Option<Value> {
        let (mut seconds, mut nanos) = (0, 0);
        for (number, raw) in wire::fields(bytes)? {
            match (number, raw) {
                (1, Raw::Varint(value)) => seconds = value as i64,
                (2, Raw::Varint(value)) => nanos = value as i32,
                _ => {}
            }
        }
        Some(print((seconds, nanos)).into())
    }

    fn any(self, bytes: &[u8]) -> Option<Value> {
        let (mut url, mut packed) = (String::new(), &[][..]);
        for (number, raw) in wire::fields(bytes)? {
            match (number, raw) {
                (1, Raw::Bytes(value)) => url = String::from_utf8_lossy(value).into_owned(),
                (2, Raw::Bytes(value)) => packed = value,
                _ => {}
            }
        }
        let mut out = Map::new();
        if url.is_empty() && packed.is_empty() {
            return Some(Value::Object(out));
        }
        let message = Message::find(url.rsplit('/').next().unwrap_or(""));
        out.insert("@type".into(), url.into());
        let expanded = message.and_then(|message| match message.special() {
            Special::None | Special::Empty => self.object(message, packed, out.clone()),
            _ => {
                let mut out = out.clone();
                out.insert("value".into(), self.message(message, packed)?);
                Some(out)
            }
        });
        Some(Value::Object(expanded.unwrap_or_else(|| {
            out.insert("value".into(), text::base64(packed).into());
            out
        })))
    }

    fn dynamic(self, bytes: &[u8]) -> Option<Value> {
        let this = Printer { depth: self.depth + 1, ..self };
        if this.depth > 3 * MAX_DEPTH {
            return None;
        }
        let mut value = Value::Null;
        for (number, raw) in wire::fields(bytes)? {
            value = match (number, raw) {
                (2, Raw::Fixed64(bits)) => float(f64::from_bits(bits)),
                (3, Raw::Bytes(text)) => String::from_utf8_lossy(text).into(),
                (4, Raw::Varint(value)) => Value::Bool(value != 0),
                (5, Raw::Bytes(members)) => this.structure(members)?,
                (6, Raw::Bytes(items)) => {
                    let items = wire::fields(items)?;
                    let items =
                        items.iter().filter_map(|(_, raw)| if let Raw::Bytes(item) = raw { Some(item) } else { None });
                    Value::Array(items.map(|item| this.dynamic(item)).collect::<Option<_>>()?)
                }
                (1, _) => Value::Null,
                _ => value,
            };
        }
        Some(value)
    }

    fn structure(self, bytes: &[u8]) -> Option<Value> {
        let mut members = BTreeMap::new();
        for (number, raw) in wire::fields(bytes)? {
            let (1, Raw::Bytes(entry)) = (number, raw) else { continue };
            let (mut key, mut value) = (String::new(), Value::Null);
            for part in wire::fields(entry)? {
                match part {
                    (1, Raw::Bytes(name)) => key = String::from_utf8_lossy(name).into_owned(),
                    (2, Raw::Bytes(bytes)) => value = self.dynamic(bytes)?,
                    _ => {}
                }
            }
            members.insert(key, value);
        }
        Some(Value::Object(members.into_iter().collect()))
    }
}

fn enum_value(values: Enum, number: i32) -> Value {
    if values.name() == "google.protobuf.NullValue" {
        return Value::Null;
    }
    values.value_name(number).map_or_else(|| number.into(), Into::into)
}

/// The double that prints as the float does.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// A number without a needless `.0`; protobuf's names for what JSON has no number for.
pub(crate) fn float(value: f64) -> Value {
    /// Whole numbers up to here are exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.is_nan() {
        "NaN".into()
    } else if value.is_infinite() {
        if value > 0.0 { "Infinity".into() } else { "-Infinity".into() }
    } else if value.fract() == 0.0 && value.abs() <= EXACT {
        (value as i64).into()
    } else {
        Number::from_f64(value).map_or(Value::Null, Value::Number)
    }
}
