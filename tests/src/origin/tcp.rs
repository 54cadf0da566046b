//! A raw TCP origin.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{Open, Shared, bind};
use crate::runtime::OwnRuntime;

/// What a TCP origin does with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TcpBehaviour {
    /// Sends back what it gets; closes its side when the client does.
    #[default]
    Echo,
    /// Sends `<version>\n` first, then echoes: a protocol where the server speaks first.
    Greet,
    /// Reads until the client closes its side, then answers `<version> <bytes read>\n`: needs half-close.
    CountUntilEof,
    /// Sends that many bytes, then closes.
    Send(usize),
    /// Closes at once.
    Close,
    /// Resets at once.
    Reset,
    /// Reads and never answers.
    Silent,
}

/// A TCP origin on its own thread. Dropping it closes all its sockets at once.
#[derive(Debug)]
pub struct TcpOrigin {
    shared: Arc<Shared>,
    behaviour: Arc<Mutex<TcpBehaviour>>,
    address: SocketAddr,
    _runtime: OwnRuntime,
}

impl TcpOrigin {
    /// Listens on a free port of 127.0.0.1.
    pub fn start(version: &str, behaviour: TcpBehaviour) -> io::Result<Self> {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let address = listener.local_addr()?;
        let runtime = OwnRuntime::start("tcp-origin")?;
        let shared = Shared::new(version);
        let behaviour = Arc::new(Mutex::new(behaviour));
        runtime.handle().spawn(accept(Arc::clone(&shared), Arc::clone(&behaviour), listener));
        Ok(Self { shared, behaviour, address, _runtime: runtime })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Does this with connections from now on.
    pub fn set(&self, behaviour: TcpBehaviour) {
        *self.behaviour.lock().unwrap_or_else(PoisonError::into_inner) = behaviour;
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.shared.accepted.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Connections open now.
    pub fn open_connections(&self) -> u64 {
        self.shared.open.load(std::sync::atomic::Ordering::Relaxed)
    }
}

async fn accept(shared: Arc<Shared>, behaviour: Arc<Mutex<TcpBehaviour>>, listener: std::net::TcpListener) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    while let Ok((stream, _)) = listener.accept().await {
        let (open, _) = Open::count(&shared);
        let behaviour = *behaviour.lock().unwrap_or_else(PoisonError::into_inner);
        tokio::spawn(async move {
            // A client that goes away is no error here.
            let _ = serve(stream, behaviour, &open.0.version).await;
        });
    }
}

async fn serve(mut stream: TcpStream, behaviour: TcpBehaviour, version: &str) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    match behaviour {
        TcpBehaviour::Close => {}
        TcpBehaviour::Reset => SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO))?,
        TcpBehaviour::Silent => while stream.read(&mut buffer).await? > 0 {},
        TcpBehaviour::Send(mut left) => {
            buffer.fill(b'x');
            while left > 0 {
                let now = left.min(buffer.len());
                stream.write_all(&buffer[..now]).await?;
                left -= now;
            }
            stream.shutdown().await?;
        }
        TcpBehaviour::CountUntilEof => {
            let mut total = 0;
            loop {
                match stream.read(&mut buffer).await? {
                    0 => break,
                    n => total += n,
                }
            }
            stream.write_all(format!("{version} {total}\n").as_bytes()).await?;
            stream.shutdown().await?;
        }
        TcpBehaviour::Echo | TcpBehaviour::Greet => {
            if behaviour == TcpBehaviour::Greet {
                stream.write_all(format!("{version}\n").as_bytes()).await?;
            }
            loop {
                match stream.read(&mut buffer).await? {
                    0 => break,
                    n => stream.write_all(&buffer[..n]).await?,
                }
            }
            stream.shutdown().await?;
        }
    }
    Ok(())
}
