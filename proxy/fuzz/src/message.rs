//! Messages changed by their descriptors, so that inputs get past the decoder and deep into what a type may hold.

use std::sync::OnceLock;

use xds_protos::table::{Field, FieldType, Message, kind};
use xds_protos::wire::{Raw, take_field};

/// Fields nested deeper than this are not made.
const DEPTH: usize = 12;

/// Strings that configuration gives a meaning to.
#[rustfmt::skip] // One a line is too much for a list that nobody reads in order.
const WORDS: [&str; 64] = [
    "", "a", "b", "*", "/", "/a", "*.example.com", "example.com:80", "127.0.0.1", "::1", "10.0.0.0", "0.0.0.0", "GET",
    "x-a", ":authority", ":path", ":method", "%REQ(:path)%", "%RESPONSE_CODE%", "%PROTOCOL", "%", "[a-z]+", "(", ".*",
    "(?i)a|b", "a{1,5}", "\\1", "inbound|80||", "outbound|80|v1|a.default.svc.cluster.local", "default", "ROOTCA",
    "envoy.lb", "istio", "envoy.filters.http.router", "envoy.transport_sockets.tls", "http/1.1", "h2", "5xx",
    "gateway-error,reset", "200", "-1", "18446744073709551616", "spiffe://cluster.local/ns/a/sa/b",
    "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "application/json", "text/html; charset=utf-8",
    "{id}", "/{a=*}/{b=**}", "{\"a\":1}", "\u{e4}", "\n", "a b", "1.5", "1s", "tls", "raw_buffer", "TLSv1_3",
    "ECDHE-RSA-AES128-GCM-SHA256", "sni.example", "connect_timeout", "cluster", "route", "xds", "type.googleapis.com/a",
];

/// Numbers at the edges of their types.
const NUMBERS: [u64; 14] = [
    0,
    1,
    2,
    99,
    100,
    101,
    600,
    65_535,
    65_536,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

/// Small and repeatable (Knuth's MMIX constants).
pub struct Random(pub u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit.max(1)
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// A message of that type with one or a few changes somewhere in it.
pub fn mutate(full_name: &str, bytes: &[u8], seed: u32) -> Vec<u8> {
    let mut random = Random(u64::from(seed) << 8 | 5);
    let Some(message) = Message::find(full_name) else { return bytes.to_vec() };
    let mut out = bytes.to_vec();
    for _ in 0..1 + random.below(3) {
        out = change(message, &out, 0, &mut random);
    }
    out
}

/// Types that an Any may hold: those of extensions, and those that hold others.
fn packable() -> &'static [Message] {
    static TYPES: OnceLock<Vec<Message>> = OnceLock::new();
    TYPES.get_or_init(|| {
        let wanted =
            ["envoy.extensions.", "udpa.type.", "xds.type.", "google.protobuf.", "io.istio.", "istio.", "stats."];
        let also = ["envoy.config.core.", "envoy.config.route.v3.FilterConfig", "envoy.type."];
        let fits = |name: &str| wanted.iter().chain(&also).any(|prefix| name.starts_with(prefix));
        Message::all().filter(|message| fits(message.name()) && !message.is_map_entry()).collect()
    })
}

fn fields(mut bytes: &[u8]) -> Vec<(u32, Raw<'_>)> {
    let mut found = Vec::new();
    while let Some(field) = take_field(&mut bytes) {
        found.push(field);
    }
    found
}

fn change(message: Message, bytes: &[u8], depth: usize, random: &mut Random) -> Vec<u8> {
    if message.name() == "google.protobuf.Any" {
        return any(bytes, depth, random);
    }
    let found = fields(bytes);
    let mut out = Vec::with_capacity(bytes.len() + 64);
    let chosen = random.below(found.len() + 1);
    for (at, (number, raw)) in found.iter().enumerate() {
        if at != chosen {
            put(&mut out, *number, *raw);
            continue;
        }
        let field = message.field_by_number(*number);
        match (field.map(Field::field_type), raw) {
            // Mostly further down: that is where most of a message is.
            (Some(FieldType::Message(inner)), Raw::Bytes(body)) if random.below(8) != 0 => {
                put(&mut out, *number, Raw::Bytes(&change(inner, body, depth + 1, random)));
            }
            _ => match (random.below(4), field) {
                (0, _) => {}
                (1, _) => {
                    put(&mut out, *number, *raw);
                    put(&mut out, *number, *raw);
                }
                (_, Some(field)) => make(field, depth, random, &mut out),
                (_, None) => put(&mut out, *number, *raw),
            },
        }
    }
    if chosen == found.len() {
        add(message, depth, random, &mut out);
    }
    out
}

fn any(bytes: &[u8], depth: usize, random: &mut Random) -> Vec<u8> {
    let (mut url, mut body) = (&b""[..], &b""[..]);
    for field in fields(bytes) {
        match field {
            (1, Raw::Bytes(value)) => url = value,
            (2, Raw::Bytes(value)) => body = value,
            _ => {}
        }
    }
    let name = std::str::from_utf8(url).unwrap_or("").rsplit('/').next().unwrap_or("");
    let known = Message::find(name).filter(|_| random.below(10) != 0);
    let (message, body) = match known {
        Some(message) => (message, change(message, body, depth + 1, random)),
        None => {
            let message = *random.one(packable());
            (message, whole(message, depth + 1, random))
        }
    };
    let mut out = Vec::new();
    put(&mut out, 1, Raw::Bytes(format!("type.googleapis.com/{}", message.name()).as_bytes()));
    put(&mut out, 2, Raw::Bytes(&body));
    out
}

/// A message with some fields.
fn whole(message: Message, depth: usize, random: &mut Random) -> Vec<u8> {
    if message.name() == "google.protobuf.Any" {
        return if depth < DEPTH { any(&[], depth, random) } else { Vec::new() };
    }
    let mut out = Vec::new();
    if depth < DEPTH {
        for _ in 0..random.below(4) {
            add(message, depth, random, &mut out);
        }
    }
    out
}

fn add(message: Message, depth: usize, random: &mut Random, out: &mut Vec<u8>) {
    let count = message.fields().len();
    if count > 0
        && let Some(field) = message.fields().nth(random.below(count))
    {
        make(field, depth, random, out);
    }
}

/// A field with a value of its type.
fn make(field: Field, depth: usize, random: &mut Random, out: &mut Vec<u8>) {
    let number = field.number();
    let small = *random.one(&NUMBERS);
    match field.field_type() {
        FieldType::Message(inner) => put(out, number, Raw::Bytes(&whole(inner, depth + 1, random))),
        FieldType::Enum(values) => {
            let known = values.values().nth(random.below(values.values().len())).map_or(0, |(_, value)| value);
            put(out, number, Raw::Varint(if random.below(8) == 0 { small } else { known as u64 }));
        }
        FieldType::Scalar(kind::STRING | kind::BYTES) => match random.below(12) {
            0 => put(out, number, Raw::Bytes(&[random.below(256) as u8, random.below(256) as u8])),
            1 => put(out, number, Raw::Bytes("x".repeat(random.below(300)).as_bytes())),
            _ => put(out, number, Raw::Bytes(random.one(&WORDS).as_bytes())),
        },
        FieldType::Scalar(kind::DOUBLE) => {
            let value = *random.one(&[0.0, 1.0, 50.5, 100.0, -1.0, 1e300, f64::NAN, f64::INFINITY]);
            put(out, number, Raw::Fixed64(value.to_bits()));
        }
        FieldType::Scalar(kind::FIXED64 | kind::SFIXED64) => put(out, number, Raw::Fixed64(small)),
        FieldType::Scalar(kind::FLOAT | kind::FIXED32 | kind::SFIXED32) => put(out, number, Raw::Fixed32(small as u32)),
        FieldType::Scalar(_) => {
            let value = if random.below(2) == 0 { small } else { random.below(1_000) as u64 };
            put(out, number, Raw::Varint(value));
        }
    }
}

fn put(out: &mut Vec<u8>, number: u32, raw: Raw<'_>) {
    let wire_type = match raw {
        Raw::Varint(_) => 0,
        Raw::Fixed64(_) => 1,
        Raw::Bytes(_) => 2,
        Raw::Fixed32(_) => 5,
    };
    varint(out, u64::from(number) << 3 | wire_type);
    match raw {
        Raw::Varint(value) => varint(out, value),
        Raw::Fixed64(value) => out.extend_from_slice(&value.to_le_bytes()),
        Raw::Bytes(value) => {
            varint(out, value.len() as u64);
            out.extend_from_slice(value);
        }
        Raw::Fixed32(value) => out.extend_from_slice(&value.to_le_bytes()),
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
