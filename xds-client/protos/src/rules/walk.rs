//! The walk over a message's wire bytes by its rules.
//!
//! Nothing is allocated while nothing is wrong: where it stands is a chain of frames on the stack, from which paths,
//! indexes and Envoy's names are made once there is something to say.

use std::collections::HashSet;
use std::fmt::Write;

use crate::node::MAX_DEPTH;
use crate::pb::google::protobuf::Any;
use crate::table::{Message, Special, kind};
use crate::wire::{Raw, take_field, take_fixed32, take_fixed64, take_varint};
use crate::{Descriptors, ParseOptions, TypedStruct};

use super::bounds::{Bounds, list};
use super::check::{Check, Value};
use super::compile::{Compiled, Content, Mask, Rule, Shape, compiled};
use super::{MAX_VIOLATIONS, Violation};

/// The bytes of one message. Protobuf merges a message that occurs twice where one is expected, which is to read one
/// after the other.
type Pieces<'a> = &'a [&'a [u8]];

/// The fields of a message in order.
struct Fields<'a> {
    now: &'a [u8],
    next: Pieces<'a>,
}

impl<'a> Fields<'a> {
    fn of(pieces: Pieces<'a>) -> Fields<'a> {
        Fields { now: &[], next: pieces }
    }

    /// `None` where the bytes are no message, `Some(None)` at the end.
    fn next(&mut self) -> Option<Option<(u32, Raw<'a>)>> {
        while self.now.is_empty() {
            match self.next.split_first() {
                Some((first, rest)) => (self.now, self.next) = (first, rest),
                None => return Some(None),
            }
        }
        take_field(&mut self.now).map(Some)
    }
}

/// A message on the way down.
struct Scope<'a> {
    compiled: &'static Compiled,
    pieces: Pieces<'a>,
    up: Option<&'a Frame<'a>>,
    /// The whole, or what an Any holds: Envoy checks it on its own.
    root: bool,
}

/// A field on the way down.
struct Frame<'a> {
    scope: &'a Scope<'a>,
    rule: &'static Rule,
    /// How many fields stand before it in the message, and how many elements in its packed field.
    nth: usize,
    packed: usize,
}

/// What of a field is at fault.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Whole,
    /// Also a map's key: the generated code does not tell it from the value.
    Element,
}

/// Extensions that Envoy makes without a look at their rules.
const UNRULED: &str = "envoy.extensions.load_balancing_policies.";

/// A map of Any that nobody unpacks before it is asked for.
const UNREAD: &str = "typed_filter_metadata";

#[derive(Default)]
struct Walk {
    depth: usize,
    /// In an extension whose rules Envoy does not apply.
    unruled: bool,
    too_deep: bool,
    /// With keys that sort them in Envoy's order.
    found: Vec<(Vec<usize>, Violation)>,
}

/// Walks a message; `None` when the bytes are none.
pub(super) fn walk(message: Message, bytes: &[u8]) -> Option<Vec<Violation>> {
    let mut walk = Walk::default();
    walk.whole(message, &[bytes], None)?;
    let mut found = walk.found;
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Some(found.into_iter().map(|(_, violation)| violation).collect())
}

impl Walk {
    /// A message that Envoy checks on its own.
    fn whole(&mut self, message: Message, pieces: Pieces<'_>, up: Option<&Frame<'_>>) -> Option<()> {
        if message.special() == Special::Any {
            return self.any(pieces, up);
        }
        match compiled(message) {
            Some(compiled) => self.message(&Scope { compiled, pieces, up, root: true }),
            None => Some(()),
        }
    }

    fn descend(&mut self) -> Option<()> {
        self.depth += 1;
        self.too_deep |= self.depth > MAX_DEPTH;
        (!self.too_deep).then_some(())
    }

    fn message(&mut self, scope: &Scope<'_>) -> Option<()> {
        self.descend()?;
        // First: which fields are there, which occur again, and which member of a oneof came last.
        let compiled = scope.compiled;
        let (mut there, mut again) = (Mask::default(), Mask::default());
        let (mut fields, mut near) = (Fields::of(scope.pieces), 0);
        while let Some((number, raw)) = fields.next()? {
            let Some((at, rule)) = compiled.find(number, &mut near).filter(|(_, rule)| rule.fits(raw)) else {
                continue;
            };
            if there.has(at) && matches!(rule.shape, Shape::One) {
                again.set(at);
            }
            there.remove(&rule.rivals);
            there.set(at);
        }

        let mut done = Mask::default();
        let (mut fields, mut near, mut nth) = (Fields::of(scope.pieces), 0, 0);
        while let Some((number, raw)) = fields.next()? {
            nth += 1;
            let Some((at, rule)) = compiled.find(number, &mut near).filter(|(_, rule)| rule.fits(raw)) else {
                continue;
            };
            let frame = Frame { scope, rule, nth: nth - 1, packed: 0 };
            if !there.has(at) || done.has(at) {
                continue;
            }
            if again.has(at) {
                done.set(at);
                self.merged(&frame)?;
            } else {
                self.field(&frame, raw)?;
            }
        }

        for at in &compiled.needed {
            if let Some(rule) = compiled.fields.get(*at).filter(|_| !there.has(*at)) {
                let reason = match (rule.required, &rule.content) {
                    (Some(reason), _) => Some(reason.to_owned()),
                    (None, Content::Scalar(Some(check))) => check.fault(Value::default(rule.kind)),
                    _ => None,
                };
                self.report(&Frame { scope, rule, nth: 0, packed: 0 }, Part::Whole, reason);
            }
        }
        for at in &compiled.counted {
            if let Some(rule) = compiled.fields.get(*at) {
                self.count(&Frame { scope, rule, nth: 0, packed: 0 })?;
            }
        }
        for oneof in compiled.oneofs.iter().filter(|oneof| !there.meets(&oneof.members)) {
            self.report_oneof(scope, oneof.name, oneof.at);
        }
        self.depth -= 1;
        Some(())
    }

    /// A field of one value that occurs several times.
    fn merged(&mut self, frame: &Frame<'_>) -> Option<()> {
        let mut found = Vec::new();
        let mut fields = Fields::of(frame.scope.pieces);
        while let Some((number, raw)) = fields.next()? {
            if number == frame.rule.number && frame.rule.fits(raw) {
                found.push(raw);
            }
        }
        if frame.rule.kind != kind::MESSAGE {
            // Of a scalar the last one holds.
            return found.pop().map_or(Some(()), |last| self.field(frame, last));
        }
        let pieces: Vec<&[u8]> = found.into_iter().map(raw_bytes).collect();
        self.holder(frame, &pieces)
    }

    fn field(&mut self, frame: &Frame<'_>, raw: Raw<'_>) -> Option<()> {
        if let (Shape::Map { key, key_kind, .. }, Raw::Bytes(entry)) = (&frame.rule.shape, raw) {
            return self.entry(frame, *key_kind, key.as_ref(), entry);
        }
        if frame.rule.is_packed(raw) {
            let mut elements = Packed { kind: frame.rule.kind, bytes: raw_bytes(raw) };
            let mut packed = 0;
            while let Some(raw) = elements.next()? {
                self.scalar(&Frame { packed, ..*frame }, raw);
                packed += 1;
            }
            return Some(());
        }
        match raw {
            Raw::Bytes(bytes) if frame.rule.kind == kind::MESSAGE => self.holder(frame, &[bytes]),
            raw => {
                self.scalar(frame, raw);
                Some(())
            }
        }
    }

    fn entry(&mut self, frame: &Frame<'_>, key_kind: u8, check: Option<&Check>, entry: &[u8]) -> Option<()> {
        let (key, value) = parts(entry)?;
        if let Some(check) = check {
            let key = key.and_then(|raw| Value::read(key_kind, raw)).unwrap_or(Value::default(key_kind));
            self.report(frame, Part::Element, check.fault(key));
        }
        match (value, frame.rule.kind) {
            (_, kind::MESSAGE) if frame.rule.field.name() == UNREAD => Some(()),
            (Some(Raw::Bytes(bytes)), kind::MESSAGE) => self.holder(frame, &[bytes]),
            (_, kind::MESSAGE) => self.holder(frame, &[]),
            (value, kind) => {
                if let Content::Scalar(Some(check)) = &frame.rule.content {
                    let value = value.and_then(|raw| Value::read(kind, raw)).unwrap_or(Value::default(kind));
                    self.report(frame, Part::Element, check.fault(value));
                }
                Some(())
            }
        }
    }

    fn scalar(&mut self, frame: &Frame<'_>, raw: Raw<'_>) {
        if let Content::Scalar(Some(check)) = &frame.rule.content
            && let Some(value) = Value::read(frame.rule.kind, raw)
        {
            self.report(frame, Part::Element, check.fault(value));
        }
    }

    /// A value that is a message.
    fn holder(&mut self, frame: &Frame<'_>, pieces: Pieces<'_>) -> Option<()> {
        match &frame.rule.content {
            Content::Opaque | Content::Scalar(_) => {}
            Content::Message(link) => {
                if let Some(compiled) = link.follow() {
                    self.message(&Scope { compiled, pieces, up: Some(frame), root: false })?;
                }
            }
            Content::Wrapper(check, kind) => {
                let value = last(pieces, 1)?.and_then(|raw| Value::read(*kind, raw));
                self.report(frame, Part::Element, check.fault(value.unwrap_or(Value::default(*kind))));
            }
            Content::Duration(bounds) => {
                /// Ten thousand years, protobuf's limit.
                const MOST: i64 = 315_576_000_000;
                /// Envoy counts nanoseconds in 63 bits, and durations from zero.
                const COUNTED: std::ops::Range<i64> = 0..9_223_372_036;
                let (seconds, nanos) = moment(pieces)?;
                let valid = (-MOST..=MOST).contains(&seconds) && (-999_999_999..=999_999_999).contains(&nanos);
                let invalid = || Some("value is not a valid duration".to_owned());
                let ruled = if valid { judge(bounds, seconds, nanos) } else { invalid() };
                if !self.unruled && ruled.is_some() {
                    self.report(frame, Part::Element, ruled);
                } else if !COUNTED.contains(&seconds) || nanos < 0 {
                    let unruled = std::mem::take(&mut self.unruled);
                    let reason = format!("Invalid duration: Expected positive duration: seconds: {seconds}");
                    let reason = if seconds > 0 {
                        format!("Invalid duration: Duration out-of-range: seconds: {seconds}")
                    } else {
                        reason
                    };
                    self.report(frame, Part::Element, Some(reason));
                    self.unruled = unruled;
                }
            }
            Content::Timestamp(bounds) => {
                let (seconds, nanos) = moment(pieces)?;
                self.report(frame, Part::Element, judge(bounds, seconds, nanos));
            }
            Content::Any(rules) => {
                if !rules.r#in.is_empty() || !rules.not_in.is_empty() {
                    let url = last(pieces, 1)?.map_or("", |raw| std::str::from_utf8(raw_bytes(raw)).unwrap_or(""));
                    let holds = |urls: &[String]| urls.iter().any(|known| known == url);
                    let fault = if !rules.r#in.is_empty() && !holds(&rules.r#in) {
                        Some(format!("type URL must be in list {}", list(&rules.r#in, String::clone)))
                    } else if holds(&rules.not_in) {
                        Some(format!("type URL must not be in list {}", list(&rules.not_in, String::clone)))
                    } else {
                        None
                    };
                    self.report(frame, Part::Element, fault);
                }
                self.any(pieces, Some(frame))?;
            }
        }
        Some(())
    }

    /// What an Any holds, when its type is known; also what a `TypedStruct` describes.
    fn any(&mut self, pieces: Pieces<'_>, up: Option<&Frame<'_>>) -> Option<()> {
        let bytes = |number| Some(last(pieces, number)?.map_or(&[][..], raw_bytes));
        let url = std::str::from_utf8(bytes(1)?).ok()?;
        let name = url.rsplit('/').next().unwrap_or("");
        let Some(message) = Message::find(name) else { return Some(()) };
        let depth = self.depth;
        // An Any in an Any adds no field to the path, but a level all the same.
        self.descend()?;
        let value = bytes(2)?;
        let unruled = self.unruled;
        self.unruled |= name.starts_with(UNRULED);
        let walked = if TypedStruct::NAMES.contains(&name) {
            let any = Any { type_url: url.to_owned(), value: value.to_vec() };
            let options = ParseOptions { allow_unknown_fields: true, file: None };
            // What does not become its target is another's to report.
            match Descriptors.typed_struct(&any, options) {
                Ok(Some((inner, parsed))) => match Message::find(inner.type_url.rsplit('/').next().unwrap_or("")) {
                    Some(message) => self.whole(message, &[&parsed.bytes], up),
                    None => Some(()),
                },
                _ => Some(()),
            }
        } else {
            self.whole(message, &[value], up)
        };
        // So is what turns out to be no such message: perhaps nobody unpacks it.
        self.depth = depth;
        self.unruled = unruled;
        if self.too_deep { None } else { walked.or(Some(())) }
    }

    /// Lists and maps: how many, and whether one twice.
    fn count(&mut self, frame: &Frame<'_>) -> Option<()> {
        let count = elements(frame, usize::MAX)? as u64;
        let (min, max, ignored, one, many) = match &frame.rule.shape {
            Shape::One => return Some(()),
            Shape::List { min, max, ignore_empty, .. } => (*min, *max, *ignore_empty, "item", "items"),
            Shape::Map { min, max, ignore_empty, .. } => (*min, *max, *ignore_empty, "pair", "pairs"),
        };
        let reason = match (min, max) {
            _ if ignored && count == 0 => None,
            (Some(min), Some(max)) if min == max => {
                (count != min).then(|| format!("value must contain exactly {min} {one}(s)"))
            }
            (Some(min), Some(max)) => (count < min || count > max)
                .then(|| format!("value must contain between {min} and {max} {many}, inclusive")),
            (Some(min), None) => (count < min).then(|| format!("value must contain at least {min} {one}(s)")),
            (None, max) => {
                max.filter(|max| count > *max).map(|max| format!("value must contain no more than {max} {one}(s)"))
            }
        };
        self.report(frame, Part::Whole, reason);
        match frame.rule.shape {
            Shape::List { unique: true, .. } if count > 1 => self.unique(frame),
            _ => Some(()),
        }
    }

    fn unique(&mut self, frame: &Frame<'_>) -> Option<()> {
        let (mut numbers, mut texts) = (HashSet::new(), HashSet::new());
        let mut is_new = |raw| match raw {
            Raw::Varint(value) | Raw::Fixed64(value) => numbers.insert(value),
            Raw::Fixed32(value) => numbers.insert(value.into()),
            Raw::Bytes(bytes) => texts.insert(bytes),
        };
        let twice = || Some("repeated value must contain unique items".to_owned());
        let (mut fields, mut nth) = (Fields::of(frame.scope.pieces), 0);
        while let Some((number, raw)) = fields.next()? {
            nth += 1;
            if number != frame.rule.number || !frame.rule.fits(raw) {
                continue;
            }
            if frame.rule.is_packed(raw) {
                let mut elements = Packed { kind: frame.rule.kind, bytes: raw_bytes(raw) };
                let mut packed = 0;
                while let Some(raw) = elements.next()? {
                    if !is_new(raw) {
                        self.report(&Frame { nth: nth - 1, packed, ..*frame }, Part::Element, twice());
                    }
                    packed += 1;
                }
            } else if !is_new(raw) {
                self.report(&Frame { nth: nth - 1, packed: 0, ..*frame }, Part::Element, twice());
            }
        }
        Some(())
    }

    fn report(&mut self, frame: &Frame<'_>, part: Part, reason: Option<String>) {
        let Some(reason) = reason.filter(|_| !self.unruled && self.found.len() < MAX_VIOLATIONS) else { return };
        let mut place = Place::default();
        place.go(frame, part);
        let field = place.names.pop().unwrap_or_default();
        place.key.insert(0, place.roots);
        self.found.push((place.key, Violation { path: place.path, field, reason, outer: place.names }));
    }

    fn report_oneof(&mut self, scope: &Scope<'_>, name: &str, at: usize) {
        if self.unruled || self.found.len() >= MAX_VIOLATIONS {
            return;
        }
        let mut place = Place::default();
        if let Some(up) = scope.up {
            place.go(up, Part::Element);
        }
        if scope.root {
            place.roots += 1;
            place.names.clear();
        }
        place.dot();
        place.path.push_str(name);
        place.key.push(2 << 16 | at << 8);
        place.key.insert(0, place.roots);
        let (field, reason) = (name.to_owned(), "is required".to_owned());
        self.found.push((place.key, Violation { path: place.path, field, reason, outer: place.names }));
    }
}

/// Where the walk stands, in words.
#[derive(Default)]
struct Place {
    path: String,
    names: Vec<String>,
    key: Vec<usize>,
    roots: usize,
}

impl Place {
    fn dot(&mut self) {
        if !self.path.is_empty() {
            self.path.push('.');
        }
    }

    fn go(&mut self, frame: &Frame<'_>, part: Part) {
        let (scope, rule) = (frame.scope, frame.rule);
        if let Some(up) = scope.up {
            self.go(up, Part::Element);
        }
        if scope.root {
            self.roots += 1;
            self.names.clear();
        }
        self.dot();
        self.path.push_str(rule.field.name());
        let mut name = format!("{}ValidationError.{}", scope.compiled.name, camel_case(rule.field.name()));
        self.key.push(rule.rank as usize);
        if part != Part::Whole {
            // Writing to a String does not fail.
            let _ = match rule.shape {
                Shape::One => Ok(()),
                Shape::List { .. } => {
                    let at = elements(frame, frame.nth).unwrap_or_default() + frame.packed;
                    write!(self.path, "[{at}]").and_then(|()| write!(name, "[{at}]"))
                }
                Shape::Map { key_kind, .. } => match key(frame).and_then(|raw| Value::read(key_kind, raw)) {
                    Some(Value::Bytes(key)) => {
                        let key = String::from_utf8_lossy(key);
                        write!(self.path, "[{key:?}]").and_then(|()| write!(name, "[{key}]"))
                    }
                    Some(Value::Whole(key)) => write!(self.path, "[{key}]").and_then(|()| write!(name, "[{key}]")),
                    _ => write!(self.path, "[\"\"]").and_then(|()| write!(name, "[]")),
                },
            };
            self.key.push(frame.nth + 1);
            self.key.push(frame.packed);
        }
        self.names.push(name);
    }
}

/// The elements of a list or map in the first `before` fields of the message.
fn elements(frame: &Frame<'_>, before: usize) -> Option<usize> {
    let (mut fields, mut nth, mut count) = (Fields::of(frame.scope.pieces), 0, 0);
    while let Some((number, raw)) = fields.next()? {
        nth += 1;
        if nth > before {
            break;
        }
        if number != frame.rule.number || !frame.rule.fits(raw) {
            continue;
        }
        if frame.rule.is_packed(raw) {
            let mut packed = Packed { kind: frame.rule.kind, bytes: raw_bytes(raw) };
            while packed.next()?.is_some() {
                count += 1;
            }
        } else {
            count += 1;
        }
    }
    Some(count)
}

/// The key of the map entry that a frame stands on.
fn key<'a>(frame: &Frame<'a>) -> Option<Raw<'a>> {
    let mut fields = Fields::of(frame.scope.pieces);
    for _ in 0..frame.nth {
        fields.next()?;
    }
    parts(raw_bytes(fields.next()??.1))?.0
}

/// Key and value of a map entry.
fn parts(mut entry: &[u8]) -> Option<(Option<Raw<'_>>, Option<Raw<'_>>)> {
    let (mut key, mut value) = (None, None);
    while !entry.is_empty() {
        match take_field(&mut entry)? {
            (1, raw) => key = Some(raw),
            (2, raw) => value = Some(raw),
            _ => {}
        }
    }
    Some((key, value))
}

/// The last field of that number, which of several is the one that holds.
fn last<'a>(pieces: Pieces<'a>, wanted: u32) -> Option<Option<Raw<'a>>> {
    let (mut fields, mut found) = (Fields::of(pieces), None);
    while let Some((number, raw)) = fields.next()? {
        if number == wanted {
            found = Some(raw);
        }
    }
    Some(found)
}

/// Seconds and nanoseconds of a `Duration` or `Timestamp`.
fn moment(pieces: Pieces<'_>) -> Option<(i64, i32)> {
    let (mut fields, mut seconds, mut nanos) = (Fields::of(pieces), 0, 0);
    while let Some((number, raw)) = fields.next()? {
        match (number, raw) {
            (1, Raw::Varint(value)) => seconds = value as i64,
            (2, Raw::Varint(value)) => nanos = value as i32,
            _ => {}
        }
    }
    Some((seconds, nanos))
}

fn judge(bounds: &Bounds<i128>, seconds: i64, nanos: i32) -> Option<String> {
    bounds.fault(&(i128::from(seconds) * 1_000_000_000 + i128::from(nanos)))
}

fn raw_bytes(raw: Raw<'_>) -> &[u8] {
    if let Raw::Bytes(bytes) = raw { bytes } else { &[] }
}

/// The scalars of a packed field.
struct Packed<'a> {
    kind: u8,
    bytes: &'a [u8],
}

impl<'a> Packed<'a> {
    /// `None` where the bytes are no such list, `Some(None)` at the end.
    fn next(&mut self) -> Option<Option<Raw<'a>>> {
        if self.bytes.is_empty() {
            return Some(None);
        }
        Some(Some(match self.kind {
            kind::DOUBLE | kind::FIXED64 | kind::SFIXED64 => Raw::Fixed64(take_fixed64(&mut self.bytes)?),
            kind::FLOAT | kind::FIXED32 | kind::SFIXED32 => Raw::Fixed32(take_fixed32(&mut self.bytes)?),
            _ => Raw::Varint(take_varint(&mut self.bytes)?),
        }))
    }
}

/// `connect_timeout` as Go's generated code spells it: `ConnectTimeout`.
fn camel_case(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut chars = name.chars().peekable();
    let mut upper = true;
    while let Some(c) = chars.next() {
        match c {
            '_' if chars.peek().is_some_and(char::is_ascii_lowercase) => upper = true,
            c if upper => {
                out.push(c.to_ascii_uppercase());
                upper = c.is_ascii_digit();
            }
            c => {
                out.push(c);
                upper = c.is_ascii_digit();
            }
        }
    }
    out
}
