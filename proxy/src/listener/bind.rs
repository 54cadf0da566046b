//! Making listening sockets: one per worker on the same address, bound when the listener comes and listening when it is
//! warm. Where there can be only one (no SO_REUSEPORT, paths), it is kept at hand, so that whoever has the address next
//! goes on with it.

use crate::config::ConfigError;
use crate::config::model::{Address, ListenerConfig};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::rc::Rc;

/// A worker's own of a listener's sockets.
pub(super) struct Bound {
    pub socket: Socket,
    pub unix: bool,
}

/// The one socket of an address, from which all workers accept.
#[derive(Clone)]
pub(super) struct Shared {
    address: Address,
    /// With the real port.
    real: Option<SocketAddr>,
    /// What cannot be another on a bound socket: transparent, freebind, IPv4 too.
    options: (bool, bool, bool),
    socket: Rc<Socket>,
}

/// The sockets of one listener.
pub(super) struct BoundListener {
    /// One to one with the configured addresses, with the real ports; Unix sockets have none.
    pub addresses: Vec<Option<SocketAddr>>,
    /// Per worker, one per address.
    pub per_worker: Vec<Vec<Bound>>,
    /// Addresses with one socket.
    pub shared: Vec<Shared>,
}

/// Has sockets listen, with the backlog of this configuration; those that listen already change theirs.
///
/// # Errors
/// Of listen(2), or of setting a path's mode.
pub(super) fn listen(config: &ListenerConfig, sockets: &[Vec<Bound>]) -> io::Result<()> {
    let backlog = i32::try_from(config.tcp_backlog).unwrap_or(i32::MAX);
    for bound in sockets.iter().flatten() {
        if let Some(queue) = config.tcp_fast_open_queue_length.filter(|_| !bound.unix) {
            set_fast_open(&bound.socket, queue)?;
        }
        bound.socket.listen(backlog)?;
    }
    for address in addresses(config) {
        if let Address::Pipe { path, mode: mode @ 1.. } = address
            && abstract_name(path).is_none()
        {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(*mode))?;
        }
    }
    Ok(())
}

/// Binds every address of a listener once per worker, unless `held` names the one socket that is bound to it.
///
/// # Errors
/// Names the address and what to check.
pub(super) fn bind<'a>(
    config: &ListenerConfig,
    workers: usize,
    held: impl Iterator<Item = &'a Shared> + Clone,
) -> Result<BoundListener, ConfigError> {
    let mut bound = BoundListener {
        addresses: Vec::new(),
        per_worker: (0..workers).map(|_| Vec::new()).collect(),
        shared: Vec::new(),
    };
    for (at, address) in addresses(config).enumerate() {
        let path = if at == 0 { "address".to_owned() } else { format!("additional_addresses[{}]", at - 1) };
        let fail = |e: io::Error| ConfigError::new(path.clone(), explain(address, &e));
        let unix = matches!(address, Address::Pipe { .. });
        let mut real = None;
        // Without SO_REUSEPORT, and on a path, there is one socket; all workers accept from it.
        let shared = match address {
            _ if unix || !config.reuse_port => {
                let options = (config.transparent, config.freebind, config.ipv4_compat);
                let known = held.clone().find(|s| s.is_at(address) && s.options == options).cloned();
                let shared = match (known, address) {
                    (Some(known), _) => known,
                    (None, Address::Socket(wanted)) => {
                        let socket = tcp(config, *wanted).map_err(fail)?;
                        let real = socket.local_addr().map_err(fail)?.as_socket();
                        Shared { address: address.clone(), real, options, socket: Rc::new(socket) }
                    }
                    (None, Address::Pipe { path, mode }) => {
                        let socket = Rc::new(pipe(path, *mode).map_err(fail)?);
                        Shared { address: address.clone(), real: None, options, socket }
                    }
                };
                Some(shared)
            }
            _ => None,
        };
        for sockets in &mut bound.per_worker {
            let socket = match (&shared, address) {
                (Some(shared), _) => shared.socket.try_clone().map_err(fail)?,
                (None, Address::Socket(wanted)) => {
                    let socket = tcp(config, real.unwrap_or(*wanted)).map_err(fail)?;
                    // port 0: the first bind decides, the other workers use its port
                    real = Some(socket.local_addr().map_err(fail)?.as_socket().unwrap_or(*wanted));
                    socket
                }
                (None, Address::Pipe { .. }) => continue,
            };
            sockets.push(Bound { socket, unix });
        }
        bound.addresses.push(shared.as_ref().map_or(real, |shared| shared.real));
        bound.shared.extend(shared);
    }
    Ok(bound)
}

impl Shared {
    /// Whether it is bound to this; a path's mode is not the socket's.
    fn is_at(&self, address: &Address) -> bool {
        match (&self.address, address) {
            (Address::Pipe { path, .. }, Address::Pipe { path: wanted, .. }) => path == wanted,
            (held, wanted) => held == wanted,
        }
    }

    /// Whether only the listener that has it can ask for it again: port 0 is another port for each.
    pub fn is_of_any_port(&self) -> bool {
        matches!(&self.address, Address::Socket(address) if address.port() == 0)
    }
}

fn addresses(config: &ListenerConfig) -> impl Iterator<Item = &Address> {
    std::iter::once(&config.address).chain(&config.additional_addresses)
}

fn tcp(config: &ListenerConfig, address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if config.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(!config.ipv4_compat)?;
    }
    if config.freebind {
        if address.is_ipv6() { socket.set_freebind_v6(true)? } else { socket.set_freebind_v4(true)? }
    }
    if config.transparent {
        if address.is_ipv6() { socket.set_ip_transparent_v6(true)? } else { socket.set_ip_transparent_v4(true)? }
    }
    // inherited by every connection accepted, which saves a call for each
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn set_fast_open(socket: &Socket, queue: u32) -> io::Result<()> {
    let queue = libc::c_int::try_from(queue).unwrap_or(libc::c_int::MAX);
    let length = size_of_val(&queue) as libc::socklen_t;
    // SAFETY: the descriptor is open while `socket` lives, and the pointer and length are those of one c_int.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_FASTOPEN, (&raw const queue).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn pipe(path: &Path, mode: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    if let Some(name) = abstract_name(path) {
        socket.bind(&SockAddr::unix(format!("\0{name}"))?)?;
        return Ok(socket);
    }
    // left over from a process that is gone
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    socket.bind(&SockAddr::unix(path)?)?;
    if mode != 0 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(socket)
}

fn abstract_name(path: &Path) -> Option<&str> {
    path.to_str().and_then(|p| p.strip_prefix('@'))
}

fn explain(address: &Address, error: &io::Error) -> String {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => ": see who listens there with `ss -ltnp`",
        io::ErrorKind::AddrNotAvailable => ": no interface has this address; `freebind` binds all the same",
        io::ErrorKind::PermissionDenied => {
            ": ports below 1024 need CAP_NET_BIND_SERVICE, `transparent` needs CAP_NET_ADMIN, a path its folder's permission"
        }
        _ => "",
    };
    format!("cannot bind '{address}': {error}{hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bound of the queue of a listening socket, as the kernel has it.
    fn backlog(socket: &Socket) -> u32 {
        // SAFETY: all-zero bytes are a valid tcp_info.
        let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
        let mut length = size_of_val(&info) as libc::socklen_t;
        // SAFETY: the descriptor is open while `socket` lives; the pointer and length are those of one tcp_info.
        let result = unsafe {
            let info = (&raw mut info).cast();
            libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info, &raw mut length)
        };
        assert_eq!(result, 0);
        // of a socket that listens
        info.tcpi_sacked
    }

    #[test]
    fn a_socket_that_is_held_is_used_again_and_takes_another_backlog() {
        let mut config = super::super::tests::listener(Vec::new());
        (config.reuse_port, config.tcp_backlog) = (false, 7);
        let first = bind(&config, 2, [].iter()).unwrap();
        listen(&config, &first.per_worker).unwrap();
        assert_eq!(backlog(&first.per_worker[1][0].socket), 7);
        config.tcp_backlog = 9;
        let second = bind(&config, 2, first.shared.iter()).unwrap();
        assert_eq!(second.addresses, first.addresses);
        listen(&config, &second.per_worker).unwrap();
        assert_eq!(backlog(&first.per_worker[0][0].socket), 9);
        // other options are another socket's, and the port is taken
        config.address = Address::Socket(first.addresses[0].unwrap());
        assert!(bind(&config, 2, [].iter()).is_err());
        config.freebind = true;
        assert!(bind(&config, 2, first.shared.iter()).is_err());
    }
}
