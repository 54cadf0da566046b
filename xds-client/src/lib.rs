//! An xDS transport.
use std::io;
use std::pin::Pin;
use tokio::io::{AsyncRead, AsyncWrite};

pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}
pub type BoxIo = Box<dyn Io>;
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// How a stream reaches its server.
pub trait Connect: Send + Sync + 'static {
    fn connect(&self) -> BoxFuture<io::Result<BoxIo>>;
    fn authority(&self) -> String;
}
