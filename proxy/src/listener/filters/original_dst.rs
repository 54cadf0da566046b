//! Where a redirected connection wanted to go.

use crate::net::Socket;
use socket2::SockRef;
use std::net::{IpAddr, SocketAddr};

/// The destination before iptables redirected the connection; `None` when it was not redirected. For a transparent
/// (TPROXY) listener that is the socket's own address.
pub(in crate::listener) fn original_dst(socket: &Socket, local: SocketAddr, transparent: bool) -> Option<SocketAddr> {
    let Socket::Tcp(tcp) = socket else { return None };
    if transparent {
        return Some(local);
    }
    let socket = SockRef::from(tcp);
    // An IPv4 connection may sit on an IPv6 socket: its entry is in the IPv4 table all the same.
    let found = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    let original = unmapped(found.ok()?.as_socket()?);
    // without a redirection conntrack answers with the address that was connected to
    (original != local).then_some(original)
}

/// An IPv4 address in IPv6's clothes as what it is.
pub(in crate::listener) fn unmapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), address.port()),
            None => address,
        },
        IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_are_unmapped() {
        assert_eq!(unmapped("[::ffff:10.0.0.1]:80".parse().unwrap()), "10.0.0.1:80".parse().unwrap());
        assert_eq!(unmapped("[::1]:80".parse().unwrap()), "[::1]:80".parse().unwrap());
    }
}
