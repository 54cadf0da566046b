//! Waits until something is moved into a directory, which is how configuration is replaced in one step. Linux inotify on
//! the runtime's own poll; knows nothing of what is in the files.

use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Names remembered of one wake-up; with more, it is not said which they were.
const MAX_NAMES: usize = 64;

/// A directory that is watched.
pub struct Directory {
    fd: AsyncFd<OwnedFd>,
}

/// What happened since the last time.
#[derive(Debug, Default)]
pub struct Moves {
    /// Entries that were moved in.
    pub names: Vec<OsString>,
    /// There was more than could be told: look yourself.
    pub overflow: bool,
    /// The directory itself was moved or deleted: this watch sees nothing any more.
    pub gone: bool,
}

impl Directory {
    /// Watches a directory, from now on.
    ///
    /// # Errors
    /// When there is no such directory, it may not be read, or the user has no more inotify watches.
    pub fn watch(path: &Path) -> io::Result<Directory> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let flags = WatchFlags::MOVED_TO | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR;
        inotify::add_watch(&fd, path, flags).map_err(|e| match e {
            Errno::NOSPC => io::Error::new(e.kind(), "no inotify watch is left (see fs.inotify.max_user_watches)"),
            e => e.into(),
        })?;
        // SAFETY: an `OwnedFd` names the same open descriptor for as long as it lives, and the `AsyncFd` owns it.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Directory { fd })
    }

    /// Waits for something to happen. Cancel safe.
    ///
    /// # Errors
    /// When the watch itself cannot be read.
    pub async fn moves(&self) -> io::Result<Moves> {
        loop {
            let mut ready = self.fd.readable().await?;
            let moves = self.drain()?;
            ready.clear_ready();
            if moves.overflow || moves.gone || !moves.names.is_empty() {
                return Ok(moves);
            }
        }
    }

    /// Everything that is known by now.
    fn drain(&self) -> io::Result<Moves> {
        // Room for a dozen events; one with the longest name takes 272 bytes.
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(self.fd.get_ref(), &mut buffer);
        let mut moves = Moves::default();
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => return Ok(moves),
                Err(Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            };
            let flags = event.events();
            moves.overflow |= flags.contains(ReadFlags::QUEUE_OVERFLOW);
            moves.gone |= flags.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::IGNORED);
            if let Some(name) = event.file_name().filter(|_| flags.contains(ReadFlags::MOVED_TO)) {
                if moves.names.len() < MAX_NAMES {
                    moves.names.push(OsStr::from_bytes(name.to_bytes()).to_owned());
                } else {
                    moves.overflow = true;
                }
            }
        }
    }
}
