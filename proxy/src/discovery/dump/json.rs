//! Writing JSON as protobuf's printer does.

use serde_json::Value;
use std::fmt::Write;

/// Appends a value, its later lines indented by one space per level from `level` on.
pub fn write_json(out: &mut String, value: &Value, level: usize) {
    let line = |out: &mut String, level: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', level));
    };
    match value {
        Value::Object(fields) if fields.is_empty() => out.push_str("{}"),
        Value::Array(items) if items.is_empty() => out.push_str("[]"),
        Value::Object(fields) => {
            out.push('{');
            for (n, (key, value)) in fields.iter().enumerate() {
                out.push_str(if n > 0 { "," } else { "" });
                line(out, level + 1);
                write_string(out, key);
                out.push_str(": ");
                write_json(out, value, level + 1);
            }
            line(out, level);
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (n, item) in items.iter().enumerate() {
                out.push_str(if n > 0 { "," } else { "" });
                line(out, level + 1);
                write_json(out, item, level + 1);
            }
            line(out, level);
            out.push(']');
        }
        Value::String(text) => write_string(out, text),
        Value::Null | Value::Bool(_) | Value::Number(_) => {
            // writing to a String does not fail
            let _ = write!(out, "{value}");
        }
    }
}

/// Angle brackets are escaped too, so that a browser never takes a name for markup.
fn write_string(out: &mut String, text: &str) {
    out.push('"');
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_control() || matches!(c, '"' | '\\' | '<' | '>')) {
        let (plain, odd) = rest.split_at(at);
        out.push_str(plain);
        let mut odd = odd.chars();
        let _ = match odd.next() {
            Some('"') => out.write_str("\\\""),
            Some('\\') => out.write_str("\\\\"),
            Some('\n') => out.write_str("\\n"),
            Some('\r') => out.write_str("\\r"),
            Some('\t') => out.write_str("\\t"),
            Some('\u{8}') => out.write_str("\\b"),
            Some('\u{c}') => out.write_str("\\f"),
            Some(other) => write!(out, "\\u{:04x}", u32::from(other)),
            None => Ok(()),
        };
        rest = odd.as_str();
    }
    out.push_str(rest);
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn it_looks_as_protobuf_prints() {
        let mut out = String::new();
        write_json(&mut out, &json!({"a": [{"b": "<x>\"\\\n\u{1}é"}, {}], "c": [], "d": 1}), 1);
        let expected = "{\n  \"a\": [\n   {\n    \"b\": \"\\u003cx\\u003e\\\"\\\\\\n\\u0001é\"\n   },\n   {}\n  ],\n  \"c\": [],\n  \"d\": 1\n }";
        assert_eq!(out, expected);
    }
}
