//! Writes a [`Schema`] in the layout of `src/layout.rs`.

use std::collections::HashMap;

use super::descriptor::{Field, Schema};
use super::layout::{ENUM_WORDS, FIELD_WORDS, MESSAGE_WORDS, NAME_WORDS, ONEOF_WORDS, VALUE_WORDS};
use super::layout::{MAGIC, NO_ONEOF, header, kind, message_flag};

/// Byte strings, each stored once. Offset 0 is the empty one.
struct Heap {
    bytes: Vec<u8>,
    known: HashMap<Vec<u8>, u32>,
}

impl Heap {
    fn put(&mut self, value: &[u8]) -> u32 {
        if let Some(at) = self.known.get(value) {
            return *at;
        }
        let at = u32::try_from(self.bytes.len()).expect("the heap stays below 4 GB");
        let length = u16::try_from(value.len()).expect("names and rules are below 64 KB");
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(value);
        self.known.insert(value.to_owned(), at);
        at
    }
}

/// The table for all messages and enums of the schema.
pub fn write(mut schema: Schema) -> Vec<u8> {
    schema.messages.sort_by(|a, b| a.name.cmp(&b.name));
    schema.messages.dedup_by(|a, b| a.name == b.name);
    schema.enums.sort_by(|a, b| a.name.cmp(&b.name));
    schema.enums.dedup_by(|a, b| a.name == b.name);
    let message_at: HashMap<String, u32> = (0u32..).zip(&schema.messages).map(|(i, m)| (m.name.clone(), i)).collect();
    let enum_at: HashMap<String, u32> = (0u32..).zip(&schema.enums).map(|(i, e)| (e.name.clone(), i)).collect();

    let mut heap = Heap { bytes: Vec::new(), known: HashMap::new() };
    heap.put(b"");
    let (mut messages, mut fields, mut names, mut oneofs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for message in &mut schema.messages {
        for (at, field) in message.fields.iter_mut().enumerate() {
            field.declared_at = u8::try_from(at).expect("no message has that many fields");
        }
        message.fields.sort_by_key(|field| field.number);
        // A proto3 `optional` makes a oneof of its own, always behind the real ones.
        let real =
            message.fields.iter().filter_map(|field| field.oneof).map(|at| usize::from(at) + 1).max().unwrap_or(0);
        message.oneofs.truncate(real);

        let mut accepted: Vec<(&str, u32)> = Vec::new();
        for (at, field) in (0u32..).zip(&message.fields) {
            accepted.push((&field.name, at));
            if field.json_name != field.name {
                accepted.push((&field.json_name, at));
            }
        }
        accepted.sort();
        accepted.dedup_by(|a, b| a.0 == b.0);

        let mut flags = message.oneofs.len() as u32;
        flags |= if message.map_entry { message_flag::MAP_ENTRY } else { 0 };
        flags |= if message.rules_off { message_flag::RULES_OFF } else { 0 };
        messages.extend([
            heap.put(message.name.as_bytes()),
            records(&fields, FIELD_WORDS),
            message.fields.len() as u32,
            records(&names, NAME_WORDS),
            accepted.len() as u32,
            records(&oneofs, ONEOF_WORDS),
            flags,
        ]);
        for field in &message.fields {
            fields.extend([
                heap.put(field.name.as_bytes()),
                heap.put(field.json_name.as_bytes()),
                field.number,
                u32::from_le_bytes([field.kind, field.flags, field.oneof.unwrap_or(NO_ONEOF), field.declared_at]),
                type_of(field, &message_at, &enum_at),
                heap.put(&field.rules),
            ]);
        }
        names.extend(accepted.iter().flat_map(|(name, at)| [heap.put(name.as_bytes()), *at]));
        oneofs.extend(message.oneofs.iter().flat_map(|o| [heap.put(o.name.as_bytes()), u32::from(o.required)]));
    }
    let (mut enums, mut values) = (Vec::new(), Vec::new());
    for found in &schema.enums {
        enums.extend([heap.put(found.name.as_bytes()), records(&values, VALUE_WORDS), found.values.len() as u32]);
        values.extend(found.values.iter().flat_map(|(name, number)| [heap.put(name.as_bytes()), *number as u32]));
    }

    let arrays = [
        (messages, MESSAGE_WORDS),
        (fields, FIELD_WORDS),
        (names, NAME_WORDS),
        (oneofs, ONEOF_WORDS),
        (enums, ENUM_WORDS),
        (values, VALUE_WORDS),
    ];
    let mut words = vec![MAGIC];
    let mut offset = header::WORDS * 4;
    for (array, size) in &arrays {
        words.extend([offset as u32, records(array, *size)]);
        offset += array.len() * 4;
    }
    words.extend([offset as u32, heap.bytes.len() as u32]);
    words.extend(arrays.iter().flat_map(|(array, _)| array));
    let mut table: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    table.extend_from_slice(&heap.bytes);
    table
}

fn records(array: &[u32], words: usize) -> u32 {
    u32::try_from(array.len() / words).expect("fewer records than 4 billion")
}

fn type_of(field: &Field, messages: &HashMap<String, u32>, enums: &HashMap<String, u32>) -> u32 {
    let known = match field.kind {
        kind::MESSAGE => messages.get(&field.type_name),
        kind::ENUM => enums.get(&field.type_name),
        _ => return 0,
    };
    *known.unwrap_or_else(|| panic!("field {}: unknown type {}", field.name, field.type_name))
}
