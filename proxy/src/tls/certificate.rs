//! Reading certificates: the names, times and fingerprints that matching, logs and /certs want.
//!
//! Knows nothing of trust: what is read here may come from a stranger.

use super::PeerCertificate;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{ParsedExtension, X509Certificate};
use x509_parser::time::ASN1Time;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// What is needed of a leaf beyond its description, for checks against it.
pub(super) struct Leaf {
    pub certificate: PeerCertificate,
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub spki_hash: [u8; 32],
    /// Extended key usage: (for servers, for clients). Both when the certificate does not restrict it.
    pub usage: (bool, bool),
    /// Key usage: it may sign, which every key exchange that we offer asks of it.
    pub may_sign: bool,
}

/// Reads a chain, leaf first.
///
/// # Errors
/// What cannot be read of the leaf, in words.
pub(super) fn parse_leaf(chain: Vec<CertificateDer<'static>>) -> Result<Leaf, String> {
    let der = chain.first().ok_or("there is no certificate")?.clone();
    let (rest, x509) =
        x509_parser::parse_x509_certificate(&der).map_err(|e| format!("the certificate cannot be read: {e}"))?;
    if !rest.is_empty() {
        return Err("there are bytes after the certificate".to_owned());
    }
    let spki_hash = Sha256::digest(x509.public_key().raw).into();
    let usage = match x509.extended_key_usage() {
        Ok(Some(eku)) => (eku.value.any || eku.value.server_auth, eku.value.any || eku.value.client_auth),
        Ok(None) => (true, true),
        Err(e) => return Err(format!("the certificate's extended key usage cannot be read: {e}")),
    };
    let may_sign = match x509.key_usage() {
        Ok(usage) => usage.is_none_or(|usage| usage.value.digital_signature()),
        Err(e) => return Err(format!("the certificate's key usage cannot be read: {e}")),
    };
    let certificate = describe(&x509, &der, chain)?;
    Ok(Leaf { certificate, spki_hash, usage, may_sign })
}

/// Reads one certificate for display.
pub(super) fn parse(der: CertificateDer<'static>) -> Result<PeerCertificate, String> {
    parse_leaf(vec![der]).map(|leaf| leaf.certificate)
}

fn describe(
    x509: &X509Certificate<'_>,
    der: &[u8],
    chain: Vec<CertificateDer<'static>>,
) -> Result<PeerCertificate, String> {
    let mut certificate = PeerCertificate {
        chain,
        subject: rfc2253(x509.subject()),
        issuer: rfc2253(x509.issuer()),
        serial: hex(x509.raw_serial().strip_prefix(&[0]).unwrap_or(x509.raw_serial())),
        uri_sans: Vec::new(),
        dns_sans: Vec::new(),
        ip_sans: Vec::new(),
        email_sans: Vec::new(),
        fingerprint: Sha256::digest(der).into(),
        not_before: system_time(x509.validity().not_before),
        not_after: system_time(x509.validity().not_after),
        verified: false,
    };
    for extension in x509.extensions() {
        let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else { continue };
        for name in &names.general_names {
            match name {
                GeneralName::URI(uri) => certificate.uri_sans.push((*uri).to_owned()),
                GeneralName::DNSName(dns) => certificate.dns_sans.push((*dns).to_owned()),
                GeneralName::RFC822Name(email) => certificate.email_sans.push((*email).to_owned()),
                GeneralName::IPAddress(bytes) => certificate.ip_sans.push(ip_text(bytes)?),
                // other kinds are never matched against: a name of one kind must not pass for another
                GeneralName::Invalid(..) => {
                    return Err("the certificate has an alternative name that is no text".into());
                }
                _ => {}
            }
        }
    }
    Ok(certificate)
}

fn ip_text(bytes: &[u8]) -> Result<String, String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(Ipv4Addr::from(v4).to_string());
    }
    <[u8; 16]>::try_from(bytes)
        .map(|v6| Ipv6Addr::from(v6).to_string())
        .map_err(|_| format!("the certificate has an IP name of {} bytes", bytes.len()))
}

fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = time.timestamp();
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let moved = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    };
    moved.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // writing to a String cannot fail
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A distinguished name in the order and form of RFC 2253, as OpenSSL's `XN_FLAG_RFC2253` prints it.
fn rfc2253(name: &X509Name<'_>) -> String {
    let mut text = String::new();
    let parts: Vec<_> = name.iter_rdn().collect();
    for (n, rdn) in parts.into_iter().rev().enumerate() {
        if n > 0 {
            text.push(',');
        }
        for (n, attribute) in rdn.iter().enumerate() {
            if n > 0 {
                text.push('+');
            }
            attribute_text(attribute, &mut text);
        }
    }
    text
}

fn attribute_text(attribute: &AttributeTypeAndValue<'_>, out: &mut String) {
    let oid = attribute.attr_type().to_id_string();
    let short = match oid.as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.4" => "SN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "street",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.12" => "title",
        "2.5.4.42" => "GN",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        other => other,
    };
    out.push_str(short);
    out.push('=');
    match attribute.as_str() {
        Ok(value) => escape(value, out),
        Err(_) => {
            out.push('#');
            out.push_str(&hex(attribute.as_slice()));
        }
    }
}

/// RFC 2253, section 2.4; bytes that are not printable ASCII are written as `\XX`.
fn escape(value: &str, out: &mut String) {
    let last = value.len().saturating_sub(1);
    for (at, byte) in value.bytes().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => {
                out.push('\\');
                out.push(char::from(byte));
            }
            b'#' if at == 0 => out.push_str("\\#"),
            b' ' if at == 0 || at == last => out.push_str("\\ "),
            0x20..=0x7e => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "\\{byte:02X}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData, SanType};

    #[test]
    fn a_certificate_is_described_as_envoy_prints_it() {
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, "a, b");
        name.push(DnType::CommonName, "leaf");
        params.distinguished_name = name;
        params.serial_number = Some(vec![0xab, 0x01].into());
        params.subject_alt_names = vec![
            SanType::URI("spiffe://td/ns/a/sa/b".try_into().unwrap()),
            SanType::DnsName("*.example.com".try_into().unwrap()),
            SanType::IpAddress("::1".parse().unwrap()),
            SanType::Rfc822Name("a@b.c".try_into().unwrap()),
        ];
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        let leaf = parse_leaf(vec![der]).unwrap();
        let c = &leaf.certificate;
        assert_eq!((c.subject.as_str(), c.serial.as_str()), ("CN=leaf,O=a\\, b", "ab01"));
        assert_eq!((c.uri_sans[0].as_str(), c.dns_sans[0].as_str()), ("spiffe://td/ns/a/sa/b", "*.example.com"));
        assert_eq!((c.ip_sans[0].as_str(), c.email_sans[0].as_str()), ("::1", "a@b.c"));
        assert_eq!(leaf.usage, (true, true));
        assert_eq!(leaf.spki_hash, <[u8; 32]>::from(Sha256::digest(key.subject_public_key_info())));
    }

    #[test]
    fn garbage_is_refused_in_words() {
        let error = parse_leaf(vec![vec![0x30, 0x03, 1, 2, 3].into()]).err().unwrap();
        assert!(error.contains("cannot be read"), "{error}");
        assert!(parse_leaf(Vec::new()).is_err());
    }

    #[test]
    fn names_are_escaped() {
        let mut out = String::new();
        escape("#a \u{e9}\" ", &mut out);
        assert_eq!(out, "\\#a \\C3\\A9\\\"\\ ");
    }
}
