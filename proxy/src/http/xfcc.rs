//! `x-forwarded-client-cert`: who the client is, as its certificate says (Envoy docs, "HTTP header manipulation").

use super::names;
use crate::config::model::{ClientCertDetails, ForwardClientCert};
use crate::tls::{PeerCertificate, TlsInfo};
use http::{HeaderMap, HeaderValue};
use std::fmt::Write;

/// Sets, appends to, keeps or removes the header. `element` gives this connection's own element.
pub(super) fn apply(
    mode: ForwardClientCert,
    mutual_tls: bool,
    headers: &mut HeaderMap,
    element: impl FnOnce() -> Option<HeaderValue>,
) {
    match mode {
        ForwardClientCert::AlwaysForwardOnly => {}
        ForwardClientCert::Sanitize => {
            headers.remove(&names::X_FORWARDED_CLIENT_CERT);
        }
        _ if !mutual_tls => {
            headers.remove(&names::X_FORWARDED_CLIENT_CERT);
        }
        ForwardClientCert::ForwardOnly => {}
        ForwardClientCert::SanitizeSet => match element() {
            Some(own) => {
                headers.insert(names::X_FORWARDED_CLIENT_CERT, own);
            }
            None => {
                headers.remove(&names::X_FORWARDED_CLIENT_CERT);
            }
        },
        ForwardClientCert::AppendForward => {
            if let Some(own) = element() {
                super::headers::append_with(headers, &names::X_FORWARDED_CLIENT_CERT, ",", own);
            }
        }
    }
}

/// The element of one connection: `By=…;Hash=…;Subject="…";URI=…;DNS=…`.
pub(super) fn element(tls: &TlsInfo, details: ClientCertDetails) -> Option<HeaderValue> {
    let peer = tls.peer.as_ref()?;
    let mut parts: Vec<String> = Vec::new();
    if let Some(local) = &tls.local {
        parts.extend(local.uri_sans.iter().map(|uri| format!("By={uri}")));
    }
    let hash = peer.fingerprint.iter().fold(String::from("Hash="), |mut s, b| {
        // writing to a string cannot fail
        let _ = write!(s, "{b:02x}");
        s
    });
    parts.push(hash);
    if details.cert {
        parts.extend(peer.chain.first().map(|leaf| format!("Cert=\"{}\"", url_encoded_pem(leaf))));
    }
    if details.chain {
        let all: String = peer.chain.iter().map(|c| url_encoded_pem(c)).collect();
        parts.push(format!("Chain=\"{all}\""));
    }
    if details.subject {
        parts.push(format!("Subject=\"{}\"", peer.subject.replace('\\', "\\\\").replace('"', "\\\"")));
    }
    list(&mut parts, details.uri, "URI", peer, |p| &p.uri_sans);
    list(&mut parts, details.dns, "DNS", peer, |p| &p.dns_sans);
    HeaderValue::from_str(&parts.join(";")).ok()
}

fn list(
    parts: &mut Vec<String>,
    wanted: bool,
    key: &str,
    peer: &PeerCertificate,
    names: impl Fn(&PeerCertificate) -> &Vec<String>,
) {
    if wanted {
        match &names(peer)[..] {
            // Envoy shows that it looked and found no URI, but says nothing of DNS names
            [] if key == "URI" => parts.push("URI=".to_owned()),
            all => parts.extend(all.iter().map(|name| format!("{key}={name}"))),
        }
    }
}

/// PEM with everything but unreserved characters percent-encoded.
fn url_encoded_pem(der: &[u8]) -> String {
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let text = base64(der);
    for line in text.as_bytes().chunks(64) {
        // base64 is ASCII
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem.bytes().fold(String::with_capacity(pem.len() * 2), |mut out, b| {
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(b));
        } else {
            // writing to a string cannot fail
            let _ = write!(out, "%{b:02X}");
        }
        out
    })
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().enumerate().fold(0_u32, |w, (i, b)| w | u32::from(*b) << (16 - 8 * i));
        for i in 0..4 {
            // six bits always index the 64 letters
            let letter = char::from(ALPHABET[(word >> (18 - 6 * i) & 63) as usize]);
            out.push(if i <= chunk.len() { letter } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::SystemTime;

    fn certificate(subject: &str, uris: &[&str], dns: &[&str]) -> Arc<PeerCertificate> {
        Arc::new(PeerCertificate {
            chain: vec![vec![1, 2, 3, 4].into()],
            subject: subject.into(),
            issuer: String::new(),
            serial: String::new(),
            uri_sans: uris.iter().map(|u| (*u).into()).collect(),
            dns_sans: dns.iter().map(|u| (*u).into()).collect(),
            ip_sans: Vec::new(),
            email_sans: Vec::new(),
            fingerprint: [0xab; 32],
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH,
            verified: true,
        })
    }

    fn tls() -> TlsInfo {
        TlsInfo {
            version: "TLSv1.3",
            cipher: "",
            group: "",
            sni: None,
            alpn: None,
            resumed: false,
            peer: Some(certificate("CN=leaf", &["spiffe://td/client"], &["*.example.com"])),
            local: Some(certificate("CN=us", &["spiffe://td/us"], &[])),
        }
    }

    #[test]
    fn the_element_has_envoys_form_and_order() {
        let details = ClientCertDetails { subject: true, uri: true, dns: true, ..ClientCertDetails::default() };
        let expected = format!(
            "By=spiffe://td/us;Hash={};Subject=\"CN=leaf\";URI=spiffe://td/client;DNS=*.example.com",
            "ab".repeat(32)
        );
        assert_eq!(element(&tls(), details).unwrap(), expected);
        let bare = element(&tls(), ClientCertDetails::default()).unwrap();
        assert_eq!(bare, format!("By=spiffe://td/us;Hash={}", "ab".repeat(32)));
    }

    #[test]
    fn certificates_are_encoded_as_url_safe_pem() {
        let details = ClientCertDetails { cert: true, ..ClientCertDetails::default() };
        let value = element(&tls(), details).unwrap();
        let text = value.to_str().unwrap();
        assert!(
            text.ends_with("Cert=\"-----BEGIN%20CERTIFICATE-----%0AAQIDBA%3D%3D%0A-----END%20CERTIFICATE-----%0A\"")
        );
    }

    #[test]
    fn modes_decide_over_what_the_client_sent() {
        let run = |mode, mutual| {
            let mut headers = HeaderMap::new();
            headers.insert(names::X_FORWARDED_CLIENT_CERT, HeaderValue::from_static("theirs"));
            apply(mode, mutual, &mut headers, || Some(HeaderValue::from_static("ours")));
            headers.get(names::X_FORWARDED_CLIENT_CERT).map(|v| v.to_str().unwrap().to_owned())
        };
        use ForwardClientCert::*;
        assert_eq!(run(Sanitize, true), None);
        assert_eq!(run(SanitizeSet, true).as_deref(), Some("ours"));
        assert_eq!(run(SanitizeSet, false), None);
        assert_eq!(run(AppendForward, true).as_deref(), Some("theirs,ours"));
        assert_eq!(run(ForwardOnly, true).as_deref(), Some("theirs"));
        assert_eq!(run(ForwardOnly, false), None);
        assert_eq!(run(AlwaysForwardOnly, false).as_deref(), Some("theirs"));
    }
}
