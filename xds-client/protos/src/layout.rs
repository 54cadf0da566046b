//! The layout of the descriptor table: what the build script writes and `table.rs` reads.
//!
//! Little-endian 32-bit words. After the header come arrays of fixed-size records, then a heap of byte strings, each a
//! 16-bit length and the bytes; a string is named by its offset in the heap. Messages and enums are sorted by full
//! name and named by their place in that order, so the table needs no decoding, no allocation, and touches only the
//! pages that are looked at.

/// First word of the table; changes with the layout.
pub const MAGIC: u32 = 0x4450_0002;

/// Words of the header, in order: [`MAGIC`], then for each array its byte offset and its length in records.
pub mod header {
    /// Messages.
    pub const MESSAGES: usize = 1;
    /// Fields, grouped by message, by number.
    pub const FIELDS: usize = 3;
    /// Accepted JSON names of fields, grouped by message, sorted.
    pub const NAMES: usize = 5;
    /// Oneofs, grouped by message.
    pub const ONEOFS: usize = 7;
    /// Enums.
    pub const ENUMS: usize = 9;
    /// Enum values, grouped by enum, as declared.
    pub const VALUES: usize = 11;
    /// The heap (offset, length in bytes).
    pub const HEAP: usize = 13;
    /// Words in the header.
    pub const WORDS: usize = 15;
}

/// Words of a message record: name, first field, number of fields, first name, number of names, first oneof, number of
/// oneofs in the low byte and [`message_flag`] above.
pub const MESSAGE_WORDS: usize = 7;
/// Words of a field record: name, JSON name, number, packed (kind, flags, oneof, place in the .proto
/// file), type, rules.
pub const FIELD_WORDS: usize = 6;
/// Words of a name record: name, field within the message.
pub const NAME_WORDS: usize = 2;
/// Words of a oneof record: name, 1 if one member must be set.
pub const ONEOF_WORDS: usize = 2;
/// Words of an enum record: name, first value, number of values.
pub const ENUM_WORDS: usize = 3;
/// Words of an enum value record: name, number.
pub const VALUE_WORDS: usize = 2;

/// No oneof, in a field record.
pub const NO_ONEOF: u8 = 0xff;

/// Bits of a message, from bit 8 of its last word.
pub mod message_flag {
    /// The entry of a map field.
    pub const MAP_ENTRY: u32 = 1 << 8;
    /// `validate.disabled` or `validate.ignored`.
    pub const RULES_OFF: u32 = 1 << 9;
}

/// Bits of a field.
pub mod flag {
    /// A list, or a map when the type is a map entry.
    pub const REPEATED: u8 = 1;
    /// proto3 `optional`.
    pub const OPTIONAL: u8 = 1 << 1;
    /// `deprecated = true`.
    pub const DEPRECATED: u8 = 1 << 2;
    /// `(udpa.annotations.sensitive) = true`.
    pub const SENSITIVE: u8 = 1 << 3;
    /// `(envoy.annotations.disallowed_by_default) = true`.
    pub const DISALLOWED: u8 = 1 << 4;
    /// Known from a file of ours only: the Rust type lacks it.
    pub const ADDED: u8 = 1 << 5;
}

/// `FieldDescriptorProto.Type` of descriptor.proto.
pub mod kind {
    /// `double`
    pub const DOUBLE: u8 = 1;
    /// `float`
    pub const FLOAT: u8 = 2;
    /// `int64`
    pub const INT64: u8 = 3;
    /// `uint64`
    pub const UINT64: u8 = 4;
    /// `int32`
    pub const INT32: u8 = 5;
    /// `fixed64`
    pub const FIXED64: u8 = 6;
    /// `fixed32`
    pub const FIXED32: u8 = 7;
    /// `bool`
    pub const BOOL: u8 = 8;
    /// `string`
    pub const STRING: u8 = 9;
    /// proto2 group; not supported.
    pub const GROUP: u8 = 10;
    /// A message.
    pub const MESSAGE: u8 = 11;
    /// `bytes`
    pub const BYTES: u8 = 12;
    /// `uint32`
    pub const UINT32: u8 = 13;
    /// An enum.
    pub const ENUM: u8 = 14;
    /// `sfixed32`
    pub const SFIXED32: u8 = 15;
    /// `sfixed64`
    pub const SFIXED64: u8 = 16;
    /// `sint32`
    pub const SINT32: u8 = 17;
    /// `sint64`
    pub const SINT64: u8 = 18;

    /// The scalar types by their word in a .proto file.
    pub const SCALARS: [(&str, u8); 15] = [
        ("double", DOUBLE),
        ("float", FLOAT),
        ("int64", INT64),
        ("uint64", UINT64),
        ("int32", INT32),
        ("fixed64", FIXED64),
        ("fixed32", FIXED32),
        ("bool", BOOL),
        ("string", STRING),
        ("bytes", BYTES),
        ("uint32", UINT32),
        ("sfixed32", SFIXED32),
        ("sfixed64", SFIXED64),
        ("sint32", SINT32),
        ("sint64", SINT64),
    ];
}
