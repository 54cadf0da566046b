//! Numbers, booleans, strings and bytes: from a node or a map key, and onto the wire.

use crate::node::{Node, Value};
use crate::table::{Field, kind};
use crate::text;
use crate::wire::{Raw, put_bytes, put_tag, put_varint, take_field};

/// A scalar in the form in which it goes onto the wire.
pub(crate) enum Scalar<'a> {
    Varint(u64),
    Fixed32(u32),
    Fixed64(u64),
    Bytes(std::borrow::Cow<'a, [u8]>),
}

/// A whole number: also `1.0`, `1e3` and their quoted forms.
pub(crate) fn whole(node: &Node) -> Option<i128> {
    match &node.value {
        Value::Int(value) => Some(i128::from(*value)),
        Value::Uint(value) => Some(i128::from(*value)),
        Value::Float(value) => whole_float(*value),
        Value::Text(value) => whole_text(value),
        _ => None,
    }
}

fn whole_float(value: f64) -> Option<i128> {
    /// Beyond every 64-bit field, within what an i128 holds exactly.
    const LIMIT: f64 = 1e20;
    (value.fract() == 0.0 && value.abs() < LIMIT).then_some(value as i128)
}

fn whole_text(value: &str) -> Option<i128> {
    if value.contains(|c: char| c.is_ascii_whitespace()) {
        return None;
    }
    value.parse().ok().or_else(|| text::parse_float(value).and_then(whole_float))
}

fn float(node: &Node) -> Option<f64> {
    match &node.value {
        Value::Int(value) => Some(*value as f64),
        Value::Uint(value) => Some(*value as f64),
        Value::Float(value) => Some(*value),
        Value::Text(value) => text::parse_float(value),
        _ => None,
    }
}

/// The words that protobuf's legacy parser takes for a quoted boolean.
fn boolean(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "t" | "yes" | "y" | "1" => Some(true),
        "false" | "f" | "no" | "n" | "0" => Some(false),
        _ => None,
    }
}

fn integer<'a>(kind: u8, value: i128) -> Option<Scalar<'a>> {
    let zigzag = |value: i64| ((value << 1) ^ (value >> 63)) as u64;
    Some(match kind {
        kind::INT32 | kind::ENUM => Scalar::Varint(i64::from(i32::try_from(value).ok()?) as u64),
        kind::INT64 => Scalar::Varint(i64::try_from(value).ok()? as u64),
        kind::UINT32 => Scalar::Varint(u64::from(u32::try_from(value).ok()?)),
        kind::UINT64 => Scalar::Varint(u64::try_from(value).ok()?),
        kind::SINT32 => Scalar::Varint(zigzag(i64::from(i32::try_from(value).ok()?))),
        kind::SINT64 => Scalar::Varint(zigzag(i64::try_from(value).ok()?)),
        kind::FIXED32 => Scalar::Fixed32(u32::try_from(value).ok()?),
        kind::SFIXED32 => Scalar::Fixed32(i32::try_from(value).ok()? as u32),
        kind::FIXED64 => Scalar::Fixed64(u64::try_from(value).ok()?),
        kind::SFIXED64 => Scalar::Fixed64(i64::try_from(value).ok()? as u64),
        _ => return None,
    })
}

/// The scalar of that kind that a node holds, if it does.
pub(crate) fn from_node(kind: u8, node: &Node) -> Option<Scalar<'_>> {
    match kind {
        kind::STRING => match &node.value {
            Value::Text(value) => Some(Scalar::Bytes(value.as_bytes().into())),
            _ => None,
        },
        kind::BYTES => match &node.value {
            Value::Text(value) => text::parse_base64(value).map(|bytes| Scalar::Bytes(bytes.into())),
            _ => None,
        },
        kind::BOOL => match &node.value {
            Value::Bool(value) => Some(Scalar::Varint(u64::from(*value))),
            Value::Text(value) => boolean(value).map(|value| Scalar::Varint(u64::from(value))),
            _ => None,
        },
        kind::DOUBLE => float(node).map(|value| Scalar::Fixed64(value.to_bits())),
        kind::FLOAT => {
            let value = float(node)?;
            let narrow = value as f32;
            (narrow.is_finite() || !value.is_finite()).then_some(Scalar::Fixed32(narrow.to_bits()))
        }
        _ => integer(kind, whole(node)?),
    }
}

/// The scalar of that kind that the name of a map entry spells, if it does.
pub(crate) fn from_text(kind: u8, name: &str) -> Option<Scalar<'_>> {
    match kind {
        kind::STRING => Some(Scalar::Bytes(name.as_bytes().into())),
        kind::BOOL => boolean(name).map(|value| Scalar::Varint(u64::from(value))),
        _ => integer(kind, whole_text(name)?),
    }
}

/// Appends a scalar with its tag.
pub(crate) fn put(number: u32, kind: u8, value: &Scalar<'_>, out: &mut Vec<u8>) {
    debug_assert!(kind != kind::MESSAGE && kind != kind::GROUP);
    match value {
        Scalar::Varint(value) => {
            put_tag(out, number, 0);
            put_varint(out, *value);
        }
        Scalar::Fixed64(value) => {
            put_tag(out, number, 1);
            out.extend_from_slice(&value.to_le_bytes());
        }
        Scalar::Bytes(value) => put_bytes(out, number, value),
        Scalar::Fixed32(value) => {
            put_tag(out, number, 5);
            out.extend_from_slice(&value.to_le_bytes());
        }
    }
}

/// Appends the default of a scalar field or enum.
pub(crate) fn put_default(field: Field, out: &mut Vec<u8>) {
    let value = match field.kind() {
        kind::STRING | kind::BYTES => Scalar::Bytes((&[]).into()),
        kind::DOUBLE | kind::FIXED64 | kind::SFIXED64 => Scalar::Fixed64(0),
        kind::FLOAT | kind::FIXED32 | kind::SFIXED32 => Scalar::Fixed32(0),
        _ => Scalar::Varint(0),
    };
    put(field.number(), field.kind(), &value, out);
}

/// Whether a field as it was put is the default of its kind.
pub(crate) fn is_default(mut field: &[u8]) -> bool {
    matches!(take_field(&mut field), Some((_, Raw::Varint(0) | Raw::Fixed64(0) | Raw::Fixed32(0) | Raw::Bytes([]))))
}

/// What an error says is expected of that kind.
pub(crate) fn expectation(kind: u8) -> String {
    match kind {
        kind::STRING => "a string (numbers and booleans must be quoted)".into(),
        kind::BYTES => "a string in base64".into(),
        kind::BOOL => "true or false".into(),
        kind::DOUBLE | kind::FLOAT => "a number".into(),
        kind::UINT32 | kind::FIXED32 => format!("a whole number from 0 to {}", u32::MAX),
        kind::UINT64 | kind::FIXED64 => format!("a whole number from 0 to {}", u64::MAX),
        kind::INT64 | kind::SINT64 | kind::SFIXED64 => format!("a whole number from {} to {}", i64::MIN, i64::MAX),
        _ => format!("a whole number from {} to {}", i32::MIN, i32::MAX),
    }
}
