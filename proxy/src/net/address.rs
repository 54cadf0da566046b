//! Address newtypes: each says whose address it is.

use crate::config::model::Address;
use std::fmt;
use std::net::SocketAddr;

macro_rules! socket_address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name(pub SocketAddr);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

socket_address! {
    /// Who connected to us.
    DownstreamPeer
}
socket_address! {
    /// Where the peer wanted to go before iptables redirected it (`SO_ORIGINAL_DST`).
    OriginalDst
}
socket_address! {
    /// Our end of a connection.
    LocalAddr
}

/// An endpoint we connect to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UpstreamAddr(pub Address);

impl fmt::Display for UpstreamAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
