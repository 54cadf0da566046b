//! The walk: what the table has to say of a message, found on its wire bytes.
//!
//! Costs a few nanoseconds per field as long as there is nothing to say: no allocation, no paths. A path is worked out
//! only for a finding, from the places that the walk stands at.

use super::table::{Answer, MessageAnswers, Step, Table, is_value, table};
use std::fmt::Write as _;
use xds_protos::table::{Field, FieldType, Message};
use xds_protos::wire::{Raw, take_field};
use xds_protos::{Descriptors, MAX_DEPTH, MAX_FINDINGS, ParseOptions, TypedStruct};

/// Refusals that are collected: all of what a person wrote, and no more than the memory for it.
const MAX_REJECTED: usize = 10_000;

/// What was found; at most [`MAX_FINDINGS`] of each but refusals.
#[derive(Debug, Default)]
pub struct Findings {
    /// Paths of fields that the descriptor does not have; the last name is `#` and the number.
    pub unknown: Vec<String>,
    /// Fields that have no effect: path and what that means.
    pub warned: Vec<(String, &'static str)>,
    /// Fields that refuse the resource: path and reason.
    pub rejected: Vec<(String, &'static str)>,
    /// Deprecated fields in use.
    pub deprecated: Vec<Deprecated>,
}

/// A deprecated field in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deprecated {
    pub path: String,
    /// `envoy.config.cluster.v3.Cluster.http2_protocol_options`
    pub full_name: String,
    /// Refused unless runtime allows it.
    pub disallowed: bool,
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
    let mut findings = Findings::default();
    match table().place(full_name) {
        Some(place) => {
            Walk { table: table(), prefix: "", frames: Vec::new(), findings: &mut findings }.message(place, bytes);
        }
        None => {
            let found = Descriptors::shared().inspect(full_name, bytes).unwrap_or_default();
            findings.unknown.extend(found.unknown_fields.into_iter().map(|field| field.path));
        }
    }
    findings
}

/// Where the walk stands: in which message, and at which byte the field starts that it is in.
struct Frame<'b> {
    holder: &'static MessageAnswers,
    bytes: &'b [u8],
    at: usize,
}

struct Walk<'b, 'f> {
    table: &'static Table,
    prefix: &'f str,
    frames: Vec<Frame<'b>>,
    findings: &'f mut Findings,
}

impl<'b> Walk<'b, '_> {
    fn message(&mut self, place: u16, bytes: &'b [u8]) {
        let Some(holder) = self.table.get(place).filter(|_| self.frames.len() < MAX_DEPTH) else { return };
        // Extensions that are answered as a whole are conversion's to name: it knows whether they are in use.
        if !matches!(holder.whole, Answer::Act { .. }) {
            return;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let at = bytes.len() - rest.len();
            let Some((number, raw)) = take_field(&mut rest) else { return };
            match (holder.step(number), raw) {
                (Step::Skip, _) => {}
                (Step::Say, _) => self.within(holder, bytes, at, |walk| walk.say(holder, number, raw)),
                (Step::Unknown, _) => self.within(holder, bytes, at, |walk| {
                    let path = walk.path();
                    push(&mut walk.findings.unknown, path);
                }),
                (step, Raw::Bytes(inner)) => {
                    self.within(holder, bytes, at, |walk| walk.into(step, inner));
                }
                _ => {}
            }
        }
    }

    fn within(&mut self, holder: &'static MessageAnswers, bytes: &'b [u8], at: usize, go: impl FnOnce(&mut Self)) {
        self.frames.push(Frame { holder, bytes, at });
        go(self);
        self.frames.pop();
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
        let heard = self.findings.deprecated.len() == MAX_FINDINGS;
        if (field.is_deprecated() || field.is_disallowed_by_default()) && !heard {
            let full_name = format!("{}.{}", holder.message.name(), field.name());
            let deprecated = Deprecated { path: self.path(), full_name, disallowed: field.is_disallowed_by_default() };
            push(&mut self.findings.deprecated, deprecated);
        }
        match holder.answer(field) {
            Some(Answer::Act { .. }) => {
                if let Raw::Bytes(inner) = raw {
                    self.into(self.table.inner(field), inner);
                }
            }
            Some(Answer::Warn { meaning, unless }) => {
                if !as_if_absent(unless) {
                    // a path costs by the length of the lists it leads through
                    if self.findings.warned.len() < MAX_FINDINGS {
                        let path = self.path();
                        push(&mut self.findings.warned, (path, meaning));
                    }
                    self.inspect(field, raw);
                }
            }
            Some(Answer::Reject { reason, unless }) => {
                if !as_if_absent(unless) && self.findings.rejected.len() < MAX_REJECTED {
                    let path = self.path();
                    self.findings.rejected.push((path, reason));
                }
            }
            // Not in the table, which a test forbids: better refused than ignored.
            None => {
                let path = self.path();
                push(&mut self.findings.rejected, (path, "there is no answer for this field"));
            }
        }
    }

    /// What has no effect may still hold fields that nobody knows.
    fn inspect(&mut self, field: Field, raw: Raw<'_>) {
        if let (FieldType::Message(message), Raw::Bytes(bytes), None) = (field.field_type(), raw, field.map_entry()) {
            let found = Descriptors::shared().inspect(message.name(), bytes);
            for unknown in found.into_iter().flat_map(|found| found.unknown_fields) {
                let path = format!("{}.{}", self.path(), unknown.path);
                push(&mut self.findings.unknown, path);
            }
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
            push(&mut self.findings.unknown, format!("{prefix}.value.{}", field.path));
        }
        if let Some(place) = self.table.place(inner.type_url.rsplit('/').next().unwrap_or_default()) {
            let findings = &mut *self.findings;
            Walk { table: self.table, prefix: &prefix, frames: Vec::new(), findings }.message(place, &inner.value);
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
    let mut before = 0;
    let mut rest = frame.bytes.get(..frame.at).unwrap_or_default();
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

fn push<T>(list: &mut Vec<T>, finding: T) {
    if list.len() < MAX_FINDINGS {
        list.push(finding);
    }
}
