//! A worker's side of listeners: its accept loops, and its table of all listeners by address.
//!
//! Everything here lives on one thread. Orders come from the control thread; a listener is replaced by swapping what its
//! entry points to, so its sockets never stop accepting.

use super::bind::Bound;
use super::compiled::Listener;
use super::connection;
use crate::net::Socket;
use crate::network::Worker;
use crate::runtime::Admitted;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, mpsc, oneshot};

/// Orders from the control thread to a worker.
pub struct Order(pub(super) Command);

pub(super) enum Command {
    /// Serve this listener from now on. `sockets`: accept on these instead of what it had; `None`: keep what it has.
    Set { listener: Arc<Listener>, addresses: Vec<SocketAddr>, sockets: Option<Vec<Bound>> },
    /// Close its sockets; it stays in the table.
    StopAccepting(Arc<str>),
    /// Close its sockets and forget it.
    Remove(Arc<str>),
    /// Say that every order before this one is obeyed.
    Report(oneshot::Sender<()>),
}

/// How long accepting pauses when the process has no file descriptors or memory for one more connection.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// At most so many accepts in one go where the configuration sets no bound, so that one busy socket does not starve the
/// connections that are being served.
const MAX_ACCEPTS: u32 = 64;

/// One listener on this worker.
pub(super) struct Entry {
    listener: RefCell<Arc<Listener>>,
    addresses: RefCell<Vec<SocketAddr>>,
    /// Dropping one stops an accept loop.
    accepting: RefCell<Vec<oneshot::Sender<()>>>,
}

impl Entry {
    pub fn listener(&self) -> Arc<Listener> {
        self.listener.borrow().clone()
    }
}

/// All listeners of this worker.
#[derive(Default)]
pub(super) struct Table {
    by_name: RefCell<HashMap<Arc<str>, Rc<Entry>>>,
    by_address: RefCell<HashMap<SocketAddr, Rc<Entry>>>,
    /// Connections being served.
    active: Cell<usize>,
    idle: Notify,
}

impl Table {
    /// The listener for a restored destination: of that address, else of its port on any address.
    pub fn find(&self, destination: SocketAddr) -> Option<Rc<Entry>> {
        let table = self.by_address.borrow();
        let at = |ip: IpAddr| table.get(&SocketAddr::new(ip, destination.port()));
        let found = at(destination.ip()).or_else(|| match destination {
            SocketAddr::V4(_) => at(Ipv4Addr::UNSPECIFIED.into()).or_else(|| at(Ipv6Addr::UNSPECIFIED.into())),
            SocketAddr::V6(_) => at(Ipv6Addr::UNSPECIFIED.into()),
        });
        found.cloned()
    }

    fn forget_addresses(&self, entry: &Rc<Entry>) {
        self.by_address.borrow_mut().retain(|_, other| !Rc::ptr_eq(other, entry));
    }
}

/// A worker's accept loops: runs until the sender of orders is dropped, then until its connections have ended or `drain`
/// cut them.
pub async fn run_worker(worker: Rc<Worker>, mut orders: mpsc::UnboundedReceiver<Order>) {
    let table = Rc::new(Table::default());
    while let Some(Order(command)) = orders.recv().await {
        obey(command, &table, &worker);
    }
    table.by_address.borrow_mut().clear();
    for entry in table.by_name.borrow_mut().drain().map(|(_, entry)| entry) {
        entry.accepting.borrow_mut().clear();
    }
    let idle = async {
        // accept loops take what still waits in their sockets before they end
        tokio::task::yield_now().await;
        while table.active.get() > 0 {
            table.idle.notified().await;
        }
    };
    tokio::select! {
        () = idle => {}
        () = worker.services.drain.over() => {}
    }
}

fn obey(command: Command, table: &Rc<Table>, worker: &Rc<Worker>) {
    match command {
        Command::Set { listener, addresses, sockets } => {
            let known = table.by_name.borrow().get(&listener.config.name).cloned();
            let entry = known.unwrap_or_else(|| {
                let entry = Rc::new(Entry {
                    listener: RefCell::new(listener.clone()),
                    addresses: RefCell::default(),
                    accepting: RefCell::default(),
                });
                table.by_name.borrow_mut().insert(listener.config.name.clone(), entry.clone());
                entry
            });
            *entry.listener.borrow_mut() = listener.clone();
            if *entry.addresses.borrow() != addresses {
                table.forget_addresses(&entry);
                let mut by_address = table.by_address.borrow_mut();
                by_address.extend(addresses.iter().map(|address| (*address, entry.clone())));
                *entry.addresses.borrow_mut() = addresses;
            }
            let Some(sockets) = sockets else { return };
            let mut loops = Vec::with_capacity(sockets.len());
            for bound in sockets {
                match start(bound, &entry, table, worker) {
                    Ok(stop) => loops.push(stop),
                    Err(e) => tracing::error!("listener {} cannot accept: {e}", listener.config.name),
                }
            }
            // the new sockets listen before the old ones close
            *entry.accepting.borrow_mut() = loops;
        }
        Command::StopAccepting(name) => {
            if let Some(entry) = table.by_name.borrow().get(&name) {
                entry.accepting.borrow_mut().clear();
            }
        }
        Command::Remove(name) => {
            let entry = table.by_name.borrow_mut().remove(&name);
            if let Some(entry) = entry {
                entry.accepting.borrow_mut().clear();
                table.forget_addresses(&entry);
            }
        }
        // whoever asked may not wait any more
        Command::Report(obeyed) => drop(obeyed.send(())),
    }
}

enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listening {
    async fn accept(&self) -> io::Result<Socket> {
        match self {
            Listening::Tcp(socket) => socket.accept().await.map(|(stream, _)| Socket::Tcp(stream)),
            Listening::Unix(socket) => socket.accept().await.map(|(stream, _)| Socket::Unix(stream)),
        }
    }
}

/// Accepts in a task of its own on a socket that listens already.
fn start(bound: Bound, entry: &Rc<Entry>, table: &Rc<Table>, worker: &Rc<Worker>) -> io::Result<oneshot::Sender<()>> {
    let listening = match bound.unix {
        false => Listening::Tcp(TcpListener::from_std(bound.socket.into())?),
        true => Listening::Unix(UnixListener::from_std(bound.socket.into())?),
    };
    let (stop, stopped) = oneshot::channel();
    tokio::task::spawn_local(accept_loop(listening, stopped, entry.clone(), table.clone(), worker.clone()));
    Ok(stop)
}

/// What an error of accept(2) means for the socket.
#[derive(Debug, PartialEq, Eq)]
enum AcceptError {
    /// The connection is gone, the next one may be fine.
    Connection,
    /// Resources are used up; they may come back.
    Exhausted,
    /// The socket is of no use any more.
    Permanent,
}

fn classify(error: &io::Error) -> AcceptError {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => AcceptError::Exhausted,
        Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP | libc::EFAULT) => AcceptError::Permanent,
        _ => AcceptError::Connection,
    }
}

async fn accept_loop(
    listening: Listening,
    mut stopped: oneshot::Receiver<()>,
    entry: Rc<Entry>,
    table: Rc<Table>,
    worker: Rc<Worker>,
) {
    let mut in_a_row = 0;
    loop {
        let accepted = tokio::select! {
            biased;
            _ = &mut stopped => break,
            accepted = listening.accept() => accepted,
        };
        match accepted {
            Ok(socket) => spawn(socket, &entry, &table, &worker),
            Err(e) => match classify(&e) {
                AcceptError::Connection => {}
                AcceptError::Exhausted => {
                    tracing::warn!("accepting pauses: {e}; check the limit of open files (`ulimit -n`) and memory");
                    tokio::time::sleep(EXHAUSTED_PAUSE).await;
                }
                AcceptError::Permanent => {
                    tracing::error!("listener {} stops accepting: {e}", entry.listener().config.name);
                    return;
                }
            },
        }
        in_a_row += 1;
        let limit = match entry.listener.borrow().config.max_accepts_per_event {
            0 => MAX_ACCEPTS,
            limit => limit,
        };
        if in_a_row >= limit {
            in_a_row = 0;
            tokio::task::yield_now().await;
        }
    }
    // Closing the socket resets connections that the kernel has accepted and we have not: take them first.
    while let Poll::Ready(Ok(socket)) = poll_once(listening.accept()).await {
        spawn(socket, &entry, &table, &worker);
    }
}

async fn poll_once<T>(future: impl Future<Output = T>) -> Poll<T> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// Counts a connection of this worker out when its task ends, however it ends.
struct Active(Rc<Table>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
        if self.0.active.get() == 0 {
            self.0.idle.notify_one();
        }
    }
}

/// Counts a connection in where runtime limits them; `None`: it is one too many.
fn admit(listener: &Listener) -> Option<(Admitted, Option<Admitted>)> {
    let global = match &listener.config.global_connection_limit {
        None => None,
        Some(limit) => match limit.admit() {
            None => {
                listener.stats.global_cx_overflow.inc();
                return None;
            }
            admitted => admitted,
        },
    };
    let own = listener.config.connection_limit.admit();
    if own.is_none() {
        listener.stats.cx_overflow.inc();
    }
    Some((own?, global))
}

fn spawn(socket: Socket, entry: &Rc<Entry>, table: &Rc<Table>, worker: &Rc<Worker>) {
    // dropping the socket closes it
    let Some(admitted) = admit(&entry.listener()) else { return };
    table.active.set(table.active.get() + 1);
    let active = Active(table.clone());
    let serving = connection::serve(socket, entry.clone(), table.clone(), worker.clone());
    tokio::task::spawn_local(async move {
        serving.await;
        drop((active, admitted));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_errors_are_told_apart() {
        let class = |code| classify(&io::Error::from_raw_os_error(code));
        assert_eq!(class(libc::EMFILE), AcceptError::Exhausted);
        assert_eq!(class(libc::ECONNABORTED), AcceptError::Connection);
        assert_eq!(class(libc::EBADF), AcceptError::Permanent);
    }
}
