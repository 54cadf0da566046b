//! A tokio runtime on a thread of its own, that can be ended as a process would: all tasks and sockets at once.

use std::fmt;
use std::io;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};

/// Owns a runtime with one worker thread. Dropping it drops every task that runs there and closes their sockets
/// before it returns.
pub(crate) struct OwnRuntime(Option<Runtime>);

impl OwnRuntime {
    pub(crate) fn start(name: &str) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build()?;
        Ok(Self(Some(runtime)))
    }

    /// Where to spawn.
    pub(crate) fn handle(&self) -> Handle {
        match &self.0 {
            Some(runtime) => runtime.handle().clone(),
            // Only `drop` empties it, and it has the last reference.
            None => unreachable!("a dropped runtime"),
        }
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        let Some(runtime) = self.0.take() else { return };
        // Waiting for the end is not allowed on a thread that runs another runtime's tasks, so wait on a new one.
        let end = std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(5)));
        let _ = end.join();
    }
}

impl fmt::Debug for OwnRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnRuntime")
    }
}
