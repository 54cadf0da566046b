//! Conversions between protobuf's well-known types and Rust's, for rooms that have the message at hand.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value as Json;

use crate::pb::google::protobuf::{Duration as ProtoDuration, ListValue, Struct, Value, value::Kind};

/// A `Struct` as JSON, its members sorted by name.
pub fn struct_to_json(value: &Struct) -> Json {
    let mut members: Vec<_> = value.fields.iter().collect();
    members.sort_by_key(|(name, _)| *name);
    Json::Object(members.into_iter().map(|(name, member)| (name.clone(), value_to_json(member))).collect())
}

/// A `Value` as JSON; one without a kind is null.
pub fn value_to_json(value: &Value) -> Json {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::NumberValue(number)) => crate::print::float(*number),
        Some(Kind::StringValue(text)) => text.as_str().into(),
        Some(Kind::BoolValue(value)) => (*value).into(),
        Some(Kind::StructValue(members)) => struct_to_json(members),
        Some(Kind::ListValue(items)) => items.values.iter().map(value_to_json).collect(),
    }
}

/// A JSON object as a `Struct`; `None` for any other JSON.
pub fn json_to_struct(json: &Json) -> Option<Struct> {
    let Json::Object(members) = json else { return None };
    let fields: HashMap<_, _> = members.iter().map(|(name, member)| (name.clone(), json_to_value(member))).collect();
    Some(Struct { fields })
}

/// JSON as a `Value`.
pub fn json_to_value(json: &Json) -> Value {
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(*value),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Json::String(text) => Kind::StringValue(text.clone()),
        Json::Array(items) => Kind::ListValue(ListValue { values: items.iter().map(json_to_value).collect() }),
        Json::Object(_) => Kind::StructValue(json_to_struct(json).unwrap_or_default()),
    };
    Value { kind: Some(kind) }
}

/// A protobuf duration; `None` when it is negative or its nanoseconds are out of range.
pub fn duration(value: &ProtoDuration) -> Option<Duration> {
    let nanos = u32::try_from(value.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Duration::new(u64::try_from(value.seconds).ok()?, nanos))
}

/// A duration as protobuf has it; beyond its range, the longest there is.
pub fn to_proto_duration(value: Duration) -> ProtoDuration {
    let seconds = i64::try_from(value.as_secs()).unwrap_or(i64::MAX);
    ProtoDuration { seconds, nanos: value.subsec_nanos() as i32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn structs_and_json_are_the_same_thing() {
        let json = json!({"a": 1, "b": [true, null, "x", {"c": 0.5}]});
        assert_eq!(struct_to_json(&json_to_struct(&json).unwrap()), json);
        assert_eq!(json_to_struct(&json!([])), None);
    }

    #[test]
    fn durations_convert_where_they_can() {
        let half = Duration::from_millis(1_500);
        assert_eq!(duration(&to_proto_duration(half)), Some(half));
        assert_eq!(duration(&ProtoDuration { seconds: -1, nanos: 0 }), None);
        assert_eq!(duration(&ProtoDuration { seconds: 1, nanos: -1 }), None);
    }
}
