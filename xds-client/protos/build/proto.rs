//! The part of the .proto language that our own files use: proto3 messages, enums, oneofs, maps, `repeated`, nesting.
//! No services. Type names are written in full or are declared in an enclosing scope of the same file.
//!
//! Beyond the language: `extend` adds fields to a message that exists (as if they stood in it), and rules are written as
//! the wire form of `validate.FieldRules` in hexadecimal, in brackets behind a field or by a `rules` statement.

use super::descriptor::{Enum, Field, Message, Oneof, Schema, scoped};
use super::layout::{flag, kind};

struct Parser<'a> {
    tokens: Vec<&'a str>,
    at: usize,
    messages: Vec<Message>,
    enums: Vec<Enum>,
    /// Fields for messages that exist, gathered under their names.
    extensions: Vec<Message>,
    /// Rules in place of those of a field that exists: its full name, and the rules.
    rules: Vec<(String, Vec<u8>)>,
}

type Result<T> = std::result::Result<T, String>;

/// Adds what the file declares to the schema.
pub fn read_file(text: &str, schema: &mut Schema) -> Result<()> {
    let mut parser = Parser {
        tokens: tokens(text),
        at: 0,
        messages: Vec::new(),
        enums: Vec::new(),
        extensions: Vec::new(),
        rules: Vec::new(),
    };
    let mut package = String::new();
    while let Some(word) = parser.peek() {
        match word {
            "syntax" | "import" => parser.skip_statement()?,
            "package" => {
                parser.next()?;
                package = parser.next()?.to_owned();
                parser.expect(";")?;
            }
            "message" => parser.message(&package)?,
            "enum" => parser.enumeration(&package)?,
            "extend" => parser.extend()?,
            "rules" => parser.rules()?,
            other => return Err(format!("unexpected `{other}`")),
        }
    }
    let Parser { mut messages, enums, mut extensions, rules, .. } = parser;
    let known: Vec<String> = messages.iter().map(|message| message.name.clone()).collect();
    let named = |name: &str| known.iter().any(|message| message == name);
    for message in messages.iter_mut().chain(&mut extensions) {
        for field in &mut message.fields {
            let name = std::mem::take(&mut field.type_name);
            if name.is_empty() {
                continue;
            }
            (field.kind, field.type_name) = resolve(&name, &message.name, named, &enums, schema)
                .ok_or_else(|| format!("{}: unknown type `{name}`", message.name))?;
        }
    }
    for name in &known {
        if schema.messages.iter().any(|message| message.name == *name) {
            return Err(format!("{name} is known without this file: take it out"));
        }
    }
    for extension in extensions {
        let target = schema.messages.iter_mut().find(|message| message.name == extension.name);
        let target = target.ok_or_else(|| format!("there is no {} to extend", extension.name))?;
        for mut field in extension.fields {
            if target.fields.iter().any(|known| known.number == field.number || known.name == field.name) {
                return Err(format!("{}.{} is known without this file: take it out", target.name, field.name));
            }
            field.flags |= flag::ADDED;
            target.fields.push(field);
        }
    }
    for (name, rules) in rules {
        let (holder, field) = name.rsplit_once('.').ok_or_else(|| format!("`{name}` is no field"))?;
        let holder = schema.messages.iter_mut().find(|message| message.name == holder);
        let field = holder.and_then(|holder| holder.fields.iter_mut().find(|known| known.name == field));
        let field = field.ok_or_else(|| format!("there is no {name} to give rules to"))?;
        if field.rules == rules {
            return Err(format!("{name} has these rules without this file: take them out"));
        }
        field.rules = rules;
    }
    schema.messages.extend(messages);
    schema.enums.extend(enums);
    Ok(())
}

/// Looks a type up from the innermost scope outwards, last in what is known already.
fn resolve(
    name: &str,
    scope: &str,
    messages: impl Fn(&str) -> bool,
    enums: &[Enum],
    known: &Schema,
) -> Option<(u8, String)> {
    let mut scope = scope;
    loop {
        let full = scoped(scope, name);
        if messages(&full) || known.messages.iter().any(|message| message.name == full) {
            return Some((kind::MESSAGE, full));
        }
        if enums.iter().chain(&known.enums).any(|e| e.name == full) {
            return Some((kind::ENUM, full));
        }
        if scope.is_empty() {
            return None;
        }
        scope = scope.rsplit_once('.').map_or("", |(outer, _)| outer);
    }
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.tokens.get(self.at).copied()
    }

    fn next(&mut self) -> Result<&'a str> {
        let token = self.peek().ok_or("unexpected end of file")?;
        self.at += 1;
        Ok(token)
    }

    fn expect(&mut self, wanted: &str) -> Result<()> {
        let found = self.next()?;
        if found == wanted { Ok(()) } else { Err(format!("found `{found}`, expected `{wanted}`")) }
    }

    fn skip_statement(&mut self) -> Result<()> {
        while self.next()? != ";" {}
        Ok(())
    }

    fn number(&mut self) -> Result<i32> {
        let token = self.next()?;
        token.parse().map_err(|_| format!("found `{token}`, expected a number"))
    }

    fn enumeration(&mut self, scope: &str) -> Result<()> {
        self.expect("enum")?;
        let mut found = Enum { name: scoped(scope, self.next()?), values: Vec::new() };
        self.expect("{")?;
        while self.peek() != Some("}") {
            let name = self.next()?.to_owned();
            self.expect("=")?;
            found.values.push((name, self.number()?));
            self.expect(";")?;
        }
        self.expect("}")?;
        self.enums.push(found);
        Ok(())
    }

    fn message(&mut self, scope: &str) -> Result<()> {
        self.expect("message")?;
        let mut message = Message { name: scoped(scope, self.next()?), ..Message::default() };
        self.expect("{")?;
        self.body(&mut message, None)?;
        self.messages.push(message);
        Ok(())
    }

    fn extend(&mut self) -> Result<()> {
        self.expect("extend")?;
        let mut message = Message { name: self.next()?.to_owned(), ..Message::default() };
        self.expect("{")?;
        self.body(&mut message, None)?;
        self.extensions.push(message);
        Ok(())
    }

    fn rules(&mut self) -> Result<()> {
        self.expect("rules")?;
        let name = self.next()?.to_owned();
        self.expect("=")?;
        let rules = self.hexadecimal()?;
        self.rules.push((name, rules));
        self.expect(";")
    }

    fn hexadecimal(&mut self) -> Result<Vec<u8>> {
        let token = self.next()?;
        let digits = token.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).ok_or("expected a string")?;
        let byte = |at| digits.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
        let bytes: Option<Vec<u8>> = (0..digits.len()).step_by(2).map(byte).collect();
        bytes.ok_or_else(|| format!("found {token}, expected pairs of hexadecimal digits"))
    }

    /// The members of a message, or of one of its oneofs, through the closing brace.
    fn body(&mut self, message: &mut Message, oneof: Option<u8>) -> Result<()> {
        loop {
            match self.peek().ok_or("unexpected end of file")? {
                "}" => {
                    self.at += 1;
                    return Ok(());
                }
                "message" => self.message(&message.name.clone())?,
                "enum" => self.enumeration(&message.name.clone())?,
                "reserved" => self.skip_statement()?,
                "oneof" => {
                    self.at += 1;
                    let index = u8::try_from(message.oneofs.len()).map_err(|_| "too many oneofs")?;
                    message.oneofs.push(Oneof { name: self.next()?.to_owned(), required: false });
                    self.expect("{")?;
                    self.body(message, Some(index))?;
                }
                _ => self.field(message, oneof)?,
            }
        }
    }

    fn field(&mut self, message: &mut Message, oneof: Option<u8>) -> Result<()> {
        let mut field = Field { oneof, ..Field::default() };
        let mut type_word = self.next()?;
        if type_word == "repeated" {
            field.flags |= flag::REPEATED;
            type_word = self.next()?;
        }
        if type_word == "map" {
            self.expect("<")?;
            let key = self.next()?;
            self.expect(",")?;
            let value = self.next()?;
            self.expect(">")?;
            field.name = self.next()?.to_owned();
            field.flags |= flag::REPEATED;
            let entry = format!("{}.{}Entry", message.name, camel(&field.name, true));
            let mut parts = Vec::new();
            for (number, name, word) in [(1, "key", key), (2, "value", value)] {
                let (kind, type_name) = type_of(word);
                parts.push(Field {
                    name: name.into(),
                    json_name: name.into(),
                    number,
                    kind,
                    type_name,
                    ..Field::default()
                });
            }
            self.messages.push(Message { name: entry.clone(), fields: parts, map_entry: true, ..Message::default() });
            (field.kind, field.type_name) = (kind::MESSAGE, entry);
        } else {
            (field.kind, field.type_name) = type_of(type_word);
            field.name = self.next()?.to_owned();
        }
        self.expect("=")?;
        field.number = u32::try_from(self.number()?).map_err(|_| "negative field number")?;
        if self.peek() == Some("[") {
            self.at += 1;
            self.expect("rules")?;
            self.expect("=")?;
            field.rules = self.hexadecimal()?;
            self.expect("]")?;
        }
        self.expect(";")?;
        field.json_name = camel(&field.name, false);
        message.fields.push(field);
        Ok(())
    }
}

/// The kind of a scalar type, or no kind yet and the name to resolve.
fn type_of(word: &str) -> (u8, String) {
    match kind::SCALARS.iter().find(|(name, _)| *name == word) {
        Some((_, kind)) => (*kind, String::new()),
        None => (0, word.to_owned()),
    }
}

/// protoc's `json_name`: underscores dropped, the letter after each upper case.
fn camel(name: &str, upper_first: bool) -> String {
    let mut upper = upper_first;
    let mut out = String::new();
    for letter in name.chars() {
        if letter == '_' {
            upper = true;
        } else {
            out.push(if upper { letter.to_ascii_uppercase() } else { letter });
            upper = false;
        }
    }
    out
}

/// Words and punctuation; comments are dropped, a quoted string is one token.
fn tokens(text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    for line in text.lines() {
        let mut rest = line.split("//").next().unwrap_or("");
        loop {
            rest = rest.trim_start();
            let Some(first) = rest.chars().next() else { break };
            let is_word = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
            let length = match first {
                '"' => rest.get(1..).and_then(|tail| tail.find('"')).map_or(rest.len(), |end| end + 2),
                c if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
                c => c.len_utf8(),
            };
            let (token, tail) = rest.split_at(length);
            tokens.push(token);
            rest = tail;
        }
    }
    tokens
}
