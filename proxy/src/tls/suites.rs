//! Cipher suites, key exchange groups and versions: OpenSSL's names for what rustls offers.

use crate::config::ConfigError;
use crate::config::model::{CommonTls, TlsVersion};
use rustls::crypto::aws_lc_rs::{cipher_suite as suite, default_provider, kx_group as group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{CipherSuite, NamedGroup, ProtocolVersion, SupportedCipherSuite, SupportedProtocolVersion};
use std::sync::Arc;

/// Those of TLS 1.2 by OpenSSL's name, in Envoy's order of preference.
static TLS12: [(&str, &SupportedCipherSuite); 6] = [
    ("ECDHE-ECDSA-AES128-GCM-SHA256", &suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", &suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("ECDHE-RSA-AES128-GCM-SHA256", &suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-RSA-CHACHA20-POLY1305", &suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
    ("ECDHE-ECDSA-AES256-GCM-SHA384", &suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-RSA-AES256-GCM-SHA384", &suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
];

/// Those of TLS 1.3: always on, as in Envoy (`cipher_suites` is about TLS 1.2), in BoringSSL's order.
static TLS13: [(&str, &SupportedCipherSuite); 3] = [
    ("TLS_AES_128_GCM_SHA256", &suite::TLS13_AES_128_GCM_SHA256),
    ("TLS_AES_256_GCM_SHA384", &suite::TLS13_AES_256_GCM_SHA384),
    ("TLS_CHACHA20_POLY1305_SHA256", &suite::TLS13_CHACHA20_POLY1305_SHA256),
];

/// Every name of a suite that can be negotiated, for stats.
pub(super) const SUITE_COUNT: usize = TLS12.len() + TLS13.len();

/// Groups by Envoy's names. The first two are the default.
static GROUPS: [(&str, &dyn SupportedKxGroup); 4] = [
    ("X25519", group::X25519),
    ("P-256", group::SECP256R1),
    ("P-384", group::SECP384R1),
    ("X25519MLKEM768", group::X25519MLKEM768),
];

pub(super) const GROUP_COUNT: usize = GROUPS.len();
const DEFAULT_GROUPS: usize = 2;

/// Position, and OpenSSL's name, of a negotiated suite.
pub(super) fn suite_name(negotiated: CipherSuite) -> Option<(usize, &'static str)> {
    TLS12
        .iter()
        .chain(&TLS13)
        .enumerate()
        .find(|(_, (_, s))| s.suite() == negotiated)
        .map(|(at, (name, _))| (at, *name))
}

/// Position, and Envoy's name, of a negotiated group.
pub(super) fn group_name(negotiated: NamedGroup) -> Option<(usize, &'static str)> {
    GROUPS.iter().enumerate().find(|(_, (_, g))| g.name() == negotiated).map(|(at, (name, _))| (at, *name))
}

pub(super) fn version_name(version: Option<ProtocolVersion>) -> &'static str {
    match version {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        _ => "TLSv1.2",
    }
}

/// The provider with the suites and groups of the configuration, in its order.
///
/// # Errors
/// The name that nothing here is known by.
pub(super) fn provider(common: &CommonTls) -> Result<Arc<CryptoProvider>, ConfigError> {
    let mut cipher_suites = Vec::with_capacity(SUITE_COUNT);
    if common.max_version >= TlsVersion::V1_3 {
        cipher_suites.extend(TLS13.iter().map(|(_, s)| **s));
    }
    if common.min_version <= TlsVersion::V1_2 {
        if common.cipher_suites.is_empty() {
            cipher_suites.extend(TLS12.iter().map(|(_, s)| **s));
        }
        for name in &common.cipher_suites {
            // `[a|b]` are alternatives of equal preference
            for name in name.trim_matches(['[', ']']).split('|') {
                if TLS13.iter().any(|(known, _)| *known == name) {
                    continue;
                }
                let (_, found) = TLS12.iter().find(|(known, _)| *known == name).ok_or_else(|| {
                    let known: Vec<_> = TLS12.iter().map(|(n, _)| *n).collect();
                    ConfigError::new(
                        "tls_params.cipher_suites",
                        format!("no suite is known as {name}; there are {}", known.join(", ")),
                    )
                })?;
                cipher_suites.push(**found);
            }
        }
    }
    let mut kx_groups: Vec<&'static dyn SupportedKxGroup> = Vec::new();
    if common.groups.is_empty() {
        kx_groups.extend(GROUPS.iter().take(DEFAULT_GROUPS).map(|(_, g)| *g));
    }
    for name in &common.groups {
        let (_, found) = GROUPS.iter().find(|(known, _)| *known == &**name).ok_or_else(|| {
            let known: Vec<_> = GROUPS.iter().map(|(n, _)| *n).collect();
            ConfigError::new(
                "tls_params.ecdh_curves",
                format!("no key exchange group is known as {name}; there are {}", known.join(", ")),
            )
        })?;
        kx_groups.push(*found);
    }
    Ok(Arc::new(CryptoProvider { cipher_suites, kx_groups, ..default_provider() }))
}

/// The versions between the configured bounds.
///
/// # Errors
/// An empty range.
pub(super) fn versions(common: &CommonTls) -> Result<&'static [&'static SupportedProtocolVersion], ConfigError> {
    static BOTH: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];
    match (common.min_version, common.max_version) {
        (TlsVersion::V1_2, TlsVersion::V1_3) => Ok(&BOTH),
        (TlsVersion::V1_3, TlsVersion::V1_3) => Ok(&BOTH[..1]),
        (TlsVersion::V1_2, TlsVersion::V1_2) => Ok(&BOTH[1..]),
        (TlsVersion::V1_3, TlsVersion::V1_2) => Err(ConfigError::new(
            "tls_params",
            "tls_minimum_protocol_version (TLSv1_3) is above tls_maximum_protocol_version (TLSv1_2)",
        )),
    }
}
