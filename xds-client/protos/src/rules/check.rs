//! One scalar and its rules: read off the wire by its kind, judged, and worded.

use crate::pb::google::protobuf::{Duration, Timestamp};
use crate::pb::validate::field_rules::Type;
use crate::pb::validate::{EnumRules, KnownRegex, StringRules, bytes_rules, string_rules::WellKnown};
use crate::table::{FieldType, kind};
use crate::wire::Raw;

use super::bounds::{Bounds, Edge, duration, list};
use super::text::{Form, Length, Pattern, Text};

/// A scalar, whatever its width.
#[derive(Clone, Copy)]
pub(super) enum Value<'a> {
    Whole(i128),
    Float(f64),
    Bytes(&'a [u8]),
}

impl Value<'_> {
    /// The scalar of that kind; `None` when the wire type does not fit.
    pub(super) fn read<'a>(kind: u8, raw: Raw<'a>) -> Option<Value<'a>> {
        let zigzag = |value: u64| (value >> 1) as i64 ^ -((value & 1) as i64);
        Some(match (kind, raw) {
            (kind::STRING | kind::BYTES, Raw::Bytes(bytes)) => Value::Bytes(bytes),
            (kind::BOOL, Raw::Varint(value)) => Value::Whole(i128::from(value != 0)),
            (kind::INT32 | kind::ENUM, Raw::Varint(value)) => Value::Whole((value as i32).into()),
            (kind::INT64, Raw::Varint(value)) => Value::Whole((value as i64).into()),
            (kind::UINT32, Raw::Varint(value)) => Value::Whole((value as u32).into()),
            (kind::UINT64, Raw::Varint(value)) => Value::Whole(value.into()),
            (kind::SINT32, Raw::Varint(value)) => Value::Whole((zigzag(value) as i32).into()),
            (kind::SINT64, Raw::Varint(value)) => Value::Whole(zigzag(value).into()),
            (kind::FIXED32, Raw::Fixed32(value)) => Value::Whole(value.into()),
            (kind::SFIXED32, Raw::Fixed32(value)) => Value::Whole((value as i32).into()),
            (kind::FLOAT, Raw::Fixed32(value)) => Value::Float(f32::from_bits(value).into()),
            (kind::FIXED64, Raw::Fixed64(value)) => Value::Whole(value.into()),
            (kind::SFIXED64, Raw::Fixed64(value)) => Value::Whole((value as i64).into()),
            (kind::DOUBLE, Raw::Fixed64(value)) => Value::Float(f64::from_bits(value)),
            _ => return None,
        })
    }

    /// What a field of that kind holds when it is absent.
    pub(super) fn default(kind: u8) -> Value<'static> {
        match kind {
            kind::STRING | kind::BYTES => Value::Bytes(b""),
            kind::FLOAT | kind::DOUBLE => Value::Float(0.0),
            _ => Value::Whole(0),
        }
    }
}

/// The rules of one scalar.
pub(super) enum Check {
    Whole(Box<Bounds<i128>>),
    Float(Box<Bounds<f64>>),
    Bool(bool),
    Text(Box<Text>),
    Enum(Box<EnumCheck>),
}

/// The rules of an enum.
pub(super) struct EnumCheck {
    constant: Option<(i128, String)>,
    allowed: Vec<(i128, String)>,
    banned: Vec<(i128, String)>,
    /// The values there are, sorted, when it must be one of them.
    defined: Option<Box<[i128]>>,
}

impl Check {
    /// What is wrong with the value.
    pub(super) fn fault(&self, value: Value<'_>) -> Option<String> {
        match (self, value) {
            (Check::Whole(bounds), Value::Whole(value)) if value != 0 || !bounds.ignore_empty => bounds.fault(&value),
            (Check::Float(bounds), Value::Float(value)) if value != 0.0 || !bounds.ignore_empty => bounds.fault(&value),
            (Check::Bool(constant), Value::Whole(value)) => {
                ((value != 0) != *constant).then(|| format!("value must equal {constant}"))
            }
            (Check::Text(text), Value::Bytes(value)) => text.fault(value),
            (Check::Enum(check), Value::Whole(value)) => check.fault(value),
            _ => None,
        }
    }

    /// Makes the check of a scalar field, when rules of its type are stated.
    pub(super) fn compile(rules: &Type, of: FieldType) -> Option<Check> {
        macro_rules! numbers {
            ($rules:expr, $variant:ident, $convert:expr, $show:expr) => {{
                let (rules, convert) = ($rules, $convert);
                Check::$variant(Box::new(Bounds {
                    constant: rules.r#const.map(convert),
                    low: Edge::either(rules.gt.map(convert), rules.gte.map(convert)),
                    high: Edge::either(rules.lt.map(convert), rules.lte.map(convert)),
                    allowed: rules.r#in.iter().copied().map(convert).collect(),
                    banned: rules.not_in.iter().copied().map(convert).collect(),
                    ignore_empty: rules.ignore_empty(),
                    show: $show,
                }))
            }};
            ($rules:expr) => {
                numbers!($rules, Whole, i128::from, i128::to_string)
            };
        }
        Some(match rules {
            Type::Float(rules) => numbers!(rules, Float, f64::from, |value| (*value as f32).to_string()),
            Type::Double(rules) => numbers!(rules, Float, f64::from, f64::to_string),
            Type::Int32(rules) => numbers!(rules),
            Type::Int64(rules) => numbers!(rules),
            Type::Uint32(rules) => numbers!(rules),
            Type::Uint64(rules) => numbers!(rules),
            Type::Sint32(rules) => numbers!(rules),
            Type::Sint64(rules) => numbers!(rules),
            Type::Fixed32(rules) => numbers!(rules),
            Type::Fixed64(rules) => numbers!(rules),
            Type::Sfixed32(rules) => numbers!(rules),
            Type::Sfixed64(rules) => numbers!(rules),
            Type::Bool(rules) => Check::Bool(rules.r#const?),
            Type::String(rules) => Check::Text(Box::new(string(rules))),
            Type::Bytes(rules) => Check::Text(Box::new(Text {
                constant: rules.r#const.clone(),
                allowed: rules.r#in.clone(),
                banned: rules.not_in.clone(),
                bytes: length(rules.len, rules.min_len, rules.max_len),
                prefix: rules.prefix.clone(),
                suffix: rules.suffix.clone(),
                contains: rules.contains.clone(),
                pattern: rules.pattern.as_deref().map(Pattern::new),
                form: rules.well_known.as_ref().and_then(|known| match known {
                    bytes_rules::WellKnown::Ip(true) => Some(Form::PackedIp(None)),
                    bytes_rules::WellKnown::Ipv4(true) => Some(Form::PackedIp(Some(4))),
                    bytes_rules::WellKnown::Ipv6(true) => Some(Form::PackedIp(Some(16))),
                    _ => None,
                }),
                ignore_empty: rules.ignore_empty(),
                binary: true,
                ..Text::default()
            })),
            Type::Enum(rules) => Check::Enum(Box::new(EnumCheck::new(rules, of))),
            Type::Repeated(_) | Type::Map(_) | Type::Any(_) | Type::Duration(_) | Type::Timestamp(_) => return None,
        })
    }
}

fn length(exact: Option<u64>, min: Option<u64>, max: Option<u64>) -> Length {
    Length { min: exact.or(min), max: exact.or(max) }
}

fn string(rules: &StringRules) -> Text {
    let bytes = |text: &String| text.clone().into_bytes();
    let mut text = Text {
        constant: rules.r#const.as_ref().map(bytes),
        allowed: rules.r#in.iter().map(bytes).collect(),
        banned: rules.not_in.iter().map(bytes).collect(),
        characters: length(rules.len, rules.min_len, rules.max_len),
        bytes: length(rules.len_bytes, rules.min_bytes, rules.max_bytes),
        prefix: rules.prefix.as_ref().map(bytes),
        suffix: rules.suffix.as_ref().map(bytes),
        contains: rules.contains.as_ref().map(bytes),
        not_contains: rules.not_contains.as_ref().map(bytes),
        pattern: rules.pattern.as_deref().map(Pattern::new),
        ignore_empty: rules.ignore_empty(),
        ..Text::default()
    };
    let strict = rules.strict.unwrap_or(true);
    text.form = match rules.well_known {
        Some(WellKnown::Email(true)) => Some(Form::Email),
        Some(WellKnown::Hostname(true)) => Some(Form::Hostname),
        Some(WellKnown::Ip(true)) => Some(Form::Ip),
        Some(WellKnown::Ipv4(true)) => Some(Form::Ipv4),
        Some(WellKnown::Ipv6(true)) => Some(Form::Ipv6),
        Some(WellKnown::Uri(true)) => Some(Form::Uri),
        Some(WellKnown::UriRef(true)) => Some(Form::UriRef),
        Some(WellKnown::Address(true)) => Some(Form::Address),
        Some(WellKnown::Uuid(true)) => Some(Form::Uuid),
        Some(WellKnown::WellKnownRegex(known)) if known == KnownRegex::HttpHeaderName as i32 => {
            text.pattern = Some(Pattern::header(true, strict));
            None
        }
        Some(WellKnown::WellKnownRegex(known)) if known == KnownRegex::HttpHeaderValue as i32 => {
            text.pattern = Some(Pattern::header(false, strict));
            None
        }
        _ => None,
    };
    text
}

impl EnumCheck {
    fn new(rules: &EnumRules, of: FieldType) -> EnumCheck {
        let values = if let FieldType::Enum(values) = of { Some(values) } else { None };
        let named = |number: &i32| {
            let name = values.and_then(|values| values.value_name(*number));
            (i128::from(*number), name.map_or_else(|| number.to_string(), str::to_owned))
        };
        EnumCheck {
            constant: rules.r#const.as_ref().map(named),
            allowed: rules.r#in.iter().map(named).collect(),
            banned: rules.not_in.iter().map(named).collect(),
            defined: values.filter(|_| rules.defined_only()).map(|values| {
                let mut numbers: Box<[i128]> = values.values().map(|(_, number)| number.into()).collect();
                numbers.sort_unstable();
                numbers
            }),
        }
    }

    fn fault(&self, value: i128) -> Option<String> {
        let named = |known: &[(i128, String)]| list(known, |(_, name)| name.clone());
        let holds = |known: &[(i128, String)]| known.iter().any(|(number, _)| *number == value);
        if let Some((_, name)) = self.constant.as_ref().filter(|(number, _)| *number != value) {
            return Some(format!("value must equal {name}"));
        }
        if !self.allowed.is_empty() && !holds(&self.allowed) {
            return Some(format!("value must be in list {}", named(&self.allowed)));
        }
        if holds(&self.banned) {
            return Some(format!("value must not be in list {}", named(&self.banned)));
        }
        let defined = self.defined.as_ref()?;
        defined.binary_search(&value).is_err().then(|| "value must be one of the defined enum values".to_owned())
    }
}

/// The rules of a duration or of a time, in nanoseconds.
pub(super) fn moments(rules: &Type) -> Option<Box<Bounds<i128>>> {
    fn nanos(seconds: i64, nanos: i32) -> i128 {
        i128::from(seconds) * 1_000_000_000 + i128::from(nanos)
    }
    let bounds = match rules {
        Type::Duration(rules) => {
            let nanos = |at: &Duration| nanos(at.seconds, at.nanos);
            Bounds {
                constant: rules.r#const.as_ref().map(nanos),
                low: Edge::either(rules.gt.as_ref().map(nanos), rules.gte.as_ref().map(nanos)),
                high: Edge::either(rules.lt.as_ref().map(nanos), rules.lte.as_ref().map(nanos)),
                allowed: rules.r#in.iter().map(nanos).collect(),
                banned: rules.not_in.iter().map(nanos).collect(),
                ignore_empty: false,
                show: duration,
            }
        }
        Type::Timestamp(rules) => {
            let nanos = |at: &Timestamp| nanos(at.seconds, at.nanos);
            Bounds {
                constant: rules.r#const.as_ref().map(nanos),
                low: Edge::either(rules.gt.as_ref().map(nanos), rules.gte.as_ref().map(nanos)),
                high: Edge::either(rules.lt.as_ref().map(nanos), rules.lte.as_ref().map(nanos)),
                allowed: Vec::new(),
                banned: Vec::new(),
                ignore_empty: false,
                show: |nanos| {
                    let seconds = i64::try_from(nanos.div_euclid(1_000_000_000)).unwrap_or(i64::MAX);
                    crate::text::print_timestamp((seconds, nanos.rem_euclid(1_000_000_000) as i32))
                },
            }
        }
        _ => return None,
    };
    let states = bounds.constant.is_some() || bounds.low.is_some() || bounds.high.is_some();
    (states || !bounds.allowed.is_empty() || !bounds.banned.is_empty()).then(|| Box::new(bounds))
}

#[cfg(test)]
impl Check {
    pub(super) fn compiles(&self) -> bool {
        !matches!(self, Check::Text(text) if text.pattern.as_ref().is_some_and(|pattern| !pattern.compiles()))
    }
}
