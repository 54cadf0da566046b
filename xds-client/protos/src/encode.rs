//! A [`Node`] tree to the wire form of a message, by its descriptor, with the leniencies of Envoy's loader.
//!
//! Those come from protobuf's C++ JSON parser in its legacy mode: both spellings of a field name, one value in place of a
//! list, well-known types as plain objects, quoted numbers and booleans. It also says that `null` is absence, that two
//! members of one oneof are an error, and that a plain number is no string. Checked against Envoy 1.40.

use std::fmt::Write;

use crate::error::{FieldPath, LoadError, Position};
use crate::near::{nearest, nearest_type};
use crate::node::{Key, MAX_DEPTH, Node, Value, quote, repeated};
use crate::scalar;
use crate::table::{Enum, Field, FieldType, Message, Special};
use crate::text;
use crate::wire::{put_bytes, put_nested, put_tag, put_varint};

/// Errors beyond this are not collected: each holds strings, and a text may have as many as it has bytes.
pub(crate) const MAX_ERRORS: usize = 10_000;

/// One step of the path to a value.
enum Step<'a> {
    Field(&'static str),
    Index(usize),
    Key(&'a str),
}

/// Walks a tree once; `unknown`, `deprecated` and `errors` fill while it does.
pub(crate) struct Encoder<'a> {
    file: Option<&'a str>,
    allow_unknown: bool,
    path: Vec<Step<'a>>,
    /// Below a field that was set before: defaults are written too, to replace what stands there.
    again: bool,
    /// Below a sensitive field: errors must not say what stands there.
    secret: bool,
    pub(crate) unknown: Vec<FieldPath>,
    pub(crate) deprecated: Vec<FieldPath>,
    pub(crate) errors: Vec<LoadError>,
}

impl<'a> Encoder<'a> {
    pub(crate) fn new(file: Option<&'a str>, allow_unknown: bool) -> Encoder<'a> {
        let (unknown, deprecated, errors) = (Vec::new(), Vec::new(), Vec::new());
        Encoder { file, allow_unknown, path: Vec::new(), again: false, secret: false, unknown, deprecated, errors }
    }

    fn path(&self) -> String {
        let mut out = String::new();
        for step in &self.path {
            // Writing to a String does not fail.
            let _ = match step {
                Step::Field(name) if out.is_empty() => out.write_str(name),
                Step::Field(name) => write!(out, ".{name}"),
                Step::Index(at) => write!(out, "[{at}]"),
                Step::Key(key) => write!(out, "[{key:?}]"),
            };
        }
        out
    }

    fn error(&mut self, at: Position, found: impl Into<String>, expected: impl Into<String>) {
        if self.errors.len() < MAX_ERRORS {
            let file = self.file.map(str::to_owned);
            let path = self.path();
            self.errors.push(LoadError { file, path, found: found.into(), expected: expected.into(), at });
        }
    }

    fn mismatch(&mut self, node: &Node, expected: impl Into<String>) {
        let found = if self.secret { node.kind().into() } else { node.describe() };
        self.error(node.at, found, expected);
    }

    fn within(&mut self, step: Step<'a>, walk: impl FnOnce(&mut Self)) {
        self.path.push(step);
        walk(self);
        self.path.pop();
    }

    /// Appends the body of a message.
    pub(crate) fn message(&mut self, message: Message, node: &'a Node, out: &mut Vec<u8>) {
        // Each level of messages adds at least one step, so this bounds the recursion (also that of Any in Any).
        if self.path.len() > 2 * MAX_DEPTH {
            return self.error(node.at, "too many levels of nesting", format!("at most {MAX_DEPTH}"));
        }
        match message.special() {
            Special::Any => self.any(node, out),
            Special::Value => self.dynamic(node, out),
            Special::Struct => self.structure(node, out),
            Special::ListValue => self.list_value(node, out),
            Special::Duration => self.moment(message, node, out, text::parse_duration, "a duration like \"0.25s\""),
            Special::Timestamp => {
                self.moment(message, node, out, text::parse_timestamp, "a time like \"2026-01-31T12:00:00Z\"");
            }
            Special::FieldMask => match &node.value {
                Value::Text(value) => {
                    let paths = value.split(',').filter(|path| !path.is_empty());
                    paths.for_each(|path| put_bytes(out, 1, text::snake_case(path).as_bytes()));
                }
                _ => self.object(message, node, out),
            },
            Special::Wrapper => match (&node.value, message.field_by_number(1)) {
                (Value::Map(_), _) | (_, None) => self.object(message, node, out),
                (_, Some(value)) => self.singular(value, node, out),
            },
            Special::None | Special::Empty => self.object(message, node, out),
        }
    }

    fn moment(
        &mut self,
        message: Message,
        node: &'a Node,
        out: &mut Vec<u8>,
        parse: fn(&str) -> Option<text::Moment>,
        expected: &str,
    ) {
        match &node.value {
            Value::Map(_) => self.object(message, node, out),
            Value::Text(value) => match parse(value) {
                Some((seconds, nanos)) => {
                    for (number, value) in [(1, seconds), (2, i64::from(nanos))] {
                        if value != 0 || self.again {
                            put_tag(out, number, 0);
                            put_varint(out, value as u64);
                        }
                    }
                }
                None => self.mismatch(node, expected),
            },
            _ => self.mismatch(node, expected),
        }
    }

    fn object(&mut self, message: Message, node: &'a Node, out: &mut Vec<u8>) {
        match &node.value {
            Value::Map(entries) => self.fields(message, entries, "", out),
            _ => {
                let expected = format!("an object ({})", message.name());
                // what is one level too high may well be what belongs into such a field
                let secret = self.secret || message.fields().any(Field::is_sensitive);
                self.error(node.at, if secret { node.kind().into() } else { node.describe() }, expected);
            }
        }
    }

    /// The members of an object, without the one named `skipped`.
    fn fields(&mut self, message: Message, entries: &'a [(Key, Node)], skipped: &str, out: &mut Vec<u8>) {
        let mut oneofs: Vec<Option<Field>> = Vec::new();
        let mut met: Vec<Field> = Vec::new();
        for (key, node) in entries.iter().filter(|(key, _)| skipped.is_empty() || key.name != skipped) {
            let Some(field) = message.field_by_name(&key.name) else {
                self.unknown_field(message, key);
                continue;
            };
            if let (Some(at), false) = (field.oneof(), is_absent(field, node)) {
                if oneofs.len() <= at {
                    oneofs.resize(at + 1, None);
                }
                if let Some(other) = oneofs[at].replace(field) {
                    let (found, expected) = if other == field {
                        ("a second value", format!("`{}` once", field.name()))
                    } else {
                        ("both", format!("only one of `{}` and `{}`", other.name(), field.name()))
                    };
                    self.within(Step::Field(field.name()), |this| this.error(key.at, found, expected));
                    continue;
                }
            }
            let outer = self.again;
            if met.contains(&field) {
                self.again = true;
            } else {
                met.push(field);
            }
            let open = !self.secret && field.is_sensitive();
            self.secret |= open;
            self.within(Step::Field(field.name()), |this| {
                if field.is_deprecated() && !is_absent(field, node) {
                    let name = format!("{}.{}", message.name(), field.name());
                    this.deprecated.push(FieldPath { path: this.path(), name });
                }
                this.field(field, node, out);
            });
            self.again = outer;
            self.secret &= !open;
        }
    }

    fn unknown_field(&mut self, message: Message, key: &'a Key) {
        let parent = self.path();
        let path = if parent.is_empty() { key.name.clone() } else { format!("{parent}.{}", key.name) };
        let near = || nearest(&key.name, message.fields().map(Field::name));
        // a secret between braces reads as the name of a field
        let hidden = self.secret && near().is_none();
        let path = if hidden { parent } else { path };
        if self.allow_unknown {
            let name = if hidden { "[redacted]" } else { &key.name };
            self.unknown.push(FieldPath { path, name: format!("{}.{name}", message.name()) });
        } else if self.errors.len() < MAX_ERRORS {
            let mut expected = format!("a field of {}", message.name());
            if let Some(near) = near() {
                let _ = write!(expected, " (did you mean \"{near}\"?)");
            }
            // Envoy's words, which tools look for
            let name = if hidden { "[redacted]" } else { &key.name };
            let _ = write!(expected, "; no such field: '{name}', the message has unknown fields");
            let file = self.file.map(str::to_owned);
            self.errors.push(LoadError { file, path, found: "an unknown field".into(), expected, at: key.at });
        }
    }

    fn field(&mut self, field: Field, node: &'a Node, out: &mut Vec<u8>) {
        if is_absent(field, node) {
            return;
        }
        if let Some(entry) = field.map_entry() {
            return self.map(field, entry, node, out);
        }
        if field.is_repeated() {
            return self.list(field, node, out, 0);
        }
        self.singular(field, node, out);
    }

    fn list(&mut self, field: Field, node: &'a Node, out: &mut Vec<u8>, depth: usize) {
        let holds_lists = matches!(field.field_type(), FieldType::Message(message)
            if matches!(message.special(), Special::Value | Special::ListValue));
        match &node.value {
            // Lists in a list are flattened by the legacy parser, except where the element may be a list itself.
            Value::List(items) if depth == 0 || (!holds_lists && depth < MAX_DEPTH) => {
                for (at, item) in items.iter().enumerate() {
                    self.within(Step::Index(at), |this| this.list(field, item, out, depth + 1));
                }
            }
            // `null` in a list is an element with all defaults.
            Value::Null if !holds_lists => match field.field_type() {
                FieldType::Message(_) => put_bytes(out, field.number(), &[]),
                FieldType::Enum(_) | FieldType::Scalar(_) => scalar::put_default(field, out),
            },
            _ => self.value(field, node, out),
        }
    }

    fn map(&mut self, field: Field, entry: Message, node: &'a Node, out: &mut Vec<u8>) {
        let Value::Map(entries) = &node.value else {
            return self.mismatch(node, "an object (a map)");
        };
        self.no_repetition(entries);
        let (Some(key_field), Some(value_field)) = (entry.field_by_number(1), entry.field_by_number(2)) else { return };
        for (key, value) in entries {
            self.within(Step::Key(&key.name), |this| {
                put_nested(out, field.number(), |out| {
                    match scalar::from_text(key_field.kind(), &key.name) {
                        Some(parsed) => scalar::put(key_field.number(), key_field.kind(), &parsed, out),
                        None => {
                            let found = if this.secret { "a string".into() } else { quote(&key.name) };
                            this.error(key.at, found, scalar::expectation(key_field.kind()));
                        }
                    }
                    this.field(value_field, value, out);
                });
            });
        }
    }

    /// A name of a map entry occurs once.
    fn no_repetition(&mut self, entries: &'a [(Key, Node)]) {
        if let Some(key) = repeated(entries) {
            self.within(Step::Key(&key.name), |this| this.error(key.at, "the same key again", "each key once"));
        }
    }

    /// A field that holds one value; its default is left out where that is the same as absence.
    fn singular(&mut self, field: Field, node: &'a Node, out: &mut Vec<u8>) {
        let start = out.len();
        self.value(field, node, out);
        if !self.again && !field.has_presence() && scalar::is_default(&out[start..]) {
            out.truncate(start);
        }
    }

    /// One value with its tag, whether default or not.
    fn value(&mut self, field: Field, node: &'a Node, out: &mut Vec<u8>) {
        match field.field_type() {
            FieldType::Message(message) => put_nested(out, field.number(), |out| self.message(message, node, out)),
            FieldType::Enum(values) => self.enumeration(field, values, node, out),
            FieldType::Scalar(kind) => match scalar::from_node(kind, node) {
                Some(parsed) => scalar::put(field.number(), kind, &parsed, out),
                None => self.mismatch(node, scalar::expectation(kind)),
            },
        }
    }

    fn enumeration(&mut self, field: Field, values: Enum, node: &Node, out: &mut Vec<u8>) {
        if values.name() == "google.protobuf.NullValue" && node.value == Value::Null {
            return scalar::put_default(field, out);
        }
        let number = match &node.value {
            Value::Text(name) => values.number(name).or_else(|| name.parse().ok()),
            _ => scalar::whole(node).and_then(|number| i32::try_from(number).ok()),
        };
        match number {
            Some(number) => {
                put_tag(out, field.number(), 0);
                put_varint(out, i64::from(number) as u64);
            }
            None => match &node.value {
                Value::Text(name) if self.allow_unknown && !self.secret => {
                    self.unknown.push(FieldPath { path: self.path(), name: format!("{}.{name}", values.name()) });
                }
                _ => self.mismatch(node, expected_enum(values, node)),
            },
        }
    }

    fn any(&mut self, node: &'a Node, out: &mut Vec<u8>) {
        let Value::Map(entries) = &node.value else {
            return self.mismatch(node, "an object with \"@type\"");
        };
        if entries.is_empty() {
            return;
        }
        let mut types = entries.iter().filter(|(key, _)| key.name == "@type");
        let Some((_, type_node)) = types.next() else {
            return self.error(node.at, "an object without \"@type\"", "\"@type\" beside the fields of the message");
        };
        if let Some((key, _)) = types.next() {
            return self.error(key.at, "\"@type\" again", "\"@type\" once");
        }
        let Value::Text(url) = &type_node.value else {
            return self.mismatch(type_node, "a type URL like \"type.googleapis.com/envoy.config.cluster.v3.Cluster\"");
        };
        let message = url.rsplit_once('/').filter(|(host, _)| !host.is_empty()).map(|(_, name)| name);
        let Some(name) = message else {
            return self
                .mismatch(type_node, format!("a type URL like \"type.googleapis.com/{}\"", url.trim_matches('/')));
        };
        let Some(message) = Message::find(name) else {
            return self.within(Step::Field("@type"), |this| this.mismatch(type_node, expected_type(name)));
        };
        put_bytes(out, 1, url.as_bytes());
        put_nested(out, 2, |out| match message.special() {
            Special::None | Special::Empty => self.fields(message, entries, "@type", out),
            _ => match node.get("value") {
                Some(value) => self.within(Step::Field("value"), |this| this.message(message, value, out)),
                None => self.error(node.at, "no \"value\"", format!("\"value\" with the {}", message.name())),
            },
        });
    }

    /// The body of a `google.protobuf.Value`.
    fn dynamic(&mut self, node: &'a Node, out: &mut Vec<u8>) {
        let mut number = |value: f64| {
            put_tag(out, 2, 1);
            out.extend_from_slice(&value.to_le_bytes());
        };
        match &node.value {
            Value::Null => {
                put_tag(out, 1, 0);
                put_varint(out, 0);
            }
            Value::Int(value) => number(*value as f64),
            Value::Uint(value) => number(*value as f64),
            Value::Float(value) => number(*value),
            Value::Text(value) => put_bytes(out, 3, value.as_bytes()),
            Value::Bool(value) => {
                put_tag(out, 4, 0);
                put_varint(out, u64::from(*value));
            }
            Value::Map(_) => put_nested(out, 5, |out| self.structure(node, out)),
            Value::List(_) => put_nested(out, 6, |out| self.list_value(node, out)),
        }
    }

    /// The body of a `google.protobuf.Struct`. Its depth is that of the tree, which the readers bound.
    fn structure(&mut self, node: &'a Node, out: &mut Vec<u8>) {
        let Value::Map(entries) = &node.value else {
            return self.mismatch(node, "an object");
        };
        self.no_repetition(entries);
        for (key, value) in entries {
            put_nested(out, 1, |out| {
                put_bytes(out, 1, key.name.as_bytes());
                put_nested(out, 2, |out| self.dynamic(value, out));
            });
        }
    }

    /// The body of a `google.protobuf.ListValue`.
    fn list_value(&mut self, node: &'a Node, out: &mut Vec<u8>) {
        let Value::List(items) = &node.value else {
            return self.mismatch(node, "a list");
        };
        for item in items {
            put_nested(out, 1, |out| self.dynamic(item, out));
        }
    }
}

/// `null` leaves a field unset, except where null is a value.
fn is_absent(field: Field, node: &Node) -> bool {
    node.value == Value::Null
        && (field.is_repeated()
            || match field.field_type() {
                FieldType::Message(message) => message.special() != Special::Value,
                FieldType::Enum(values) => values.name() != "google.protobuf.NullValue",
                FieldType::Scalar(_) => true,
            })
}

/// What a type URL should have named.
pub(crate) fn expected_type(wrong: &str) -> String {
    match nearest_type(wrong) {
        Some(near) => format!("a type that Envoy's API has (did you mean \"{near}\"?)"),
        None => "a type that Envoy's API has".into(),
    }
}

fn expected_enum(values: Enum, node: &Node) -> String {
    /// More names than this are not listed.
    const LISTED: usize = 8;
    let mut expected = String::from("one of ");
    for (at, (name, _)) in values.values().take(LISTED).enumerate() {
        let _ = write!(expected, "{}{name}", if at == 0 { "" } else { ", " });
    }
    if values.values().len() > LISTED {
        expected.push_str(", ...");
    }
    if let Value::Text(wrong) = &node.value
        && let Some(near) = nearest(&wrong.to_ascii_uppercase(), values.values().map(|(name, _)| name))
    {
        let _ = write!(expected, " (did you mean \"{near}\"?)");
    }
    expected
}
