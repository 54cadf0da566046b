//! The rules of a message in the form in which they are walked, made from its descriptor once, when it is first met.
//!
//! What has no rule anywhere below is left out, so a walk skips it unread. There are as many of these as message types
//! in use, at most as many as the API has; they are never freed.

use std::collections::{HashMap, HashSet};
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};

use prost::Message as _;

use crate::pb::validate::{AnyRules, FieldRules, MapRules, MessageRules, RepeatedRules, field_rules::Type};
use crate::table::{Field, FieldType, Message, Special, kind};
use crate::wire::Raw;

use super::bounds::Bounds;
use super::check::{Check, Value, moments};

/// A set of fields of one message, by their place in [`Compiled::fields`].
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Mask([u64; Mask::CAPACITY / 64]);

impl Mask {
    /// More fields than this no message has; a test says so.
    pub(super) const CAPACITY: usize = 128;

    pub(super) fn has(&self, at: usize) -> bool {
        self.0.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 != 0)
    }

    pub(super) fn set(&mut self, at: usize) {
        if let Some(word) = self.0.get_mut(at / 64) {
            *word |= 1 << (at % 64);
        }
    }

    pub(super) fn remove(&mut self, others: &Mask) {
        for (word, other) in self.0.iter_mut().zip(others.0) {
            *word &= !other;
        }
    }

    pub(super) fn meets(&self, others: &Mask) -> bool {
        self.0.iter().zip(others.0).any(|(word, other)| word & other != 0)
    }
}

/// The rules of a message.
pub(super) struct Compiled {
    /// Its name without the package and the messages around it.
    pub(super) name: &'static str,
    /// The fields that rules speak of or that lead to some, by number.
    pub(super) fields: Box<[Rule]>,
    /// The fields that may not be absent.
    pub(super) needed: Box<[usize]>,
    /// The lists and maps that are counted or may hold nothing twice.
    pub(super) counted: Box<[usize]>,
    /// The oneofs of which one member must be set.
    pub(super) oneofs: Box<[Oneof]>,
}

/// A oneof of which one member must be set.
pub(super) struct Oneof {
    pub(super) name: &'static str,
    /// Its place among the message's oneofs.
    pub(super) at: usize,
    pub(super) members: Mask,
}

/// The rules of a field.
pub(super) struct Rule {
    pub(super) field: Field,
    pub(super) number: u32,
    /// Of what is checked: the elements' kind for a list, the values' for a map.
    pub(super) kind: u8,
    /// Place in the order in which Envoy checks.
    pub(super) rank: u32,
    pub(super) shape: Shape,
    pub(super) content: Content,
    /// What Envoy says when the field is absent and may not be.
    pub(super) required: Option<&'static str>,
    /// The other members of its oneof.
    pub(super) rivals: Mask,
}

/// How many there are of a field.
pub(super) enum Shape {
    One,
    List { min: Option<u64>, max: Option<u64>, unique: bool, ignore_empty: bool },
    Map { min: Option<u64>, max: Option<u64>, ignore_empty: bool, key_kind: u8, key: Option<Check> },
}

/// What one value is checked for.
pub(super) enum Content {
    /// A message without rules.
    Opaque,
    Scalar(Option<Check>),
    /// `UInt32Value` and its like: the rules are those of the value.
    Wrapper(Check, u8),
    Duration(Box<Bounds<i128>>),
    Timestamp(Box<Bounds<i128>>),
    Any(Box<AnyRules>),
    Message(Link),
}

/// A message type whose rules are made when it is first met.
pub(super) struct Link {
    message: Message,
    compiled: OnceLock<Option<&'static Compiled>>,
}

impl Link {
    pub(super) fn follow(&self) -> Option<&'static Compiled> {
        *self.compiled.get_or_init(|| compiled(self.message))
    }
}

/// The rules of a message; `None` when there are none in it or below it.
pub(super) fn compiled(message: Message) -> Option<&'static Compiled> {
    static KNOWN: LazyLock<Mutex<HashMap<Message, Option<&'static Compiled>>>> = LazyLock::new(Mutex::default);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    *known.entry(message).or_insert_with(|| {
        reaches_rules(message).then(|| {
            let compiled: &'static Compiled = Box::leak(Box::new(compile(message)));
            compiled
        })
    })
}

/// Whether a message, or any that its fields lead to, has a rule, a duration or an Any.
fn reaches_rules(message: Message) -> bool {
    let (mut met, mut open) = (HashSet::from([message]), vec![message]);
    while let Some(message) = open.pop() {
        match message.special() {
            Special::Any | Special::Duration => return true,
            Special::None if !message.rules_off() => {}
            _ => continue,
        }
        if message.oneofs().any(|(_, required)| required) {
            return true;
        }
        for field in message.fields() {
            if !field.rules().is_empty() {
                return true;
            }
            if let FieldType::Message(inner) = field.field_type()
                && met.insert(inner)
            {
                open.push(inner);
            }
        }
    }
    false
}

fn compile(message: Message) -> Compiled {
    let mut rules: Vec<Rule> = message.fields().map(rule).collect();
    // A oneof matters when one member must be set, or when a member that is set takes the place of one with rules.
    let matters: Vec<bool> = (message.oneofs().enumerate())
        .map(|(at, (_, required))| {
            required || rules.iter().any(|rule| rule.field.oneof() == Some(at) && rule.states_something())
        })
        .collect();
    rules.retain(|rule| {
        rule.states_something() || rule.field.oneof().and_then(|at| matters.get(at)).is_some_and(|matters| *matters)
    });
    rules.truncate(Mask::CAPACITY);

    let members = |oneof: usize| {
        let mut mask = Mask::default();
        (0..).zip(&rules).filter(|(_, rule)| rule.field.oneof() == Some(oneof)).for_each(|(at, _)| mask.set(at));
        mask
    };
    let oneofs: Vec<Mask> = (0..message.oneofs().len()).map(members).collect();
    for (at, rule) in rules.iter_mut().enumerate() {
        if let Some(members) = rule.field.oneof().and_then(|oneof| oneofs.get(oneof)) {
            let mut own = Mask::default();
            own.set(at);
            rule.rivals = *members;
            rule.rivals.remove(&own);
        }
    }
    let places = |wanted: fn(&Rule) -> bool| {
        rules.iter().enumerate().filter(|(_, rule)| wanted(rule)).map(|(at, _)| at).collect::<Box<[usize]>>()
    };
    Compiled {
        name: message.name().rsplit('.').next().unwrap_or_default(),
        needed: places(Rule::is_needed),
        counted: places(|rule| match rule.shape {
            Shape::One => false,
            Shape::List { min, max, unique, .. } => min.is_some() || max.is_some() || unique,
            Shape::Map { min, max, .. } => min.is_some() || max.is_some(),
        }),
        oneofs: (message.oneofs().enumerate().zip(oneofs))
            .filter(|((_, (_, required)), _)| *required)
            .map(|((at, (name, _)), members)| Oneof { name, at, members })
            .collect(),
        fields: rules.into(),
    }
}

fn rule(field: Field) -> Rule {
    let stated = FieldRules::decode(field.rules()).unwrap_or_default();
    let (mut kind, mut required) = (field.kind(), None);
    let (shape, content) = if let Some(entry) = field.map_entry() {
        let rules = if let Some(Type::Map(rules)) = stated.r#type { *rules } else { MapRules::default() };
        let part = |number| entry.field_by_number(number).map(|part| (part.field_type(), part.kind()));
        let (key, value) = (part(1), part(2));
        kind = value.map_or(kind::BYTES, |(_, kind)| kind);
        let key_check = || Check::compile(rules.keys.as_ref()?.r#type.as_ref()?, key?.0);
        let shape = Shape::Map {
            min: rules.min_pairs.filter(|min| *min > 0),
            max: rules.max_pairs,
            ignore_empty: rules.ignore_empty(),
            key_kind: key.map_or(kind::STRING, |(_, kind)| kind),
            key: key_check(),
        };
        (shape, value.map_or(Content::Opaque, |(of, _)| content(of, rules.values.as_deref())))
    } else if field.is_repeated() {
        let rules = if let Some(Type::Repeated(rules)) = stated.r#type { *rules } else { RepeatedRules::default() };
        let shape = Shape::List {
            min: rules.min_items.filter(|min| *min > 0),
            max: rules.max_items,
            unique: rules.unique(),
            ignore_empty: rules.ignore_empty(),
        };
        (shape, content(field.field_type(), rules.items.as_deref()))
    } else {
        let content = content(field.field_type(), Some(&stated));
        required = requirement(&stated, &content).filter(|_| field.oneof().is_none());
        (Shape::One, content)
    };
    // Members of a oneof come last, oneof by oneof; optional scalars before them.
    let group = match field.oneof() {
        Some(oneof) => 2 << 16 | (oneof as u32) << 8,
        None if field.has_presence() && field.kind() != kind::MESSAGE => 1 << 16,
        None => 0,
    };
    let rank = group | u32::from(field.declared_at());
    Rule { field, number: field.number(), kind, rank, shape, content, required, rivals: Mask::default() }
}

fn requirement(stated: &FieldRules, content: &Content) -> Option<&'static str> {
    let message = stated.message.as_ref().is_some_and(MessageRules::required);
    match (&stated.r#type, content) {
        (_, Content::Scalar(_)) => None,
        (None, _) => message.then_some("value is required"),
        (Some(Type::Any(rules)), _) => rules.required().then_some("value is required"),
        (Some(Type::Duration(rules)), _) => rules.required().then_some("value is required"),
        (Some(Type::Timestamp(rules)), _) => rules.required().then_some("value is required"),
        (Some(_), _) => message.then_some("value is required and must not be nil."),
    }
}

fn content(of: FieldType, stated: Option<&FieldRules>) -> Content {
    let rules = stated.and_then(|stated| stated.r#type.as_ref());
    let FieldType::Message(message) = of else {
        return Content::Scalar(rules.and_then(|rules| Check::compile(rules, of)));
    };
    let skipped = stated.and_then(|stated| stated.message.as_ref()).is_some_and(MessageRules::skip);
    let moments = rules.and_then(moments);
    match (message.special(), moments) {
        (Special::Any, _) => match rules {
            Some(Type::Any(rules)) => Content::Any(Box::new(rules.clone())),
            _ => Content::Any(Box::default()),
        },
        (Special::Duration, Some(bounds)) => Content::Duration(bounds),
        (Special::Duration, None) if rules.is_none() => Content::Duration(Box::new(Bounds::none())),
        (Special::Timestamp, Some(bounds)) => Content::Timestamp(bounds),
        (Special::Wrapper, _) => {
            let value = message.field_by_number(1);
            let check = value.and_then(|value| Some((Check::compile(rules?, value.field_type())?, value.kind())));
            check.map_or(Content::Opaque, |(check, kind)| Content::Wrapper(check, kind))
        }
        // Where rules of another kind are stated, as `any` on `ExtensionConfigSource.config_source` is, the generated
        // code does not look into the message.
        (Special::None, _) if rules.is_none() && !skipped && reaches_rules(message) => {
            Content::Message(Link { message, compiled: OnceLock::new() })
        }
        _ => Content::Opaque,
    }
}

impl Compiled {
    /// The place of the field of that number. `near` remembers the last one: a field's neighbours on the wire are its
    /// neighbours here.
    pub(super) fn find(&self, number: u32, near: &mut usize) -> Option<(usize, &Rule)> {
        for at in [*near, *near + 1] {
            if let Some(rule) = self.fields.get(at).filter(|rule| rule.number == number) {
                *near = at;
                return Some((at, rule));
            }
        }
        *near = self.fields.binary_search_by_key(&number, |rule| rule.number).ok()?;
        Some((*near, self.fields.get(*near)?))
    }
}

impl Rule {
    fn states_something(&self) -> bool {
        let shape = match &self.shape {
            Shape::One => self.required.is_some(),
            Shape::List { min, max, unique, .. } => min.is_some() || max.is_some() || *unique,
            Shape::Map { min, max, key, .. } => min.is_some() || max.is_some() || key.is_some(),
        };
        shape || !matches!(self.content, Content::Opaque | Content::Scalar(None))
    }

    /// Required, or a scalar whose default breaks a rule.
    fn is_needed(&self) -> bool {
        let default = || match &self.content {
            Content::Scalar(Some(check)) => check.fault(Value::default(self.kind)).is_some(),
            _ => false,
        };
        let plain = matches!(self.shape, Shape::One) && !self.field.has_presence();
        self.required.is_some() || (plain && default())
    }

    /// Whether the wire type is one that the field has; if not, protobuf takes it for an unknown field.
    pub(super) fn fits(&self, raw: Raw<'_>) -> bool {
        let wanted = if let Shape::Map { .. } = self.shape { kind::MESSAGE } else { self.kind };
        match (raw, wanted) {
            (Raw::Bytes(_), kind::STRING | kind::BYTES | kind::MESSAGE) => true,
            (Raw::Bytes(_), _) => matches!(self.shape, Shape::List { .. }),
            (Raw::Fixed32(_), kind) => matches!(kind, kind::FLOAT | kind::FIXED32 | kind::SFIXED32),
            (Raw::Fixed64(_), kind) => matches!(kind, kind::DOUBLE | kind::FIXED64 | kind::SFIXED64),
            (Raw::Varint(_), kind) => !matches!(
                kind,
                kind::STRING
                    | kind::BYTES
                    | kind::MESSAGE
                    | kind::FLOAT
                    | kind::FIXED32
                    | kind::SFIXED32
                    | kind::DOUBLE
                    | kind::FIXED64
                    | kind::SFIXED64
            ),
        }
    }

    /// Whether its elements stand packed in one field.
    pub(super) fn is_packed(&self, raw: Raw<'_>) -> bool {
        matches!((raw, &self.shape), (Raw::Bytes(_), Shape::List { .. }))
            && !matches!(self.kind, kind::STRING | kind::BYTES | kind::MESSAGE)
    }
}

/// Fields whose rules are not all understood: none, as a test says.
#[cfg(test)]
pub(super) fn unknown_rules(message: Message) -> Vec<Field> {
    let understood = |field: &Field| {
        let Ok(rules) = FieldRules::decode(field.rules()) else { return false };
        let rule = rule(*field);
        match (&rules.r#type, &rule.content) {
            (Some(Type::Timestamp(rules)), _) => {
                rules.lt_now.is_none() && rules.gt_now.is_none() && rules.within.is_none()
            }
            (_, Content::Scalar(Some(check)) | Content::Wrapper(check, _)) => check.compiles(),
            (Some(Type::Repeated(_) | Type::Map(_) | Type::Any(_) | Type::Duration(_)) | None, _) => true,
            (Some(_), _) => false,
        }
    };
    message.fields().filter(|field| !understood(field)).collect()
}
