//! The cheapest possible HTTP/1.1 origin: it finds the end of each request's headers and answers with constant bytes.

use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Serves until the process ends; prints the address it got.
pub async fn serve(listen: SocketAddr, body: usize) -> io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    println!("{}", listener.local_addr()?);
    let reply =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {body}\r\n\r\n{}", "x".repeat(body));
    let reply: &'static [u8] = reply.leak().as_bytes();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            // a client that went away ends only its own connection
            let _ = answer(stream, reply).await;
        });
    }
}

async fn answer(mut stream: TcpStream, reply: &[u8]) -> io::Result<()> {
    let mut buffer = vec![0; 8192];
    let mut filled = 0;
    loop {
        let n = stream.read(&mut buffer[filled..]).await?;
        if n == 0 {
            return Ok(());
        }
        filled += n;
        // requests without bodies: each ends with its headers
        let mut begin = 0;
        while let Some(end) = find(&buffer[begin..filled], b"\r\n\r\n") {
            begin += end + 4;
            stream.write_all(reply).await?;
        }
        buffer.copy_within(begin..filled, 0);
        filled -= begin;
        if filled == buffer.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "request headers over 8 KiB"));
        }
    }
}

/// Where `needle` begins in `haystack`.
pub fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}
