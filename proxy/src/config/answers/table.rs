//! Reading the table: text in, per message one answer for each field and the steps that the walk takes.
//!
//! A paragraph starts with the full name of a message. Below it, indented, stands each of its fields: name, answer, and
//! why (for `act`: what to know about it; for `idle`: what would depend on it). `unless` names a value that means the same as leaving the field out. A
//! message with an answer on its own line is an extension that is not built: nothing below it is looked at.

use std::collections::HashMap;
use std::sync::OnceLock;
use xds_protos::table::{Field, FieldType, Message, Special, kind};

/// The files, in the order of the support page: subject and text.
pub(super) const SUBJECTS: &[(&str, &str)] = &[
    ("Bootstrap", include_str!("bootstrap.txt")),
    ("Listeners", include_str!("listener.txt")),
    ("Listener filters, UDP and QUIC", include_str!("listener_filters.txt")),
    ("Network filters", include_str!("network_filters.txt")),
    ("The HTTP connection manager", include_str!("hcm.txt")),
    ("HTTP filters", include_str!("http_filters.txt")),
    ("Routes", include_str!("route.txt")),
    ("Retries", include_str!("retry.txt")),
    ("Matchers, fractions and headers", include_str!("matcher.txt")),
    ("Clusters", include_str!("cluster.txt")),
    ("Endpoints", include_str!("endpoint.txt")),
    ("Health checks", include_str!("health.txt")),
    ("Load balancing", include_str!("load_balancing.txt")),
    ("HTTP towards endpoints, and its codecs", include_str!("upstream_http.txt")),
    ("TLS and transport sockets", include_str!("tls.txt")),
    ("Secrets", include_str!("secret.txt")),
    ("Access logs", include_str!("access_log.txt")),
    ("Addresses, sources and other common parts", include_str!("core.txt")),
    ("xDS", include_str!("xds.txt")),
];

/// What becomes of a field, or of an extension as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Conversion reads it. The note may be empty.
    Act { note: &'static str },
    /// Setting it to anything but `unless` has no effect and is said so, with the meaning.
    Warn { meaning: &'static str, unless: Option<&'static str> },
    /// Setting it to anything but `unless` refuses the resource, with the reason.
    Reject { reason: &'static str, unless: Option<&'static str> },
    /// Nothing that is accepted here depends on it, so that nothing is lost: it passes in silence.
    Idle { why: &'static str },
}

/// The answers of one message type.
#[derive(Debug)]
pub struct MessageAnswers {
    pub message: Message,
    /// Which file it stands in.
    pub subject: &'static str,
    /// The answer for the extension as a whole; [`Answer::Act`] when its fields have their own.
    pub whole: Answer,
    /// In the order of the file.
    pub fields: Vec<(Field, Answer)>,
    steps: Vec<Step>,
}

/// What the walk does with a field, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The descriptor has no such field.
    Unknown,
    /// Nothing to look for in it.
    Skip,
    /// A message of the table, by its place there.
    Into(u16),
    /// A map; its values are messages of the table.
    Entries(u16),
    Any,
    /// There is something to say: see the answer.
    Say,
}

/// The whole table.
#[derive(Debug, Default)]
pub struct Table {
    messages: Vec<MessageAnswers>,
    places: HashMap<&'static str, u16>,
}

/// The table, read when it is first asked for.
pub fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    // What does not fit is left out of the table, and a test sees to it that everything fits.
    TABLE.get_or_init(|| Table::read(SUBJECTS).0)
}

impl Table {
    /// Reads the files; what does not fit comes back as lines for a person.
    pub(super) fn read(subjects: &[(&'static str, &'static str)]) -> (Table, Vec<String>) {
        let mut table = Table::default();
        let mut problems = Vec::new();
        for &(subject, text) in subjects {
            for (at, line) in text.lines().enumerate() {
                if line.trim().is_empty() || line.starts_with('#') {
                    continue;
                }
                if let Err(problem) = table.line(subject, line) {
                    problems.push(format!("{subject}, line {}: {problem}", at + 1));
                }
            }
        }
        table.plan();
        (table, problems)
    }

    fn line(&mut self, subject: &'static str, line: &'static str) -> Result<(), String> {
        let (name, rest) = split_word(line);
        if line.starts_with(char::is_whitespace) {
            let message = self.messages.last_mut().ok_or("a field before any message")?;
            let field = message.message.field_by_name(name).filter(|field| field.name() == name);
            let field = field.ok_or_else(|| format!("{} has no field {name}", message.message.name()))?;
            if message.fields.iter().any(|(known, _)| *known == field) {
                return Err(format!("{}.{name} has two answers", message.message.name()));
            }
            message.fields.push((field, answer(rest)?));
            return Ok(());
        }
        let message = Message::find(name).ok_or_else(|| format!("there is no message {name}"))?;
        let whole = if rest.is_empty() { Answer::Act { note: "" } } else { answer(rest)? };
        let place = u16::try_from(self.messages.len()).map_err(|_| "more than 65,536 messages")?;
        if self.places.insert(message.name(), place).is_some() {
            return Err(format!("{name} stands twice"));
        }
        self.messages.push(MessageAnswers { message, subject, whole, fields: Vec::new(), steps: Vec::new() });
        Ok(())
    }

    /// Works out the steps of the walk.
    fn plan(&mut self) {
        for at in 0..self.messages.len() {
            let message = self.messages[at].message;
            let last = message.fields().map(Field::number).max().unwrap_or(0);
            let mut steps = vec![Step::Unknown; last as usize + 1];
            for field in message.fields() {
                steps[field.number() as usize] = self.step(&self.messages[at], field);
            }
            self.messages[at].steps = steps;
        }
    }

    fn step(&self, holder: &MessageAnswers, field: Field) -> Step {
        let is_act = |(known, answer): &(Field, Answer)| *known == field && matches!(answer, Answer::Act { .. });
        // what it holds is still looked at for fields that nobody knows, where it is a message of the table
        let is_idle = |(known, answer): &(Field, Answer)| *known == field && matches!(answer, Answer::Idle { .. });
        if holder.fields.iter().any(is_idle) && !field.is_deprecated() {
            return self.inner(field);
        }
        if field.is_deprecated() || field.is_disallowed_by_default() || !holder.fields.iter().any(is_act) {
            return Step::Say;
        }
        self.inner(field)
    }

    /// The step into a field of which there is nothing to say itself.
    pub(super) fn inner(&self, field: Field) -> Step {
        let value = field.map_entry().and_then(|entry| entry.field_by_number(2));
        let FieldType::Message(inner) = value.unwrap_or(field).field_type() else { return Step::Skip };
        match (inner.special(), self.places.get(inner.name())) {
            (Special::Any, _) if value.is_none() => Step::Any,
            (Special::None | Special::Any, place) if value.is_some() => {
                place.map_or(Step::Entries(u16::MAX), |place| Step::Entries(*place))
            }
            (Special::None, Some(place)) => Step::Into(*place),
            _ => Step::Skip,
        }
    }

    /// All messages, in the order of the files.
    pub fn messages(&self) -> &[MessageAnswers] {
        &self.messages
    }

    /// The answers of the message type of that full name.
    pub fn find(&self, full_name: &str) -> Option<&MessageAnswers> {
        self.get(self.place(full_name)?)
    }

    pub(super) fn place(&self, full_name: &str) -> Option<u16> {
        self.places.get(full_name).copied()
    }

    pub(super) fn get(&self, place: u16) -> Option<&MessageAnswers> {
        self.messages.get(usize::from(place))
    }
}

impl MessageAnswers {
    pub(super) fn step(&self, number: u32) -> Step {
        self.steps.get(number as usize).copied().unwrap_or(Step::Unknown)
    }

    /// The answer for a field; `None` when the table forgot it.
    pub fn answer(&self, field: Field) -> Option<Answer> {
        self.fields.iter().find(|(known, _)| *known == field).map(|(_, answer)| *answer)
    }
}

pub(super) fn split_word(line: &'static str) -> (&'static str, &'static str) {
    let line = line.trim();
    line.split_once(char::is_whitespace).map_or((line, ""), |(word, rest)| (word, rest.trim_start()))
}

pub(super) fn answer(text: &'static str) -> Result<Answer, String> {
    let (word, rest) = split_word(text);
    let (unless, reason) = match rest.strip_prefix("unless ") {
        Some(rest) => {
            let (value, reason) = split_word(rest);
            (Some(value), reason)
        }
        None => (None, rest),
    };
    match (word, reason, unless) {
        ("act", note, None) => Ok(Answer::Act { note }),
        ("warn" | "reject" | "idle", "", _) => Err(format!("{word} without a reason")),
        ("warn", meaning, unless) => Ok(Answer::Warn { meaning, unless }),
        ("reject", reason, unless) => Ok(Answer::Reject { reason, unless }),
        ("idle", why, None) => Ok(Answer::Idle { why }),
        _ => Err(format!("found {text:?}, expected act, warn, reject or idle")),
    }
}

/// Whether a value on the wire is the one that `unless` names.
pub(super) fn is_value(field: Field, raw: xds_protos::wire::Raw<'_>, unless: &str) -> bool {
    use xds_protos::wire::Raw;
    match (field.field_type(), raw) {
        (FieldType::Message(message), Raw::Bytes(bytes)) => match message.special() {
            Special::Wrapper => {
                let mut rest = bytes;
                let value = xds_protos::wire::take_field(&mut rest).map(|(_, raw)| raw);
                message.field_by_number(1).is_some_and(|f| is_value(f, value.unwrap_or(Raw::Varint(0)), unless))
            }
            Special::Duration => humane_seconds(unless) == Some(duration(bytes)),
            _ => unless == "empty" && bytes.is_empty(),
        },
        (FieldType::Enum(numbers), Raw::Varint(value)) => {
            i32::try_from(value).is_ok_and(|value| numbers.number(unless) == Some(value))
        }
        (FieldType::Scalar(kind::BOOL), Raw::Varint(value)) => (value != 0).to_string() == unless,
        (FieldType::Scalar(_), Raw::Varint(value)) => value.to_string() == unless,
        (FieldType::Scalar(_), Raw::Bytes(bytes)) => bytes == unless.as_bytes(),
        (FieldType::Scalar(_), Raw::Fixed64(bits)) => unless.parse() == Ok(f64::from_bits(bits)),
        (FieldType::Scalar(_), Raw::Fixed32(bits)) => unless.parse() == Ok(f32::from_bits(bits)),
        _ => false,
    }
}

/// `5s`, `0.025s` as seconds and nanoseconds.
fn humane_seconds(text: &str) -> Option<(u64, u64)> {
    let (seconds, nanos) = text.strip_suffix('s')?.split_once('.').unwrap_or((text.strip_suffix('s')?, ""));
    Some((seconds.parse().ok()?, format!("{nanos:0<9}").parse().ok()?))
}

fn duration(mut bytes: &[u8]) -> (u64, u64) {
    let (mut seconds, mut nanos) = (0, 0);
    while let Some((number, xds_protos::wire::Raw::Varint(value))) = xds_protos::wire::take_field(&mut bytes) {
        match number {
            1 => seconds = value,
            _ => nanos = value,
        }
    }
    (seconds, nanos)
}
