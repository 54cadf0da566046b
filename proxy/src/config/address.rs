//! Addresses: sockets, pipes, CIDR ranges, socket options.

use super::ProblemKind;
use super::context::{Context, Result};
use super::model::{Address, TcpKeepalive};
use super::pb::{core, google};
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// What the kernel has for it, with the zero byte at its end (`sockaddr_un.sun_path`).
const MAX_PIPE_PATH: usize = 108;

/// Where an address points, before names are resolved.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Place {
    Address(Address),
    Name(String, u16),
}

/// An address with an IP or a path. Names are refused: nothing would resolve them.
pub(super) fn address(message: Option<core::Address>, field: &str, cx: &mut Context) -> Result<Address> {
    match place(message, field, cx)? {
        (Place::Address(address), _) => Ok(address),
        (Place::Name(name, _), _) => Err(cx.error_at(
            field,
            format!("malformed IP address: {name}. Consider a cluster type STRICT_DNS or LOGICAL_DNS"),
        )),
    }
}

/// An address of any kind, and its `ipv4_compat`.
pub(super) fn place(message: Option<core::Address>, field: &str, cx: &mut Context) -> Result<(Place, bool)> {
    use core::address::Address as Kind;
    let core::Address { address } = cx.required(field, message)?;
    cx.at(field, |cx| match cx.required("", address)? {
        Kind::SocketAddress(socket) => cx.at("socket_address", |cx| socket_place(socket, cx)),
        Kind::Pipe(core::Pipe { path, mode }) => {
            let path = cx.non_empty("pipe.path", path)?;
            if mode > 0o777 {
                return Err(cx.error_at("pipe.mode", format!("found {mode:o}, expected at most 777 (octal)")));
            }
            if path.starts_with('@') && mode != 0 {
                cx.record_all([cx.error_at("pipe.mode", "Cannot set mode for Abstract AF_UNIX sockets")]);
            }
            if path.len() >= MAX_PIPE_PATH {
                let message =
                    format!("Path \"{path}\" exceeds maximum UNIX domain socket path size of {MAX_PIPE_PATH}.");
                return Err(cx.error_at("pipe.path", message));
            }
            // Names in the abstract namespace are not files: they have no directory.
            let path = if path.starts_with('@') { PathBuf::from(path) } else { cx.resolve(&path) };
            Ok((Place::Address(Address::Pipe { path, mode }), false))
        }
        Kind::EnvoyInternalAddress(_) => Err(cx.error_at("envoy_internal_address", "is not supported")),
    })
}

fn socket_place(message: core::SocketAddress, cx: &mut Context) -> Result<(Place, bool)> {
    use core::socket_address::{PortSpecifier, Protocol};
    let core::SocketAddress {
        protocol,
        address,
        resolver_name: _,
        ipv4_compat,
        network_namespace_filepath: _,
        port_specifier,
    } = message;
    if cx.enumeration::<Protocol>("protocol", protocol)? == Protocol::Udp {
        return Err(cx.error_at("protocol", "found UDP, expected TCP: UDP and QUIC are not supported"));
    }
    let address = cx.non_empty("address", address)?;
    let port = match port_specifier {
        Some(PortSpecifier::PortValue(port)) => cx.port("port_value", port)?,
        Some(PortSpecifier::NamedPort(_)) | None => {
            return Err(cx.error_at("port_value", "is missing, expected a port"));
        }
    };
    let place = match address.parse::<IpAddr>() {
        Ok(ip) => Place::Address(Address::Socket(SocketAddr::new(ip, port))),
        Err(_) => Place::Name(address, port),
    };
    Ok((place, ipv4_compat))
}

/// A bare socket address (`BindConfig`), which must be an IP.
pub(super) fn socket_address(message: core::SocketAddress, cx: &mut Context) -> Result<SocketAddr> {
    match socket_place(message, cx)? {
        (Place::Address(Address::Socket(address)), _) => Ok(address),
        (other, _) => Err(cx.error_at("address", format!("found {other:?}, expected an IP address"))),
    }
}

/// An address range; host bits are cut off. An absent length means 0, everything.
pub(super) fn cidr(message: core::CidrRange, cx: &mut Context) -> Result<IpNet> {
    let core::CidrRange { address_prefix, prefix_len } = message;
    let ip: IpAddr = address_prefix
        .parse()
        .map_err(|_| cx.error_at("address_prefix", format!("found {address_prefix:?}, expected an IP address")))?;
    let length = prefix_len.map_or(0, |v| v.value);
    u8::try_from(length).ok().and_then(|length| IpNet::new(ip, length).ok()).map(|net| net.trunc()).ok_or_else(|| {
        cx.error_at("prefix_len", format!("found {length}, expected at most {}", if ip.is_ipv4() { 32 } else { 128 }))
    })
}

/// Raw socket options are not set. One that keeps others out must not be left out in silence.
pub(super) fn socket_options(messages: Vec<core::SocketOption>, cx: &mut Context) -> Result<()> {
    use core::socket_option::{SocketType, Value, socket_type};
    for (at, message) in messages.into_iter().enumerate() {
        let core::SocketOption { description, level, name, state, r#type, ip_version, value } = message;
        let value = match value {
            Some(Value::IntValue(number)) => number.to_string(),
            Some(Value::BufValue(bytes)) => format!("{} bytes", bytes.len()),
            None => "no value".to_owned(),
        };
        let when = cx.enumeration::<core::socket_option::SocketState>("state", state)?.as_str_name();
        let SocketType { stream, datagram } = r#type.unwrap_or_default();
        let (stream, datagram) =
            (stream.map(|socket_type::Stream {}| "stream"), datagram.map(|socket_type::Datagram {}| "datagram"));
        let of = stream.or(datagram).unwrap_or("all");
        let version = cx.enumeration::<core::socket_option::SocketIpVersion>("ip_version", ip_version)?.as_str_name();
        let field = format!("socket_options[{at}]");
        if (level, name) == (libc::SOL_SOCKET.into(), libc::SO_BINDTODEVICE.into()) {
            let message = format!(
                "is not supported: SO_BINDTODEVICE ({description:?}) would not keep traffic of other devices out"
            );
            cx.record_all([cx.error_at(&field, message).of_kind(ProblemKind::Unsupported)]);
        } else {
            let what = format!("level {level}, name {name}, {value}, {when}, {of} sockets, {version} {description:?}");
            cx.warn(&field, format!("raw socket options are not set: {what}"));
        }
    }
    Ok(())
}

/// [`socket_options`] of one address among several.
pub(super) fn own_socket_options(message: Option<core::SocketOptionsOverride>, cx: &mut Context) -> Result<()> {
    let Some(core::SocketOptionsOverride { socket_options: options }) = message else { return Ok(()) };
    cx.at("socket_options", |cx| socket_options(options, cx))
}

/// TCP keep-alive; absent parts are the system's.
pub(super) fn keepalive(message: core::TcpKeepalive) -> TcpKeepalive {
    let core::TcpKeepalive { keepalive_probes, keepalive_time, keepalive_interval } = message;
    let seconds = |v: Option<google::UInt32Value>| v.map(|v| Duration::from_secs(v.value.into()));
    TcpKeepalive {
        probes: keepalive_probes.map(|v| v.value),
        time: seconds(keepalive_time),
        interval: seconds(keepalive_interval),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(address: &str, port: u32) -> Option<core::Address> {
        Some(core::Address {
            address: Some(core::address::Address::SocketAddress(core::SocketAddress {
                address: address.into(),
                port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
                ..Default::default()
            })),
        })
    }

    #[test]
    fn ips_are_addresses_and_names_are_not() {
        let mut cx = Context::default();
        assert_eq!(address(socket("::1", 80), "address", &mut cx).unwrap().to_string(), "[::1]:80");
        assert_eq!(
            address(socket("localhost", 80), "address", &mut cx).unwrap_err().to_string(),
            "address: malformed IP address: localhost. Consider a cluster type STRICT_DNS or LOGICAL_DNS"
        );
        let converted = address(socket("::1", 65536), "address", &mut cx);
        assert_eq!(
            cx.finish(converted).unwrap_err().to_string(),
            "address.socket_address.port_value: found 65536, expected a port, 0 to 65535"
        );
        assert_eq!(address(None, "address", &mut cx).unwrap_err().to_string(), "address: is missing, expected a value");
    }

    #[test]
    fn a_socket_option_that_guards_is_refused_and_others_are_named() {
        let mut cx = Context::default();
        let option = |level, name| core::SocketOption { level, name, ..Default::default() };
        socket_options(vec![option(6, 1), option(1, 25)], &mut cx).unwrap();
        assert_eq!(
            cx.notices.warnings[0].to_string(),
            "socket_options[0]: raw socket options are not set: level 6, name 1, no value, STATE_PREBIND, all sockets, \
             SOCKET_IP_VERSION_UNSPECIFIED \"\""
        );
        let refused = cx.finish(Ok(())).unwrap_err().to_string();
        assert!(refused.starts_with("socket_options[1]: is not supported: SO_BINDTODEVICE"), "{refused}");
    }

    #[test]
    fn ranges_lose_their_host_bits() {
        let mut cx = Context::default();
        let range = |a: &str, n| core::CidrRange {
            address_prefix: a.into(),
            prefix_len: Some(google::UInt32Value { value: n }),
        };
        assert_eq!(cidr(range("10.1.2.3", 8), &mut cx).unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(
            cidr(range("10.1.2.3", 33), &mut cx).unwrap_err().to_string(),
            "prefix_len: found 33, expected at most 32"
        );
    }
}
