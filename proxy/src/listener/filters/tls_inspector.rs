//! `envoy.filters.listener.tls_inspector`: reads a ClientHello that is only peeked at.
//!
//! Leans to "not TLS": only a whole, well-formed ClientHello counts. Formats are of RFC 8446 (sections 4 and 5), RFC 6066
//! (server name) and RFC 7301 (ALPN).

use super::Verdict;

/// A ClientHello longer than this is taken for no TLS at all, as in Envoy.
pub(super) const MAX_CLIENT_HELLO: usize = 64 * 1024;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;

/// What a ClientHello asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hello {
    /// Lower case.
    pub server_name: Option<Box<str>>,
    pub alpn: Vec<Box<str>>,
}

/// Why bytes are no ClientHello.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotTls {
    Other,
    TooLarge,
}

/// Judges the bytes received so far.
pub(super) fn inspect(bytes: &[u8]) -> Verdict<Result<Hello, NotTls>> {
    match gather(bytes) {
        Gathered::More => Verdict::More,
        Gathered::Not(why) => Verdict::Done(Err(why)),
        Gathered::Hello(body) => Verdict::Done(parse(&body).ok_or(NotTls::Other)),
    }
}

enum Gathered {
    More,
    Not(NotTls),
    Hello(Vec<u8>),
}

/// Puts the handshake message together from its records; it may be spread over several.
fn gather(mut bytes: &[u8]) -> Gathered {
    let mut message = Vec::new();
    loop {
        // refuse as early as the bytes allow: most plain traffic is refused by its first one
        if bytes.first().is_some_and(|kind| *kind != HANDSHAKE) || bytes.get(1).is_some_and(|major| *major != 3) {
            return Gathered::Not(NotTls::Other);
        }
        let [_, _, _, high, low, ..] = *bytes else { return Gathered::More };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length == 0 || length > (1 << 14) {
            return Gathered::Not(NotTls::Other);
        }
        let available = &bytes[5..];
        message.extend_from_slice(&available[..length.min(available.len())]);
        if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Gathered::Not(NotTls::Other);
        }
        if let [_, a, b, c, ..] = *message {
            let wanted = 4 + u32::from_be_bytes([0, a, b, c]) as usize;
            if wanted > MAX_CLIENT_HELLO {
                return Gathered::Not(NotTls::TooLarge);
            }
            if message.len() >= wanted {
                message.truncate(wanted);
                message.drain(..4);
                return Gathered::Hello(message);
            }
        }
        if available.len() < length {
            return Gathered::More;
        }
        bytes = &available[length..];
    }
}

/// Takes bytes off the front; `None` when there are too few.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    fn with_u8_length(&mut self) -> Option<&'a [u8]> {
        let n = self.u8()?;
        self.take(usize::from(n))
    }

    fn with_u16_length(&mut self) -> Option<&'a [u8]> {
        let n = self.u16()?;
        self.take(usize::from(n))
    }
}

fn parse(body: &[u8]) -> Option<Hello> {
    let mut body = Reader(body);
    body.take(2 + 32)?; // version and random
    body.with_u8_length()?; // session
    body.with_u16_length()?; // suites
    body.with_u8_length()?; // compression
    let mut hello = Hello::default();
    if body.0.is_empty() {
        return Some(hello);
    }
    let mut extensions = Reader(body.with_u16_length()?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let content = extensions.with_u16_length()?;
        match kind {
            SERVER_NAME => hello.server_name = server_name(content)?,
            ALPN => hello.alpn = protocols(content)?,
            _ => {}
        }
    }
    Some(hello)
}

/// The first host name; `Some(None)` when there is none that could be matched.
fn server_name(content: &[u8]) -> Option<Option<Box<str>>> {
    let mut list = Reader(Reader(content).with_u16_length()?);
    while !list.0.is_empty() {
        let kind = list.u8()?;
        let name = list.with_u16_length()?;
        if kind == 0 {
            // a DNS name has at most 255 bytes
            let fits = !name.is_empty() && name.len() <= 255 && !name.contains(&0);
            let text = std::str::from_utf8(name).ok().filter(|_| fits);
            return Some(text.map(|t| t.to_ascii_lowercase().into()));
        }
    }
    Some(None)
}

fn protocols(content: &[u8]) -> Option<Vec<Box<str>>> {
    let mut list = Reader(Reader(content).with_u16_length()?);
    let mut all = Vec::new();
    while !list.0.is_empty() {
        all.push(String::from_utf8_lossy(list.with_u8_length()?).into());
    }
    Some(all)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::Arc;

    /// A real ClientHello.
    pub(crate) fn client_hello(name: &str, alpn: &[&str]) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        let name = name.to_owned().try_into().unwrap();
        let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut out = Vec::new();
        connection.write_tls(&mut out).unwrap();
        out
    }

    fn done(bytes: &[u8]) -> Result<Hello, NotTls> {
        match inspect(bytes) {
            Verdict::Done(result) => result,
            Verdict::More => panic!("wants more than {} bytes", bytes.len()),
        }
    }

    #[test]
    fn a_hello_is_read_however_it_is_cut() {
        let bytes = client_hello("WWW.Example.com", &["h2", "istio"]);
        let hello = done(&bytes).unwrap();
        assert_eq!(hello.server_name.as_deref(), Some("www.example.com"));
        assert_eq!(hello.alpn, ["h2".into(), "istio".into()]);
        for cut in 0..bytes.len() {
            assert!(matches!(inspect(&bytes[..cut]), Verdict::More), "at {cut}");
        }
        // the same message in records of 100 bytes
        let records: Vec<u8> =
            bytes[5..].chunks(100).flat_map(|part| [&[22, 3, 1, 0, part.len() as u8], part].concat()).collect();
        assert_eq!(done(&records).unwrap(), hello);
    }

    #[test]
    fn what_is_not_tls_is_seen_early() {
        assert_eq!(done(b"G"), Err(NotTls::Other));
        assert_eq!(done(&[22, 2]), Err(NotTls::Other));
        assert_eq!(done(&[22, 3, 1, 0, 0]), Err(NotTls::Other));
        assert_eq!(done(&[22, 3, 1, 0, 9, 2]), Err(NotTls::Other));
        assert_eq!(done(&[22, 3, 1, 0, 9, 1, 0xff, 0, 0]), Err(NotTls::TooLarge));
        let mut broken = client_hello("a.b", &[]);
        let end = broken.len();
        broken[5 + 4 + 34] = 0xff; // the session's length points outside
        assert_eq!(done(&broken[..end]), Err(NotTls::Other));
    }
}
