//! Why a handshake failed, in Envoy's words: what logs and tests of meshes search for.

use super::verify::{self, Refusal};
use super::{TlsFailure, TlsFailureKind};
use rustls::{AlertDescription, CertificateError, Error};
use std::io;

/// BoringSSL's numbers are its library's (16) above a reason's.
const LIBRARY: u32 = 16 << 24;
const CERTIFICATE_VERIFY_FAILED: u32 = 125;
const PEER_DID_NOT_RETURN_A_CERTIFICATE: u32 = 192;
const WRONG_VERSION_NUMBER: u32 = 247;
const UNSUPPORTED_PROTOCOL: u32 = 240;
const NO_SHARED_CIPHER: u32 = 185;
/// An alert's number is added to it.
const ALERT: u32 = 1000;

impl TlsFailure {
    pub(super) fn new(kind: TlsFailureKind, reason: impl Into<String>) -> TlsFailure {
        TlsFailure { reason: reason.into(), kind }
    }

    /// No handshake was tried: a secret is missing.
    pub(super) fn not_ready(missing: &str) -> TlsFailure {
        let reason = match missing {
            "" => "TLS_error: Secret is not supplied by SDS".to_owned(),
            names => format!("TLS_error: Secret is not supplied by SDS ({names}): check the SDS server"),
        };
        TlsFailure::new(TlsFailureKind::NotReady, reason)
    }

    /// What tokio-rustls reports, and whether a pin (rather than a name) refused the identity.
    pub(super) fn from_io(error: &io::Error) -> (TlsFailure, bool) {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(error) => from_rustls(error),
            None => {
                let reason = match error.kind() {
                    io::ErrorKind::UnexpectedEof => "TLS_error: the peer closed during the handshake".to_owned(),
                    _ => format!("TLS_error: {error}"),
                };
                (TlsFailure::new(TlsFailureKind::Closed, reason), false)
            }
        }
    }
}

fn text(reason: u32, name: &str, detail: &str) -> String {
    let number = LIBRARY + reason;
    format!("TLS_error:|{number}:SSL routines:OPENSSL_internal:{name}{detail}:TLS_error_end")
}

fn from_rustls(error: &Error) -> (TlsFailure, bool) {
    use TlsFailureKind as Kind;
    let unverified = |detail: &str| {
        text(CERTIFICATE_VERIFY_FAILED, "CERTIFICATE_VERIFY_FAILED", &format!(":verify cert failed: {detail}"))
    };
    let (kind, reason) = match error {
        Error::InvalidCertificate(CertificateError::Other(other)) => match other.0.downcast_ref::<Refusal>() {
            Some(refusal @ Refusal::Name(_)) => (Kind::WrongIdentity, unverified(&refusal.to_string())),
            Some(refusal @ Refusal::Pin(_)) => {
                return (TlsFailure::new(Kind::WrongIdentity, unverified(&refusal.to_string())), true);
            }
            _ => (Kind::Untrusted, unverified(&other.to_string())),
        },
        Error::InvalidCertificate(certificate) => (Kind::Untrusted, unverified(&verify::words(certificate))),
        Error::NoCertificatesPresented => {
            (Kind::NoCertificate, text(PEER_DID_NOT_RETURN_A_CERTIFICATE, "PEER_DID_NOT_RETURN_A_CERTIFICATE", ""))
        }
        Error::InvalidMessage(_) => {
            (Kind::Handshake, text(WRONG_VERSION_NUMBER, "WRONG_VERSION_NUMBER", ": the peer does not speak TLS here"))
        }
        Error::PeerIncompatible(rustls::PeerIncompatible::NoCipherSuitesInCommon) => {
            (Kind::Handshake, text(NO_SHARED_CIPHER, "NO_SHARED_CIPHER", ": compare cipher_suites of both sides"))
        }
        Error::PeerIncompatible(what) => (
            Kind::Handshake,
            text(
                UNSUPPORTED_PROTOCOL,
                "UNSUPPORTED_PROTOCOL",
                &format!(": {what:?}, compare tls_params of both sides"),
            ),
        ),
        Error::AlertReceived(alert) => {
            let (number, name) = alert_name(*alert);
            (Kind::Handshake, text(ALERT + u32::from(number), name, ""))
        }
        other => (Kind::Handshake, format!("TLS_error: {other}")),
    };
    (TlsFailure::new(kind, reason), false)
}

/// BoringSSL's name of an alert that came from the peer.
fn alert_name(alert: AlertDescription) -> (u8, &'static str) {
    let number = u8::from(alert);
    let name = match number {
        0 => "SSLV3_ALERT_CLOSE_NOTIFY",
        10 => "SSLV3_ALERT_UNEXPECTED_MESSAGE",
        20 => "SSLV3_ALERT_BAD_RECORD_MAC",
        40 => "SSLV3_ALERT_HANDSHAKE_FAILURE",
        42 => "SSLV3_ALERT_BAD_CERTIFICATE",
        43 => "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        44 => "SSLV3_ALERT_CERTIFICATE_REVOKED",
        45 => "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        46 => "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        47 => "SSLV3_ALERT_ILLEGAL_PARAMETER",
        48 => "TLSV1_ALERT_UNKNOWN_CA",
        49 => "TLSV1_ALERT_ACCESS_DENIED",
        50 => "TLSV1_ALERT_DECODE_ERROR",
        51 => "TLSV1_ALERT_DECRYPT_ERROR",
        70 => "TLSV1_ALERT_PROTOCOL_VERSION",
        71 => "TLSV1_ALERT_INSUFFICIENT_SECURITY",
        80 => "TLSV1_ALERT_INTERNAL_ERROR",
        112 => "TLSV1_ALERT_UNRECOGNIZED_NAME",
        116 => "TLSV1_ALERT_CERTIFICATE_REQUIRED",
        120 => "TLSV1_ALERT_NO_APPLICATION_PROTOCOL",
        _ => "TLSV1_ALERT_OTHER",
    };
    (number, name)
}

/// The peer's certificate passed and then could not be described: without rules nobody else read it.
pub(super) fn unreadable(why: String) -> TlsFailure {
    TlsFailure::new(TlsFailureKind::Untrusted, format!("TLS_error: {why}"))
}

/// A session was resumed whose certificate has expired since.
pub(super) fn expired_in_session() -> TlsFailure {
    let detail = ":verify cert failed: the certificate of the resumed session has expired";
    let reason = text(CERTIFICATE_VERIFY_FAILED, "CERTIFICATE_VERIFY_FAILED", detail);
    TlsFailure::new(TlsFailureKind::Untrusted, reason)
}
