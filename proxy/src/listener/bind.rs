//! Making listening sockets: one per worker on the same address, bound when the listener comes and listening when it is
//! warm.

use crate::config::ConfigError;
use crate::config::model::{Address, ListenerConfig};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A socket that is bound and does not listen yet.
pub(super) struct Bound {
    pub socket: Socket,
    pub unix: bool,
    backlog: i32,
}

impl Bound {
    pub fn listen(&self) -> io::Result<()> {
        self.socket.listen(self.backlog)
    }
}

/// The sockets of one listener.
pub(super) struct BoundListener {
    /// One to one with the configured addresses, with the real ports; Unix sockets have none.
    pub addresses: Vec<Option<SocketAddr>>,
    /// Per worker, one per address.
    pub per_worker: Vec<Vec<Bound>>,
}

/// Binds every address of a listener once per worker.
///
/// # Errors
/// Names the address and what to check.
pub(super) fn bind(config: &ListenerConfig, workers: usize) -> Result<BoundListener, ConfigError> {
    let mut bound = BoundListener { addresses: Vec::new(), per_worker: (0..workers).map(|_| Vec::new()).collect() };
    for (at, address) in std::iter::once(&config.address).chain(&config.additional_addresses).enumerate() {
        let path = if at == 0 { "address".to_owned() } else { format!("additional_addresses[{}]", at - 1) };
        let fail = |e: io::Error| ConfigError::new(path.clone(), explain(address, &e));
        let mut real = None;
        let mut first: Option<Socket> = None;
        for sockets in &mut bound.per_worker {
            // Without SO_REUSEPORT, and on a path, there is one socket; all workers accept from it.
            let shared = !config.reuse_port || matches!(address, Address::Pipe { .. });
            let socket = match (&first, shared) {
                (Some(first), true) => first.try_clone().map_err(fail)?,
                _ => match address {
                    Address::Socket(wanted) => {
                        let socket = tcp(config, real.unwrap_or(*wanted)).map_err(fail)?;
                        // port 0: the first bind decides, the other workers use its port
                        real = Some(socket.local_addr().map_err(fail)?.as_socket().unwrap_or(*wanted));
                        socket
                    }
                    Address::Pipe { path, mode } => pipe(path, *mode).map_err(fail)?,
                },
            };
            if first.is_none() {
                first = Some(socket.try_clone().map_err(fail)?);
            }
            let backlog = i32::try_from(config.tcp_backlog).unwrap_or(i32::MAX);
            sockets.push(Bound { socket, unix: matches!(address, Address::Pipe { .. }), backlog });
        }
        bound.addresses.push(real);
    }
    Ok(bound)
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
    if let Some(queue) = config.tcp_fast_open_queue_length {
        set_fast_open(&socket, queue)?;
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
    if let Some(name) = path.to_str().and_then(|p| p.strip_prefix('@')) {
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
