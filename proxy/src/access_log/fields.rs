//! The operators without parameters, and how values are appended.

use super::operators::{GrpcStatus, Wrote};
use super::{Entry, Flag, Kind, TlsField, tls_fields};
use std::fmt::{Display, Write as _};
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

/// Appends a value of an entry.
pub(super) type Append = fn(&Entry<'_>, &mut Vec<u8>) -> Wrote;

pub(super) fn bytes(value: Option<&[u8]>, out: &mut Vec<u8>) -> Wrote {
    value.map_or(Wrote::Nothing, |value| {
        out.extend_from_slice(value);
        Wrote::Text
    })
}

/// Texts that are empty count as absent.
pub(super) fn text(value: Option<&str>, out: &mut Vec<u8>) -> Wrote {
    bytes(value.filter(|text| !text.is_empty()).map(str::as_bytes), out)
}

pub(super) fn number(value: Option<impl Display>, out: &mut Vec<u8>) -> Wrote {
    value.map_or(Wrote::Nothing, |value| {
        // Writing to a `Vec` cannot fail.
        let _ = write!(out, "{value}");
        Wrote::Number
    })
}

fn integer(value: u64, out: &mut Vec<u8>) -> Wrote {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    Wrote::Number
}

fn millis(value: Option<Duration>, out: &mut Vec<u8>) -> Wrote {
    value.map_or(Wrote::Nothing, |value| integer(value.as_millis() as u64, out))
}

fn shown(value: Option<impl Display>, out: &mut Vec<u8>) -> Wrote {
    match number(value, out) {
        Wrote::Number => Wrote::Text,
        other => other,
    }
}

fn port(address: Option<SocketAddr>, out: &mut Vec<u8>) -> Wrote {
    address.map_or(Wrote::Nothing, |address| integer(address.port().into(), out))
}

fn without_port(address: Option<SocketAddr>, out: &mut Vec<u8>) -> Wrote {
    shown(address.map(|address| address.ip()), out)
}

fn upstream_socket(entry: &Entry<'_>) -> Option<SocketAddr> {
    match &entry.upstream.as_ref()?.host?.0 {
        crate::config::model::Address::Socket(address) => Some(*address),
        crate::config::model::Address::Pipe { .. } => None,
    }
}

fn upstream_local(entry: &Entry<'_>) -> Option<SocketAddr> {
    Some(entry.upstream.as_ref()?.local?.0)
}

fn flags(entry: &Entry<'_>, name: fn(Flag) -> &'static str, out: &mut Vec<u8>) -> Wrote {
    // no flags are a value of their own, in JSON too
    if entry.flags.is_empty() {
        out.push(b'-');
    }
    for (at, flag) in entry.flags.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(name(flag).as_bytes());
    }
    Wrote::Text
}

/// gRPC's status names ("Status codes and their use in gRPC"), as Envoy spells them in each form.
const GRPC_NAMES: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

pub(super) fn grpc_status(status: Option<u32>, form: GrpcStatus, out: &mut Vec<u8>) -> Wrote {
    let Some(status) = status else { return Wrote::Nothing };
    match (form, GRPC_NAMES.get(status as usize)) {
        (GrpcStatus::Number, _) => integer(status.into(), out),
        (GrpcStatus::Camel, Some((camel, _))) => text(Some(camel), out),
        (GrpcStatus::Snake, Some((_, snake))) => text(Some(snake), out),
        (_, None) => shown(Some(status), out),
    }
}

fn unique_id(out: &mut Vec<u8>) -> Wrote {
    // A random UUID: version 4, variant 1 (RFC 9562).
    let id = fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let mut hex = String::with_capacity(32);
    let _ = write!(hex, "{id:032x}");
    for (at, range) in [0..8, 8..12, 12..16, 16..20, 20..32].into_iter().enumerate() {
        if at > 0 {
            out.push(b'-');
        }
        out.extend_from_slice(&hex.as_bytes()[range]);
    }
    Wrote::Text
}

static HOSTNAME: LazyLock<String> = LazyLock::new(|| {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
});

/// Operators without parameters, sorted by name.
pub(super) const PLAIN: &[(&str, Append)] = &[
    ("ACCESS_LOG_TYPE", |e, o| text(Some(if e.kind == Kind::Http { "DownstreamEnd" } else { "TcpConnectionEnd" }), o)),
    ("BYTES_RECEIVED", |e, o| integer(e.bytes_received, o)),
    ("BYTES_SENT", |e, o| integer(e.bytes_sent, o)),
    ("CONNECTION_ID", |e, o| integer(e.connection.id, o)),
    ("CONNECTION_TERMINATION_DETAILS", |e, o| text(Some(e.connection_termination_details), o)),
    ("CUSTOM_FLAGS", |_, _| Wrote::Text),
    ("DOWNSTREAM_DIRECT_LOCAL_ADDRESS", |e, o| shown(Some(e.connection.direct_local), o)),
    ("DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID", |_, _| Wrote::Text),
    ("DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT", |e, o| without_port(Some(e.connection.direct_local.0), o)),
    ("DOWNSTREAM_DIRECT_LOCAL_PORT", |e, o| port(Some(e.connection.direct_local.0), o)),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", |e, o| shown(Some(e.connection.direct_peer), o)),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", |e, o| without_port(Some(e.connection.direct_peer.0), o)),
    ("DOWNSTREAM_DIRECT_REMOTE_PORT", |e, o| port(Some(e.connection.direct_peer.0), o)),
    ("DOWNSTREAM_HANDSHAKE_DURATION", |e, o| millis(e.timings.handshake, o)),
    ("DOWNSTREAM_HEADER_BYTES_RECEIVED", |e, o| integer(e.request_headers_bytes, o)),
    ("DOWNSTREAM_HEADER_BYTES_SENT", |e, o| integer(e.response_headers_bytes, o)),
    ("DOWNSTREAM_LOCAL_ADDRESS", |e, o| shown(Some(e.connection.local), o)),
    ("DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID", |_, _| Wrote::Text),
    ("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", |e, o| without_port(Some(e.connection.local.0), o)),
    ("DOWNSTREAM_LOCAL_DNS_SAN", |e, o| tls_fields::downstream(e, TlsField::LocalDns, o)),
    ("DOWNSTREAM_LOCAL_EMAIL_SAN", |e, o| tls_fields::downstream(e, TlsField::LocalEmail, o)),
    ("DOWNSTREAM_LOCAL_IP_SAN", |e, o| tls_fields::downstream(e, TlsField::LocalIp, o)),
    ("DOWNSTREAM_LOCAL_PORT", |e, o| port(Some(e.connection.local.0), o)),
    ("DOWNSTREAM_LOCAL_SUBJECT", |e, o| tls_fields::downstream(e, TlsField::LocalSubject, o)),
    ("DOWNSTREAM_LOCAL_URI_SAN", |e, o| tls_fields::downstream(e, TlsField::LocalUri, o)),
    ("DOWNSTREAM_PEER_CERT", |e, o| tls_fields::downstream(e, TlsField::PeerPem, o)),
    ("DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256", |e, o| tls_fields::downstream(e, TlsField::PeerChain256, o)),
    ("DOWNSTREAM_PEER_DNS_SAN", |e, o| tls_fields::downstream(e, TlsField::PeerDns, o)),
    ("DOWNSTREAM_PEER_EMAIL_SAN", |e, o| tls_fields::downstream(e, TlsField::PeerEmail, o)),
    ("DOWNSTREAM_PEER_FINGERPRINT_256", |e, o| tls_fields::downstream(e, TlsField::PeerFingerprint, o)),
    ("DOWNSTREAM_PEER_IP_SAN", |e, o| tls_fields::downstream(e, TlsField::PeerIp, o)),
    ("DOWNSTREAM_PEER_ISSUER", |e, o| tls_fields::downstream(e, TlsField::PeerIssuer, o)),
    ("DOWNSTREAM_PEER_SERIAL", |e, o| tls_fields::downstream(e, TlsField::PeerSerial, o)),
    ("DOWNSTREAM_PEER_SUBJECT", |e, o| tls_fields::downstream(e, TlsField::PeerSubject, o)),
    ("DOWNSTREAM_PEER_URI_SAN", |e, o| tls_fields::downstream(e, TlsField::PeerUri, o)),
    ("DOWNSTREAM_REMOTE_ADDRESS", |e, o| shown(Some(e.connection.peer), o)),
    ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", |e, o| without_port(Some(e.connection.peer.0), o)),
    ("DOWNSTREAM_REMOTE_PORT", |e, o| port(Some(e.connection.peer.0), o)),
    ("DOWNSTREAM_TLS_CIPHER", |e, o| tls_fields::downstream(e, TlsField::Cipher, o)),
    ("DOWNSTREAM_TLS_GROUP", |e, o| tls_fields::downstream(e, TlsField::Group, o)),
    ("DOWNSTREAM_TLS_VERSION", |e, o| tls_fields::downstream(e, TlsField::Version, o)),
    ("DOWNSTREAM_TRANSPORT_FAILURE_REASON", |e, o| text(Some(&e.connection.transport_failure), o)),
    ("DOWNSTREAM_WIRE_BYTES_RECEIVED", |e, o| integer(e.wire_bytes_received, o)),
    ("DOWNSTREAM_WIRE_BYTES_SENT", |e, o| integer(e.wire_bytes_sent, o)),
    ("DURATION", |e, o| millis(Some(e.duration), o)),
    ("FILTER_CHAIN_NAME", |e, o| text(Some(&e.connection.filter_chain_name), o)),
    ("GRPC_STATUS_NUMBER", |e, o| grpc_status(e.grpc_status, GrpcStatus::Number, o)),
    ("HOSTNAME", |_, o| text(Some(&HOSTNAME), o)),
    ("LISTENER_NAME", |e, o| text(Some(&e.connection.listener_name), o)),
    ("LOCAL_REPLY_BODY", |e, o| bytes(Some(e.local_reply_body.as_bytes()), o)),
    ("PROTOCOL", |e, o| text(e.protocol, o)),
    ("REQUESTED_SERVER_NAME", |e, o| text(e.connection.sni.as_deref(), o)),
    ("REQUEST_DURATION", |e, o| millis(e.timings.request_received, o)),
    ("REQUEST_HEADERS_BYTES", |e, o| integer(e.request_headers_bytes, o)),
    ("REQUEST_TX_DURATION", |e, o| millis(e.timings.upstream_request_last, o)),
    ("RESPONSE_CODE", |e, o| integer(e.response_code.unwrap_or(0).into(), o)),
    ("RESPONSE_CODE_DETAILS", |e, o| text(Some(e.response_code_details), o)),
    ("RESPONSE_DURATION", |e, o| millis(e.timings.upstream_response_first, o)),
    ("RESPONSE_FLAGS", |e, o| flags(e, Flag::short, o)),
    ("RESPONSE_FLAGS_LONG", |e, o| flags(e, Flag::long, o)),
    ("RESPONSE_HEADERS_BYTES", |e, o| integer(e.response_headers_bytes, o)),
    ("RESPONSE_TRAILERS_BYTES", |e, o| integer(e.response_trailers_bytes, o)),
    ("RESPONSE_TX_DURATION", |e, o| {
        let span = e.timings.response_last.zip(e.timings.upstream_response_first);
        millis(span.and_then(|(last, first)| last.checked_sub(first)), o)
    }),
    ("ROUTE_NAME", |e, o| text(Some(e.route_name), o)),
    ("STREAM_ID", |e, o| text(Some(e.stream_id), o)),
    ("UNIQUE_ID", |_, o| unique_id(o)),
    ("UPSTREAM_CLUSTER", |e, o| text(e.upstream.as_ref().map(|u| u.observability_name), o)),
    ("UPSTREAM_CLUSTER_RAW", |e, o| text(e.upstream.as_ref().map(|u| u.cluster), o)),
    ("UPSTREAM_CONNECTION_ID", |e, o| integer(e.upstream.as_ref().and_then(|u| u.connection_id).unwrap_or(0), o)),
    ("UPSTREAM_CONNECTION_POOL_READY_DURATION", |e, o| millis(e.timings.upstream_pool_ready, o)),
    ("UPSTREAM_HOST", |e, o| shown(e.upstream.as_ref().and_then(|u| u.host), o)),
    ("UPSTREAM_HOST_NAME", |e, o| upstream_host_name(e, true, o)),
    ("UPSTREAM_HOST_NAME_WITHOUT_PORT", |e, o| upstream_host_name(e, false, o)),
    ("UPSTREAM_LOCAL_ADDRESS", |e, o| shown(upstream_local(e), o)),
    ("UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", |e, o| without_port(upstream_local(e), o)),
    ("UPSTREAM_LOCAL_DNS_SAN", |e, o| tls_fields::upstream(e, TlsField::LocalDns, o)),
    ("UPSTREAM_LOCAL_IP_SAN", |e, o| tls_fields::upstream(e, TlsField::LocalIp, o)),
    ("UPSTREAM_LOCAL_PORT", |e, o| port(upstream_local(e), o)),
    ("UPSTREAM_LOCAL_URI_SAN", |e, o| tls_fields::upstream(e, TlsField::LocalUri, o)),
    ("UPSTREAM_PEER_CERT", |e, o| tls_fields::upstream(e, TlsField::PeerPem, o)),
    ("UPSTREAM_PEER_DNS_SAN", |e, o| tls_fields::upstream(e, TlsField::PeerDns, o)),
    ("UPSTREAM_PEER_IP_SAN", |e, o| tls_fields::upstream(e, TlsField::PeerIp, o)),
    ("UPSTREAM_PEER_ISSUER", |e, o| tls_fields::upstream(e, TlsField::PeerIssuer, o)),
    ("UPSTREAM_PEER_SUBJECT", |e, o| tls_fields::upstream(e, TlsField::PeerSubject, o)),
    ("UPSTREAM_PEER_URI_SAN", |e, o| tls_fields::upstream(e, TlsField::PeerUri, o)),
    ("UPSTREAM_PROTOCOL", |e, o| text(e.upstream.as_ref().and_then(|u| u.protocol), o)),
    ("UPSTREAM_REMOTE_ADDRESS", |e, o| shown(e.upstream.as_ref().and_then(|u| u.host), o)),
    ("UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID", |e, _| if e.upstream.is_some() { Wrote::Text } else { Wrote::Nothing }),
    ("UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", |e, o| without_port(upstream_socket(e), o)),
    ("UPSTREAM_REMOTE_PORT", |e, o| port(upstream_socket(e), o)),
    ("UPSTREAM_REQUEST_ATTEMPT_COUNT", |e, o| integer(e.upstream.as_ref().map_or(0, |u| u.attempts).into(), o)),
    ("UPSTREAM_SERVER_NAME", |e, o| {
        text(e.upstream.as_ref().and_then(|u| u.tls).and_then(|tls| tls.sni.as_deref()), o)
    }),
    ("UPSTREAM_TLS_CIPHER", |e, o| tls_fields::upstream(e, TlsField::Cipher, o)),
    ("UPSTREAM_TLS_GROUP", |e, o| tls_fields::upstream(e, TlsField::Group, o)),
    ("UPSTREAM_TLS_VERSION", |e, o| tls_fields::upstream(e, TlsField::Version, o)),
    ("UPSTREAM_TRANSPORT_FAILURE_REASON", |e, o| text(e.upstream.as_ref().map(|u| u.transport_failure), o)),
    ("UPSTREAM_WIRE_BYTES_RECEIVED", |e, o| integer(e.upstream.as_ref().map_or(0, |u| u.wire_bytes_received), o)),
    ("UPSTREAM_WIRE_BYTES_SENT", |e, o| integer(e.upstream.as_ref().map_or(0, |u| u.wire_bytes_sent), o)),
    ("VIRTUAL_CLUSTER_NAME", |e, o| text(Some(e.virtual_cluster), o)),
];

fn upstream_host_name(entry: &Entry<'_>, with_port: bool, out: &mut Vec<u8>) -> Wrote {
    let Some(upstream) = &entry.upstream else { return Wrote::Nothing };
    match (upstream.host_name, with_port) {
        ("", true) => shown(upstream.host, out),
        ("", false) => without_port(upstream_socket(entry), out),
        (name, true) => text(Some(name), out),
        (name, false) => {
            let bare = name.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
            text(Some(bare.map_or(name, |(host, _)| host)), out)
        }
    }
}

/// Operators of Envoy that an entry cannot fill. Refused, so that no log is silently poorer than its reader expects.
pub(super) const UNSUPPORTED: &[&str] = &[
    "BYTES_RETRANSMITTED",
    "CEL",
    "CLUSTER_METADATA",
    "DOWNSTREAM_CX_RTT",
    "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED",
    "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT",
    "DOWNSTREAM_DETECTED_CLOSE_TYPE",
    "DOWNSTREAM_LOCAL_CLOSE_REASON",
    "DOWNSTREAM_LOCAL_OTHERNAME_SAN",
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1",
    "DOWNSTREAM_PEER_CHAIN_SERIALS",
    "DOWNSTREAM_PEER_FINGERPRINT_1",
    "DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256",
    "DOWNSTREAM_PEER_ISSUER_SERIAL",
    "DOWNSTREAM_PEER_OTHERNAME_SAN",
    "DOWNSTREAM_TLS_SESSION_ID",
    "DYNAMIC_METADATA",
    "ENVIRONMENT",
    "FILTER_STATE",
    "METADATA",
    "ROUTE_RESOLUTION_COUNT",
    "ROUTE_RESOLUTION_TIME_US",
    "SPAN_ID",
    "STREAM_INFO_REQ",
    "TLS_JA3_FINGERPRINT",
    "TLS_JA4_FINGERPRINT",
    "TRACE_ID",
    "UPSTREAM_CONNECTION_IDS_ATTEMPTED",
    "UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED",
    "UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT",
    "UPSTREAM_DETECTED_CLOSE_TYPE",
    "UPSTREAM_FILTER_STATE",
    "UPSTREAM_HEADER_BYTES_RECEIVED",
    "UPSTREAM_HEADER_BYTES_SENT",
    "UPSTREAM_HOSTS_ATTEMPTED",
    "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT",
    "UPSTREAM_HOST_NAMES_ATTEMPTED",
    "UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT",
    "UPSTREAM_LOCAL_CLOSE_REASON",
    "UPSTREAM_METADATA",
    "UPSTREAM_TLS_SESSION_ID",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_no_operator_is_both_supported_and_not() {
        assert!(PLAIN.is_sorted_by(|a, b| a.0 < b.0));
        assert!(UNSUPPORTED.iter().all(|name| !PLAIN.iter().any(|(plain, _)| plain == name)));
    }
}
