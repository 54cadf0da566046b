//! Descriptors: what fields a message has, by name and by number.
//!
//! Reads the table that the build script wrote, in place: handles are indexes, names are slices of the binary. There is
//! nothing to load and nothing to free, and only the pages looked at become resident. Knows no JSON and no wire format.

use crate::layout::{ENUM_WORDS, FIELD_WORDS, MESSAGE_WORDS, NAME_WORDS, ONEOF_WORDS, VALUE_WORDS};
use crate::layout::{NO_ONEOF, flag, header, message_flag};

pub use crate::layout::kind;

static TABLE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The word at a byte offset; 0 outside the table, which no index made here reaches.
fn word(offset: usize) -> u32 {
    match TABLE.get(offset..offset + 4) {
        Some(&[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]),
        _ => 0,
    }
}

/// A word of a record in the array that `array` names in the header.
fn field_of(array: usize, record: u32, words: usize, at: usize) -> u32 {
    word(word(array * 4) as usize + (record as usize * words + at) * 4)
}

fn heap_bytes(at: u32) -> &'static [u8] {
    let start = word(header::HEAP * 4) as usize + at as usize;
    match TABLE.get(start..start + 2) {
        Some(&[low, high]) => {
            let length = usize::from(u16::from_le_bytes([low, high]));
            TABLE.get(start + 2..start + 2 + length).unwrap_or(&[])
        }
        _ => &[],
    }
}

fn heap_str(at: u32) -> &'static str {
    std::str::from_utf8(heap_bytes(at)).unwrap_or("")
}

/// Finds `wanted` among `count` names in sorted order.
fn search(count: u32, wanted: &str, name: impl Fn(u32) -> &'static [u8]) -> Option<u32> {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        match name(middle).cmp(wanted.as_bytes()) {
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
            std::cmp::Ordering::Equal => return Some(middle),
        }
    }
    None
}

/// A message type.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Message(u32);

/// How protobuf's JSON mapping treats a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// An object of its fields.
    None,
    /// `google.protobuf.Any`
    Any,
    /// `google.protobuf.Duration`
    Duration,
    /// `google.protobuf.Timestamp`
    Timestamp,
    /// `google.protobuf.FieldMask`
    FieldMask,
    /// `google.protobuf.Struct`
    Struct,
    /// `google.protobuf.Value`
    Value,
    /// `google.protobuf.ListValue`
    ListValue,
    /// `google.protobuf.UInt32Value` and its like: one field named `value`.
    Wrapper,
    /// `google.protobuf.Empty`
    Empty,
}

impl Message {
    /// The message of that full name (`envoy.config.cluster.v3.Cluster`).
    pub fn find(full_name: &str) -> Option<Message> {
        let count = word((header::MESSAGES + 1) * 4);
        search(count, full_name, |at| heap_bytes(Message(at).get(0))).map(Message)
    }

    /// All messages, by full name.
    pub fn all() -> impl Iterator<Item = Message> {
        (0..word((header::MESSAGES + 1) * 4)).map(Message)
    }

    fn get(self, at: usize) -> u32 {
        field_of(header::MESSAGES, self.0, MESSAGE_WORDS, at)
    }

    /// Full name.
    pub fn name(self) -> &'static str {
        heap_str(self.get(0))
    }

    /// Fields by ascending number.
    pub fn fields(self) -> impl ExactSizeIterator<Item = Field> {
        let first = self.get(1);
        (first..first + self.get(2)).map(Field)
    }

    /// The field that JSON calls `name`, in either spelling (`connect_timeout`, `connectTimeout`).
    pub fn field_by_name(self, name: &str) -> Option<Field> {
        let first = self.get(3);
        let record = |at: u32, part: usize| field_of(header::NAMES, first + at, NAME_WORDS, part);
        let at = search(self.get(4), name, |at| heap_bytes(record(at, 0)))?;
        Some(Field(self.get(1) + record(at, 1)))
    }

    /// The field of that number.
    pub fn field_by_number(self, number: u32) -> Option<Field> {
        let first = self.get(1);
        let (mut low, mut high) = (0, self.get(2));
        while low < high {
            let middle = low + (high - low) / 2;
            match Field(first + middle).number().cmp(&number) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(Field(first + middle)),
            }
        }
        None
    }

    /// The oneofs: name, and whether `validate.required` says that one member must be set.
    pub fn oneofs(self) -> impl ExactSizeIterator<Item = (&'static str, bool)> {
        let first = self.get(5);
        (first..first + (self.get(6) & 0xff)).map(|at| {
            let record = |part| field_of(header::ONEOFS, at, ONEOF_WORDS, part);
            (heap_str(record(0)), record(1) != 0)
        })
    }

    /// Whether this is the entry of a map field: `key` is 1, `value` is 2.
    pub fn is_map_entry(self) -> bool {
        self.get(6) & message_flag::MAP_ENTRY != 0
    }

    /// Whether the API switches validation off here (`validate.disabled`, `validate.ignored`).
    pub fn rules_off(self) -> bool {
        self.get(6) & message_flag::RULES_OFF != 0
    }

    /// How JSON treats this type.
    pub fn special(self) -> Special {
        // Bytes, because every step of a walk asks, and a name need not be checked for UTF-8 then.
        let Some(short) = heap_bytes(self.get(0)).strip_prefix(b"google.protobuf.") else { return Special::None };
        match short {
            b"Any" => Special::Any,
            b"Duration" => Special::Duration,
            b"Timestamp" => Special::Timestamp,
            b"FieldMask" => Special::FieldMask,
            b"Struct" => Special::Struct,
            b"Value" => Special::Value,
            b"ListValue" => Special::ListValue,
            b"Empty" => Special::Empty,
            b"DoubleValue" | b"FloatValue" | b"Int64Value" | b"UInt64Value" | b"Int32Value" | b"UInt32Value"
            | b"BoolValue" | b"StringValue" | b"BytesValue" => Special::Wrapper,
            _ => Special::None,
        }
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A field of a message.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Field(u32);

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// A number, bool, string or bytes: one of [`kind`].
    Scalar(u8),
    /// A message.
    Message(Message),
    /// An enum.
    Enum(Enum),
}

impl Field {
    fn get(self, at: usize) -> u32 {
        field_of(header::FIELDS, self.0, FIELD_WORDS, at)
    }

    /// Name in the .proto file.
    pub fn name(self) -> &'static str {
        heap_str(self.get(0))
    }

    /// Name in protobuf's JSON.
    pub fn json_name(self) -> &'static str {
        heap_str(self.get(1))
    }

    /// Number on the wire.
    pub fn number(self) -> u32 {
        self.get(2)
    }

    fn parts(self) -> [u8; 4] {
        self.get(3).to_le_bytes()
    }

    fn has(self, bit: u8) -> bool {
        self.parts()[1] & bit != 0
    }

    /// One of [`kind`].
    pub fn kind(self) -> u8 {
        self.parts()[0]
    }

    /// What it holds; for a list or map, what one element holds.
    pub fn field_type(self) -> FieldType {
        match self.kind() {
            kind::MESSAGE => FieldType::Message(Message(self.get(4))),
            kind::ENUM => FieldType::Enum(Enum(self.get(4))),
            scalar => FieldType::Scalar(scalar),
        }
    }

    /// A list or a map.
    pub fn is_repeated(self) -> bool {
        self.has(flag::REPEATED)
    }

    /// The entry type, when this is a map.
    pub fn map_entry(self) -> Option<Message> {
        match self.field_type() {
            FieldType::Message(entry) if self.is_repeated() && entry.is_map_entry() => Some(entry),
            _ => None,
        }
    }

    /// Whether an unset field differs from one set to its default.
    pub fn has_presence(self) -> bool {
        !self.is_repeated() && (self.kind() == kind::MESSAGE || self.has(flag::OPTIONAL) || self.oneof().is_some())
    }

    /// Place of its oneof among [`Message::oneofs`].
    pub fn oneof(self) -> Option<usize> {
        let at = self.parts()[2];
        (at != NO_ONEOF).then_some(usize::from(at))
    }

    /// Place among the fields of its message as the .proto file has them.
    pub fn declared_at(self) -> u8 {
        self.parts()[3]
    }

    /// `deprecated = true`.
    pub fn is_deprecated(self) -> bool {
        self.has(flag::DEPRECATED)
    }

    /// Envoy refuses the field unless runtime allows it (`envoy.annotations.disallowed_by_default`).
    pub fn is_disallowed_by_default(self) -> bool {
        self.has(flag::DISALLOWED)
    }

    /// Holds a secret (`udpa.annotations.sensitive`).
    pub fn is_sensitive(self) -> bool {
        self.has(flag::SENSITIVE)
    }

    /// Known here, but newer than the Rust type of its message, which lacks it.
    pub fn is_added(self) -> bool {
        self.has(flag::ADDED)
    }

    /// Wire form of `validate.FieldRules`; empty when the API states none.
    pub fn rules(self) -> &'static [u8] {
        heap_bytes(self.get(5))
    }
}

impl std::fmt::Debug for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// An enum type.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Enum(u32);

impl Enum {
    fn get(self, at: usize) -> u32 {
        field_of(header::ENUMS, self.0, ENUM_WORDS, at)
    }

    /// Full name.
    pub fn name(self) -> &'static str {
        heap_str(self.get(0))
    }

    /// Names and numbers, as declared.
    pub fn values(self) -> impl ExactSizeIterator<Item = (&'static str, i32)> {
        let first = self.get(1);
        (first..first + self.get(2)).map(|at| {
            let record = |part| field_of(header::VALUES, at, VALUE_WORDS, part);
            (heap_str(record(0)), record(1) as i32)
        })
    }

    /// The number of a value, whatever the case of the name: Envoy's loader takes `round_robin` too.
    pub fn number(self, name: &str) -> Option<i32> {
        let exact = self.values().find(|(known, _)| *known == name);
        exact.or_else(|| self.values().find(|(known, _)| known.eq_ignore_ascii_case(name))).map(|(_, number)| number)
    }

    /// The first name of a number.
    pub fn value_name(self, number: i32) -> Option<&'static str> {
        self.values().find(|(_, known)| *known == number).map(|(name, _)| name)
    }
}

impl std::fmt::Debug for Enum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::MAGIC;

    #[test]
    fn the_table_is_the_one_this_code_reads() {
        assert_eq!(word(0), MAGIC);
        assert!(Message::all().count() > 1_500, "{} messages", Message::all().count());
        for message in Message::all() {
            assert_eq!(Message::find(message.name()), Some(message));
            for field in message.fields() {
                assert_eq!(message.field_by_number(field.number()), Some(field), "{message:?}.{field:?}");
                assert_eq!(message.field_by_name(field.name()), Some(field), "{message:?}.{field:?}");
                assert_eq!(message.field_by_name(field.json_name()), Some(field), "{message:?}.{field:?}");
            }
        }
    }

    #[test]
    fn a_cluster_is_described_as_the_api_has_it() {
        let cluster = Message::find("envoy.config.cluster.v3.Cluster").unwrap();
        let timeout = cluster.field_by_name("connectTimeout").unwrap();
        assert_eq!((timeout.name(), timeout.number()), ("connect_timeout", 4));
        assert!(timeout.has_presence() && !timeout.rules().is_empty());
        assert!(matches!(timeout.field_type(), FieldType::Message(m) if m.special() == Special::Duration));
        let options = cluster.field_by_name("typed_extension_protocol_options").unwrap();
        assert!(options.map_entry().is_some());
        let kind = cluster.field_by_name("type").unwrap();
        assert_eq!(kind.oneof(), cluster.field_by_name("cluster_type").unwrap().oneof());
        assert!(cluster.field_by_name("http2_protocol_options").unwrap().is_deprecated());
        let FieldType::Enum(policy) = cluster.field_by_name("lb_policy").unwrap().field_type() else { panic!() };
        assert_eq!((policy.number("least_request"), policy.value_name(0)), (Some(1), Some("ROUND_ROBIN")));
        assert!(Message::find("envoy.config.cluster.v3.Custer").is_none());
    }

    #[test]
    fn fields_that_the_rust_types_lack_are_known() {
        let check = Message::find("envoy.config.core.v3.HealthCheck").unwrap();
        let name = check.field_by_name("name").unwrap();
        assert!(name.is_added() && name.number() == 27 && !check.field_by_name("timeout").unwrap().is_added());
        let tag = Message::find("envoy.type.tracing.v3.CustomTag").unwrap();
        let FieldType::Enum(kinds) = tag.field_by_name("value_type").unwrap().field_type() else { panic!() };
        assert_eq!(kinds.number("BOOL"), Some(4));
        let cluster = Message::find("envoy.config.cluster.v3.Cluster").unwrap();
        assert!(!cluster.field_by_name("health_checks").unwrap().rules().is_empty());
    }

    #[test]
    fn secrets_are_marked() {
        let certificate = Message::find("envoy.extensions.transport_sockets.tls.v3.TlsCertificate").unwrap();
        assert!(certificate.field_by_name("private_key").unwrap().is_sensitive());
        assert!(!certificate.field_by_name("certificate_chain").unwrap().is_sensitive());
    }

    #[test]
    fn our_own_messages_are_there() {
        for name in [
            "udpa.type.v1.TypedStruct",
            "xds.type.v3.TypedStruct",
            "stats.PluginConfig",
            "io.istio.http.peer_metadata.Config.DiscoveryMethod",
            "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig.AlpnOverride",
            "envoy.tcp.metadataexchange.config.MetadataExchange",
            "istio.workload.BootstrapExtension",
            "xds.type.matcher.v3.IPMatcher.IPRangeMatcher",
            "envoy.extensions.filters.http.oauth2.v3.TokenCookieChunking",
        ] {
            assert!(Message::find(name).is_some(), "{name}");
        }
        let metric = Message::find("stats.MetricConfig").unwrap();
        assert!(metric.field_by_name("dimensions").unwrap().map_entry().is_some());
        let method = Message::find("io.istio.http.peer_metadata.Config.DiscoveryMethod").unwrap();
        assert!(method.fields().all(|field| field.oneof() == Some(0)));
    }
}
