//! Protobuf's `FileDescriptorSet`, read from its wire form into the plain schema that the table is written from.
//! Only what JSON conversion, unknown-field checks and later validation need is kept (descriptor.proto has the numbers).

use super::layout::{flag, kind};

/// All messages and enums, by full name without a leading dot.
#[derive(Default)]
pub struct Schema {
    pub messages: Vec<Message>,
    pub enums: Vec<Enum>,
}

#[derive(Default)]
pub struct Message {
    pub name: String,
    pub fields: Vec<Field>,
    pub oneofs: Vec<Oneof>,
    pub map_entry: bool,
    pub rules_off: bool,
}

#[derive(Default)]
pub struct Field {
    pub name: String,
    pub json_name: String,
    pub number: u32,
    /// `FieldDescriptorProto.Type`.
    pub kind: u8,
    /// [`flag`] bits.
    pub flags: u8,
    pub oneof: Option<u8>,
    /// Place among the fields as the .proto file has them.
    pub declared_at: u8,
    /// Full name of the message or enum.
    pub type_name: String,
    /// Wire form of `validate.FieldRules`.
    pub rules: Vec<u8>,
}

#[derive(Default)]
pub struct Oneof {
    pub name: String,
    pub required: bool,
}

#[derive(Default)]
pub struct Enum {
    pub name: String,
    pub values: Vec<(String, i32)>,
}

/// Extension numbers of the options that are kept.
mod option {
    /// protoc-gen-validate: `validate.rules` on fields, `validate.required` on oneofs, `validate.disabled` on messages.
    pub const VALIDATE: u32 = 1071;
    /// protoc-gen-validate: `validate.ignored` on messages.
    pub const VALIDATE_IGNORED: u32 = 1072;
    /// `udpa.annotations.sensitive`.
    pub const SENSITIVE: u32 = 76_569_463;
    /// `envoy.annotations.disallowed_by_default`.
    pub const DISALLOWED: u32 = 189_503_207;
}

/// Reads a `FileDescriptorSet`; `None` when the bytes are none.
pub fn read_set(bytes: &[u8]) -> Option<Schema> {
    let mut schema = Schema::default();
    for (number, value) in wire(bytes)? {
        if number == 1 {
            read_file(value.bytes()?, &mut schema)?;
        }
    }
    Some(schema)
}

fn read_file(bytes: &[u8], schema: &mut Schema) -> Option<()> {
    let fields = wire(bytes)?;
    let package = fields.iter().find(|(number, _)| *number == 2).map_or(Some(""), |(_, v)| v.str())?;
    for (number, value) in &fields {
        match number {
            4 => read_message(value.bytes()?, package, schema)?,
            5 => read_enum(value.bytes()?, package, schema)?,
            _ => {}
        }
    }
    Some(())
}

/// Joins a scope and a name; the outermost scope may be empty.
pub fn scoped(scope: &str, name: &str) -> String {
    if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") }
}

fn name_of(fields: &[(u32, Wire<'_>)]) -> Option<String> {
    Some(fields.iter().find(|(number, _)| *number == 1)?.1.str()?.to_owned())
}

fn read_message(bytes: &[u8], scope: &str, schema: &mut Schema) -> Option<()> {
    let parts = wire(bytes)?;
    let mut message = Message { name: scoped(scope, &name_of(&parts)?), ..Message::default() };
    for (number, value) in &parts {
        match number {
            2 => message.fields.push(read_field(value.bytes()?)?),
            3 => read_message(value.bytes()?, &message.name, schema)?,
            4 => read_enum(value.bytes()?, &message.name, schema)?,
            7 => {
                for (number, value) in wire(value.bytes()?)? {
                    match number {
                        7 => message.map_entry = value.varint()? != 0,
                        option::VALIDATE | option::VALIDATE_IGNORED => message.rules_off |= value.varint()? != 0,
                        _ => {}
                    }
                }
            }
            8 => {
                let parts = wire(value.bytes()?)?;
                let mut oneof = Oneof { name: name_of(&parts)?, required: false };
                for (_, options) in parts.iter().filter(|(number, _)| *number == 2) {
                    let options = wire(options.bytes()?)?;
                    oneof.required |= options.iter().any(|(n, v)| *n == option::VALIDATE && v.varint() == Some(1));
                }
                message.oneofs.push(oneof);
            }
            _ => {}
        }
    }
    schema.messages.push(message);
    Some(())
}

fn read_field(bytes: &[u8]) -> Option<Field> {
    let parts = wire(bytes)?;
    let mut field = Field { name: name_of(&parts)?, ..Field::default() };
    for (number, value) in &parts {
        match number {
            3 => field.number = u32::try_from(value.varint()?).ok()?,
            4 if value.varint()? == 3 => field.flags |= flag::REPEATED,
            5 => field.kind = u8::try_from(value.varint()?).ok()?,
            6 => field.type_name = value.str()?.trim_start_matches('.').to_owned(),
            8 => {
                for (number, value) in wire(value.bytes()?)? {
                    match number {
                        3 if value.varint()? != 0 => field.flags |= flag::DEPRECATED,
                        option::VALIDATE => field.rules.extend_from_slice(value.bytes()?),
                        option::SENSITIVE if value.varint()? != 0 => field.flags |= flag::SENSITIVE,
                        option::DISALLOWED if value.varint()? != 0 => field.flags |= flag::DISALLOWED,
                        _ => {}
                    }
                }
            }
            9 => field.oneof = Some(u8::try_from(value.varint()?).ok()?),
            10 => field.json_name = value.str()?.to_owned(),
            17 if value.varint()? != 0 => field.flags |= flag::OPTIONAL,
            _ => {}
        }
    }
    if field.flags & flag::OPTIONAL != 0 {
        // The oneof around a proto3 `optional` field is protoc's own device; nobody may see it.
        field.oneof = None;
    }
    if field.kind == kind::GROUP { None } else { Some(field) }
}

fn read_enum(bytes: &[u8], scope: &str, schema: &mut Schema) -> Option<()> {
    let parts = wire(bytes)?;
    let mut values = Vec::new();
    for (_, value) in parts.iter().filter(|(number, _)| *number == 2) {
        let parts = wire(value.bytes()?)?;
        let number = parts.iter().find(|(number, _)| *number == 2).map_or(Some(0), |(_, v)| v.varint())?;
        values.push((name_of(&parts)?, number as i32));
    }
    schema.enums.push(Enum { name: scoped(scope, &name_of(&parts)?), values });
    Some(())
}

/// One field's value as it stands on the wire.
enum Wire<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Fixed,
}

impl<'a> Wire<'a> {
    fn varint(&self) -> Option<u64> {
        if let Wire::Varint(value) = self { Some(*value) } else { None }
    }

    fn bytes(&self) -> Option<&'a [u8]> {
        if let Wire::Bytes(value) = self { Some(value) } else { None }
    }

    fn str(&self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }
}

fn wire(mut bytes: &[u8]) -> Option<Vec<(u32, Wire<'_>)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let value = match tag & 7 {
            0 => Wire::Varint(varint(&mut bytes)?),
            1 => fixed(&mut bytes, 8)?,
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let (value, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                Wire::Bytes(value)
            }
            5 => fixed(&mut bytes, 4)?,
            _ => return None,
        };
        fields.push((u32::try_from(tag >> 3).ok()?, value));
    }
    Some(fields)
}

fn fixed<'a>(bytes: &mut &'a [u8], length: usize) -> Option<Wire<'a>> {
    *bytes = bytes.split_at_checked(length)?.1;
    Some(Wire::Fixed)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
