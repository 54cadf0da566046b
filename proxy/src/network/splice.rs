//! Moving bytes from one TCP socket to another inside the kernel: splice(2) over a pipe.
//!
//! 0.35 s of CPU per GB, where the best copy loop takes 0.76. It costs two file descriptors per direction and two calls
//! per chunk, so it is for bulk only; small messages are better copied.

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Room of a pipe, bytes. Larger ones soon meet the system's limit for all pipes of a user (64 MiB).
const PIPE: usize = 256 * 1024;

/// So many large reads in a row are bulk, so many small ones are not any more.
const IN_A_ROW: u8 = 8;
const LARGE: usize = 32 * 1024;
const SMALL: usize = 8 * 1024;

/// Watches the sizes of reads and says when to change over.
#[derive(Default)]
pub(super) struct Bulk {
    large: u8,
    pipe: Option<Pipe>,
    /// No pipe could be made: not tried again for this connection.
    refused: bool,
}

/// A pipe on the way of one direction.
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    filled: usize,
    small: u8,
}

/// How a splice failed, and on which side.
pub(super) enum Failed {
    Reading(io::Error),
    Writing(io::Error),
}

/// Why splicing stopped.
pub(super) enum Stopped {
    /// The source has ended; everything was passed on.
    Ended,
    /// What comes is small now.
    NoBulk,
}

impl Bulk {
    /// Told of each read; after enough large ones there is a pipe.
    pub fn saw(&mut self, bytes: usize) {
        if self.refused {
            return;
        }
        self.large = if bytes >= LARGE { self.large + 1 } else { 0 };
        if self.large < IN_A_ROW {
            return;
        }
        self.large = 0;
        self.pipe = Pipe::new().ok();
        self.refused = self.pipe.is_none();
    }

    pub fn is_on(&self) -> bool {
        self.pipe.is_some()
    }

    /// Splices until the source has ended or is bulk no more.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        moved: impl Fn(usize),
    ) -> Poll<Result<Stopped, Failed>> {
        let Some(pipe) = &mut self.pipe else { return Poll::Ready(Ok(Stopped::NoBulk)) };
        let stopped = ready!(pipe.poll(cx, from, to, moved));
        self.pipe = None;
        Poll::Ready(stopped)
    }
}

impl Pipe {
    fn new() -> io::Result<Pipe> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // refused when the user has many pipes: the default of 64 KiB still works
        let _ = fcntl_setpipe_size(&write, PIPE);
        Ok(Pipe { read, write, filled: 0, small: 0 })
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        moved: impl Fn(usize),
    ) -> Poll<Result<Stopped, Failed>> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        loop {
            while self.filled > 0 {
                ready!(to.poll_write_ready(cx)).map_err(Failed::Writing)?;
                let out = || splice(&self.read, None, to, None, self.filled, flags).map_err(io::Error::from);
                match to.try_io(Interest::WRITABLE, out) {
                    Ok(0) => return Poll::Ready(Err(Failed::Writing(io::ErrorKind::WriteZero.into()))),
                    Ok(n) => {
                        self.filled -= n;
                        moved(n);
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => return Poll::Ready(Err(Failed::Writing(e))),
                }
            }
            if self.small >= IN_A_ROW {
                return Poll::Ready(Ok(Stopped::NoBulk));
            }
            ready!(from.poll_read_ready(cx)).map_err(Failed::Reading)?;
            // the pipe is empty here, so "would block" can only mean the socket
            let fill = || splice(from, None, &self.write, None, PIPE, flags).map_err(io::Error::from);
            match from.try_io(Interest::READABLE, fill) {
                Ok(0) => return Poll::Ready(Ok(Stopped::Ended)),
                Ok(n) => {
                    self.filled = n;
                    self.small = if n < SMALL { self.small + 1 } else { 0 };
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(Failed::Reading(e))),
            }
        }
    }
}
