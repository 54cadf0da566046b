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

/// What protobuf's printer escapes beyond what JSON demands: what a browser could take for markup or for a line's end,
/// and what cannot be seen.
fn must_escape(c: char) -> bool {
    matches!(c, '"' | '\\' | '<' | '>')
        || c.is_control()
        || (!c.is_ascii()
            && matches!(u32::from(c),
                0xad | 0x600..=0x603 | 0x6dd | 0x70f | 0x17b4 | 0x17b5 | 0x200b..=0x200f | 0x2028..=0x202e
                | 0x2060..=0x2064 | 0x206a..=0x206f | 0xfeff | 0xfff9..=0xfffb | 0x1d173..=0x1d17a | 0xe0001
                | 0xe0020..=0xe007f))
}

fn write_string(out: &mut String, text: &str) {
    out.push('"');
    let mut rest = text;
    while let Some(at) = rest.find(must_escape) {
        let (plain, odd) = rest.split_at(at);
        out.push_str(plain);
        let mut odd = odd.chars();
        match odd.next() {
            Some('"') => out.push_str("\\\""),
            Some('\\') => out.push_str("\\\\"),
            Some('\n') => out.push_str("\\n"),
            Some('\r') => out.push_str("\\r"),
            Some('\t') => out.push_str("\\t"),
            Some('\u{8}') => out.push_str("\\b"),
            Some('\u{c}') => out.push_str("\\f"),
            Some(other) => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    // writing to a String does not fail
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            None => {}
        }
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
        write_json(&mut out, &json!({"a": [{"b": "<x>\"\\\n\u{1}é\u{2028}\u{1d173}\t/"}, {}], "c": [], "d": 1}), 1);
        let expected = "{\n  \"a\": [\n   {\n    \"b\": \"\\u003cx\\u003e\\\"\\\\\\n\\u0001é\\u2028\\ud834\\udd73\\t/\"\n   },\n   {}\n  ],\n  \"c\": [],\n  \"d\": 1\n }";
        assert_eq!(out, expected);
    }
}
