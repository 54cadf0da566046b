//! Secrets: certificates with their keys, and what peers are verified against.

use super::context::{Context, Result};
use super::matcher::string_match;
use super::model::{DataSource, SanKind, SanMatcher, SecretConfig, SecretKind, TlsCertificate, ValidationContext};
use super::pb::{core, tls};
use super::source::data_source;
use std::sync::Arc;

/// Chains longer than this are refused by the verifier anyway (webpki), so a higher `max_verify_depth` is met.
const VERIFIER_DEPTH: u32 = 6;

pub(super) fn secret(message: tls::Secret, cx: &mut Context) -> Result<SecretConfig> {
    use tls::secret::Type;
    let tls::Secret { name, r#type } = message;
    let kind = match cx.required("type", r#type)? {
        Type::TlsCertificate(message) => {
            SecretKind::Certificate(cx.at("tls_certificate", |cx| certificate(message, cx))?)
        }
        // By itself a secret may hold only the bundle: the names come from the context that refers to it.
        Type::ValidationContext(message) => {
            SecretKind::Validation(Arc::new(cx.at("validation_context", |cx| validation_context(message, cx))?))
        }
        Type::SessionTicketKeys(_) => return Err(cx.error_at("session_ticket_keys", "is not supported")),
        Type::GenericSecret(_) => return Err(cx.error_at("generic_secret", "is not supported")),
    };
    Ok(SecretConfig { name: name.into(), kind })
}

pub(super) fn certificate(message: tls::TlsCertificate, cx: &mut Context) -> Result<TlsCertificate> {
    let tls::TlsCertificate {
        certificate_chain,
        private_key,
        pkcs12: _,
        watched_directory: _,
        private_key_provider: _,
        password: _,
        ocsp_staple: _,
        signed_certificate_timestamp: _,
        tls_params: _,
    } = message;
    Ok(TlsCertificate {
        chain: required_source("certificate_chain", certificate_chain, cx)?,
        key: required_source("private_key", private_key, cx)?,
    })
}

fn required_source(field: &str, message: Option<core::DataSource>, cx: &mut Context) -> Result<DataSource> {
    let message = cx.required(field, message)?;
    let source = cx.at(field, |cx| data_source(message, cx))?;
    if source.bytes.is_empty() { Err(cx.error_at(field, "found nothing, expected PEM")) } else { Ok(source) }
}

fn optional_source(field: &str, message: Option<core::DataSource>, cx: &mut Context) -> Result<Option<DataSource>> {
    message.map(|message| required_source(field, Some(message), cx)).transpose()
}

pub(super) fn validation_context(
    message: tls::CertificateValidationContext,
    cx: &mut Context,
) -> Result<ValidationContext> {
    use tls::certificate_validation_context::TrustChainVerification;
    let tls::CertificateValidationContext {
        trusted_ca,
        ca_certificate_provider_instance: _,
        system_root_certs: _,
        watched_directory: _,
        verify_certificate_spki,
        verify_certificate_hash,
        match_typed_subject_alt_names,
        match_subject_alt_names,
        require_signed_certificate_timestamp: _,
        crl,
        allow_expired_certificate,
        trust_chain_verification,
        custom_validator_config: _,
        only_verify_leaf_cert_crl: _,
        max_verify_depth,
        suppress_client_ca_list: _,
    } = message;
    if let Some(depth) = max_verify_depth.map(|v| v.value).filter(|depth| *depth < VERIFIER_DEPTH) {
        return Err(
            cx.error_at("max_verify_depth", format!("found {depth}, expected {VERIFIER_DEPTH} or more, or absent"))
        );
    }
    if !match_typed_subject_alt_names.is_empty() && !match_subject_alt_names.is_empty() {
        return Err(cx.error_at(
            "match_subject_alt_names",
            "found both match_subject_alt_names and match_typed_subject_alt_names, expected one of them",
        ));
    }
    let mut san_matchers = cx.each("match_typed_subject_alt_names", match_typed_subject_alt_names, typed_san)?;
    san_matchers.extend(cx.each("match_subject_alt_names", match_subject_alt_names, |message, cx| {
        Ok(SanMatcher { kind: None, matcher: string_match(message, cx)? })
    })?);
    let trust = cx.enumeration::<TrustChainVerification>("trust_chain_verification", trust_chain_verification)?;
    Ok(ValidationContext {
        trusted_ca: optional_source("trusted_ca", trusted_ca, cx)?,
        san_matchers,
        crl: optional_source("crl", crl, cx)?,
        certificate_hashes: cx.each("verify_certificate_hash", verify_certificate_hash, |text, cx| {
            hex_sha256(&text).ok_or_else(|| cx.error(format!("found {text:?}, expected a SHA-256 in hex, 64 digits")))
        })?,
        spki_hashes: cx.each("verify_certificate_spki", verify_certificate_spki, |text, cx| {
            base64_sha256(&text).ok_or_else(|| cx.error(format!("found {text:?}, expected a SHA-256 in base64")))
        })?,
        accept_untrusted: trust == TrustChainVerification::AcceptUntrusted,
        allow_expired: allow_expired_certificate,
    })
}

fn typed_san(message: tls::SubjectAltNameMatcher, cx: &mut Context) -> Result<SanMatcher> {
    use tls::subject_alt_name_matcher::SanType;
    let tls::SubjectAltNameMatcher { san_type, matcher, oid: _ } = message;
    let kind = match cx.enumeration::<SanType>("san_type", san_type)? {
        SanType::Email => SanKind::Email,
        SanType::Dns => SanKind::Dns,
        SanType::Uri => SanKind::Uri,
        SanType::IpAddress => SanKind::Ip,
        other => {
            let found = other.as_str_name();
            return Err(cx.error_at("san_type", format!("found {found}, expected EMAIL, DNS, URI or IP_ADDRESS")));
        }
    };
    let matcher = cx.required("matcher", matcher)?;
    Ok(SanMatcher { kind: Some(kind), matcher: cx.at("matcher", |cx| string_match(matcher, cx))? })
}

/// 64 hex digits; openssl's colons between bytes may stay.
fn hex_sha256(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text
        .bytes()
        .filter(|b| *b != b':')
        .map(|b| (b as char).to_digit(16))
        .map(|d| d.map(|d| d as u8))
        .collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    if digits.len() == 64 { bytes.try_into().ok() } else { None }
}

/// Base64 of 32 bytes: 43 digits and one `=` (RFC 4648 section 4).
fn base64_sha256(text: &str) -> Option<[u8; 32]> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = text.strip_suffix('=').filter(|digits| digits.len() == 43)?;
    let (mut bits, mut held, mut bytes) = (0u32, 0, Vec::with_capacity(32));
    for digit in digits.bytes() {
        bits = bits << 6 | DIGITS.iter().position(|d| *d == digit)? as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    // What is left over must be padding.
    if bits == 0 { bytes.try_into().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::pb::matcher;

    fn uri(prefix: &str) -> matcher::StringMatcher {
        matcher::StringMatcher {
            ignore_case: false,
            match_pattern: Some(matcher::string_matcher::MatchPattern::Prefix(prefix.into())),
        }
    }

    #[test]
    fn old_and_typed_names_are_both_understood_but_not_together() {
        let mut cx = Context::default();
        let mut message = tls::CertificateValidationContext {
            match_subject_alt_names: vec![uri("spiffe://td/")],
            ..Default::default()
        };
        let converted = validation_context(message.clone(), &mut cx).unwrap();
        assert_eq!(converted.san_matchers.len(), 1);
        assert_eq!(converted.san_matchers[0].kind, None);
        message.match_typed_subject_alt_names =
            vec![tls::SubjectAltNameMatcher { san_type: 3, matcher: Some(uri("spiffe://td/")), oid: String::new() }];
        assert!(validation_context(message.clone(), &mut cx).is_err());
        message.match_subject_alt_names.clear();
        assert_eq!(validation_context(message.clone(), &mut cx).unwrap().san_matchers[0].kind, Some(SanKind::Uri));
        message.match_typed_subject_alt_names[0].san_type = 5;
        assert_eq!(
            validation_context(message, &mut cx).unwrap_err().to_string(),
            "match_typed_subject_alt_names[0].san_type: found OTHER_NAME, expected EMAIL, DNS, URI or IP_ADDRESS"
        );
        assert!(cx.notices.warnings.is_empty());
    }

    #[test]
    fn hashes_are_read_in_both_notations() {
        let hex = "00:".repeat(31) + "fF";
        assert_eq!(hex_sha256(&hex).unwrap()[31], 255);
        assert!(hex_sha256("00").is_none() && hex_sha256(&"zz".repeat(32)).is_none());
        let base64 = "A".repeat(41) + "P8=";
        assert_eq!(base64_sha256(&base64).unwrap()[30..], [0, 255]);
        assert!(base64_sha256("AAAA").is_none() && base64_sha256(&("A".repeat(42) + "B=")).is_none());
    }

    #[test]
    fn a_certificate_needs_its_key() {
        let mut cx = Context::default();
        let chain = core::DataSource {
            specifier: Some(core::data_source::Specifier::InlineString("PEM".into())),
            watched_directory: None,
        };
        let message = tls::Secret {
            name: "default".into(),
            r#type: Some(tls::secret::Type::TlsCertificate(tls::TlsCertificate {
                certificate_chain: Some(chain),
                ..Default::default()
            })),
        };
        assert_eq!(
            secret(message, &mut cx).unwrap_err().to_string(),
            "tls_certificate.private_key: is missing, expected a value"
        );
    }
}
