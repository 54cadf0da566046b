//! Operators about TLS: the connection and both certificates.

use super::Entry;
use super::operators::{Wrote, text};
use crate::tls::{PeerCertificate, TlsInfo};
use sha2::{Digest, Sha256};

/// A field of a TLS connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TlsField {
    Version,
    Cipher,
    Group,
    LocalUri,
    LocalDns,
    LocalIp,
    LocalEmail,
    LocalSubject,
    PeerUri,
    PeerDns,
    PeerIp,
    PeerEmail,
    PeerSubject,
    PeerIssuer,
    PeerSerial,
    PeerFingerprint,
    PeerChain256,
    PeerPem,
}

pub(super) fn downstream(entry: &Entry<'_>, field: TlsField, out: &mut Vec<u8>) -> Wrote {
    entry.connection.tls.as_deref().map_or(Wrote::Nothing, |tls| field.write(tls, out))
}

pub(super) fn upstream(entry: &Entry<'_>, field: TlsField, out: &mut Vec<u8>) -> Wrote {
    let tls = entry.upstream.as_ref().and_then(|upstream| upstream.tls);
    tls.map_or(Wrote::Nothing, |tls| field.write(tls, out))
}

impl TlsField {
    fn write(self, tls: &TlsInfo, out: &mut Vec<u8>) -> Wrote {
        let field = |certificate: Option<&PeerCertificate>, out: &mut Vec<u8>| {
            certificate.map_or(Wrote::Nothing, |certificate| self.write_of(certificate, out))
        };
        match self {
            TlsField::Version => text(Some(tls.version), out),
            TlsField::Cipher => text(Some(tls.cipher), out),
            TlsField::Group => text(Some(tls.group), out),
            TlsField::LocalUri
            | TlsField::LocalDns
            | TlsField::LocalIp
            | TlsField::LocalEmail
            | TlsField::LocalSubject => field(tls.local.as_deref(), out),
            _ => field(tls.peer.as_deref(), out),
        }
    }

    fn write_of(self, certificate: &PeerCertificate, out: &mut Vec<u8>) -> Wrote {
        match self {
            TlsField::LocalUri | TlsField::PeerUri => list(&certificate.uri_sans, out),
            TlsField::LocalDns | TlsField::PeerDns => list(&certificate.dns_sans, out),
            TlsField::LocalIp | TlsField::PeerIp => list(&certificate.ip_sans, out),
            TlsField::LocalEmail | TlsField::PeerEmail => list(&certificate.email_sans, out),
            TlsField::LocalSubject | TlsField::PeerSubject => text(Some(&certificate.subject), out),
            TlsField::PeerIssuer => text(Some(&certificate.issuer), out),
            TlsField::PeerSerial => text(Some(&certificate.serial), out),
            TlsField::PeerFingerprint => {
                hex(&certificate.fingerprint, out);
                Wrote::Text
            }
            TlsField::PeerChain256 => {
                for (at, der) in certificate.chain.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    hex(&Sha256::digest(der), out);
                }
                if certificate.chain.is_empty() { Wrote::Nothing } else { Wrote::Text }
            }
            TlsField::PeerPem => certificate.chain.first().map_or(Wrote::Nothing, |der| {
                encoded_pem(der, out);
                Wrote::Text
            }),
            TlsField::Version | TlsField::Cipher | TlsField::Group => Wrote::Nothing,
        }
    }
}

fn list(values: &[String], out: &mut Vec<u8>) -> Wrote {
    for (at, value) in values.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(value.as_bytes());
    }
    if values.is_empty() { Wrote::Nothing } else { Wrote::Text }
}

fn hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend(bytes.iter().flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]));
}

/// PEM, URL-encoded as in `x-forwarded-client-cert`.
fn encoded_pem(der: &[u8], out: &mut Vec<u8>) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    out.extend_from_slice(b"-----BEGIN%20CERTIFICATE-----%0A");
    // 48 bytes make the 64 characters of a line of PEM.
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
            for place in 0..4 {
                if place > group.len() {
                    out.extend_from_slice(b"%3D");
                    continue;
                }
                match ALPHABET[(bits >> (18 - 6 * place) & 63) as usize] {
                    b'+' => out.extend_from_slice(b"%2B"),
                    b'/' => out.extend_from_slice(b"%2F"),
                    plain => out.push(plain),
                }
            }
        }
        out.extend_from_slice(b"%0A");
    }
    out.extend_from_slice(b"-----END%20CERTIFICATE-----%0A");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_is_padded_and_encoded() {
        let mut out = Vec::new();
        encoded_pem(&[0xfb, 0xff, 0x41, 0x42], &mut out);
        let text = String::from_utf8(out).expect("ASCII");
        assert_eq!(text, "-----BEGIN%20CERTIFICATE-----%0A%2B%2F9BQg%3D%3D%0A-----END%20CERTIFICATE-----%0A");
    }
}
