//! TLS contexts of both sides. Nothing here is only warned about that makes a connection less safe.

use super::context::{Context, Result, SecretSort};
use super::model::{
    CertificateSource, CommonTls, DownstreamTlsConfig, SdsSecret, TlsVersion, UpstreamTlsConfig, ValidationContext,
    ValidationSource,
};
use super::pb::tls;
use super::secret::{certificate, validation_context};
use super::source::optional_source;
use std::collections::HashSet;
use std::sync::Arc;

/// TLS 1.2 suites that our TLS library has, by OpenSSL's names.
const SUITES: [&str; 6] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-RSA-CHACHA20-POLY1305",
];

/// Suites without forward secrecy, which Istio lists after better ones. Never offered; that is no loss to name.
const STATIC_RSA: [&str; 4] = ["AES128-GCM-SHA256", "AES256-GCM-SHA384", "AES128-SHA", "AES256-SHA"];

/// CBC suites: known to Envoy, not offered here.
const CBC: [&str; 4] =
    ["ECDHE-ECDSA-AES128-SHA", "ECDHE-RSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA", "ECDHE-RSA-AES256-SHA"];

const GROUPS: [&str; 4] = ["X25519", "P-256", "P-384", "X25519MLKEM768"];

/// Groups that Envoy knows and our TLS library does not.
const OTHER_GROUPS: [&str; 3] = ["P-224", "P-521", "X25519Kyber768Draft00"];

/// Longest server name (RFC 6066 section 3 leaves DNS's own bound).
const MAX_SERVER_NAME: usize = 255;

pub(super) fn downstream(message: tls::DownstreamTlsContext, cx: &mut Context) -> Result<DownstreamTlsConfig> {
    use tls::downstream_tls_context::{OcspStaplePolicy, SessionTicketKeysType as Tickets};
    let tls::DownstreamTlsContext {
        common_tls_context,
        require_client_certificate,
        require_sni: _,
        disable_stateful_session_resumption,
        session_timeout: _,
        ocsp_staple_policy,
        full_scan_certs_on_sni_mismatch: _,
        prefer_client_ciphers: _,
        session_ticket_keys_type,
    } = message;
    let common =
        cx.at("common_tls_context", |cx| common_tls(common_tls_context.unwrap_or_default(), Side::Downstream, cx))?;
    if common.certificates == CertificateSource::None {
        return Err(cx.error_at("common_tls_context", "No TLS certificates found for server context"));
    }
    if cx.enumeration::<OcspStaplePolicy>("ocsp_staple_policy", ocsp_staple_policy)?
        != OcspStaplePolicy::LenientStapling
    {
        return Err(cx.error_at("ocsp_staple_policy", "expected LENIENT_STAPLING: no OCSP response is stapled"));
    }
    let disable_stateless_resumption = match session_ticket_keys_type {
        None => false,
        Some(Tickets::DisableStatelessSessionResumption(disable)) => disable,
        Some(Tickets::SessionTicketKeys(_) | Tickets::SessionTicketKeysSdsSecretConfig(_)) => {
            return Err(cx.error_at("session_ticket_keys", "is not supported"));
        }
    };
    Ok(DownstreamTlsConfig {
        common,
        require_client_certificate: require_client_certificate.is_some_and(|v| v.value),
        disable_stateless_resumption,
        disable_stateful_resumption: disable_stateful_session_resumption,
    })
}

pub(super) fn upstream(message: tls::UpstreamTlsContext, cx: &mut Context) -> Result<UpstreamTlsConfig> {
    let tls::UpstreamTlsContext {
        common_tls_context,
        sni,
        auto_host_sni,
        auto_sni_san_validation,
        allow_renegotiation: _,
        max_session_keys,
        enforce_rsa_key_usage: _,
    } = message;
    if sni.len() > MAX_SERVER_NAME {
        return Err(cx.error_at("sni", format!("found {} bytes, expected at most {MAX_SERVER_NAME}", sni.len())));
    }
    let common =
        cx.at("common_tls_context", |cx| common_tls(common_tls_context.unwrap_or_default(), Side::Upstream, cx))?;
    let has_trust = match &common.validation {
        ValidationSource::None => false,
        ValidationSource::Inline(context) => context.trusted_ca.is_some(),
        // what comes by SDS may bring one
        ValidationSource::Sds(_) | ValidationSource::Combined { .. } => true,
    };
    if auto_sni_san_validation && !has_trust {
        let message = "is set without a trusted CA, which the validation of names needs";
        cx.record_all([cx.error_at("auto_sni_san_validation", message)]);
    }
    if let CertificateSource::Inline(certificates) = &common.certificates
        && certificates.len() > 1
    {
        return Err(cx.error_at(
            "common_tls_context.tls_certificates",
            "Multiple TLS certificates are not supported for client contexts",
        ));
    }
    Ok(UpstreamTlsConfig {
        common,
        sni: sni.into(),
        auto_host_sni,
        auto_sni_san_validation,
        max_session_keys: max_session_keys.map_or(1, |v| v.value),
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Downstream,
    Upstream,
}

fn common_tls(message: tls::CommonTlsContext, side: Side, cx: &mut Context) -> Result<CommonTls> {
    let tls::CommonTlsContext {
        tls_params,
        tls_certificates,
        tls_certificate_sds_secret_configs,
        tls_certificate_provider_instance: _,
        custom_tls_certificate_selector: _,
        tls_certificate_certificate_provider: _,
        tls_certificate_certificate_provider_instance: _,
        alpn_protocols,
        custom_handshaker: _,
        key_log: _,
        validation_context_type,
    } = message;
    let parameters = cx.at("tls_params", |cx| tls_parameters(tls_params.unwrap_or_default(), side, cx))?;
    let alpn = cx.each("alpn_protocols", alpn_protocols, |name, cx| match name.len() {
        1..=255 => Ok(name.into_bytes().into_boxed_slice()),
        other => Err(cx.error(format!("found {other} bytes, expected 1 to 255"))),
    })?;
    Ok(CommonTls {
        certificates: certificates(tls_certificates, tls_certificate_sds_secret_configs, cx)?,
        validation: validation_context_type.map_or(Ok(ValidationSource::None), |kind| validation(kind, cx))?,
        alpn,
        min_version: parameters.min_version,
        max_version: parameters.max_version,
        cipher_suites: parameters.cipher_suites,
        groups: parameters.groups,
    })
}

fn certificates(
    inline: Vec<tls::TlsCertificate>,
    sds: Vec<tls::SdsSecretConfig>,
    cx: &mut Context,
) -> Result<CertificateSource> {
    let sds = cx.each("tls_certificate_sds_secret_configs", sds, |secret, cx| {
        sds_secret(secret, SecretSort::Certificate, cx)
    })?;
    let inline = cx.each("tls_certificates", inline, certificate)?;
    let mut sds = sds.into_iter();
    match (inline.is_empty(), sds.next(), sds.next()) {
        (true, None, _) => Ok(CertificateSource::None),
        (false, None, _) => Ok(CertificateSource::Inline(inline)),
        (true, Some(secret), None) => Ok(CertificateSource::Sds(secret)),
        (false, Some(_), _) => {
            Err(cx.error_at("tls_certificates", "found certificates here and by SDS, expected one of them"))
        }
        (true, Some(_), Some(_)) => {
            Err(cx.error_at("tls_certificate_sds_secret_configs[1]", "found a second certificate by SDS, expected one"))
        }
    }
}

fn validation(kind: tls::common_tls_context::ValidationContextType, cx: &mut Context) -> Result<ValidationSource> {
    use tls::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType as Kind};
    match kind {
        Kind::ValidationContext(message) => cx.at("validation_context", |cx| {
            let context = validation_context(message, cx)?;
            if context.trusted_ca.is_none() && context.allow_expired {
                let message = "Certificate validity period is always ignored without trusted CA";
                cx.record_all([cx.error_at("allow_expired_certificate", message)]);
            }
            if context.trusted_ca.is_none() && !context.san_matchers.is_empty() {
                return Err(cx.error(
                    "SAN-based verification of peer certificates without trusted CA is insecure and not allowed",
                ));
            }
            Ok(if context == ValidationContext::default() {
                ValidationSource::None
            } else {
                ValidationSource::Inline(Arc::new(context))
            })
        }),
        Kind::ValidationContextSdsSecretConfig(message) => {
            let secret =
                cx.at("validation_context_sds_secret_config", |cx| sds_secret(message, SecretSort::Validation, cx))?;
            Ok(ValidationSource::Sds(secret))
        }
        Kind::CombinedValidationContext(message) => cx.at("combined_validation_context", |cx| {
            let CombinedCertificateValidationContext {
                default_validation_context,
                validation_context_sds_secret_config,
                validation_context_certificate_provider: _,
                validation_context_certificate_provider_instance: _,
            } = message;
            let default = cx.required("default_validation_context", default_validation_context)?;
            let default = cx.at("default_validation_context", |cx| validation_context(default, cx))?;
            let secret = cx.required("validation_context_sds_secret_config", validation_context_sds_secret_config)?;
            let secret =
                cx.at("validation_context_sds_secret_config", |cx| sds_secret(secret, SecretSort::Validation, cx))?;
            Ok(ValidationSource::Combined { default: Arc::new(default), secret })
        }),
        Kind::ValidationContextCertificateProvider(_) | Kind::ValidationContextCertificateProviderInstance(_) => {
            Err(cx.error_at("validation_context_type", "is not supported"))
        }
    }
}

fn sds_secret(message: tls::SdsSecretConfig, sort: SecretSort, cx: &mut Context) -> Result<SdsSecret> {
    let tls::SdsSecretConfig { name, sds_config } = message;
    let name = cx.non_empty("name", name)?;
    let source = optional_source(sds_config, "sds_config", cx)?;
    if source.is_some() {
        return Ok(SdsSecret { name: name.into(), source });
    }
    if let Some(known) = &cx.static_secrets
        && !known.contains(&(sort, name.clone()))
    {
        cx.record_all([cx.error_at("name", format!("Unknown static secret: {name}"))]);
    }
    Ok(SdsSecret { name: static_name(name, sort, cx), source })
}

/// What the slot of a static secret is called: its name, unless one of another kind has that too.
pub(super) fn static_name(name: String, sort: SecretSort, cx: &Context) -> Arc<str> {
    let taken = |known: &HashSet<_>| known.contains(&(SecretSort::Certificate, name.clone()));
    match (sort, &cx.static_secrets) {
        (SecretSort::Validation, Some(known)) if taken(known) => format!("{name} (validation context)").into(),
        _ => name.into(),
    }
}

struct Parameters {
    min_version: TlsVersion,
    max_version: TlsVersion,
    cipher_suites: Vec<Box<str>>,
    groups: Vec<Box<str>>,
}

fn tls_parameters(message: tls::TlsParameters, side: Side, cx: &mut Context) -> Result<Parameters> {
    use tls::tls_parameters::TlsProtocol;
    let tls::TlsParameters {
        tls_minimum_protocol_version,
        tls_maximum_protocol_version,
        cipher_suites,
        ecdh_curves,
        signature_algorithms: _,
        compliance_policies: _,
    } = message;
    let min_version = match cx.enumeration("tls_minimum_protocol_version", tls_minimum_protocol_version)? {
        TlsProtocol::TlsAuto | TlsProtocol::TlSv12 => TlsVersion::V1_2,
        TlsProtocol::TlSv13 => TlsVersion::V1_3,
        TlsProtocol::TlSv10 | TlsProtocol::TlSv11 => {
            cx.warn("tls_minimum_protocol_version", "TLS 1.0 and 1.1 are never spoken; 1.2 is the minimum");
            TlsVersion::V1_2
        }
    };
    let max_version = match cx.enumeration("tls_maximum_protocol_version", tls_maximum_protocol_version)? {
        // Envoy's own defaults: clients stop at 1.2, unless 1.3 is what they start from.
        TlsProtocol::TlsAuto if side == Side::Upstream => min_version.max(TlsVersion::V1_2),
        TlsProtocol::TlsAuto | TlsProtocol::TlSv13 => TlsVersion::V1_3,
        TlsProtocol::TlSv12 => TlsVersion::V1_2,
        TlsProtocol::TlSv10 | TlsProtocol::TlSv11 => {
            return Err(
                cx.error_at("tls_maximum_protocol_version", "found a version before 1.2, expected TLSv1_2 or TLSv1_3")
            );
        }
    };
    if min_version > max_version {
        return Err(cx.error_at("tls_minimum_protocol_version", "found more than tls_maximum_protocol_version"));
    }
    Ok(Parameters {
        min_version,
        max_version,
        cipher_suites: suites(cipher_suites, cx)?,
        groups: groups(ecdh_curves, cx)?,
    })
}

/// The suites of the list that exist here. `[A|B]` is a group of equal preference; our order is the one given.
fn suites(listed: Vec<String>, cx: &mut Context) -> Result<Vec<Box<str>>> {
    let mut kept: Vec<Box<str>> = Vec::new();
    let mut dropped = Vec::new();
    for name in listed.iter().flat_map(|entry| entry.trim_matches(['[', ']']).split('|')) {
        if SUITES.contains(&name) {
            kept.push(name.into());
        } else if CBC.contains(&name) {
            cx.warn("cipher_suites", format!("{name} is not offered"));
            dropped.push(name);
        } else if STATIC_RSA.contains(&name) {
            dropped.push(name);
        } else {
            return Err(cx.error_at("cipher_suites", format!("found {name:?}, expected names of {SUITES:?}")));
        }
    }
    if kept.is_empty() && !dropped.is_empty() {
        return Err(
            cx.error_at("cipher_suites", format!("found only {dropped:?}, expected at least one of {SUITES:?}"))
        );
    }
    Ok(kept)
}

fn groups(listed: Vec<String>, cx: &mut Context) -> Result<Vec<Box<str>>> {
    let mut kept: Vec<Box<str>> = Vec::new();
    for name in &listed {
        if GROUPS.contains(&name.as_str()) {
            kept.push(name.as_str().into());
        } else if OTHER_GROUPS.contains(&name.as_str()) {
            cx.warn("ecdh_curves", format!("{name} is not offered"));
        } else {
            return Err(cx.error_at("ecdh_curves", format!("found {name:?}, expected names of {GROUPS:?}")));
        }
    }
    if kept.is_empty() && !listed.is_empty() {
        return Err(cx.error_at("ecdh_curves", format!("found only {listed:?}, expected at least one of {GROUPS:?}")));
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_that_nobody_misses_go_without_a_word() {
        let mut cx = Context::default();
        let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let kept =
            suites(list(&["[ECDHE-RSA-AES128-GCM-SHA256|ECDHE-RSA-CHACHA20-POLY1305]", "AES128-GCM-SHA256"]), &mut cx);
        assert_eq!(kept.unwrap().len(), 2);
        assert!(cx.notices.warnings.is_empty());
        assert!(suites(list(&["AES128-GCM-SHA256"]), &mut cx).unwrap_err().message.starts_with("found only"));
        assert!(suites(list(&["NULL-MD5"]), &mut cx).unwrap_err().message.starts_with("found \"NULL-MD5\""));
        suites(list(&["ECDHE-RSA-AES128-SHA", "ECDHE-RSA-AES128-GCM-SHA256"]), &mut cx).unwrap();
        assert_eq!(cx.notices.warnings.len(), 1);
    }

    #[test]
    fn a_server_needs_a_certificate() {
        let mut cx = Context::default();
        assert_eq!(
            downstream(tls::DownstreamTlsContext::default(), &mut cx).unwrap_err().to_string(),
            "common_tls_context: No TLS certificates found for server context"
        );
    }

    #[test]
    fn client_defaults_are_envoys() {
        let mut cx = Context::default();
        let converted = upstream(tls::UpstreamTlsContext::default(), &mut cx).unwrap();
        assert_eq!(converted.max_session_keys, 1);
        assert_eq!(converted.common.max_version, TlsVersion::V1_2);
        assert_eq!(converted.common.validation, ValidationSource::None);
    }
}
