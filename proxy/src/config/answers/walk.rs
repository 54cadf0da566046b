//! The walk: what the table has to say of a message, found on its wire bytes.
//!
//! Costs a few nanoseconds per field as long as there is nothing to say: no allocation, no paths. A path is worked out
//! only for a finding, from the places that the walk stands at.

use super::table::{Answer, MessageAnswers, Step, Table, is_value, table};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use xds_protos::table::{Field, FieldType, Message};
use xds_protos::wire::{Raw, take_field};
use xds_protos::{Descriptors, MAX_DEPTH, ParseOptions, TypedStruct, nearest};

/// The message whose elements are resources, each of which is to hear of its own fields.
const RESOURCES: &str = "envoy.config.bootstrap.v3.Bootstrap.StaticResources";

/// Ways through lists and extensions that are told apart in one resource. Past it, a field is said once wherever it
/// stands: with the table's fields, that bounds what is kept of a message that nests without end.
const MAX_WAYS: usize = 1000;

/// Unknown fields that are listed; the rest is counted.
const MAX_UNKNOWN: usize = 1000;

/// What was found: each field once for each way that leads to it (places in lists do not count), with the number of times.
#[derive(Debug, Default)]
pub struct Findings {
    pub unknown: Vec<Unknown>,
    /// Fields that have no effect.
    pub warned: Vec<Warned>,
    /// Fields that refuse the resource: path and reason.
    pub rejected: Vec<(String, &'static str)>,
    /// Deprecated fields in use.
    pub deprecated: Vec<Deprecated>,
    /// Unknown fields past those that are listed.
    pub more_unknown: usize,
}

/// A field without effect: where it was met first, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warned {
    pub path: String,
    pub meaning: &'static str,
    pub count: usize,
}

/// A field that its message does not have: where it was met first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// The last name is `#` and the number where only that is known.
    pub path: String,
    /// Full name of the message.
    pub message: String,
}

impl Unknown {
    /// Envoy's words for one that is refused, which tools look for, and the name that was probably meant.
    pub fn refusal(&self) -> String {
        let name = self.path.rsplit_once('.').map_or(self.path.as_str(), |(_, name)| name);
        if let Some(number) = name.strip_prefix('#') {
            return format!(
                "Protobuf message (type {} with unknown field set {{{number}}}) has unknown fields",
                self.message
            );
        }
        let message = Message::find(&self.message);
        if message.and_then(|message| message.field_by_name(name)).is_some() {
            return format!("found a value of '{name}' that its enum does not have");
        }
        let near = message.and_then(|message| nearest(name, message.fields().map(Field::name)));
        let near = near.map(|near| format!(" (did you mean {near:?}?)")).unwrap_or_default();
        format!("Protobuf message (type {} reason no such field: '{name}') has unknown fields{near}", self.message)
    }
}

/// A deprecated field in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deprecated {
    pub path: String,
    /// `envoy.config.cluster.v3.Cluster.http2_protocol_options`
    pub full_name: String,
    /// Refused unless runtime allows it.
    pub disallowed: bool,
    /// How often it was met.
    pub count: usize,
}

impl std::fmt::Display for Deprecated {
    /// Envoy's words for one that is refused, which tools look for.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = self.full_name.rsplit_once('.').map_or("", |(kind, _)| kind);
        write!(
            f,
            "type {kind} Using deprecated option '{}'. This configuration will be removed from Envoy soon.",
            self.full_name
        )
    }
}

/// Walks a message. Bytes that are none are walked as far as they go: decoding says what is wrong with them.
pub fn walk(full_name: &str, bytes: &[u8]) -> Findings {
    let mut found = Found::default();
    match table().place(full_name) {
        Some(place) => {
            Walk { table: table(), prefix: "", way: 0, frames: Vec::new(), found: &mut found }.message(place, bytes);
        }
        None => {
            let inspected = Descriptors::shared().inspect(full_name, bytes).unwrap_or_default();
            let unknown = inspected.unknown_fields.into_iter();
            found.findings.unknown.extend(unknown.map(|field| unknown_field(field.path, &field.name)));
        }
    }
    found.findings
}

/// `full_name`: that of the message, a dot, and the field's.
fn unknown_field(path: String, full_name: &str) -> Unknown {
    let message = full_name.rsplit_once('.').map_or("", |(message, _)| message).to_owned();
    Unknown { path, message }
}

/// What a finding is: one of them is said once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum About {
    Unknown,
    Warned,
    Rejected,
    Deprecated,
}

/// Which finding it is: what is said of which field of which message, and a hash of the way that leads to it.
type Identity = (About, usize, u32, u64);

/// The findings, and where each stands in its list.
#[derive(Default)]
struct Found {
    findings: Findings,
    said: HashMap<Identity, usize>,
    /// Static resources met so far, and how much had been said when this one began.
    resource: u64,
    said_before: usize,
}

/// Where the walk stands: in which message, and at which byte the field starts that it is in.
struct Frame<'b> {
    holder: &'static MessageAnswers,
    bytes: &'b [u8],
    at: usize,
    number: u32,
    /// Where the fields of this number started that stand right before it, and how many they are: looking for the place
    /// in a list of thousands from its start, for each of its elements, would cost their square.
    run: (usize, usize),
}

struct Walk<'b, 'f> {
    table: &'static Table,
    prefix: &'f str,
    /// The way that led to `prefix`.
    way: u64,
    frames: Vec<Frame<'b>>,
    found: &'f mut Found,
}

impl<'b> Walk<'b, '_> {
    fn message(&mut self, place: u16, bytes: &'b [u8]) {
        let Some(holder) = self.table.get(place).filter(|_| self.frames.len() < MAX_DEPTH) else { return };
        // Extensions that are answered as a whole are conversion's to name: it knows whether they are in use.
        if !matches!(holder.whole, Answer::Act { .. }) {
            return;
        }
        let (mut rest, mut last, mut run) = (bytes, 0, (0, 0));
        while !rest.is_empty() {
            let at = bytes.len() - rest.len();
            let Some((number, raw)) = take_field(&mut rest) else { return };
            run = if number == last { (run.0, run.1 + 1) } else { (at, 0) };
            last = number;
            let frame = Frame { holder, bytes, at, number, run };
            match (holder.step(number), raw) {
                (Step::Skip, _) => {}
                (Step::Say, _) => self.within(frame, |walk| walk.say(holder, number, raw)),
                (Step::Unknown, _) => self.within(frame, |walk| {
                    walk.unknown(number, |walk| Unknown {
                        path: walk.path(),
                        message: holder.message.name().to_owned(),
                    });
                }),
                (step, Raw::Bytes(inner)) => self.within(frame, |walk| walk.into(step, inner)),
                _ => {}
            }
        }
    }

    fn within(&mut self, frame: Frame<'b>, go: impl FnOnce(&mut Self)) {
        // the walk of one resource does not get here: only a bootstrap has them two levels down
        if self.frames.len() == 1 && self.prefix.is_empty() && frame.holder.message.name() == RESOURCES {
            self.found.resource += 1;
            self.found.said_before = self.found.said.len();
        }
        self.frames.push(frame);
        go(self);
        self.frames.pop();
    }

    /// Which finding this is, of the field that the walk stands at.
    fn identity(&self, about: About, number: u32) -> Identity {
        let mut way = DefaultHasher::new();
        self.found.resource.hash(&mut way);
        if self.found.said.len() - self.found.said_before < MAX_WAYS {
            self.way.hash(&mut way);
            for frame in &self.frames {
                (std::ptr::from_ref(frame.holder).addr(), frame.number).hash(&mut way);
            }
        }
        let holder = self.frames.last().map_or(0, |frame| std::ptr::from_ref(frame.holder).addr());
        (about, holder, number, way.finish())
    }

    /// Where the finding stands in its list; `None` when it is new, and then it will stand at `next`.
    fn known(&mut self, about: About, number: u32, next: usize) -> Option<usize> {
        let identity = self.identity(about, number);
        match self.found.said.entry(identity) {
            std::collections::hash_map::Entry::Occupied(known) => Some(*known.get()),
            std::collections::hash_map::Entry::Vacant(new) => {
                new.insert(next);
                None
            }
        }
    }

    fn unknown(&mut self, number: u32, unknown: impl FnOnce(&Self) -> Unknown) {
        // their numbers and names are the sender's, so that there must be an end of them
        let next = self.found.findings.unknown.len();
        if next >= MAX_UNKNOWN {
            self.found.findings.more_unknown += 1;
            return;
        }
        if self.known(About::Unknown, number, next).is_none() {
            let unknown = unknown(self);
            self.found.findings.unknown.push(unknown);
        }
    }

    fn deprecated(&mut self, number: u32, path: impl FnOnce(&Self) -> String, full_name: &str, disallowed: bool) {
        let next = self.found.findings.deprecated.len();
        match self.known(About::Deprecated, number, next) {
            Some(known) => self.found.findings.deprecated[known].count += 1,
            None => {
                let (path, full_name) = (path(self), full_name.to_owned());
                self.found.findings.deprecated.push(Deprecated { path, full_name, disallowed, count: 1 });
            }
        }
    }

    fn warned(&mut self, number: u32, meaning: &'static str) {
        let next = self.found.findings.warned.len();
        match self.known(About::Warned, number, next) {
            Some(known) => self.found.findings.warned[known].count += 1,
            None => {
                let path = self.path();
                self.found.findings.warned.push(Warned { path, meaning, count: 1 });
            }
        }
    }

    fn rejected(&mut self, number: u32, reason: &'static str) {
        let next = self.found.findings.rejected.len();
        if self.known(About::Rejected, number, next).is_none() {
            let path = self.path();
            self.found.findings.rejected.push((path, reason));
        }
    }

    fn into(&mut self, step: Step, bytes: &'b [u8]) {
        match step {
            Step::Into(place) => self.message(place, bytes),
            Step::Any => self.any(bytes),
            Step::Entries(place) => {
                let mut rest = bytes;
                while let Some((number, raw)) = take_field(&mut rest) {
                    match raw {
                        Raw::Bytes(value) if number == 2 && place == u16::MAX => self.any(value),
                        Raw::Bytes(value) if number == 2 => self.message(place, value),
                        _ => {}
                    }
                }
            }
            Step::Unknown | Step::Skip | Step::Say => {}
        }
    }

    /// A field that has an answer other than `act`, or is deprecated.
    fn say(&mut self, holder: &'static MessageAnswers, number: u32, raw: Raw<'b>) {
        let Some(field) = holder.message.field_by_number(number) else { return };
        let as_if_absent = |unless: Option<&str>| unless.is_some_and(|value| is_value(field, raw, value));
        if field.is_deprecated() || field.is_disallowed_by_default() {
            let full_name = format!("{}.{}", holder.message.name(), field.name());
            self.deprecated(number, Self::path, &full_name, field.is_disallowed_by_default());
        }
        match holder.answer(field) {
            Some(Answer::Act { .. } | Answer::Idle { .. }) => {
                if let Raw::Bytes(inner) = raw {
                    self.into(self.table.inner(field), inner);
                }
            }
            Some(Answer::Warn { meaning, unless }) => {
                if !as_if_absent(unless) {
                    self.warned(number, meaning);
                    self.inspect(field, raw);
                }
            }
            Some(Answer::Reject { reason, unless }) => {
                if !as_if_absent(unless) {
                    self.rejected(number, reason);
                }
            }
            // Not in the table, which a test forbids: better refused than ignored.
            None => self.rejected(number, "there is no answer for this field"),
        }
    }

    /// What has no effect may still hold fields that nobody knows, or that are refused for their age.
    fn inspect(&mut self, field: Field, raw: Raw<'_>) {
        let (FieldType::Message(message), Raw::Bytes(bytes), None) = (field.field_type(), raw, field.map_entry())
        else {
            return;
        };
        let Some(found) = Descriptors::shared().inspect(message.name(), bytes) else { return };
        for unknown in found.unknown_fields {
            self.unknown(hashed(&unknown.name), |walk| {
                unknown_field(format!("{}.{}", walk.path(), unknown.path), &unknown.name)
            });
        }
        for deprecated in found.deprecated {
            let number = hashed(&deprecated.name);
            let disallowed = deprecated.name.rsplit_once('.').is_some_and(|(message, name)| {
                let field = Message::find(message).and_then(|message| message.field_by_name(name));
                field.is_some_and(Field::is_disallowed_by_default)
            });
            let path = |walk: &Self| format!("{}.{}", walk.path(), deprecated.path);
            self.deprecated(number, path, &deprecated.name, disallowed);
        }
    }

    fn any(&mut self, bytes: &'b [u8]) {
        let (mut name, mut packed) = ("", &[][..]);
        let mut rest = bytes;
        while let Some((number, raw)) = take_field(&mut rest) {
            match (number, raw) {
                (1, Raw::Bytes(url)) => {
                    let url = std::str::from_utf8(url).unwrap_or_default();
                    name = url.rsplit('/').next().unwrap_or_default();
                }
                (2, Raw::Bytes(value)) => packed = value,
                _ => {}
            }
        }
        if let Some(place) = self.table.place(name) {
            self.message(place, packed);
        } else if TypedStruct::NAMES.contains(&name) {
            self.typed_struct(bytes);
        }
    }

    /// A message in JSON's clothes; conversion reads it the same way and says what is wrong with it.
    fn typed_struct(&mut self, bytes: &[u8]) {
        let options = ParseOptions { allow_unknown_fields: true, file: None };
        let Ok(any) = super::super::any::decode_any(bytes) else { return };
        let Ok(Some((inner, parsed))) = Descriptors::shared().typed_struct(&any, options) else { return };
        let prefix = self.path();
        for field in parsed.unknown_fields {
            self.unknown(hashed(&field.name), |_| unknown_field(format!("{prefix}.value.{}", field.path), &field.name));
        }
        if let Some(place) = self.table.place(inner.type_url.rsplit('/').next().unwrap_or_default()) {
            let way = self.identity(About::Unknown, 0).3;
            let found = &mut *self.found;
            Walk { table: self.table, prefix: &prefix, way, frames: Vec::new(), found }.message(place, &inner.value);
        }
    }

    /// The path of the field that the walk stands at.
    fn path(&self) -> String {
        let mut path = self.prefix.to_owned();
        for frame in &self.frames {
            if !path.is_empty() {
                path.push('.');
            }
            step_of(frame, &mut path);
        }
        path
    }
}

/// Appends the name of the field at which a frame stands, with its place in a list or its key in a map.
fn step_of(frame: &Frame<'_>, path: &mut String) {
    let message: Message = frame.holder.message;
    let mut at_field = frame.bytes.get(frame.at..).unwrap_or_default();
    let Some((number, raw)) = take_field(&mut at_field) else { return };
    let Some(field) = message.field_by_number(number) else {
        // Writing to a String does not fail.
        let _ = write!(path, "#{number}");
        return;
    };
    path.push_str(field.name());
    if !field.is_repeated() {
        return;
    }
    let key = field.map_entry().and(match raw {
        Raw::Bytes(entry) => map_key(entry),
        _ => None,
    });
    if let Some(key) = key {
        let _ = write!(path, "[{key}]");
        return;
    }
    let (run_starts, mut before) = frame.run;
    let mut rest = frame.bytes.get(..run_starts).unwrap_or_default();
    while let Some((other, _)) = take_field(&mut rest) {
        before += usize::from(other == number);
    }
    let _ = write!(path, "[{before}]");
}

fn map_key(mut entry: &[u8]) -> Option<String> {
    while let Some((number, raw)) = take_field(&mut entry) {
        match (number, raw) {
            (1, Raw::Bytes(key)) => return Some(String::from_utf8_lossy(key).into_owned()),
            (1, Raw::Varint(key)) => return Some(key.to_string()),
            _ => {}
        }
    }
    None
}

/// A number that stands for a name.
fn hashed(name: &str) -> u32 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish() as u32
}
