//! Sockets and addresses: what a connection runs over, and the four kinds of address that must not be swapped.

mod address;
mod socket;

pub use address::{DownstreamPeer, LocalAddr, OriginalDst, UpstreamAddr};
pub use socket::{Socket, Transport};
